//! What a company's token is for besides its own calls: `POST /oauth/locationToken` and `GET /oauth/installedLocations`.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::Full;
use serde::Deserialize;
use serde_json::{Map, Value};
use url::Url;

use super::endpoint::{BadGrant, MOST_BYTES, PRESENTATION, TokenEndpoint, encode_form, message, read_grant};
use super::{Access, Grant};
use crate::clock::Millis;
use crate::http_client::{self, Connection, Failure, Limits};
use crate::relay::retry::Unauthorized;
use crate::resource::Resource;
use crate::secrets::{FRESH, SecretError};

/// Both operations are older than v3.
const VERSION: &str = "2021-07-28";
/// The most locations of a page. The platform's default is 20, and 100 works.
pub const PAGE: usize = 100;
/// A page of 100 locations is larger than a token and slower.
const LISTING: Duration = Duration::from_secs(10);
/// A location takes some 200 bytes of a page.
const MOST_BYTES_OF_A_PAGE: usize = 16 * MOST_BYTES;

/// What asking with a company's token came to.
#[derive(Debug)]
pub enum Asked<T> {
    /// What was asked for.
    Got(T),
    /// No connection, no answer, a 5xx, or an answer that cannot be read. All of it can be asked again.
    Unanswered(&'static str),
    /// 429.
    Throttled {
        /// What the platform asks for, if it does.
        retry_after: Option<Duration>,
    },
    /// The platform does not take the company's token; another one may help.
    TokenRefused,
    /// The token is good, and this is not allowed with it: a scope is missing, or it is no company's.
    NotAllowed(String),
    /// The location is paused.
    Suspended,
    /// The company does not have the app there.
    Absent,
    /// A grant for another location than the one asked for.
    WrongTenant,
}

/// An answer as far as the limits are concerned.
#[derive(Debug, Default)]
pub struct Heard {
    /// Its status and headers, if there was one.
    pub limits: Option<(StatusCode, HeaderMap)>,
}

/// A part of the list of locations in which a company has the app.
#[derive(Debug, PartialEq, Eq)]
pub struct Page {
    /// Locations that have it.
    pub installed: Vec<Resource>,
    /// How many entries the page has, those that are skipped included.
    pub entries: usize,
}

/// Connection and deadline of a request that takes a permit. The connection is taken first, then the permit.
#[derive(Debug)]
pub struct Departure {
    /// From [`TokenEndpoint::connection`].
    pub connection: Connection,
    /// The end of the permit: the request leaves by then or not at all.
    pub leave_by: Millis,
}

impl TokenEndpoint {
    /// A connection to the platform's API, for a request that takes a permit.
    ///
    /// # Errors
    /// [`Failure::NotSent`].
    pub async fn connection(&self) -> Result<Connection, Failure> {
        let uri = Uri::try_from(self.beside("/oauth/locationToken").as_str());
        self.connections.connection(&uri.map_err(|error| Failure::NotSent(error.to_string()))?).await
    }

    /// Mints a location's token from its company's. `None` if the permit had ended and nothing was sent.
    pub async fn mint(
        &self,
        company: &Resource,
        access: &Access,
        location: &Resource,
        departure: Departure,
    ) -> Option<(Asked<Box<Grant>>, Heard)> {
        let form = [("companyId", company.id()), ("locationId", location.id())];
        let url = self.beside("/oauth/locationToken");
        let limits = Limits { time: PRESENTATION, body: MOST_BYTES };
        let (answer, heard) = self.ask(Method::POST, &url, encode_form(form.iter()), access, departure, limits).await?;
        let asked = match answer {
            Ok(body) => match read_grant(&body, Some(location)) {
                // A company's own token for a location's would open all of its locations.
                Ok(grant) if grant.company.as_deref().is_some_and(|id| id != company.id()) => Asked::WrongTenant,
                Ok(grant) => Asked::Got(grant.into()),
                Err(BadGrant::Unreadable) => Asked::Unanswered("a grant that cannot be read"),
                Err(BadGrant::WrongTenant) => Asked::WrongTenant,
            },
            Err(otherwise) => otherwise.into(),
        };
        Some((asked, heard))
    }

