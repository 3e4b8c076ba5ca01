//! The ids in a body. The body is not copied, unless it is JSON with invalid UTF-8.

use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderName};
use memchr::memmem;
use percent_encoding::percent_decode_str;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::fmt;

use super::{IdField, IdFields};

/// The longest part of a form that is read, in bytes. A longer part is not an id.
const LONGEST_VALUE: usize = 256;

/// The format of a body, by its content type.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Format {
    Json,
    Form,
    Multipart { boundary: String },
    Other,
}

impl Format {
    fn of(headers: &HeaderMap, body: &[u8]) -> Self {
        let text = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
        if text(CONTENT_ENCODING).is_some_and(|encoding| !encoding.trim().eq_ignore_ascii_case("identity")) {
            return Self::Other;
        }
        let Some(content_type) = text(CONTENT_TYPE) else {
            return if body.trim_ascii_start().starts_with(b"{") { Self::Json } else { Self::Other };
        };
        let (essence, parameters) = content_type.split_once(';').unwrap_or((content_type, ""));
        let essence = essence.trim().to_ascii_lowercase();
        let charset = parameter(parameters, "charset");
        let charset = charset.as_deref().unwrap_or("utf-8");
        let readable = ["utf-8", "utf8", "us-ascii"].iter().any(|known| charset.eq_ignore_ascii_case(known));
        match essence.as_str() {
            "application/json" if readable => Self::Json,
            other if readable && other.ends_with("+json") => Self::Json,
            "application/x-www-form-urlencoded" if readable => Self::Form,
            "multipart/form-data" => {
                parameter(parameters, "boundary").map_or(Self::Other, |boundary| Self::Multipart { boundary })
            }
            _ => Self::Other,
        }
    }
}

/// Reads parameters (RFC 9110 section 5.6.6): names in lower case, values without quotes.
fn parameters(written: &str) -> Vec<(String, String)> {
    let (mut found, mut name, mut value) = (Vec::new(), String::new(), None::<String>);
    let (mut quoted, mut characters) = (false, written.chars());
    loop {
        match (characters.next(), &mut value) {
            (Some('"'), Some(_)) => quoted = !quoted,
            (Some('\\'), Some(value)) if quoted => value.extend(characters.next()),
            (Some('='), None) => value = Some(String::new()),
            (Some(c), Some(value)) if quoted || c != ';' => value.push(c),
            (Some(c), None) if c != ';' => name.push(c),
            (end, _) => {
                let name = std::mem::take(&mut name).trim().to_ascii_lowercase();
                found.extend(value.take().map(|value| (name, value.trim().to_owned())));
                if end.is_none() {
                    return found;
                }
            }
        }
    }
}

/// The first parameter of a name. `None` if its value is empty.
fn parameter(written: &str, name: &str) -> Option<String> {
    let mut found = parameters(written).into_iter();
    found.find(|(key, _)| key == name).map(|(_, value)| value).filter(|value| !value.is_empty())
}

/// Adds the ids in the body to `fields`.
pub(super) fn read(headers: &HeaderMap, body: &[u8], fields: &mut IdFields) {
    match Format::of(headers, body) {
        Format::Json if may_have_ids(body) => read_json(body, fields),
        Format::Form => fields.read_form(body),
        // Always parsed: names in a multipart form can be encoded in several ways.
        Format::Multipart { boundary } => read_multipart(body, &boundary, fields),
        Format::Json | Format::Other => {}
    }
}

/// True if the name of an id may occur in JSON. A search for the bytes of the names is a hundred times faster than a
/// parser, and most bodies contain none of them. JSON can write a name with `\u` escapes, so these count, too.
fn may_have_ids(body: &[u8]) -> bool {
    let needles: [&[u8]; 6] = [b"locationId", b"location_id", b"companyId", b"company_id", b"altId", b"\\u"];
    needles.iter().any(|needle| memmem::find(body, needle).is_some())
}

/// Reads the members at the top of a JSON object. Members before a syntax error count.
fn read_json(body: &[u8], fields: &mut IdFields) {
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    // Invalid UTF-8 is replaced, as other parsers do.
    let text = String::from_utf8_lossy(body);
    let mut json = serde_json::Deserializer::from_str(&text);
    // The platform refuses a body that is not JSON.
    let _not_json = json.deserialize_map(Members(fields));
}

struct Members<'a>(&'a mut IdFields);

