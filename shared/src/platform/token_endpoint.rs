//! The token endpoint (RFC 6749 section 3.2), `POST /oauth/token`: its wire format, and the meaning of each response for a
//! refresh and for the exchange of a code. [`crate::platform::error_response`] classifies the error texts.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use http::{HeaderValue, Request, StatusCode, Uri};
use http_body_util::Full;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value};
use url::Url;

use crate::domain::api_version::{ApiVersion, OwnCall};
use crate::domain::clock::Millis;
use crate::domain::grant::Grant;
use crate::domain::redacted::Redacted;
use crate::domain::resource::{Kind, Resource};
use crate::http_client::{self, Connections, NewConnection, ResponseLimits, SendError};
use crate::platform::api_versions::ApiVersions;
use crate::platform::error_response::{ErrorResponse, Meaning};
use crate::platform::operations::V3;
use crate::platform::text;
use crate::secrets::{AppCredentials, Secret, SecretError};

/// Time limit for a new connection to the token endpoint: TCP repeats a lost first packet after 1 s.
const CONNECT: Duration = Duration::from_secs(3);
/// Time limit for the presentation of a refresh token, from the first byte sent to the last byte received. Two
/// presentations and a commit fit into a lease.
pub const PRESENTATION: Duration = Duration::from_secs(5);
/// Time limit for the exchange of a code, which holds no lease.
const EXCHANGE: Duration = Duration::from_secs(8);
/// The largest response, in bytes. A response of the token endpoint has 2 to 5 KB.
pub(super) const MOST_BYTES: usize = 256 * 1024;

/// The outcome of the presentation of a refresh token.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The platform granted a new pair.
    Granted(Box<Grant>),
    /// There was no connection. The platform has not seen the request.
    NotSent,
    /// A gateway or CDN in front of the platform blocked the request. The platform has not seen it.
    NotReached,
    /// 429.
    Throttled {
        /// The platform's `Retry-After`, if there is one.
        retry_after: Option<Duration>,
    },
    /// The platform may have seen the request, and no response can be read.
    Unknown(Cause),
    /// The refresh token is invalid, expired or used.
    Refused,
    /// The platform says that the location or company is deleted.
    Gone,
    /// The platform does not accept the app's client id and secret.
    WrongClient {
        /// The [`fingerprint`] of the credentials that were refused.
        fingerprint: String,
    },
    /// The platform does not accept a parameter. The cause is a bug or a wrong setting of ours.
    BadRequest(String),
    /// The platform has paused the location. The same refresh token works again when the location is active.
    Suspended,
    /// A 4xx with an unknown text.
    Unclassified {
        /// Its status.
        status: StatusCode,
        /// The platform's text, cut short and without secrets.
        message: String,
    },
    /// The grant is for another location or company than the requested one.
    WrongTenant,
    /// The app's credentials cannot be read. Nothing was sent.
    Secret(SecretError),
}

/// The reason why an outcome is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// No response in time.
    TimedOut,
    /// The connection broke after it was made.
    Broken,
    /// A 5xx.
    ServerError(u16),
    /// A 3xx. A token endpoint does not redirect.
    Redirected,
    /// A successful response without a readable grant.
    Unreadable,
    /// A response of a gateway in front of the platform, which may have passed the request on.
    NotReached,
}

/// The reason why a code was not exchanged.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The code was used before, is too old, or is malformed.
    #[error("the code is used, too old or garbage")]
    CodeRefused,
    /// The platform does not accept the app's client id and secret.
    #[error("the platform does not accept the app's client id and secret")]
    WrongClient,
    /// The platform does not accept a parameter, such as the redirect URI.
    #[error("the platform does not accept the request: {0}")]
    BadRequest(String),
    /// The platform has paused the location.
    #[error("the location is not active")]
    Suspended,
    /// The token endpoint takes no request now. The code is not used up.
    #[error("the token endpoint takes no request now")]
    Throttled {
        /// The platform's `Retry-After`, if there is one.
        retry_after: Option<Duration>,
    },
    /// No connection, no response, a 5xx, a response of a gateway, a response that cannot be read, or an unknown text.
    /// The installer can try again in some minutes.
    #[error("the platform is unavailable: {0}")]
    Unavailable(String),
    /// The app's credentials cannot be read.
    #[error(transparent)]
    Secret(SecretError),
}

