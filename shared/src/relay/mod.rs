//! The relay: a request that its caller may send goes to the platform with a token and a permit.
//!
//! Pure: [`path`], [`headers`], [`named`], [`inference`], [`retry`], [`token_class`]. One attempt: [`upstream`]. Together: [`Relay::call`].

pub mod answer;
mod call;
pub mod headers;
pub mod inference;
pub mod refused;
pub mod retry;
pub mod token_class;
pub mod upstream;

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};

use crate::app::App;
use crate::caller::{Authorized, Caller, Callers, Visible};
use crate::domain::clock::Millis;
use crate::domain::problem::{Code, Problem};
use crate::domain::qualifier::Arrival;
use crate::domain::resource::Resource;
use crate::limiter::{Limiter, Meter, Usage};
use crate::request::target_ids::Parts;
use crate::request::{Unaddressed, mcp};
use crate::secrets::Secret;
use answer::{Answer, Source};
use call::{Call, Course};
use inference::For;
use refused::Refused;
use upstream::Reply;

/// How much later than a call everything else gives up.
const BEYOND_THE_DEADLINE: Duration = Duration::from_millis(100);

/// The relay's operation. One a process.
pub struct Relay {
    app: App,
    limiter: Limiter,
    callers: Secret<Callers>,
}

/// What a call has from the event that brought it.
#[derive(Clone, Debug)]
pub struct Invocation {
    /// Lambda's id of the invocation.
    pub request_id: String,
    /// X-Ray's trace.
    pub trace_id: Option<String>,
    /// When the answer must be on its way.
    pub deadline: Millis,
}

impl Relay {
    /// The relay of an app, for the callers that a secret lists.
    #[must_use]
    pub fn new(app: App, callers_secret_id: &str) -> Self {
        let secrets = aws_sdk_secretsmanager::Client::new(&app.aws);
        let callers = Secret::new(secrets, callers_secret_id, app.clock.clone(), Callers::parse);
        Self { limiter: app.limiter.clone(), callers, app }
    }

    /// Reads all secrets at once, in advance of the first call. What fails is read again then.
    pub async fn fetch_secrets(&self) {
        let (callers, ()) = tokio::join!(self.callers.get(), self.app.fetch_secrets());
        if let Err(error) = callers {
            tracing::warn!(%error, "the callers were not read in advance");
        }
    }

    /// The present instant, as the relay sees it.
    #[must_use]
    pub fn now(&self) -> Millis {
        self.app.clock.now()
    }

    /// Refuses an event that did not come the way that it claims: its sender could have put any identity into it.
    ///
    /// # Errors
    /// [`Code::Unauthenticated`]. The log says which qualifier was invoked and which was expected.
    pub fn check_arrival(&self, arrival: Arrival, invoked_function_arn: &str) -> Result<(), Refused> {
        let alias = &self.app.config.gateway_alias;
        if alias.admits(arrival, invoked_function_arn) {
            return Ok(());
        }
        Err(Refused::by_qualifier(arrival, invoked_function_arn, alias))
    }

    /// Who may call. A change of the secret is noticed within a minute.
    ///
    /// # Errors
    /// A secret that cannot be read.
    pub async fn callers(&self) -> Result<Arc<Callers>, Refused> {
        self.callers.get().await.map_err(|error| Refused::by_secret(&error, self.now()))
    }

    /// Does all that an invocation asks for, or says in time that there was none. A call keeps its time by itself, and
    /// knows better what it was doing; this is for what comes before it (secrets, the table).
    ///
    /// # Errors
    /// Those of the work, or [`Code::PlatformTimeout`].
    pub async fn in_time<T>(
        &self,
        invocation: &Invocation,
        work: impl Future<Output = Result<T, Refused>>,
    ) -> Result<T, Refused> {
        let left = invocation.deadline.since(self.now()) + BEYOND_THE_DEADLINE;
        tokio::time::timeout(left, work).await.unwrap_or_else(|_| Err(Refused::by_deadline()))
    }

