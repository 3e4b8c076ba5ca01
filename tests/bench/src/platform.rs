//! A fake platform that only answers. The measured cost of a call is therefore the relay's cost.
//!
//! Refresh tokens name their location (`r.LOCATION.N`), so the platform stores nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::Response;
use axum::routing::post;
use http::{HeaderValue, header};
use sandbox::server::{Server, WhenClientLeaves};
use serde_json::json;
use shared::domain::limits::Limits;

/// The answer to every request other than a token request: one contact, in the platform's format.
const CONTACT: &str = r#"{"contact":{"id":"sx6wyHhbFdRXh302LLNR","locationId":"L1","firstName":"Ada","lastName":"Lovelace","email":"ada@example.com","phone":"+15555550100","tags":["customer"],"dateAdded":"2026-01-02T03:04:05.678Z"},"traceId":"0af76519-16cd-43dd-8448-eb211c80319c"}"#;

struct Inner {
    takes: Duration,
    limits: Limits,
    requests: AtomicUsize,
    grants: AtomicUsize,
}

/// The running platform. Dropping this value stops the platform.
pub(crate) struct Platform {
    inner: Arc<Inner>,
    server: Server,
}

impl Platform {
    /// Starts a platform that takes this time for each answer, and states these limits.
    pub(crate) async fn start(takes: Duration, limits: Limits) -> Self {
        let inner = Arc::new(Inner { takes, limits, requests: AtomicUsize::new(0), grants: AtomicUsize::new(0) });
        let router = Router::new().route("/oauth/token", post(grant)).fallback(answer).with_state(Arc::clone(&inner));
        let server = Server::start(0, router, WhenClientLeaves::Finish).await.expect("a free port");
        Self { inner, server }
    }

    /// The base URL.
    pub(crate) fn url(&self) -> String {
        self.server.url()
    }

    /// The number of requests other than token requests.
    pub(crate) fn requests(&self) -> usize {
        self.inner.requests.load(Ordering::SeqCst)
    }

    /// The number of token requests.
    pub(crate) fn grants(&self) -> usize {
        self.inner.grants.load(Ordering::SeqCst)
    }
}

async fn answer(State(inner): State<Arc<Inner>>) -> Response {
    inner.requests.fetch_add(1, Ordering::SeqCst);
    if !inner.takes.is_zero() {
        tokio::time::sleep(inner.takes).await;
    }
    let mut response = Response::new(Body::from(CONTACT));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
    let Limits { burst, interval, daily } = inner.limits;
    for (name, value) in [
        ("x-ratelimit-limit-daily", u64::from(daily)),
        ("x-ratelimit-daily-remaining", u64::from(daily - 1)),
        ("x-ratelimit-interval-milliseconds", u64::try_from(interval.as_millis()).expect("short")),
        ("x-ratelimit-max", u64::from(burst)),
        ("x-ratelimit-remaining", u64::from(burst - 1)),
    ] {
        headers.insert(name, HeaderValue::from(value));
    }
    response
}

async fn grant(State(inner): State<Arc<Inner>>, form: Bytes) -> Response {
    let number = inner.grants.fetch_add(1, Ordering::SeqCst);
    if !inner.takes.is_zero() {
        tokio::time::sleep(inner.takes).await;
    }
    let form = String::from_utf8_lossy(&form);
    let token = form.split('&').find_map(|field| field.strip_prefix("refresh_token=")).unwrap_or_default();
    let location = token.split('.').nth(1).unwrap_or_default();
    let grant = json!({
        "access_token": access_token(number), "token_type": "Bearer", "expires_in": 86_399,
        "refresh_token": refresh_token(location, number), "scope": "contacts.readonly contacts.write",
        "userType": "Location", "locationId": location, "companyId": "C1", "userId": "U1",
    });
    let mut response = Response::new(Body::from(grant.to_string()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// An access token as long as the real platform's: a JWT of about 1.2 KB.
pub(crate) fn access_token(number: usize) -> String {
    format!("{number:0>1200}")
}

/// A refresh token as long as the real platform's.
pub(crate) fn refresh_token(location: &str, number: usize) -> String {
    format!("r.{location}.{number:0>800}")
}
