//! From a request to a response: reads the webhook, checks it, and tells the store.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use futures_util::{FutureExt as _, StreamExt as _, stream};
use lambda_http::{Body, Context, Request, RequestExt as _, Response};
use shared::app::App;
use shared::domain::clock::Millis;
use shared::domain::resource::Resource;
use shared::install::Uninstalled;
use shared::install::uninstall::{Reported, UninstallError};
use shared::lambda::gateway;
use shared::lambda::serve::HttpFunction;
use shared::table::StoreError;
use shared::table::webhook::Delivery;

use crate::event::{body, check_route};
use crate::notice::{Notice, Webhook};
use crate::signature;
use crate::verdict::{self, Acknowledgement, Refusal};

/// The platform wants an answer within 10 s. Work that takes longer is answered 429 and so asked for again.
const PATIENCE: Duration = Duration::from_secs(8);
/// The answer leaves so long before the invocation ends.
const MARGIN: Duration = Duration::from_millis(500);
/// Locations of one webhook that are judged at once.
const LOCATIONS_AT_ONCE: usize = 16;

/// Listens to the marketplace for one app.
pub struct Listener {
    app: App,
    public_keys: Vec<[u8; 32]>,
}

impl Listener {
    /// A listener for one app, to webhooks that are signed by one of the platform's Ed25519 keys.
    #[must_use]
    pub fn new(app: App, public_keys: Vec<[u8; 32]>) -> Self {
        Self { app, public_keys }
    }

    /// The response to a verdict, which is logged.
    fn respond(&self, verdict: Result<Acknowledgement, Refusal>, began: Millis, request_id: &str) -> Response<Body> {
        let response = verdict::response(verdict, request_id);
        tracing::info!(
            outcome = verdict::name(verdict),
            status = response.status().as_u16(),
            total_ms = u64::try_from(self.app.clock.now().since(began).as_millis()).unwrap_or(u64::MAX),
            Webhooks = 1,
            WebhookFailures = u8::from(verdict == Err(Refusal::TryAgain)),
            "webhook"
        );
        response
    }

    /// The signature comes first: before it is known to be good, nothing is read, parsed or fetched.
    async fn judge(&self, request: &Request) -> Result<Acknowledgement, Refusal> {
        check_route(request)?;
        let body = body(request)?;
        signature::verify(&self.public_keys, body, gateway::header(request, signature::HEADER))
            .map_err(|_| Refusal::NotSigned)?;
        let credentials = self.app.app_secret.get().await.map_err(|error| {
            tracing::error!(%error, "the app's id is not known");
            Refusal::TryAgain
        })?;
        let webhook = Webhook::read(body, credentials.app_id())?;
        if webhook.notice == Notice::Other {
            return Ok(Acknowledgement::Ignored);
        }
        let now = self.app.clock.now();
        let table = &self.app.table;
        let delivery = webhook.id.map_or_else(|| Delivery::Bytes(hex::encode(digest(&SHA256, body))), Delivery::Id);
        // Marked after its effect: a crash between them repeats the effect, which is then judged again.
        if table.is_webhook_done(&delivery, now).await.map_err(|error| not_stored(&error))? {
            return Ok(Acknowledgement::Repeated);
        }
        let done = self.carry_out(webhook.notice).await?;
        // A webhook without effect is not marked: the same bytes may report a later uninstall.
        if done == Acknowledgement::Stored
            && let Err(error) = table.set_webhook_done(&delivery, now).await
        {
            tracing::warn!(%error, "a webhook is not marked as done: sent again, it is judged once more");
        }
        Ok(done)
    }

    /// Each resource is judged by itself. One that fails keeps none of the others from being stored, and has the whole
    /// webhook sent again.
    async fn carry_out(&self, notice: Notice) -> Result<Acknowledgement, Refusal> {
        let resources = match &notice {
            Notice::Install { resources, .. } | Notice::Uninstall { resources, .. } => resources.clone(),
            Notice::Other => Vec::new(),
        };
        let judged = stream::iter(resources).map(|resource| self.carry_out_for(resource, &notice));
        let judged: Vec<_> = judged.buffer_unordered(LOCATIONS_AT_ONCE).collect().await;
        judged.into_iter().try_fold(Acknowledgement::Ignored, |most, one| Ok(most.max(one?)))
    }

