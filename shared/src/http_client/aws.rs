//! The HTTP client of the AWS SDK, on the same kind of connection pool as relayed calls.
//!
//! The SDK's own client has two costs. It contains HTTP/2, which is a tenth of a function's program and which no service
//! that we call uses. And it reads the root certificates once for each service. Errors are classified as in
//! `aws_smithy_http_client` 1.5: the SDK retries after an error of the connection and after a time-out.
//!
//! The SDK's time limits on attempts and operations are not used. They check their timer before they read the response,
//! so a process that was frozen would discard a response that is in its socket. The limit of an attempt is the SDK's
//! "read timeout". [`Service`] applies it to everything from connecting to the last byte of the body.

use std::sync::OnceLock;
use std::time::Duration;

use aws_config::retry::ErrorKind;
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;

use super::connections::OnServerError;
use super::{Connections, Reply, ResponseLimits, SendError, connector, tls};
use crate::domain::clock::Clock;

/// The largest response of a service, in bytes. A page of `DynamoDB` has 1 MB, the response of an invocation 6 MB.
const LARGEST: usize = 16 * 1024 * 1024;
/// The time limit of an attempt for which the SDK sets none.
const UNLIMITED: Duration = Duration::from_hours(1);

/// The connection pool that the clients of all services share.
#[derive(Debug, Default)]
pub(super) struct Services {
    connections: OnceLock<Result<Connections, rustls::Error>>,
}

impl HttpClient for Services {
    fn http_connector(&self, settings: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        let make = || Ok(Connections::new(connector(tls()?), Clock::system(), OnServerError::Close));
        let connections = self.connections.get_or_init(make).clone();
        SharedHttpConnector::new(Service { connections, time: settings.read_timeout().unwrap_or(UNLIMITED) })
    }
}

/// The HTTP client of one service.
#[derive(Debug)]
struct Service {
    connections: Result<Connections, rustls::Error>,
    /// The time limit, from connecting to the last byte of the response.
    time: Duration,
}

impl HttpConnector for Service {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let (connections, request) = match (&self.connections, with_plain_body(request)) {
            (Ok(connections), Ok(request)) => (connections.clone(), request),
            (Err(error), _) => return HttpConnectorFuture::ready(Err(ConnectorError::user(error.clone().into()))),
            (_, Err(error)) => return HttpConnectorFuture::ready(Err(ConnectorError::user(error))),
        };
        let limits = ResponseLimits { time: self.time, body: LARGEST };
        HttpConnectorFuture::new(async move {
            let Reply { status, headers, body, .. } =
                connections.call(request, limits).await.map_err(connector_error)?;
            let mut answer = Response::new(SdkBody::from(body));
            (*answer.status_mut(), *answer.headers_mut()) = (status, headers);
            HttpResponse::try_from(answer).map_err(|error| ConnectorError::other(error.into(), None))
        })
    }
}

/// Converts a request. Every request to the services that we call has its whole body in memory.
fn with_plain_body(request: HttpRequest) -> Result<Request<Full<Bytes>>, BoxError> {
    let (head, body) = request.try_into_http1x()?.into_parts();
    let body = body.bytes().ok_or("the body of the request is not in memory")?;
    Ok(Request::from_parts(head, Full::new(Bytes::copy_from_slice(body))))
}

