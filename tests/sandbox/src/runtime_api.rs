//! Lambda on this machine: the Runtime API that workers poll, for several functions on one port, and the `Invoke` API
//! in front of it.
//!
//! A worker is told `AWS_LAMBDA_RUNTIME_API=http://127.0.0.1:<port>/<function>/<worker>` ([`RuntimeApi::url_for`]):
//! the runtime client of Rust keeps the path of that variable and puts its own behind it. The scheme is needed, because
//! without one `host:port/path` is no URI. The worker's name is there so that an invocation can be failed at once when
//! its process ends.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Path, State as Shared},
    response::Response,
    routing::{get, post},
};
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use serde_json::{Value, json};
use tokio::sync::{Mutex as AsyncMutex, mpsc, oneshot};

use crate::{
    events::{Event, EventBus},
    identity,
    lock::lock,
    process::{ACCOUNT, REGION},
    server::{Server, StartError, WhenClientLeaves, hang_up},
};

/// Lambda's bound of a synchronous payload, both ways.
pub const LARGEST_PAYLOAD: usize = 6 * 1024 * 1024 + 100 * 1024;

/// How a function is invoked.
#[derive(Debug, Clone)]
pub struct Invocation {
    /// Alias or version; it ends the invoked ARN.
    pub qualifier: Option<String>,
    /// The function's time-out: the deadline it is told, and when the caller is answered without it.
    pub timeout: Duration,
    /// `X-Amzn-Trace-Id`.
    pub trace_id: Option<String>,
}

impl Default for Invocation {
    fn default() -> Self {
        Self { qualifier: None, timeout: Duration::from_secs(30), trace_id: None }
    }
}

/// An invocation that has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FunctionError {
    /// Nobody ever asked for work for a function of this name.
    NoSuchFunction,
    /// The payload is above [`LARGEST_PAYLOAD`].
    PayloadTooLarge,
    /// The function answered with an error.
    Reported(Value),
    /// The function did not answer in time.
    TimedOut(Duration),
    /// Its process ended in the midst.
    Exited(String),
}

impl FunctionError {
    /// The error document that `Invoke` answers.
    #[must_use]
    pub fn document(&self) -> Value {
        match self {
            Self::Reported(document) => document.clone(),
            other => json!({ "errorType": other.kind(), "errorMessage": other.to_string() }),
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::NoSuchFunction => "ResourceNotFoundException",
            Self::PayloadTooLarge => "RequestTooLargeException",
            Self::Reported(_) => "Function.Error",
            Self::TimedOut(_) => "Sandbox.Timedout",
            Self::Exited(_) => "Runtime.ExitError",
        }
    }
}

impl fmt::Display for FunctionError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchFunction => out.write_str("Function not found"),
            Self::PayloadTooLarge => write!(out, "Request must be smaller than {LARGEST_PAYLOAD} bytes"),
            Self::Reported(document) => write!(out, "{document}"),
            Self::TimedOut(after) => write!(out, "Task timed out after {:.2} seconds", after.as_secs_f64()),
            Self::Exited(how) => write!(out, "Runtime exited with error: {how}"),
        }
    }
}

impl std::error::Error for FunctionError {}

type Answer = Result<Bytes, FunctionError>;

struct Job {
    id: String,
    payload: Bytes,
    invocation: Invocation,
    deadline_ms: u128,
    answer: oneshot::Sender<Answer>,
}

struct Function {
    jobs: mpsc::UnboundedSender<Job>,
    waiting: Arc<AsyncMutex<mpsc::UnboundedReceiver<Job>>>,
}

struct InFlight {
    function: String,
    worker: String,
    answer: oneshot::Sender<Answer>,
}

#[derive(Default)]
struct State {
    functions: HashMap<String, Function>,
    in_flight: HashMap<String, InFlight>,
    init_errors: Vec<(String, Value)>,
    polls: HashMap<String, u64>,
    /// Aliases of functions, as `CreateAlias` makes them.
    aliases: HashMap<String, BTreeSet<String>>,
    /// Workers that have asked for work since their process started.
    initialized: HashSet<(String, String)>,
}

