//! Protects the controls of the sandbox. People and programs on this machine may use them; a foreign web page that is
//! open in a browser on this machine may not.
//!
//! A foreign page can reach a server on loopback in two ways. A cross-origin request carries the page's `Origin`. After
//! DNS rebinding, a request carries the page's host name as `Host`, and the browser treats page and server as one
//! origin.

use axum::{
    extract::Request,
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use http::{HeaderMap, Method, StatusCode, header};
use shared::config::is_loopback;
use url::Url;

/// Refuses requests that a foreign page makes a browser send, before any handler sees them.
pub(crate) async fn only_this_machine(request: Request, next: Next) -> Response {
    match stranger(request.method(), request.headers()) {
        None => next.run(request).await,
        Some(why) => (StatusCode::FORBIDDEN, format!("{why}\n")).into_response(),
    }
}

/// Returns the reason to refuse a request, if it may come from a foreign page.
fn stranger(method: &Method, headers: &HeaderMap) -> Option<&'static str> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let host = text(header::HOST).unwrap_or_default();
    if !is_this_machine(host) {
        return Some("the host is not this machine's");
    }
    if matches!(*method, Method::GET | Method::HEAD) {
        return None;
    }
    // Programs send neither `Origin` nor `Sec-Fetch-Site`. Every browser sends `Origin` with a POST.
    let same_origin = |origin: &str| origin.strip_prefix("http://") == Some(host);
    if text(header::ORIGIN).is_some_and(|origin| !same_origin(origin))
        || headers.get_all(header::ORIGIN).iter().count() > 1
    {
        return Some("the request comes from another page");
    }
    let site = headers.get("sec-fetch-site").map(http::HeaderValue::as_bytes);
    site.is_some_and(|site| site != b"same-origin" && site != b"none").then_some("the request comes from another site")
}

/// Returns true if `Host` names this machine. The port is not checked, because it differs if the port is forwarded.
fn is_this_machine(host: &str) -> bool {
    // Accepts only the characters of a host and a port, because a URL could have more before or after them.
    let plain = host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.:[]".contains(&b));
    plain && Url::parse(&format!("http://{host}/")).is_ok_and(|url| is_loopback(&url))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn refused(method: &Method, headers: &[(&'static str, &'static str)]) -> bool {
        let headers =
            headers.iter().map(|(name, value)| ((*name).parse().expect("a name"), HeaderValue::from_static(value)));
        stranger(method, &headers.collect()).is_some()
    }

    #[test]
    fn requests_with_another_host_name_are_refused() {
        for (host, expected) in [
            ("127.0.0.1:8070", false),
            ("localhost:8070", false),
            ("LOCALHOST", false),
            ("[::1]:8070", false),
            ("sandbox.localhost:8070", false),
            ("localhost@127.0.0.1", true),
            ("127.0.0.1:80/70", true),
            ("localhost:port", true),
            ("localhost.evil.example:8070", true),
            ("evil.example", true),
            ("127.0.0.1.evil.example", true),
            ("127.0.0.1:8070@evil.example", true),
            ("[::1]evil.example", true),
            ("0.0.0.0:8070", true),
            ("", true),
        ] {
            assert_eq!(refused(&Method::GET, &[("host", host)]), expected, "{host}");
        }
        assert!(refused(&Method::GET, &[]));
    }

    #[test]
    fn requests_from_another_origin_are_refused() {
        let host = ("host", "127.0.0.1:8070");
        for (origin, expected) in [
            ("http://127.0.0.1:8070", false),
            ("http://127.0.0.1:3000", true),
            ("http://localhost:8070", true),
            ("https://127.0.0.1:8070", true),
            ("https://evil.example", true),
            ("null", true),
            ("", true),
        ] {
            assert_eq!(refused(&Method::POST, &[host, ("origin", origin)]), expected, "{origin}");
            assert!(!refused(&Method::GET, &[host, ("origin", origin)]), "reading is for the browser to prevent");
        }
        assert!(!refused(&Method::POST, &[host]), "curl");
        assert!(refused(&Method::DELETE, &[host, ("sec-fetch-site", "cross-site")]));
        assert!(refused(&Method::PUT, &[host, ("sec-fetch-site", "same-site")]), "another port is another origin");
        assert!(!refused(&Method::PUT, &[host, ("sec-fetch-site", "same-origin")]));
    }
}
