//! The answer to a recorded request, as it is sealed in the record. Pure.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};

use crate::domain::redacted::Redacted;

/// The largest body that is recorded, in bytes.
const LARGEST_BODY: usize = 256 * 1024;
/// The largest record of an answer, in bytes. An item of `DynamoDB` has at most 400 KB.
const LARGEST_RECORD: usize = 384 * 1024;

/// The answer to a recorded request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedAnswer {
    /// The status.
    pub status: StatusCode,
    /// True if the platform answered; false if the relay did, because the platform's answer was too large to pass on.
    pub is_of_platform: bool,
    /// The headers.
    pub headers: HeaderMap,
    /// The body. `None` if it was not recorded.
    pub body: Option<Bytes>,
    /// The number of times that the request was sent.
    pub attempts: u32,
}

/// The first line of the sealed text. The body follows as it is, or in base64.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Head {
    platform: bool,
    headers: Vec<(String, String)>,
    body: Encoding,
    attempts: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Encoding {
    Text,
    Base64,
    #[default]
    Omitted,
}

impl RecordedAnswer {
    /// An answer of which only the status is known.
    pub fn without_body(status: u16) -> Self {
        Self {
            status: StatusCode::from_u16(status).unwrap_or(StatusCode::OK),
            is_of_platform: true,
            headers: HeaderMap::new(),
            body: None,
            attempts: 1,
        }
    }

    /// The text that is sealed. A body that is too large is left out.
    pub(super) fn encode(&self) -> Redacted {
        let body = self.body.as_ref().filter(|body| body.len() <= LARGEST_BODY);
        let (encoding, body) = match body.map(|body| std::str::from_utf8(body)) {
            None => (Encoding::Omitted, String::new()),
            Some(Ok(text)) => (Encoding::Text, text.to_owned()),
            Some(Err(_)) => (Encoding::Base64, STANDARD.encode(body.expect("there is one"))),
        };
        let text = self.head(encoding) + "\n" + &body;
        if text.len() <= LARGEST_RECORD { text.into() } else { (self.head(Encoding::Omitted) + "\n").into() }
    }

    fn head(&self, body: Encoding) -> String {
        let text = |(name, value): (&HeaderName, &HeaderValue)| {
            // As in results and answers of direct invocations.
            (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        let headers = self.headers.iter().map(text).collect();
        let head = Head { platform: self.is_of_platform, headers, body, attempts: self.attempts };
        serde_json::to_string(&head).expect("strings and numbers are JSON")
    }

    /// Reads the text that was sealed.
    pub(super) fn decode(status: u16, text: &str) -> Self {
        let (head, body) = text.split_once('\n').unwrap_or_default();
        let head: Head = serde_json::from_str(head).unwrap_or_default();
        let mut headers = HeaderMap::new();
        for (name, value) in head.headers {
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
                headers.append(name, value);
            }
        }
        let body = match head.body {
            Encoding::Text => Some(Bytes::from(body.to_owned())),
            Encoding::Base64 => STANDARD.decode(body).ok().map(Bytes::from),
            Encoding::Omitted => None,
        };
        Self { is_of_platform: head.platform, headers, body, attempts: head.attempts, ..Self::without_body(status) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(body: &[u8]) -> RecordedAnswer {
        let mut headers = HeaderMap::new();
        headers.append("link", HeaderValue::from_static("<a>"));
        headers.append("link", HeaderValue::try_from("<b>, \"ä\"").expect("a value"));
        headers.append("content-type", HeaderValue::from_static("application/json"));
        let body = Some(Bytes::copy_from_slice(body));
        RecordedAnswer { status: StatusCode::CREATED, is_of_platform: true, headers, body, attempts: 2 }
    }

    #[test]
    fn an_answer_comes_back_byte_for_byte() {
        let every_byte: Vec<u8> = (0..=255).collect();
        for body in [&b""[..], b"{ \"a\" :\n1.0 }", "é\n\n\"".as_bytes(), b"\n", &every_byte, &vec![b'a'; LARGEST_BODY]]
        {
            let answer = answer(body);
            assert_eq!(RecordedAnswer::decode(201, answer.encode().expose()), answer, "{} bytes", body.len());
        }
        let of_relay = RecordedAnswer { is_of_platform: false, ..answer(b"{}") };
        assert_eq!(RecordedAnswer::decode(201, of_relay.encode().expose()), of_relay);
    }

    #[test]
    fn a_header_that_is_no_text_comes_back_as_it_is_shown() {
        let mut answer = answer(b"{}");
        answer.headers.insert("content-disposition", HeaderValue::from_bytes(b"filename=\"\xfc\"").expect("a value"));
        let read = RecordedAnswer::decode(201, answer.encode().expose());
        assert_eq!(read.headers["content-disposition"].as_bytes(), "filename=\"\u{fffd}\"".as_bytes());
    }

    #[test]
    fn a_large_body_is_left_out_and_a_record_is_never_larger_than_an_item() {
        for body in [vec![b'a'; LARGEST_BODY + 1], vec![0xff; LARGEST_BODY * 3]] {
            let read = RecordedAnswer::decode(201, answer(&body).encode().expose());
            assert_eq!(read, RecordedAnswer { body: None, ..answer(b"") });
        }
        let mut wide = answer(&vec![0xff; LARGEST_BODY]);
        assert!(wide.encode().expose().len() <= LARGEST_RECORD);
        assert!(RecordedAnswer::decode(201, wide.encode().expose()).body.is_some());
        wide.headers.insert("x", HeaderValue::try_from("h".repeat(60 * 1024)).expect("a value"));
        assert_eq!(RecordedAnswer::decode(201, wide.encode().expose()).body, None);
    }

    #[test]
    fn a_record_that_cannot_be_read_has_its_status() {
        for text in ["", "x", "x\ny", "{}\n"] {
            let read = RecordedAnswer::decode(404, text);
            assert_eq!((read.status.as_u16(), read.body), (404, None), "{text:?}");
        }
    }
}
