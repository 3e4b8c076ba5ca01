//! The routes of this function.

use http::Method;
use lambda_http::{Request, RequestExt as _};
use shared::lambda::gateway::{self, below};
use url::Url;

use crate::failure::Failure;

/// The path that links name as their redirect URI.
pub const CALLBACK: &str = "/oauth/callback";
/// Where an installation is started.
pub const INSTALL: &str = "/oauth/install";
/// Where a finished one ends.
pub const DONE: &str = "/oauth/done";

/// The longest last segment of a callback path, in bytes.
const LONGEST_SEGMENT: usize = 64;

/// A page of this function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route<'a> {
    /// Start an installation.
    Install,
    /// The marketplace sends the browser back, to this path.
    Callback(&'a str),
    /// An installation is finished.
    Done,
}

impl<'a> Route<'a> {
    /// The route of a path below stage and base.
    #[must_use]
    pub fn of(path: &'a str) -> Option<Self> {
        match path {
            INSTALL => Some(Self::Install),
            DONE => Some(Self::Done),
            CALLBACK => Some(Self::Callback(path)),
            _ => {
                let segment = path.strip_prefix(CALLBACK).and_then(|rest| rest.strip_prefix('/'));
                segment.is_some_and(is_plain).then_some(Self::Callback(path))
            }
        }
    }
}

/// The route of a request.
///
/// # Errors
/// [`Failure::NotFound`], or [`Failure::MethodNotAllowed`] for all but `GET`. `HEAD` is refused too: it would spend
/// the code without showing anyone what came of it.
pub fn route<'a>(request: &'a Request, configured: Option<&Url>) -> Result<Route<'a>, Failure> {
    let base = configured.map(|url| url.path().trim_matches('/')).unwrap_or_default();
    let find = |path| Route::of(below(path, base).unwrap_or(path));
    let route = gateway::route(request.raw_http_path(), gateway::stage(request), find).ok_or(Failure::NotFound)?;
    if request.method() == Method::GET { Ok(route) } else { Err(Failure::MethodNotAllowed) }
}

/// The path becomes part of a redirect URI as it stands, so nothing in it may need encoding or mean another path.
fn is_plain(segment: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    (1..=LONGEST_SEGMENT).contains(&segment.len()) && segment.bytes().all(plain) && segment != "." && segment != ".."
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::tests::request;
    use serde_json::json;

    fn expect_route(method: &str, path: &str, stage: &str, base: &str, expected: Result<Route<'_>, Failure>) {
        let context = json!({ "stage": stage, "http": { "method": method } });
        let request = request(&json!({ "rawPath": path }), &context);
        let configured = Url::parse(&format!("https://connect.example.com/{base}")).expect("a URL");
        let found = route(&request, (!base.is_empty()).then_some(&configured));
        assert_eq!(found, expected, "{method} {path} at {stage} below {base:?}");
    }

    #[test]
    fn routes_are_the_contracts() {
        for (method, path, expected) in [
            ("GET", "/oauth/install", Ok(Route::Install)),
            ("GET", "/oauth/done", Ok(Route::Done)),
            ("GET", "/oauth/callback", Ok(Route::Callback("/oauth/callback"))),
            ("GET", "/oauth/callback/my-app.2", Ok(Route::Callback("/oauth/callback/my-app.2"))),
            ("HEAD", "/oauth/callback", Err(Failure::MethodNotAllowed)),
            ("POST", "/oauth/install", Err(Failure::MethodNotAllowed)),
            ("get", "/oauth/done", Err(Failure::MethodNotAllowed)),
            ("GET", "/", Err(Failure::NotFound)),
            ("POST", "/oauth", Err(Failure::NotFound)),
            ("GET", "/oauth/callback/", Err(Failure::NotFound)),
            ("GET", "/oauth/callbacks", Err(Failure::NotFound)),
            ("GET", "/oauth/callback/..", Err(Failure::NotFound)),
            ("GET", "/oauth/x/../callback", Err(Failure::NotFound)),
            ("GET", "/oauth/callback/a/b", Err(Failure::NotFound)),
            ("GET", "/oauth/callback/%2e%2e", Err(Failure::NotFound)),
            ("GET", "/oauth/callback/a b", Err(Failure::NotFound)),
        ] {
            expect_route(method, path, "$default", "", expected);
        }
        let long = format!("/oauth/callback/{}", "a".repeat(65));
        expect_route("GET", &long, "$default", "", Err(Failure::NotFound));
    }

    #[test]
    fn a_stage_and_the_path_of_the_configured_url_may_stand_before_a_route() {
        for (path, stage, base, found) in [
            ("/prod/oauth/done", "prod", "", Ok(Route::Done)),
            ("/production/oauth/done", "prod", "", Err(Failure::NotFound)),
            ("/oauth/done", "oauth", "", Ok(Route::Done)),
            ("/oauth/oauth/done", "oauth", "", Ok(Route::Done)),
            ("/relay/oauth/done", "prod", "relay/", Ok(Route::Done)),
            ("/oauth/done", "prod", "relay/", Ok(Route::Done)),
            ("/prod/relay/oauth/done", "prod", "relay/", Ok(Route::Done)),
            ("/relay/prod/oauth/done", "prod", "relay/", Err(Failure::NotFound)),
            ("/prod/oauth/callback/x", "prod", "", Ok(Route::Callback("/oauth/callback/x"))),
        ] {
            expect_route("GET", path, stage, base, found);
        }
    }
}
