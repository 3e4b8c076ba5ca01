//! The handler of webhook requests: verifies and reads the webhook, applies its event, and makes the response.
//!
//! Processing is idempotent: a mark under the webhook's id, the idempotency key, ends repeated deliveries early, and an
//! event that is applied twice has the effect of one.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _, stream};
use lambda_http::{Body, Context, Request, RequestExt as _, Response};
use shared::app::App;
use shared::domain::clock::Millis;
use shared::domain::digest::sha256;
use shared::domain::resource::Resource;
use shared::install::Uninstalled;
use shared::install::uninstall::{Reported, UninstallError};
use shared::lambda::gateway;
use shared::lambda::serve::HttpFunction;
use shared::table::StoreError;
use shared::table::webhook::IdempotencyKey;

use crate::request::{body, check_route};
use crate::response::{self, Acknowledgement, Refusal};
use crate::signature;
use crate::webhook::{MarketplaceEvent, Webhook};

/// Time limit of the processing. The platform waits 10 s for a response. After the limit the response is 429, so the
/// platform sends the webhook again.
const TIME_LIMIT: Duration = Duration::from_secs(8);
/// Time between the response and the end of the invocation.
const MARGIN: Duration = Duration::from_millis(500);
/// The number of locations of one webhook that are processed at once.
const LOCATIONS_AT_ONCE: usize = 16;

/// The HTTP handler of one app's webhooks.
pub struct Listener {
    app: App,
    public_keys: Vec<[u8; 32]>,
}

impl Listener {
    /// A handler for one app. Accepts webhooks that one of the platform's Ed25519 keys has signed.
    pub fn new(app: App, public_keys: Vec<[u8; 32]>) -> Self {
        Self { app, public_keys }
    }

    /// Logs a result, and makes the response.
    fn respond(&self, result: Result<Acknowledgement, Refusal>, began: Millis, request_id: &str) -> Response<Body> {
        let response = response::response(result, request_id);
        tracing::info!(
            outcome = response::outcome_name(result),
            status = response.status().as_u16(),
            total_ms = u64::try_from(self.app.clock.now().since(began).as_millis()).unwrap_or(u64::MAX),
            Webhooks = 1,
            WebhookFailures = u8::from(result == Err(Refusal::TryAgain)),
            "webhook"
        );
        response
    }

    /// Processes a request. Verifies the signature first: an unsigned body causes no parsing and no I/O.
    async fn process(&self, request: &Request) -> Result<Acknowledgement, Refusal> {
        check_route(request)?;
        let body = body(request)?;
        signature::verify(&self.public_keys, body, gateway::header(request, signature::HEADER))
            .map_err(|_| Refusal::NotSigned)?;
        let credentials = self.app.app_secret.get().await.map_err(|error| {
            tracing::error!(%error, "the app's secret cannot be read; the platform must send the webhook again");
            Refusal::TryAgain
        })?;
        let webhook = Webhook::read(body, credentials.app_id())?;
        if webhook.event == MarketplaceEvent::Other {
            return Ok(Acknowledgement::Ignored);
        }
        let now = self.app.clock.now();
        let table = &self.app.table;
        let key = webhook.id.map_or_else(|| IdempotencyKey::Bytes(sha256(body)), IdempotencyKey::Id);
        // The mark is written after the effect. A crash in between leads to a repeated delivery, which is processed again.
        if table.is_webhook_done(&key, now).await.map_err(|error| not_stored(&error))? {
            return Ok(Acknowledgement::Repeated);
        }
        let done = self.apply(webhook.event).await?;
        // A webhook without effect is not marked: the same bytes may report a later uninstall.
        if done == Acknowledgement::Stored
            && let Err(error) = table.set_webhook_done(&key, now).await
        {
            tracing::warn!(%error, "a webhook could not be marked as done: a repeated delivery will be processed again");
        }
        Ok(done)
    }

    /// Applies an event to each of its resources independently. If one resource fails, the others are still stored, and
    /// the platform sends the whole webhook again.
    async fn apply(&self, event: MarketplaceEvent) -> Result<Acknowledgement, Refusal> {
        let resources = match &event {
            MarketplaceEvent::Install { resources, .. } | MarketplaceEvent::Uninstall { resources, .. } => {
                resources.clone()
            }
            MarketplaceEvent::Other => Vec::new(),
        };
        let results = stream::iter(resources).map(|resource| self.apply_to(resource, &event));
        let results: Vec<_> = results.buffer_unordered(LOCATIONS_AT_ONCE).collect().await;
        results.into_iter().try_fold(Acknowledgement::Ignored, |greatest, one| Ok(greatest.max(one?)))
    }

