//! Validation of paths and queries: an accepted one stays within the platform's API. Pure.
//!
//! An accepted path is sent byte for byte. A path that two programs could read differently is refused: dot segments,
//! empty segments, backslashes, control characters and overlong UTF-8, also if they are percent-encoded several times.

use std::borrow::Cow;

use http::Uri;
use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use url::Url;

/// The longest path, in bytes. API Gateway allows 10,240 for request line and headers together.
const LONGEST_PATH: usize = 2_048;
/// The longest query, in bytes.
const LONGEST_QUERY: usize = 8_192;
/// The most layers of percent-encoding. No honest client uses more.
const DECODINGS: usize = 4;

/// The characters that are encoded in a path: all but `pchar` and `/` (RFC 3986 section 3.3), and but the `%` of encodings
/// that are there already.
const OUTSIDE_PATH: AsciiSet = NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'!')
    .remove(b'$')
    .remove(b'&')
    .remove(b'\'')
    .remove(b'(')
    .remove(b')')
    .remove(b'*')
    .remove(b'+')
    .remove(b',')
    .remove(b';')
    .remove(b'=')
    .remove(b':')
    .remove(b'@')
    .remove(b'/')
    .remove(b'%');

/// The characters that are encoded in a query, because they end the target of a request or change its meaning. RFC 3986
/// forbids others in a query (`[`, `|`, `{`…), but clients send them, so they are sent as they are.
const OUTSIDE_QUERY: AsciiSet = CONTROLS.add(b' ').add(b'"').add(b'#').add(b'<').add(b'>');

/// The reason why a path or query is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsafe {
    /// The path does not begin with `/`.
    #[error("the path must begin with /")]
    NotAbsolute,
    /// The first segment looks like part of a host name.
    #[error("the first segment of the path must not begin with @ or .")]
    LikeAnAuthority,
    /// The path or query exceeds its limit.
    #[error("the path or query is too long")]
    TooLong,
    /// `//`, or a segment that is empty without its parameters and spaces.
    #[error("the path has an empty segment")]
    EmptySegment,
    /// `.` or `..`.
    #[error("the path has a dot segment")]
    DotSegment,
    /// A backslash. Some programs read it as `/`.
    #[error("the path has a backslash")]
    Backslash,
    /// A control character.
    #[error("the path or query has a control character")]
    Control,
    /// A character in more bytes than it needs (RFC 3629 section 3). Some programs accept it.
    #[error("the path has overlong UTF-8")]
    Overlong,
    /// `?` or `#`. They end a path.
    #[error("the path has a ? or #; the query has a place of its own")]
    Delimiter,
    /// `#` in a query.
    #[error("the query has a #")]
    Fragment,
    /// `%` without two hex digits.
    #[error("the path has a % without two hex digits")]
    BrokenEscape,
    /// More than four layers of percent-encoding.
    #[error("the path is percent-encoded too many times")]
    TooDeep,
    /// The URL is not below the platform's base URL. The rules above prevent this; it is checked as a second barrier.
    #[error("the path leads away from the platform")]
    Elsewhere,
}

/// A valid path of the platform: all programs read it in the same way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    wire: String,
    readings: [Vec<String>; 2],
}

impl Path {
    /// Validates a path as a client wrote it, or as API Gateway passes it on. API Gateway may have removed one layer of
    /// percent-encoding. Characters that a path cannot have are encoded; nothing else is changed.
    pub fn parse(raw: &str) -> Result<Self, Unsafe> {
        if raw.len() > LONGEST_PATH {
            return Err(Unsafe::TooLong);
        }
        if raw.contains(['?', '#']) {
            return Err(Unsafe::Delimiter);
        }
        expect_whole_escapes(raw)?;
        let mut decoded = raw.to_owned();
        expect_unambiguous(&decoded)?;
        // A Rust string without percent-encoding cannot be overlong.
        for round in 0.. {
            if !decoded.contains('%') {
                break;
            }
            let bytes: Cow<'_, [u8]> = percent_decode_str(&decoded).into();
            if has_overlong(&bytes) {
                return Err(Unsafe::Overlong);
            }
            let next = String::from_utf8_lossy(&bytes).into_owned();
            if next == decoded {
                break;
            }
            if round == DECODINGS {
                return Err(Unsafe::TooDeep);
            }
            expect_unambiguous(&next)?;
            decoded = next;
        }
        let as_sent = raw.split('/').map(fully_decoded).filter(|segment| !segment.is_empty()).collect();
        let as_decoded = decoded.split('/').filter(|segment| !segment.is_empty()).map(str::to_owned).collect();
        let wire = utf8_percent_encode(raw, &OUTSIDE_PATH).to_string();
        Ok(Self { wire, readings: [as_sent, as_decoded] })
    }

