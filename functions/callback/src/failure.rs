//! Everything that can go wrong between the link and the page that says it worked, each with its status.
//!
//! A failure carries no text at all, so that nothing from a request or an answer can reach a page through it. What
//! the operator has to know is logged where the failure is decided.

use http::StatusCode;
use shared::install::InstallError;
use shared::platform::token_endpoint::ExchangeError;
use shared::secrets::SecretError;

use crate::query::Repeated;
use crate::state::StateError;

/// Why there is no installation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No such page.
    NotFound,
    /// Not a `GET`.
    MethodNotAllowed,
    /// A browser looked ahead; the page must not be made before someone asks for it.
    Prefetched,
    /// The request is not one that the marketplace or a link of ours makes.
    Malformed,
    /// The marketplace says that there is no consent.
    NotApproved,
    /// With state, but the browser has no cookie of ours: blocked, or another browser.
    BrowserUnknown,
    /// The state was not made for this browser.
    StateForeign,
    /// The consent page was left open for too long.
    StateExpired,
    /// Without state, and the configuration wants one.
    StateRequired,
    /// The state was used with another code.
    StateUsed,
    /// The platform does not take the code: used, too old or made up. Also where another browser has brought it first.
    CodeRefused,
    /// An earlier request with the same redirect has not come to its end.
    InProgress,
    /// Too many codes were exchanged within this minute.
    Busy,
    /// The platform has paused the location.
    Suspended,
    /// The app's credentials, parameters or our configuration are wrong. Only the app's maker can help.
    Misconfigured,
    /// The platform cannot be reached.
    PlatformUnavailable,
    /// The store or the secrets cannot be reached.
    Unavailable,
}

impl Failure {
    /// All of them, for pages and tests that go through each.
    pub const ALL: [Self; 17] = [
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::Prefetched,
        Self::Malformed,
        Self::NotApproved,
        Self::BrowserUnknown,
        Self::StateForeign,
        Self::StateExpired,
        Self::StateRequired,
        Self::StateUsed,
        Self::CodeRefused,
        Self::InProgress,
        Self::Busy,
        Self::Suspended,
        Self::Misconfigured,
        Self::PlatformUnavailable,
        Self::Unavailable,
    ];

    /// The name in the log and its metric.
    #[must_use]
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

    /// The failure of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|failure| failure.name() == name)
    }

    /// The status code.
    #[must_use]
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

    /// `Retry-After`, in seconds, where time alone may help.
    #[must_use]
    pub fn retry_after(self) -> Option<u32> {
        match self {
            Self::InProgress => Some(5),
            Self::Busy | Self::PlatformUnavailable => Some(60),
            Self::Unavailable => Some(15),
            _ => None,
        }
    }

    /// Whether someone other than the admin has something to repair.
    #[must_use]
    pub fn is_ours(self) -> bool {
        matches!(self, Self::Misconfigured | Self::PlatformUnavailable | Self::Unavailable)
    }
}

impl From<Repeated> for Failure {
    fn from(_: Repeated) -> Self {
        Self::Malformed
    }
}

impl From<StateError> for Failure {
    fn from(error: StateError) -> Self {
        match error {
            StateError::Foreign => Self::StateForeign,
            StateError::Expired => Self::StateExpired,
        }
    }
}

impl From<&SecretError> for Failure {
    fn from(error: &SecretError) -> Self {
        match error {
            SecretError::Unavailable { .. } => Self::Unavailable,
            SecretError::Malformed { .. } => Self::Misconfigured,
        }
    }
}

impl From<&ExchangeError> for Failure {
    fn from(error: &ExchangeError) -> Self {
        match error {
            ExchangeError::CodeRefused => Self::CodeRefused,
            ExchangeError::WrongClient | ExchangeError::BadRequest(_) => Self::Misconfigured,
            ExchangeError::Suspended => Self::Suspended,
            ExchangeError::Unavailable(_) => Self::PlatformUnavailable,
            ExchangeError::Secret(error) => error.into(),
        }
    }
}

/// What the admin is told where an installation could not be stored: nothing, if it will be stored later.
#[must_use]
pub fn of_install(error: &InstallError) -> Option<Failure> {
    match error {
        InstallError::Store(_) => Some(Failure::Unavailable),
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
    fn each_answer_of_the_token_endpoint_has_its_status() {
        for (error, status, retry_after) in [
            (ExchangeError::CodeRefused, 400, None),
            (ExchangeError::WrongClient, 500, None),
            (ExchangeError::BadRequest("422".into()), 500, None),
            (ExchangeError::Suspended, 409, None),
            (ExchangeError::Unavailable("TimedOut".into()), 503, Some(60)),
            (ExchangeError::Secret(unreadable()), 503, Some(15)),
            (ExchangeError::Secret(malformed()), 500, None),
        ] {
            let failure = Failure::from(&error);
            assert_eq!((failure.status().as_u16(), failure.retry_after()), (status, retry_after), "{error:?}");
        }
    }

    #[test]
    fn what_will_be_stored_later_is_no_failure() {
        assert_eq!(of_install(&InstallError::Rescued), None);
        let store = InstallError::Store(StoreError::Unavailable("time-out".into()));
        assert_eq!(of_install(&store), Some(Failure::Unavailable));
        assert_eq!(of_install(&InstallError::Secret(malformed())), Some(Failure::Misconfigured));
    }

    #[test]
    fn names_are_read_back() {
        for failure in Failure::ALL {
            assert_eq!(Failure::named(failure.name()), Some(failure));
        }
        assert_eq!(Failure::named(""), None);
    }

    #[test]
    fn what_only_others_can_repair_is_a_status_of_500_or_more() {
        for failure in Failure::ALL.into_iter().filter(|f| *f != Failure::Prefetched) {
            assert_eq!(failure.is_ours(), failure.status().is_server_error(), "{failure:?}");
        }
    }
}
