//! The callers' secret: `{"callers":[…]}`. It is read strictly, because a misspelt restriction would be no restriction.

use std::collections::HashSet;
use std::fmt::Display;

use http::Method;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::pattern::{ArnPattern, PathPattern, Wildcard};
use super::permissions::{Permissions, ResourcePattern};
use super::{Callers, Entry, KEY_NAME_DIGITS, Key, Unlisted};
use crate::domain::qualifier::names_an_alias;
use crate::domain::resource::{Kind, Resource};
use crate::request::{self, METHODS};

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Document {
    pub(super) callers: Vec<CallerEntry>,
    /// `"allow"`, or absent.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub(super) unlisted: Option<Value>,
}

/// Reads an optional member that is present, and refuses `null`. Otherwise a restriction that a program has written as
/// `null` would be no restriction.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(member: D) -> Result<Option<T>, D::Error> {
    T::deserialize(member).map(Some)
}

/// An entry of the secret as it is written. [`Callers::parse`] validates it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CallerEntry {
    /// The caller's name.
    pub id: String,
    /// The SHA-256 of each key, in hex.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys_sha256: Vec<String>,
    /// Aliases of the relay function. An invocation of one of them comes from this caller.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// ARN patterns of the IAM principals that are this caller.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub principals: Vec<String>,
    /// The resources that it may act for. Absent means all.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub resources: Option<Vec<String>>,
    /// The methods that it may use. Absent means all.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub methods: Option<Vec<String>>,
    /// The paths that it may use. Absent means all.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub paths: Option<Vec<String>>,
    /// The tools of the platform's MCP endpoint that it may call. Absent means all.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub tools: Option<Vec<String>>,
    /// The most requests in any 10 s for each resource.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub requests_per_10s: Option<u32>,
    /// True if messages of the queue may name it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub queue: bool,
}

