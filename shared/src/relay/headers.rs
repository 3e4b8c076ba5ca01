//! Allow-lists of headers, for both directions. Pure.
//!
//! A header that is not in the list is removed. So credentials, cookies, `Host`, hop-by-hop fields (RFC 9110 section
//! 7.6.1), forwarding fields and CORS never pass.

use http::Method;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::domain::clock::Millis;
use crate::http_client::USER_AGENT;
use crate::limiter::Usage;
use crate::platform::{operations, rate_limits};
use crate::request::mcp;
use crate::request::path::Path;

/// The origin of the answer: `platform` or `relay`.
pub const SOURCE: HeaderName = HeaderName::from_static("relay-source");
/// Lambda's id of the invocation.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("relay-request-id");
/// The time until the next try, in milliseconds.
pub const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("relay-retry-after-ms");
/// The longest time that the caller waits for a permit, in milliseconds.
pub const WAIT_MS: HeaderName = HeaderName::from_static("relay-wait-ms");
/// True if the answer is that to an earlier request with the same idempotency key.
pub const REPLAYED: HeaderName = HeaderName::from_static("relay-replayed");
/// True if the body of a replayed answer is missing, because it was not recorded.
pub const BODY_OMITTED: HeaderName = HeaderName::from_static("relay-body-omitted");
/// The platform's API version.
pub const VERSION: HeaderName = HeaderName::from_static("version");

/// Headers from the caller to the platform, sorted. `channel` and `source` are the platform's own headers. Its SDKs send
/// their version, and the ids of location and company.
const TO_PLATFORM: [&str; 31] = [
    "accept",
    "accept-encoding",
    "accept-language",
    "channel",
    "company-id",
    "companyid",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-md5",
    "content-type",
    "ghl-sdk-version",
    "idempotency-key",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "location-id",
    "locationid",
    "prefer",
    "range",
    "source",
    "traceparent",
    "tracestate",
    "user-agent",
    "version",
    "x-company-id",
    "x-location-id",
    "x-request-id",
    "x-sdk-version",
];

/// Headers from the platform to the caller, sorted.
const FROM_PLATFORM: [&str; 24] = [
    "accept-ranges",
    "age",
    "allow",
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-location",
    "content-range",
    "content-type",
    "deprecation",
    "etag",
    "expires",
    "last-modified",
    "link",
    "location",
    "retry-after",
    "sunset",
    "trace-id",
    "traceid",
    "vary",
    "version",
    "x-request-id",
    "x-trace-id",
];

/// True if a request's header of this name, in lower case, is passed on to the platform.
pub fn reaches_platform(name: &str, path: &Path) -> bool {
    TO_PLATFORM.binary_search(&name).is_ok() || is_of_mcp(name, path)
}

fn is_of_mcp(name: &str, path: &Path) -> bool {
    mcp::HEADERS.iter().any(|header| header == name) && mcp::is_endpoint(path)
}

/// Removes a `Content-Encoding` that is not true of the body. API Gateway may decompress a request's body and leave the
/// header (API Gateway Developer Guide, "Call an API method with a compressed payload"). `Content-MD5` is removed with it,
/// because it is the digest of the compressed body.
pub fn drop_untrue_encoding(headers: &mut HeaderMap, body: &[u8]) {
    let Some(value) = headers.get_all(header::CONTENT_ENCODING).iter().next_back() else { return };
    // Codings are listed in the order in which they were applied (RFC 9110 section 8.4).
    let outermost = value.to_str().ok().and_then(|codings| codings.rsplit(',').next()).unwrap_or_default().trim();
    if !may_be_coded(outermost, body) {
        headers.remove(header::CONTENT_ENCODING);
        headers.remove(CONTENT_MD5);
    }
}

const CONTENT_MD5: HeaderName = HeaderName::from_static("content-md5");

