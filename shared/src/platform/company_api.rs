//! The system's own requests to the platform's API.
//!
//! | request | in v3 | token | purpose |
//! |---|---|---|---|
//! | `POST /oauth/locationToken` | `/oauth/location-token` | company's | mints a location's token |
//! | `GET /oauth/installedLocations` | `/oauth/installed-locations` | company's | lists the locations that have the app |
//! | `GET /marketplace/app/{appId}/installations` | the same | any installation's | finds out if the installation exists |
//! | `DELETE /marketplace/app/{appId}/installations` | the same | any installation's | uninstalls the app |
//!
//! [`api_versions`](crate::platform::api_versions) decides the version. If the platform says that a request does not
//! exist in a version, the caller sends it again, with another permit. Such an answer says nothing about an
//! installation.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::Full;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use url::Url;

use crate::domain::access::Access;
use crate::domain::api_version::{ApiVersion, OwnCall};
use crate::domain::clock::Millis;
use crate::domain::grant::Grant;
use crate::domain::resource::{Kind, Resource};
use crate::http_client::{self, Connection, ResponseLimits, SendError};
use crate::platform::error_response::{ErrorResponse, Meaning};
use crate::platform::operations::{USUAL, V3};
use crate::platform::rate_limits::RateLimitHeaders;
use crate::platform::text;
use crate::platform::token_endpoint::{BadGrant, MOST_BYTES, PRESENTATION, TokenEndpoint, encode_form, read_grant};
use crate::secrets::{FRESH, SecretError};

/// The most locations on a page. The platform's default is 20; 100 is the most.
const PAGE: usize = 100;
/// Time limit for a page of locations. A page is larger than a token, and slower.
const LISTING: Duration = Duration::from_secs(10);
/// Time limit for the existence of an installation. A webhook waits for the response.
const PRESENCE: Duration = Duration::from_secs(2);
/// Time limit for an uninstall. A company's uninstall ends the installations of all its locations, and may be slow.
const UNINSTALL: Duration = Duration::from_secs(10);
/// The largest page, in bytes. A location takes some 200 bytes.
const MOST_BYTES_OF_A_PAGE: usize = 16 * MOST_BYTES;

/// The existence of an installation, as the platform's response shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// The platform accepts the installation's token.
    Installed,
    /// The platform refuses the token although it is not expired.
    Gone,
    /// The response does not decide. The text says why.
    Unclear(&'static str),
}

/// The result of a request with a company's token.
pub type CompanyApiResult<T> = Result<T, CompanyApiError>;

/// The reason why a request with a company's token failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CompanyApiError {
    /// No connection, no response, a 5xx, or a response that cannot be read. The request can be repeated.
    Unanswered(&'static str),
    /// A gateway or CDN in front of the platform responded. The request can be repeated.
    NotReached,
    /// 429.
    Throttled {
        /// The platform's `Retry-After`, if there is one.
        retry_after: Option<Duration>,
    },
    /// The company's token is expired or malformed. Another token helps.
    TokenRefused,
    /// A 401 with an unknown text, and that text. Another token may help.
    TokenDoubted(String),
    /// The token is valid but does not allow the request: a scope is missing, or it is not a company's token.
    NotAllowed(String),
    /// The platform has paused the location.
    Suspended,
    /// The company does not have the app at this location, or does not have this location.
    Absent,
    /// An error response with an unknown text. It says nothing about the installation.
    Unclassified {
        /// Its status.
        status: StatusCode,
        /// Its text, cut short and without secrets.
        said: String,
    },
    /// The grant is for another location than the requested one.
    WrongTenant,
}

impl CompanyApiError {
    /// The status and the text of an error response with an unknown text.
    pub fn unclassified(&self) -> Option<(StatusCode, &str)> {
        match self {
            Self::TokenDoubted(said) => Some((StatusCode::UNAUTHORIZED, said)),
            Self::Unclassified { status, said } => Some((*status, said)),
            _ => None,
        }
    }
}

/// Head and error of a response, without its body. The limiter learns from it.
#[derive(Debug, Default)]
pub struct ResponseMeta {
    /// The head, if there was a response.
    pub head: Option<ResponseHead>,
    /// The error, if the status was unsuccessful.
    pub error: Option<ErrorResponse>,
}

impl ResponseMeta {
    /// Returns true if the response is a 429 whose headers say that the resource's own limit is used up.
    pub fn is_limit_of_resource(&self) -> bool {
        self.head.as_ref().is_some_and(|ResponseHead { status, headers, .. }| {
            let headers = RateLimitHeaders::read(*status, headers);
            headers.remaining.is_some_and(|left| left <= 0) || headers.refused && headers.out_of_day()
        })
    }
}