impl<'de> Visitor<'de> for Members<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        while let Some(field) = members.next_key_seed(Name)? {
            match field {
                None => {
                    members.next_value::<IgnoredAny>()?;
                }
                Some(field) => {
                    if let Some(value) = text(members.next_value()?) {
                        self.0.take(field, &value);
                    }
                }
            }
        }
        Ok(())
    }
}

/// The name of a member, if it is the name of an id. It is read as bytes, because a name need not be text.
struct Name;

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Option<IdField>;

    fn deserialize<D: Deserializer<'de>>(self, name: D) -> Result<Self::Value, D::Error> {
        name.deserialize_bytes(self)
    }
}

impl Visitor<'_> for Name {
    type Value = Option<IdField>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_bytes<E: Error>(self, name: &[u8]) -> Result<Self::Value, E> {
        Ok(IdField::of(name))
    }
}

/// A value, if it is a string. Other parsers accept values that this one does not (half a surrogate pair, a number of any
/// size). Such a value must not stop the reading of the members after it.
fn text(value: &RawValue) -> Option<String> {
    if !value.get().starts_with('"') {
        return None;
    }
    serde_json::Deserializer::from_str(value.get()).deserialize_bytes(Text).ok()
}

struct Text;

impl Visitor<'_> for Text {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_bytes<E: Error>(self, text: &[u8]) -> Result<Self::Value, E> {
        Ok(String::from_utf8_lossy(text).into_owned())
    }
}

/// Reads the parts of a multipart form (RFC 7578) that are not files.
fn read_multipart(body: &[u8], boundary: &str, fields: &mut IdFields) {
    let delimiter = format!("--{boundary}");
    let mut ends = memmem::find_iter(body, delimiter.as_bytes());
    let Some(mut from) = ends.next() else { return };
    for end in ends {
        if let Some((field, value)) = part(&body[from + delimiter.len()..end]) {
            fields.take(field, value);
        }
        from = end;
    }
}