    async fn apply_to(&self, resource: Resource, event: &MarketplaceEvent) -> Result<Acknowledgement, Refusal> {
        match event {
            MarketplaceEvent::Install { company, at, .. } => self.install(&resource, company.as_deref(), *at).await,
            MarketplaceEvent::Uninstall { at, .. } => self.uninstall(&resource, *at).await,
            MarketplaceEvent::Other => Ok(Acknowledgement::Ignored),
        }
    }

    async fn install(
        &self,
        resource: &Resource,
        company: Option<&str>,
        at: Option<Reported>,
    ) -> Result<Acknowledgement, Refusal> {
        let now = self.app.clock.now();
        // The platform's clock may be ahead of ours. No time in the future is stored.
        let at = at.map_or(now, |reported| reported.at.min(now));
        let changed = self
            .app
            .installations
            .on_install_notice(resource, company, at)
            .await
            .map_err(|error| not_stored(&error))?;
        Ok(if changed { Acknowledgement::Stored } else { Acknowledgement::Ignored })
    }

    async fn uninstall(&self, resource: &Resource, at: Option<Reported>) -> Result<Acknowledgement, Refusal> {
        match self.app.installations.uninstall_as_reported(resource, at, &self.app.tokens).await {
            Ok(Uninstalled::Done) => Ok(Acknowledgement::Stored),
            Ok(Uninstalled::Older) => Ok(Acknowledgement::Superseded),
            Ok(Uninstalled::Unknown) => Ok(Acknowledgement::Unknown),
            Err(UninstallError::Store(error)) => Err(not_stored(&error)),
            Err(error) => {
                tracing::warn!(%resource, %error, "an uninstall could not be checked; the platform must send the webhook again");
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
        // A local emulator may send a wrong deadline. A deadline in the past is ignored.
        let left = deadline.since(began);
        let limit = if left.is_zero() { TIME_LIMIT } else { left.saturating_sub(MARGIN).min(TIME_LIMIT) };
        let result = in_time(limit, self.process(&request)).await;
        self.respond(result, began, &invocation.request_id)
    }

    fn answer_malformed(&self, invocation: &Context) -> Response<Body> {
        tracing::warn!("the event is not an HTTP request");
        self.respond(Err(Refusal::Malformed), self.app.clock.now(), &invocation.request_id)
    }
}

/// Runs `processing`. Returns [`Refusal::TryAgain`] after a time-out or a panic, because every other status would lose
/// the webhook.
async fn in_time(
    limit: Duration,
    processing: impl Future<Output = Result<Acknowledgement, Refusal>>,
) -> Result<Acknowledgement, Refusal> {
    match tokio::time::timeout(limit, AssertUnwindSafe(processing).catch_unwind()).await {
        Ok(Ok(result)) => result,
        Ok(Err(_panic)) => {
            tracing::error!("the processing of a webhook panicked");
            Err(Refusal::TryAgain)
        }
        Err(_) => {
            tracing::error!("the processing of a webhook exceeded its time limit");
            Err(Refusal::TryAgain)
        }
    }
}

/// Logs a failed read or write. A webhook that is not stored must not be acknowledged.
fn not_stored(error: &StoreError) -> Refusal {
    tracing::error!(%error, "the table failed while a webhook was processed; the platform must send the webhook again");
    Refusal::TryAgain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_and_a_time_out_ask_for_a_repeated_delivery() {
        let panics = async { panic!("on purpose") };
        assert_eq!(in_time(TIME_LIMIT, panics).await, Err(Refusal::TryAgain));
        assert_eq!(in_time(Duration::from_millis(1), std::future::pending()).await, Err(Refusal::TryAgain));
        let stored = async {
            tokio::task::yield_now().await;
            Ok(Acknowledgement::Stored)
        };
        assert_eq!(in_time(TIME_LIMIT, stored).await, Ok(Acknowledgement::Stored));
    }
}
