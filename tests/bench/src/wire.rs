//! An HTTP proxy between a process and AWS. The proxy forwards every call, counts the calls by operation, and can add a
//! delay. It shares no code with the system that it measures.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;
use http::HeaderMap;
use sandbox::server::{Server, WhenClientLeaves, pass_on};

/// The number of calls by operation, such as `UpdateItem`, including the SDK's own retries.
pub(crate) type Calls = BTreeMap<String, usize>;

/// The addresses of the services, and the delay that is added to each call.
#[derive(Clone, Debug, Default)]
pub(crate) struct Upstreams {
    pub(crate) dynamodb: String,
    pub(crate) dynamodb_takes: Duration,
    /// Each call to DynamoDB is delayed by up to this much more, by chance.
    pub(crate) dynamodb_jitter: Duration,
    pub(crate) secrets: String,
    pub(crate) secrets_take: Duration,
}

struct Inner {
    http: reqwest::Client,
    upstreams: Upstreams,
    calls: Mutex<Calls>,
}

/// The running proxy. Dropping this value stops the proxy.
pub(crate) struct Wire {
    inner: Arc<Inner>,
    server: Server,
}

impl Wire {
    /// Starts the proxy on a free port.
    pub(crate) async fn to(upstreams: Upstreams) -> Self {
        let inner = Arc::new(Inner { http: reqwest::Client::new(), upstreams, calls: Mutex::default() });
        let router = Router::new().fallback(pass).with_state(Arc::clone(&inner));
        let server = Server::start(0, router, WhenClientLeaves::Finish).await.expect("a free port");
        Self { inner, server }
    }

    /// The base URL of all services.
    pub(crate) fn url(&self) -> String {
        self.server.url()
    }

    /// All calls so far.
    pub(crate) fn calls(&self) -> Calls {
        self.inner.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The number of calls so far.
    pub(crate) fn count(&self) -> usize {
        self.calls().values().sum()
    }
}

async fn pass(State(inner): State<Arc<Inner>>, headers: HeaderMap, body: Bytes) -> Response {
    let target = headers.get("x-amz-target").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (service, operation) = target.split_once('.').unwrap_or(("", target));
    *inner.calls.lock().unwrap_or_else(PoisonError::into_inner).entry(operation.to_owned()).or_default() += 1;
    let Upstreams { dynamodb, dynamodb_takes, dynamodb_jitter, secrets, secrets_take } = &inner.upstreams;
    let (url, takes) = if service == "secretsmanager" {
        (secrets, *secrets_take)
    } else {
        (dynamodb, *dynamodb_takes + dynamodb_jitter.mul_f64(fastrand::f64()))
    };
    if !takes.is_zero() {
        tokio::time::sleep(takes).await;
    }
    pass_on(&inner.http, url, headers, body).await
}
