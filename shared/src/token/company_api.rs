//! The system's own questions to the platform's API: `POST /oauth/locationToken` and `GET /oauth/installedLocations`
//! with a company's token, and `GET /marketplace/app/{appId}/installations` with any installation's.

use std::time::Duration;

use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::endpoint::{BadGrant, MOST_BYTES, PRESENTATION, TokenEndpoint, encode_form, message, read_grant};
use super::presence::Presence;
use super::{Access, Grant};
use crate::relay::retry::Unauthorized;
use crate::resource::Resource;
use crate::secrets::{FRESH, SecretError};

/// Both operations are older than v3.
const VERSION: &str = "2021-07-28";
/// The most locations of a page. The platform's default is 20, and 100 works.
pub const PAGE: usize = 100;
/// A page of 100 locations is larger than a token and slower.
const LISTING: Duration = Duration::from_secs(10);
/// A webhook waits for the answer.
const PRESENCE: Duration = Duration::from_secs(2);
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
    /// The platform's `message` of a refusal.
    pub said: String,
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
        let asked = match answer {
            Ok(body) => read_page(body).map_or(Asked::Unanswered("a list that cannot be read"), Asked::Got),
            Err(otherwise) => otherwise.into(),
        };
        Ok((asked, heard))
    }

    /// Asks if the app is installed where this token comes from. Also the answer as far as the limits are concerned.
    ///
    /// # Errors
    /// [`SecretError`]: the app's id is part of the path.
    pub async fn presence(&self, access: &Access) -> Result<(Presence, Heard), SecretError> {
        let app = self.credentials(FRESH).await?;
        let mut url = self.beside("/marketplace/app");
        if let Ok(mut path) = url.path_segments_mut() {
            path.extend([app.app_id(), "installations"]);
        }
        let (answer, heard) = ask(self.http.get(url).timeout(PRESENCE), access, MOST_BYTES_OF_A_PAGE).await;
        let status = heard.limits.as_ref().map(|(status, _)| *status);
        Ok((presence_of(answer.as_ref().err(), status, &heard.said), heard))
    }
}

/// A refusal proves that the app is gone only if it is about the token, and not about its age, its scopes or the request.
fn presence_of(refusal: Option<&Otherwise>, status: Option<StatusCode>, said: &str) -> Presence {
    let Some(status) = status else { return Presence::Unclear("no answer") };
    if status.is_success() {
        return Presence::Installed;
    }
    match (status, refusal) {
        (StatusCode::UNAUTHORIZED, _) if said.to_ascii_lowercase().contains("expired") => {
            Presence::Unclear("the token is expired")
        }
        (_, Some(Otherwise::NotAllowed(_))) => {
            Presence::Unclear("the token may not ask: is the scope oauth.write missing?")
        }
        (_, Some(Otherwise::Suspended)) => Presence::Unclear("the location is not active"),
        // A body that is no JSON comes from a CDN in front of the platform.
        (StatusCode::FORBIDDEN | StatusCode::NOT_FOUND, Some(Otherwise::Unanswered(why))) => Presence::Unclear(why),
        (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND, _) => Presence::Gone,
        _ => Presence::Unclear("a status that says nothing"),
    }
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
    let said = if status.is_success() { String::new() } else { said(&body) };
    (classify(status, retry_after, &body), Heard { limits: Some((status, headers)), said })
}

fn said(body: &[u8]) -> String {
    serde_json::from_slice::<Value>(body).map(|json| message(&json)).unwrap_or_default()
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
    fn a_refusal_of_the_token_itself_means_that_the_app_is_gone() {
        let of = |status: u16, body: &str| {
            let status = StatusCode::from_u16(status).expect("a status");
            let refusal = classify(status, None, body.as_bytes()).err();
            presence_of(refusal.as_ref(), Some(status), &said(body.as_bytes()))
        };
        for (status, body, expected) in [
            (200, r#"{"installations":[]}"#, Presence::Installed),
            (200, "[]", Presence::Installed),
            (401, r#"{"message":"Invalid JWT"}"#, Presence::Gone),
            (401, r#"{"error":{"message":"Invalid token: access token is invalid"}}"#, Presence::Gone),
            (401, "", Presence::Gone),
            (403, r#"{"message":"The token does not have access to this location."}"#, Presence::Gone),
            (404, r#"{"message":"App is not installed"}"#, Presence::Gone),
        ] {
            assert_eq!(of(status, body), expected, "{status} {body}");
        }
        for (status, body) in [
            (401, r#"{"message":"The access token has expired"}"#),
            (401, r#"{"message":"The token is not authorized for this scope."}"#),
            (401, r#"{"message":"version header is invalid"}"#),
            (403, "<html>Just a moment...</html>"),
            (403, "error code: 1010"),
            (404, ""),
            (400, r#"{"message":"Location is not active"}"#),
            (400, r#"{"message":"something new"}"#),
            (422, r#"{"message":["something new"]}"#),
            (429, ""),
            (302, ""),
            (500, "{}"),
            (503, "<html>"),
        ] {
            assert!(matches!(of(status, body), Presence::Unclear(_)), "{status} {body}");
        }
        assert_eq!(presence_of(None, None, ""), Presence::Unclear("no answer"));
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