    /// The path as it is sent.
    pub fn as_str(&self) -> &str {
        &self.wire
    }

    /// The decoded segments, in the two ways in which routers read a path: split and then decode, or decode and then split.
    /// The readings differ if a slash is encoded. A slash at the end makes no segment.
    pub fn readings(&self) -> &[Vec<String>; 2] {
        &self.readings
    }

    /// True if some router could read `word` as the first segment. Some routers ignore case or `;parameters`, and some
    /// decode a path before they look for its end at `?` or `#`.
    pub fn may_begin_with(&self, word: &str) -> bool {
        let meaning = |first: &String| first.split([';', '?', '#']).next().unwrap_or_default().trim().to_owned();
        let firsts = self.readings.iter().filter_map(|segments| segments.first());
        firsts.map(meaning).any(|first| first.eq_ignore_ascii_case(word))
    }
}

fn expect_whole_escapes(raw: &str) -> Result<(), Unsafe> {
    let bytes = raw.as_bytes();
    let broken = |at: usize| !bytes.get(at + 1..at + 3).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit));
    let escapes = bytes.iter().enumerate().filter(|(_, b)| **b == b'%');
    if escapes.map(|(at, _)| at).any(broken) { Err(Unsafe::BrokenEscape) } else { Ok(()) }
}

/// Checks one decoding of the path. The path as sent and all its decodings must pass.
fn expect_unambiguous(path: &str) -> Result<(), Unsafe> {
    if path.contains(char::is_control) {
        return Err(Unsafe::Control);
    }
    if path.contains('\\') {
        return Err(Unsafe::Backslash);
    }
    let rest = path.strip_prefix('/').ok_or(Unsafe::NotAbsolute)?;
    let inner = rest.strip_suffix('/').unwrap_or(rest);
    if rest == "/" || (!inner.is_empty() && inner.split('/').any(str::is_empty)) {
        return Err(Unsafe::EmptySegment);
    }
    // To servers that cut off path parameters, `..;x` is a dot segment and `;x` is empty.
    let meaning = |segment: &str| segment.split(';').next().unwrap_or_default().trim().to_owned();
    for segment in inner.split('/').map(meaning).filter(|_| !inner.is_empty()) {
        match segment.as_str() {
            "" => return Err(Unsafe::EmptySegment),
            "." | ".." => return Err(Unsafe::DotSegment),
            _ => {}
        }
    }
    if rest.starts_with(['@', '.']) { Err(Unsafe::LikeAnAuthority) } else { Ok(()) }
}

/// True if a character has more bytes than it needs (overlong, RFC 3629 section 3).
fn has_overlong(bytes: &[u8]) -> bool {
    bytes.windows(2).any(|pair| {
        matches!(
            pair,
            [0xc0 | 0xc1, 0x80..=0xbf]
                | [0xe0, 0x80..=0x9f]
                | [0xf0, 0x80..=0x8f]
                | [0xf8, 0x80..=0x87]
                | [0xfc, 0x80..=0x83]
        )
    })
}

fn fully_decoded(segment: &str) -> String {
    let mut decoded = segment.to_owned();
    for _ in 0..DECODINGS {
        if !decoded.contains('%') {
            break;
        }
        decoded = percent_decode_str(&decoded).decode_utf8_lossy().into_owned();
    }
    decoded
}

/// A query without its question mark, in the client's own bytes. Characters that a query cannot have are encoded: a direct
/// invocation can contain a space, for example, which no HTTP client sends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query(Option<String>);

impl Query {
    /// Validates a query. It can fail with [`Unsafe::TooLong`], [`Unsafe::Control`] or [`Unsafe::Fragment`].
    pub fn parse(raw: &str) -> Result<Self, Unsafe> {
        if raw.len() > LONGEST_QUERY {
            return Err(Unsafe::TooLong);
        }
        if raw.contains(char::is_control) {
            return Err(Unsafe::Control);
        }
        if raw.contains('#') {
            return Err(Unsafe::Fragment);
        }
        Ok(Self((!raw.is_empty()).then(|| utf8_percent_encode(raw, &OUTSIDE_QUERY).to_string())))
    }

    /// Makes a query of names and values, in their order, each percent-encoded (RFC 3986 section 2.1).
    pub fn from_pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, Unsafe> {
        const OUTSIDE_VALUE: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
        let escaped = |text: &'a str| utf8_percent_encode(text, &OUTSIDE_VALUE);
        let pairs: Vec<_> = pairs.into_iter().map(|(n, v)| format!("{}={}", escaped(n), escaped(v))).collect();
        Self::parse(&pairs.join("&"))
    }

