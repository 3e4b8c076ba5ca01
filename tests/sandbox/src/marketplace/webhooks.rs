//! Webhooks of the fake platform: signed notices of installs and uninstalls, and events of locations. A webhook is sent
//! again if the receiver does not accept it.
//!
//! No webhook is sent until [`Webhooks::send_to`] has set the URL. A test that wants no webhooks does not set the URL.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use aws_lc_rs::{
    encoding::{AsDer as _, PublicKeyX509Der},
    hmac,
    signature::{Ed25519KeyPair, KeyPair as _},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};
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
    /// The secret of HMAC signatures, which replace the Ed25519 signatures.
    secret: Option<String>,
    client: reqwest::Client,
    target: Mutex<Option<String>>,
    bus: EventBus,
}

impl Webhooks {
    pub(super) fn new(secret: Option<String>, bus: EventBus) -> Result<Self, StartError> {
        let key = Ed25519KeyPair::generate().map_err(|_| StartError::System("no key can be made".to_owned()))?;
        Ok(Self { key: Arc::new(key), secret, client: reqwest::Client::new(), target: Mutex::default(), bus })
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

    /// Sends the notice of an install or uninstall.
    pub(super) fn send(&self, kind: Kind, resource: &Resource, options: &Options, at: Duration) {
        self.post(kind.as_str(), resource, notice(kind, resource, options, at).to_string());
    }

    /// Sends an event with these members. A `type` among them is replaced by the type of the event.
    pub(super) fn send_event(&self, kind: &str, resource: &Resource, members: Map<String, Value>, at: Duration) {
        let mut event = members;
        event.insert("type".to_owned(), json!(kind));
        event.insert("timestamp".to_owned(), json!(rfc3339(at)));
        event.insert("webhookId".to_owned(), json!(crate::identity::uuid()));
        self.post(kind, resource, Value::Object(event).to_string());
    }

    /// Returns the header with the signature of a body.
    fn signature(&self, body: &str) -> (&'static str, String) {
        match &self.secret {
            Some(secret) => {
                let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
                ("x-wl-signature", hex::encode(hmac::sign(&key, body.as_bytes())))
            }
            None => ("x-ghl-signature", STANDARD.encode(self.key.sign(body.as_bytes()))),
        }
    }

    /// Sends a body in the background. After any outcome but a 2xx, sends it again with the same id and timestamp.
    fn post(&self, kind: &str, resource: &Resource, body: String) {
        let Some(target) = lock(&self.target).clone() else { return };
        let (name, signature) = self.signature(&body);
        let request = self
            .client
            .post(target)
            .timeout(PATIENCE)
            .header("content-type", "application/json")
            .header(name, signature)
            .body(body);
        let (bus, kind, resource) = (self.bus.clone(), kind.to_owned(), resource.to_string());
        tokio::spawn(async move {
            let mut waits = AGAIN_AFTER.into_iter();
            while let Some(request) = request.try_clone() {
                let status = request.send().await.ok().map(|answer| answer.status().as_u16());
                bus.publish(Event::Webhook { kind: kind.clone(), resource: resource.clone(), status });
                if matches!(status, Some(200..=299)) {
                    return;
                }
                let Some(wait) = waits.next() else { return };
                tokio::time::sleep(wait).await;
            }
        });
    }
}

fn rfc3339(at: Duration) -> String {
    let nanos = i128::try_from(at.as_millis()).unwrap_or_default() * 1_000_000;
    let at = OffsetDateTime::from_unix_timestamp_nanos(nanos).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    at.format(&Rfc3339).unwrap_or_default()
}

/// Builds the body, with the members that the platform documents.
fn notice(kind: Kind, resource: &Resource, options: &Options, at: Duration) -> Value {
    let mut notice = json!({
        "type": kind.as_str(),
        "appId": options.client_id.split('-').next(),
        "timestamp": rfc3339(at),
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
        notice["versionId"] = json!(options.client_id.split('-').next());
        notice["planId"] = json!("HLplan00000000000001");
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