    /// A page of the locations in which a company has the app, from the entry numbered `skip` on. `None` if
    /// the permit had ended and nothing was sent.
    ///
    /// # Errors
    /// [`SecretError`]: the app's id is part of the query.
    pub async fn installed_locations(
        &self,
        company: &Resource,
        access: &Access,
        skip: usize,
        departure: Departure,
    ) -> Result<Option<(Asked<Page>, Heard)>, SecretError> {
        let app = self.credentials(FRESH).await?;
        let (skip, limit) = (skip.to_string(), PAGE.to_string());
        let query = [
            ("companyId", company.id()),
            ("appId", app.app_id()),
            ("isInstalled", "true"),
            ("skip", &skip),
            ("limit", &limit),
        ];
        let mut url = self.beside("/oauth/installedLocations");
        url.set_query(Some(&encode_form(query.iter())));
        let limits = Limits { time: LISTING, body: MOST_BYTES_OF_A_PAGE };
        let answered = self.ask(Method::GET, &url, String::new(), access, departure, limits).await;
        let Some((answer, heard)) = answered else { return Ok(None) };
        let asked = match answer {
            Ok(body) => read_page(body).map_or(Asked::Unanswered("a list that cannot be read"), Asked::Got),
            Err(otherwise) => otherwise.into(),
        };
        Ok(Some((asked, heard)))
    }

    async fn ask(
        &self,
        method: Method,
        url: &Url,
        form: String,
        access: &Access,
        departure: Departure,
        limits: Limits,
    ) -> Option<(Result<Map<String, Value>, Otherwise>, Heard)> {
        let unanswered = |why| Some((Err(Otherwise::Unanswered(why)), Heard::default()));
        let Some(request) = request(method, url, form, access) else {
            return unanswered("a token that no header may have");
        };
        let Departure { connection, leave_by } = departure;
        let answer = match self.connections.send(Some(connection), request, leave_by, limits).await {
            Ok(answer) => answer,
            Err(Failure::TooLate) => return None,
            Err(Failure::NotSent(_)) => return unanswered("no connection"),
            Err(Failure::TimedOut | Failure::Broken { status: None, .. }) => return unanswered("no answer"),
            Err(Failure::Broken { status: Some(_), .. }) => return unanswered("half an answer"),
            Err(Failure::TooLarge(_)) => return unanswered("an answer that is too large"),
        };
        // A body can hold tokens.
        let body = zeroize::Zeroizing::new(Vec::from(answer.body));
        let retry_after = answer.headers.get(RETRY_AFTER).and_then(|v| v.to_str().ok()?.parse().ok());
        let heard = Heard { limits: Some((answer.status, answer.headers)) };
        Some((classify(answer.status, retry_after, &body), heard))
    }
}

/// A request with a company's token; none where that has a character that no header may have.
fn request(method: Method, url: &Url, form: String, access: &Access) -> Option<Request<Full<Bytes>>> {
    let mut request = Request::new(Full::from(form));
    let headers = request.headers_mut();
    if method == Method::POST {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
    }
    headers.insert(AUTHORIZATION, access.token.header()?.clone());
    headers.insert("version", HeaderValue::from_static(VERSION));
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    headers.insert(USER_AGENT, http_client::USER_AGENT);
    *request.method_mut() = method;
    *request.uri_mut() = Uri::try_from(url.as_str()).ok()?;
    Some(request)
}

/// Everything but an answer that holds what was asked for.
#[derive(Debug, PartialEq)]
enum Otherwise {
    Unanswered(&'static str),
    Throttled { retry_after: Option<Duration> },
    TokenRefused,
    NotAllowed(String),
    Suspended,
    Absent,
}

impl<T> From<Otherwise> for Asked<T> {
    fn from(otherwise: Otherwise) -> Self {
        match otherwise {
            Otherwise::Unanswered(why) => Self::Unanswered(why),
            Otherwise::Throttled { retry_after } => Self::Throttled { retry_after },
            Otherwise::TokenRefused => Self::TokenRefused,
            Otherwise::NotAllowed(text) => Self::NotAllowed(text),
            Otherwise::Suspended => Self::Suspended,
            Otherwise::Absent => Self::Absent,
        }
    }
}

fn classify(status: StatusCode, retry_after: Option<u64>, body: &[u8]) -> Result<Map<String, Value>, Otherwise> {
    let json = serde_json::from_slice::<Value>(body).ok();
    if status.is_success() {
        return match json {
            Some(Value::Object(body)) => Ok(body),
            _ => Err(Otherwise::Unanswered("an answer that cannot be read")),
        };
    }
    if status == StatusCode::TOO_MANY_REQUESTS {
        return Err(Otherwise::Throttled { retry_after: retry_after.map(Duration::from_secs) });
    }
    if !status.is_client_error() || status == StatusCode::REQUEST_TIMEOUT {
        return Err(Otherwise::Unanswered("a status that says nothing"));
    }
    // What is no JSON comes from something before the platform and not from it.
    let Some(json) = json else { return Err(Otherwise::Unanswered("a refusal that cannot be read")) };
    let text = message(&json);
    let lower = text.to_ascii_lowercase();
    Err(if status == StatusCode::UNAUTHORIZED {
        match Unauthorized::of(None, body) {
            Unauthorized::NotTheToken => Otherwise::NotAllowed(text),
            _ => Otherwise::TokenRefused,
        }
    } else if lower.contains("location is not active") {
        Otherwise::Suspended
    } else if lower.contains("timeout after") {
        Otherwise::Unanswered("the platform's own time-out")
    } else {
        Otherwise::Absent
    })
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "_id")]
    id: String,
    #[serde(rename = "isInstalled", default = "yes")]
    is_installed: bool,
}