/// The head of a response.
#[derive(Debug)]
pub struct ResponseHead {
    /// The instant just before its request was sent.
    pub sent_at: Millis,
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
}

/// One page of the list of locations at which a company has the app.
#[derive(Debug, PartialEq, Eq)]
pub struct LocationsPage {
    /// The locations that have the app.
    pub installed: Vec<Resource>,
    /// The number of entries on the page.
    pub entries: usize,
    /// The number of entries that could not be read and were skipped.
    pub unread: usize,
    /// The position of the next page. `None` on the last page.
    pub next: Option<ListPosition>,
}

/// A position in the list of the locations at which a company has the app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListPosition {
    /// After so many entries. In v3, a list that was not begun in v3 is read from its start.
    Skip(usize),
    /// After the page that named this token, in v3. In v2, the list is read from its start.
    After(String),
}

impl ListPosition {
    /// The start of the list.
    pub const START: Self = Self::Skip(0);

    fn skipped(&self) -> usize {
        if let Self::Skip(entries) = self { *entries } else { 0 }
    }

    fn token(&self) -> Option<&str> {
        if let Self::After(token) = self { Some(token) } else { None }
    }
}

/// Connection and deadline of a request that needs a permit. The connection is taken first, then the permit.
#[derive(Debug)]
pub struct Departure {
    /// From [`TokenEndpoint::connection`].
    pub connection: Connection,
    /// The end of the permit. The request leaves by then or is not sent.
    pub leave_by: Millis,
}

impl TokenEndpoint {
    /// Takes a connection to the platform's API, for a request that needs a permit.
    pub async fn connection(&self) -> Result<Connection, SendError> {
        let uri = Uri::try_from(self.api_url("/oauth/locationToken").as_str());
        self.connections.connection(&uri.map_err(|error| SendError::NotSent(error.to_string()))?).await
    }

    /// Mints a location's token with its company's. `None` if the request must be sent with another permit: the permit
    /// had ended, or the platform wants another version of the API.
    pub async fn mint(
        &self,
        company: &Resource,
        access: &Access,
        location: &Resource,
        departure: Departure,
    ) -> Option<(CompanyApiResult<Box<Grant>>, ResponseMeta)> {
        let form = [("companyId", company.id()), ("locationId", location.id())];
        let version = self.versions.current(OwnCall::Mint).await;
        let url = self.api_url(path_of_minting(version));
        let content = Some(Content { kind: FORM, text: encode_form(form.iter()) });
        let call = Call { own: OwnCall::Mint, version, method: Method::POST, url, content };
        let limits = ResponseLimits { time: PRESENTATION, body: MOST_BYTES };
        let (answer, meta) = self.send(call, access, departure, limits).await?;
        let asked = answer.and_then(|body| match read_grant(&body, Some(location)) {
            // A token of another company must never be stored for this location.
            Ok(grant) if grant.company.as_deref().is_some_and(|id| id != company.id()) => {
                Err(CompanyApiError::WrongTenant)
            }
            Ok(grant) => Ok(grant.into()),
            Err(BadGrant::Unreadable) => Err(CompanyApiError::Unanswered("a grant that cannot be read")),
            Err(BadGrant::WrongTenant) => Err(CompanyApiError::WrongTenant),
        });
        Some((asked, meta))
    }

    /// Reads a page of the locations at which a company has the app, from `position` on. `None` if the request must be sent
    /// with another permit: the permit had ended, or the platform wants another version of the API.
    ///
    /// # Errors
    /// [`SecretError`]: the app's id is part of the query.
    pub async fn installed_locations(
        &self,
        company: &Resource,
        access: &Access,
        position: &ListPosition,
        departure: Departure,
    ) -> Result<Option<(CompanyApiResult<LocationsPage>, ResponseMeta)>, SecretError> {
        let app = self.credentials(FRESH).await?;
        let version = self.versions.current(OwnCall::List).await;
        let (skip, limit) = (position.skipped().to_string(), PAGE.to_string());
        let mut query = vec![("companyId", company.id()), ("appId", app.app_id()), ("isInstalled", "true")];
        match version {
            ApiVersion::V2 => query.extend([("skip", skip.as_str()), ("limit", limit.as_str())]),
            ApiVersion::V3 => {
                query.push(("pageSize", &limit));
                query.extend(position.token().map(|token| ("pageToken", token)));
            }
        }
        let mut url = self.api_url(match version {
            ApiVersion::V2 => "/oauth/installedLocations",
            ApiVersion::V3 => "/oauth/installed-locations",
        });
        url.set_query(Some(&encode_form(query.iter())));
        let call = Call { own: OwnCall::List, version, method: Method::GET, url, content: None };
        let limits = ResponseLimits { time: LISTING, body: MOST_BYTES_OF_A_PAGE };
        let Some((answer, meta)) = self.send(call, access, departure, limits).await else { return Ok(None) };
        let unreadable = CompanyApiError::Unanswered("a list that cannot be read");
        let asked = answer.and_then(|body| read_page(body, position).ok_or(unreadable));
        Ok(Some((asked, meta)))
    }

