//! A proxy between one process and AWS. The proxy passes every call on, except for the calls that a test tells it to
//! fail.
//!
//! Each process of a story has a proxy of its own, so the store can be down for one process and up for the others. The
//! proxy distinguishes calls by their operation, and writes of an installation by the attributes that they set.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, State};
use axum::response::Response;
use http::{HeaderMap, StatusCode};
use sandbox::server::{Server, StartError, WhenClientLeaves, hang_up, pass_on};
use serde_json::{Value, json};
use tokio::sync::watch;

/// The addresses of the real services.
#[derive(Clone, Debug)]
pub struct Upstreams {
    /// `DynamoDB`.
    pub dynamodb: String,
    /// Secrets Manager.
    pub secrets: String,
    /// SQS.
    pub queue: String,
    /// `EventBridge`.
    pub events: String,
}

/// The calls that a fault applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Everything that is sent to `DynamoDB`.
    Store,
    /// Every `UpdateItem`.
    Write,
    /// The claim of an installation.
    Claim,
    /// The commit of a refresh.
    Commit,
    /// The release of a lease without a new token.
    Release,
    /// The addition of a standby pair.
    AddStandby,
    /// The promotion of a standby pair to the current pair.
    Promote,
    /// A new installation.
    Install,
    /// An uninstall.
    Uninstall,
    /// The count of a grant. The count frees places of the budget of marks.
    Grant,
    /// The reservation of a place of the budget of marks.
    Reserve,
    /// A write that takes permits, or gives one back.
    Permit,
    /// The record of a keyed request before it is sent.
    Intent,
    /// The record of the outcome of a keyed request.
    Outcome,
    /// The progress of the search for a location's company.
    SaveSearch,
    /// The end of such a search that found no company.
    ConcludeSearch,
    /// `GetItem`.
    Read,
    /// Everything that is sent to SQS.
    Queue,
    /// Everything that is sent to Secrets Manager.
    Secrets,
    /// Everything that is sent to `EventBridge`.
    Events,
    /// The removal of events from an outbox after they were published (acknowledge).
    Acknowledge,
    /// The claim of a webhook.
    WebhookClaim,
    /// The mark of a webhook that was processed.
    WebhookMark,
}

/// The fault that strikes a call.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The service answers that it is unavailable, without carrying out the call. The SDK tries again.
    Unavailable,
    /// The service answers that it is throttled, without carrying out the call. The SDK tries again.
    Throttled,
    /// The service denies access, and the SDK does not try again.
    AccessDenied,
    /// The connection is closed without an answer.
    HangUp {
        /// True if the service carries out the call all the same.
        applied: bool,
    },
    /// The proxy gives no answer for [`STALL`], which is longer than any function waits.
    Stall {
        /// True if the service carries out the call all the same.
        applied: bool,
    },
    /// The call is carried out, and its answer is delayed by this time, as if the service were far away.
    Late(Duration),
    /// The call waits at this gate before it is carried out.
    Hold(Gate),
    /// The call is carried out, and its answer waits at this gate.
    HoldAnswer(Gate),
}

/// A place where a call waits until it is let through.
#[derive(Clone, Debug)]
pub struct Gate {
    reached: watch::Sender<bool>,
    open: watch::Sender<bool>,
}

impl Default for Gate {
    fn default() -> Self {
        Self { reached: watch::Sender::new(false), open: watch::Sender::new(false) }
    }
}

impl Gate {
    /// A closed gate.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns as soon as a call has arrived at the gate.
    ///
    /// # Panics
    /// If no call arrives within half a minute.
    pub async fn reached(&self) {
        let mut reached = self.reached.subscribe();
        let arrived = tokio::time::timeout(Duration::from_secs(30), reached.wait_for(|reached| *reached)).await;
        assert!(arrived.is_ok(), "no call arrives at the gate");
    }

    /// Opens the gate for the calls that wait and for all later ones.
    pub fn open(&self) {
        self.open.send_replace(true);
    }

