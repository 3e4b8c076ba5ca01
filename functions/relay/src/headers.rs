//! The headers of an event, of either kind, as a map.

use ::http::{HeaderMap, HeaderName, HeaderValue};
use shared::domain::problem::Problem;
use shared::relay::headers::{WAIT_MS, reaches_platform};
use shared::request::path::Path;

/// Reads the headers of a request for `path`. A header that HTTP does not allow is ignored if its kind goes nowhere.
///
/// # Errors
/// A value that HTTP does not allow, in a header that the platform or the relay would read; or too many headers.
pub(crate) fn read<'a>(
    headers: impl IntoIterator<Item = (&'a str, &'a str)>,
    path: &Path,
) -> Result<HeaderMap, Problem> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        let Ok(name) = HeaderName::try_from(name) else { continue };
        let Ok(value) = HeaderValue::try_from(value) else {
            if name == WAIT_MS || reaches_platform(name.as_str(), path) {
                return Err(Problem::invalid_request(format!(
                    "the header {name} has a character that a header may not have"
                )));
            }
            continue;
        };
        if map.try_append(name, value).is_err() {
            return Err(Problem::invalid_request("there are too many headers"));
        }
    }
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_odd_header_matters_only_if_its_kind_is_read() {
        let path = |text: &str| Path::parse(text).expect("a safe path");
        let of = |at: &str, name: &str, value: &str| read([(name, value), ("accept", "a/b")], &path(at));
        for (at, name, value) in [
            ("/x", "x-internal", "a\u{1}b"),
            ("/x", "x-internal", "a\r\nb: c"),
            ("/x", "x internal", "a"),
            ("/x", "content type", "a"),
            ("/x", "accept\n", "a"),
            ("/x", "", "a"),
            ("/x", "ä", "a"),
            ("/x", "cookie", "a=\u{7f}"),
            ("/x", "mcp-session-id", "\u{1}"),
        ] {
            let read = of(at, name, value).unwrap_or_else(|problem| panic!("{name}: {}", problem.detail));
            assert_eq!(read.len(), 1, "{name:?} is ignored");
        }
        for (at, name, value) in [
            ("/x", "content-type", "a\u{1}b"),
            ("/x", "Content-Type", "a\r\nb: c"),
            ("/x", "X-Location-Id", "L1\n"),
            ("/x", "user-agent", "\u{0}"),
            ("/x", "relay-wait-ms", "5\n"),
            ("/mcp/", "mcp-session-id", "\u{1}"),
        ] {
            let refused = of(at, name, value).expect_err(name);
            assert!(refused.detail.contains(&name.to_ascii_lowercase()), "{name}: {}", refused.detail);
            assert!(!refused.detail.contains(value), "{name}: the value is not repeated");
        }
        assert_eq!(of("/x", "accept", "c/d").expect("both").get_all("accept").iter().count(), 2);
    }
}
