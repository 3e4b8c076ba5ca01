//! Reads form bodies, JSON bodies and query strings in the same way. The platform accepts its parameters in snake case
//! and in camel case.

use http::HeaderMap;
use serde_json::Value;

/// Named values in the order of the request.
#[derive(Debug, Default)]
pub(crate) struct Form(Vec<(String, String)>);

impl Form {
    /// Reads a body in the format that its content type names. `None` if the body cannot be parsed.
    pub(crate) fn read(headers: &HeaderMap, body: &[u8]) -> Option<Self> {
        let content_type = headers.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default();
        if content_type.starts_with("application/json") {
            let Value::Object(members) = serde_json::from_slice(body).ok()? else { return None };
            let text = |value: Value| match value {
                Value::String(text) => text,
                other => other.to_string(),
            };
            return Some(Self(members.into_iter().map(|(name, value)| (name, text(value))).collect()));
        }
        if content_type.starts_with("application/x-www-form-urlencoded") {
            return Some(Self::of_query(std::str::from_utf8(body).ok()?));
        }
        None
    }

    /// Reads a query string, given without its question mark.
    pub(crate) fn of_query(query: &str) -> Self {
        Self(url::form_urlencoded::parse(query.as_bytes()).into_owned().collect())
    }

    /// Returns the first value of a name, in snake case or in camel case.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let camel = camel_case(name);
        self.0.iter().find(|(known, _)| *known == name || *known == camel).map(|(_, value)| value.as_str())
    }

    /// Removes the names in snake case, which v3 does not read.
    pub(crate) fn camel_case_only(self) -> Self {
        Self(self.0.into_iter().filter(|(name, _)| !name.contains('_')).collect())
    }

    /// Returns all values of a name, with exactly this spelling.
    pub(crate) fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

fn camel_case(snake: &str) -> String {
    let mut words = snake.split('_');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |mut name, word| {
        let mut letters = word.chars();
        name.extend(letters.next().map(|letter| letter.to_ascii_uppercase()));
        name.push_str(letters.as_str());
        name
    })
}
