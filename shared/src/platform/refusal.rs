//! What an unsuccessful answer of the platform means: the one place that knows the platform's texts.
//!
//! The vendor publishes no list of texts. Those here are its own examples, what developers report, and what the public
//! OAuth server library says that the platform seems to be built on. A text counts only if it says the thing itself; one that
//! merely mentions a token is [`Meaning::Unknown`]. What is unknown is never final for anybody who reads it here.

use http::StatusCode;

use super::text::{Body, words};

/// What an unsuccessful answer says, as far as that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// The access token is expired, revoked or garbled: another one helps.
    AccessTokenInvalid,
    /// The refresh token is expired, revoked, used or unknown.
    RefreshTokenInvalid,
    /// The grant is invalid, in the words of RFC 6749 section 5.2: the refresh token, or the authorization code.
    GrantInvalid,
    /// The authorization code is used, too old or unknown.
    CodeInvalid,
    /// The app is not installed there, or no longer.
    NotInstalled,
    /// The client id and secret are not accepted.
    ClientInvalid,
    /// A parameter of the token request is not accepted: a bug or a wrong setting of ours.
    ParameterInvalid,
    /// The token is good, and its scopes or its class do not allow this.
    NotAllowed,
    /// The token is good, and it is not for this location.
    NoAccessToLocation,
    /// The `Version` header is missing or wrong, or the operation does not exist in this version.
    WrongVersion,
    /// Something that the request names is wrong. The token is not.
    AboutTheRequest,
    /// The location or company is paused, by its agency or by billing. That ends.
    Inactive,
    /// The location is deleted.
    LocationNotFound,
    /// The company is deleted.
    CompanyNotFound,
    /// The platform's own time-out: nothing says what was done.
    TimedOut,
    /// 429.
    Throttled,
    /// A 5xx or a 408 of the platform.
    ServerError,
    /// A 3xx, which no operation answers.
    Redirected,
    /// A page or a text of what stands in front of the platform, such as the block page of its CDN. The platform has
    /// said nothing.
    NotReached,
    /// A text that nobody has classified.
    Unknown,
}

/// An unsuccessful answer, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Its status.
    pub status: StatusCode,
    /// What it means.
    pub meaning: Meaning,
    /// Its words for an operator: cut short, and without anything that looks like a token.
    pub sample: String,
}

impl Refusal {
    /// Reads an answer that is no success.
    #[must_use]
    pub fn read(status: StatusCode, body: &[u8]) -> Self {
        let body = Body::read(body);
        Self { status, meaning: meaning(status, &body), sample: body.sample() }
    }
}

impl Meaning {
    /// Reads an answer that is no success.
    #[must_use]
    pub fn of(status: StatusCode, body: &[u8]) -> Self {
        meaning(status, &Body::read(body))
    }
}

fn meaning(status: StatusCode, body: &Body) -> Meaning {
    let is_of_another = match body {
        Body::Page | Body::OfCdn => true,
        Body::Plain(text) => is_cdn_error(&words(text)),
        Body::Json(_) | Body::Nothing => false,
    };
    match status {
        StatusCode::TOO_MANY_REQUESTS => return Meaning::Throttled,
        _ if is_of_another && !status.is_redirection() => return Meaning::NotReached,
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
    if let Some((known, _)) = KNOWN.iter().find(|(_, says)| texts.iter().any(|text| says.fits(text))) {
        return *known;
    }
    match (status, body) {
        // The platform's own 403 is JSON: one without is a firewall's.
        (StatusCode::FORBIDDEN, Body::Plain(_) | Body::Nothing) => Meaning::NotReached,
        // The texts of the platform's validation, such as "locationId must be a string".
        (StatusCode::UNPROCESSABLE_ENTITY, _) if texts.iter().any(|text| has(text, &["must", "should"])) => {
            Meaning::ParameterInvalid
        }
        _ => Meaning::Unknown,
    }
}

/// `error code: 1010`, as Cloudflare says it to programs.
fn is_cdn_error(text: &str) -> bool {
    let code = text.strip_prefix(" error code . ").map(str::trim_end);
    code.is_some_and(|code| code.len() == 4 && code.starts_with('1') && code.bytes().all(|b| b.is_ascii_digit()))
}

/// How a text says something. All phrases are whole words in the form of [`words`], without the spaces at their ends.
enum Says {
    /// It has one of these phrases.
    Phrase(&'static [&'static str]),
    /// It is one of these phrases.
    Exactly(&'static [&'static str]),
    /// It says one of the second of one of the first: "the refresh token … has expired", "expired refresh token".
    Of(&'static [&'static str], &'static [&'static str]),
    /// It has one of the first and one of the second, anywhere.
    Both(&'static [&'static str], &'static [&'static str]),
    /// It consists of these words only and has one of the phrases.
    Only(&'static [&'static str], &'static [&'static str]),
}
use Says::{Both, Exactly, Of, Only, Phrase};

