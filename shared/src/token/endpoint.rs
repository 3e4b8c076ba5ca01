//! `POST /oauth/token`: its wire format, and what each answer means. All of the platform's texts are in this file.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use http::{HeaderValue, Request, StatusCode, Uri};
use http_body_util::Full;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value};
use url::Url;

use super::Grant;
use crate::clock::Millis;
use crate::http_client::{self, Connections, Failure, Limits};
use crate::redacted::Redacted;
use crate::resource::{Kind, Resource};
use crate::secrets::{AppCredentials, Secret, SecretError};

/// The time from the first byte sent to the last received. Two presentations and a commit fit into a lease.
pub const PRESENTATION: Duration = Duration::from_secs(5);
/// The same for the exchange of a code, which holds no lease.
const EXCHANGE: Duration = Duration::from_secs(10);
/// An answer of the token endpoint is 2 to 5 KB.
pub(super) const MOST_BYTES: usize = 256 * 1024;

/// What a presentation of a refresh token came to.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// A new pair.
    Granted(Box<Grant>),
    /// No connection: the request was certainly not seen.
    NotSent,
    /// 429.
    Throttled {
        /// What the platform asks for, if it does.
        retry_after: Option<Duration>,
    },
    /// The request was or may have been seen, and there is no answer that can be read.
    Unknown(Cause),
    /// The refresh token is invalid, expired or used.
    Refused,
    /// The platform does not accept the app's client id and secret.
    WrongClient {
        /// The credentials that were refused.
        fingerprint: String,
    },
    /// The platform does not accept a parameter: a bug or a wrong setting of ours.
    BadRequest(String),
    /// The location is paused; the same refresh token works once it is active again.
    Suspended,
    /// A 4xx that nobody has classified.
    Unclassified {
        /// Its status.
        status: StatusCode,
        /// The platform's `message`, cut and cleaned.
        message: String,
    },
    /// A grant for another location or company than the one asked for.
    WrongTenant,
    /// The app's credentials cannot be read; nothing was sent.
    Secret(SecretError),
}

/// Why an outcome is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// No answer in time.
    TimedOut,
    /// The connection broke after it was made.
    Broken,
    /// A 5xx.
    ServerError(u16),
    /// A 3xx, which no token endpoint answers.
    Redirected,
    /// A 200 that holds no grant.
    Unreadable,
}

/// Why a code was not exchanged.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The code is used, too old or garbage.
    #[error("the code is used, too old or garbage")]
    CodeRefused,
    /// The platform does not accept the app's client id and secret.
    #[error("the platform does not accept the app's client id and secret")]
    WrongClient,
    /// The platform does not accept a parameter, such as the redirect URI.
    #[error("the platform does not accept the request: {0}")]
    BadRequest(String),
    /// The location is paused.
    #[error("the location is not active")]
    Suspended,
    /// No connection, no answer, a 429, a 5xx, or an answer that cannot be read.
    #[error("the platform is unavailable: {0}")]
    Unavailable(String),
    /// The app's credentials cannot be read.
    #[error(transparent)]
    Secret(SecretError),
}

/// The platform's token endpoint, as this app uses it.
#[derive(Clone)]
pub struct TokenEndpoint {
    pub(super) connections: Connections,
    url: Url,
    app: Arc<Secret<AppCredentials>>,
}

impl TokenEndpoint {
    /// The endpoint under `api`.
    #[must_use]
    pub fn new(connections: Connections, api: &Url, app: Arc<Secret<AppCredentials>>) -> Self {
        let mut url = api.clone();
        url.set_path(&format!("{}/oauth/token", api.path().trim_end_matches('/')));
        Self { connections, url, app }
    }

    /// Another path of the same API.
    pub(super) fn beside(&self, path: &str) -> Url {
        let mut url = self.url.clone();
        let base = url.path().trim_end_matches("/oauth/token").to_owned();
        url.set_path(&format!("{base}{path}"));
        url
    }

    /// The app's credentials, at most `age` old where they can be read.
    ///
    /// # Errors
    /// [`SecretError`].
    pub async fn credentials(&self, age: Duration) -> Result<Arc<AppCredentials>, SecretError> {
        self.app.read_if_older_than(age).await
    }