impl Callers {
    /// Reads the secret's value. The error names the first fault and the caller's id, and never contains a key.
    pub fn parse(json: &str) -> Result<Self, String> {
        let document: Document =
            serde_json::from_str(json).map_err(|e| format!(r#"expected {{"callers":[…]}}: {}"#, without_values(&e)))?;
        let unlisted = match document.unlisted {
            None => Unlisted::Refuse,
            Some(Value::String(word)) if word == "allow" => Unlisted::Allow,
            Some(_) => return Err(r#""unlisted" can only be "allow""#.into()),
        };
        let entries = document.callers.into_iter().map(entry).collect::<Result<Vec<_>, _>>()?;
        unique("the id", entries.iter().map(|e| &*e.id))?;
        unique("the alias", entries.iter().flat_map(|e| &e.aliases))?;
        unique("the principal", entries.iter().flat_map(|e| &e.principals))?;
        // With one key in two entries, one of the callers would act as the other.
        let mut seen = HashSet::new();
        match entries.iter().find(|e| !e.keys.iter().all(|key| seen.insert(key.sha256))) {
            Some(entry) => Err(format!("caller {}: a key is there twice", entry.id)),
            None => Ok(Self { entries, unlisted }),
        }
    }
}

/// The text of serde's error without the values that it quotes. A value could be a key in the wrong member.
pub(super) fn without_values(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let name_only = text.starts_with("unknown field") || text.starts_with("missing field");
    let place = format!("line {} column {}", error.line(), error.column());
    if name_only { text } else { format!("not the documented form at {place}") }
}

fn unique<T: Display + Eq + std::hash::Hash>(what: &str, names: impl Iterator<Item = T>) -> Result<(), String> {
    let mut seen = HashSet::new();
    for name in names {
        let fault = format!("{what} {name} is there twice");
        if !seen.insert(name) {
            return Err(fault);
        }
    }
    Ok(())
}

/// Validates one entry. The error names the first member that is wrong.
pub(super) fn entry(written: CallerEntry) -> Result<Entry, String> {
    let CallerEntry { id, keys_sha256, aliases, principals, resources, methods, paths, tools, requests_per_10s, queue } =
        written;
    if !names_a_caller(&id) {
        return Err(format!(
            "the id {id:?} is not 1 to {LONGEST_ID} letters, digits and {ID_CHARACTERS}, the first of them a letter or digit"
        ));
    }
    let fault = |what: &dyn Display| format!("caller {id}: {what}");
    if requests_per_10s == Some(0) {
        return Err(fault(&"requests_per_10s must be at least 1"));
    }
    let keys = keys_sha256.iter().map(|hex| key(hex).ok_or_else(|| fault(&"keys_sha256 holds 64 hex digits each")));
    let aliases = aliases.into_iter().map(|alias| {
        let why = "is not the name of an alias: letters, digits, - and _, and no version number";
        if names_an_alias(&alias) { Ok(alias) } else { Err(fault(&format!("alias {alias:?} {why}"))) }
    });
    let principals = principals
        .iter()
        .map(|text| ArnPattern::parse(text).map_err(|why| fault(&format!("principal {text:?} {why}"))));
    let no_resource = "is none of location:ID, company:ID, location:* and company:*";
    let may = Permissions {
        resources: all(resources, |text| {
            resource(text).ok_or_else(|| fault(&format!("resource {text:?} {no_resource}")))
        })?,
        methods: all(methods, |text| {
            request::method(text).ok_or_else(|| fault(&format!("method {text:?} is none of {}", names_of_methods())))
        })?,
        paths: all(paths, |text| PathPattern::parse(text).map_err(|why| fault(&format!("path {text:?} {why}"))))?,
        tools: all(tools, |text| tool(text).ok_or_else(|| fault(&format!("tool {text:?} is empty or has a space"))))?,
    };
    Ok(Entry {
        keys: keys.collect::<Result<_, _>>()?,
        aliases: aliases.collect::<Result<_, _>>()?,
        principals: principals.collect::<Result<_, _>>()?,
        may,
        requests_per_10s,
        queue,
        id: id.into(),
    })
}

/// The longest id of a caller, in bytes.
const LONGEST_ID: usize = 64;
/// The characters of an id other than letters and digits. `#` is not allowed, because it separates the parts of a key in
/// the table. Parentheses are not allowed, because the relay's own names have them.
const ID_CHARACTERS: &str = ". _ - @ : / + =";

fn names_a_caller(id: &str) -> bool {
    let of_an_id = |b: u8| b.is_ascii_alphanumeric() || (b != b' ' && ID_CHARACTERS.as_bytes().contains(&b));
    (1..=LONGEST_ID).contains(&id.len()) && id.bytes().all(of_an_id) && id.as_bytes()[0].is_ascii_alphanumeric()
}

fn all<T>(texts: Option<Vec<String>>, read: impl Fn(&str) -> Result<T, String>) -> Result<Option<Vec<T>>, String> {
    texts.map(|texts| texts.iter().map(|text| read(text)).collect()).transpose()
}

fn key(digits: &str) -> Option<Key> {
    let mut sha256 = [0; 32];
    hex::decode_to_slice(digits, &mut sha256).ok()?;
    Some(Key { sha256, name: digits[..KEY_NAME_DIGITS].to_ascii_lowercase().into() })
}

fn resource(text: &str) -> Option<ResourcePattern> {
    let (kind, id) = text.split_once(':')?;
    let kind = match kind {
        "location" => Kind::Location,
        "company" => Kind::Company,
        _ => return None,
    };
    match id {
        "*" => Some(ResourcePattern::Every(kind)),
        _ => Resource::new(kind, id).ok().map(ResourcePattern::One),
    }
}

fn names_of_methods() -> String {
    METHODS.iter().map(Method::as_str).collect::<Vec<_>>().join(", ")
}

fn tool(text: &str) -> Option<Wildcard> {
    let is_a_name = !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || c.is_control());
    is_a_name.then(|| Wildcard::new(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_form_is_read() {
        let callers = Callers::parse(
            r#"{"callers":[{"id":"billing","keys_sha256":["9F86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"],
            "aliases":["billing"],"principals":["arn:aws:sts::1:assumed-role/billing/*"],"resources":["location:*","company:C1"],
            "methods":["GET","POST"],"paths":["/contacts/**"],"tools":["contacts_get-contact","*_get-*"],"requests_per_10s":50},
            {"id":"least"}]}"#,
        )
        .expect("the contract's example");
        assert_eq!(callers.entries.len(), 2);
        let key = &callers.entries[0].keys[0];
        assert_eq!((&key.sha256[..2], &*key.name), (&[0x9f, 0x86][..], "9f86d081884c"));
        let unlisted = |json: &str| Callers::parse(json).map(|callers| callers.unlisted);
        assert_eq!(unlisted(r#"{"callers":[]}"#), Ok(Unlisted::Refuse));
        assert_eq!(unlisted(r#"{"callers":[],"unlisted":"allow"}"#), Ok(Unlisted::Allow));
        for value in [r#""Allow""#, r#""deny""#, r#""""#, "true", "null", "1", r#"["allow"]"#, "{}"] {
            let fault = unlisted(&format!(r#"{{"callers":[],"unlisted":{value}}}"#)).expect_err(value);
            assert!(fault.contains("unlisted"), "{value}: {fault}");
        }
        assert!(unlisted(r#"{"callers":[],"unlisted":"allow","unlisted":"allow"}"#).is_err(), "twice");
        assert!(unlisted(r#"{"unlisted":"allow"}"#).is_err(), "without callers");
    }

    #[test]
    fn a_restriction_is_a_list_or_absent_and_never_null() {
        for member in [
            "keys_sha256",
            "aliases",
            "principals",
            "resources",
            "methods",
            "paths",
            "tools",
            "requests_per_10s",
            "queue",
        ] {
            let json = format!(r#"{{"callers":[{{"id":"a","{member}":null}}]}}"#);
            assert!(Callers::parse(&json).is_err(), "{json}");
        }
        let nothing = r#"{"callers":[{"id":"a","resources":[],"methods":[],"paths":[],"tools":[]}]}"#;
        let may = &Callers::parse(nothing).expect("empty lists").entries[0].may;
        let lengths = [may.resources.as_ref().map(Vec::len), may.methods.as_ref().map(Vec::len)];
        assert_eq!(lengths, [Some(0); 2], "an empty list allows nothing");
        assert_eq!([may.paths.as_ref().map(Vec::len), may.tools.as_ref().map(Vec::len)], [Some(0); 2]);
    }

    #[test]
    fn an_id_has_the_stated_characters() {
        let of = |id: &str| Callers::parse(&serde_json::json!({"callers": [{"id": id}]}).to_string()).map(|_| ());
        for good in ["billing", "a", "7", "team-1.mail_x", "svc:billing/eu", "a+b=c@example.com", &"a".repeat(64)] {
            assert_eq!(of(good), Ok(()), "{good}");
        }
        for bad in ["", "(minter)", "a#b", "a b", "a\"b", "ä", "*", "-a", ".a", "a\n", "a,b", "a(b)", &"a".repeat(65)]
        {
            assert!(of(bad).is_err_and(|fault| fault.contains("id")), "{bad:?}");
        }
    }

    #[test]
    fn each_fault_is_named_and_no_key_repeated() {
        let key = "00".repeat(32);
        for (json, word) in [
            (String::new(), "callers"),
            (r#"{"callers":[{"id":"a","path":["/a"]}]}"#.to_owned(), "`path`"),
            (r#"{"callers":[{"id":"a","keys_sha256":"hush-hush"}]}"#.to_owned(), "documented form"),
            (r#"{"callers":[{}]}"#.to_owned(), "`id`"),
            (r#"{"callers":[],"extra":1}"#.to_owned(), "`extra`"),
            (r#"{"callers":[{"id":""}]}"#.to_owned(), "id"),
            (r#"{"callers":[{"id":"a"},{"id":"a"}]}"#.to_owned(), "the id a is there twice"),
            (r#"{"callers":[{"id":"a","keys_sha256":["hush-hush"]}]}"#.to_owned(), "keys_sha256"),
            (r#"{"callers":[{"id":"a","aliases":["7"]}]}"#.to_owned(), "alias"),
            (r#"{"callers":[{"id":"a","aliases":["x"]},{"id":"b","aliases":["x"]}]}"#.to_owned(), "alias x"),
            (r#"{"callers":[{"id":"a","principals":[""]}]}"#.to_owned(), "principal"),
            (r#"{"callers":[{"id":"a","principals":["*"]}]}"#.to_owned(), "principal"),
            (
                r#"{"callers":[{"id":"a","principals":["arn:aws:iam::1:user/x"]},{"id":"b","principals":["arn:aws:iam::1:user/x"]}]}"#
                    .to_owned(),
                "principal arn:aws:iam::1:user/x is there twice",
            ),
            (r#"{"callers":[{"id":"a","tools":[""]}]}"#.to_owned(), "tool"),
            (r#"{"callers":[{"id":"a","tools":"x"}]}"#.to_owned(), "documented form"),
            (r#"{"callers":[{"id":"a","method":["GET"]}]}"#.to_owned(), "`method`"),
            (r#"{"callers":[{"id":"a","methods":["GET"],"methods":["POST"]}]}"#.to_owned(), "documented form"),
            (format!(r#"{{"callers":[{{"id":"a","keys_sha256":["{key}","{key}"]}}]}}"#), "a key is there twice"),
            (r#"{"callers":[{"id":"a","resources":["team:1"]}]}"#.to_owned(), "team:1"),
            (r#"{"callers":[{"id":"a","resources":["*"]}]}"#.to_owned(), "resource"),
            (r#"{"callers":[{"id":"a","methods":["get"]}]}"#.to_owned(), "get"),
            (r#"{"callers":[{"id":"a","paths":["contacts"]}]}"#.to_owned(), "must begin with /"),
            (r#"{"callers":[{"id":"a","requests_per_10s":0}]}"#.to_owned(), "requests_per_10s"),
            (
                format!(r#"{{"callers":[{{"id":"a","keys_sha256":["{key}"]}},{{"id":"b","keys_sha256":["{key}"]}}]}}"#),
                "b",
            ),
        ] {
            let fault = Callers::parse(&json).map(|_| ()).expect_err(&json);
            assert!(fault.contains(word), "{json}: {fault}");
            assert!(!fault.contains("hush") && !fault.contains(&key), "{fault}");
        }
    }
}