/// The platform's texts. Of all that an answer has, the first in this order counts.
const KNOWN: [(Meaning, Says); 17] = [
    // This one token may be another app's, or the app's settings may: nothing is to be concluded from it.
    (Meaning::Unknown, Phrase(&["issued to another client"])),
    (Meaning::Inactive, Both(&["location", "account", "subaccount", "company", "agency"], INACTIVE)),
    (Meaning::RefreshTokenInvalid, Of(&["refresh token", "refreshtoken"], DEAD)),
    (Meaning::CodeInvalid, Of(&["authorization code"], DEAD)),
    (Meaning::TimedOut, Phrase(&["timeout after", "request timed out", "request timeout"])),
    (Meaning::WrongVersion, Phrase(&["version header", "not available in api version", "not available in version"])),
    (
        Meaning::NotAllowed,
        Phrase(&[
            "not authorized for this scope",
            "type is not allowed to access this scope",
            "user type mismatch",
            "insufficient scope",
            "not have access to this company",
        ]),
    ),
    (
        Meaning::NoAccessToLocation,
        Phrase(&[
            "not have access to this location",
            "not have access to the location",
            "doesnt have access to this location",
            "no access to this location",
            "location is not accessible",
        ]),
    ),
    (Meaning::AboutTheRequest, Phrase(&["no conversation provider found"])),
    (Meaning::NotInstalled, Of(&["app", "application"], &["not installed", "uninstalled", "no longer installed"])),
    (Meaning::ClientInvalid, Phrase(&["invalid client"])),
    (Meaning::ClientInvalid, Of(&["client id", "client secret", "client credentials", "client"], &["invalid"])),
    (
        Meaning::ParameterInvalid,
        Phrase(&[
            "invalid parameter",
            "missing parameter",
            "unsupported grant type",
            "unauthorized client",
            "redirect uri is invalid",
            "redirect uri mismatch",
            "redirect uri is not a valid uri",
        ]),
    ),
    (Meaning::LocationNotFound, Of(&["location", "sub account", "subaccount"], GONE)),
    (Meaning::CompanyNotFound, Of(&["company", "agency"], GONE)),
    (Meaning::GrantInvalid, Exactly(&["invalid grant"])),
    (Meaning::AccessTokenInvalid, Only(OF_ACCESS_TOKENS, DEAD_ACCESS_TOKEN)),
];

/// What is said of a location or company that is paused.
const INACTIVE: &[&str] = &["not active", "inactive", "paused", "suspended", "deactivated"];
/// What is said of a token or code that is of no use any more.
const DEAD: &[&str] = &[
    "invalid",
    "not valid",
    "no longer valid",
    "expired",
    "revoked",
    "unknown",
    "deleted",
    "already used",
    "been used",
    "was used",
    "reused",
    "reuse detected",
    "consumed",
    "not found",
    "not be found",
    "not exist",
    "doesnt exist",
    "no longer exists",
    "not recognized",
    "not recognised",
];
/// What is said of a location or company that is deleted.
const GONE: &[&str] =
    &["not found", "not be found", "not exist", "doesnt exist", "no longer exists", "deleted", "removed"];
