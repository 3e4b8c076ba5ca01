//! The failures of an installation, from the install link to the final page. Each has a status code.
//!
//! A failure carries no text, so a page cannot show data of a request or of a response. The code that decides on a
//! failure logs the details for the operator.

use http::StatusCode;
use shared::install::InstallError;
use shared::platform::token_endpoint::ExchangeError;
use shared::secrets::SecretError;
use strum::VariantArray;

use crate::query::Repeated;
use crate::state::StateError;

/// The reason for an error page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, VariantArray)]
pub enum InstallFailure {
    /// The path is no page of this function.
    NotFound,
    /// The method is not `GET`.
    MethodNotAllowed,
    /// The browser prefetched the page. The page must not be made before the admin opens it.
    Prefetched,
    /// The request has parameters that neither the marketplace nor our links produce.
    Malformed,
    /// The marketplace reports that the admin did not consent.
    NotApproved,
    /// The request has a state but not our cookie: cookies are blocked, or another browser started the installation.
    BrowserUnknown,
    /// The state was not signed for this browser.
    StateForeign,
    /// The state has expired: the admin left the consent page open for too long.
    StateExpired,
    /// The request has no state, and the configuration requires one.
    StateRequired,
    /// The state was already used with another code.
    StateUsed,
    /// The platform refuses the code, because it was used, has expired or was never issued. Also: another browser has
    /// presented the code first.
    CodeRefused,
    /// An earlier request with the same redirect is still being processed.
    InProgress,
    /// The limit of exchanges in this minute is reached, or the platform's token endpoint takes no request now.
    Busy,
    /// The platform has suspended the location.
    Suspended,
    /// The app's credentials or parameters, or our configuration, are wrong. Only the app's maker can repair that.
    Misconfigured,
    /// The platform cannot be reached.
    PlatformUnavailable,
    /// The table or Secrets Manager cannot be reached.
    Unavailable,
}

impl InstallFailure {
    /// All failures.
    pub const ALL: &[Self] = Self::VARIANTS;

    /// The name in logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::Prefetched => "prefetched",
            Self::Malformed => "malformed",
            Self::NotApproved => "not_approved",
            Self::BrowserUnknown => "browser_unknown",
            Self::StateForeign => "state_foreign",
            Self::StateExpired => "state_expired",
            Self::StateRequired => "state_required",
            Self::StateUsed => "state_used",
            Self::CodeRefused => "code_refused",
            Self::InProgress => "in_progress",
            Self::Busy => "busy",
            Self::Suspended => "suspended",
            Self::Misconfigured => "misconfigured",
            Self::PlatformUnavailable => "platform_unavailable",
            Self::Unavailable => "unavailable",
        }
    }

    /// The failure with this name ([`Self::name`]).
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|failure| failure.name() == name)
    }

    /// The status code.
    pub fn status(self) -> StatusCode {
        match self {
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Malformed
            | Self::NotApproved
            | Self::BrowserUnknown
            | Self::StateForeign
            | Self::StateExpired
            | Self::StateUsed
            | Self::CodeRefused => StatusCode::BAD_REQUEST,
            Self::InProgress => StatusCode::ACCEPTED,
            Self::Busy => StatusCode::TOO_MANY_REQUESTS,
            Self::StateRequired => StatusCode::FORBIDDEN,
            Self::Suspended => StatusCode::CONFLICT,
            Self::Misconfigured => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Prefetched | Self::PlatformUnavailable | Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The value of `Retry-After`, in seconds. Absent if a retry alone cannot help.
    pub fn retry_after(self) -> Option<u32> {
        match self {
            Self::InProgress => Some(5),
            Self::Busy | Self::PlatformUnavailable => Some(60),
            Self::Unavailable => Some(15),
            _ => None,
        }
    }

    /// Returns true if the operator, the app's maker or the platform has to repair something.
    pub fn is_ours(self) -> bool {
        matches!(self, Self::Misconfigured | Self::PlatformUnavailable | Self::Unavailable)
    }
}

impl From<Repeated> for InstallFailure {
    fn from(_: Repeated) -> Self {
        Self::Malformed
    }
}

impl From<StateError> for InstallFailure {
    fn from(error: StateError) -> Self {
        match error {
            StateError::Foreign => Self::StateForeign,
            StateError::Expired => Self::StateExpired,
        }
    }
}

impl From<&SecretError> for InstallFailure {
    fn from(error: &SecretError) -> Self {
        match error {
            SecretError::Unavailable { .. } => Self::Unavailable,
            SecretError::Malformed { .. } => Self::Misconfigured,
        }
    }
}

impl From<&ExchangeError> for InstallFailure {
    fn from(error: &ExchangeError) -> Self {
        match error {
            ExchangeError::CodeRefused => Self::CodeRefused,
            ExchangeError::WrongClient | ExchangeError::BadRequest(_) => Self::Misconfigured,
            ExchangeError::Suspended => Self::Suspended,
            ExchangeError::Throttled { .. } => Self::Busy,
            ExchangeError::Unavailable(_) => Self::PlatformUnavailable,
            ExchangeError::Secret(error) => error.into(),
        }
    }
}

/// The failure to show for an installation that could not be stored. `None` if the rescue queue will store it later.
pub fn of_install(error: &InstallError) -> Option<InstallFailure> {
    match error {
        InstallError::Store(_) => Some(InstallFailure::Unavailable),
        InstallError::Secret(error) => Some(error.into()),
        InstallError::Rescued => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::table::StoreError;

    fn unreadable() -> SecretError {
        SecretError::Unavailable { id: "app".into(), reason: "time-out".into() }
    }

    fn malformed() -> SecretError {
        SecretError::Malformed { id: "app".into(), reason: "not JSON".into() }
    }

    #[test]
    fn each_error_of_the_token_endpoint_has_its_status() {
        for (error, status, retry_after) in [
            (ExchangeError::CodeRefused, 400, None),
            (ExchangeError::WrongClient, 500, None),
            (ExchangeError::BadRequest("422".into()), 500, None),
            (ExchangeError::Suspended, 409, None),
            (ExchangeError::Throttled { retry_after: None }, 429, Some(60)),
            (ExchangeError::Unavailable("TimedOut".into()), 503, Some(60)),
            (ExchangeError::Secret(unreadable()), 503, Some(15)),
            (ExchangeError::Secret(malformed()), 500, None),
        ] {
            let failure = InstallFailure::from(&error);
            assert_eq!((failure.status().as_u16(), failure.retry_after()), (status, retry_after), "{error:?}");
        }
    }

    #[test]
    fn a_rescued_installation_is_no_failure() {
        assert_eq!(of_install(&InstallError::Rescued), None);
        let store = InstallError::Store(StoreError::Unavailable("time-out".into()));
        assert_eq!(of_install(&store), Some(InstallFailure::Unavailable));
        assert_eq!(of_install(&InstallError::Secret(malformed())), Some(InstallFailure::Misconfigured));
    }

    #[test]
    fn a_failure_is_found_by_its_name() {
        for &failure in InstallFailure::ALL {
            assert_eq!(InstallFailure::named(failure.name()), Some(failure));
        }
        assert_eq!(InstallFailure::named(""), None);
    }

    #[test]
    fn failures_that_the_admin_cannot_repair_have_a_5xx_status() {
        for failure in InstallFailure::ALL.iter().copied().filter(|f| *f != InstallFailure::Prefetched) {
            assert_eq!(failure.is_ours(), failure.status().is_server_error(), "{failure:?}");
        }
    }
}
