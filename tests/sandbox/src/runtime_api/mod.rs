//! Lambda on this machine: the Runtime API, which workers poll for several functions on one port, and the `Invoke` API,
//! which callers use.
//!
//! Each worker gets `AWS_LAMBDA_RUNTIME_API=http://127.0.0.1:<port>/<function>/<worker>` ([`RuntimeApi::url_for`]). The
//! Rust runtime client keeps the path of that variable and appends its own path. The scheme is needed, because
//! `host:port/path` without a scheme is no URI. The URL contains the worker's name, so that an invocation fails at once
//! when the process of its worker ends.

mod handlers;
mod invocation;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard},
    time::{SystemTime, UNIX_EPOCH},
};

use axum::{
    Router,
    body::Body,
    extract::State as Shared,
    response::Response,
    routing::{get, post},
};
use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};
use tokio::sync::{Mutex as AsyncMutex, mpsc, oneshot};

use crate::{
    events::EventBus,
    identity,
    lock::lock,
    process::{ACCOUNT, REGION},
    server::{Server, StartError, WhenClientLeaves, hang_up},
};

use self::handlers::{init_failed, invoke_over_http, list_aliases, next, report, respond};
pub use self::invocation::{FunctionError, Invocation};

/// Lambda's size limit of a synchronous payload, for requests and for answers.
pub const LARGEST_PAYLOAD: usize = 6 * 1024 * 1024 + 100 * 1024;

type InvocationResult = Result<Bytes, FunctionError>;

struct Job {
    id: String,
    payload: Bytes,
    invocation: Invocation,
    deadline_ms: u128,
    answer: oneshot::Sender<InvocationResult>,
}

struct Function {
    jobs: mpsc::UnboundedSender<Job>,
    waiting: Arc<AsyncMutex<mpsc::UnboundedReceiver<Job>>>,
}

struct InFlight {
    function: String,
    worker: String,
    answer: oneshot::Sender<InvocationResult>,
}

#[derive(Default)]
struct State {
    functions: HashMap<String, Function>,
    in_flight: HashMap<String, InFlight>,
    init_errors: Vec<(String, Value)>,
    polls: HashMap<String, u64>,
    /// Aliases of each function, as `CreateAlias` creates them.
    aliases: HashMap<String, BTreeSet<String>>,
    /// Workers that have asked for work since their process started.
    initialized: HashSet<(String, String)>,
}

struct Inner {
    state: Mutex<State>,
    bus: EventBus,
}

/// The Runtime API. Clones share one server, which ends when the last clone is dropped.
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
    /// Starts the Runtime API on a free port.
    ///
    /// # Errors
    /// No port is free.
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

    /// Returns the base URL of the `Invoke` API, for `AWS_ENDPOINT_URL_LAMBDA`.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// Returns `AWS_LAMBDA_RUNTIME_API` for one worker. From now on the function exists, and its invocations wait for a
    /// worker.
    pub fn url_for(&self, function: &str, worker: &str) -> String {
        self.inner.state().register(function);
        format!("{}/{function}/{worker}", self.server.url())
    }

    /// Adds an alias to a function, for the list of aliases. An invocation may name any qualifier, even one without an
    /// alias.
    pub fn create_alias(&self, function: &str, alias: &str) {
        self.inner.state().aliases.entry(function.to_owned()).or_default().insert(alias.to_owned());
    }

    /// Invokes a function and waits for its answer.
    ///
    /// # Errors
    /// The error that `Invoke` would report.
    pub async fn invoke(
        &self,
        function: &str,
        payload: impl Into<Bytes>,
        invocation: Invocation,
    ) -> Result<Bytes, FunctionError> {
        self.inner.invoke(function, payload.into(), invocation).await
    }

    /// Invokes a function with a JSON payload and parses its answer as JSON.
    ///
    /// # Errors
    /// The error that `Invoke` would report. An answer that is not JSON is reported as `Runtime.InvalidResponse`.
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

    /// Fails the invocations of a worker whose process has ended. If the process ended before the worker asked for
    /// work, fails the invocation that waited for a worker.
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

    /// Returns the errors that functions reported instead of starting, oldest first.
    pub fn init_errors(&self, function: &str) -> Vec<Value> {
        let state = self.inner.state();
        let ours = state.init_errors.iter().filter(|(name, _)| name == function);
        ours.map(|(_, document)| document.clone()).collect()
    }

    /// Returns the number of times that workers of a function asked for work. The number is above 0 once a worker has
    /// started.
    pub fn polls(&self, function: &str) -> u64 {
        self.inner.state().polls.get(function).copied().unwrap_or_default()
    }

    /// Returns the names of the workers of this function that have taken an invocation and not yet answered it.
    pub fn busy(&self, function: &str) -> BTreeSet<String> {
        let state = self.inner.state();
        let taken = state.in_flight.values().filter(|job| job.function == function);
        taken.map(|job| job.worker.clone()).collect()
    }

    /// Returns the number of invocations that workers of this function have taken and not yet answered.
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

    async fn invoke(&self, function: &str, payload: Bytes, invocation: Invocation) -> InvocationResult {
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

    /// Fails an invocation that waits for a worker, if no other worker waits for work. Lambda, too, answers an
    /// invocation with the error of the worker that failed to start.
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

/// Removes an invocation when its caller has gone, so that a late answer of the worker finds no invocation.
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

/// Returns the ARN that a function sees, with the qualifier of the invocation.
pub fn function_arn(function: &str, qualifier: Option<&str>) -> String {
    let arn = format!("arn:aws:lambda:{REGION}:{ACCOUNT}:function:{function}");
    match qualifier {
        Some(qualifier) => format!("{arn}:{qualifier}"),
        None => arn,
    }
}

/// Returns a new `X-Amzn-Trace-Id`.
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
    use std::time::Duration;

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
    async fn a_worker_that_disconnects_keeps_no_job_and_one_that_dies_fails_only_its_own() {
        let runtime = RuntimeApi::start(EventBus::default()).await.expect("starts");
        // One worker polls and disconnects before there is work.
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
        assert_eq!((runtime.in_flight("relay"), runtime.busy("relay")), (1, ["w2".to_owned()].into()));
        runtime.worker_ended("relay", "w1", "signal: 9");
        assert_eq!(runtime.in_flight("relay"), 1, "another worker's end is not this one's");
        runtime.worker_ended("relay", "w2", "signal: 9");
        let error = invoked.await.expect("no panic").expect_err("the worker died");
        assert_eq!(error, FunctionError::Exited("signal: 9".into()));
        drop(job);
    }
}