/// The SDK's class of an error, which decides if the SDK retries.
fn connector_error(failure: SendError) -> ConnectorError {
    match failure {
        SendError::TimedOut => ConnectorError::timeout(failure.into()),
        SendError::NotSent(_) | SendError::TooLate => ConnectorError::io(failure.into()),
        SendError::Broken { .. } => ConnectorError::other(failure.into(), Some(ErrorKind::TransientError)),
        SendError::TooLarge(_) => ConnectorError::other(failure.into(), None),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use aws_sdk_dynamodb::Client;
    use aws_sdk_dynamodb::config::retry::RetryConfig;
    use aws_sdk_dynamodb::config::timeout::TimeoutConfig;
    use aws_sdk_dynamodb::config::{BehaviorVersion, Config, Credentials, Region};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::super::connections::tests::Peer;
    use super::*;

    const EMPTY: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
    const BROKEN: &str = "HTTP/1.1 500 Internal Server Error\r\ncontent-length: 2\r\n\r\n{}";

    /// Gives these responses, one to each request, and hangs up after one that is incomplete. Returns the number of the
    /// connection on which each request came.
    async fn serve(answers: &'static [&'static str]) -> (String, tokio::task::JoinHandle<Vec<usize>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let serving = tokio::spawn(async move {
            let (mut came_on, mut connection) = (Vec::new(), 0);
            while came_on.len() < answers.len() {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                let mut seen = [0; 8192];
                while came_on.len() < answers.len() && stream.read(&mut seen).await.is_ok_and(|read| read > 0) {
                    let answer = answers[came_on.len()];
                    came_on.push(connection);
                    stream.write_all(answer.as_bytes()).await.expect("written");
                    if !answer.ends_with("{}") {
                        break;
                    }
                }
                connection += 1;
            }
            came_on
        });
        (url, serving)
    }

    fn dynamodb(url: &str) -> Client {
        let config = Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::from_static("us-east-1"))
            .credentials_provider(Credentials::new("a", "b", None, None, "test"))
            .retry_config(RetryConfig::standard().with_initial_backoff(Duration::from_millis(1)))
            .endpoint_url(url)
            .http_client(super::super::aws());
        Client::from_conf(config.build())
    }

    #[tokio::test]
    async fn connections_are_kept_and_closed_after_an_error() {
        let (url, serving) = serve(&[EMPTY, EMPTY, BROKEN, EMPTY]).await;
        let client = dynamodb(&url);
        for _ in 0..3 {
            client.list_tables().send().await.expect("an answer, at the latest to the second try");
        }
        assert_eq!(serving.await.expect("served"), [0, 0, 0, 1]);
    }

    #[tokio::test]
    async fn a_connection_that_breaks_is_tried_again() {
        let (url, serving) = serve(&["", "HTTP/1.1 200 OK\r\nconte", EMPTY]).await;
        dynamodb(&url).list_tables().send().await.expect("an answer to the third try");
        assert_eq!(serving.await.expect("served"), [0, 1, 2]);
    }

    async fn call(url: &str, time: Duration) -> Result<HttpResponse, ConnectorError> {
        let mut request = HttpRequest::new(SdkBody::from("body"));
        request.set_uri(url).expect("a target");
        service(time).call(request).await
    }

    fn service(time: Duration) -> Service {
        let connections = tls().map(|tls| Connections::new(connector(tls), Clock::system(), OnServerError::Close));
        Service { connections, time }
    }

    #[tokio::test]
    async fn each_failure_means_what_the_sdk_takes_it_for() {
        const LONG: Duration = Duration::from_secs(30);
        let nobody = TcpListener::bind("127.0.0.1:0").await.expect("a free port").local_addr().expect("bound");
        let refused = call(&format!("http://{nobody}"), LONG).await.expect_err("nobody listens");
        assert!(refused.is_io(), "{refused:?}");

        let silent = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", silent.local_addr().expect("bound"));
        let late = call(&url, Duration::from_millis(20)).await.expect_err("nobody answers");
        assert!(late.is_timeout(), "{late:?}");
        // A connection is made as soon as TLS is agreed upon.
        let unconnected = call(&url.replace("http:", "https:"), Duration::from_millis(20)).await;
        let unconnected = unconnected.expect_err("nobody answers");
        assert!(unconnected.is_io(), "{unconnected:?}");

        let (url, _serving) = serve(&[""]).await;
        let hung_up = call(&url, LONG).await.expect_err("closed without a word");
        assert_eq!(hung_up.as_other(), Some(ErrorKind::TransientError), "{hung_up:?}");
    }

    /// No layer that the SDK puts around the client may check a timer before it reads the response.
    #[tokio::test]
    async fn an_answer_that_arrived_while_the_process_stood_still_is_read() {
        const LATE: &[(u64, &[u8])] = &[(20, EMPTY.as_bytes())];
        let peer = Arc::new(Peer::answering(LATE));
        let timeouts = TimeoutConfig::builder().read_timeout(Duration::from_millis(200)).build();
        let client = dynamodb(&format!("http://{}", peer.address));
        let config = client.config().to_builder().timeout_config(timeouts).retry_config(RetryConfig::disabled());
        let client = Client::from_conf(config.build());
        for number in 0..3 {
            let standing_still = tokio::spawn(Arc::clone(&peer).stand_still_after(number));
            client.list_tables().send().await.expect("the answer had arrived");
            standing_still.await.expect("no panic");
        }
        assert_eq!(peer.seen().1, 3);
    }

    #[tokio::test]
    async fn a_body_that_streams_is_refused_and_not_sent_empty() {
        let body = SdkBody::from_body_1_x(http_body_util::StreamBody::new(futures_util::stream::pending::<
            Result<hyper::body::Frame<Bytes>, std::io::Error>,
        >()));
        let mut request = HttpRequest::new(body);
        request.set_uri("http://127.0.0.1:9").expect("a target");
        let refused = service(UNLIMITED).call(request).await;
        assert!(refused.expect_err("nothing is sent").is_user());
    }
}
