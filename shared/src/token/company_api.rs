//! What a company's token is for besides its own calls: `POST /oauth/locationToken` and `GET /oauth/installedLocations`.

use std::time::Duration;

use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::endpoint::{BadGrant, MOST_BYTES, PRESENTATION, TokenEndpoint, encode_form, read_grant};
use super::{Access, Grant};
use crate::platform::refusal::{Meaning, Refusal};
use crate::platform::text;
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
pub type Asked<T> = Result<T, Otherwise>;

/// Everything but what was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Otherwise {
    /// No connection, no answer, a 5xx, or an answer that cannot be read. All of it can be asked again.
    Unanswered(&'static str),
    /// A page of what stands in front of the platform. It can be asked again.
    NotReached,
    /// 429.
    Throttled {
        /// What the platform asks for, if it does.
        retry_after: Option<Duration>,
    },
    /// The company's token is expired or garbled; another one helps.
    TokenRefused,
    /// A 401 that nobody has classified, and its text; another token may help.
    TokenDoubted(String),
    /// The token is good, and this is not allowed with it: a scope is missing, or it is no company's.
    NotAllowed(String),
    /// The location is paused.
    Suspended,
    /// The company does not have the app there, or has no such location.
    Absent,
    /// An answer that nobody has classified. It says nothing about the installation.
    Unclassified {
        /// Its status.
        status: StatusCode,
        /// Its text, cut and cleaned.
        said: String,
    },
    /// A grant for another location than the one asked for.
    WrongTenant,
}

