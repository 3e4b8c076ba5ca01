//! The relay's refusals. Each has a message for the caller and, where it says more, a cause for the log.

use std::fmt::Display;
use std::time::Duration;

use super::upstream::LARGEST_BODY;
use crate::caller::{Denied, Unauthenticated};
use crate::domain::clock::Millis;
use crate::domain::problem::{Code, Problem};
use crate::domain::qualifier::{GatewayAlias, InvocationKind, Qualifier};
use crate::http_client::SendError;
use crate::idempotency::RecordError;
use crate::limiter::{LimitKind, LimiterError, Usage};
use crate::request::idempotency_key::MalformedKey;
use crate::request::path::Unsafe;
use crate::secrets::SecretError;
use crate::table::StoreError;
use crate::token::TokenError;

/// The time until the next try after a failure of our own.
const SOON: Duration = Duration::from_secs(1);

/// A refusal with its two messages.
#[derive(Clone, Debug)]
pub struct Refused {
    /// The message for the caller.
    pub problem: Box<Problem>,
    /// The cause for the log, if it says more than the message.
    pub cause: Option<String>,
    /// The limit that is used up, if that is the reason.
    pub limit: Option<LimitKind>,
    /// The state of the resource's limits, if one of them is the reason.
    pub usage: Option<Usage>,
}

impl Refused {
    fn because(problem: Problem, cause: &impl Display) -> Self {
        Self { problem: problem.into(), cause: Some(cause.to_string()), limit: None, usage: None }
    }

    /// The limiter gave no permit.
    pub fn by_limiter(error: LimiterError, now: Millis) -> Self {
        let refusal = match error {
            LimiterError::Refused(refusal) => refusal,
            LimiterError::Store(error) => return Self::by_store(&error, now),
        };
        let (code, detail) = match refusal.limit {
            LimitKind::Burst => (Code::BurstLimited, "the burst limit of this location or company is used up"),
            LimitKind::Daily => (Code::DailyLimited, "the daily limit of this location or company is used up"),
            LimitKind::Caller => (Code::BurstLimited, "this caller's own limit is used up"),
            LimitKind::Endpoint => (Code::BurstLimited, "the platform's own limit of this endpoint is used up"),
        };
        let problem = Problem::new(code, detail).retry_at(refusal.retry_at).with("limit", refusal.limit.as_str());
        // The usage of a caller's share says nothing about the resource.
        let usage = (refusal.limit != LimitKind::Caller).then_some(refusal.usage);
        Self { problem: problem.into(), cause: None, limit: Some(refusal.limit), usage }
    }

    /// The table did not answer.
    pub fn by_store(error: &StoreError, now: Millis) -> Self {
        let problem = Problem::new(Code::StoreUnavailable, "the relay's table does not answer; nothing was sent");
        Self::because(problem.retry_at(now + SOON), error)
    }

    /// A secret cannot be read.
    pub fn by_secret(error: &SecretError, now: Millis) -> Self {
        let detail = "a secret of the relay is missing or malformed; its operator can read which in the log";
        Self::because(Problem::new(Code::Misconfigured, detail).retry_at(now + SOON), error)
    }

    /// There is no token.
    pub fn by_token(error: &TokenError, now: Millis) -> Self {
        let problem = match error {
            TokenError::NotInstalled => {
                Problem::new(Code::NotInstalled, "no installation of this location or company is known")
            }
            TokenError::Revoked => Problem::new(Code::Revoked, "the app was uninstalled from this location or company"),
            TokenError::ReauthorizationRequired { reinstall_url } => {
                let problem = Problem::new(
                    Code::ReauthorizationRequired,
                    "the grant is gone; someone must install the app again",
                );
                match reinstall_url {
                    Some(url) => problem.with("reinstall_url", url.as_str()),
                    None => problem,
                }
            }
            TokenError::Suspended { retry_at } => {
                Problem::new(Code::Suspended, "the platform has paused this location").retry_at(*retry_at)
            }
            TokenError::InProgress { retry_at }
            | TokenError::Unanswered { retry_at, .. }
            | TokenError::Paced { retry_at } => {
                Problem::new(Code::RefreshInProgress, "the token is being renewed").retry_at(*retry_at)
            }
            TokenError::NoTime => {
                let detail = "the token must be renewed, and too little time is left of this call";
                Problem::new(Code::RefreshInProgress, detail).retry_at(now + SOON)
            }
            TokenError::RecentlyForced => {
                Problem::new(Code::RefreshInProgress, "the token was renewed a moment ago").retry_at(now + SOON)
            }
            TokenError::Misconfigured(_) => {
                let detail = "refreshing has stopped, or the relay or the app is misconfigured; the operator's log has the cause";
                return Self::because(Problem::new(Code::Misconfigured, detail).retry_at(now + SOON), error);
            }
            TokenError::Secret(error) => return Self::by_secret(error, now),
            TokenError::Store(error) => return Self::by_store(error, now),
        };
        Self { problem: problem.into(), cause: None, limit: None, usage: None }
    }