/// A client of the platform's token endpoint, with the app's credentials.
#[derive(Clone)]
pub struct TokenEndpoint {
    pub(super) connections: Connections,
    pub(super) versions: Arc<ApiVersions>,
    url: Url,
    app: Arc<Secret<AppCredentials>>,
}

impl TokenEndpoint {
    /// The token endpoint of the API at the base URL `api`, with the versions of the API for the system's own calls.
    pub fn new(
        connections: Connections,
        api: &Url,
        app: Arc<Secret<AppCredentials>>,
        versions: Arc<ApiVersions>,
    ) -> Self {
        let mut url = api.clone();
        url.set_path(&format!("{}/oauth/token", api.path().trim_end_matches('/')));
        Self { connections, versions, url, app }
    }

    /// The URL of another path of the same API.
    pub(super) fn api_url(&self, path: &str) -> Url {
        let mut url = self.url.clone();
        let base = url.path().trim_end_matches("/oauth/token").to_owned();
        url.set_path(&format!("{base}{path}"));
        url
    }

    /// The app's credentials, at most `age` old unless Secrets Manager fails.
    pub async fn credentials(&self, age: Duration) -> Result<Arc<AppCredentials>, SecretError> {
        self.app.read_if_older_than(age).await
    }

    /// Re-reads the app's credentials even if the cache is fresh, at most once per `min_interval`. For a caller whose
    /// credentials were just refused.
    pub async fn credentials_again(&self, min_interval: Duration) -> Result<Arc<AppCredentials>, SecretError> {
        self.app.read_again(min_interval).await
    }

    /// Makes a connection for one request to the token endpoint. It is made before the request takes a permit of the
    /// pace, so that a slow handshake uses up no permit.
    ///
    /// # Errors
    /// [`SendError::NotSent`].
    pub async fn new_connection(&self) -> Result<NewConnection, SendError> {
        let uri = Uri::try_from(self.url.as_str()).map_err(|error| SendError::NotSent(error.to_string()))?;
        self.connections.new_connection(&uri, CONNECT).await
    }

    /// Exchanges an authorization code (RFC 6749 section 4.1.3, with the client's credentials in the body). The request
    /// leaves by `send_by`, the end of its permit, or is not sent.
    ///
    /// # Errors
    /// A code is single-use: after most errors the installer must start again.
    pub async fn exchange(
        &self,
        code: &Redacted,
        redirect_uri: &str,
        connection: NewConnection,
        send_by: Option<Millis>,
    ) -> Result<Grant, ExchangeError> {
        let app = self.app.get().await.map_err(ExchangeError::Secret)?;
        let code = [GRANT_OF_CODE, (Field::Code, code.expose()), (Field::RedirectUri, redirect_uri)];
        let latest = self.connections.now() + EXCHANGE;
        let mut answer = self.request(&app, &code, connection, send_by, latest, EXCHANGE).await;
        if matches!(&answer, TokenResponse::Refused(refusal, _) if refusal.meaning == Meaning::ClientInvalid) {
            // The app's secret may have changed a moment ago. A refusal of the client does not use up the code.
            let newer = self.app.read_if_older_than(Duration::ZERO).await.map_err(ExchangeError::Secret)?;
            if fingerprint(&newer) != fingerprint(&app)
                && let Ok(connection) = self.new_connection().await
            {
                let latest = self.connections.now() + EXCHANGE;
                answer = self.request(&newer, &code, connection, None, latest, EXCHANGE).await;
            }
        }
        match answer {
            TokenResponse::Granted(body) => {
                read_grant(&body, None).map_err(|_| ExchangeError::Unavailable("unreadable grant".into()))
            }
            TokenResponse::NotSent => Err(ExchangeError::Unavailable("no connection".into())),
            TokenResponse::Unknown(cause) => Err(ExchangeError::Unavailable(format!("{cause:?}"))),
            TokenResponse::Refused(ErrorResponse { meaning: Meaning::Throttled, .. }, retry_after) => {
                Err(ExchangeError::Throttled { retry_after })
            }
            TokenResponse::Refused(refusal, _) => Err(refusal.into()),
        }
    }

