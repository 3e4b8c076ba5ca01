//! The classification of unsuccessful responses of the platform, by status and text. Pure.
//!
//! The vendor publishes no list of its texts. The list here has three sources: the vendor's examples, reports of
//! developers, and the public OAuth server library on which the platform seems to be built. A text counts only if it
//! states the fault itself; a text that only mentions a token is [`Meaning::Unknown`]. An unknown text ends no installation.
//! The one exception is the question to the platform after an ambiguous uninstall webhook (`company_api`): there the
//! status alone (401, 403 or 404) confirms the uninstall.

mod phrases;
#[cfg(test)]
mod tests;

use http::StatusCode;

use self::phrases::{has, known_meaning};
use super::text::{Body, words};

/// The meaning of an unsuccessful response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// The access token is expired, revoked or malformed. Another token helps.
    AccessTokenInvalid,
    /// The refresh token is expired, revoked, used or unknown.
    RefreshTokenInvalid,
    /// `invalid_grant` (RFC 6749 section 5.2): the refresh token or the authorization code is invalid.
    GrantInvalid,
    /// The authorization code is used, too old or unknown.
    CodeInvalid,
    /// The app is not installed there.
    NotInstalled,
    /// The platform does not accept the client id and secret.
    ClientInvalid,
    /// The platform does not accept a parameter of the token request. The cause is a bug or a wrong setting of ours.
    ParameterInvalid,
    /// The token is valid, but its scopes or its class do not allow the operation.
    NotAllowed,
    /// The token is valid, but it is not for this location.
    NoAccessToLocation,
    /// The `Version` header is missing or wrong, or the operation does not exist in this version.
    WrongVersion,
    /// The request names something that is wrong. The token is valid.
    AboutTheRequest,
    /// The location or company is paused by its agency or by billing. A pause is temporary.
    Inactive,
    /// The location is deleted.
    LocationNotFound,
    /// The company is deleted.
    CompanyNotFound,
    /// The platform's own time-out. It is unknown if the request was executed.
    TimedOut,
    /// 429.
    Throttled,
    /// A 5xx or a 408 of the platform.
    ServerError,
    /// A 3xx. No operation of the platform redirects.
    Redirected,
    /// A response of a gateway or CDN in front of the platform, such as a block page. The platform has not responded.
    NotReached,
    /// An unknown text.
    Unknown,
}

/// An unsuccessful response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorResponse {
    /// Its status.
    pub status: StatusCode,
    /// Its meaning.
    pub meaning: Meaning,
    /// Its texts for an operator: cut short, and without anything that looks like a token.
    pub sample: String,
}

impl ErrorResponse {
    /// Classifies a response with an unsuccessful status.
    pub fn read(status: StatusCode, body: &[u8]) -> Self {
        let body = Body::read(body);
        Self { status, meaning: meaning(status, &body), sample: body.sample() }
    }
}

impl Meaning {
    /// Classifies a response with an unsuccessful status.
    pub fn of(status: StatusCode, body: &[u8]) -> Self {
        meaning(status, &Body::read(body))
    }
}

fn meaning(status: StatusCode, body: &Body) -> Meaning {
    let is_of_a_gateway = match body {
        Body::Page | Body::OfCdn => true,
        Body::Plain(text) => is_cdn_error(&words(text)),
        Body::Json(_) | Body::Nothing => false,
    };
    match status {
        StatusCode::TOO_MANY_REQUESTS => return Meaning::Throttled,
        _ if is_of_a_gateway && !status.is_redirection() => return Meaning::NotReached,
        StatusCode::REQUEST_TIMEOUT => return Meaning::ServerError,
        _ if status.is_server_error() => return Meaning::ServerError,
        _ if !status.is_client_error() => return Meaning::Redirected,
        _ => {}
    }
    let texts = match body {
        Body::Json(texts) => &texts[..],
        Body::Plain(text) => std::slice::from_ref(text),
        Body::Page | Body::OfCdn | Body::Nothing => &[],
    };
    let texts: Vec<_> = texts.iter().map(|text| words(text)).collect();
    if let Some(known) = known_meaning(&texts) {
        return known;
    }
    match (status, body) {
        // The word of the platform's router about a path that it does not have.
        (StatusCode::NOT_FOUND, _) if texts.iter().any(|text| has(text, &["cannot get", "cannot post"])) => {
            Meaning::WrongVersion
        }
        // The platform's own 403 is JSON. A 403 without JSON is a firewall's.
        (StatusCode::FORBIDDEN, Body::Plain(_) | Body::Nothing) => Meaning::NotReached,
        // The texts of the platform's validation, such as "locationId must be a string".
        (StatusCode::UNPROCESSABLE_ENTITY, _) if texts.iter().any(|text| has(text, &["must", "should"])) => {
            Meaning::ParameterInvalid
        }
        _ => Meaning::Unknown,
    }
}

/// True for `error code: 1010` and the like, which Cloudflare sends to programs.
fn is_cdn_error(text: &str) -> bool {
    let code = text.strip_prefix(" error code . ").map(str::trim_end);
    code.is_some_and(|code| code.len() == 4 && code.starts_with('1') && code.bytes().all(|b| b.is_ascii_digit()))
}
