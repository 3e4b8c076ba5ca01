//! The relay: it sends an authorized request to the platform, with a token and a permit.
//!
//! [`Relay::resource_of`] finds the target of a request that names it only in its ids ([`inference`]). [`Relay::call`] sends
//! the request: [`token_class`] refuses a wrong class of token, [`headers`] has the allow-lists, [`upstream`] makes the HTTP
//! request, [`retry`] decides what follows an attempt. [`idempotent`] sends a request with an idempotency key once, and
//! [`charges`] looks up unknown charges. [`queued`] sends calls of the queue. [`answer`] and [`refused`] make the answer to
//! the caller. Pure are [`charges`], [`headers`], [`inference`], [`retry`] and [`token_class`].

pub mod answer;
mod call;
pub mod charges;
pub mod headers;
pub mod idempotent;
pub mod inference;
pub mod queued;
pub mod refused;
pub mod retry;
pub mod token_class;
pub mod upstream;

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};

use crate::app::App;
use crate::caller::{Authorized, Caller, Callers, StatusAccess};
use crate::domain::clock::Millis;
use crate::domain::problem::{Code, Problem};
use crate::domain::qualifier::InvocationKind;
use crate::domain::resource::Resource;
use crate::idempotency::{Claim, Found, Recordable, Recorder};
use crate::limiter::{LimitKind, Limiter, Meter, Usage};
use crate::request::target_ids::RequestParts;
use crate::request::{UntargetedRequest, mcp};
use crate::secrets::Secret;
use answer::{Answer, AnswerSource};
use call::{Call, Pacing, Stop, Timings};
use inference::Target;
use refused::Refused;
use retry::Execution;

/// The time between the time limit of a call and the later one of its invocation. So a call ends by its own limit, and its
/// refusal names the step that it was in.
const BEYOND_THE_DEADLINE: Duration = Duration::from_millis(100);

/// The time limit of [`Relay::prepare`]. Lambda ends a process that has not asked for an event after 10 s.
const PREPARATION: Duration = Duration::from_secs(1);

/// The relay's operations. One in each process.
pub struct Relay {
    app: App,
    limiter: Limiter,
    callers: Secret<Callers>,
    recorder: Recorder,
}

/// The data of the invocation that a call belongs to.
#[derive(Clone, Debug)]
pub struct Invocation {
    /// Lambda's id of the invocation.
    pub request_id: String,
    /// The id of the X-Ray trace.
    pub trace_id: Option<String>,
    /// The instant by which the answer must leave.
    pub deadline: Millis,
}

impl Relay {
    /// The relay of an app, for the callers that a secret lists.
    pub fn new(app: App, callers_secret_id: &str) -> Self {
        let secrets = aws_sdk_secretsmanager::Client::new(&app.aws);
        let callers = Secret::new(secrets, callers_secret_id, app.clock.clone(), Callers::parse);
        let recorder = Recorder::new(app.table.clone(), app.vault.clone(), app.clock.clone());
        Self { limiter: app.limiter.clone(), callers, recorder, app }
    }

    /// Prepares the first call: reads all secrets, and opens connections to the table and to the platform, all at the same
    /// time. The first call repeats what fails or takes too long.
    pub async fn prepare(&self) {
        let callers = async {
            if let Err(error) = self.callers.get().await {
                tracing::warn!(%error, "the callers' secret could not be read before the first call");
            }
        };
        let connections = async {
            if let Err(error) = self.app.open_connections().await {
                tracing::warn!(%error, "a connection could not be opened before the first call");
            }
        };
        let all = async { tokio::join!(callers, connections, self.app.fetch_secrets()) };
        if tokio::time::timeout(PREPARATION, all).await.is_err() {
            tracing::warn!("the first call was not prepared in time");
        }
    }

    /// The present instant, by the corrected clock.
    pub fn now(&self) -> Millis {
        self.app.clock.now()
    }