/// True if a body can be in a content coding, by its first bytes. For other codings, true if the body is not text.
fn may_be_coded(coding: &str, body: &[u8]) -> bool {
    let is_text = || std::str::from_utf8(body).is_ok();
    match coding.to_ascii_lowercase().as_str() {
        "identity" => true,
        // RFC 1952 section 2.3.1.
        "gzip" | "x-gzip" => body.starts_with(&[0x1f, 0x8b]),
        // RFC 1950 section 2.2. Some programs omit the header of two bytes.
        "deflate" => {
            matches!(*body, [cmf, flags, ..] if cmf & 0x0f == 8 && (u16::from(cmf) << 8 | u16::from(flags)).is_multiple_of(31))
                || !is_text()
        }
        _ => !is_text(),
    }
}

/// The headers of the request to the platform, without `Authorization`.
pub fn to_platform(caller: &HeaderMap, method: &Method, path: &Path) -> HeaderMap {
    let mut headers = allowed(caller, |name| reaches_platform(name, path));
    let has_user_agent = headers.get(header::USER_AGENT).is_some_and(|value| !value.as_bytes().trim_ascii().is_empty());
    if !has_user_agent {
        headers.insert(header::USER_AGENT, USER_AGENT);
    }
    let version = || HeaderValue::from_static(operations::version(method, path.readings()));
    headers.entry(VERSION).or_insert_with(version);
    headers
}

/// The headers of the platform's response that the caller gets. [`merge_rate_limit_headers`] adds the limits.
pub fn from_platform(platform: &HeaderMap, path: &Path) -> HeaderMap {
    allowed(platform, |name| FROM_PLATFORM.binary_search(&name).is_ok() || is_of_mcp(name, path))
}

fn allowed(from: &HeaderMap, passes: impl Fn(&str) -> bool) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in from {
        if passes(name.as_str()) {
            headers.append(name.clone(), value.clone());
        }
    }
    headers
}

/// Sets the rate-limit headers. Each has the stricter of the platform's value and the relay's.
pub fn merge_rate_limit_headers(headers: &mut HeaderMap, platform: &HeaderMap, usage: &Usage, now: Millis) {
    let theirs = |name: &HeaderName| platform.get(name)?.to_str().ok()?.trim().parse::<i64>().ok();
    let stricter = |name: &HeaderName, ours: u32| {
        let ours = i64::from(ours);
        theirs(name).map_or(ours, |theirs| theirs.min(ours)).max(0)
    };
    let reset = i64::try_from(usage.daily.resets_at.since(now).as_millis()).unwrap_or(i64::MAX);
    let interval = i64::try_from(usage.interval.as_millis()).unwrap_or(i64::MAX);
    for (name, value) in [
        (rate_limits::MAX, stricter(&rate_limits::MAX, usage.burst.limit)),
        (rate_limits::REMAINING, stricter(&rate_limits::REMAINING, usage.burst.remaining)),
        (rate_limits::INTERVAL, theirs(&rate_limits::INTERVAL).map_or(interval, |theirs| theirs.max(interval))),
        (rate_limits::DAILY_MAX, stricter(&rate_limits::DAILY_MAX, usage.daily.limit)),
        (rate_limits::DAILY_REMAINING, stricter(&rate_limits::DAILY_REMAINING, usage.daily.remaining)),
        (rate_limits::DAILY_RESET, theirs(&rate_limits::DAILY_RESET).unwrap_or(reset)),
    ] {
        headers.insert(name, value.into());
    }
}

/// Copies the platform's rate-limit headers. For answers for which the relay has no values of its own.
pub fn copy_rate_limit_headers(headers: &mut HeaderMap, platform: &HeaderMap) {
    for (name, value) in platform.iter().filter(|(name, _)| name.as_str().starts_with("x-ratelimit-")) {
        headers.append(name.clone(), value.clone());
    }
}

