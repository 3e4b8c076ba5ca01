//! The idempotency key of a request: requests with the same key have one effect.

use http::{HeaderMap, HeaderName};

/// The header that names the key.
pub const HEADER: HeaderName = HeaderName::from_static("idempotency-key");
/// The longest key, in bytes.
const LONGEST: usize = 128;

/// A key: 1 to 128 visible ASCII characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey(String);

/// The key is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MalformedKey {
    /// It is empty, too long, or has another character.
    #[error("an idempotency key is 1 to 128 visible ASCII characters without spaces")]
    Characters,
    /// The request has several keys.
    #[error("a request has one idempotency key")]
    Several,
}

impl IdempotencyKey {
    /// Reads a key.
    pub fn parse(text: &str) -> Result<Self, MalformedKey> {
        let is_key = (1..=LONGEST).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        is_key.then(|| Self(text.to_owned())).ok_or(MalformedKey::Characters)
    }

    /// Reads the key in the headers of a request. `None` if there is none.
    pub fn of_headers(headers: &HeaderMap) -> Result<Option<Self>, MalformedKey> {
        let mut values = headers.get_all(HEADER).iter();
        let Some(value) = values.next() else { return Ok(None) };
        if values.next().is_some() {
            return Err(MalformedKey::Several);
        }
        Self::parse(value.to_str().map_err(|_| MalformedKey::Characters)?).map(Some)
    }

    /// The key's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn a_key_is_1_to_128_visible_characters() {
        let longest = "k".repeat(LONGEST);
        for good in ["k", "!~", "order-17/refund:2026", "a,b", &*longest] {
            assert_eq!(IdempotencyKey::parse(good).expect(good).as_str(), good);
        }
        for bad in ["", " ", "a b", "a\t", "a\u{7f}", "ä", "a\n", &*format!("{longest}k")] {
            assert_eq!(IdempotencyKey::parse(bad), Err(MalformedKey::Characters), "{bad:?}");
        }
    }

    #[test]
    fn a_request_has_one_key_or_none() {
        let of = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(HEADER, HeaderValue::from_bytes(value.as_bytes()).expect("a value"));
            }
            IdempotencyKey::of_headers(&headers).map(|key| key.map(|key| key.as_str().to_owned()))
        };
        assert_eq!((of(&[]), of(&["k"])), (Ok(None), Ok(Some("k".to_owned()))));
        assert_eq!(of(&["k", "k"]), Err(MalformedKey::Several));
        // API Gateway joins the values of repeated headers with a comma, and most clients add a space.
        for bad in ["", "k, k", "ä"] {
            assert_eq!(of(&[bad]), Err(MalformedKey::Characters), "{bad:?}");
        }
    }
}