/// Words that may stand between a thing and what is said of it. A word with a digit, such as an id, may as well.
const BETWEEN: &[&str] = &[
    "a",
    "already",
    "an",
    "and",
    "app",
    "be",
    "been",
    "can",
    "cannot",
    "client",
    "company",
    "could",
    "did",
    "does",
    "either",
    "for",
    "given",
    "has",
    "have",
    "id",
    "is",
    "it",
    "location",
    "may",
    "of",
    "or",
    "presented",
    "provided",
    "supplied",
    "that",
    "the",
    "this",
    "user",
    "value",
    "was",
    "were",
    "which",
    "with",
    "you",
    "your",
];
/// The words of a text that says of an access token that it is of no use, and nothing else.
const OF_ACCESS_TOKENS: &[&str] = &[
    "a",
    "access",
    "an",
    "and",
    "auth",
    "authentication",
    "authorization",
    "authorized",
    "been",
    "bearer",
    "expired",
    "for",
    "has",
    "have",
    "invalid",
    "is",
    "it",
    "jwt",
    "longer",
    "malformed",
    "no",
    "not",
    "oauth",
    "or",
    "other",
    "please",
    "provided",
    "reasons",
    "revoked",
    "the",
    "this",
    "token",
    "un",
    "unauthorized",
    "valid",
    "was",
    "your",
];
/// How it says so.
const DEAD_ACCESS_TOKEN: &[&str] = &[
    "invalid jwt",
    "jwt expired",
    "jwt is expired",
    "jwt has expired",
    "jwt malformed",
    "jwt is invalid",
    "invalid token",
    "invalid access token",
    "invalid bearer token",
    "token expired",
    "expired token",
    "token is expired",
    "token has expired",
    "token has been expired",
    "token was expired",
    "token is invalid",
    "token provided is expired",
    "token is not valid",
    "token is no longer valid",
    "token revoked",
    "token is revoked",
    "token has been revoked",
    "token was revoked",
    "token malformed",
    "token is malformed",
    "expired jwt",
    "expired access token",
];

impl Says {
    fn fits(&self, text: &str) -> bool {
        match self {
            Phrase(phrases) => has(text, phrases),
            Exactly(phrases) => phrases.contains(&text.trim()),
            Of(subjects, predicates) => subjects.iter().any(|subject| is_said_of(subject, predicates, text)),
            Both(some, others) => has(text, some) && has(text, others),
            Only(vocabulary, phrases) => {
                let is_known = |word: &str| word == "." || vocabulary.contains(&word);
                has(text, phrases) && text.split_whitespace().all(is_known)
            }
        }
    }
}

/// Whether the text has one of the phrases, as whole words.
fn has(text: &str, phrases: &[&str]) -> bool {
    phrases.iter().any(|phrase| positions(text, phrase).next().is_some())
}

/// The text before and after each place where the phrase stands, as whole words.
fn positions<'a>(text: &'a str, phrase: &str) -> impl Iterator<Item = (&'a str, &'a str)> {
    text.match_indices(phrase).filter_map(move |(at, found)| {
        let (before, after) = (&text[..at], &text[at + found.len()..]);
        (before.ends_with(' ') && after.starts_with(' ')).then_some((before, after))
    })
}

fn is_said_of(subject: &str, predicates: &[&str], text: &str) -> bool {
    positions(text, subject).any(|(before, after)| {
        let mut last = before.split_whitespace().rev();
        // "expired refresh token", but not "not an expired refresh token".
        let is_adjective = last.next().is_some_and(|word| predicates.contains(&word));
        is_adjective && !last.any(|word| word == "not")
            || predicates.iter().any(|predicate| begins_with(after, predicate))
    })
}

/// Whether the text begins with the phrase, but for words that may stand between.
fn begins_with(text: &str, phrase: &str) -> bool {
    positions(text, phrase).any(|(before, _)| {
        let mut between = before.split_whitespace();
        between.all(|word| BETWEEN.contains(&word) || word.bytes().any(|byte| byte.is_ascii_digit()))
    })
}

#[cfg(test)]
mod tests {
    use super::Meaning::*;
    use super::*;

    fn of(status: u16, body: &str) -> Meaning {
        Meaning::of(StatusCode::from_u16(status).expect("a status"), body.as_bytes())
    }

    /// The same text in every shape in which the platform or its servers give texts.
    fn shapes(text: &str) -> Vec<String> {
        use serde_json::json;
        vec![
            json!({ "statusCode": 400, "message": text }).to_string(),
            json!({ "statusCode": 400, "message": [text], "error": "Bad Request" }).to_string(),
            json!({ "statusCode": 400, "message": [[text], 7] }).to_string(),
            json!({ "message": { "statusCode": 400, "message": text } }).to_string(),
            json!({ "error": "UnAuthorized!", "error_description": text }).to_string(),
            json!({ "error": text }).to_string(),
            json!({ "error": { "code": "E_1", "message": text, "details": {}, "resolution": "refresh token is invalid" } })
                .to_string(),
            json!([{ "message": text }]).to_string(),
            json!(text).to_string(),
            format!("\u{feff}{}", json!({ "message": text })),
            text.to_owned(),
            format!("  {}\n", text.to_uppercase()),
        ]
    }

