//! The names and values of a JSON object, in their order. A name can have a list of values.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde_json::value::RawValue;

/// `{"limit":"20","tag":["a","b"]}` becomes `limit=20`, `tag=a`, `tag=b`. Numbers and booleans keep their spelling.
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
        while let Some((name, value)) = map.next_entry::<String, Box<RawValue>>()? {
            let texts =
                texts(&value).map_err(|wrong| A::Error::custom(format_args!("the value of {name:?} is {wrong}")))?;
            pairs.extend(texts.into_iter().map(|text| (name.clone(), text)));
        }
        Ok(Pairs(pairs))
    }
}

/// The texts of a single value or of a list.
fn texts(value: &RawValue) -> Result<Vec<String>, &'static str> {
    if !value.get().starts_with('[') {
        return Ok(vec![text(value)?]);
    }
    let list: Vec<Box<RawValue>> = serde_json::from_str(value.get()).map_err(|_| "malformed")?;
    list.iter().map(|one| if one.get().starts_with('[') { Err("a list in a list") } else { text(one) }).collect()
}

fn text(value: &RawValue) -> Result<String, &'static str> {
    match value.get().as_bytes().first() {
        Some(b'"') => serde_json::from_str(value.get()).map_err(|_| "malformed"),
        Some(b'n') => Err("null; leave the name out, or give it an empty string"),
        Some(b'{') => Err("an object; it may be a string, a number, a boolean or a list of these"),
        _ => Ok(value.get().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_and_repetition_are_kept() {
        let pairs: Pairs = serde_json::from_str(
            r#"{"z":"1","a":["x","y"],"n":-7,"b": true ,"f":1.50,"g":[2.0 ,1e400],"z":"\u00fc","none":[]}"#,
        )
        .expect("pairs");
        let expected = [("z", "1"), ("a", "x"), ("a", "y"), ("n", "-7"), ("b", "true"), ("f", "1.50")];
        let expected = expected.into_iter().chain([("g", "2.0"), ("g", "1e400"), ("z", "ü")]);
        assert_eq!(pairs.0, expected.map(|(n, v)| (n.to_owned(), v.to_owned())).collect::<Vec<_>>());
        for bad in [r#"{"a":null}"#, r#"{"a":{}}"#, r#"{"a":[["b","c"]]}"#, r#"{"a":[null]}"#, "[]", "7"] {
            assert!(serde_json::from_str::<Pairs>(bad).is_err(), "{bad}");
        }
        let error = serde_json::from_str::<Pairs>(r#"{"a":"b","limit":null}"#).expect_err("null is no text");
        assert!(error.to_string().starts_with("the value of \"limit\" is null;"), "{error}");
    }
}
