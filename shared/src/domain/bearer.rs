//! An access token in the form in which it is sent (RFC 6750 section 2.1).

use std::fmt;

use bytes::Bytes;
use http::HeaderValue;
use zeroize::Zeroizing;

use crate::domain::redacted::Redacted;

const SCHEME: &str = "Bearer ";

/// An access token as a header value. Every call sends the token, so the value is checked and formatted once. All
/// clones share one memory, which is wiped when the last clone is dropped.
#[derive(Clone)]
pub struct Bearer(Option<HeaderValue>);

impl Bearer {
    /// The value of `Authorization`. `None` if the token has a character that is not allowed in a header.
    pub fn header(&self) -> Option<&HeaderValue> {
        self.0.as_ref()
    }

    /// The token in the clear. Empty if the token cannot be sent. Reviews should look at every call of this method.
    pub fn expose(&self) -> &str {
        let text = self.0.as_ref().and_then(|header| std::str::from_utf8(header.as_bytes()).ok());
        text.and_then(|text| text.strip_prefix(SCHEME)).unwrap_or_default()
    }
}

impl From<&Redacted> for Bearer {
    fn from(token: &Redacted) -> Self {
        let text = Zeroizing::new([SCHEME, token.expose()].concat());
        let mut header = HeaderValue::from_maybe_shared(Bytes::from_owner(text)).ok();
        if let Some(header) = &mut header {
            header.set_sensitive(true);
        }
        Self(header)
    }
}

impl fmt::Debug for Bearer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bearer({} bytes)", self.expose().len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_sent_as_it_is_and_never_printed() {
        let bearer = Bearer::from(&Redacted::from("the-token"));
        let header = bearer.header().expect("it may be sent");
        assert_eq!((header.as_bytes(), bearer.expose()), (&b"Bearer the-token"[..], "the-token"));
        assert!(header.is_sensitive());
        assert_eq!(format!("{bearer:?} {header:?}"), "Bearer(9 bytes) Sensitive");
    }

    #[test]
    fn a_token_that_would_end_the_header_is_not_sent() {
        for token in ["a\r\nhost: elsewhere", "a\u{0}"] {
            assert!(Bearer::from(&Redacted::from(token)).header().is_none(), "{token:?}");
        }
    }
}
