//! Lambda on this machine: the Runtime API that workers poll, for several functions on one port, and the `Invoke` API
//! in front of it.
//!
//! A worker is told `AWS_LAMBDA_RUNTIME_API=http://127.0.0.1:<port>/<function>/<worker>` ([`RuntimeApi::url_for`]):
//! the runtime client of Rust keeps the path of that variable and puts its own behind it. The scheme is needed, because
//! without one `host:port/path` is no URI. The worker's name is there so that an invocation can be failed at once when
//! its process ends.

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

/// Lambda's bound of a synchronous payload, both ways.
pub const LARGEST_PAYLOAD: usize = 6 * 1024 * 1024 + 100 * 1024;

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