struct Inner {
    state: Mutex<State>,
    bus: EventBus,
}

/// The Runtime API; copies share it, and the last one to go ends the server.
#[derive(Clone)]
pub struct RuntimeApi {
    inner: Arc<Inner>,
    server: Arc<Server>,
}

impl fmt::Debug for RuntimeApi {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("RuntimeApi").field("server", &self.server).finish_non_exhaustive()
    }
}

impl RuntimeApi {
    /// Starts it on a free port.
    ///
    /// # Errors
    /// No port.
    pub async fn start(bus: EventBus) -> Result<Self, StartError> {
        let inner = Arc::new(Inner { state: Mutex::default(), bus });
        let router = Router::new()
            .route("/{function}/{worker}/2018-06-01/runtime/invocation/next", get(next))
            .route("/{function}/{worker}/2018-06-01/runtime/invocation/{id}/response", post(respond))
            .route("/{function}/{worker}/2018-06-01/runtime/invocation/{id}/error", post(report))
            .route("/{function}/{worker}/2018-06-01/runtime/init/error", post(init_failed))
            .route("/2015-03-31/functions/{function}/invocations", post(invoke_over_http))
            .route("/2015-03-31/functions/{function}/aliases", get(list_aliases))
            .with_state(Arc::clone(&inner));
        let server = Arc::new(Server::start(0, router, WhenClientLeaves::Cancel).await?);
        Ok(Self { inner, server })
    }

    /// Base URL of the `Invoke` API, for `AWS_ENDPOINT_URL_LAMBDA`.
    #[must_use]
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// `AWS_LAMBDA_RUNTIME_API` of one worker; from now on the function exists, and invocations wait for a worker.
    #[must_use]
    pub fn url_for(&self, function: &str, worker: &str) -> String {
        self.inner.state().register(function);
        format!("{}/{function}/{worker}", self.server.url())
    }

    /// Gives a function an alias, to be listed. An invocation may name any qualifier all the same.
    pub fn create_alias(&self, function: &str, alias: &str) {
        self.inner.state().aliases.entry(function.to_owned()).or_default().insert(alias.to_owned());
    }

    /// Takes an alias away.
    pub fn delete_alias(&self, function: &str, alias: &str) {
        if let Some(aliases) = self.inner.state().aliases.get_mut(function) {
            aliases.remove(alias);
        }
    }

    /// Invokes a function and waits for its answer.
    ///
    /// # Errors
    /// Whatever `Invoke` would report.
    pub async fn invoke(
        &self,
        function: &str,
        payload: impl Into<Bytes>,
        invocation: Invocation,
    ) -> Result<Bytes, FunctionError> {
        self.inner.invoke(function, payload.into(), invocation).await
    }

    /// Invokes a function with JSON and reads JSON.
    ///
    /// # Errors
    /// Whatever `Invoke` would report; an answer that is not JSON is reported as `Runtime.InvalidResponse`.
    pub async fn invoke_json(
        &self,
        function: &str,
        payload: &Value,
        invocation: Invocation,
    ) -> Result<Value, FunctionError> {
        let answer = self.invoke(function, payload.to_string(), invocation).await?;
        serde_json::from_slice(&answer).map_err(|error| {
            let message = format!("the answer is not JSON: {error}");
            FunctionError::Reported(json!({ "errorType": "Runtime.InvalidResponse", "errorMessage": message }))
        })
    }

    /// Fails what a worker was doing, because its process has ended; where it never came so far as to ask for work,
    /// the invocation that wanted it.
    pub fn worker_ended(&self, function: &str, worker: &str, how: &str) {
        let mut state = self.inner.state();
        let theirs = |job: &InFlight| job.function == function && job.worker == worker;
        let jobs: Vec<InFlight> = state.in_flight.extract_if(|_, job| theirs(job)).map(|(_, job)| job).collect();
        let had_started = state.initialized.remove(&(function.to_owned(), worker.to_owned()));
        drop(state);
        let error = FunctionError::Exited(how.to_owned());
        if !had_started {
            self.inner.fail_waiting(function, &error);
        }
        for job in jobs {
            let _caller_left = job.answer.send(Err(error.clone()));
        }
    }

