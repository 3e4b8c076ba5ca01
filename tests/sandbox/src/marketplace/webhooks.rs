//! Webhooks of the fake platform: signed notices of installs and uninstalls, sent again if the receiver does not accept
//! them.
//!
//! No webhook is sent until [`Webhooks::send_to`] has set the URL. A test that wants no webhooks does not set the URL.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use aws_lc_rs::{
    encoding::{AsDer as _, PublicKeyX509Der},
    signature::{Ed25519KeyPair, KeyPair as _},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{Options, grants::Resource};
use crate::{
    events::{Event, EventBus},
    lock::lock,
    server::StartError,
};

/// The kind of a webhook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The app was installed.
    Install,
    /// The app was uninstalled.
    Uninstall,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Install => "INSTALL",
            Self::Uninstall => "UNINSTALL",
        }
    }
}

/// Waits before a webhook is sent again. The platform waits for minutes, which is too long for a person at a sandbox.
const AGAIN_AFTER: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(10), Duration::from_secs(30)];
const PATIENCE: Duration = Duration::from_secs(30);

/// The sender, with its own signing key.
#[derive(Debug)]
pub struct Webhooks {
    key: Arc<Ed25519KeyPair>,
    client: reqwest::Client,
    target: Mutex<Option<String>>,
    bus: EventBus,
}

impl Webhooks {
    pub(super) fn new(bus: EventBus) -> Result<Self, StartError> {
        let key = Ed25519KeyPair::generate().map_err(|_| StartError::System("no key can be made".to_owned()))?;
        Ok(Self { key: Arc::new(key), client: reqwest::Client::new(), target: Mutex::default(), bus })
    }

    /// Returns the public key for `WEBHOOK_PUBLIC_KEYS`, in the form in which the platform publishes its key: SPKI in
    /// base64.
    pub fn public_key(&self) -> String {
        let der: Result<PublicKeyX509Der<'_>, _> = self.key.public_key().as_der();
        der.map(|der| STANDARD.encode(der.as_ref())).unwrap_or_default()
    }

    /// Sets the URL to which webhooks are sent.
    pub fn send_to(&self, url: impl Into<String>) {
        *lock(&self.target) = Some(url.into());
    }

    /// Sends a webhook in the background. After any outcome but a 2xx, sends it again with the same id and timestamp.
    pub(super) fn send(&self, kind: Kind, resource: &Resource, options: &Options, at: Duration) {
        let Some(target) = lock(&self.target).clone() else { return };
        let body = notice(kind, resource, options, at).to_string();
        let signature = STANDARD.encode(self.key.sign(body.as_bytes()));
        let request = self
            .client
            .post(target)
            .timeout(PATIENCE)
            .header("content-type", "application/json")
            .header("x-ghl-signature", signature)
            .body(body);
        let (bus, resource) = (self.bus.clone(), resource.to_string());
        tokio::spawn(async move {
            let mut waits = AGAIN_AFTER.into_iter();
            while let Some(request) = request.try_clone() {
                let status = request.send().await.ok().map(|answer| answer.status().as_u16());
                bus.publish(Event::Webhook { kind: kind.as_str().to_owned(), resource: resource.clone(), status });
                if matches!(status, Some(200..=299)) {
                    return;
                }
                let Some(wait) = waits.next() else { return };
                tokio::time::sleep(wait).await;
            }
        });
    }
}

/// Builds the body, with the members that the platform documents.
fn notice(kind: Kind, resource: &Resource, options: &Options, at: Duration) -> Value {
    let nanos = i128::try_from(at.as_millis()).unwrap_or_default() * 1_000_000;
    let at = OffsetDateTime::from_unix_timestamp_nanos(nanos).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let mut notice = json!({
        "type": kind.as_str(),
        "appId": options.client_id.split('-').next(),
        "timestamp": at.format(&Rfc3339).unwrap_or_default(),
        "webhookId": crate::identity::uuid(),
    });
    match resource {
        Resource::Location(id) => notice["locationId"] = json!(id),
        Resource::Company(id) => notice["companyId"] = json!(id),
    }
    if kind == Kind::Install {
        notice["companyId"] = match resource {
            Resource::Location(id) => json!(options.company_of(id)),
            Resource::Company(id) => json!(id),
        };
        notice["installType"] = json!(match resource {
            Resource::Location(_) => "Location",
            Resource::Company(_) => "Company",
        });
        notice["userId"] = json!("HLuser00000000000001");
    }
    notice
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_uninstall_names_one_resource_and_an_install_its_agency_too() {
        let options = Options::default();
        let at = Duration::from_hours(500_000);
        let location = Resource::Location("L1".into());
        let uninstall = notice(Kind::Uninstall, &location, &options, at);
        assert_eq!((&uninstall["locationId"], uninstall.get("companyId")), (&json!("L1"), None));
        assert_eq!(uninstall["timestamp"], "2027-01-15T08:00:00Z");
        assert_eq!(uninstall["appId"], "6512ab34cd56ef7890ab12cd", "the part of the client id before the dash");
        let install = notice(Kind::Install, &location, &options, at);
        assert_eq!((&install["locationId"], &install["companyId"]), (&json!("L1"), &json!(options.company)));
        let agency = notice(Kind::Install, &Resource::Company("C1".into()), &options, at);
        assert_eq!(agency.get("locationId"), None);
    }
}