    /// Texts of the platform and its relatives.
    const TEXTS: &[(Meaning, &[&str])] = &[
        (
            RefreshTokenInvalid,
            &[
                "Invalid grant: refresh token is invalid",
                "Invalid grant: refresh token has expired",
                "refresh token not found",
                "Refresh token has been revoked.",
                "The refresh token you provided is invalid, expired or revoked",
                "The refresh token, which was already used, is no longer valid",
                "Refresh token does not exist",
                "Refresh token doesn't exist!",
                "refresh_token is invalid",
                "refreshToken is not valid",
                "REFRESH_TOKEN_EXPIRED",
                "invalid refresh token",
                "Expired refresh token: install the app again",
                "Unknown refresh token",
                "refresh token reuse detected",
                "Refresh token for this location not found",
                "The refresh token could not be found",
            ],
        ),
        (GrantInvalid, &["invalid_grant", "Invalid grant", "INVALID_GRANT", "invalid grant."]),
        (
            CodeInvalid,
            &[
                "Authorization code not found",
                "Invalid grant: authorization code is invalid",
                "Invalid grant: authorization code has expired",
                "invalid authorization code",
                "This authorization code has already been used",
            ],
        ),
        (NotInstalled, &["App is not installed", "The app was uninstalled.", "App is no longer installed"]),
        (ClientInvalid, &["Invalid client credentials!", "Invalid client: client is invalid", "invalid_client"]),
        (
            ParameterInvalid,
            &[
                "Invalid parameter: grantType",
                "Missing parameter: clientId",
                "Missing parameter: `refresh_token`",
                "Unsupported grant type: `grant_type` is invalid",
                "Invalid grant: `redirect_uri` is not a valid URI",
            ],
        ),
        (
            Inactive,
            &["Location is not active", "location is inactive", "Company is not active", "The account is suspended"],
        ),
        (
            LocationNotFound,
            &[
                "Location not found",
                "Location does not exist",
                "The location has been deleted.",
                "Location with id HLlocation000000001 not found",
                "Sub-account not found",
            ],
        ),
        (CompanyNotFound, &["Company not found", "The agency does not exist"]),
        (
            NoAccessToLocation,
            &["The token does not have access to this location.", "This location is not accessible from this token!"],
        ),
        (
            NotAllowed,
            &[
                "The token is not authorized for this scope.",
                "This authClass type is not allowed to access this scope. Please verify your IAM configuration if this is not the case.",
                "Token's user type mismatch!",
                "The token does not have access to this company.",
                "Insufficient scope: authorized scope is insufficient",
            ],
        ),
        (
            WrongVersion,
            &[
                "version header was not found.",
                "version header is invalid",
                "Endpoint GET /contacts/ is not available in API version v3. Use 2021-07-28.",
            ],
        ),
        (AboutTheRequest, &["No conversation provider found for this message"]),
        (TimedOut, &["Request Timeout after 30000ms"]),
        (
            AccessTokenInvalid,
            &[
                "Invalid JWT",
                "jwt expired",
                "Invalid token: access token is invalid",
                "Invalid token: access token has expired",
                "The access token has expired.",
                "The access token provided is expired, revoked, malformed, or invalid for other reasons",
                "invalid_token",
                "Unauthorized: token expired",
                "Your token has been revoked",
            ],
        ),
        (
            Unknown,
            &[
                "Something new",
                "Unauthorized",
                "Forbidden resource",
                "the trial has expired",
                "The refresh token is valid",
                "Missing refresh token",
                "Refresh token is required: this grant type is not valid",
                "The access token is fine. Refresh token quota exceeded: 7 tokens expired",
                "access token is invalid for this phone number",
                "This is not an expired refresh token",
                "Your Facebook token expired, please connect it again",
                "Contact not found",
                "Location id is required",
                "Invalid grant: something new",
                "The refresh token request was invalidated",
            ],
        ),
    ];

