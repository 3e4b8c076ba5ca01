//! The HTTP client of the AWS SDK, on the stack that relayed calls have.
//!
//! The SDK's own speaks HTTP/2, too, which no service that is called here does and which is a tenth of a function's
//! program, and reads the root certificates for each service. What its errors mean is taken over from
//! `aws_smithy_http_client` 1.5: the SDK tries again after an error of the connection and after a time-out.

use std::collections::HashMap;
use std::error::Error;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use aws_config::retry::ErrorKind;
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::connection::{CaptureSmithyConnection, ConnectionMetadata};
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::{CaptureConnection, capture_connection};
use tower::timeout::error::Elapsed;

use super::{CONNECT, Kept, kept};

/// How long an unused connection is kept, as the SDK's own client does.
const KEPT: Duration = Duration::from_secs(90);

/// One for the clients of all services. It knows a pool of connections for each time that connecting may take, which
/// differs between a service and the endpoint of the machine's own credentials.
#[derive(Debug, Default)]
pub(super) struct Services {
    pools: Mutex<HashMap<Duration, Kept>>,
}

impl HttpClient for Services {
    fn http_connector(&self, settings: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        let connect = settings.connect_timeout().unwrap_or(CONNECT);
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        let client = match pools.get(&connect) {
            Some(client) => Ok(client.clone()),
            None => kept(connect, KEPT).inspect(|client| {
                pools.insert(connect, client.clone());
            }),
        };
        SharedHttpConnector::new(Service { client, answer_within: settings.read_timeout() })
    }
}

/// The connections of one service.
#[derive(Debug)]
struct Service {
    client: Result<Kept, rustls::Error>,
    /// The time to the first byte of an answer.
    answer_within: Option<Duration>,
}

impl HttpConnector for Service {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let (client, mut request) = match (&self.client, with_plain_body(request)) {
            (Ok(client), Ok(request)) => (client.clone(), request),
            (Err(error), _) => return HttpConnectorFuture::ready(Err(ConnectorError::user(error.clone().into()))),
            (_, Err(error)) => return HttpConnectorFuture::ready(Err(ConnectorError::user(error))),
        };
        let captured = capture_connection(&mut request);
        if let Some(capture) = request.extensions().get::<CaptureSmithyConnection>() {
            capture.set_connection_retriever(move || connection(&captured));
        }
        let answer_within = self.answer_within;
        HttpConnectorFuture::new(async move {
            let answering = client.request(request);
            let answer = match answer_within {
                None => answering.await,
                Some(time) => {
                    let in_time = tokio::time::timeout(time, answering).await;
                    in_time.map_err(|elapsed| ConnectorError::timeout(elapsed.into()))?
                }
            };
            let answer = answer.map_err(meaning)?;
            HttpResponse::try_from(answer.map(SdkBody::from_body_1_x))
                .map_err(|error| ConnectorError::other(error.into(), None))
        })
    }
}

/// The body of every request to a service that is called here is there as a whole.
fn with_plain_body(request: HttpRequest) -> Result<Request<Full<Bytes>>, BoxError> {
    let (head, body) = request.try_into_http1x()?.into_parts();
    let body = body.bytes().ok_or("the body of the request is not in memory")?;
    Ok(Request::from_parts(head, Full::new(Bytes::copy_from_slice(body))))
}

/// The connection that a request went out on, so that the SDK can have it closed after an error.
fn connection(captured: &CaptureConnection) -> Option<ConnectionMetadata> {
    captured.connection_metadata().as_ref()?;
    let captured = captured.clone();
    let close = move || {
        if let Some(connected) = captured.connection_metadata().as_ref() {
            connected.poison();
        }
    };
    Some(ConnectionMetadata::builder().proxied(false).poison_fn(close).build())
}

/// What an error means to the SDK.
fn meaning(error: legacy::Error) -> ConnectorError {
    let said = found::<hyper::Error>(&error);
    let user = said.is_some_and(hyper::Error::is_user);
    let closed = said.is_some_and(|said| said.is_closed() || said.is_canceled());
    let half_an_answer = said.is_some_and(hyper::Error::is_incomplete_message);
    if found::<Elapsed>(&error).is_some() || said.is_some_and(hyper::Error::is_timeout) {
        ConnectorError::timeout(error.into())
    } else if user {
        ConnectorError::user(error.into())
    } else if closed || error.is_connect() || found::<std::io::Error>(&error).is_some() {
        ConnectorError::io(error.into())
    } else {
        ConnectorError::other(error.into(), half_an_answer.then_some(ErrorKind::TransientError))
    }
}

/// The first error of that type among one and its causes.
fn found<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        cause = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use aws_sdk_dynamodb::Client;
    use aws_sdk_dynamodb::config::retry::RetryConfig;
    use aws_sdk_dynamodb::config::{BehaviorVersion, Config, Credentials, Region};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    const EMPTY: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
    const BROKEN: &str = "HTTP/1.1 500 Internal Server Error\r\ncontent-length: 2\r\n\r\n{}";

    /// Gives these answers, one to each request, and hangs up after one that is no whole one. Tells on which connection each
    /// of the requests came.
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

    async fn call(
        url: &str,
        connect: Duration,
        answer_within: Option<Duration>,
    ) -> Result<HttpResponse, ConnectorError> {
        let mut request = HttpRequest::new(SdkBody::from("body"));
        request.set_uri(url).expect("a target");
        Service { client: kept(connect, KEPT), answer_within }.call(request).await
    }

    #[tokio::test]
    async fn each_failure_means_what_the_sdk_takes_it_for() {
        let nobody = TcpListener::bind("127.0.0.1:0").await.expect("a free port").local_addr().expect("bound");
        let refused = call(&format!("http://{nobody}"), CONNECT, None).await.expect_err("nobody listens");
        assert!(refused.is_io(), "{refused:?}");

        let silent = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", silent.local_addr().expect("bound"));
        let late = call(&url, CONNECT, Some(Duration::from_millis(20))).await.expect_err("nobody answers");
        assert!(late.is_timeout(), "{late:?}");
        // A connection is made as soon as TLS is agreed upon.
        let unconnected = call(&url.replace("http:", "https:"), Duration::from_millis(20), None).await;
        let unconnected = unconnected.expect_err("nobody answers");
        assert!(unconnected.is_timeout(), "{unconnected:?}");

        let (url, _serving) = serve(&[""]).await;
        let hung_up = call(&url, CONNECT, None).await.expect_err("closed without a word");
        assert!(hung_up.is_io() || hung_up.as_other() == Some(ErrorKind::TransientError), "{hung_up:?}");
    }

    #[tokio::test]
    async fn a_body_that_streams_is_refused_and_not_sent_empty() {
        let body = SdkBody::from_body_1_x(http_body_util::StreamBody::new(futures_util::stream::pending::<
            Result<hyper::body::Frame<Bytes>, std::io::Error>,
        >()));
        let mut request = HttpRequest::new(body);
        request.set_uri("http://127.0.0.1:9").expect("a target");
        let refused = Service { client: kept(CONNECT, KEPT), answer_within: None }.call(request).await;
        assert!(refused.expect_err("nothing is sent").is_user());
    }
}