    /// Refuses an event that arrived by a qualifier that its kind may not use: its sender could have put any identity into
    /// it. The refusal is [`Code::Unauthenticated`]; its cause names the invoked and the expected qualifier.
    pub fn check_invocation_kind(&self, kind: InvocationKind, invoked_function_arn: &str) -> Result<(), Refused> {
        let alias = &self.app.config.gateway_alias;
        if alias.admits(kind, invoked_function_arn) {
            return Ok(());
        }
        Err(Refused::by_qualifier(kind, invoked_function_arn, alias))
    }

    /// The callers of the secret. A change of the secret is noticed within a minute.
    pub async fn callers(&self) -> Result<Arc<Callers>, Refused> {
        self.callers.get().await.map_err(|error| Refused::by_secret(&error, self.now()))
    }

    /// Runs the work of an invocation with a time limit, and refuses with [`Code::PlatformTimeout`] after it. A call has its
    /// own, earlier time limit. This one is for the work around a call: reading secrets and the table, and a record that is
    /// written too slowly.
    pub async fn in_time<T>(
        &self,
        invocation: &Invocation,
        work: impl Future<Output = Result<T, Refused>>,
    ) -> Result<T, Refused> {
        let left = invocation.deadline.since(self.now()) + BEYOND_THE_DEADLINE;
        tokio::time::timeout(left, work).await.unwrap_or_else(|_| Err(Refused::by_end_of_time()))
    }

    /// Finds the target of a request by the ids in it. If the operation needs a company's token and the request names only a
    /// location, the table knows the location's company.
    ///
    /// The table is read, and its answer is revealed, only if the caller is allowed to know. Otherwise any caller could find
    /// out where the app is installed.
    pub async fn resource_of(&self, request: &UntargetedRequest, caller: &Caller) -> Result<Resource, Refused> {
        mcp::check_offered(&request.method, &request.path)?;
        let location = match inference::infer(&RequestParts::from(request)).map_err(Problem::from)? {
            Target::Resource(resource) => return Ok(resource),
            Target::CompanyOf(location) => location,
        };
        caller.authorize_company_lookup(&location)?;
        let reading = Box::pin(self.app.table.installation(&location));
        let stored = reading.await.map_err(|e| Refused::by_store(&e, self.now()))?;
        let company = stored.and_then(|stored| Resource::company(&stored.company?).ok());
        if let Some(company) = company {
            return Ok(company);
        }
        caller.authorize_company_unknown(&location)?;
        let detail = "the platform takes only a company's token for this operation, and the company of the location is \
                      not known: send the header x-company-id";
        Err(Problem::new(Code::ResourceUnclear, detail).into())
    }

    /// Sends a request: takes a token and, as late as possible, a permit, makes an attempt, and follows the policy in
    /// [`retry`]. It always answers, at the latest at the invocation's deadline. A request with an idempotency key is
    /// sent once.
    pub async fn call(&self, authorized: &Authorized, invocation: &Invocation) -> Answer {
        let started = self.now();
        let performed = match &authorized.request().idempotency_key {
            Some(key) => Box::pin(self.perform_once(authorized, key, invocation)).await,
            None => self.perform(authorized, invocation.deadline, Pacing::Caller, None).await,
        };
        self.log_performed(authorized, invocation, &performed, started);
        performed.answer.with_request_id(&invocation.request_id)
    }

    /// Sends a request, and answers until `deadline`. With a `recordable`, the intent is recorded directly before the request
    /// leaves. The outcome is for the caller of this method to record.
    async fn perform(
        &self,
        authorized: &Authorized,
        deadline: Millis,
        pacing: Pacing<'_>,
        recordable: Option<&Recordable>,
    ) -> Performed {
        let request = authorized.request();
        let mut call = Call::new(self, authorized.caller(), request, deadline, pacing, recordable);
        let result = call.run().await;
        let now = self.now();
        let Call { execution, timings, claim, usage, .. } = call;
        let (bare, platform, refused) = match result {
            Ok(reply) => (Answer::of_platform(&reply, &request.path), reply.headers, None),
            Err(Stop::Refused(refused)) => (Answer::refused(&refused, now), HeaderMap::new(), Some(refused)),
            Err(Stop::Found(found)) => return Performed { timings, ..Performed::of_record(found, now) },
        };
        let mut answer = bare.clone();
        let opens_at = || self.limiter.next_available_at(request.endpoint());
        match &usage {
            Some(usage) => {
                headers::merge_rate_limit_headers(&mut answer.headers, &platform, usage, now);
                set_retry_after(&mut answer, usage, opens_at, now);
            }
            None => headers::copy_rate_limit_headers(&mut answer.headers, &platform),
        }
        Performed { answer, bare, refused, execution, timings, claim, found: None }
    }