fn yes() -> bool {
    true
}

fn read_page(mut body: Map<String, Value>) -> Option<Page> {
    let Some(Value::Array(entries)) = body.remove("locations") else { return None };
    let number = entries.len();
    // An entry that cannot be read must not hide the others.
    let read = |entry| serde_json::from_value::<Entry>(entry).ok().filter(|entry| entry.is_installed);
    let installed = entries.into_iter().filter_map(read).filter_map(|entry| Resource::location(&entry.id).ok());
    Some(Page { installed: installed.collect(), entries: number })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn requests_name_the_product_and_the_version_of_the_api() {
        let access = Access {
            token: crate::token::bearer::Bearer::from(&crate::redacted::Redacted::from("t")),
            issued_at: Millis(0),
            expires_at: Millis(1),
            epoch: 1,
            generation: 1,
        };
        let url = Url::parse("https://example.com/oauth/locationToken").expect("a URL");
        let request = request(Method::POST, &url, String::new(), &access).expect("a request");
        let name = concat!("hoopai-relay/", env!("CARGO_PKG_VERSION"));
        assert_eq!(
            (&request.headers()[USER_AGENT], &request.headers()["version"]),
            (&HeaderValue::from_static(name), &HeaderValue::from_static(VERSION))
        );
        assert_eq!(request.headers()[AUTHORIZATION], "Bearer t");
    }

    #[test]
    fn each_refusal_has_its_meaning() {
        let of = |status: u16, body: &str| {
            classify(StatusCode::from_u16(status).expect("a status"), None, body.as_bytes()).expect_err("no grant")
        };
        for (status, body, meaning) in [
            (401, r#"{"message":"Invalid JWT"}"#, Otherwise::TokenRefused),
            (401, r#"{"message":"something new"}"#, Otherwise::TokenRefused),
            (403, r#"{"message":"The token does not have access to this location."}"#, Otherwise::Absent),
            (404, r#"{"message":"Location not found"}"#, Otherwise::Absent),
            (400, r#"{"message":"Location is not active"}"#, Otherwise::Suspended),
            (429, "", Otherwise::Throttled { retry_after: None }),
            (500, "{}", Otherwise::Unanswered("a status that says nothing")),
            (302, "", Otherwise::Unanswered("a status that says nothing")),
            (403, "<html>", Otherwise::Unanswered("a refusal that cannot be read")),
            (
                400,
                r#"{"message":"Request Timeout after 30000ms"}"#,
                Otherwise::Unanswered("the platform's own time-out"),
            ),
            (200, "<html>", Otherwise::Unanswered("an answer that cannot be read")),
        ] {
            assert_eq!(of(status, body), meaning, "{status} {body}");
        }
        let scope = of(401, r#"{"message":"The token is not authorized for this scope."}"#);
        assert!(matches!(scope, Otherwise::NotAllowed(_)), "{scope:?}");
    }

    #[test]
    fn a_page_holds_what_can_be_read_and_says_how_long_it_was() {
        let page = json!({"locations": [{"_id": "L1", "isInstalled": true}, {"_id": "L2", "isInstalled": false},
            {"_id": "../x"}, {"id": "L3"}, {"_id": "L4"}], "count": 900});
        let Value::Object(body) = page else { panic!("an object") };
        let ids = |page: &Page| page.installed.iter().map(|l| l.id().to_owned()).collect::<Vec<_>>();
        let page = read_page(body).expect("a page");
        assert_eq!((ids(&page), page.entries), (vec!["L1".to_owned(), "L4".to_owned()], 5));
        assert_eq!(read_page(Map::new()), None);
    }
}
