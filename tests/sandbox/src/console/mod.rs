//! A page that shows the system live, with buttons to try the system and to inject faults.
//!
//! | route | |
//! |---|---|
//! | `GET /` | the page; its style and its script stand beside it, embedded in this program |
//! | `GET /events` | what happens, as server-sent events: `feed` and `view` |
//! | `POST /actions` | one button: `action` |
//! | `GET /exports` | commands of a shell that set the variables of the documents' examples |
//!
//! The console makes the calls of the buttons itself. The page reads the exports, with the sandbox's own key, only when
//! somebody opens them. No other page can read them.

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
    queue::Queue,
    runtime_api::RuntimeApi,
    secrets::Writer,
    server::{Server, StartError, WhenClientLeaves},
};

/// The parts of a sandbox that the console reads and controls.
#[derive(Debug, Clone)]
pub struct Controls {
    /// The platform.
    pub platform: Arc<Platform>,
    /// Base URL of the platform.
    pub platform_url: String,
    /// Base URL of the relay.
    pub gateway_url: String,
    /// Lambda, for invoking `refresh`.
    pub runtime: RuntimeApi,
    /// Secrets Manager, for setting the app's secret.
    pub secrets: Writer,
    /// The one table, for reading.
    pub table: Table,
    /// Key of the caller that the console uses for its calls.
    pub caller_key: String,
    /// Commands of a shell that set the variables of the documents' examples.
    pub exports: String,
    /// The queue of calls.
    pub calls: Queue,
    /// The functions' processes.
    pub workers: Vec<Handle>,
    /// The events of all parts.
    pub bus: EventBus,
}

/// State that the handlers share.
#[derive(Debug)]
struct Desk {
    controls: Controls,
    feed: Feed,
    client: reqwest::Client,
}

/// The console. Dropping the handle ends the console.
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
    /// Starts the console on 127.0.0.1; port 0 selects a free port.
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
            .route("/exports", get(exports))
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

    /// Starts the console on the first free port of `ports`. Returns `None` if `ports` is empty.
    ///
    /// # Errors
    /// All of the ports are taken.
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

    /// Returns the console's URL.
    pub fn url(&self) -> String {
        self.server.url()
    }
}

fn asset(content_type: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, content_type)], text).into_response()
}

/// Adds headers that keep the page from loading or sending anything elsewhere, and foreign pages from framing the page.
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

async fn exports(Shared(desk): TheDesk) -> Response {
    let content_type = (header::CONTENT_TYPE, "text/plain; charset=utf-8");
    ([content_type], format!("{}\n", desk.controls.exports)).into_response()
}

/// Performs the action of a button. The body must declare that it is JSON, because a form of a foreign page cannot do
/// so.
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