    async fn pass(&self) {
        self.reached.send_replace(true);
        let mut open = self.open.subscribe();
        // A gate that was dropped is open.
        let _opened = open.wait_for(|open| *open).await;
    }
}

#[derive(Debug)]
struct Rule {
    call: Call,
    skip: u32,
    times: Option<u32>,
    fault: Fault,
}

#[derive(Debug, Default)]
struct Book {
    rules: Vec<Rule>,
    calls: Vec<Vec<Call>>,
    struck: u32,
}

#[derive(Debug)]
struct Wire {
    http: reqwest::Client,
    upstreams: Upstreams,
    book: Mutex<Book>,
}

impl Wire {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The proxy. Dropping it ends it.
#[derive(Debug)]
pub struct Proxy {
    wire: Arc<Wire>,
    server: Server,
}

impl Proxy {
    /// Starts a proxy on a free port. At first the proxy passes every call on.
    ///
    /// # Errors
    /// If no port is free.
    pub async fn start(upstreams: Upstreams) -> Result<Self, StartError> {
        let wire = Arc::new(Wire { http: reqwest::Client::new(), upstreams, book: Mutex::default() });
        let router = Router::new().fallback(serve).layer(DefaultBodyLimit::disable()).with_state(wire.clone());
        // A call that was begun is finished, as in a real service, even if the client has closed the connection.
        let server = Server::start(0, router, WhenClientLeaves::Finish).await?;
        Ok(Self { wire, server })
    }

    /// Base URL: the endpoint of all services.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// Fails the next `times` of these calls after `skip` of them were passed on. With `None`, fails them until
    /// [`Proxy::heal`].
    pub fn fault(&self, call: Call, skip: u32, times: Option<u32>, fault: Fault) {
        self.wire.book().rules.push(Rule { call, skip, times, fault });
    }

    /// Fails the next one of these calls.
    pub fn once(&self, call: Call, fault: Fault) {
        self.fault(call, 0, Some(1), fault);
    }

    /// Fails all of these calls until [`Proxy::heal`].
    pub fn always(&self, call: Call, fault: Fault) {
        self.fault(call, 0, None, fault);
    }

    /// Holds these calls before they are carried out, until the gate is opened.
    pub fn hold(&self, call: Call) -> Gate {
        let gate = Gate::new();
        self.always(call, Fault::Hold(gate.clone()));
        gate
    }

    /// Carries these calls out and holds their answers, until the gate is opened.
    pub fn hold_answer(&self, call: Call) -> Gate {
        let gate = Gate::new();
        self.always(call, Fault::HoldAnswer(gate.clone()));
        gate
    }

    /// Removes every fault.
    pub fn heal(&self) {
        self.wire.book().rules.clear();
    }

    /// The number of times that a fault struck.
    pub fn struck(&self) -> u32 {
        self.wire.book().struck
    }

