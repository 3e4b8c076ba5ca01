//! The data keys of the sealing secret, and key rotation.
//!
//! A rotation has three steps: a new key is added and becomes the current one, all stored values are sealed anew, and then
//! the old key is removed.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::domain::random;
use crate::domain::redacted::Redacted;

/// The shortest data key, in bytes of its text.
const LEAST_KEY: usize = 32;

/// The sealing secret is not in its documented form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(r#"the sealing secret must be {{"current":"<id>","<id>":"<at least 32 characters>"}}"#)]
pub struct MalformedKeys;

/// The data keys of the sealing secret.
#[derive(Clone)]
pub struct DataKeys {
    current: String,
    keys: BTreeMap<String, Redacted>,
}

impl DataKeys {
    /// Reads `{"current":"k1","k1":"…"}`. The name of every member but `current` is the id of a key.
    pub fn parse(json: &str) -> Result<Self, MalformedKeys> {
        let Ok(Value::Object(mut members)) = serde_json::from_str(json) else { return Err(MalformedKeys) };
        let Some(Value::String(current)) = members.remove("current") else { return Err(MalformedKeys) };
        let keys = members
            .into_iter()
            .map(|(id, key)| match key {
                Value::String(key) if key.len() >= LEAST_KEY && (1..=64).contains(&id.len()) => {
                    Ok((id, Redacted::from(key)))
                }
                _ => Err(MalformedKeys),
            })
            .collect::<Result<BTreeMap<_, _>, _>>()?;
        if keys.contains_key(&current) { Ok(Self { current, keys }) } else { Err(MalformedKeys) }
    }

    /// The id of the key that new values are sealed under.
    pub fn current(&self) -> &str {
        &self.current
    }

    /// The ids of all keys, sorted.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.keys.keys().map(String::as_str)
    }

    pub(super) fn key(&self, id: &str) -> Option<&Redacted> {
        self.keys.get(id)
    }

    /// Adds a new key of 256 random bits and makes it the current one. Its id is the next of `k1`, `k2`, …. The
    /// current key cannot be removed, so no id is used twice, and a value in an old copy of the table never names a wrong
    /// key.
    #[must_use]
    pub fn with_new(mut self) -> Self {
        let numbers = self.ids().filter_map(|id| id.strip_prefix('k')?.parse::<u32>().ok());
        self.current = format!("k{}", numbers.max().map_or(1, |last| last.saturating_add(1)));
        self.keys.insert(self.current.clone(), random::hex::<32>().into());
        self
    }

    /// Removes a key. `None` if there is no key of that id, or if it is the current one.
    pub fn without(mut self, id: &str) -> Option<Self> {
        let is_old = id != self.current && self.keys.remove(id).is_some();
        is_old.then_some(self)
    }

    /// The value of the secret, as [`DataKeys::parse`] reads it.
    pub fn to_json(&self) -> Redacted {
        let keys = self.keys.iter().map(|(id, key)| (id.clone(), Value::from(key.expose())));
        let members: serde_json::Map<_, _> =
            std::iter::once(("current".to_owned(), Value::from(self.current.as_str()))).chain(keys).collect();
        Value::Object(members).to_string().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_secrets_are_refused() {
        for bad in [
            "",
            "{}",
            r#"{"current":"k1"}"#,
            r#"{"current":"k1","k1":"short"}"#,
            r#"{"current":"k2","k1":"0123456789abcdef0123456789abcdef"}"#,
            r#"{"current":"k1","k1":"0123456789abcdef0123456789abcdef","k2":7}"#,
        ] {
            assert!(DataKeys::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_rotation_adds_the_next_key_and_takes_only_an_old_one_away() {
        let first =
            DataKeys::parse(r#"{"current":"k1","k1":"0123456789abcdef0123456789abcdef"}"#).expect("well formed");
        let second = DataKeys::parse(first.with_new().to_json().expose()).expect("written as it is read");
        assert_eq!((second.current(), second.ids().collect::<Vec<_>>()), ("k2", vec!["k1", "k2"]));
        assert!(second.key("k2").is_some_and(|key| key.expose().len() == 64));
        assert!(second.clone().without("k2").is_none(), "the current one");
        assert!(second.clone().without("k3").is_none(), "no such key");
        let third = second.without("k1").expect("an old one");
        assert_eq!(third.ids().collect::<Vec<_>>(), ["k2"]);
        assert_eq!(third.with_new().current(), "k3");
        let own_ids = DataKeys::parse(r#"{"current":"spring","spring":"0123456789abcdef0123456789abcdef"}"#);
        assert_eq!(own_ids.expect("well formed").with_new().current(), "k1");
    }
}
