//! One HTTP/1.1 exchange on an open connection: the form of the request, and the reading of the whole response.

use std::error::Error;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::HOST;
use http::uri::Scheme;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::TrySendError;

use crate::domain::clock::Millis;

/// A response that was read to its end.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Its status.
    pub status: StatusCode,
    /// All its headers.
    pub headers: HeaderMap,
    /// Its body as sent, with its content encoding.
    pub body: Bytes,
    /// The instant just before its request was sent.
    pub sent_at: Millis,
}

/// The reason why a request got no whole response. The texts hold no URL.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// There was no connection. Nothing was sent.
    #[error("no connection: {0}")]
    NotSent(String),
    /// The instant by which the request had to leave had passed. Nothing was sent.
    #[error("too late to be sent")]
    TooLate,
    /// The connection broke after the request was written, at least in part.
    #[error("the connection broke: {cause}")]
    Broken {
        /// The HTTP client's error and its causes.
        cause: String,
        /// The status, if the head of the response had arrived.
        status: Option<StatusCode>,
    },
    /// The response did not arrive within the time limit.
    #[error("no answer in time")]
    TimedOut,
    /// The body of the response exceeds the size limit.
    #[error("the answer is too large")]
    TooLarge(StatusCode),
}

/// Limits of one response.
#[derive(Clone, Copy, Debug)]
pub struct ResponseLimits {
    /// Time from the call to the last byte of the body. A new connection is made within this time.
    pub time: Duration,
    /// The largest body, in bytes.
    pub body: usize,
}

/// The reason why a connection brought no response.
pub(super) enum ReceiveError {
    /// hyper gave the request back. Nothing was written.
    NotWritten(Box<Request<Full<Bytes>>>),
    Failed(SendError),
}

impl From<SendError> for ReceiveError {
    fn from(error: SendError) -> Self {
        Self::Failed(error)
    }
}

type ResponseHead = Result<Response<Incoming>, TrySendError<Request<Full<Bytes>>>>;

/// Reads head and body of a response.
pub(super) async fn receive(
    head: impl Future<Output = ResponseHead>,
    sent_at: Millis,
    most_bytes: usize,
) -> Result<Reply, ReceiveError> {
    let response = head.await.map_err(|mut error| match error.take_message() {
        Some(unsent) => ReceiveError::NotWritten(Box::new(unsent)),
        None => SendError::Broken { cause: error_chain(&error.into_error()), status: None }.into(),
    })?;
    let (head, body) = response.into_parts();
    let body = read_body(body, head.status, most_bytes).await?;
    Ok(Reply { status: head.status, headers: head.headers, body, sent_at })
}

async fn read_body(mut body: Incoming, status: StatusCode, most_bytes: usize) -> Result<Bytes, SendError> {
    let too_large = || SendError::TooLarge(status);
    if body.size_hint().lower() > most_bytes as u64 {
        return Err(too_large());
    }
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| SendError::Broken { cause: error_chain(&e), status: Some(status) })?;
        // A frame without data holds trailers. API Gateway does not carry trailers.
        let Ok(data) = frame.into_data() else { continue };
        if whole.len() + data.len() > most_bytes {
            return Err(too_large());
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}

/// Moves the server's name from the target into `Host` and leaves path and query in the request line (origin form, RFC
/// 9112 section 3.2.1).
pub(super) fn to_origin_form(request: &mut Request<Full<Bytes>>) -> Result<(), SendError> {
    let unusable = || SendError::NotSent("the target cannot be written".to_owned());
    let uri = request.uri();
    let (host, default_port) =
        (uri.host().ok_or_else(unusable)?, if uri.scheme() == Some(&Scheme::HTTPS) { 443 } else { 80 });
    let host = match uri.port_u16() {
        Some(port) if port != default_port => HeaderValue::try_from(format!("{host}:{port}")),
        _ => HeaderValue::try_from(host),
    };
    let host = host.map_err(|_| unusable())?;
    let target = uri.path_and_query().cloned().map_or_else(Uri::default, Uri::from);
    request.headers_mut().entry(HOST).or_insert(host);
    *request.uri_mut() = target;
    Ok(())
}

/// An error and its causes, separated by colons.
pub(super) fn error_chain(error: &dyn Error) -> String {
    let sources = std::iter::successors(error.source(), |e| (**e).source());
    sources.fold(error.to_string(), |text, source| format!("{text}: {source}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_goes_out_in_origin_form_with_its_host() {
        for (target, line, host) in [
            ("https://example.com/a'b?c=%2F", "/a'b?c=%2F", "example.com"),
            ("https://example.com:443", "/", "example.com"),
            ("https://example.com:444?q", "/?q", "example.com:444"),
            ("http://[::1]:80/", "/", "[::1]"),
            ("http://127.0.0.1:8080/x", "/x", "127.0.0.1:8080"),
        ] {
            let mut request = Request::get(target).body(Full::default()).expect("a request");
            to_origin_form(&mut request).expect("a server");
            assert_eq!(
                (request.uri().to_string().as_str(), &request.headers()[HOST]),
                (line, &HeaderValue::from_static(host))
            );
        }
        assert!(to_origin_form(&mut Request::get("/x").body(Full::default()).expect("a request")).is_err());
    }
}