    /// The app's credentials, read again however new they are, but so at most once in `apart`: for who was refused
    /// with them.
    ///
    /// # Errors
    /// [`SecretError`].
    pub async fn credentials_again(&self, apart: Duration) -> Result<Arc<AppCredentials>, SecretError> {
        self.app.read_again(apart).await
    }

    /// Exchanges an authorization code (RFC 6749 section 4.1.3, with the client in the body).
    ///
    /// # Errors
    /// [`ExchangeError`]. A code is single use: after most errors the human starts again.
    pub async fn exchange(&self, code: &Redacted, redirect_uri: &str) -> Result<Grant, ExchangeError> {
        let app = self.app.get().await.map_err(ExchangeError::Secret)?;
        let code = [("grant_type", "authorization_code"), ("code", code.expose()), ("redirect_uri", redirect_uri)];
        let mut answer = self.post(&app, &code, EXCHANGE, self.connections.now() + EXCHANGE).await;
        if matches!(answer, Answer::WrongClient) {
            // A secret that was changed a moment ago: the code is still good, for the client was not.
            let newer = self.app.read_if_older_than(Duration::ZERO).await.map_err(ExchangeError::Secret)?;
            if fingerprint(&newer) != fingerprint(&app) {
                answer = self.post(&newer, &code, EXCHANGE, self.connections.now() + EXCHANGE).await;
            }
        }
        match answer {
            Answer::Granted(body) => {
                read_grant(&body, None).map_err(|_| ExchangeError::Unavailable("unreadable grant".into()))
            }
            Answer::CodeRefused | Answer::TokenRefused => Err(ExchangeError::CodeRefused),
            Answer::WrongClient => Err(ExchangeError::WrongClient),
            Answer::BadRequest(message) => Err(ExchangeError::BadRequest(message)),
            Answer::Suspended => Err(ExchangeError::Suspended),
            Answer::NotSent => Err(ExchangeError::Unavailable("no connection".into())),
            Answer::Throttled { .. } => Err(ExchangeError::Unavailable("throttled".into())),
            Answer::Unknown(cause) => Err(ExchangeError::Unavailable(format!("{cause:?}"))),
            Answer::Unclassified { status, message } => Err(ExchangeError::BadRequest(format!("{status}: {message}"))),
        }
    }

    /// Presents a refresh token once (RFC 6749 section 6). Nothing is retried here.
    ///
    /// The request leaves within [`PRESENTATION`] from now or not at all: the caller has looked at its lease, and reading
    /// the secret or connecting may take longer than the lease where the process is frozen meanwhile.
    pub async fn present(&self, resource: &Resource, refresh: &Redacted) -> Outcome {
        let leave_by = self.connections.now() + PRESENTATION;
        let app = match self.app.get().await {
            Ok(app) => app,
            Err(error) => return Outcome::Secret(error),
        };
        let user_type = match resource.kind() {
            Kind::Location => "Location",
            Kind::Company => "Company",
        };
        let form = [("grant_type", "refresh_token"), ("refresh_token", refresh.expose()), ("user_type", user_type)];
        match self.post(&app, &form, PRESENTATION, leave_by).await {
            Answer::Granted(body) => match read_grant(&body, Some(resource)) {
                Ok(grant) => Outcome::Granted(grant.into()),
                Err(BadGrant::Unreadable) => Outcome::Unknown(Cause::Unreadable),
                Err(BadGrant::WrongTenant) => Outcome::WrongTenant,
            },
            Answer::TokenRefused => Outcome::Refused,
            Answer::WrongClient => Outcome::WrongClient { fingerprint: fingerprint(&app) },
            Answer::BadRequest(message) => Outcome::BadRequest(message),
            Answer::Suspended => Outcome::Suspended,
            Answer::NotSent => Outcome::NotSent,
            Answer::Throttled { retry_after } => Outcome::Throttled { retry_after },
            Answer::Unknown(cause) => Outcome::Unknown(cause),
            Answer::CodeRefused => {
                Outcome::Unclassified { status: StatusCode::UNAUTHORIZED, message: "about a code".into() }
            }
            Answer::Unclassified { status, message } => Outcome::Unclassified { status, message },
        }
    }