    /// Presents a refresh token once (RFC 6749 section 6). It never retries, except in the other version of the API if
    /// the platform did not understand the request: such a request uses up no token.
    ///
    /// The request leaves by `send_by`, the end of its permit, and by `latest`, the last time at which the lease leaves enough
    /// time, or is not sent. The process may be frozen while it reads the secret.
    pub async fn present(
        &self,
        resource: &Resource,
        refresh: &Redacted,
        connection: NewConnection,
        send_by: Option<Millis>,
        latest: Millis,
    ) -> Outcome {
        let app = match self.app.get().await {
            Ok(app) => app,
            Err(error) => return Outcome::Secret(error),
        };
        let user_type = match resource.kind() {
            Kind::Location => "Location",
            Kind::Company => "Company",
        };
        let form = [GRANT_OF_REFRESH, (Field::RefreshToken, refresh.expose()), (Field::UserType, user_type)];
        match self.request(&app, &form, connection, send_by, latest, PRESENTATION).await {
            TokenResponse::Granted(body) => match read_grant(&body, Some(resource)) {
                Ok(grant) => Outcome::Granted(grant.into()),
                Err(BadGrant::Unreadable) => Outcome::Unknown(Cause::Unreadable),
                Err(BadGrant::WrongTenant) => Outcome::WrongTenant,
            },
            TokenResponse::NotSent => Outcome::NotSent,
            TokenResponse::Unknown(cause) => Outcome::Unknown(cause),
            TokenResponse::Refused(ErrorResponse { meaning, status, sample }, retry_after) => match meaning {
                Meaning::RefreshTokenInvalid | Meaning::GrantInvalid | Meaning::NotInstalled => Outcome::Refused,
                Meaning::LocationNotFound | Meaning::CompanyNotFound => Outcome::Gone,
                Meaning::Inactive => Outcome::Suspended,
                Meaning::ClientInvalid => Outcome::WrongClient { fingerprint: fingerprint(&app) },
                Meaning::ParameterInvalid => Outcome::BadRequest(sample),
                Meaning::Throttled => Outcome::Throttled { retry_after },
                Meaning::NotReached => Outcome::NotReached,
                Meaning::AccessTokenInvalid
                | Meaning::CodeInvalid
                | Meaning::NotAllowed
                | Meaning::NoAccessToLocation
                | Meaning::WrongVersion
                | Meaning::AboutTheRequest
                | Meaning::TimedOut
                | Meaning::ServerError
                | Meaning::Redirected
                | Meaning::Unknown => Outcome::Unclassified { status, message: sample },
            },
        }
    }

    /// Sends a request in the version of the API that works, and in the other version if the platform does not
    /// understand the first. Both together take `time` at most.
    async fn request(
        &self,
        app: &AppCredentials,
        form: &[(Field, &str)],
        connection: NewConnection,
        send_by: Option<Millis>,
        latest: Millis,
        time: Duration,
    ) -> TokenResponse {
        let began = self.connections.now();
        let version = self.versions.current(OwnCall::Token).await;
        let leave_by = send_by.into_iter().fold(latest, Millis::min);
        let first = self.post(version, app, form, connection, leave_by, time).await;
        let other = self.versions.alternative(version).filter(|_| first.is_not_understood());
        let Some(other) = other else {
            if first.is_understood() {
                self.versions.accepted(OwnCall::Token, version).await;
            }
            return first;
        };
        let Ok(connection) = self.new_connection().await else { return first };
        let left = time.saturating_sub(self.connections.now().since(began));
        let second = self.post(other, app, form, connection, latest, left).await;
        if second.is_not_understood() {
            return first;
        }
        if second.is_understood() {
            self.versions.accepted(OwnCall::Token, other).await;
        }
        second
    }