    /// What functions reported instead of starting, oldest first.
    #[must_use]
    pub fn init_errors(&self, function: &str) -> Vec<Value> {
        let state = self.inner.state();
        let ours = state.init_errors.iter().filter(|(name, _)| name == function);
        ours.map(|(_, document)| document.clone()).collect()
    }

    /// How often workers of a function asked for work: above 0 when the first has started.
    #[must_use]
    pub fn polls(&self, function: &str) -> u64 {
        self.inner.state().polls.get(function).copied().unwrap_or_default()
    }

    /// Invocations that a worker of this function has and has not answered.
    #[must_use]
    pub fn in_flight(&self, function: &str) -> usize {
        self.inner.state().in_flight.values().filter(|job| job.function == function).count()
    }
}

impl State {
    fn register(&mut self, function: &str) -> &Function {
        self.functions.entry(function.to_owned()).or_insert_with(|| {
            let (jobs, waiting) = mpsc::unbounded_channel();
            Function { jobs, waiting: Arc::new(AsyncMutex::new(waiting)) }
        })
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    async fn invoke(&self, function: &str, payload: Bytes, invocation: Invocation) -> Answer {
        if payload.len() > LARGEST_PAYLOAD {
            return Err(FunctionError::PayloadTooLarge);
        }
        let jobs = {
            let state = self.state();
            let known = state.functions.get(function).ok_or(FunctionError::NoSuchFunction)?;
            known.jobs.clone()
        };
        let id = identity::uuid();
        let timeout = invocation.timeout;
        let (answer, answered) = oneshot::channel();
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let deadline_ms = (since_epoch + timeout).as_millis();
        let job = Job { id: id.clone(), payload, invocation, deadline_ms, answer };
        let _removed = InFlightGuard { inner: self, id: &id };
        if jobs.send(job).is_err() {
            return Err(FunctionError::NoSuchFunction);
        }
        match tokio::time::timeout(timeout, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_dropped)) => Err(FunctionError::Exited("the worker left".to_owned())),
            Err(_elapsed) => Err(FunctionError::TimedOut(timeout)),
        }
    }

    /// As in Lambda, the invocation that wanted a worker is answered with its failure to start, if nobody else waits
    /// for work.
    fn fail_waiting(&self, function: &str, error: &FunctionError) {
        let waiting = Arc::clone(&self.state().register(function).waiting);
        if let Ok(mut waiting) = waiting.try_lock()
            && let Ok(job) = waiting.try_recv()
        {
            let _caller_left = job.answer.send(Err(error.clone()));
        }
    }

    fn take(&self, id: &str) -> Option<InFlight> {
        self.state().in_flight.remove(id)
    }
}

/// An answer that comes after its caller has gone finds nothing.
struct InFlightGuard<'a> {
    inner: &'a Inner,
    id: &'a str,
}

impl Drop for InFlightGuard<'_> {
    fn drop(&mut self) {
        self.inner.take(self.id);
    }
}

type TheInner = Shared<Arc<Inner>>;

