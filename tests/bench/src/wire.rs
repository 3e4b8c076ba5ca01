//! What lies between a process and AWS when its calls are counted: an HTTP proxy that passes everything on, counts by
//! operation, and can take its time. It knows nothing of the code that it counts.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;
use http::HeaderMap;
use sandbox::server::{Server, WhenClientLeaves, pass_on};

/// Calls by operation, such as `UpdateItem`; those of the SDK's own retries too.
pub(crate) type Calls = BTreeMap<String, usize>;

/// Where the services are, and how long each call to them takes on top.
#[derive(Clone, Debug, Default)]
pub(crate) struct Upstreams {
    pub(crate) dynamodb: String,
    pub(crate) dynamodb_takes: Duration,
    pub(crate) secrets: String,
    pub(crate) secrets_take: Duration,
}

struct Inner {
    http: reqwest::Client,
    upstreams: Upstreams,
    calls: Mutex<Calls>,
}

/// The proxy, which ends when this is dropped.
pub(crate) struct Wire {
    inner: Arc<Inner>,
    server: Server,
}

impl Wire {
    /// Starts it on a free port.
    pub(crate) async fn to(upstreams: Upstreams) -> Self {
        let inner = Arc::new(Inner { http: reqwest::Client::new(), upstreams, calls: Mutex::default() });
        let router = Router::new().fallback(pass).with_state(Arc::clone(&inner));
        let server = Server::start(0, router, WhenClientLeaves::Finish).await.expect("a free port");
        Self { inner, server }
    }

    /// Base URL of all services.
    pub(crate) fn url(&self) -> String {
        self.server.url()
    }

    /// All calls so far.
    pub(crate) fn calls(&self) -> Calls {
        self.inner.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many calls so far.
    pub(crate) fn count(&self) -> usize {
        self.calls().values().sum()
    }
}

async fn pass(State(inner): State<Arc<Inner>>, headers: HeaderMap, body: Bytes) -> Response {
    let target = headers.get("x-amz-target").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (service, operation) = target.split_once('.').unwrap_or(("", target));
    *inner.calls.lock().unwrap_or_else(PoisonError::into_inner).entry(operation.to_owned()).or_default() += 1;
    let Upstreams { dynamodb, dynamodb_takes, secrets, secrets_take } = &inner.upstreams;
    let (url, takes) = if service == "secretsmanager" { (secrets, secrets_take) } else { (dynamodb, dynamodb_takes) };
    if !takes.is_zero() {
        tokio::time::sleep(*takes).await;
    }
    pass_on(&inner.http, url, headers, body).await
}
