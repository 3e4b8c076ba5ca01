//! The routes of the HTTP API, and the choice of a route for a request.

use std::collections::BTreeMap;

use http::Method;
use percent_encoding::percent_decode_str;

/// The requests that a route accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Every request; the function checks the caller.
    Open,
    /// Only signed requests (`SigV4`).
    Iam,
}

/// A route key and the function behind it. A test compares `template.yaml` with this list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Method, or `ANY`.
    pub method: &'static str,
    /// Path, with `{name}` for one segment and `{name+}` for all remaining segments.
    pub path: &'static str,
    /// Function that the route invokes.
    pub function: &'static str,
    /// The requests that the route accepts.
    pub access: Access,
}

const fn open(method: &'static str, path: &'static str, function: &'static str) -> Route {
    Route { method, path, function, access: Access::Open }
}

const fn signed(method: &'static str, path: &'static str) -> Route {
    Route { method, path, function: "relay", access: Access::Iam }
}

/// All routes.
pub const ROUTES: &[Route] = &[
    open("GET", "/oauth/install", "callback"),
    open("GET", "/oauth/callback", "callback"),
    open("GET", "/oauth/callback/{any}", "callback"),
    open("GET", "/oauth/done", "callback"),
    open("POST", "/webhooks/marketplace", "webhook"),
    open("GET", "/relay/locations/{id}", "relay"),
    open("GET", "/relay/companies/{id}", "relay"),
    open("ANY", "/relay/locations/{id}/{path+}", "relay"),
    open("ANY", "/relay/companies/{id}/{path+}", "relay"),
    open("ANY", "/api/{path+}", "relay"),
    signed("GET", "/iam/relay/locations/{id}"),
    signed("GET", "/iam/relay/companies/{id}"),
    signed("ANY", "/iam/relay/locations/{id}/{path+}"),
    signed("ANY", "/iam/relay/companies/{id}/{path+}"),
];

/// The route of one request.
#[derive(Debug, PartialEq, Eq)]
pub struct Match {
    /// Route key, such as `GET /oauth/install`.
    pub route_key: String,
    /// Function that the route invokes.
    pub function: &'static str,
    /// The requests that the route accepts.
    pub access: Access,
    /// Path parameters, decoded.
    pub parameters: BTreeMap<String, String>,
}

/// Returns the route of a request; `path` as received. A full match takes precedence over a greedy one, and a method
/// over `ANY`.
pub fn find(method: &Method, path: &str) -> Option<Match> {
    let candidates = ROUTES
        .iter()
        .filter(|route| route.method == "ANY" || route.method == method.as_str())
        .filter_map(|route| Some((route, parameters(route.path, path)?)));
    let (route, parameters) =
        candidates.min_by_key(|(route, _)| (route.path.ends_with("+}"), route.method == "ANY"))?;
    Some(Match {
        route_key: format!("{} {}", route.method, route.path),
        function: route.function,
        access: route.access,
        parameters,
    })
}

fn parameters(pattern: &str, path: &str) -> Option<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    let mut rest = path.strip_prefix('/')?;
    let mut segments = pattern.strip_prefix('/')?.split('/').peekable();
    while let Some(segment) = segments.next() {
        if let Some(name) = segment.strip_prefix('{').and_then(|name| name.strip_suffix("+}")) {
            if rest.is_empty() {
                return None;
            }
            found.insert(name.to_owned(), decoded(rest));
            return Some(found);
        }
        let (here, after) = match rest.split_once('/') {
            Some((here, after)) => (here, Some(after)),
            None => (rest, None),
        };
        match segment.strip_prefix('{').and_then(|name| name.strip_suffix('}')) {
            Some(_) if here.is_empty() => return None,
            Some(name) => {
                found.insert(name.to_owned(), decoded(here));
            }
            None if here == segment => {}
            None => return None,
        }
        match (after, segments.peek()) {
            (Some(after), Some(_)) => rest = after,
            (None, None) => return Some(found),
            _ => return None,
        }
    }
    None
}

fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_take_the_most_specific_route() {
        for (method, path, expected) in [
            ("GET", "/oauth/callback", Some("GET /oauth/callback")),
            ("GET", "/oauth/callback/app-2", Some("GET /oauth/callback/{any}")),
            ("GET", "/oauth/callback/a/b", None),
            ("POST", "/oauth/callback", None),
            ("GET", "/relay/locations/L1", Some("GET /relay/locations/{id}")),
            ("POST", "/relay/locations/L1", None),
            ("GET", "/relay/locations/L1/contacts/", Some("ANY /relay/locations/{id}/{path+}")),
            ("GET", "/relay/locations//contacts/", None),
            ("GET", "/relay/locations/L1/", None),
            ("DELETE", "/api/contacts/7", Some("ANY /api/{path+}")),
            ("PUT", "/iam/relay/companies/C1/x", Some("ANY /iam/relay/companies/{id}/{path+}")),
            ("GET", "/", None),
        ] {
            let method = Method::from_bytes(method.as_bytes()).expect("a method");
            assert_eq!(find(&method, path).map(|found| found.route_key).as_deref(), expected, "{method} {path}");
        }
    }

    #[test]
    fn parameters_are_decoded_and_greedy_ones_keep_their_slashes() {
        let found = find(&Method::GET, "/relay/locations/L%201/a/b%2Fc/").expect("a route");
        assert_eq!(found.parameters["id"], "L 1");
        assert_eq!(found.parameters["path"], "a/b/c/");
    }
}