async fn next(Shared(inner): TheInner, Path((function, worker)): Path<(String, String)>) -> Response {
    let waiting = {
        let mut state = inner.state();
        *state.polls.entry(function.clone()).or_default() += 1;
        state.initialized.insert((function.clone(), worker.clone()));
        Arc::clone(&state.register(&function).waiting)
    };
    let job = loop {
        // Cancelled when the worker's connection ends: nothing is taken from the queue for a dead worker.
        let Some(job) = waiting.lock().await.recv().await else { return hang_up() };
        if !job.answer.is_closed() {
            break job;
        }
    };
    let arn = function_arn(&function, job.invocation.qualifier.as_deref());
    let trace = job.invocation.trace_id.unwrap_or_else(trace_id);
    inner.state().in_flight.insert(job.id.clone(), InFlight { function, worker, answer: job.answer });
    Response::builder()
        .header("content-type", "application/json")
        .header("lambda-runtime-aws-request-id", job.id)
        .header("lambda-runtime-deadline-ms", job.deadline_ms.to_string())
        .header("lambda-runtime-invoked-function-arn", arn)
        .header("lambda-runtime-trace-id", trace)
        .body(Body::from(job.payload))
        .unwrap_or_else(|_| hang_up())
}

async fn respond(
    Shared(inner): TheInner,
    Path((_function, _worker, id)): Path<(String, String, String)>,
    request: Request<Body>,
) -> Response {
    let Ok(body) = to_bytes(request.into_body(), LARGEST_PAYLOAD).await else {
        if let Some(job) = inner.take(&id) {
            let document = json!({ "errorType": "Function.ResponseSizeTooLarge",
                "errorMessage": "Response payload size exceeded maximum allowed payload size (6291556 bytes)." });
            let _caller_left = job.answer.send(Err(FunctionError::Reported(document)));
        }
        return status(StatusCode::PAYLOAD_TOO_LARGE, &json!({ "errorType": "RequestEntityTooLarge" }));
    };
    settle(&inner, &id, Ok(body))
}

async fn report(
    Shared(inner): TheInner,
    Path((_function, _worker, id)): Path<(String, String, String)>,
    request: Request<Body>,
) -> Response {
    let document = error_document(request).await;
    settle(&inner, &id, Err(FunctionError::Reported(document)))
}

fn settle(inner: &Inner, id: &str, answer: Answer) -> Response {
    match inner.take(id) {
        Some(job) => {
            let _caller_left = job.answer.send(answer);
            status(StatusCode::ACCEPTED, &json!({ "status": "OK" }))
        }
        None => status(StatusCode::BAD_REQUEST, &json!({ "errorType": "InvalidRequestID" })),
    }
}

async fn error_document(request: Request<Body>) -> Value {
    let body = to_bytes(request.into_body(), LARGEST_PAYLOAD).await.unwrap_or_default();
    serde_json::from_slice(&body).unwrap_or_else(|_| json!({ "errorType": "Unknown", "errorMessage": "unreadable" }))
}

async fn init_failed(
    Shared(inner): TheInner,
    Path((function, worker)): Path<(String, String)>,
    request: Request<Body>,
) -> Response {
    let document = error_document(request).await;
    let what = format!("did not start: {}", document["errorMessage"].as_str().unwrap_or("no reason given"));
    inner.bus.publish(Event::Worker { function: function.clone(), worker, what });
    inner.state().init_errors.push((function.clone(), document.clone()));
    inner.fail_waiting(&function, &FunctionError::Reported(document));
    status(StatusCode::ACCEPTED, &json!({ "status": "OK" }))
}

