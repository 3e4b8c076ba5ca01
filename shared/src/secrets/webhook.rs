//! The secrets that the platform signs webhooks with, in the HMAC form of its signatures.

use aws_lc_rs::hmac;
use serde::Deserialize;

use crate::domain::redacted::Redacted;

/// The secrets that are accepted now. There are several while a secret is replaced by another.
#[derive(Debug, Deserialize)]
pub struct WebhookSecrets {
    secrets: Vec<Redacted>,
}

impl WebhookSecrets {
    /// Reads `{"secrets":["…"]}`. The error says which form was expected.
    pub fn parse(json: &str) -> Result<Self, String> {
        let form = || r#"expected {"secrets":["…"]}, at least one and none empty"#.to_owned();
        let parsed: Self = serde_json::from_str(json).map_err(|_| form())?;
        let is_empty = parsed.secrets.iter().any(|secret| secret.expose().is_empty());
        if parsed.secrets.is_empty() || is_empty { Err(form()) } else { Ok(parsed) }
    }

    /// The number of secrets.
    pub fn count(&self) -> usize {
        self.secrets.len()
    }

    /// Returns true if `tag` is the HMAC-SHA256 (RFC 2104) of `body` under one of the secrets. The comparison takes the
    /// same time for every tag.
    pub fn have_signed(&self, body: &[u8], tag: &[u8]) -> bool {
        self.secrets.iter().any(|secret| {
            let key = hmac::Key::new(hmac::HMAC_SHA256, secret.expose().as_bytes());
            hmac::verify(&key, body, tag).is_ok()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 4231, test case 2.
    const TAG: &str = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";

    #[test]
    fn a_tag_of_any_of_the_secrets_is_accepted() {
        let body = b"what do ya want for nothing?";
        let tag = hex::decode(TAG).expect("hexadecimal digits");
        let of = |json| WebhookSecrets::parse(json).expect("secrets");
        assert!(of(r#"{"secrets":["Jefe"]}"#).have_signed(body, &tag));
        assert!(of(r#"{"secrets":["older","Jefe"]}"#).have_signed(body, &tag));
        assert!(!of(r#"{"secrets":["older"]}"#).have_signed(body, &tag));
        let jefe = of(r#"{"secrets":["Jefe"]}"#);
        assert!(!jefe.have_signed(b"what do ya want", &tag), "another body");
        assert!(!jefe.have_signed(body, &tag[..31]) && !jefe.have_signed(body, b""), "a part of the tag");
        assert_eq!(of(r#"{"secrets":["a","b"]}"#).count(), 2);
    }

    #[test]
    fn secrets_are_complete_or_refused_and_never_printed() {
        let good = WebhookSecrets::parse(r#"{"secrets":["hush-hush"]}"#).expect("complete");
        assert!(!format!("{good:?}").contains("hush"));
        for bad in [
            "",
            "[]",
            "{}",
            r#"{"secrets":[]}"#,
            r#"{"secrets":[""]}"#,
            r#"{"secrets":["a",""]}"#,
            r#"{"secrets":"a"}"#,
        ] {
            assert!(WebhookSecrets::parse(bad).is_err(), "{bad}");
        }
    }
}
