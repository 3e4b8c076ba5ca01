//! The platform's MCP endpoint, `/mcp/`: the offered methods, and the tools that a request calls. Pure.
//!
//! The endpoint speaks Streamable HTTP (Model Context Protocol, "Transports"): JSON-RPC messages in the body of a POST.

use std::fmt;

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::path::Path;
use crate::domain::problem::{Code, Problem};

/// Headers that pass in both directions at the endpoint (MCP, "Transports": session, resumption and protocol version).
pub const HEADERS: [HeaderName; 3] = [
    HeaderName::from_static("last-event-id"),
    HeaderName::from_static("mcp-protocol-version"),
    HeaderName::from_static("mcp-session-id"),
];

/// The methods that the relay offers at the endpoint, as the value of an `Allow` header.
pub const OFFERED: &str = "POST, DELETE";

/// True if the platform could read a path as its MCP endpoint.
pub fn is_endpoint(path: &Path) -> bool {
    path.may_begin_with("mcp")
}

/// Refuses a GET of the endpoint with [`Code::MethodNotOffered`]. It would open a stream without an end, and occupy a
/// process until the deadline. The protocol prescribes 405 for a server that offers no such stream.
pub fn check_offered(method: &Method, path: &Path) -> Result<(), Problem> {
    if *method == Method::GET && is_endpoint(path) {
        let detail = "the relay opens no streams: send messages by POST, the response comes as a whole";
        return Err(Problem::new(Code::MethodNotOffered, detail));
    }
    Ok(())
}

/// The names of the tools that a request calls (`params.name` of each JSON-RPC message `tools/call`).
#[derive(Debug, PartialEq, Eq)]
pub struct ToolCalls(pub Vec<String>);

/// The tools that a body calls are unclear, because two programs could read it differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the body is not one JSON-RPC message or a list of them")]
pub struct Unreadable;

impl ToolCalls {
    /// Finds the called tools. The body is read strictly: a content coding, a repeated member or a list in a list is
    /// refused.
    pub fn of(method: &Method, headers: &HeaderMap, body: &[u8]) -> Result<Self, Unreadable> {
        if body.is_empty() {
            return if *method == Method::POST { Err(Unreadable) } else { Ok(Self(Vec::new())) };
        }
        if headers.contains_key(header::CONTENT_ENCODING) || !headers.get_all(header::CONTENT_TYPE).iter().all(is_utf8)
        {
            return Err(Unreadable);
        }
        let whole: &RawValue = serde_json::from_slice(body).map_err(|_| Unreadable)?;
        let messages: Vec<&RawValue> = match whole.get().as_bytes().first() {
            Some(b'[') => serde_json::from_str(whole.get()).map_err(|_| Unreadable)?,
            _ => vec![whole],
        };
        let names = messages.into_iter().filter_map(|message| called_tool(message).transpose());
        names.collect::<Result<_, _>>().map(Self)
    }
}

/// True if a content type names no other character encoding than UTF-8, the encoding of JSON (RFC 8259 section 8.1). The
/// bytes of "ping" in UTF-8 may be a tool call in another encoding.
fn is_utf8(content_type: &HeaderValue) -> bool {
    let Ok(text) = content_type.to_str() else { return false };
    let text = text.to_ascii_lowercase();
    let mut charsets = text.split(';').skip(1).filter(|parameter| parameter.contains("charset"));
    charsets.all(|parameter| {
        let (name, value) = parameter.split_once('=').unwrap_or_default();
        name.trim() == "charset" && ["utf-8", "utf8"].contains(&value.trim().trim_matches('"'))
    })
}

/// The tool that a message calls, if it calls one.
fn called_tool(message: &RawValue) -> Result<Option<String>, Unreadable> {
    let Members([method, params]) = Members::read(message, ["method", "params"])?;
    // A message without a method is a response of the client.
    let Some(method) = method else { return Ok(None) };
    let method: String = serde_json::from_str(method.get()).map_err(|_| Unreadable)?;
    if !method.trim().eq_ignore_ascii_case("tools/call") {
        return Ok(None);
    }
    let Members([name]) = Members::read(params.ok_or(Unreadable)?, ["name"])?;
    serde_json::from_str(name.ok_or(Unreadable)?.get()).map(Some).map_err(|_| Unreadable)
}

/// The values of the wanted members of an object. A repeated member is refused. A name that differs in case only is
/// refused, too: some parsers ignore case.
struct Members<'a, const N: usize>([Option<&'a RawValue>; N]);

impl<'a, const N: usize> Members<'a, N> {
    fn read(object: &'a RawValue, names: [&'static str; N]) -> Result<Self, Unreadable> {
        let mut json = serde_json::Deserializer::from_str(object.get());
        (&mut json).deserialize_map(Wanted(names)).map_err(|_| Unreadable)
    }
}