    async fn post(
        &self,
        version: ApiVersion,
        app: &AppCredentials,
        form: &[(Field, &str)],
        connection: NewConnection,
        leave_by: Millis,
        time: Duration,
    ) -> TokenResponse {
        let client = [(Field::ClientId, app.client_id.as_str()), (Field::ClientSecret, app.client_secret.expose())];
        let fields: Vec<_> = client.iter().chain(form).map(|(field, value)| (field.name(version), *value)).collect();
        let Some(mut request) = form_request(&self.url, encode_form(fields.iter())) else {
            return TokenResponse::NotSent;
        };
        if version == ApiVersion::V3 {
            request.headers_mut().insert("version", HeaderValue::from_static(V3));
        }
        // Boxed: the future is large, and every future around it would be as large.
        let answer = Box::pin(self.connections.call_on_new_connection(
            connection,
            request,
            leave_by,
            ResponseLimits { time, body: MOST_BYTES },
        ))
        .await;
        match answer {
            Ok(answer) => {
                let retry_after = answer.headers.get(RETRY_AFTER).and_then(|v| v.to_str().ok()?.parse().ok());
                classify(answer.status, retry_after, answer.body.into())
            }
            Err(SendError::NotSent(_) | SendError::TooLate) => TokenResponse::NotSent,
            Err(SendError::TimedOut) => TokenResponse::Unknown(Cause::TimedOut),
            Err(SendError::Broken { .. }) => TokenResponse::Unknown(Cause::Broken),
            Err(SendError::TooLarge(status)) => classify(status, None, Vec::new()),
        }
    }
}

/// A field of a token request.
#[derive(Clone, Copy, Debug)]
enum Field {
    ClientId,
    ClientSecret,
    Code,
    GrantType,
    RedirectUri,
    RefreshToken,
    UserType,
}

const GRANT_OF_CODE: (Field, &str) = (Field::GrantType, "authorization_code");
const GRANT_OF_REFRESH: (Field, &str) = (Field::GrantType, "refresh_token");

impl Field {
    /// The name: as in RFC 6749 in v2, in camel case in v3.
    fn name(self, version: ApiVersion) -> &'static str {
        let (v2, v3) = match self {
            Self::ClientId => ("client_id", "clientId"),
            Self::ClientSecret => ("client_secret", "clientSecret"),
            Self::Code => ("code", "code"),
            Self::GrantType => ("grant_type", "grantType"),
            Self::RedirectUri => ("redirect_uri", "redirectUri"),
            Self::RefreshToken => ("refresh_token", "refreshToken"),
            Self::UserType => ("user_type", "userType"),
        };
        match version {
            ApiVersion::V2 => v2,
            ApiVersion::V3 => v3,
        }
    }
}

/// A POST of a form, with the product's `User-Agent`.
pub(super) fn form_request(url: &Url, form: String) -> Option<Request<Full<Bytes>>> {
    let mut request = Request::post(Uri::try_from(url.as_str()).ok()?).body(Full::from(form)).ok()?;
    let headers = request.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    headers.insert(USER_AGENT, http_client::USER_AGENT);
    Some(request)
}

/// The response to any request to the token endpoint, classified.
#[derive(Debug, PartialEq)]
enum TokenResponse {
    Granted(Map<String, Value>),
    NotSent,
    Unknown(Cause),
    /// An error response, and its `Retry-After`.
    Refused(ErrorResponse, Option<Duration>),
}

impl TokenResponse {
    /// True if the platform did not read the fields: the endpoint does not exist in this version of the API, or fields
    /// are missing that every request has. Such a request uses up no token and no code.
    fn is_not_understood(&self) -> bool {
        match self {
            // The path is the same in both versions, so a 404 is not about the version.
            Self::Refused(ErrorResponse { meaning: Meaning::WrongVersion, status, .. }, _) => {
                *status != StatusCode::NOT_FOUND
            }
            Self::Refused(ErrorResponse { meaning: Meaning::ParameterInvalid, status, sample }, _) => {
                *status == StatusCode::UNPROCESSABLE_ENTITY || sample.to_ascii_lowercase().contains("missing parameter")
            }
            _ => false,
        }
    }

    /// True if the answer shows that the platform has read the fields.
    fn is_understood(&self) -> bool {
        match self {
            Self::Granted(_) => true,
            Self::Refused(ErrorResponse { meaning, .. }, _) => {
                !matches!(meaning, Meaning::Throttled | Meaning::NotReached | Meaning::Unknown | Meaning::WrongVersion)
                    && !self.is_not_understood()
            }
            Self::NotSent | Self::Unknown(_) => false,
        }
    }
}