/// `POST /2015-03-31/functions/{name}/invocations?Qualifier=`, as the AWS SDKs and `curl` use it.
async fn invoke_over_http(Shared(inner): TheInner, Path(named): Path<String>, request: Request<Body>) -> Response {
    let query = crate::form::Form::of_query(request.uri().query().unwrap_or_default());
    let headers = request.headers().clone();
    let (function, qualifier) = split_name(&named);
    let qualifier = query.get("Qualifier").map(str::to_owned).or(qualifier);
    let Ok(body) = to_bytes(request.into_body(), LARGEST_PAYLOAD).await else {
        return refused(StatusCode::PAYLOAD_TOO_LARGE, &FunctionError::PayloadTooLarge);
    };
    let body = if body.is_empty() { Bytes::from_static(b"{}") } else { body };
    if serde_json::from_slice::<&serde_json::value::RawValue>(&body).is_err() {
        let document = json!({ "Type": "User", "message": "Could not parse request body into json" });
        return with_error_type(StatusCode::BAD_REQUEST, "InvalidRequestContentException", &document);
    }
    let trace_id = text(&headers, "x-amzn-trace-id").map(str::to_owned);
    let executed = qualifier.clone().unwrap_or_else(|| "$LATEST".to_owned());
    let invocation = Invocation { qualifier, timeout: Duration::from_mins(15), trace_id };
    match text(&headers, "x-amz-invocation-type") {
        Some("DryRun") => return empty(StatusCode::NO_CONTENT),
        Some("Event") => {
            tokio::spawn(async move { inner.invoke(&function, body, invocation).await });
            return empty(StatusCode::ACCEPTED);
        }
        _ => {}
    }
    let began = Instant::now();
    let answer = inner.invoke(&function, body, invocation).await;
    inner.bus.publish(Event::Invoked {
        function,
        outcome: answer.as_ref().map_or_else(|error| error.kind().to_owned(), |_| "ok".to_owned()),
        millis: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        answer: None,
    });
    let answered =
        Response::builder().header("content-type", "application/json").header("x-amz-executed-version", executed);
    let response = match answer {
        Ok(body) => answered.body(Body::from(body)),
        Err(FunctionError::NoSuchFunction) => {
            return refused(StatusCode::NOT_FOUND, &FunctionError::NoSuchFunction);
        }
        Err(error) => {
            answered.header("x-amz-function-error", "Unhandled").body(Body::from(error.document().to_string()))
        }
    };
    response.unwrap_or_else(|_| hang_up())
}

/// `GET /2015-03-31/functions/{name}/aliases`, a page at a time.
async fn list_aliases(Shared(inner): TheInner, Path(named): Path<String>, request: Request<Body>) -> Response {
    let query = crate::form::Form::of_query(request.uri().query().unwrap_or_default());
    let (function, _) = split_name(&named);
    let state = inner.state();
    if !state.functions.contains_key(&function) && !state.aliases.contains_key(&function) {
        return refused(StatusCode::NOT_FOUND, &FunctionError::NoSuchFunction);
    }
    let after = query.get("Marker").unwrap_or_default();
    let most = query.get("MaxItems").and_then(|number| number.parse().ok()).unwrap_or(50);
    let mut left = state.aliases.get(&function).into_iter().flatten().filter(|name| name.as_str() > after);
    let page: Vec<_> = left.by_ref().take(most).collect();
    let next = left.next().and(page.last());
    let aliases: Vec<_> = page
        .iter()
        .map(|name| {
            json!({ "Name": name, "AliasArn": function_arn(&function, Some(name)), "FunctionVersion": "$LATEST" })
        })
        .collect();
    status(StatusCode::OK, &json!({ "Aliases": aliases, "NextMarker": next }))
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn refused(status: StatusCode, error: &FunctionError) -> Response {
    with_error_type(status, error.kind(), &json!({ "Type": "User", "Message": error.to_string() }))
}

fn with_error_type(code: StatusCode, kind: &'static str, document: &Value) -> Response {
    let mut response = status(code, document);
    response.headers_mut().insert("x-amzn-errortype", http::HeaderValue::from_static(kind));
    response
}

/// `name`, `name:qualifier`, or a full ARN with or without one.
fn split_name(named: &str) -> (String, Option<String>) {
    let name = named.rsplit_once(":function:").map_or(named, |(_, name)| name);
    match name.split_once(':') {
        Some((name, qualifier)) => (name.to_owned(), Some(qualifier.to_owned())),
        None => (name.to_owned(), None),
    }
}

/// ARN that a function sees, with the qualifier it was asked for by.
#[must_use]
pub fn function_arn(function: &str, qualifier: Option<&str>) -> String {
    let arn = format!("arn:aws:lambda:{REGION}:{ACCOUNT}:function:{function}");
    match qualifier {
        Some(qualifier) => format!("{arn}:{qualifier}"),
        None => arn,
    }
}

/// A fresh `X-Amzn-Trace-Id`.
pub(crate) fn trace_id() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    format!("Root=1-{seconds:08x}-{}", shared::domain::random::hex::<12>())
}