    async fn carry_out_for(&self, resource: Resource, notice: &Notice) -> Result<Acknowledgement, Refusal> {
        match notice {
            Notice::Install { company, at, .. } => self.install(&resource, company.as_deref(), *at).await,
            Notice::Uninstall { at, .. } => self.uninstall(&resource, *at).await,
            Notice::Other => Ok(Acknowledgement::Ignored),
        }
    }

    async fn install(
        &self,
        resource: &Resource,
        company: Option<&str>,
        at: Option<Reported>,
    ) -> Result<Acknowledgement, Refusal> {
        let now = self.app.clock.now();
        // The platform's clock may be ahead of ours; nothing is stored that is still to come.
        let at = at.map_or(now, |reported| reported.at.min(now));
        let news = self
            .app
            .installations
            .on_install_notice(resource, company, at)
            .await
            .map_err(|error| not_stored(&error))?;
        Ok(if news { Acknowledgement::Stored } else { Acknowledgement::Ignored })
    }

    async fn uninstall(&self, resource: &Resource, at: Option<Reported>) -> Result<Acknowledgement, Refusal> {
        match self.app.installations.uninstall_as_reported(resource, at, &self.app.tokens).await {
            Ok(Uninstalled::Done) => Ok(Acknowledgement::Stored),
            Ok(Uninstalled::Older) => Ok(Acknowledgement::Superseded),
            Ok(Uninstalled::Unknown) => Ok(Acknowledgement::Unknown),
            Err(UninstallError::Store(error)) => Err(not_stored(&error)),
            Err(error) => {
                tracing::warn!(%resource, %error, "it is not known whether an uninstall still holds");
                Err(Refusal::TryAgain)
            }
        }
    }
}

impl HttpFunction for Listener {
    async fn answer(&self, request: Request) -> Response<Body> {
        let began = self.app.clock.now();
        let invocation = request.lambda_context();
        let deadline = Millis(i64::try_from(invocation.deadline).unwrap_or(i64::MAX));
        // The deadline of a local emulator may be nonsense: one that has passed is not believed.
        let left = deadline.since(began);
        let patience = if left.is_zero() { PATIENCE } else { left.saturating_sub(MARGIN).min(PATIENCE) };
        let verdict = in_time(patience, self.judge(&request)).await;
        self.respond(verdict, began, &invocation.request_id)
    }

    fn answer_malformed(&self, invocation: &Context) -> Response<Body> {
        tracing::warn!("an event is not an HTTP request");
        self.respond(Err(Refusal::Malformed), self.app.clock.now(), &invocation.request_id)
    }
}

/// The verdict, or [`Refusal::TryAgain`] where there is none in time or the code panics: every other answer to a fault
/// of ours would lose the webhook.
async fn in_time(
    patience: Duration,
    judging: impl Future<Output = Result<Acknowledgement, Refusal>>,
) -> Result<Acknowledgement, Refusal> {
    match tokio::time::timeout(patience, AssertUnwindSafe(judging).catch_unwind()).await {
        Ok(Ok(verdict)) => verdict,
        Ok(Err(_panic)) => {
            tracing::error!("the code panicked over a webhook");
            Err(Refusal::TryAgain)
        }
        Err(_) => {
            tracing::error!("a webhook was not dealt with in time");
            Err(Refusal::TryAgain)
        }
    }
}

/// Nothing is acknowledged that is not stored.
fn not_stored(error: &StoreError) -> Refusal {
    tracing::error!(%error, "a webhook could not be stored");
    Refusal::TryAgain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_and_a_delay_are_asked_for_again() {
        let panics = async { panic!("on purpose") };
        assert_eq!(in_time(PATIENCE, panics).await, Err(Refusal::TryAgain));
        assert_eq!(in_time(Duration::from_millis(1), std::future::pending()).await, Err(Refusal::TryAgain));
        let stored = async {
            tokio::task::yield_now().await;
            Ok(Acknowledgement::Stored)
        };
        assert_eq!(in_time(PATIENCE, stored).await, Ok(Acknowledgement::Stored));
    }
}