fn classify(status: StatusCode, retry_after: Option<u64>, body: Vec<u8>) -> TokenResponse {
    // The body may contain tokens, with any status.
    let body = zeroize::Zeroizing::new(body);
    if status.is_success() {
        return match text::json(&body) {
            Some(Value::Object(body)) => TokenResponse::Granted(body),
            _ => TokenResponse::Unknown(Cause::Unreadable),
        };
    }
    let refusal = ErrorResponse::read(status, &body);
    match refusal.meaning {
        Meaning::ServerError => TokenResponse::Unknown(Cause::ServerError(status.as_u16())),
        Meaning::Redirected => TokenResponse::Unknown(Cause::Redirected),
        Meaning::TimedOut => TokenResponse::Unknown(Cause::TimedOut),
        // A 403 is the CDN's block page: the platform has not seen the request. Any other page may come after the platform has.
        Meaning::NotReached if status != StatusCode::FORBIDDEN => TokenResponse::Unknown(Cause::NotReached),
        Meaning::AccessTokenInvalid
        | Meaning::RefreshTokenInvalid
        | Meaning::GrantInvalid
        | Meaning::CodeInvalid
        | Meaning::NotInstalled
        | Meaning::ClientInvalid
        | Meaning::ParameterInvalid
        | Meaning::NotAllowed
        | Meaning::NoAccessToLocation
        | Meaning::WrongVersion
        | Meaning::AboutTheRequest
        | Meaning::Inactive
        | Meaning::LocationNotFound
        | Meaning::CompanyNotFound
        | Meaning::Throttled
        | Meaning::NotReached
        | Meaning::Unknown => TokenResponse::Refused(refusal, retry_after.map(Duration::from_secs)),
    }
}

impl From<ErrorResponse> for ExchangeError {
    fn from(ErrorResponse { meaning, status, sample }: ErrorResponse) -> Self {
        match meaning {
            Meaning::CodeInvalid
            | Meaning::GrantInvalid
            | Meaning::RefreshTokenInvalid
            | Meaning::NotInstalled
            | Meaning::LocationNotFound
            | Meaning::CompanyNotFound => Self::CodeRefused,
            Meaning::ClientInvalid => Self::WrongClient,
            Meaning::ParameterInvalid => Self::BadRequest(sample),
            Meaning::Inactive => Self::Suspended,
            Meaning::AccessTokenInvalid
            | Meaning::NotAllowed
            | Meaning::NoAccessToLocation
            | Meaning::WrongVersion
            | Meaning::AboutTheRequest
            | Meaning::TimedOut
            | Meaning::Throttled
            | Meaning::ServerError
            | Meaning::Redirected
            | Meaning::NotReached
            | Meaning::Unknown => Self::Unavailable(format!("{meaning:?}, {status}: {sample}")),
        }
    }
}

#[derive(Debug, PartialEq)]
pub(super) enum BadGrant {
    Unreadable,
    WrongTenant,
}

/// Reads a grant in the mixed case of v2 or the camel case of v3. `expected` is the resource that was requested. A grant
/// without ids is taken to be for it; a grant with another id is refused.
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

/// The life of an access token: `expires_in` in seconds, clamped to 60 s … 24 h. If it cannot be read, an hour is assumed.
/// Too short a life costs a refresh; too long a life costs a 401 and a refresh.
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

/// A digest that identifies credentials without revealing them. It shows if the credentials have changed since the
/// platform refused them.
pub fn fingerprint(app: &AppCredentials) -> String {
    let mut digest = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    for part in [b"hoopai-relay client".as_slice(), app.client_id.as_bytes(), app.client_secret.expose().as_bytes()] {
        digest.update(&(part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    hex::encode(&digest.finish().as_ref()[..8])
}

pub(super) fn encode_form<'a>(fields: impl Iterator<Item = &'a (&'a str, &'a str)>) -> String {
    let encode = |text| utf8_percent_encode(text, NON_ALPHANUMERIC);
    fields.map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect::<Vec<_>>().join("&")
}

#[cfg(test)]
mod tests;
