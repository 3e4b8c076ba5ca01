//! Names and values of a JSON object in the order in which they were written, a list of values for a name included.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// `{"limit":"20","tag":["a","b"]}` as `limit=20`, `tag=a`, `tag=b`. Numbers and booleans are taken as their text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pairs(pub Vec<(String, String)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Object)
    }
}

struct Object;

impl<'de> Visitor<'de> for Object {
    type Value = Pairs;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of names and values")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
        let mut pairs = Vec::new();
        while let Some((name, Texts(values))) = map.next_entry::<String, Texts>()? {
            pairs.extend(values.into_iter().map(|value| (name.clone(), value)));
        }
        Ok(Pairs(pairs))
    }
}

struct Texts(Vec<String>);

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Value)
    }
}

struct Value;

impl<'de> Visitor<'de> for Value {
    type Value = Texts;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, or a list of strings")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Texts, E> {
        Ok(Texts(vec![text.to_owned()]))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Texts, E> {
        Ok(Texts(vec![value.to_string()]))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Texts, E> {
        Ok(Texts(vec![value.to_string()]))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Texts, E> {
        Ok(Texts(vec![value.to_string()]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Texts, A::Error> {
        let mut texts = Vec::new();
        while let Some(One(text)) = list.next_element()? {
            texts.push(text);
        }
        Ok(Texts(texts))
    }
}

/// An element of a list, which is no list itself.
struct One(String);

impl<'de> Deserialize<'de> for One {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Texts(mut texts) = Texts::deserialize(deserializer)?;
        match (texts.pop(), texts.is_empty()) {
            (Some(text), true) => Ok(Self(text)),
            _ => Err(D::Error::custom("a list in a list")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_and_repetition_are_kept() {
        let pairs: Pairs =
            serde_json::from_str(r#"{"z":"1","a":["x","y"],"n":-7,"b":true,"z":"2","none":[]}"#).expect("pairs");
        let expected = [("z", "1"), ("a", "x"), ("a", "y"), ("n", "-7"), ("b", "true"), ("z", "2")];
        assert_eq!(pairs.0, expected.map(|(n, v)| (n.to_owned(), v.to_owned())));
        for bad in [r#"{"a":null}"#, r#"{"a":{}}"#, r#"{"a":[["b","c"]]}"#, r#"{"a":[null]}"#, "[]", "7"] {
            assert!(serde_json::from_str::<Pairs>(bad).is_err(), "{bad}");
        }
    }
}
