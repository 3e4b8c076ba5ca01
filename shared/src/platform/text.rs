//! The texts in the body of an unsuccessful response. Pure.
//!
//! The platform uses several shapes: `{"message":"…"}`, `{"message":["…"]}`, `{"error":"…","error_description":"…"}`, and
//! in v3 `{"error":{"code":"…","message":"…"}}`. Gateways in front of the platform send HTML, plain text or no body.

use serde_json::Value;

/// The largest body that is read, in bytes. The platform's error responses are far smaller.
const LONGEST: usize = 16 * 1024;
/// The members of an object that hold texts.
const MEMBERS: [&str; 9] =
    ["message", "error_description", "errorDescription", "detail", "error", "errors", "msg", "title", "code"];
/// The depth to which texts are looked for.
const DEEPEST: usize = 4;
/// The longest sample, in characters.
const SAMPLE: usize = 200;

/// Reads JSON. A byte-order mark is skipped.
pub(crate) fn json(body: &[u8]) -> Option<Value> {
    serde_json::from_slice(without_mark(body)).ok()
}

fn without_mark(body: &[u8]) -> &[u8] {
    body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body)
}

/// The content of a body.
#[derive(Debug, PartialEq)]
pub(super) enum Body {
    /// JSON: the texts in it.
    Json(Vec<String>),
    /// Plain text.
    Plain(String),
    /// A page of HTML or XML.
    Page,
    /// JSON of a content delivery network that names itself.
    OfCdn,
    /// An empty body, or one that is larger than any error response of the platform.
    Nothing,
}

impl Body {
    /// Reads a body. The content type is ignored, because gateways and the platform send wrong ones.
    pub(super) fn read(body: &[u8]) -> Self {
        let body = without_mark(body).trim_ascii();
        if body.starts_with(b"<") {
            return Self::Page;
        }
        if body.is_empty() || body.len() > LONGEST {
            return Self::Nothing;
        }
        match json(body) {
            // Cloudflare sends JSON if the request accepts JSON.
            Some(json) if json.get("cloudflare_error").is_some() => Self::OfCdn,
            Some(json) => {
                let mut texts = Vec::new();
                collect(&json, DEEPEST, &mut texts);
                Self::Json(texts)
            }
            None => Self::Plain(String::from_utf8_lossy(body).into_owned()),
        }
    }

    /// The texts for an operator: cut short, and without anything that looks like a token or secret.
    pub(super) fn sample(&self) -> String {
        let text = match self {
            Self::Json(texts) => texts.join(" "),
            Self::Plain(text) => text.clone(),
            Self::Page => return "a page of HTML".to_owned(),
            Self::OfCdn => return "an error of the CDN".to_owned(),
            Self::Nothing => return "nothing that can be read".to_owned(),
        };
        let words: Vec<_> = text.split_whitespace().map(redacted).collect();
        words.join(" ").chars().take(SAMPLE).collect()
    }
}

fn collect(value: &Value, depth: usize, texts: &mut Vec<String>) {
    match value {
        Value::String(text) => texts.push(text.clone()),
        Value::Array(values) if depth > 0 => values.iter().for_each(|value| collect(value, depth - 1, texts)),
        Value::Object(members) if depth > 0 => {
            let found = MEMBERS.iter().filter_map(|name| members.get(*name));
            found.for_each(|value| collect(value, depth - 1, texts));
        }
        _ => {}
    }
}

/// The word, or `…` if it may be a token, a secret or a key: those are long, or have digits and are not short.
fn redacted(word: &str) -> String {
    let has_digit = word.bytes().any(|byte| byte.is_ascii_digit());
    if word.len() > 40 || (has_digit && word.len() > 24) {
        "…".to_owned()
    } else {
        word.replace(char::is_control, "")
    }
}

/// A text in the form in which phrases are compared: words in lower case, with single spaces before, between and after
/// them.
///
/// `camelCase` and `snake_case` are several words. A mark that ends a sentence or clause (`.`, `:`, `;`, `!`, `?`) becomes
/// the word `.`, so that no phrase spans two clauses. Apostrophes are removed; all other punctuation separates words.
pub(super) fn words(text: &str) -> String {
    let mut words = String::with_capacity(text.len() + 8);
    words.push(' ');
    let mut characters = text.chars().filter(|character| !matches!(character, '\'' | '’' | '`')).peekable();
    let mut before = ' ';
    while let Some(character) = characters.next() {
        if before.is_ascii_lowercase() && character.is_ascii_uppercase() {
            separate(&mut words);
        }
        let ends_clause = match character {
            '.' => characters.peek().is_none_or(|next| next.is_whitespace()),
            other => matches!(other, ':' | ';' | '!' | '?' | '\n'),
        };
        if character.is_alphanumeric() {
            words.extend(character.to_lowercase());
        } else {
            separate(&mut words);
        }
        if ends_clause && !words.ends_with(" . ") {
            words.push_str(". ");
        }
        before = character;
    }
    separate(&mut words);
    let ends = words.trim_end_matches(" . ").len();
    words.truncate(ends);
    separate(&mut words);
    words
}

