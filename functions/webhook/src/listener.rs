//! From an event to an answer: reads the webhook, checks it, and tells the store.

use serde_json::Value;
use shared::app::App;
use shared::clock::Millis;
use shared::installation::Uninstalled;
use shared::resource::Resource;

use crate::event::Request;
use crate::notice::Notice;
use crate::signature;
use crate::verdict::{self, Acknowledgement, Answer, Refusal};

/// Listens to the marketplace for one app.
pub struct Listener {
    app: App,
}

impl Listener {
    /// A listener for one app.
    #[must_use]
    pub fn new(app: App) -> Self {
        Self { app }
    }

    /// Answers an event, whatever comes.
    pub async fn answer(&self, event: Value, request_id: &str) -> Answer {
        let verdict = match Request::read(event) {
            Ok(request) => self.judge(&request).await,
            Err(error) => {
                tracing::warn!(%error, "an event that is no request");
                Err(Refusal::Malformed)
            }
        };
        tracing::info!(?verdict, "webhook");
        verdict::answer(verdict, request_id)
    }

    /// The signature comes first: before it is known to be good, nothing is read, parsed or fetched.
    async fn judge(&self, request: &Request) -> Result<Acknowledgement, Refusal> {
        request.check_route()?;
        let body = request.bytes()?;
        signature::verify(&self.app.config.webhook_public_keys, &body, request.header(signature::HEADER))
            .map_err(|_| Refusal::NotSigned)?;
        let credentials = self.app.app_secret.get().await.map_err(|error| {
            tracing::error!(%error, "the app's id is not known");
            Refusal::TryAgain
        })?;
        match Notice::read(&body, credentials.app_id())? {
            Notice::Install | Notice::Other => Ok(Acknowledgement::Ignored),
            Notice::Uninstall { resource, at } => self.uninstall(&resource, at).await,
        }
    }

    async fn uninstall(&self, resource: &Resource, at: Option<Millis>) -> Result<Acknowledgement, Refusal> {
        let now = self.app.clock.now();
        // The platform's clock may be ahead of ours; nothing is stored that is still to come.
        let at = at.map_or(now, |at| at.min(now));
        match self.app.installations.uninstall(resource, at).await {
            Ok(Uninstalled::Done) => Ok(Acknowledgement::Stored),
            Ok(Uninstalled::Older) => Ok(Acknowledgement::Superseded),
            Ok(Uninstalled::Unknown) => Ok(Acknowledgement::Unknown),
            Err(error) => {
                tracing::error!(%error, %resource, "an uninstall could not be stored");
                Err(Refusal::TryAgain)
            }
        }
    }
}