    /// Finds out if the installation of a token exists. `None` if the request must be sent with another permit: the permit
    /// had ended, or the platform wants another version of the API.
    ///
    /// # Errors
    /// [`SecretError`]: the app's id is part of the path.
    pub async fn presence(
        &self,
        access: &Access,
        departure: Departure,
    ) -> Result<Option<(Presence, ResponseMeta)>, SecretError> {
        let url = self.url_of_installations().await?;
        let version = self.versions.current(OwnCall::Presence).await;
        let call = Call { own: OwnCall::Presence, version, method: Method::GET, url, content: None };
        let limits = ResponseLimits { time: PRESENCE, body: MOST_BYTES_OF_A_PAGE };
        let answered = self.send(call, access, departure, limits).await;
        Ok(answered.map(|(_, meta)| (presence_of(&meta), meta)))
    }

    /// Uninstalls the app from the resource of a token. With a location's token, the platform uninstalls the app from
    /// that location only; with a company's token, from the company and from all its locations. `reason` is for the
    /// platform's records. `None` if the request must be sent with another permit: the permit had ended, or the platform
    /// wants another version of the API.
    ///
    /// Source: the schema `DeleteIntegrationBodyDto` in the platform's description of its API.
    ///
    /// # Errors
    /// [`SecretError`]: the app's id is part of the path.
    pub async fn uninstall(
        &self,
        resource: &Resource,
        access: &Access,
        reason: &str,
        departure: Departure,
    ) -> Result<Option<(CompanyApiResult<()>, ResponseMeta)>, SecretError> {
        let url = self.url_of_installations().await?;
        let member = match resource.kind() {
            Kind::Location => "locationId",
            Kind::Company => "companyId",
        };
        let content = Content { kind: JSON, text: json!({ member: resource.id(), "reason": reason }).to_string() };
        let version = self.versions.current(OwnCall::Uninstall).await;
        let call = Call { own: OwnCall::Uninstall, version, method: Method::DELETE, url, content: Some(content) };
        let limits = ResponseLimits { time: UNINSTALL, body: MOST_BYTES };
        let Some((answer, meta)) = self.send(call, access, departure, limits).await else { return Ok(None) };
        let is_done = |body: &Map<String, Value>| body.get("success") == Some(&Value::Bool(true));
        let asked = answer.and_then(|body| {
            is_done(&body).then_some(()).ok_or(CompanyApiError::Unanswered("an answer that does not report success"))
        });
        Ok(Some((asked, meta)))
    }

    /// The URL of the app's installations. The token of a request tells the platform which of them is meant.
    async fn url_of_installations(&self) -> Result<Url, SecretError> {
        let app = self.credentials(FRESH).await?;
        let mut url = self.api_url("/marketplace/app");
        if let Ok(mut path) = url.path_segments_mut() {
            path.extend([app.app_id(), "installations"]);
        }
        Ok(url)
    }

    async fn send(
        &self,
        call: Call,
        access: &Access,
        departure: Departure,
        limits: ResponseLimits,
    ) -> Option<(Result<Map<String, Value>, CompanyApiError>, ResponseMeta)> {
        let unanswered = |why| Some((Err(CompanyApiError::Unanswered(why)), ResponseMeta::default()));
        let (own, version) = (call.own, call.version);
        let Some(request) = request(call, access) else {
            return unanswered("a token that no header may have");
        };
        let Departure { connection, leave_by } = departure;
        let answer = match self.connections.send(Some(connection), request, leave_by, limits).await {
            Ok(answer) => answer,
            Err(SendError::TooLate) => return None,
            Err(SendError::NotSent(_)) => return unanswered("no connection"),
            Err(SendError::TimedOut | SendError::Broken { status: None, .. }) => return unanswered("no answer"),
            Err(SendError::Broken { status: Some(_), .. }) => return unanswered("half an answer"),
            Err(SendError::TooLarge(_)) => return unanswered("an answer that is too large"),
        };
        // The body may contain tokens.
        let body = zeroize::Zeroizing::new(Vec::from(answer.body));
        let retry_after = answer.headers.get(RETRY_AFTER).and_then(|v| v.to_str().ok()?.parse().ok());
        let error = (!answer.status.is_success()).then(|| ErrorResponse::read(answer.status, &body));
        if error.as_ref().is_some_and(|error| is_about_the_version(own, error)) {
            if self.versions.refused(own, version) {
                return None;
            }
        } else if is_about_the_call(error.as_ref()) {
            self.versions.accepted(own, version).await;
        }
        let asked = match &error {
            None => read_object(&body),
            Some(error) => Err(company_api_error(error, retry_after)),
        };
        let head = ResponseHead { sent_at: answer.sent_at, status: answer.status, headers: answer.headers };
        Some((asked, ResponseMeta { head: Some(head), error }))
    }
}

