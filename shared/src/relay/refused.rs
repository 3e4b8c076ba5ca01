//! Each way in which the relay can refuse, as the caller is told it and as the operator reads it.

use std::fmt::Display;
use std::time::Duration;

use super::upstream::{Failure, LARGEST_BODY};
use crate::caller::{Forbidden, Unauthenticated};
use crate::domain::clock::Millis;
use crate::domain::problem::{Code, Problem};
use crate::domain::qualifier::{Arrival, GatewayAlias, Qualifier};
use crate::domain::resource::Resource;
use crate::limiter::{LimitKind, LimiterError, Usage};
use crate::request::path::Unsafe;
use crate::secrets::SecretError;
use crate::table::StoreError;
use crate::token::TokenError;

/// When a failure of our own is worth another try.
const SOON: Duration = Duration::from_secs(1);

/// A refusal and its two messages.
#[derive(Clone, Debug)]
pub struct Refused {
    /// What the caller is told.
    pub problem: Box<Problem>,
    /// What the log is told, where that is more.
    pub cause: Option<String>,
    /// What is left of the resource's limits, where that is why.
    pub usage: Option<Usage>,
}

impl Refused {
    fn because(problem: Problem, cause: &impl Display) -> Self {
        Self { problem: problem.into(), cause: Some(cause.to_string()), usage: None }
    }

    /// No permit.
    #[must_use]
    pub fn by_limiter(error: LimiterError, now: Millis) -> Self {
        let refusal = match error {
            LimiterError::Refused(refusal) => refusal,
            LimiterError::Store(error) => return Self::by_store(&error, now),
        };
        let (code, limit, detail) = match refusal.limit {
            LimitKind::Burst => (Code::BurstLimited, "burst", "the burst limit of this location or company is used up"),
            LimitKind::Daily => (Code::DailyLimited, "daily", "the daily limit of this location or company is used up"),
            LimitKind::Caller => (Code::BurstLimited, "caller", "this caller's own limit is used up"),
            LimitKind::Endpoint => {
                (Code::BurstLimited, "endpoint", "the platform's own limit of this endpoint is used up")
            }
        };
        let problem = Problem::new(code, detail).retry_at(refusal.retry_at).with("limit", limit);
        // The usage of a caller's share is not that of the resource.
        let usage = (refusal.limit != LimitKind::Caller).then_some(refusal.usage);
        Self { problem: problem.into(), cause: None, usage }
    }

    /// Which limit was used up, if that is why: `burst`, `daily`, `caller` or `endpoint`.
    #[must_use]
    pub fn limit(&self) -> Option<&str> {
        let limited = matches!(self.problem.code, Code::BurstLimited | Code::DailyLimited);
        self.problem.members.get("limit").and_then(serde_json::Value::as_str).filter(|_| limited)
    }

    /// No answer of the table.
    #[must_use]
    pub fn by_store(error: &StoreError, now: Millis) -> Self {
        let problem = Problem::new(Code::StoreUnavailable, "the relay's table does not answer; nothing was sent");
        Self::because(problem.retry_at(now + SOON), error)
    }

    /// No secret.
    #[must_use]
    pub fn by_secret(error: &SecretError, now: Millis) -> Self {
        let detail = "a secret of the relay is missing or malformed; its operator can read which in the log";
        Self::because(Problem::new(Code::Misconfigured, detail).retry_at(now + SOON), error)
    }

    /// No token.
    #[must_use]
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
            TokenError::InProgress { retry_at } => {
                Problem::new(Code::RefreshInProgress, "the token is being renewed").retry_at(*retry_at)
            }
            TokenError::RecentlyForced => {
                Problem::new(Code::RefreshInProgress, "the token was renewed a moment ago").retry_at(now + SOON)
            }
            TokenError::Misconfigured(_) => {
                let detail = "the platform refuses the app's credentials, or a stored token does not open";
                return Self::because(Problem::new(Code::Misconfigured, detail).retry_at(now + SOON), error);
            }
            TokenError::Secret(error) => return Self::by_secret(error, now),
            TokenError::Store(error) => return Self::by_store(error, now),
        };
        Self { problem: problem.into(), cause: None, usage: None }
    }

    /// No answer of the platform. The caller is told whether the request may have been carried out.
    #[must_use]
    pub fn by_platform(failure: &Failure) -> Self {
        const UNKNOWN: &str = "it is not known whether the request was carried out";
        let problem = match failure {
            Failure::NotSent(_) | Failure::TooLate => {
                Problem::new(Code::PlatformUnreachable, "the platform cannot be connected to; nothing was sent")
            }
            Failure::Broken { status: None, .. } => {
                Problem::new(Code::PlatformUnreachable, format!("the connection broke; {UNKNOWN}"))
            }
            Failure::Broken { status: Some(status), .. } => {
                Problem::new(Code::PlatformUnreachable, "the connection broke in the middle of the answer")
                    .with("platform_status", status.as_u16())
            }
            Failure::TimedOut => {
                Problem::new(Code::PlatformTimeout, format!("the platform did not answer in time; {UNKNOWN}"))
            }
            Failure::TooLarge(status) => {
                let detail = "the platform has answered, but with more than can be passed on";
                Problem::new(Code::PayloadTooLarge, detail)
                    .with("limit_bytes", LARGEST_BODY)
                    .with("platform_status", status.as_u16())
            }
        };
        Self::because(problem, failure)
    }

    /// A known caller that may not do this. The log is told which one.
    #[must_use]
    pub fn by_permissions(reason: Forbidden, caller: &str, resource: &Resource) -> Self {
        let cause = format!("{reason} (caller {caller}, {resource})");
        Self { cause: Some(cause), ..Self::from(reason) }
    }

    /// An event that came by another qualifier than its kind comes by. The caller is told no more than any stranger.
    #[must_use]
    pub fn by_qualifier(arrival: Arrival, invoked_function_arn: &str, alias: &GatewayAlias) -> Self {
        let (came_by, gateway) = (Qualifier::of(invoked_function_arn), alias.name());
        let cause = format!("{arrival:?} event by {came_by:?}, GATEWAY_ALIAS is {gateway:?}");
        Self { cause: Some(cause), ..Self::from(Unauthenticated) }
    }

    /// The time was up before anything was sent.
    #[must_use]
    pub fn by_deadline() -> Self {
        Problem::new(Code::PlatformTimeout, "there was no time left to ask the platform; nothing was sent").into()
    }
}

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        Self { problem: problem.into(), cause: None, usage: None }
    }
}

impl From<Unsafe> for Refused {
    fn from(reason: Unsafe) -> Self {
        Self::because(Problem::new(Code::InvalidRequest, reason.to_string()), &reason)
    }
}

impl From<Forbidden> for Refused {
    fn from(reason: Forbidden) -> Self {
        Self::because(Problem::new(Code::Forbidden, reason.to_string()), &reason)
    }
}

impl From<Unauthenticated> for Refused {
    fn from(reason: Unauthenticated) -> Self {
        Problem::new(Code::Unauthenticated, reason.to_string()).into()
    }
}
