//! The handler of webhook requests: verifies and reads the webhook, applies its change, publishes it, and makes the
//! response.
//!
//! A webhook is claimed before it is processed (lease) and marked afterwards, under its id (idempotency key). A crash in
//! between leads to a repeated delivery, which is processed after the claim has lapsed. So processing is idempotent: a
//! change that is applied twice has the effect of one.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use aws_lambda_events::sqs::{SqsBatchResponse, SqsMessage};
use futures_util::{FutureExt as _, StreamExt as _, stream};
use lambda_http::{Body, Context, Request, RequestExt as _, Response};
use shared::app::App;
use shared::config::{Dedupe, WebhookSettings};
use shared::domain::clock::Millis;
use shared::domain::digest::sha256;
use shared::domain::event::Name;
use shared::domain::installation::AppDetails;
use shared::domain::resource::Resource;
use shared::domain::status::LeaseOwner;
use shared::events::platform::{PlatformEvents, Taken};
use shared::http_client::within;
use shared::install::Uninstalled;
use shared::install::uninstall::{Reported, UninstallError};
use shared::lambda::serve::HttpFunction;
use shared::secrets::Secret;
use shared::secrets::webhook::WebhookSecrets;
use shared::table::webhook::{IdempotencyKey, LEASE, Progress};
use shared::table::{StoreError, Write};
use tokio::time::Instant;

use crate::family::family;
use crate::overflow;
use crate::response::{self, Acknowledgement, Refusal};
use crate::route::check_route;
use crate::signature::{SignatureError, Verifier};
use crate::webhook::{Change, Webhook};

/// Time limit of the processing. The platform waits 10 s for a response, and its white label 5 s. After the limit the
/// response is 429, so the platform sends the webhook again.
const TIME_LIMIT: Duration = Duration::from_millis(4_500);
/// Time limit of the claim. If the table takes longer, an event that changes nothing is published without a claim.
const CLAIM_TIME: Duration = Duration::from_millis(1_500);
/// The least time that is kept for the mark of a webhook, or for the release of its claim.
const END_TIME: Duration = Duration::from_millis(500);
/// The time that is kept for the response, so that a late mark does not delay it beyond the time limit.
const ANSWER_TIME: Duration = Duration::from_millis(100);
/// Time between the response and the end of the invocation.
const MARGIN: Duration = Duration::from_millis(500);
/// The number of locations of one webhook that are processed at once.
const LOCATIONS_AT_ONCE: usize = 16;

const _: () = assert!(TIME_LIMIT.as_millis() < LEASE.as_millis(), "a claim lapses after its holder has given up");

/// The HTTP handler of one app's webhooks.
pub struct Listener {
    app: App,
    verifier: Verifier,
    /// The bus and the overflow queue. `None` if no bus is configured.
    events: Option<PlatformEvents>,
    dedupe: Dedupe,
}

/// The claim of a webhook by one invocation.
struct Claim {
    key: IdempotencyKey,
    owner: LeaseOwner,
}

impl Listener {
    /// A handler for one app.
    pub fn new(app: App, settings: WebhookSettings) -> Self {
        let secrets = settings.secret_id.map(|id| {
            let client = aws_sdk_secretsmanager::Client::new(&app.aws);
            Secret::new(client, id, app.clock.clone(), WebhookSecrets::parse)
        });
        let overflow = settings.overflow_queue_url.map(|url| (aws_sdk_sqs::Client::new(&app.aws), url));
        let bus = app.config.event_bus_name.clone().map(|name| (aws_sdk_eventbridge::Client::new(&app.aws), name));
        Self {
            verifier: Verifier::new(settings.public_keys, secrets),
            events: bus.map(|bus| PlatformEvents::new(bus, overflow)),
            dedupe: settings.dedupe,
            app,
        }
    }

