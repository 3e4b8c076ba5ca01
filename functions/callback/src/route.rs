//! Which of the function's pages a request is for.

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

/// The route of a path below stage and base.
///
/// # Errors
/// [`Failure::NotFound`], or [`Failure::MethodNotAllowed`] for all but `GET`. `HEAD` is refused too: it would spend
/// the code without showing anyone what came of it.
pub fn route<'a>(method: &str, path: &'a str) -> Result<Route<'a>, Failure> {
    let route = match path {
        INSTALL => Route::Install,
        DONE => Route::Done,
        CALLBACK => Route::Callback(path),
        _ => {
            let segment = path.strip_prefix(CALLBACK).and_then(|rest| rest.strip_prefix('/'));
            if segment.is_some_and(is_plain) { Route::Callback(path) } else { return Err(Failure::NotFound) }
        }
    };
    if method == "GET" { Ok(route) } else { Err(Failure::MethodNotAllowed) }
}

/// The path becomes part of a redirect URI as it stands, so nothing in it may need encoding or mean another path.
fn is_plain(segment: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    (1..=LONGEST_SEGMENT).contains(&segment.len()) && segment.bytes().all(plain) && segment != "." && segment != ".."
}

#[cfg(test)]
mod tests {
    use super::*;

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
            ("GET", "", Err(Failure::NotFound)),
            ("POST", "/oauth", Err(Failure::NotFound)),
            ("GET", "/oauth/callback/", Err(Failure::NotFound)),
            ("GET", "/oauth/callbacks", Err(Failure::NotFound)),
            ("GET", "/oauth/callback/..", Err(Failure::NotFound)),
            ("GET", "/oauth/callback/a/b", Err(Failure::NotFound)),
            ("GET", "/oauth/callback/%2e%2e", Err(Failure::NotFound)),
            ("GET", "/oauth/callback/a b", Err(Failure::NotFound)),
        ] {
            assert_eq!(route(method, path), expected, "{method} {path}");
        }
        assert_eq!(route("GET", &format!("/oauth/callback/{}", "a".repeat(65))), Err(Failure::NotFound));
    }
}