    /// The query, if there is one.
    pub fn as_str(&self) -> Option<&str> {
        self.0.as_deref()
    }
}

/// The URL of a path and query at the platform. It fails with [`Unsafe::Elsewhere`] if scheme, host, port, path or query of
/// the URL are not the expected ones.
pub fn target_uri(base: &Url, path: &Path, query: &Query) -> Result<Uri, Unsafe> {
    let origin = base.origin().ascii_serialization();
    let wanted = format!("{}{}", base.path().trim_end_matches('/'), path.as_str());
    let text = match query.as_str() {
        Some(query) => format!("{origin}{wanted}?{query}"),
        None => format!("{origin}{wanted}"),
    };
    let uri = Uri::try_from(text).map_err(|_| Unsafe::Elsewhere)?;
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let same_origin = uri.scheme_str() == Some(base.scheme())
        && origin.strip_prefix(base.scheme()) == Some(&format!("://{authority}"));
    if same_origin && uri.path() == wanted && uri.query() == query.as_str() { Ok(uri) } else { Err(Unsafe::Elsewhere) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sent(path: &str, query: &str) -> Result<String, Unsafe> {
        let base = Url::parse("https://platform.example:8443/base/").expect("a URL");
        target_uri(&base, &Path::parse(path)?, &Query::parse(query)?).map(|uri| uri.to_string())
    }

    #[test]
    fn legal_paths_and_queries_keep_their_bytes() {
        for (path, query) in [
            ("/contacts/", ""),
            ("/contacts", "limit=20&tag=a&tag=b"),
            ("/contacts/a%20b", "q=a%20b+c%2Fd&empty=&bare&x=%E4%BD%A0"),
            ("/contacts/a%2Fb", "q=%27&r=a/b?c:d@e"),
            ("/a:b@c!$&'()*+,;=~-._/d", "q=!$()*+,;[]{}|`^'\\~"),
            ("/contacts/%ff", "q=%ff"),
            ("/contacts/%c0b/%e0%a0%80/%f0%90%80%80", "q=%c0%ae"),
            ("/a;x=1/b;", ""),
            ("/a%2520b", "q=%2520"),
            ("/", "?double"),
            ("/x/..y/z..", "q=../.."),
        ] {
            let expected =
                format!("https://platform.example:8443/base{path}{}{query}", if query.is_empty() { "" } else { "?" });
            assert_eq!(sent(path, query), Ok(expected), "{path}?{query}");
        }
    }

    #[test]
    fn what_cannot_stand_in_a_path_or_query_is_escaped() {
        assert_eq!(sent("/a b/ä\"<>^`{|}[]", "q=a b&r=ä'\"<>"), Ok("https://platform.example:8443/base/a%20b/%C3%A4%22%3C%3E%5E%60%7B%7C%7D%5B%5D?q=a%20b&r=%C3%A4'%22%3C%3E".into()));
    }

    #[test]
    fn each_way_out_is_closed() {
        use Unsafe::*;
        let overlong = "/".to_owned() + &"a".repeat(LONGEST_PATH);
        for (path, expected) in [
            ("", NotAbsolute),
            ("e", NotAbsolute),
            ("@e", NotAbsolute),
            (".e", NotAbsolute),
            (":8080/e", NotAbsolute),
            ("https://evil.example/", NotAbsolute),
            ("/https://evil.example/", EmptySegment),
            ("//e", EmptySegment),
            ("//", EmptySegment),
            ("/a//b", EmptySegment),
            ("/a//", EmptySegment),
            ("/a%2f%2fb", EmptySegment),
            ("/%2fe", EmptySegment),
            ("/;x/oauth/token", EmptySegment),
            ("/%3b/oauth/token", EmptySegment),
            ("/%20/oauth/token", EmptySegment),
            ("/a/ ;x/b", EmptySegment),
            ("/a/;", EmptySegment),
            ("/%c0%afoauth/token", Overlong),
            ("/%c1%8fauth/token", Overlong),
            ("/a/%c0%ae%C0%AE/b", Overlong),
            ("/a/%e0%80%ae/b", Overlong),
            ("/a/%f0%80%80%ae/b", Overlong),
            ("/a/%25c0%25ae/b", Overlong),
            ("/\\e", Backslash),
            ("/%5ce", Backslash),
            ("/%255ce", Backslash),
            ("/\te", Control),
            ("\t/e", Control),
            ("/a%09b", Control),
            ("/a%00", Control),
            ("/a\0", Control),
            ("/a%250d%250aHost:x", Control),
            ("/a\r\nHost: x", Control),
            ("/@e", LikeAnAuthority),
            ("/%40e", LikeAnAuthority),
            ("/.e", LikeAnAuthority),
            ("/..", DotSegment),
            ("/.", DotSegment),
            ("/a/../b", DotSegment),
            ("/a/./b", DotSegment),
            ("/a/..", DotSegment),
            ("/a/%2e%2e/b", DotSegment),
            ("/a/.%2E/b", DotSegment),
            ("/a/..%2fb", DotSegment),
            ("/a/%252e%252e/b", DotSegment),
            ("/a/%25252e%25252e/b", DotSegment),
            ("/a/..;x=1/b", DotSegment),
            ("/a/..%20/b", DotSegment),
            ("/a?b", Delimiter),
            ("/a#b", Delimiter),
            ("/a%", BrokenEscape),
            ("/a%2", BrokenEscape),
            ("/a%zz", BrokenEscape),
            ("/%252525252525", TooDeep),
            (&overlong, TooLong),
        ] {
            assert_eq!(Path::parse(path), Err(expected), "{path:?}");
        }
        for (query, expected) in
            [("a#b", Fragment), ("a\r\nb", Control), ("a\0", Control), (&*"a".repeat(LONGEST_QUERY + 1), TooLong)]
        {
            assert_eq!(Query::parse(query), Err(expected), "{query:?}");
        }
    }

    #[test]
    fn a_path_that_slipped_through_is_stopped_at_the_url() {
        let base = Url::parse("https://platform.example").expect("a URL");
        for wire in ["@evil.example/", ".evil.example/", ":8443/", "evil.example", "/a#b", "/a?b", "/a b", "/a\r\nb"] {
            let unchecked = Path { wire: wire.to_owned(), readings: [Vec::new(), Vec::new()] };
            assert_eq!(target_uri(&base, &unchecked, &Query::default()), Err(Unsafe::Elsewhere), "{wire}");
        }
    }

    #[test]
    fn pairs_are_escaped_in_their_order() {
        let query = Query::from_pairs([("tag", "a b"), ("tag", "c&d=e"), ("ü", "#")]).expect("short");
        assert_eq!(query.as_str(), Some("tag=a%20b&tag=c%26d%3De&%C3%BC=%23"));
        assert_eq!(Query::from_pairs([]), Ok(Query(None)));
    }

    /// Texts of characters and escapes that have a meaning in paths, and texts of any characters.
    fn hostile() -> impl Strategy<Value = String> {
        let special = "([/\\\\.@:?#a;\\[\\]| \t\0ä\u{2028}\u{ff0f}\u{ad}]|//|\\.\\.|%(2e|2f|5c|25|00|C3)|base|oauth|evil\\.example){0,12}";
        prop_oneof![special, "\\PC*", any::<String>()]
    }

    proptest! {
        // PROPTEST_CASES asks for more.
        #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.max(2_000)))]

        /// An accepted path leads to the platform, below its base URL, and every parser reads it alike.
        #[test]
        fn nothing_leads_elsewhere(path in hostile(), slash in any::<bool>(), query in hostile()) {
            for base in ["https://platform.example:8443/base/", "https://platform.example", "http://[::1]:9/a/b"] {
                let base = Url::parse(base).expect("a URL");
                let path = if slash { format!("/{path}") } else { path.clone() };
                let (Ok(path), Ok(query)) = (Path::parse(&path), Query::parse(&query)) else { continue };
                let uri = target_uri(&base, &path, &query).expect("a safe path stays where it is");
                prop_assert_eq!(uri.query(), query.as_str());
                // A parser of the WHATWG URL standard reads the same.
                let url = Url::parse(&uri.to_string()).expect("a URL");
                prop_assert_eq!((url.scheme(), url.host(), url.port()), (base.scheme(), base.host(), base.port()));
                prop_assert!(url.path().starts_with(base.path()));
                prop_assert_eq!(url.fragment(), None);
                prop_assert!(url.username().is_empty() && url.password().is_none());
                prop_assert!(url.as_str().bytes().all(|b| b.is_ascii_graphic()));
                let again = Path::parse(path.as_str()).expect("what is sent is safe");
                prop_assert_eq!(again.as_str(), path.as_str());
                let dots = |s: &String| s == "." || s == "..";
                prop_assert!(!again.readings().iter().flatten().any(dots));
            }
        }

        #[test]
        fn a_path_of_legal_characters_is_kept(path in "(/[a-zA-Z0-9_~!$&'()*+,=:-][a-zA-Z0-9_~!$&'()*+,;=:-]{0,11}){1,6}/?") {
            let parsed = Path::parse(&path).expect("legal");
            prop_assert_eq!(parsed.as_str(), &path);
        }
    }
}