    fn log_performed(&self, authorized: &Authorized, invocation: &Invocation, performed: &Performed, started: Millis) {
        let total_ms = self.now().since(started).as_millis();
        log(authorized, invocation, &performed.entry(), &performed.timings, total_ms);
    }

    /// The status of an installation and of its limits. Takes no permit.
    pub async fn status(&self, access: &StatusAccess, invocation: &Invocation) -> Answer {
        let answer = match self.status_document(access.resource()).await {
            Ok(document) => Answer::json(&document),
            Err(refused) => return self.refuse(&refused, invocation),
        };
        answer.with_request_id(&invocation.request_id)
    }

    /// The answer to an event that never became a call. The event is not logged, because it was not validated.
    pub fn refuse(&self, refused: &Refused, invocation: &Invocation) -> Answer {
        let (code, cause) = (refused.problem.code, refused.cause.as_deref());
        tracing::info!(
            request_id = invocation.request_id,
            trace_id = invocation.trace_id,
            source = AnswerSource::Relay.as_str(),
            status = code.status().as_u16(),
            outcome = code.as_str(),
            cause,
            Calls = 1,
            RelayErrors = u8::from(code.status().is_server_error()),
            "refused"
        );
        Answer::refused(refused, self.now()).with_request_id(&invocation.request_id)
    }

    async fn status_document(&self, resource: &Resource) -> Result<Value, Refused> {
        let standing = self.app.tokens.status(resource).await.map_err(|e| Refused::by_token(&e, self.now()))?;
        let usage = self.limiter.usage(resource).await.map_err(|e| Refused::by_store(&e, self.now()))?;
        let meter = |meter: &Meter| json!({"limit": meter.limit, "remaining": meter.remaining, "resets_at": meter.resets_at.rfc3339()});
        Ok(json!({
            "resource": resource,
            "status": standing.status.as_str(),
            "token_expires_at": standing.token_expires_at.map(Millis::rfc3339),
            "quota": {"burst": meter(&usage.burst), "daily": meter(&usage.daily)},
        }))
    }
}

/// Sets the `Retry-After` of a 429 of the platform to the instant at which the relay sends again. The platform's own value
/// may be missing, a date, or too short; a longer one is part of the instant already. `available_at` looks the instant up, for
/// a 429 only. If it is unknown, the instant is when all permits are free again.
fn set_retry_after(answer: &mut Answer, usage: &Usage, available_at: impl FnOnce() -> Option<Millis>, now: Millis) {
    if answer.source != AnswerSource::Platform || answer.status != StatusCode::TOO_MANY_REQUESTS {
        return;
    }
    let meter = if usage.daily.remaining == 0 { &usage.daily } else { &usage.burst };
    headers::set_retry_after(&mut answer.headers, available_at().unwrap_or(meter.resets_at), now);
}

/// A call that has ended.
struct Performed {
    /// The answer to the caller.
    answer: Answer,
    /// The answer without the limits of the present.
    bare: Answer,
    /// The refusal, if the relay made the answer.
    refused: Option<Refused>,
    /// The answer to the question if the platform has executed the request.
    execution: Execution,
    timings: Timings,
    /// The lease of the request's record, which has no outcome yet.
    claim: Option<Claim>,
    /// The record of an equal request, from which the answer is.
    found: Option<Found>,
}

