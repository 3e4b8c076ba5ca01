//! The HTTP request to the platform: method, headers, body and token of one attempt.

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_LENGTH};
use http::{HeaderMap, Method, Request, Uri};
use http_body_util::Full;

use crate::domain::bearer::Bearer;
use crate::http_client::SendError;

/// The largest body of a response, in bytes: Lambda's limit (6 MB) less some room for headers. A binary body grows by a
/// third in base64; its size is checked again after that.
pub const LARGEST_BODY: usize = 6 * 1024 * 1024 - 16 * 1024;

/// Makes the request of one attempt. `headers` lack `Authorization`. It fails with [`SendError::NotSent`] if the token
/// contains a character that no header may have.
pub fn request(
    method: &Method,
    uri: Uri,
    mut headers: HeaderMap,
    body: Bytes,
    token: &Bearer,
) -> Result<Request<Full<Bytes>>, SendError> {
    let bearer = token.header().ok_or_else(no_header)?;
    headers.insert(AUTHORIZATION, bearer.clone());
    // `Content-Length: 0` for methods that are expected to have a body (RFC 9110 section 8.6).
    if body.is_empty() && [Method::POST, Method::PUT, Method::PATCH].contains(method) {
        headers.insert(CONTENT_LENGTH, 0.into());
    }
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = method.clone();
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    Ok(request)
}

fn no_header() -> SendError {
    SendError::NotSent("the token has a character that no header may have".into())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use std::time::Duration;

    use http::StatusCode;

    use super::*;
    use crate::domain::clock::Clock;
    use crate::domain::redacted::Redacted;
    use crate::http_client::{Reply, ResponseLimits};

    /// Answers one connection with these bytes and closes it. Returns the bytes that it received.
    async fn serve(answer: Vec<u8>) -> (Uri, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut seen = Vec::new();
            while !complete(&seen) && stream.read_buf(&mut seen).await.is_ok_and(|n| n > 0) {}
            // The client may have hung up on an answer that is too large.
            let _ = stream.write_all(&answer).await;
            String::from_utf8_lossy(&seen).into_owned()
        });
        (format!("http://{address}/a/%20b?q='%2F+").parse().expect("a target"), served)
    }

    /// True if the head and the announced body have arrived.
    fn complete(seen: &[u8]) -> bool {
        let text = String::from_utf8_lossy(seen).to_lowercase();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
        let announced = head.split_once("content-length: ").and_then(|(_, n)| n.lines().next()?.parse().ok());
        body.len() >= announced.unwrap_or(0)
    }

    async fn send(uri: Uri, method: Method, body: &'static str, time: Duration) -> Result<Reply, SendError> {
        let token = Bearer::from(&Redacted::from("the-token"));
        let request = request(&method, uri, HeaderMap::new(), body.into(), &token)?;
        let connections = crate::http_client::platform(Clock::system()).expect("connections");
        connections.call(request, ResponseLimits { time, body: LARGEST_BODY }).await
    }

    async fn attempt(uri: Uri, method: Method, body: &'static str) -> Result<Reply, SendError> {
        send(uri, method, body, Duration::from_secs(5)).await
    }

    #[tokio::test]
    async fn bytes_go_both_ways_unchanged() {
        let (url, served) =
            serve(b"HTTP/1.1 302 Found\r\nlocation: /x\r\ncontent-encoding: gzip\r\ncontent-length: 4\r\n\r\n\x1f\x8b\x00\xff".into()).await;
        let reply = attempt(url, Method::POST, r#"{"a" : 1}"#).await.expect("an answer");
        assert_eq!((reply.status.as_u16(), &reply.body[..]), (302, &b"\x1f\x8b\x00\xff"[..]));
        assert_eq!(reply.headers["location"], "/x");
        let seen = served.await.expect("served");
        assert!(seen.starts_with("POST /a/%20b?q='%2F+ HTTP/1.1\r\n"), "{seen}");
        assert!(seen.contains("authorization: Bearer the-token\r\n"), "{seen}");
        for added in ["accept", "user-agent", "connection", "transfer-encoding"] {
            assert!(!seen.contains(&format!("\r\n{added}")), "{added} in {seen}");
        }
        assert!(seen.ends_with("\r\n\r\n{\"a\" : 1}"), "{seen}");
    }

    #[tokio::test]
    async fn a_method_without_body_announces_none_unless_one_is_expected() {
        for (method, announced) in [(Method::GET, false), (Method::DELETE, false), (Method::POST, true)] {
            let (url, served) = serve(b"HTTP/1.1 204 No Content\r\n\r\n".into()).await;
            assert!(attempt(url, method.clone(), "").await.expect("an answer").body.is_empty());
            let seen = served.await.expect("served").to_lowercase();
            assert_eq!(seen.contains("content-length: 0"), announced, "{method}: {seen}");
        }
    }

    #[tokio::test]
    async fn failures_are_told_apart() {
        let closed = TcpListener::bind("127.0.0.1:0").await.expect("a free port").local_addr().expect("bound");
        let nobody = format!("http://{closed}/?secret=1").parse().expect("a target");
        let failure = attempt(nobody, Method::GET, "").await.expect_err("nobody listens");
        assert!(matches!(&failure, SendError::NotSent(cause) if !cause.contains("secret")), "{failure:?}");

        let (url, _served) = serve(Vec::new()).await;
        let failure = attempt(url, Method::GET, "").await.expect_err("closed without a word");
        assert!(matches!(failure, SendError::Broken { status: None, .. }), "{failure:?}");

        let (url, _served) = serve(b"HTTP/1.1 201 Created\r\ncontent-length: 9\r\n\r\nhalf".into()).await;
        let failure = attempt(url, Method::POST, "").await.expect_err("half an answer");
        assert!(matches!(failure, SendError::Broken { status: Some(StatusCode::CREATED), .. }), "{failure:?}");
    }

    #[tokio::test]
    async fn a_body_is_bounded_whether_announced_or_not() {
        for head in ["content-length: 7000000", "connection: close"] {
            let mut answer = format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n").into_bytes();
            answer.resize(7_000_000, b'a');
            let (url, _served) = serve(answer).await;
            let failure = attempt(url, Method::GET, "").await.expect_err("too large");
            assert!(matches!(failure, SendError::TooLarge(StatusCode::OK)), "{head}: {failure:?}");
        }
    }

    #[tokio::test]
    async fn silence_ends_with_the_time() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let uri = format!("http://{}/", listener.local_addr().expect("bound")).parse().expect("a target");
        let failure = send(uri, Method::GET, "", Duration::from_millis(50)).await.expect_err("nobody answers");
        assert!(matches!(failure, SendError::TimedOut), "{failure:?}");
    }
}