    /// Whom a request is for that says so itself. The table is asked, and an answer that depends on it given, only where
    /// the caller may know: else anybody could find out where the app is installed.
    ///
    /// # Errors
    /// It does not, or it needs a company's token and the company of the location that it names is not known.
    pub async fn resource_of(&self, request: &Unaddressed, caller: &Caller) -> Result<Resource, Refused> {
        mcp::check_offered(&request.method, &request.path)?;
        let location = match inference::infer(&Parts::from(request)).map_err(Problem::from)? {
            For::Resource(resource) => return Ok(resource),
            For::CompanyOf(location) => location,
        };
        let forbidden = |reason| Refused::by_permissions(reason, caller.id(), &location);
        caller.may_ask_for_company().map_err(forbidden)?;
        let reading = Box::pin(self.app.table.installation(&location));
        let stored = reading.await.map_err(|e| Refused::by_store(&e, self.now()))?;
        let company = stored.and_then(|stored| Resource::company(&stored.company?).ok());
        let detail = "the platform takes this operation with a company's token only, and the company of the location \
                      is not known: send the header x-company-id";
        if let Some(company) = company {
            return Ok(company);
        }
        caller.may_hear_of(&location).map_err(forbidden)?;
        Err(Problem::new(Code::ResourceUnclear, detail).into())
    }

    /// Sends a request: a token, a permit as late as possible, an attempt, and what [`retry`] says. There is always an
    /// answer, at the latest at the invocation's deadline.
    pub async fn call(&self, authorized: &Authorized, invocation: &Invocation) -> Answer {
        let started = self.now();
        let mut call = Call::new(self, authorized, invocation.deadline);
        let result = call.run().await;
        let now = self.now();
        let mut answer = match &result {
            Ok(reply) => Answer::of_platform(reply, &authorized.request().path),
            Err(refused) => Answer::refused(refused, now),
        };
        let platform = result.as_ref().map(|reply| reply.headers.clone()).unwrap_or_default();
        match &call.usage {
            Some(usage) => {
                headers::tighten(&mut answer.headers, &platform, usage, self.app.config.limits.interval, now);
                say_when(&mut answer, usage, || self.limiter.next_available_at(authorized.request().endpoint()), now);
            }
            None => headers::repeat_limits(&mut answer.headers, &platform),
        }
        log(authorized, invocation, &result, &call.course, now.since(started).as_millis());
        answer.stamped(&invocation.request_id)
    }

    /// How an installation and its limits stand. Takes no permit.
    pub async fn status(&self, visible: &Visible, invocation: &Invocation) -> Answer {
        let answer = match self.standing(visible.resource()).await {
            Ok(document) => Answer::json(&document),
            Err(refused) => return self.refuse(&refused, invocation),
        };
        answer.stamped(&invocation.request_id)
    }

    /// The answer to what never became a call. What came in is not logged: it has not been checked.
    pub fn refuse(&self, refused: &Refused, invocation: &Invocation) -> Answer {
        let (code, cause) = (refused.problem.code, refused.cause.as_deref());
        tracing::info!(
            request_id = invocation.request_id,
            trace_id = invocation.trace_id,
            source = Source::Relay.as_str(),
            status = code.status().as_u16(),
            outcome = code.as_str(),
            cause,
            Calls = 1,
            RelayErrors = u8::from(code.status().is_server_error()),
            "refused"
        );
        Answer::refused(refused, self.now()).stamped(&invocation.request_id)
    }