    async fn post(&self, app: &AppCredentials, form: &[(&str, &str)], time: Duration, leave_by: Millis) -> Answer {
        let client = [("client_id", app.client_id.as_str()), ("client_secret", app.client_secret.expose())];
        let Some(request) = form_request(&self.url, encode_form(client.iter().chain(form))) else {
            return Answer::NotSent;
        };
        let answer = self.connections.call_apart(request, leave_by, Limits { time, body: MOST_BYTES }).await;
        match answer {
            Ok(answer) => {
                let retry_after = answer.headers.get(RETRY_AFTER).and_then(|v| v.to_str().ok()?.parse().ok());
                classify(answer.status, retry_after, answer.body.into())
            }
            Err(Failure::NotSent(_) | Failure::TooLate) => Answer::NotSent,
            Err(Failure::TimedOut) => Answer::Unknown(Cause::TimedOut),
            Err(Failure::Broken { .. }) => Answer::Unknown(Cause::Broken),
            Err(Failure::TooLarge(status)) => classify(status, None, Vec::new()),
        }
    }
}

/// A form for the platform, from the product under its name.
pub(super) fn form_request(url: &Url, form: String) -> Option<Request<Full<Bytes>>> {
    let mut request = Request::post(Uri::try_from(url.as_str()).ok()?).body(Full::from(form)).ok()?;
    let headers = request.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    headers.insert(USER_AGENT, http_client::USER_AGENT);
    Some(request)
}

/// What an answer of the token endpoint means, whatever was asked.
#[derive(Debug, PartialEq)]
enum Answer {
    Granted(Map<String, Value>),
    NotSent,
    Throttled { retry_after: Option<Duration> },
    Unknown(Cause),
    TokenRefused,
    CodeRefused,
    WrongClient,
    BadRequest(String),
    Suspended,
    Unclassified { status: StatusCode, message: String },
}

fn classify(status: StatusCode, retry_after: Option<u64>, body: Vec<u8>) -> Answer {
    let json = serde_json::from_slice::<Value>(&body).ok();
    // A body can hold tokens, whatever the status.
    drop(zeroize::Zeroizing::new(body));
    if status.is_success() {
        return match json {
            Some(Value::Object(body)) => Answer::Granted(body),
            _ => Answer::Unknown(Cause::Unreadable),
        };
    }
    if status == StatusCode::TOO_MANY_REQUESTS {
        return Answer::Throttled { retry_after: retry_after.map(Duration::from_secs) };
    }
    if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT {
        return Answer::Unknown(Cause::ServerError(status.as_u16()));
    }
    if !status.is_client_error() {
        return Answer::Unknown(Cause::Redirected);
    }
    let message = json.as_ref().map(message).unwrap_or_default();
    let text = message.to_ascii_lowercase();
    let has = |part: &str| text.contains(part);
    if has("refresh token is invalid") || has("invalid refresh token") || has("invalid_grant") {
        Answer::TokenRefused
    } else if has("location is not active") {
        Answer::Suspended
    } else if has("authorization code") {
        Answer::CodeRefused
    } else if has("invalid client") || has("invalid_client") {
        Answer::WrongClient
    } else if has("timeout after") {
        // "Request Timeout after 30000ms" comes as a 400 and says nothing of what was done.
        Answer::Unknown(Cause::TimedOut)
    } else if has("invalid parameter") || has("missing parameter") || status == StatusCode::UNPROCESSABLE_ENTITY {
        Answer::BadRequest(message)
    } else {
        Answer::Unclassified { status, message }
    }
}