    /// Publishes messages of the overflow queue in an invocation that ends at `invocation_ends` (milliseconds since the
    /// Unix epoch). Returns the messages that SQS must deliver again.
    pub async fn drain(&self, messages: &[SqsMessage], invocation_ends: u64) -> SqsBatchResponse {
        let now = self.app.clock.now();
        let deadline = Instant::now() + time_limit(invocation_ends, now);
        overflow::drain(self.events.as_ref(), messages, now, deadline).await
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

    /// Processes a request until `deadline`. Verifies the signature first: an unsigned body causes no parsing and no
    /// write.
    async fn process(&self, request: &Request, deadline: Instant) -> Result<Acknowledgement, Refusal> {
        check_route(request)?;
        let body: &[u8] = request.body();
        self.verifier.verify(request, body).await.map_err(|error| match error {
            SignatureError::NotSigned => Refusal::NotSigned,
            SignatureError::Secret(error) => {
                tracing::error!(%error, "the secrets of webhook signatures cannot be read");
                Refusal::TryAgain
            }
        })?;
        let credentials = self.app.app_secret.get().await.map_err(|error| {
            tracing::error!(%error, "the app's secret cannot be read; the platform must send the webhook again");
            Refusal::TryAgain
        })?;
        let webhook = Webhook::of_app(body, credentials.app_id())?;
        tracing::info!(family = family(&webhook.kind), WebhookEvents = 1, "a verified webhook");
        match (&webhook.change, &self.events) {
            (Change::None, None) => return Ok(Acknowledgement::Ignored),
            (Change::Unreadable, None) => return Err(Refusal::Malformed),
            _ => {}
        }
        let claim = match self.idempotency_key(&webhook, body) {
            None => None,
            Some(key) => {
                let claim = Claim { key, owner: LeaseOwner::new() };
                match self.claim(&claim).await {
                    Ok(Write::Applied(_)) => Some(claim),
                    Ok(Write::Conflict(Progress::Done)) => return Ok(Acknowledgement::Repeated),
                    Ok(Write::Conflict(Progress::Claimed) | Write::NotFound) => return Err(Refusal::InProgress),
                    Err(error) if webhook.changes_installations() => return Err(not_stored(&error)),
                    Err(error) => {
                        tracing::warn!(%error, "an event is published without a claim, so perhaps more than once");
                        None
                    }
                }
            }
        };
        let result = self.apply_and_publish(&webhook, body, deadline - END_TIME).await;
        if let Some(claim) = claim {
            self.end(&claim, result, deadline).await;
        }
        result
    }

    async fn claim(&self, claim: &Claim) -> Result<Write<Progress>, StoreError> {
        let claiming = self.app.table.claim_webhook(&claim.key, &claim.owner, self.app.clock.now());
        let claimed = within(CLAIM_TIME, Box::pin(claiming)).await;
        claimed.unwrap_or_else(|_| Err(StoreError::Unavailable("no answer in time".into())))
    }

    /// Ends the claim of a webhook: marks the webhook as done, or makes it free for the next delivery.
    async fn end(&self, claim: &Claim, result: Result<Acknowledgement, Refusal>, deadline: Instant) {
        let Claim { key, owner } = claim;
        let is_published = result.is_ok() && self.events.is_some();
        // The same bytes without an id may report a later event. So they are marked only if they had an effect.
        let is_done = result == Ok(Acknowledgement::Stored) || (is_published && matches!(key, IdempotencyKey::Id(_)));
        let ending = async {
            if is_done {
                self.app.table.set_webhook_done(key, self.app.clock.now()).await
            } else {
                self.app.table.release_webhook(key, owner).await
            }
        };
        let left = deadline.saturating_duration_since(Instant::now()).saturating_sub(ANSWER_TIME);
        let error = match within(left, Box::pin(ending)).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer in time".to_owned(),
        };
        tracing::warn!(error, is_done, "the claim of a webhook lapses: a repeated delivery will be processed again");
    }

    /// The identity under which a webhook is claimed. `None` if each delivery is processed.
    fn idempotency_key(&self, webhook: &Webhook, body: &[u8]) -> Option<IdempotencyKey> {
        match &webhook.id {
            // A change needs the claim: a late repetition must not change anything.
            Some(id) if webhook.changes_installations() || self.dedupe == Dedupe::On => {
                Some(IdempotencyKey::Id(id.clone()))
            }
            None if webhook.changes_installations() => Some(IdempotencyKey::Bytes(sha256(body))),
            // Without an id, the same bytes may report another event.
            _ => None,
        }
    }