impl Performed {
    fn entry(&self) -> Entry<'_> {
        let outcome = if self.found.is_some() { "replayed" } else { "answered" };
        let Answer { source, status, .. } = self.bare;
        let answered = Entry { source, status, outcome, cause: None, limit: None };
        self.refused.as_ref().map_or(answered, Entry::of_refusal)
    }
}

/// The outcome of a call, for its line in the log.
struct Entry<'a> {
    source: AnswerSource,
    status: StatusCode,
    outcome: &'a str,
    cause: Option<&'a str>,
    limit: Option<&'a str>,
}

impl<'a> Entry<'a> {
    fn of_refusal(refused: &'a Refused) -> Self {
        let (code, cause, limit) =
            (refused.problem.code, refused.cause.as_deref(), refused.limit.map(LimitKind::as_str));
        Self { source: AnswerSource::Relay, status: code.status(), outcome: code.as_str(), cause, limit }
    }
}

/// Writes the line of a call: caller, request, outcome and timings. It never contains the query, headers or body.
fn log(authorized: &Authorized, invocation: &Invocation, entry: &Entry<'_>, timings: &Timings, total_ms: u128) {
    let request = authorized.request();
    let Entry { source, status, outcome, cause, limit } = *entry;
    let is_error = status.is_server_error();
    tracing::info!(
        request_id = invocation.request_id,
        trace_id = invocation.trace_id,
        resource = %request.resource,
        caller = authorized.caller().id(),
        caller_key = authorized.caller().key(),
        method = request.method.as_str(),
        path = request.path.as_str(),
        source = source.as_str(),
        status = status.as_u16(),
        outcome,
        cause,
        attempts = timings.attempts,
        generation = timings.generation,
        token_ms = timings.token_ms,
        permit_ms = timings.permit_ms,
        platform_ms = timings.platform_ms,
        total_ms = u64::try_from(total_ms).unwrap_or(u64::MAX),
        limit,
        Calls = 1,
        RelayErrors = u8::from(is_error && source == AnswerSource::Relay),
        PlatformErrors = u8::from(is_error && source == AnswerSource::Platform),
        PlatformLatency = (timings.attempts > 0 || timings.platform_ms > 0).then_some(timings.platform_ms),
        PermitsRefused = limit.map(|_| 1),
        "relayed"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use http::{HeaderValue, header};

    #[test]
    fn a_429_of_the_platform_says_when_the_relay_sends_again() {
        let usage = Usage {
            burst: Meter { limit: 100, remaining: 0, resets_at: Millis(12_000) },
            interval: std::time::Duration::from_secs(10),
            daily: Meter { limit: 200_000, remaining: 7, resets_at: Millis(99_000) },
        };
        let retry_after = |platform: Option<&'static str>, available_at| {
            let said = platform.map(|value| (header::RETRY_AFTER, HeaderValue::from_static(value)));
            let (status, source) = (StatusCode::TOO_MANY_REQUESTS, AnswerSource::Platform);
            let mut answer = Answer { status, source, headers: HeaderMap::from_iter(said), body: Bytes::new() };
            let is_429_of_platform = (status.as_u16(), source) == (429, AnswerSource::Platform);
            let asked = std::cell::Cell::new(false);
            let look_up = || {
                asked.set(true);
                available_at
            };
            set_retry_after(&mut answer, &usage, look_up, Millis(1_000));
            assert_eq!(asked.get(), is_429_of_platform, "the limiter is asked for a 429 of the platform only");
            let text = |name| answer.headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
            assert!(answer.headers.get_all(header::RETRY_AFTER).iter().count() <= 1);
            (text(header::RETRY_AFTER), text(headers::RETRY_AFTER_MS))
        };
        let both = |seconds: &str, ms: &str| (Some(seconds.to_owned()), Some(ms.to_owned()));
        for said in [None, Some("Wed, 21 Oct 2015 07:28:00 GMT"), Some("1"), Some("3600"), Some("soon")] {
            assert_eq!(retry_after(said, Some(Millis(11_400))), both("11", "10400"), "{said:?}");
            assert_eq!(retry_after(said, None), both("11", "11000"), "{said:?}");
        }
    }
}
