//! The routes of this function.

use http::Method;
use lambda_http::{Request, RequestExt as _};
use shared::lambda::gateway::{self, below};
use url::Url;

use crate::failure::InstallFailure;

/// The path of the redirect URI in our links.
pub const CALLBACK: &str = "/oauth/callback";
/// The path that starts an installation.
pub const INSTALL: &str = "/oauth/install";
/// The path of the page after an installation.
pub const DONE: &str = "/oauth/done";

/// The longest last segment of a callback path, in bytes.
const LONGEST_SEGMENT: usize = 64;

/// A page of this function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route<'a> {
    /// The start of an installation.
    Install,
    /// The redirect back from the marketplace, with its path.
    Callback(&'a str),
    /// The page after an installation.
    Done,
}

impl<'a> Route<'a> {
    /// Finds the route of a path. The path has neither the stage nor the base of the public URL.
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

/// Finds the route of a request.
///
/// # Errors
/// [`InstallFailure::NotFound`], or [`InstallFailure::MethodNotAllowed`] for all but `GET`. `HEAD` is refused too: it would
/// spend the code without showing the result.
pub fn route<'a>(request: &'a Request, configured: Option<&Url>) -> Result<Route<'a>, InstallFailure> {
    let base = configured.map(|url| url.path().trim_matches('/')).unwrap_or_default();
    let find = |path| Route::of(below(path, base).unwrap_or(path));
    let route =
        gateway::route(request.raw_http_path(), gateway::stage(request), find).ok_or(InstallFailure::NotFound)?;
    if request.method() == Method::GET { Ok(route) } else { Err(InstallFailure::MethodNotAllowed) }
}

/// Returns true for a segment that can stand in a redirect URI unchanged: it needs no encoding and is no dot segment.
fn is_plain(segment: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    (1..=LONGEST_SEGMENT).contains(&segment.len()) && segment.bytes().all(plain) && segment != "." && segment != ".."
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::tests::request;
    use serde_json::json;

    fn expect_route(method: &str, path: &str, stage: &str, base: &str, expected: Result<Route<'_>, InstallFailure>) {
        let context = json!({ "stage": stage, "http": { "method": method } });
        let request = request(&json!({ "rawPath": path }), &context);
        let configured = Url::parse(&format!("https://connect.example.com/{base}")).expect("a URL");
        let found = route(&request, (!base.is_empty()).then_some(&configured));
        assert_eq!(found, expected, "{method} {path} at {stage} below {base:?}");
    }

    #[test]
    fn each_route_is_found_for_get_only() {
        for (method, path, expected) in [
            ("GET", "/oauth/install", Ok(Route::Install)),
            ("GET", "/oauth/done", Ok(Route::Done)),
            ("GET", "/oauth/callback", Ok(Route::Callback("/oauth/callback"))),
            ("GET", "/oauth/callback/my-app.2", Ok(Route::Callback("/oauth/callback/my-app.2"))),
            ("HEAD", "/oauth/callback", Err(InstallFailure::MethodNotAllowed)),
            ("POST", "/oauth/install", Err(InstallFailure::MethodNotAllowed)),
            ("get", "/oauth/done", Err(InstallFailure::MethodNotAllowed)),
            ("GET", "/", Err(InstallFailure::NotFound)),
            ("POST", "/oauth", Err(InstallFailure::NotFound)),
            ("GET", "/oauth/callback/", Err(InstallFailure::NotFound)),
            ("GET", "/oauth/callbacks", Err(InstallFailure::NotFound)),
            ("GET", "/oauth/callback/..", Err(InstallFailure::NotFound)),
            ("GET", "/oauth/x/../callback", Err(InstallFailure::NotFound)),
            ("GET", "/oauth/callback/a/b", Err(InstallFailure::NotFound)),
            ("GET", "/oauth/callback/%2e%2e", Err(InstallFailure::NotFound)),
            ("GET", "/oauth/callback/a b", Err(InstallFailure::NotFound)),
        ] {
            expect_route(method, path, "$default", "", expected);
        }
        let long = format!("/oauth/callback/{}", "a".repeat(65));
        expect_route("GET", &long, "$default", "", Err(InstallFailure::NotFound));
    }

    #[test]
    fn a_stage_and_the_base_path_may_precede_a_route() {
        for (path, stage, base, found) in [
            ("/prod/oauth/done", "prod", "", Ok(Route::Done)),
            ("/production/oauth/done", "prod", "", Err(InstallFailure::NotFound)),
            ("/oauth/done", "oauth", "", Ok(Route::Done)),
            ("/oauth/oauth/done", "oauth", "", Ok(Route::Done)),
            ("/relay/oauth/done", "prod", "relay/", Ok(Route::Done)),
            ("/oauth/done", "prod", "relay/", Ok(Route::Done)),
            ("/prod/relay/oauth/done", "prod", "relay/", Ok(Route::Done)),
            ("/relay/prod/oauth/done", "prod", "relay/", Err(InstallFailure::NotFound)),
            ("/prod/oauth/callback/x", "prod", "", Ok(Route::Callback("/oauth/callback/x"))),
        ] {
            expect_route("GET", path, stage, base, found);
        }
    }
}
