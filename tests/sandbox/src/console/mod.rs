//! A page that shows the system live, and has buttons to try it and to break it.
//!
//! | route | |
//! |---|---|
//! | `GET /` | the page; its style and its script stand beside it, embedded in this program |
//! | `GET /events` | what happens, as server-sent events: `feed` and `view` |
//! | `POST /actions` | one button: `action` |
//!
//! The page holds no key and no token: calls are made here, with the sandbox's own key.

mod action;
mod feed;
mod view;

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{State as Shared, rejection::JsonRejection},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, header};
use serde_json::json;
use shared::table::Table;
use tokio::task::JoinHandle;

use self::{action::Action, feed::Feed};
use crate::{
    events::EventBus,
    local,
    marketplace::Platform,
    process::Handle,
    runtime_api::RuntimeApi,
    secrets::Writer,
    server::{Server, StartError, WhenClientLeaves},
};

/// The parts of a sandbox that the console looks at and moves.
#[derive(Debug, Clone)]
pub struct Controls {
    /// The platform.
    pub platform: Arc<Platform>,
    /// Where its pages are.
    pub platform_url: String,
    /// Where the relay is called.
    pub gateway_url: String,
    /// Lambda, to invoke `refresh`.
    pub runtime: RuntimeApi,
    /// Secrets Manager, for the app's secret.
    pub secrets: Writer,
    /// The one table, to read.
    pub table: Table,
    /// Key of the caller as whom calls are made.
    pub caller_key: String,
    /// The functions' processes.
    pub workers: Vec<Handle>,
    /// What happens.
    pub bus: EventBus,
}

/// What the handlers share.
#[derive(Debug)]
struct Desk {
    controls: Controls,
    feed: Feed,
    client: reqwest::Client,
}

/// The console, which ends when this is dropped.
#[derive(Debug)]
pub struct Console {
    server: Server,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Console {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Console {
    /// Starts it on 127.0.0.1; port 0 takes a free one.
    ///
    /// # Errors
    /// The port is taken.
    pub async fn start(port: u16, controls: Controls) -> Result<Self, StartError> {
        let feed = Feed::default();
        let events = controls.bus.subscribe();
        let desk = Arc::new(Desk { controls, feed, client: reqwest::Client::new() });
        let router = Router::new()
            .route("/", get(|| async { asset("text/html; charset=utf-8", include_str!("console.html")) }))
            .route("/console.css", get(|| async { asset("text/css; charset=utf-8", include_str!("console.css")) }))
            .route("/console.js", get(|| async { asset("text/javascript; charset=utf-8", include_str!("console.js")) }))
            .route("/events", get(listen))
            .route("/actions", post(act))
            .layer(middleware::from_fn(guarded))
            .layer(middleware::from_fn(local::only_this_machine))
            .with_state(Arc::clone(&desk));
        let server = Server::start(port, router, WhenClientLeaves::Finish).await?;
        let tasks = [
            tokio::spawn({
                let desk = Arc::clone(&desk);
                async move { desk.feed.gather(events).await }
            }),
            tokio::spawn(async move { desk.watch().await }),
        ];
        Ok(Self { server, tasks })
    }

    /// The same on the first of these ports that is free; none where there are none to try.
    ///
    /// # Errors
    /// All are taken.
    pub async fn start_on_one_of(ports: &[u16], controls: &Controls) -> Result<Option<Self>, StartError> {
        let mut refused = None;
        for port in ports {
            match Self::start(*port, controls.clone()).await {
                Ok(console) => return Ok(Some(console)),
                Err(error) => refused = Some(error),
            }
        }
        refused.map_or(Ok(None), Err)
    }

    /// Its address.
    #[must_use]
    pub fn url(&self) -> String {
        self.server.url()
    }
}

fn asset(content_type: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, content_type)], text).into_response()
}

/// Nothing from elsewhere, nothing into elsewhere.
async fn guarded(request: Request<axum::body::Body>, next: Next) -> Response {
    const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                          base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in [
        ("content-security-policy", POLICY),
        ("cache-control", "no-store"),
        ("referrer-policy", "no-referrer"),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
    ] {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    response
}

type TheDesk = Shared<Arc<Desk>>;

async fn listen(Shared(desk): TheDesk, headers: HeaderMap) -> Response {
    let last = headers.get("last-event-id").and_then(|value| value.to_str().ok());
    let cursor = desk.feed.cursor(last);
    feed::stream(desk, cursor).await.into_response()
}

/// Only a body that says it is JSON is read: a form of another page cannot say that.
async fn act(Shared(desk): TheDesk, body: Result<Json<Action>, JsonRejection>) -> Response {
    let (status, answer) = match body {
        Err(rejection) => (rejection.status(), json!({ "problem": rejection.body_text() })),
        Ok(Json(action)) => match Desk::act(&desk, action).await {
            Ok(done) => (StatusCode::OK, json!({ "done": done })),
            Err(problem) => (StatusCode::CONFLICT, json!({ "problem": problem })),
        },
    };
    let content_type = (header::CONTENT_TYPE, "application/json");
    (status, [content_type], answer.to_string()).into_response()
}