struct Wanted<const N: usize>([&'static str; N]);

impl<'de, const N: usize> Visitor<'de> for Wanted<N> {
    type Value = Members<'de, N>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object without repeated members")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = [None; N];
        while let Some(name) = map.next_key::<String>()? {
            let value: &RawValue = map.next_value()?;
            let Some(at) = self.0.iter().position(|wanted| wanted.eq_ignore_ascii_case(&name)) else { continue };
            if name != self.0[at] || found[at].replace(value).is_some() {
                return Err(A::Error::custom("an ambiguous member"));
            }
        }
        Ok(Members(found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calls(body: &str) -> Option<Vec<String>> {
        ToolCalls::of(&Method::POST, &HeaderMap::new(), body.as_bytes()).ok().map(|ToolCalls(names)| names)
    }

    #[test]
    fn tools_are_found_in_messages_and_lists_of_them() {
        let call =
            |name: &str| format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"{name}"}}}}"#);
        let none: &[&str] = &[];
        for (body, expected) in [
            (call("a"), &["a"][..]),
            (format!(" \n{} ", call("a")), &["a"]),
            (
                r#"{"method":"tools/call","params":{"arguments":{"name":"x","name":1e999},"name":"a"},"id":{}}"#.into(),
                &["a"],
            ),
            (r#"{"method":"tools\u002fcall","params":{"n\u0061me":"\u0061"}}"#.into(), &["a"]),
            (r#"{"method":" Tools/Call","params":{"name":"a"}}"#.into(), &["a"]),
            (r#"{"method":"tools/list","params":[1]}"#.into(), none),
            (r#"{"method":"initialize","params":{"name":7}}"#.into(), none),
            (r#"{"jsonrpc":"2.0","id":1,"result":{"method":"tools/call"}}"#.into(), none),
            (format!("[{},{},{}]", call("a"), r#"{"method":"ping"}"#, call("b")), &["a", "b"]),
            ("[]".into(), none),
        ] {
            assert_eq!(
                calls(&body).as_deref(),
                Some(&expected.iter().map(|&n| n.to_owned()).collect::<Vec<_>>()[..]),
                "{body}"
            );
        }
    }

    #[test]
    fn an_ambiguous_body_is_refused() {
        for body in [
            "",
            "null",
            "7",
            "\"tools/call\"",
            "{",
            "{}{}",
            "\u{feff}{}",
            r#"{"method":"ping","method":"tools/call","params":{"name":"a"}}"#,
            r#"{"method":"tools/call","m\u0065thod":"ping"}"#,
            r#"{"method":"ping","Method":"tools/call","params":{"name":"a"}}"#,
            r#"{"METHOD":"tools/call","params":{"name":"a"}}"#,
            r#"{"method":"tools/call","params":{"name":"a","name":"b"}}"#,
            r#"{"method":"tools/call","params":{"name":"a","Name":"b"}}"#,
            r#"{"method":"tools/call","params":{"name":"a"},"params":{"name":"b"}}"#,
            r#"{"method":"tools/call","params":["a"]}"#,
            r#"{"method":"tools/call","params":{}}"#,
            r#"{"method":"tools/call","params":{"name":["a"]}}"#,
            r#"{"method":"tools/call","params":{"name":null}}"#,
            r#"{"method":"tools/call"}"#,
            r#"{"method":["tools/call"],"params":{"name":"a"}}"#,
            r#"{"method":null}"#,
            r#"[[{"method":"ping"}]]"#,
            r#"[{"method":"ping"},7]"#,
            r#"[{"method":"ping"},[]]"#,
        ] {
            assert_eq!(calls(body), None, "{body}");
        }
        assert_eq!(ToolCalls::of(&Method::POST, &HeaderMap::new(), b"{\"method\":\"\xff\"}"), Err(Unreadable));
        let utf16: Vec<u8> = "{}".encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert_eq!(ToolCalls::of(&Method::POST, &HeaderMap::new(), &utf16), Err(Unreadable));
        let encoded = HeaderMap::from_iter([(header::CONTENT_ENCODING, HeaderValue::from_static("br"))]);
        assert_eq!(ToolCalls::of(&Method::POST, &encoded, br#"{"method":"ping"}"#), Err(Unreadable));
        assert_eq!(ToolCalls::of(&Method::DELETE, &HeaderMap::new(), b""), Ok(ToolCalls(Vec::new())));
        for (content_type, readable) in [
            ("application/json", true),
            ("application/json; charset=utf-8", true),
            ("application/json;Charset=\"UTF-8\"", true),
            ("application/json; charset=utf-7", false),
            ("application/json; charset=utf-8; charset=utf-16", false),
            ("application/json; charset", false),
            ("application/json; charset*=utf-7''x", false),
        ] {
            let typed = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(content_type))]);
            let calls = ToolCalls::of(&Method::POST, &typed, br#"{"method":"ping"}"#);
            assert_eq!(calls.is_ok(), readable, "{content_type}");
        }
    }

    #[test]
    fn a_get_of_the_endpoint_is_not_offered() {
        for (method, path, offered) in [
            (Method::GET, "/mcp/", false),
            (Method::GET, "/mcp", false),
            (Method::GET, "/MCP/", false),
            (Method::GET, "/mcp/sse", false),
            (Method::POST, "/mcp/", true),
            (Method::DELETE, "/mcp/", true),
            (Method::GET, "/mcpx/", true),
            (Method::GET, "/contacts/mcp", true),
        ] {
            let path = Path::parse(path).expect("a safe path");
            assert_eq!(check_offered(&method, &path).is_ok(), offered, "{method} {}", path.as_str());
        }
    }
}