fn status(code: StatusCode, document: &Value) -> Response {
    Response::builder()
        .status(code)
        .header("content-type", "application/json")
        .body(Body::from(document.to_string()))
        .unwrap_or_else(|_| hang_up())
}

fn empty(code: StatusCode) -> Response {
    Response::builder().status(code).body(Body::empty()).unwrap_or_else(|_| hang_up())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn poll(runtime: &RuntimeApi, worker: &str) -> reqwest::Response {
        let url = format!("{}/2018-06-01/runtime/invocation/next", runtime.url_for("relay", worker));
        let job = tokio::time::timeout(Duration::from_secs(10), reqwest::get(url)).await;
        job.expect("a job, before long").expect("a job")
    }

    fn header(response: &reqwest::Response, name: &str) -> String {
        response.headers()[name].to_str().expect("text").to_owned()
    }

    #[tokio::test]
    async fn an_invocation_reaches_a_worker_with_its_alias_and_deadline_and_the_answer_comes_back() {
        let runtime = RuntimeApi::start(EventBus::default()).await.expect("starts");
        let worker = {
            let runtime = runtime.clone();
            tokio::spawn(async move {
                let job = poll(&runtime, "w1").await;
                assert!(header(&job, "lambda-runtime-invoked-function-arn").ends_with(":function:relay:billing"));
                let deadline: u64 = header(&job, "lambda-runtime-deadline-ms").parse().expect("a number");
                let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis();
                let left = u128::from(deadline) - now;
                assert!((5_000..=7_000).contains(&left), "{left} ms left of 7 s");
                let id = header(&job, "lambda-runtime-aws-request-id");
                let url = format!("{}/2018-06-01/runtime/invocation/{id}/response", runtime.url_for("relay", "w1"));
                let sent = job.bytes().await.expect("payload");
                assert_eq!(reqwest::Client::new().post(url).body(sent).send().await.expect("taken").status(), 202);
            })
        };
        while runtime.polls("relay") == 0 {
            tokio::task::yield_now().await;
        }
        let invocation =
            Invocation { qualifier: Some("billing".into()), timeout: Duration::from_secs(7), trace_id: None };
        let answer = runtime.invoke_json("relay", &json!({ "n": 1 }), invocation).await;
        assert_eq!(answer, Ok(json!({ "n": 1 })));
        worker.await.expect("the worker's assertions hold");
        let unknown = runtime.invoke_json("nobody", &json!({}), Invocation::default()).await;
        assert_eq!(unknown, Err(FunctionError::NoSuchFunction));
    }

    #[tokio::test]
    async fn a_worker_that_leaves_takes_no_job_with_it_and_one_that_dies_fails_its_job_only() {
        let runtime = RuntimeApi::start(EventBus::default()).await.expect("starts");
        // One polls and leaves before there is work.
        let leaver = {
            let runtime = runtime.clone();
            tokio::spawn(async move { poll(&runtime, "leaver").await })
        };
        while runtime.polls("relay") == 0 {
            tokio::task::yield_now().await;
        }
        leaver.abort();
        let _cancelled = leaver.await;
        let invoked = {
            let runtime = runtime.clone();
            tokio::spawn(async move { runtime.invoke_json("relay", &json!({}), Invocation::default()).await })
        };
        let job = poll(&runtime, "w2").await;
        assert_eq!(runtime.in_flight("relay"), 1);
        runtime.worker_ended("relay", "w1", "signal: 9");
        assert_eq!(runtime.in_flight("relay"), 1, "another worker's end is not this one's");
        runtime.worker_ended("relay", "w2", "signal: 9");
        let error = invoked.await.expect("no panic").expect_err("the worker died");
        assert_eq!(error, FunctionError::Exited("signal: 9".into()));
        drop(job);
    }
}