    async fn standing(&self, resource: &Resource) -> Result<Value, Refused> {
        let standing = self.app.tokens.standing(resource).await.map_err(|e| Refused::by_token(&e, self.now()))?;
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

/// With a 429 of the platform goes the instant at which the relay sends again, whatever the platform said: it may say
/// nothing, a date, or less than the relay holds back for. What it said is part of the closure if it is any longer.
/// `opens_at` looks up that instant, for a 429 only; without it, it is when all is free again.
fn say_when(answer: &mut Answer, usage: &Usage, opens_at: impl FnOnce() -> Option<Millis>, now: Millis) {
    if answer.source != Source::Platform || answer.status != StatusCode::TOO_MANY_REQUESTS {
        return;
    }
    let meter = if usage.daily.remaining == 0 { &usage.daily } else { &usage.burst };
    headers::retry_after(&mut answer.headers, opens_at().unwrap_or(meter.resets_at), now);
}

/// One line a call: who, what and how long, never with which query, headers or body.
fn log(
    authorized: &Authorized,
    invocation: &Invocation,
    result: &Result<Reply, Refused>,
    course: &Course,
    total_ms: u128,
) {
    let request = authorized.request();
    let (source, status, outcome, cause) = match result {
        Ok(reply) => (Source::Platform, reply.status, "answered", None),
        Err(refused) => {
            let code = refused.problem.code;
            (Source::Relay, code.status(), code.as_str(), refused.cause.as_deref())
        }
    };
    let limit = result.as_ref().err().and_then(Refused::limit);
    let is_error = status.is_server_error();
    tracing::info!(
        request_id = invocation.request_id,
        trace_id = invocation.trace_id,
        resource = %request.resource,
        caller = authorized.caller().id(),
        method = request.method.as_str(),
        path = request.path.as_str(),
        source = source.as_str(),
        status = status.as_u16(),
        outcome,
        cause,
        attempts = course.attempts,
        generation = course.generation,
        token_ms = course.token_ms,
        permit_ms = course.permit_ms,
        platform_ms = course.platform_ms,
        total_ms = u64::try_from(total_ms).unwrap_or(u64::MAX),
        limit,
        Calls = 1,
        RelayErrors = u8::from(is_error && source == Source::Relay),
        PlatformErrors = u8::from(is_error && source == Source::Platform),
        PlatformLatency = (course.attempts > 0).then_some(course.platform_ms),
        PermitsRefused = limit.map(|_| 1),
        "relayed"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use http::{HeaderMap, HeaderValue, header};

    #[test]
    fn a_429_of_the_platform_says_when_the_relay_sends_again() {
        let usage = Usage {
            burst: Meter { limit: 100, remaining: 0, resets_at: Millis(12_000) },
            daily: Meter { limit: 200_000, remaining: 7, resets_at: Millis(99_000) },
        };
        let told = |platform: Option<&'static str>, opens_at| {
            let said = platform.map(|value| (header::RETRY_AFTER, HeaderValue::from_static(value)));
            let (status, source) = (StatusCode::TOO_MANY_REQUESTS, Source::Platform);
            let mut answer = Answer { status, source, headers: HeaderMap::from_iter(said), body: Bytes::new() };
            let is_429_of_platform = (status.as_u16(), source) == (429, Source::Platform);
            let asked = std::cell::Cell::new(false);
            let look_up = || {
                asked.set(true);
                opens_at
            };
            say_when(&mut answer, &usage, look_up, Millis(1_000));
            assert_eq!(asked.get(), is_429_of_platform, "the limiter is asked for a 429 of the platform only");
            let text = |name| answer.headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
            assert!(answer.headers.get_all(header::RETRY_AFTER).iter().count() <= 1);
            (text(header::RETRY_AFTER), text(headers::RETRY_AFTER_MS))
        };
        let both = |seconds: &str, ms: &str| (Some(seconds.to_owned()), Some(ms.to_owned()));
        for said in [None, Some("Wed, 21 Oct 2015 07:28:00 GMT"), Some("1"), Some("3600"), Some("soon")] {
            assert_eq!(told(said, Some(Millis(11_400))), both("11", "10400"), "{said:?}");
            assert_eq!(told(said, None), both("11", "11000"), "{said:?}");
        }
    }
}