    /// The number of such calls, including the SDK's own retries.
    pub fn calls(&self, call: Call) -> usize {
        self.wire.book().calls.iter().filter(|kinds| kinds.contains(&call)).count()
    }
}

/// The kinds of a call, from the most general to the most specific.
fn kinds(target: &str, body: &[u8]) -> Vec<Call> {
    if target.starts_with("secretsmanager") {
        return vec![Call::Secrets];
    }
    if target.starts_with("AmazonSQS") {
        return vec![Call::Queue];
    }
    if target.starts_with("AWSEvents") {
        return vec![Call::Events];
    }
    let operation = target.rsplit('.').next().unwrap_or_default();
    let mut kinds = vec![Call::Store];
    match operation {
        "GetItem" => kinds.push(Call::Read),
        "UpdateItem" => {
            kinds.push(Call::Write);
            let body: Value = serde_json::from_slice(body).unwrap_or_default();
            kinds.extend(written(body["UpdateExpression"].as_str().unwrap_or_default()));
        }
        _ => {}
    }
    kinds
}

/// The write of an installation's life cycle that has this update expression.
fn written(update: &str) -> Option<Call> {
    let sets = |part: &str| update.contains(part);
    if sets("fingerprint = ") {
        Some(Call::Intent)
    } else if sets("ended_at = ") {
        Some(Call::Outcome)
    } else if sets("counted = ") {
        Some(Call::Permit)
    } else if sets("installed_at = ") {
        Some(Call::Install)
    } else if sets("revoked_at = ") {
        Some(Call::Uninstall)
    } else if sets("claimed_from = ") {
        Some(Call::Claim)
    } else if sets("settled_by = ") {
        Some(Call::Release)
    } else if sets("committed_by = ") {
        Some(if sets("failures = ") { Call::Commit } else { Call::Promote })
    } else if sets("standby = ") {
        Some(Call::AddStandby)
    } else if sets("REMOVE outbox") || sets("SET outbox = ") {
        Some(Call::Acknowledge)
    } else if sets("claim_ends_at = ") {
        Some(Call::WebhookClaim)
    } else if sets("REMOVE claimed_by, claim_ends_at") {
        Some(Call::WebhookMark)
    } else if sets("marks = ") {
        Some(Call::Reserve)
    } else if sets("ADD grants") {
        Some(Call::Grant)
    } else if sets("absent_newest = ") {
        Some(Call::ConcludeSearch)
    } else if sets("search_after = ") {
        Some(Call::SaveSearch)
    } else {
        None
    }
}

impl Book {
    fn take(&mut self, kinds: &[Call]) -> Option<Fault> {
        let index = self.rules.iter_mut().position(|rule| {
            let meant = kinds.contains(&rule.call);
            if meant && rule.skip > 0 {
                rule.skip -= 1;
                return false;
            }
            meant
        })?;
        let rule = &mut self.rules[index];
        let fault = rule.fault.clone();
        match &mut rule.times {
            None => {}
            Some(times) if *times > 1 => *times -= 1,
            Some(_) => {
                self.rules.remove(index);
            }
        }
        self.struck += 1;
        Some(fault)
    }
}

/// Time after which a stalled call ends without an answer. It is longer than any time-out of the functions.
pub const STALL: Duration = Duration::from_mins(1);

async fn serve(State(wire): State<Arc<Wire>>, headers: HeaderMap, body: Bytes) -> Response {
    let target = headers.get("x-amz-target").and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let kinds = kinds(&target, &body);
    let fault = {
        let mut book = wire.book();
        let fault = book.take(&kinds);
        book.calls.push(kinds.clone());
        fault
    };
    let url = match kinds[0] {
        Call::Secrets => &wire.upstreams.secrets,
        Call::Queue => &wire.upstreams.queue,
        Call::Events => &wire.upstreams.events,
        _ => &wire.upstreams.dynamodb,
    };
    let pass = || pass_on(&wire.http, url, headers.clone(), body.clone());
    match fault {
        None => pass().await,
        Some(Fault::Unavailable) => refusal(StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError"),
        Some(Fault::Throttled) => refusal(StatusCode::BAD_REQUEST, "ThrottlingException"),
        Some(Fault::AccessDenied) => refusal(StatusCode::BAD_REQUEST, "AccessDeniedException"),
        Some(Fault::HangUp { applied }) => {
            if applied {
                pass().await;
            }
            hang_up()
        }
        Some(Fault::Stall { applied }) => {
            if applied {
                pass().await;
            }
            tokio::time::sleep(STALL).await;
            hang_up()
        }
        Some(Fault::Late(time)) => {
            let answer = pass().await;
            tokio::time::sleep(time).await;
            answer
        }
        Some(Fault::Hold(gate)) => {
            gate.pass().await;
            pass().await
        }
        Some(Fault::HoldAnswer(gate)) => {
            let answer = pass().await;
            gate.pass().await;
            answer
        }
    }
}

fn refusal(status: StatusCode, kind: &str) -> Response {
    let body = json!({ "__type": format!("com.amazonaws#{kind}"), "message": "as the story wants it" });
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/x-amz-json-1.0"));
    response
}