    /// The platform gave no response. The message says if the request may have been executed.
    pub fn by_platform(failure: &SendError) -> Self {
        const UNKNOWN: &str = "it is unknown if the request was executed";
        let problem = match failure {
            SendError::NotSent(_) | SendError::TooLate => {
                Problem::new(Code::PlatformUnreachable, "the platform cannot be connected to; nothing was sent")
            }
            SendError::Broken { status: None, .. } => {
                Problem::new(Code::PlatformUnreachable, format!("the connection broke; {UNKNOWN}"))
            }
            SendError::Broken { status: Some(status), .. } => {
                Problem::new(Code::PlatformUnreachable, "the connection broke in the middle of the answer")
                    .with("platform_status", status.as_u16())
            }
            SendError::TimedOut => {
                Problem::new(Code::PlatformTimeout, format!("the platform did not answer in time; {UNKNOWN}"))
            }
            SendError::TooLarge(status) => {
                let detail = "the platform's response is larger than an invocation can carry; ask for less at a time";
                Problem::new(Code::PayloadTooLarge, detail)
                    .with("limit_bytes", LARGEST_BODY)
                    .with("platform_status", status.as_u16())
            }
        };
        Self::because(problem, failure)
    }

    /// The event arrived by a qualifier that its kind may not use. The caller gets the message of an unknown caller; the
    /// cause names both qualifiers.
    pub fn by_qualifier(kind: InvocationKind, invoked_function_arn: &str, alias: &GatewayAlias) -> Self {
        let (qualifier, gateway) = (Qualifier::of(invoked_function_arn), alias.name());
        let cause = format!("{kind:?} event by {qualifier:?}, GATEWAY_ALIAS is {gateway:?}");
        Self { cause: Some(cause), ..Self::from(Unauthenticated) }
    }

    /// An equal request is in progress until `until` at the latest.
    pub fn by_request_in_progress(until: Millis, now: Millis) -> Self {
        let detail = "a request with this idempotency key is in progress";
        Problem::new(Code::IdempotencyInProgress, detail).retry_at(until.min(now + SOON)).into()
    }

    /// The outcome of an equal request is unknown.
    pub fn by_unknown_outcome() -> Self {
        let detail = "a request with this idempotency key may have been executed, so it is not sent again: look for its \
                      effect, and then use a new key";
        Problem::new(Code::IdempotencyUnknown, detail).into()
    }

    /// It will be known at `at` if a charge was made.
    pub fn by_unknown_charge(at: Millis) -> Self {
        let detail = "this charge may have been made; the relay looks it up when the request comes again";
        Problem::new(Code::IdempotencyUnknown, detail).retry_at(at).into()
    }

    /// The idempotency key belongs to another request.
    pub fn by_other_request() -> Self {
        let detail = "this idempotency key belongs to a request with another method, path, query, body or header";
        Problem::new(Code::IdempotencyConflict, detail).into()
    }

    /// The intent to send a request cannot be recorded.
    pub fn by_record(error: &RecordError, now: Millis) -> Self {
        match error {
            RecordError::Secret(error) => Self::by_secret(error, now),
            RecordError::Store(error) => Self::by_store(error, now),
        }
    }

    /// The time of the invocation was over. The record of an outcome may have taken it, after the request was sent.
    pub fn by_end_of_time() -> Self {
        let detail = "the time of the invocation is over; it is unknown if the request was executed";
        Problem::new(Code::PlatformTimeout, detail).into()
    }

    /// The time was over before the request could be sent.
    pub fn by_deadline() -> Self {
        Problem::new(Code::PlatformTimeout, "no time was left to call the platform; nothing was sent").into()
    }
}

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        Self { problem: problem.into(), cause: None, limit: None, usage: None }
    }
}

impl From<Unsafe> for Refused {
    fn from(reason: Unsafe) -> Self {
        Self::because(Problem::new(Code::InvalidRequest, reason.to_string()), &reason)
    }
}

impl From<MalformedKey> for Refused {
    fn from(malformed: MalformedKey) -> Self {
        Problem::invalid_request(malformed.to_string()).into()
    }
}

impl From<Denied> for Refused {
    fn from(denied: Denied) -> Self {
        Self::because(Problem::new(Code::Forbidden, denied.reason.to_string()), &denied)
    }
}

impl From<Unauthenticated> for Refused {
    fn from(reason: Unauthenticated) -> Self {
        Problem::new(Code::Unauthenticated, reason.to_string()).into()
    }
}