    /// Applies the change that a webhook reports, and then publishes the webhook. If the change fails, the webhook is not
    /// published, because the platform sends it again.
    async fn apply_and_publish(
        &self,
        webhook: &Webhook,
        body: &[u8],
        deadline: Instant,
    ) -> Result<Acknowledgement, Refusal> {
        if webhook.change == Change::Unreadable {
            tracing::warn!(kind = webhook.kind, "a webhook about an installation names no app or no valid resource");
        }
        let applied = self.apply(&webhook.change).await?;
        let Some(events) = &self.events else { return Ok(applied) };
        let body = std::str::from_utf8(body).map_err(|_| Refusal::Malformed)?;
        let taken = events.pass_on(&webhook.platform_event(body, self.app.clock.now()), deadline).await;
        match (applied, taken) {
            (_, Err(_)) => Err(Refusal::TryAgain),
            (Acknowledgement::Ignored, Ok(Taken::ByBus)) => Ok(Acknowledgement::Published),
            (Acknowledgement::Ignored, Ok(Taken::ByOverflowQueue)) => Ok(Acknowledgement::Queued),
            (applied, Ok(_)) => Ok(applied),
        }
    }

    /// Applies a change to each of its resources independently. If one resource fails, the others are still stored, and
    /// the platform sends the whole webhook again.
    async fn apply(&self, change: &Change) -> Result<Acknowledgement, Refusal> {
        let resources = match change {
            Change::Install { resources, .. }
            | Change::Details { resources, .. }
            | Change::Uninstall { resources, .. } => resources.clone(),
            Change::Unreadable | Change::None => Vec::new(),
        };
        let results = stream::iter(resources).map(|resource| self.apply_to(resource, change));
        let results: Vec<_> = results.buffer_unordered(LOCATIONS_AT_ONCE).collect().await;
        results.into_iter().try_fold(Acknowledgement::Ignored, |greatest, one| Ok(greatest.max(one?)))
    }

    async fn apply_to(&self, resource: Resource, change: &Change) -> Result<Acknowledgement, Refusal> {
        match change {
            Change::Install { company, at, details, .. } => {
                let installed = self.install(&resource, company.as_deref(), *at).await?;
                Ok(installed.max(self.record(&resource, details, *at, None).await?))
            }
            Change::Details { name, at, details, .. } => self.record(&resource, details, *at, Some(*name)).await,
            Change::Uninstall { at, .. } => self.uninstall(&resource, *at).await,
            Change::Unreadable | Change::None => Ok(Acknowledgement::Ignored),
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

    /// Stores the app's version, plan and installer, and publishes the lifecycle event `news` if they are new.
    async fn record(
        &self,
        resource: &Resource,
        details: &AppDetails,
        at: Option<Reported>,
        news: Option<Name>,
    ) -> Result<Acknowledgement, Refusal> {
        if *details == AppDetails::default() {
            return Ok(Acknowledgement::Ignored);
        }
        let now = self.app.clock.now();
        let at = at.map_or(now, |reported| reported.at.min(now));
        let mut details = details.clone();
        details.version_at = details.version_id.is_some().then_some(at);
        details.plan_at = (details.plan_id.is_some() || details.trial_ends_at.is_some()).then_some(at);
        let recorded = self.app.installations.record_details(resource, &details, news.map(|name| (name, at))).await;
        Ok(match recorded.map_err(|error| not_stored(&error))? {
            Write::Applied(()) => Acknowledgement::Stored,
            // The notice of an install decides its outcome.
            _ if news.is_none() => Acknowledgement::Ignored,
            Write::Conflict(()) => Acknowledgement::Superseded,
            Write::NotFound => Acknowledgement::Unknown,
        })
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
        let limit = time_limit(invocation.deadline, began);
        let result = in_time(limit, self.process(&request, Instant::now() + limit)).await;
        self.respond(result, began, &invocation.request_id)
    }

    fn answer_malformed(&self, invocation: &Context) -> Response<Body> {
        tracing::warn!("the event is not an HTTP request");
        self.respond(Err(Refusal::Malformed), self.app.clock.now(), &invocation.request_id)
    }
}

/// The time limit of an invocation that ends at `ends`, in milliseconds since the Unix epoch. A local emulator may send a
/// wrong end. An end in the past is ignored.
fn time_limit(ends: u64, now: Millis) -> Duration {
    let left = Millis(i64::try_from(ends).unwrap_or(i64::MAX)).since(now);
    if left.is_zero() { TIME_LIMIT } else { left.saturating_sub(MARGIN).min(TIME_LIMIT) }
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
