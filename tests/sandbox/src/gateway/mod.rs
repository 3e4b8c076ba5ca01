//! API Gateway's HTTP API on this machine: receives HTTP, invokes the functions with payload 2.0, and returns their
//! answers.

pub mod answer;
pub mod event;
pub mod routes;
pub mod signature;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::State as Shared,
    response::Response,
};
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use serde_json::json;

use self::{
    event::{Iam, Incoming},
    routes::{Access, Match},
    signature::Signable,
};
use crate::{
    events::{Event, EventBus},
    runtime_api::{self, Invocation, RuntimeApi},
    server::{Peer, Server, StartError, WhenClientLeaves, hang_up},
};

/// API Gateway's limits.
const LARGEST_BODY: usize = 10 * 1024 * 1024;
const LARGEST_HEAD: usize = 10_240;
const PATIENCE: Duration = Duration::from_secs(30);

/// Time-out of the functions behind the gateway, as `template.yaml` sets it.
const FUNCTION_TIMEOUT: Duration = Duration::from_secs(29);

#[derive(Debug)]
struct Behind {
    runtime: RuntimeApi,
    bus: EventBus,
    /// The alias with which the gateway invokes the functions.
    alias: Option<String>,
}

/// The gateway. Dropping the handle ends the gateway.
#[derive(Debug)]
pub struct Gateway {
    server: Server,
}

impl Gateway {
    /// Starts the gateway on 127.0.0.1; port 0 selects a free port. The gateway invokes the functions by `alias`, if
    /// given.
    ///
    /// # Errors
    /// The port is taken.
    pub async fn start(port: u16, runtime: RuntimeApi, alias: Option<&str>, bus: EventBus) -> Result<Self, StartError> {
        let alias = alias.map(str::to_owned);
        let router = Router::new().fallback(serve).with_state(Arc::new(Behind { runtime, bus, alias }));
        let server = Server::start(port, router, WhenClientLeaves::Finish).await?;
        Ok(Self { server })
    }

    /// Returns the base URL, for `PUBLIC_URL`.
    pub fn url(&self) -> String {
        self.server.url()
    }
}

async fn serve(Shared(behind): Shared<Arc<Behind>>, request: Request<Body>) -> Response {
    let began = Instant::now();
    let method = request.method().to_string();
    let path = request.uri().path().to_owned();
    let mut response = pass(&behind, request).await;
    let id = shared::domain::random::hex::<8>();
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert("apigw-requestid", id);
    }
    let source = response.headers().get("relay-source").and_then(|value| value.to_str().ok()).map(str::to_owned);
    behind.bus.publish(Event::Gateway {
        method,
        path,
        status: response.status().as_u16(),
        source,
        millis: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
    });
    response
}

async fn pass(behind: &Behind, request: Request<Body>) -> Response {
    let (head, body) = request.into_parts();
    if head_size(&head.uri, &head.headers) > LARGEST_HEAD {
        return message(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "Request Header Fields Too Large");
    }
    let Some(found) = routes::find(&head.method, head.uri.path()) else {
        return message(StatusCode::NOT_FOUND, "Not Found");
    };
    // Reads a body that is somewhat too large to its end, because a client that is still writing would not see the
    // refusal.
    let body = match to_bytes(body, 4 * LARGEST_BODY).await {
        Ok(body) if body.len() <= LARGEST_BODY => body,
        Ok(_) | Err(_) => return message(StatusCode::PAYLOAD_TOO_LARGE, "Request Entity Too Large"),
    };
    let iam = match found.access {
        Access::Open => None,
        Access::Iam => {
            let signable = Signable { method: &head.method, uri: &head.uri, headers: &head.headers, body: &body };
            match signable.signer(SystemTime::now()) {
                Some(access_key) => Some(Iam::of(access_key)),
                None => return message(StatusCode::FORBIDDEN, "Forbidden"),
            }
        }
    };
    let peer = head.extensions.get::<Peer>().map_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)), |peer| peer.0);
    let mut headers = head.headers;
    let trace_id = trace(&mut headers);
    let Match { route_key, function, parameters, .. } = found;
    let incoming = Incoming { method: &head.method, uri: &head.uri, headers: &headers, body: &body, peer: peer.ip() };
    let event = event::of(&incoming, &route_key, &parameters, iam.as_ref());
    let qualifier = behind.alias.clone();
    let invocation = Invocation { qualifier, timeout: FUNCTION_TIMEOUT, trace_id: Some(trace_id) };
    let invoked = behind.runtime.invoke(function, event.to_string(), invocation);
    match tokio::time::timeout(PATIENCE, invoked).await {
        Err(_elapsed) => message(StatusCode::SERVICE_UNAVAILABLE, "Service Unavailable"),
        Ok(Err(_function_error)) => message(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error"),
        Ok(Ok(answered)) => answer::of(&answered)
            .unwrap_or_else(|_| message(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error")),
    }
}

/// Returns the trace id of the request. If there is none, makes a new one and adds it to the headers.
fn trace(headers: &mut HeaderMap) -> String {
    if let Some(came) = headers.get("x-amzn-trace-id").and_then(|value| value.to_str().ok()) {
        return came.to_owned();
    }
    let new = runtime_api::trace_id();
    if let Ok(value) = HeaderValue::from_str(&new) {
        headers.insert("x-amzn-trace-id", value);
    }
    new
}

fn head_size(uri: &http::Uri, headers: &HeaderMap) -> usize {
    let line = uri.path_and_query().map_or(1, |target| target.as_str().len());
    line + headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum::<usize>()
}

fn message(status: StatusCode, text: &str) -> Response {
    Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .body(Body::from(json!({ "message": text }).to_string()))
        .unwrap_or_else(|_| hang_up())
}