/// What the platform says in words: `message` (text or list of texts), `error_description` and `error`, cut short and
/// without anything that looks like a token.
pub(super) fn message(body: &Value) -> String {
    let mut words = Vec::new();
    for member in ["message", "error_description", "error"] {
        match &body[member] {
            Value::String(text) => words.push(text.as_str()),
            Value::Array(texts) => words.extend(texts.iter().filter_map(Value::as_str)),
            _ => {}
        }
    }
    let clean = |word: &str| if word.len() > 40 { "…".to_owned() } else { word.replace(char::is_control, "") };
    let text: Vec<_> = words.iter().flat_map(|text| text.split_whitespace()).map(clean).collect();
    text.join(" ").chars().take(200).collect()
}

#[derive(Debug, PartialEq)]
pub(super) enum BadGrant {
    Unreadable,
    WrongTenant,
}

/// Reads a grant in the mixed case of v2 or the camel case of v3. `expected` is whose refresh token was presented: an
/// answer that leaves the ids out is believed to be for it, one that names another is not.
pub(super) fn read_grant(body: &Map<String, Value>, expected: Option<&Resource>) -> Result<Grant, BadGrant> {
    let text = |names: &[&str]| {
        names.iter().find_map(|name| body.get(*name)?.as_str().filter(|text| !text.is_empty()).map(str::to_owned))
    };
    let access = text(&["access_token", "accessToken"]).ok_or(BadGrant::Unreadable)?;
    let (location, company) = (text(&["locationId"]), text(&["companyId"]));
    let resource = match text(&["userType", "user_type"]).as_deref() {
        Some("Location") => location.as_deref().map(Resource::location),
        Some("Company") => company.as_deref().map(Resource::company),
        _ => location.as_deref().map(Resource::location).or(company.as_deref().map(Resource::company)),
    };
    let resource = match (resource, expected) {
        (Some(Ok(found)), Some(expected)) if found != *expected => return Err(BadGrant::WrongTenant),
        (Some(Err(_)), Some(_)) => return Err(BadGrant::WrongTenant),
        (Some(Ok(found)), _) => found,
        (None, Some(expected)) => expected.clone(),
        (Some(Err(_)) | None, None) => return Err(BadGrant::Unreadable),
    };
    Ok(Grant {
        resource,
        company,
        access: access.into(),
        refresh: text(&["refresh_token", "refreshToken"]).map(Redacted::from),
        expires_in: life(body.get("expires_in").or_else(|| body.get("expiresIn"))),
        scope: text(&["scope"]),
        bulk: body.get("isBulkInstallation").and_then(Value::as_bool).unwrap_or(false),
    })
}

/// The life of an access token: what the platform says in seconds, within 60 s … 24 h. Where it says nothing that can
/// be read, an hour: short of the truth costs a refresh, beyond it costs a 401 and a refresh.
fn life(expires_in: Option<&Value>) -> Duration {
    let seconds = match expires_in {
        Some(Value::Number(number)) => number.as_f64(),
        Some(Value::String(text)) => text.trim().parse().ok(),
        _ => None,
    };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 60 … 86,400 first")]
    seconds
        .filter(|s: &f64| s.is_finite())
        .map_or(Duration::from_hours(1), |s| Duration::from_secs(s.clamp(60.0, 86_400.0) as u64))
}