fn part(part: &[u8]) -> Option<(IdField, &str)> {
    let at = memmem::find(part, b"\r\n\r\n")?;
    let (head, value) = (&part[..at], part[at + 4..].strip_suffix(b"\r\n")?);
    if value.len() > LONGEST_VALUE {
        return None;
    }
    // A line that begins with a space continues the line before it.
    let head = String::from_utf8_lossy(head).replace("\r\n ", " ").replace("\r\n\t", " ");
    let disposition = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.trim().eq_ignore_ascii_case("content-disposition").then_some(value)
    })?;
    let (_, written) = disposition.split_once(';')?;
    let parameters = parameters(written);
    if parameters.iter().any(|(name, _)| matches!(&**name, "filename" | "filename*")) {
        return None;
    }
    let field = parameters.iter().find_map(|(name, value)| match &**name {
        "name" => IdField::of_form(value),
        // RFC 8187: `utf-8''escaped`.
        "name*" => IdField::of_form(&percent_decode_str(value.rsplit('\'').next()?).decode_utf8_lossy()),
        _ => None,
    })?;
    Some((field, std::str::from_utf8(value).ok()?))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::super::TargetIds;
    use super::*;

    fn names(content_type: Option<&str>, body: &[u8]) -> (Vec<String>, Vec<String>) {
        let value = content_type.map(|text| (CONTENT_TYPE, HeaderValue::try_from(text).expect("a value")));
        of(&HeaderMap::from_iter(value), body)
    }

    fn of(headers: &HeaderMap, body: &[u8]) -> (Vec<String>, Vec<String>) {
        let (mut fields, mut names) = (IdFields::default(), TargetIds::default());
        read(headers, body, &mut fields);
        fields.move_into(&mut names);
        (names.locations, names.companies)
    }

    fn ids(locations: &[&str], companies: &[&str]) -> (Vec<String>, Vec<String>) {
        let texts = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect();
        (texts(locations), texts(companies))
    }

    #[test]
    fn members_at_the_top_of_json_name() {
        for (body, expected) in [
            (&br#"{"locationId":"L1"}"#[..], ids(&["L1"], &[])),
            (br#" {"a":{"locationId":"L9"},"b":[{"locationId":"L9"}],"location_id" : "L1" }"#, ids(&["L1"], &[])),
            (br#"{"locationId":"L1","locationId":"L2"}"#, ids(&["L1", "L2"], &[])),
            (br#"{"\u006cocationId":"\u004c1"}"#, ids(&["L1"], &[])),
            (br#"{"companyId":"C1","company_id":"C2"}"#, ids(&[], &["C1", "C2"])),
            (br#"{"altId":"L1","altType":"location"}"#, ids(&["L1"], &[])),
            (br#"{"altType":"company","altId":"C1"}"#, ids(&[], &["C1"])),
            (br#"{"locationId":null,"companyId":7,"altId":["L9"],"location_id":{"locationId":"L9"}}"#, ids(&[], &[])),
            (br#"{"locationId":true,"companyId":1.5,"company_id":-1,"altId":"L1"}"#, ids(&["L1"], &[])),
            (br#"{"locationId":""}"#, ids(&[], &[])),
            (br#"[{"locationId":"L9"}]"#, ids(&[], &[])),
            (br#""locationId""#, ids(&[], &[])),
            (br#"{"a":"\ud800","locationId":"L1"}"#, ids(&["L1"], &[])),
            (b"{\"\xff\":\"\xff\",\"locationId\":\"L1\"}", ids(&["L1"], &[])),
            (b"\xef\xbb\xbf{\"locationId\":\"L1\"}", ids(&["L1"], &[])),
            (br#"{"locationId":"L1",broken"#, ids(&["L1"], &[])),
            // Values that other parsers accept must not end the reading.
            (br#"{"altType":1e999,"locationId":"L1"}"#, ids(&["L1"], &[])),
            (br#"{"companyId":"\ud800","locationId":"L1"}"#, ids(&["L1"], &["\u{fffd}\u{fffd}\u{fffd}"])),
            (b"{\"companyId\":\"\xff\",\"locationId\":\"L1\"}", ids(&["L1"], &["\u{fffd}"])),
            (br#"{"altType":"location","altId":"L1","altType":"user"}"#, ids(&["L1"], &[])),
            (br#"{"name":"locationId=L9"}"#, ids(&[], &[])),
        ] {
            let text = String::from_utf8_lossy(body);
            assert_eq!(names(Some("application/json"), body), expected, "{text}");
            assert_eq!(names(Some("application/vnd.api+json; charset=UTF-8"), body), expected, "{text}");
        }
    }

    #[test]
    fn the_content_type_says_what_a_body_is() {
        let (json, form) = (br#"{"locationId":"L1"}"#, b"locationId=L1&a=b");
        assert_eq!(names(None, json), ids(&["L1"], &[]));
        assert_eq!(names(None, form), ids(&[], &[]));
        assert_eq!(names(Some("application/x-www-form-urlencoded"), form), ids(&["L1"], &[]));
        for other in ["text/plain", "application/octet-stream", "application/json; charset=utf-16", "", "é"] {
            assert_eq!(names(Some(other), json), ids(&[], &[]), "{other}");
        }
        let compressed = [(CONTENT_TYPE, "application/json"), (CONTENT_ENCODING, "gzip")];
        let compressed = HeaderMap::from_iter(compressed.map(|(n, v)| (n, HeaderValue::from_static(v))));
        assert_eq!(of(&compressed, json), ids(&[], &[]));
    }

    #[test]
    fn a_form_with_files_names_by_its_fields() {
        let body = concat!(
            "--x\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\nlocationId\r\n",
            "--x\r\ncontent-disposition: form-data; name=\"locationId\"\r\n\r\nL1\r\n",
            "--x\r\nContent-Disposition: form-data; name=\"companyId\"; filename=\"b\"\r\n\r\nC9\r\n",
            "--x\r\nContent-Disposition: form-data; name=altId\r\n\r\nL2\r\n",
            "--x--\r\n",
        );
        for boundary in ["x", "\"x\""] {
            let content_type = format!("multipart/form-data; boundary={boundary}");
            assert_eq!(names(Some(&content_type), body.as_bytes()), ids(&["L1", "L2"], &[]));
        }
        for disposition in [
            "form-data;\r\n name=\"locationId\"",
            "form-data; x=\"a;b\"; name=\"locationId\"",
            "form-data; x=\"; filename=y\"; name=\"locationId\"",
            "form-data; name=\"location\\Id\"",
            "form-data; name=\"locationId[]\"",
            "form-data; name*=utf-8''location%49d",
        ] {
            let body = format!("--a;b\r\nX: é\r\nContent-Disposition: {disposition}\r\n\r\nL1\r\n--a;b--\r\n");
            let content_type = "multipart/form-data; boundary=\"a;b\"";
            assert_eq!(names(Some(content_type), body.as_bytes()), ids(&["L1"], &[]), "{disposition}");
        }
        for broken in ["", "--", "--x", "--x--x", "--x\r\n\r\n--x", "--x\r\n\r\n\r\n--x", "--xlocationId--x--x--"] {
            assert_eq!(names(Some("multipart/form-data; boundary=x"), broken.as_bytes()), ids(&[], &[]), "{broken}");
        }
        assert_eq!(names(Some("multipart/form-data"), body.as_bytes()), ids(&[], &[]));
    }

    fn json() -> impl Strategy<Value = serde_json::Value> {
        let name =
            prop::sample::select(vec!["locationId", "location_id", "companyId", "altId", "altType", "a", "é\"\\"]);
        let text = prop::sample::select(vec!["L1", "C1", "location", "company", "", "locationId", "\u{1F332}\n", "{"]);
        let leaf = prop_oneof![
            text.prop_map(serde_json::Value::from),
            any::<f64>().prop_map(serde_json::Value::from),
            any::<bool>().prop_map(serde_json::Value::from),
            Just(serde_json::Value::Null),
        ];
        leaf.prop_recursive(3, 24, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(serde_json::Value::from),
                prop::collection::hash_map(name.clone().prop_map(str::to_owned), inner, 0..6)
                    .prop_map(|members| members.into_iter().collect::<serde_json::Map<_, _>>().into()),
            ]
        })
    }

    /// The ids that a parser of whole documents finds.
    fn at_the_top(document: &serde_json::Value) -> (Vec<String>, Vec<String>) {
        let text =
            |name: &str| document.get(name)?.as_str().map(str::trim).filter(|t| !t.is_empty()).map(str::to_owned);
        let mut found = (Vec::new(), Vec::new());
        found.0.extend(["locationId", "location_id"].iter().filter_map(|name| text(name)));
        found.1.extend(["companyId", "company_id"].iter().filter_map(|name| text(name)));
        let kind = document.get("altType").and_then(serde_json::Value::as_str).map(str::trim);
        match kind {
            None | Some("" | "location") => found.0.extend(text("altId")),
            Some("company" | "agency") => found.1.extend(text("altId")),
            Some(_) => {}
        }
        found.0.sort();
        found.1.sort();
        found
    }

    fn sorted((mut locations, mut companies): (Vec<String>, Vec<String>)) -> (Vec<String>, Vec<String>) {
        locations.sort();
        companies.sort();
        (locations, companies)
    }

    proptest! {
        // PROPTEST_CASES asks for more.
        #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.max(1_000)))]

        #[test]
        fn json_names_what_a_reader_of_whole_documents_finds(document in json(), pretty in any::<bool>(), escaped in any::<bool>()) {
            let mut text = if pretty { serde_json::to_string_pretty(&document) } else { serde_json::to_string(&document) }
                .expect("JSON");
            if escaped {
                text = text.replace("\"locationId\"", "\"loc\\u0061tionId\"").replace("\"altId\"", "\"\\u0061ltId\"");
            }
            prop_assert_eq!(sorted(names(Some("application/json"), text.as_bytes())), at_the_top(&document), "{}", text);
        }

        #[test]
        fn no_bytes_do_harm(body in prop::collection::vec(any::<u8>(), 0..200), pieces in prop::collection::vec(
            prop::sample::select(vec!["{", "}", "[", "]", ",", ":", "\"", "\"locationId\"", "\"altId\":\"L1\"", "\\u", "\\ud800", "\\",
                "--x", "--x\r\n", "\r\n\r\n", "\r\n", "Content-Disposition: form-data; name=\"locationId\"", "name=", ";", "=", "&", "%", "locationId=L1", "[",
                "\u{feff}", "null", "1e999", "-"]), 0..24)) {
            let text = pieces.concat();
            for body in [&body[..], text.as_bytes()] {
                for content_type in [None, Some("application/json"), Some("application/x-www-form-urlencoded"), Some("multipart/form-data; boundary=x"), Some("multipart/form-data; boundary=\"")] {
                    let (locations, companies) = names(content_type, body);
                    prop_assert!(locations.iter().chain(&companies).all(|id| !id.is_empty()));
                }
            }
        }
    }
}