/// One of the system's own calls, in one version of the API.
struct Call {
    own: OwnCall,
    version: ApiVersion,
    method: Method,
    url: Url,
    content: Option<Content>,
}

/// The body of a call, and its content type.
struct Content {
    kind: &'static str,
    text: String,
}

const FORM: &str = "application/x-www-form-urlencoded";
const JSON: &str = "application/json";

fn path_of_minting(version: ApiVersion) -> &'static str {
    match version {
        ApiVersion::V2 => "/oauth/locationToken",
        ApiVersion::V3 => "/oauth/location-token",
    }
}

/// True if the platform says that a call does not exist in the version in which it was sent. For a path that differs
/// between the versions, a plain 404 counts, too: the platform has been seen to answer so for a path that it does not
/// have.
fn is_about_the_version(own: OwnCall, error: &ErrorResponse) -> bool {
    const PLAIN: [&str; 4] = ["", "not found", "not found not found", "nothing that can be read"];
    let has_one_path = matches!(own, OwnCall::Presence | OwnCall::Uninstall);
    let is_plain = || !has_one_path && PLAIN.contains(&error.sample.to_ascii_lowercase().as_str());
    error.meaning == Meaning::WrongVersion
        || (error.status == StatusCode::NOT_FOUND && error.meaning == Meaning::Unknown && is_plain())
}

/// True if an answer shows that the platform has the call in the version in which it was sent.
fn is_about_the_call(error: Option<&ErrorResponse>) -> bool {
    error.is_none_or(|error| {
        matches!(
            error.meaning,
            Meaning::NoAccessToLocation | Meaning::LocationNotFound | Meaning::NotInstalled | Meaning::Inactive
        )
    })
}

/// The request of a call, with a token. `None` if the token has a character that no header may have.
fn request(call: Call, access: &Access) -> Option<Request<Full<Bytes>>> {
    let Call { version, method, url, content, .. } = call;
    let version = match version {
        ApiVersion::V2 => USUAL,
        ApiVersion::V3 => V3,
    };
    let kind = content.as_ref().map(|content| content.kind);
    let mut request = Request::new(Full::from(content.map(|content| content.text).unwrap_or_default()));
    let headers = request.headers_mut();
    if let Some(kind) = kind {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    }
    headers.insert(AUTHORIZATION, access.token.header()?.clone());
    headers.insert("version", HeaderValue::from_static(version));
    headers.insert(ACCEPT, HeaderValue::from_static(JSON));
    headers.insert(USER_AGENT, http_client::USER_AGENT);
    *request.method_mut() = method;
    *request.uri_mut() = Uri::try_from(url.as_str()).ok()?;
    Some(request)
}

