//! From an event to an answer: reads the webhook, checks it, and tells the store.

use shared::app::App;
use shared::clock::Millis;
use shared::installation::Uninstalled;
use shared::resource::Resource;
use shared::table::StoreError;

use crate::event::{Request, check_route, take_body};
use crate::notice::{Notice, Webhook};
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
    pub async fn answer(&self, event: &str, request_id: &str) -> Answer {
        let began = self.app.clock.now();
        let verdict = match Request::read(event) {
            Ok(mut request) => self.judge(&mut request).await,
            Err(error) => {
                tracing::warn!(%error, "an event that is no request");
                Err(Refusal::Malformed)
            }
        };
        let answer = verdict::answer(verdict, request_id);
        tracing::info!(
            outcome = verdict::name(verdict),
            status = answer.status_code,
            total_ms = u64::try_from(self.app.clock.now().since(began).as_millis()).unwrap_or(u64::MAX),
            Webhooks = 1,
            WebhookFailures = u8::from(verdict == Err(Refusal::TryAgain)),
            "webhook"
        );
        answer
    }

    /// The signature comes first: before it is known to be good, nothing is read, parsed or fetched.
    async fn judge(&self, request: &mut Request) -> Result<Acknowledgement, Refusal> {
        check_route(request)?;
        let body = take_body(request)?;
        signature::verify(&self.app.config.webhook_public_keys, &body, request.header(signature::HEADER))
            .map_err(|_| Refusal::NotSigned)?;
        let credentials = self.app.app_secret.get().await.map_err(|error| {
            tracing::error!(%error, "the app's id is not known");
            Refusal::TryAgain
        })?;
        let webhook = Webhook::read(&body, credentials.app_id())?;
        let now = self.app.clock.now();
        let table = &self.app.table;
        // Marked after its effect: a crash between them repeats the effect, which the installation's own times judge.
        if let Some(id) = &webhook.id
            && webhook.notice != Notice::Other
            && table.is_webhook_done(id, now).await.map_err(|error| not_stored(&error))?
        {
            return Ok(Acknowledgement::Repeated);
        }
        // The platform's clock may be ahead of ours; nothing is stored that is still to come.
        let past = |at: Option<Millis>| at.map_or(now, |at| at.min(now));
        let done = match webhook.notice {
            Notice::Other => return Ok(Acknowledgement::Ignored),
            Notice::Install { resource, company, at } => self.install(&resource, company.as_deref(), past(at)).await?,
            Notice::Uninstall { resource, at } => self.uninstall(&resource, past(at)).await?,
        };
        if let Some(id) = &webhook.id
            && let Err(error) = table.set_webhook_done(id, now).await
        {
            tracing::warn!(%error, "a webhook is not marked as done: sent again, it is judged once more");
        }
        Ok(done)
    }

    async fn install(
        &self,
        resource: &Resource,
        company: Option<&str>,
        at: Millis,
    ) -> Result<Acknowledgement, Refusal> {
        let news = self.app.installations.hear_of(resource, company, at).await.map_err(|error| not_stored(&error))?;
        Ok(if news { Acknowledgement::Stored } else { Acknowledgement::Ignored })
    }

    async fn uninstall(&self, resource: &Resource, at: Millis) -> Result<Acknowledgement, Refusal> {
        match self.app.installations.uninstall(resource, at).await.map_err(|error| not_stored(&error))? {
            Uninstalled::Done => Ok(Acknowledgement::Stored),
            Uninstalled::Older => Ok(Acknowledgement::Superseded),
            Uninstalled::Unknown => Ok(Acknowledgement::Unknown),
        }
    }
}

/// Nothing is acknowledged that is not stored.
fn not_stored(error: &StoreError) -> Refusal {
    tracing::error!(%error, "a webhook could not be stored");
    Refusal::TryAgain
}
