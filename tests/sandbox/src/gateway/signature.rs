//! Creates and checks AWS signatures (`SigV4`). A signature that does not match, has a wrong time, or uses another
//! secret belongs to no signer.

use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningError, SigningSettings, sign};
use aws_sigv4::sign::v4::SigningParams;
use http::{HeaderMap, Method, Uri, header};
use time::{OffsetDateTime, PrimitiveDateTime};

use crate::process::REGION;

/// The secret that belongs to every access key.
pub const SECRET: &str = "sandbox";
/// Largest accepted difference between a signature's time and the current time.
const TOLERANCE: Duration = Duration::from_mins(5);
const SERVICE: &str = "execute-api";
const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// The parts of a request that a signature covers.
#[derive(Debug, Clone, Copy)]
pub struct Signable<'a> {
    /// Method.
    pub method: &'a Method,
    /// Target, as the client sends it.
    pub uri: &'a Uri,
    /// Headers.
    pub headers: &'a HeaderMap,
    /// Body.
    pub body: &'a [u8],
}

impl Signable<'_> {
    /// Returns the access key that signed the request, if its signature is valid.
    pub fn signer(&self, now: SystemTime) -> Option<String> {
        let written = self.headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix(ALGORITHM)?;
        let part = |name: &str| written.split(',').find_map(|part| part.trim().strip_prefix(name)?.strip_prefix('='));
        let (credential, signed, signature) = (part("Credential")?, part("SignedHeaders")?, part("Signature")?);
        let (access_key, scope) = credential.split_once('/')?;
        let at = self.headers.get("x-amz-date")?.to_str().ok()?;
        let signed: Vec<&str> = signed.split(';').collect();
        if access_key.is_empty()
            || !signed.contains(&"host")
            || scope != format!("{}/{REGION}/{SERVICE}/aws4_request", &at.get(..8)?)
        {
            return None;
        }
        let at = instant(at)?;
        let off = now.duration_since(at).or_else(|_| at.duration_since(now)).ok()?;
        let expected = self.signature(access_key, &signed, at).ok()?;
        (off <= TOLERANCE && expected == signature).then(|| access_key.to_owned())
    }

    /// Returns the headers that sign the request for an access key: `Authorization` and `X-Amz-Date`. The request must
    /// have a `Host` header.
    ///
    /// # Errors
    /// The request cannot be signed.
    ///
    /// # Panics
    /// If the year is after 9999.
    pub fn signed(&self, access_key: &str, at: SystemTime) -> Result<[(&'static str, String); 2], SigningError> {
        let date = OffsetDateTime::from(at).format(&format()).expect("a time of four digits for the year");
        let mut names: Vec<&str> = self.headers.keys().map(http::HeaderName::as_str).chain(["x-amz-date"]).collect();
        names.sort_unstable();
        let signature = self.signature(access_key, &names, at)?;
        let authorization = format!(
            "{ALGORITHM} Credential={access_key}/{}/{REGION}/{SERVICE}/aws4_request, SignedHeaders={}, Signature={signature}",
            &date[..8],
            names.join(";")
        );
        Ok([("authorization", authorization), ("x-amz-date", date)])
    }

    fn signature(&self, access_key: &str, names: &[&str], at: SystemTime) -> Result<String, SigningError> {
        let identity = Credentials::new(access_key, SECRET, None, None, "sandbox").into();
        let mut settings = SigningSettings::default();
        settings.excluded_headers = None;
        let params = SigningParams::builder().identity(&identity).region(REGION).name(SERVICE).time(at);
        let params = params.settings(settings).build().expect("all of them are there").into();
        let headers = self.headers.iter().filter(|(name, _)| names.contains(&name.as_str()) && *name != "x-amz-date");
        let headers = headers.filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
        let body = SignableBody::Bytes(self.body);
        let uri = self.uri.to_string();
        let request = SignableRequest::new(self.method.as_str(), uri, headers, body)?;
        Ok(sign(request, &params)?.signature().to_owned())
    }
}

fn instant(text: &str) -> Option<SystemTime> {
    PrimitiveDateTime::parse(text, &format()).ok().map(|at| at.assume_utc().into())
}

fn format() -> Vec<time::format_description::BorrowedFormatItem<'static>> {
    time::format_description::parse_borrowed::<2>("[year][month][day]T[hour][minute][second]Z").expect("a format")
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers() -> HeaderMap {
        HeaderMap::from_iter([(header::HOST, HeaderValue::from_static("127.0.0.1:7000"))])
    }

    #[test]
    fn a_signature_holds_for_what_was_signed_and_for_a_while() {
        let (method, uri) = (Method::POST, "/iam/relay/locations/L1/a%20b?x=1&a=%2F".parse().expect("a target"));
        let mut headers = headers();
        let now = SystemTime::UNIX_EPOCH + Duration::from_hours(500_000);
        let signable = Signable { method: &method, uri: &uri, headers: &headers, body: b"{}" };
        let signed = signable.signed("billing", now).expect("signed");
        for (name, value) in signed {
            headers.insert(name, HeaderValue::try_from(value).expect("a value"));
        }
        let signable = Signable { method: &method, uri: &uri, headers: &headers, body: b"{}" };
        assert_eq!(signable.signer(now).as_deref(), Some("billing"));
        assert_eq!(signable.signer(now + Duration::from_mins(6)), None, "too old");
        assert_eq!(signable.signer(now - Duration::from_mins(6)), None, "not yet");
        let elsewhere: Uri = "/iam/relay/locations/L2/a%20b?x=1&a=%2F".parse().expect("a target");
        for other in [
            Signable { method: &Method::PUT, ..signable },
            Signable { uri: &elsewhere, ..signable },
            Signable { body: b"{ }", ..signable },
            Signable { headers: &self::headers(), ..signable },
        ] {
            assert_eq!(other.signer(now), None, "{other:?}");
        }
    }
}