/// Called after an uninstall webhook whose time does not decide. A 401, 403 or 404 confirms the uninstall, also with an
/// unknown text, unless its text is about the token's age, its scopes, the version or an inactive location
/// (docs/decisions/webhooks.md).
fn presence_of(meta: &ResponseMeta) -> Presence {
    let Some(ResponseHead { status, .. }) = &meta.head else { return Presence::Unclear("no answer") };
    if status.is_success() {
        return Presence::Installed;
    }
    let Some(error) = &meta.error else { return Presence::Unclear("an answer that cannot be read") };
    match error.meaning {
        Meaning::NotAllowed | Meaning::WrongVersion => {
            Presence::Unclear("the token may not ask: is the scope oauth.write missing?")
        }
        Meaning::Inactive => Presence::Unclear("the location is not active"),
        Meaning::Throttled | Meaning::ServerError | Meaning::TimedOut | Meaning::Redirected | Meaning::NotReached => {
            Presence::Unclear("the platform gave no verdict")
        }
        Meaning::AccessTokenInvalid
        | Meaning::RefreshTokenInvalid
        | Meaning::GrantInvalid
        | Meaning::CodeInvalid
        | Meaning::NotInstalled
        | Meaning::ClientInvalid
        | Meaning::ParameterInvalid
        | Meaning::NoAccessToLocation
        | Meaning::AboutTheRequest
        | Meaning::LocationNotFound
        | Meaning::CompanyNotFound
        | Meaning::Unknown => match error.status {
            StatusCode::UNAUTHORIZED if error.sample.to_ascii_lowercase().contains("expired") => {
                Presence::Unclear("the token is expired")
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => Presence::Gone,
            _ => Presence::Unclear("an answer without a verdict"),
        },
    }
}

fn read_object(body: &[u8]) -> CompanyApiResult<Map<String, Value>> {
    match text::json(body) {
        Some(Value::Object(body)) => Ok(body),
        _ => Err(CompanyApiError::Unanswered("an answer that cannot be read")),
    }
}

fn company_api_error(error: &ErrorResponse, retry_after: Option<u64>) -> CompanyApiError {
    let ErrorResponse { status, meaning, sample } = error;
    let said = sample.clone();
    match meaning {
        Meaning::ServerError | Meaning::Redirected => CompanyApiError::Unanswered("a status without a verdict"),
        Meaning::TimedOut => CompanyApiError::Unanswered("the platform's own time-out"),
        Meaning::NotReached => CompanyApiError::NotReached,
        Meaning::Throttled => CompanyApiError::Throttled { retry_after: retry_after.map(Duration::from_secs) },
        Meaning::AccessTokenInvalid => CompanyApiError::TokenRefused,
        Meaning::NotAllowed => CompanyApiError::NotAllowed(said),
        Meaning::Inactive => CompanyApiError::Suspended,
        Meaning::NoAccessToLocation | Meaning::LocationNotFound | Meaning::NotInstalled => CompanyApiError::Absent,
        Meaning::Unknown if *status == StatusCode::UNAUTHORIZED => CompanyApiError::TokenDoubted(said),
        Meaning::RefreshTokenInvalid
        | Meaning::GrantInvalid
        | Meaning::CodeInvalid
        | Meaning::ClientInvalid
        | Meaning::ParameterInvalid
        | Meaning::WrongVersion
        | Meaning::AboutTheRequest
        | Meaning::CompanyNotFound
        | Meaning::Unknown => CompanyApiError::Unclassified { status: *status, said },
    }
}

#[derive(Deserialize)]
struct ListedLocation {
    #[serde(rename = "_id")]
    id: String,
    #[serde(rename = "isInstalled", default = "yes")]
    is_installed: bool,
}

fn yes() -> bool {
    true
}

/// Reads the page at `position`: `locations` in v2, `items` and `pagination` in v3.
fn read_page(mut body: Map<String, Value>, position: &ListPosition) -> Option<LocationsPage> {
    let (entries, is_v3) = match (body.remove("locations"), body.remove("items")) {
        (Some(Value::Array(entries)), _) => (entries, false),
        (_, Some(Value::Array(entries))) => (entries, true),
        _ => return None,
    };
    let number = entries.len();
    let next = if is_v3 {
        next_token(body.get("pagination"), position).map(ListPosition::After)
    } else {
        // The member `count` ignores the filter, so it does not show the end of the list. The last page is a short page.
        (number >= PAGE).then(|| ListPosition::Skip(position.skipped() + number))
    };
    let (mut installed, mut unread) = (Vec::new(), 0);
    for entry in entries {
        let entry = serde_json::from_value::<ListedLocation>(entry).ok();
        match entry.map(|entry| (entry.is_installed, Resource::location(&entry.id))) {
            Some((true, Ok(location))) => installed.push(location),
            Some((false, Ok(_))) => {}
            // An entry that cannot be read does not hide the others.
            Some((_, Err(_))) | None => unread += 1,
        }
    }
    Some(LocationsPage { installed, entries: number, unread, next })
}

/// The token of the next page. A token that leads to the same page again is no next page.
fn next_token(pagination: Option<&Value>, position: &ListPosition) -> Option<String> {
    let pagination = pagination?;
    let has_next = pagination.get("hasNextPage").and_then(Value::as_bool).unwrap_or(true);
    let token = pagination.get("nextPageToken")?.as_str().filter(|token| !token.is_empty() && has_next)?;
    (position.token() != Some(token)).then(|| token.to_owned())
}

#[cfg(test)]
mod tests;
