//! The current state of each installation: the content of the table, beside the state at the platform.

use std::time::Duration;

use serde_json::{Value, json};
use shared::domain::installation::Installation;

use super::Desk;
use crate::{
    marketplace::{Options, grants::Resource},
    whole::{APP_SECRET, CALLBACK_PATH},
};

/// Interval between two views, while a page is connected.
const EVERY: Duration = Duration::from_millis(250);

/// Longest time between the request for a stored token and its issue, in milliseconds. A token that was issued later is
/// another token.
const ISSUED_WITHIN: u64 = 2_000;

impl Desk {
    /// Returns the values that do not change while the sandbox runs.
    pub(super) fn hello(&self, run: &str) -> Value {
        let options = self.controls.platform.options();
        json!({
            "run": run,
            "link": format!("{}/oauth/install", self.controls.gateway_url),
            "marketplace": format!("{}/install", self.controls.platform_url),
            "callback": format!("{}{CALLBACK_PATH}", self.controls.gateway_url),
            "limits": options.limits,
            "api": options.api,
            "signature": if options.webhook_secret.is_some() { "HMAC-SHA256" } else { "Ed25519" },
            "token_requests_per_minute": options.token_requests_per_minute,
        })
    }

    /// Sends the view to all pages whenever the view has changed.
    pub(super) async fn watch(&self) {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if self.feed.view.receiver_count() == 0 {
                continue;
            }
            let view = self.view().await;
            self.feed.view.send_if_modified(|known| {
                let changed = *known != view;
                *known = view;
                changed
            });
        }
    }

    /// Returns the view as JSON. The view contains no token, and no value that changes each time the view is made.
    pub(super) async fn view(&self) -> String {
        let options = self.controls.platform.options();
        let mut resources = Vec::new();
        for (resource, name) in all(&options) {
            resources.push(self.resource(&resource, &name).await);
        }
        let workers: Vec<Value> = self
            .controls
            .workers
            .iter()
            .map(|worker| json!({ "name": worker.name(), "pid": worker.pid(), "starts": worker.starts() }))
            .collect();
        let mut faults: Vec<String> = self.controls.platform.faults().iter().map(ToString::to_string).collect();
        let secret = self.controls.secrets.get(APP_SECRET).unwrap_or_default();
        if !secret.contains(&options.client_secret) {
            faults.push("the app's secret in Secrets Manager is wrong".to_owned());
        }
        let queued = self.controls.calls.depth();
        json!({ "resources": resources, "workers": workers, "faults": faults, "queued": queued }).to_string()
    }

    async fn resource(&self, resource: &Resource, name: &str) -> Value {
        let stored = self.stored(resource).await;
        let (kind, id) = match resource {
            Resource::Location(id) => ("location", id),
            Resource::Company(id) => ("company", id),
        };
        let access = stored.as_ref().ok().and_then(Option::as_ref).and_then(Installation::access);
        let issued_at = access.and_then(|access| u64::try_from(access.issued_at.0).ok()).unwrap_or_default();
        let mut platform = json!(self.controls.platform.glance(resource, issued_at + ISSUED_WITHIN));
        // This value falls with each view, and the page does not show it.
        if let Some(remaining) = platform["remaining"].as_object_mut() {
            remaining.remove("daily_reset_ms");
        }
        json!({
            "resource": resource.to_string(),
            "kind": kind,
            "id": id,
            "name": name,
            "installation": stored.as_ref().ok().and_then(Option::as_ref).map(installation),
            "problem": stored.as_ref().err().map(ToString::to_string),
            "platform": platform,
            "chart": self.feed.chart(&resource.to_string()),
        })
    }

    /// Returns the installation as the functions read it.
    pub(super) async fn stored(&self, resource: &Resource) -> Result<Option<Installation>, String> {
        let key = match resource {
            Resource::Location(id) => shared::domain::resource::Resource::location(id),
            Resource::Company(id) => shared::domain::resource::Resource::company(id),
        };
        let key = key.map_err(|error| error.to_string())?;
        self.controls.table.installation(&key).await.map_err(|error| error.to_string())
    }
}

/// Returns up to twelve locations of the agency, and the agency itself.
fn all(options: &Options) -> Vec<(Resource, String)> {
    let locations = options.locations.iter().take(12);
    let locations = locations.map(|location| (Resource::Location(location.id.clone()), location.name.clone()));
    let agency = (Resource::Company(options.company.clone()), "Grove Agency".to_owned());
    locations.chain([agency]).collect()
}

fn installation(stored: &Installation) -> Value {
    json!({
        "status": stored.status().as_str(),
        "epoch": stored.version.epoch,
        "generation": stored.version.generation,
        "issued_at": stored.access().map(|access| access.issued_at.0),
        "expires_at": stored.access().map(|access| access.expires_at.0),
        "lease_ends_at": stored.lease().map(|lease| lease.ends_at.0),
        "retry_at": stored.schedule().retry_at.map(|at| at.0),
        "failures": stored.schedule().failures,
        "minted": stored.minted().is_some(),
        "is_placeholder": stored.is_placeholder(),
    })
}