    #[test]
    fn each_text_means_the_same_in_every_shape_and_with_every_status() {
        for (meaning, texts) in TEXTS {
            for text in *texts {
                for body in shapes(text) {
                    for status in [400, 401, 403, 404, 422] {
                        // Without JSON a 403 is a firewall's, unless it says something that only the platform says.
                        let is_json =
                            serde_json::from_str::<serde_json::Value>(body.trim_start_matches('\u{feff}')).is_ok();
                        let expected = match meaning {
                            Unknown if status == 403 && !is_json => NotReached,
                            _ => *meaning,
                        };
                        assert_eq!(of(status, &body), expected, "{status} {body}");
                    }
                    assert_eq!(of(503, &body), ServerError, "a 5xx says nothing: {body}");
                    assert_eq!(of(429, &body), Throttled, "{body}");
                }
            }
        }
    }

    #[test]
    fn what_says_more_counts_more() {
        for (name, status, body, meaning) in [
            (
                "the message before the code",
                400,
                r#"{"error":"invalid_grant","error_description":"Location is not active"}"#,
                Inactive,
            ),
            (
                "the code where the message says nothing",
                400,
                r#"{"error":{"code":"INVALID_GRANT","message":"Try again"}}"#,
                GrantInvalid,
            ),
            ("a code alone", 400, r#"{"error":{"code":"refresh_token_expired"}}"#, RefreshTokenInvalid),
            (
                "RFC 6749, as another vendor says it",
                400,
                r#"{"error":"invalid_grant","error_description":"Token has been expired or revoked."}"#,
                GrantInvalid,
            ),
            (
                "validation",
                422,
                r#"{"statusCode":422,"message":["locationId must be a string"],"error":"Unprocessable Entity"}"#,
                ParameterInvalid,
            ),
            (
                "a token of another app",
                400,
                r#"{"error":"invalid_grant","error_description":"Invalid grant: refresh token was issued to another client"}"#,
                Unknown,
            ),
            ("validation with another status", 400, r#"{"message":["locationId must be a string"]}"#, Unknown),
            ("422 without more", 422, r#"{"message":"Something new"}"#, Unknown),
            ("an empty object", 400, "{}", Unknown),
            ("nothing", 400, "", Unknown),
            ("nothing, and 401", 401, "", Unknown),
        ] {
            assert_eq!(of(status, body), meaning, "{name}");
        }
    }

    #[test]
    fn what_stands_in_front_of_the_platform_is_told_from_it() {
        let challenge = "<!DOCTYPE html><html><head><title>Just a moment...</title></head></html>";
        for (name, status, body, meaning) in [
            ("a challenge", 403, challenge, NotReached),
            ("a challenge with the older status", 503, challenge, NotReached),
            ("too many, in HTML", 429, challenge, Throttled),
            ("HTML that quotes the platform", 403, "<html>refresh token is invalid</html>", NotReached),
            ("HTML with 400", 400, "<html><h1>400 Bad Request</h1><hr>nginx</html>", NotReached),
            ("HTML with 401", 401, "<html>", NotReached),
            ("a code of Cloudflare", 403, "error code: 1010", NotReached),
            ("another", 403, "error code: 1020\n", NotReached),
            ("with another status", 530, "error code: 1016", NotReached),
            ("with 400", 400, "error code: 1003", NotReached),
            ("its rate limit", 429, "error code: 1015", Throttled),
            (
                "its JSON",
                403,
                r#"{"title":"Error 1010: Access denied","status":403,"cloudflare_error":true}"#,
                NotReached,
            ),
            ("a firewall's word", 403, "Forbidden", NotReached),
            ("a firewall's silence", 403, "", NotReached),
            ("a gateway", 502, "<html><h1>502 Bad Gateway</h1></html>", NotReached),
            ("the platform's own fault", 500, r#"{"message":"Internal server error"}"#, ServerError),
            ("a time-out", 408, "", ServerError),
            ("a redirect", 302, challenge, Redirected),
            ("JSON with 403", 403, r#"{"message":"Forbidden"}"#, Unknown),
        ] {
            assert_eq!(of(status, body), meaning, "{name}");
        }
    }

    #[test]
    fn a_refusal_keeps_a_sample_for_the_operator() {
        let refusal = Refusal::read(StatusCode::BAD_REQUEST, br#"{"error":{"code":"E_7","message":"Something new"}}"#);
        assert_eq!((refusal.meaning, &*refusal.sample), (Unknown, "Something new E_7"));
    }
}