impl Otherwise {
    /// The status and the text of an answer that nobody has classified.
    #[must_use]
    pub fn unclassified(&self) -> Option<(StatusCode, &str)> {
        match self {
            Self::TokenDoubted(said) => Some((StatusCode::UNAUTHORIZED, said)),
            Self::Unclassified { status, said } => Some((*status, said)),
            _ => None,
        }
    }
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

impl TokenEndpoint {
    /// Mints a location's token from its company's.
    pub async fn mint(&self, company: &Resource, access: &Access, location: &Resource) -> (Asked<Box<Grant>>, Heard) {
        let form = [("companyId", company.id()), ("locationId", location.id())];
        let request = self
            .http
            .post(self.beside("/oauth/locationToken"))
            .header(http::header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(encode_form(form.iter()));
        let (answer, heard) = ask(request.timeout(PRESENTATION), access, MOST_BYTES).await;
        let asked = answer.and_then(|body| match read_grant(&body, Some(location)) {
            // A company's own token for a location's would open all of its locations.
            Ok(grant) if grant.company.as_deref().is_some_and(|id| id != company.id()) => Err(Otherwise::WrongTenant),
            Ok(grant) => Ok(grant.into()),
            Err(BadGrant::Unreadable) => Err(Otherwise::Unanswered("a grant that cannot be read")),
            Err(BadGrant::WrongTenant) => Err(Otherwise::WrongTenant),
        });
        (asked, heard)
    }

    /// A page of the locations in which a company has the app, from the entry numbered `skip` on.
    ///
    /// # Errors
    /// [`SecretError`]: the app's id is part of the query.
    pub async fn installed_locations(
        &self,
        company: &Resource,
        access: &Access,
        skip: usize,
    ) -> Result<(Asked<Page>, Heard), SecretError> {
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
        let (answer, heard) = ask(self.http.get(url).timeout(LISTING), access, MOST_BYTES_OF_A_PAGE).await;
        let unreadable = Otherwise::Unanswered("a list that cannot be read");
        let asked = answer.and_then(|body| read_page(body).ok_or(unreadable));
        Ok((asked, heard))
    }
}

async fn ask(
    request: reqwest::RequestBuilder,
    access: &Access,
    most_bytes: usize,
) -> (Result<Map<String, Value>, Otherwise>, Heard) {
    let Some(bearer) = access.token.header() else {
        return (Err(Otherwise::Unanswered("a token that no header may have")), Heard::default());
    };
    let request = request
        .header(http::header::AUTHORIZATION, bearer)
        .header("version", VERSION)
        .header(http::header::ACCEPT, "application/json");
    let mut answer = match request.send().await {
        Ok(answer) => answer,
        Err(error) if error.is_connect() => return (Err(Otherwise::Unanswered("no connection")), Heard::default()),
        Err(_) => return (Err(Otherwise::Unanswered("no answer")), Heard::default()),
    };
    let (status, headers) = (answer.status(), answer.headers().clone());
    let mut body = zeroize::Zeroizing::new(Vec::new());
    loop {
        match answer.chunk().await {
            Ok(Some(chunk)) if body.len() + chunk.len() <= most_bytes => body.extend_from_slice(&chunk),
            Ok(None) => break,
            Ok(Some(_)) => return (Err(Otherwise::Unanswered("an answer that is too large")), Heard::default()),
            Err(_) => return (Err(Otherwise::Unanswered("half an answer")), Heard::default()),
        }
    }
    let retry_after = headers.get(http::header::RETRY_AFTER).and_then(|v| v.to_str().ok()?.parse().ok());
    (classify(status, retry_after, &body), Heard { limits: Some((status, headers)) })
}

fn classify(status: StatusCode, retry_after: Option<u64>, body: &[u8]) -> Result<Map<String, Value>, Otherwise> {
    if status.is_success() {
        return match text::json(body) {
            Some(Value::Object(body)) => Ok(body),
            _ => Err(Otherwise::Unanswered("an answer that cannot be read")),
        };
    }
    let Refusal { meaning, sample, .. } = Refusal::read(status, body);
    Err(match meaning {
        Meaning::ServerError | Meaning::Redirected => Otherwise::Unanswered("a status that says nothing"),
        Meaning::TimedOut => Otherwise::Unanswered("the platform's own time-out"),
        Meaning::NotReached => Otherwise::NotReached,
        Meaning::Throttled => Otherwise::Throttled { retry_after: retry_after.map(Duration::from_secs) },
        Meaning::AccessTokenInvalid => Otherwise::TokenRefused,
        Meaning::NotAllowed => Otherwise::NotAllowed(sample),
        Meaning::Inactive => Otherwise::Suspended,
        Meaning::NoAccessToLocation | Meaning::LocationNotFound | Meaning::NotInstalled => Otherwise::Absent,
        Meaning::Unknown if status == StatusCode::UNAUTHORIZED => Otherwise::TokenDoubted(sample),
        _ => Otherwise::Unclassified { status, said: sample },
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
    fn each_refusal_has_its_meaning() {
        let of = |status: u16, body: &str| {
            classify(StatusCode::from_u16(status).expect("a status"), None, body.as_bytes()).expect_err("no grant")
        };
        let unclassified = |status: u16, said: &str| Otherwise::Unclassified {
            status: StatusCode::from_u16(status).expect("a status"),
            said: said.into(),
        };
        for (status, body, meaning) in [
            (401, r#"{"message":"Invalid JWT"}"#, Otherwise::TokenRefused),
            (401, r#"{"error":{"message":"Invalid token: access token is invalid"}}"#, Otherwise::TokenRefused),
            (401, r#"{"message":"Something new"}"#, Otherwise::TokenDoubted("Something new".into())),
            (403, r#"{"message":"The token does not have access to this location."}"#, Otherwise::Absent),
            (404, r#"{"message":"Location not found"}"#, Otherwise::Absent),
            (400, r#"{"message":"App is not installed"}"#, Otherwise::Absent),
            (400, r#"{"message":"Location is not active"}"#, Otherwise::Suspended),
            (400, r#"{"message":"Something new"}"#, unclassified(400, "Something new")),
            (403, r#"{"message":"Forbidden"}"#, unclassified(403, "Forbidden")),
            (404, r#"{"message":"Company not found"}"#, unclassified(404, "Company not found")),
            (422, r#"{"message":["companyId must be a string"]}"#, unclassified(422, "companyId must be a string")),
            (404, "Not Found", unclassified(404, "Not Found")),
            (429, "", Otherwise::Throttled { retry_after: None }),
            (500, "{}", Otherwise::Unanswered("a status that says nothing")),
            (302, "", Otherwise::Unanswered("a status that says nothing")),
            (403, "<html>", Otherwise::NotReached),
            (403, "error code: 1020", Otherwise::NotReached),
            (
                400,
                r#"{"message":"Request Timeout after 30000ms"}"#,
                Otherwise::Unanswered("the platform's own time-out"),
            ),
            (200, "<html>", Otherwise::Unanswered("an answer that cannot be read")),
        ] {
            assert_eq!(of(status, body), meaning, "{status} {body}");
        }
        let scope = of(401, r#"{"error":{"message":"The token is not authorized for this scope."}}"#);
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