/// Names credentials without telling them: which pair was refused, so that a new one is tried at once.
#[must_use]
pub fn fingerprint(app: &AppCredentials) -> String {
    let mut digest = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    for part in [b"hoopai-relay client".as_slice(), app.client_id.as_bytes(), app.client_secret.expose().as_bytes()] {
        digest.update(&(part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    digest.finish().as_ref()[..8].iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
}

pub(super) fn encode_form<'a>(fields: impl Iterator<Item = &'a (&'a str, &'a str)>) -> String {
    let encode = |text| utf8_percent_encode(text, NON_ALPHANUMERIC);
    fields.map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect::<Vec<_>>().join("&")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn answer(status: u16, body: &str) -> Answer {
        classify(StatusCode::from_u16(status).expect("a status"), None, body.as_bytes().to_vec())
    }

    #[test]
    fn each_text_of_the_platform_has_its_meaning() {
        for (status, body, meaning) in [
            (400, r#"{"statusCode":400,"message":"Invalid grant: refresh token is invalid"}"#, Answer::TokenRefused),
            (400, r#"{"statusCode":400,"message":"Location is not active"}"#, Answer::Suspended),
            (
                401,
                r#"{"error":"UnAuthorized!","error_description":"Authorization code not found"}"#,
                Answer::CodeRefused,
            ),
            (
                401,
                r#"{"error":"UnAuthorized!","error_description":"Invalid client credentials!"}"#,
                Answer::WrongClient,
            ),
            (
                400,
                r#"{"statusCode":400,"message":"Missing parameter: clientId"}"#,
                Answer::BadRequest("Missing parameter: clientId".into()),
            ),
            (400, r#"{"message":"Request Timeout after 30000ms"}"#, Answer::Unknown(Cause::TimedOut)),
            (500, r#"{"message":"refresh token is invalid"}"#, Answer::Unknown(Cause::ServerError(500))),
            (502, "<html>", Answer::Unknown(Cause::ServerError(502))),
            (302, "", Answer::Unknown(Cause::Redirected)),
            (200, "<html>", Answer::Unknown(Cause::Unreadable)),
            (200, r#"{"access_token":"#, Answer::Unknown(Cause::Unreadable)),
            (429, "", Answer::Throttled { retry_after: None }),
            (
                403,
                "<html>refresh token is invalid</html>",
                Answer::Unclassified { status: StatusCode::FORBIDDEN, message: String::new() },
            ),
        ] {
            assert_eq!(answer(status, body), meaning, "{status} {body}");
        }
        let list = r#"{"statusCode":422,"message":["a must be set","b too"],"error":"Unprocessable Entity"}"#;
        assert_eq!(answer(422, list), Answer::BadRequest("a must be set b too Unprocessable Entity".into()));
    }

    #[test]
    fn a_message_is_told_without_what_may_be_a_token() {
        let long = "x".repeat(500);
        let text = message(&json!({"message": format!("bad token {long} given\u{7}")}));
        assert_eq!(text, "bad token … given");
    }

    fn grant(body: Value, expected: Option<&Resource>) -> Result<Grant, BadGrant> {
        let Value::Object(body) = body else { panic!("an object") };
        read_grant(&body, expected)
    }

    #[test]
    fn grants_are_read_in_both_spellings_and_belong_to_whom_they_say() {
        let location = Resource::location("L1").expect("valid");
        let v2 = json!({"access_token":"a","refresh_token":"r","expires_in":86399,"userType":"Location",
            "locationId":"L1","companyId":"C1"});
        let read = grant(v2.clone(), None).expect("readable");
        assert_eq!((read.resource, read.company.as_deref()), (location.clone(), Some("C1")));
        let v3 = json!({"accessToken":"a","refreshToken":"r","expiresIn":86399,"userType":"Company",
            "companyId":"C1","isBulkInstallation":true});
        let read = grant(v3, None).expect("readable");
        assert_eq!((read.resource.to_string().as_str(), read.bulk), ("company:C1", true));
        let other = Resource::location("L2").expect("valid");
        assert_eq!(grant(v2, Some(&other)).err(), Some(BadGrant::WrongTenant));
        let bare = json!({"access_token":"a"});
        assert_eq!(grant(bare.clone(), Some(&location)).expect("ours").resource, location);
        assert_eq!(grant(bare, None).err(), Some(BadGrant::Unreadable));
        assert_eq!(grant(json!({"access_token":""}), Some(&location)).err(), Some(BadGrant::Unreadable));
    }

    #[test]
    fn lives_are_clamped() {
        for (said, seconds) in [
            (json!(86399), 86_399),
            (json!("86399"), 86_399),
            (json!(0), 60),
            (json!(-1), 60),
            (json!(1e12), 86_400),
            (json!("soon"), 3_600),
            (json!("NaN"), 3_600),
            (Value::Null, 3_600),
        ] {
            assert_eq!(life(Some(&said)), Duration::from_secs(seconds), "{said}");
        }
    }

    #[test]
    fn form_values_survive() {
        assert_eq!(encode_form([("a", "x+y z&=%é")].iter()), "a=x%2By%20z%26%3D%25%C3%A9");
    }
}