/// Sets `Retry-After` in whole seconds, rounded up and at least 1 (RFC 9110 section 10.2.3), and `Relay-Retry-After-Ms`.
pub fn set_retry_after(headers: &mut HeaderMap, at: Millis, now: Millis) {
    let milliseconds = u64::try_from(at.since(now).as_millis()).unwrap_or(u64::MAX);
    headers.insert(header::RETRY_AFTER, milliseconds.div_ceil(1_000).max(1).into());
    headers.insert(RETRY_AFTER_MS, milliseconds.into());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limiter::Meter;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    fn path(text: &str) -> Path {
        Path::parse(text).expect("a safe path")
    }

    #[test]
    fn the_lists_are_in_order() {
        assert!(TO_PLATFORM.is_sorted() && FROM_PLATFORM.is_sorted());
    }

    #[test]
    fn only_what_is_named_reaches_the_platform() {
        let caller = map(&[
            ("authorization", "Bearer caller-key"),
            ("cookie", "a=b"),
            ("host", "relay.example"),
            ("connection", "keep-alive"),
            ("transfer-encoding", "chunked"),
            ("content-length", "7"),
            ("expect", "100-continue"),
            ("upgrade", "h2c"),
            ("proxy-authorization", "x"),
            ("x-forwarded-for", "1.2.3.4"),
            ("forwarded", "for=1.2.3.4"),
            ("via", "1.1 x"),
            ("origin", "https://x"),
            ("relay-wait-ms", "5"),
            ("x-amzn-trace-id", "Root=1"),
            ("x-http-method-override", "DELETE"),
            ("x-original-url", "/oauth/token"),
            ("content-type", "application/json"),
            ("accept-encoding", "br"),
            ("version", "v3"),
        ]);
        let mut expected = map(&[("content-type", "application/json"), ("accept-encoding", "br"), ("version", "v3")]);
        expected.insert(header::USER_AGENT, USER_AGENT);
        assert_eq!(to_platform(&caller, &Method::GET, &path("/contacts/")), expected);
        let mut added = to_platform(&HeaderMap::new(), &Method::GET, &path("/contacts/"));
        assert_eq!(added.remove(header::USER_AGENT), Some(USER_AGENT));
        assert_eq!(
            added,
            map(&[("version", "2021-07-28")]),
            "no encoding is asked for that the caller did not ask for"
        );
    }

    #[test]
    fn a_request_always_names_a_program() {
        assert!(
            USER_AGENT
                .to_str()
                .is_ok_and(|text| text.starts_with("hoopai-relay/0.") || text.starts_with("hoopai-relay/1."))
        );
        let own = HeaderValue::from_static("own/1 (x)");
        for (caller, expected) in [
            (map(&[]), USER_AGENT),
            (map(&[("user-agent", "")]), USER_AGENT),
            (map(&[("user-agent", "  ")]), USER_AGENT),
            (map(&[("user-agent", "own/1 (x)")]), own),
        ] {
            let sent = to_platform(&caller, &Method::GET, &path("/contacts/"));
            assert_eq!(sent.get_all(header::USER_AGENT).iter().collect::<Vec<_>>(), [&expected], "{caller:?}");
        }
    }

    #[test]
    fn the_headers_of_mcp_pass_both_ways_at_its_endpoint_only() {
        let of_mcp = map(&[("last-event-id", "7"), ("mcp-protocol-version", "2025-06-18"), ("mcp-session-id", "s")]);
        for (at, passes) in [("/mcp/", true), ("/mcp", true), ("/contacts/", false), ("/mcpx/", false)] {
            let (sent, answered) = (to_platform(&of_mcp, &Method::GET, &path(at)), from_platform(&of_mcp, &path(at)));
            for name in of_mcp.keys() {
                assert_eq!((sent.contains_key(name), answered.contains_key(name)), (passes, passes), "{name} at {at}");
            }
        }
    }

    #[test]
    fn body_and_content_encoding_agree() {
        const GZIP: &[u8] = b"\x1f\x8b\x08\0\0\0\0\0\x02\xff";
        const ZLIB: &[u8] = b"\x78\x9c\xab\x56";
        const BINARY: &[u8] = b"\x8b\x01\x80";
        for (encoding, body, stays) in [
            ("gzip", GZIP, true),
            ("GZip", GZIP, true),
            ("x-gzip", GZIP, true),
            ("gzip", b"{\"a\":1}", false),
            ("gzip", BINARY, false),
            ("gzip", b"", false),
            ("identity, gzip", b"{}", false),
            ("br, gzip", GZIP, true),
            ("deflate", ZLIB, true),
            ("deflate", b"x\x01", true),
            ("deflate", BINARY, true),
            ("deflate", b"{\"a\":1}", false),
            ("br", BINARY, true),
            ("br", b"{\"a\":1}", false),
            ("zstd", b"\x28\xb5\x2f\xfd", true),
            ("zstd", b"text", false),
            ("identity", b"{\"a\":1}", true),
            ("", b"{\"a\":1}", false),
        ] {
            let mut headers = map(&[("content-encoding", encoding), ("content-md5", "x"), ("content-type", "a/b")]);
            drop_untrue_encoding(&mut headers, body);
            let left = (headers.contains_key("content-encoding"), headers.contains_key("content-md5"), headers.len());
            assert_eq!(left, (stays, stays, if stays { 3 } else { 1 }), "{encoding}: {body:?}");
        }
        let mut without = map(&[("content-md5", "x")]);
        drop_untrue_encoding(&mut without, b"{}");
        assert!(without.contains_key("content-md5"), "nothing was unpacked");
    }

    #[test]
    fn only_what_is_named_comes_back() {
        let platform = map(&[
            ("content-type", "text/csv"),
            ("content-encoding", "gzip"),
            ("location", "/elsewhere"),
            ("set-cookie", "a=b"),
            ("access-control-allow-origin", "*"),
            ("transfer-encoding", "chunked"),
            ("connection", "close"),
            ("server", "x"),
            ("www-authenticate", "Bearer"),
            ("relay-source", "relay"),
            ("strict-transport-security", "x"),
        ]);
        let expected = map(&[("content-type", "text/csv"), ("content-encoding", "gzip"), ("location", "/elsewhere")]);
        assert_eq!(from_platform(&platform, &path("/contacts/")), expected);
    }

    #[test]
    fn the_stricter_value_of_each_limit_is_sent() {
        let usage = Usage {
            burst: Meter { limit: 100, remaining: 40, resets_at: Millis(9_000) },
            interval: std::time::Duration::from_secs(10),
            daily: Meter { limit: 200_000, remaining: 7, resets_at: Millis(61_000) },
        };
        let merged = |platform: &HeaderMap| {
            let mut headers = HeaderMap::new();
            merge_rate_limit_headers(&mut headers, platform, &usage, Millis(1_000));
            headers
        };
        let ours = map(&[
            ("x-ratelimit-max", "100"),
            ("x-ratelimit-remaining", "40"),
            ("x-ratelimit-interval-milliseconds", "10000"),
            ("x-ratelimit-limit-daily", "200000"),
            ("x-ratelimit-daily-remaining", "7"),
            ("x-ratelimit-daily-reset", "60000"),
        ]);
        assert_eq!(merged(&HeaderMap::new()), ours);
        let theirs = map(&[
            ("x-ratelimit-max", "25"),
            ("x-ratelimit-remaining", "99"),
            ("x-ratelimit-interval-milliseconds", "20000"),
            ("x-ratelimit-limit-daily", "nonsense"),
            ("x-ratelimit-daily-remaining", "-3"),
            ("x-ratelimit-daily-reset", "5"),
        ]);
        let both = map(&[
            ("x-ratelimit-max", "25"),
            ("x-ratelimit-remaining", "40"),
            ("x-ratelimit-interval-milliseconds", "20000"),
            ("x-ratelimit-limit-daily", "200000"),
            ("x-ratelimit-daily-remaining", "0"),
            ("x-ratelimit-daily-reset", "5"),
        ]);
        assert_eq!(merged(&theirs), both);
    }

    #[test]
    fn seconds_are_rounded_up_and_milliseconds_exact() {
        for (at, seconds, milliseconds) in
            [(2_001, "2", "1001"), (2_000, "1", "1000"), (1_000, "1", "0"), (0, "1", "0")]
        {
            let mut headers = HeaderMap::new();
            set_retry_after(&mut headers, Millis(at), Millis(1_000));
            assert_eq!(headers, map(&[("retry-after", seconds), ("relay-retry-after-ms", milliseconds)]), "{at}");
        }
    }
}