fn separate(words: &mut String) {
    if !words.ends_with(' ') {
        words.push(' ');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(body: &str) -> Body {
        Body::read(body.as_bytes())
    }

    fn of_json(texts: &[&str]) -> Body {
        Body::Json(texts.iter().map(|text| (*text).to_owned()).collect())
    }

    #[test]
    fn texts_are_found_in_every_shape() {
        for (name, body, expected) in [
            ("flat", r#"{"statusCode":400,"message":"a"}"#, of_json(&["a"])),
            (
                "a list",
                r#"{"message":["a","b"],"error":"Unprocessable Entity"}"#,
                of_json(&["a", "b", "Unprocessable Entity"]),
            ),
            ("nested lists", r#"{"message":[["a"],[{"message":"b"}]]}"#, of_json(&["a", "b"])),
            ("OAuth", r#"{"error":"c","error_description":"a"}"#, of_json(&["a", "c"])),
            ("v3", r#"{"error":{"code":"c","message":"a","resolution":"r","details":"d"}}"#, of_json(&["a", "c"])),
            ("message as an object", r#"{"message":{"error":"a"}}"#, of_json(&["a"])),
            ("a problem (RFC 9457)", r#"{"title":"b","detail":"a","status":400}"#, of_json(&["a", "b"])),
            ("a list at the top", r#"[{"message":"a"}]"#, of_json(&["a"])),
            ("a string at the top", r#""a""#, of_json(&["a"])),
            ("numbers", r#"{"message":7,"error":true,"code":400}"#, of_json(&[])),
            ("an empty object", "{}", of_json(&[])),
            ("with a byte-order mark", "\u{feff}{\"message\":\"a\"}", of_json(&["a"])),
            ("plain text", " Invalid JWT\n", Body::Plain("Invalid JWT".into())),
            ("JSON that is cut off", r#"{"message":"a"#, Body::Plain(r#"{"message":"a"#.into())),
            ("HTML", "\r\n<!DOCTYPE html><p>a</p>", Body::Page),
            ("HTML with a byte-order mark", "\u{feff}<html>", Body::Page),
            ("an error of Cloudflare in JSON", r#"{"title":"Error 1010","cloudflare_error":true}"#, Body::OfCdn),
            ("nothing", " \n", Body::Nothing),
            ("too deep", r#"{"error":{"error":{"error":{"error":{"error":"a"}}}}}"#, of_json(&[])),
        ] {
            assert_eq!(texts(body), expected, "{name}");
        }
        assert_eq!(Body::read(&[0xff, 0xfe]), Body::Plain("\u{fffd}\u{fffd}".into()));
        assert_eq!(texts(&format!(r#"{{"message":"{}"}}"#, "a ".repeat(10_000))), Body::Nothing);
        assert_eq!(texts(&format!("<html>{}", "a ".repeat(10_000))), Body::Page);
    }

    #[test]
    fn a_sample_tells_no_secret() {
        let long = "x".repeat(500);
        let key = "0f8c1e6a-7b1d-4c55-9a0e-1f2e3d4c5b6a";
        let text = texts(&format!(r#"{{"message":"bad token {long} or {key} given\u0007 to L1"}}"#)).sample();
        assert_eq!(text, "bad token … or … given to L1");
        assert_eq!(texts(&format!(r#"{{"message":"{}"}}"#, "a ".repeat(300))).sample().chars().count(), SAMPLE);
    }

    #[test]
    fn words_are_compared_without_case_and_punctuation() {
        for (text, expected) in [
            ("Invalid grant: refresh token is invalid", " invalid grant . refresh token is invalid "),
            ("INVALID_GRANT", " invalid grant "),
            ("refreshToken  not-found!", " refresh token not found "),
            ("Token's user type mismatch!", " tokens user type mismatch "),
            ("`redirect_uri` is invalid", " redirect uri is invalid "),
            ("A is invalid. B v1.2 is fine.\n", " a is invalid . b v1 2 is fine "),
            ("", " "),
            (" ...!\n", " "),
        ] {
            assert_eq!(words(text), expected, "{text}");
        }
    }
}
