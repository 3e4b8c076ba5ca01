//! The system as someone outside meets it: the built functions as processes of their own, reached through the gateway
//! or by invocation, and nothing of their insides.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_sdk_dynamodb::types::AttributeValue;
use bytes::Bytes;
use http::{HeaderMap, Method};
use sandbox::dynamo::create_table;
use sandbox::events::EventBus;
use sandbox::marketplace::grants::Resource;
use sandbox::marketplace::{Location, Options as Marketplace};
use sandbox::process::{Program, Signal, Worker, WorkerSpec};
use sandbox::runtime_api::{FunctionError, Invocation};
use sandbox::whole::{
    APP_SECRET, CALLER_ALIAS, CALLERS_SECRET, Options as Whole, Programs, SEALING_SECRET, Sandbox, TABLE, caller_entry,
};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::emf;
use crate::redaction::{Search, forms};

use crate::deployment::Deployment;

/// How long anything may take that is waited for. Only a failing test waits so long.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The bootstrap of a function: of the release build where `FUNCTIONS_DIR` says so, else beside this test.
///
/// # Panics
/// If it has not been built.
#[must_use]
pub fn bootstrap(function: &str) -> PathBuf {
    let (path, build) = if let Some(folder) = std::env::var_os("FUNCTIONS_DIR") {
        (Path::new(&folder).join(function).join("bootstrap"), "cargo lambda build --release")
    } else {
        let test = std::env::current_exe().expect("the test's own path");
        // target/debug/deps/<test> → target/debug/<function>
        let folder = test.parent().and_then(Path::parent).expect("a target folder");
        (folder.join(function), "cargo build --workspace --bins")
    };
    assert!(path.is_file(), "{} is not there; build the functions first: {build}", path.display());
    path
}

/// The id of a location of the agency, from 1.
#[must_use]
pub fn location(number: usize) -> Resource {
    Resource::Location(format!("HLlocation{number:09}"))
}

/// The agency.
#[must_use]
pub fn company() -> Resource {
    Resource::Company("HLcompany0000000001".to_owned())
}

/// The gateway's path of a resource, with or without the platform's path behind it.
#[must_use]
pub fn route(resource: &Resource, path: &str) -> String {
    match resource {
        Resource::Location(id) => format!("/relay/locations/{id}{path}"),
        Resource::Company(id) => format!("/relay/companies/{id}{path}"),
    }
}

/// What a system is to be like.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Processes of `relay`.
    pub relays: usize,
    /// Invocations that each of them takes at once; Lambda's usual is one.
    pub at_once: usize,
    /// Another store than the embedded one: its URL.
    pub store: Option<String>,
    /// Further variables of all functions.
    pub environment: Vec<(&'static str, String)>,
    /// Entries of the callers' secret beside the one who may do everything.
    pub callers: Vec<Value>,
    /// Locations of the agency.
    pub locations: usize,
}

impl Default for Setup {
    fn default() -> Self {
        Self { relays: 2, at_once: 1, store: None, environment: Vec::new(), callers: Vec::new(), locations: 3 }
    }
}

/// The whole system, its functions being processes of the built binaries.
pub struct System {
    /// Everything around the functions.
    pub sandbox: Sandbox,
    /// The way to the store; can be cut.
    pub store: Line,
    /// The account, where it is not the sandbox's own.
    pub deployment: Option<Deployment>,
    workers: Vec<Worker>,
    client: reqwest::Client,
    /// What must not be logged, beside what the platform has issued.
    told: Mutex<BTreeSet<String>>,
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
}

impl System {
    /// Starts it, and waits until every process has asked for work.
    ///
    /// # Panics
    /// If anything does not start.
    pub async fn start(setup: Setup) -> Self {
        let sandbox = Self::surroundings(&setup).await;
        let url = setup.store.clone().unwrap_or_else(|| sandbox.dynamo.url().to_owned());
        create_table(&sandbox::dynamo::client(&url), TABLE).await.expect("the table is there");
        let mut callers = setup.callers.clone();
        callers.push(caller_entry(&sandbox.caller_key));
        sandbox.secrets.put(CALLERS_SECRET, json!({ "callers": callers }).to_string());
        Self::run_all(setup, sandbox, &url, None).await
    }

    /// Starts it in an account that the template was deployed to, as it is directly after that: without a client secret
    /// and without callers. `None` where the doubles of the account are not to be had.
    ///
    /// # Panics
    /// If anything that is to be had does not start.
    pub async fn deployed(mut setup: Setup, test: &str) -> Option<Self> {
        setup.environment.push(("GATEWAY_ALIAS", "live".to_owned()));
        let sandbox = Self::surroundings(&setup).await;
        let (platform, client_id) = (sandbox.marketplace.url(), sandbox.marketplace.options().client_id);
        let parameters =
            [("ClientId", &*client_id), ("ApiUrl", &*platform), ("MarketplaceUrl", &*platform), ("LogLevel", "trace")];
        let deployment = Deployment::make(test, &parameters, &sandbox.gateway.url()).await?;
        let url = deployment.store();
        Some(Self::run_all(setup, sandbox, &url, Some(deployment)).await)
    }

    async fn surroundings(setup: &Setup) -> Sandbox {
        let owned = |(name, value): &(&'static str, String)| ((*name).to_owned(), value.clone());
        let locations = (1..=setup.locations)
            .map(|number| Location { id: location(number).id().to_owned(), name: format!("Location {number}") })
            .collect();
        let options = Whole {
            programs: Programs::None,
            refresh_every: None,
            marketplace: Marketplace { locations, ..Marketplace::default() },
            // The gateway and the queue invoke what the functions expect.
            environment: setup.environment.iter().filter(|(name, _)| *name == "GATEWAY_ALIAS").map(owned).collect(),
            ..Whole::default()
        };
        Sandbox::start(options, EventBus::default()).await.expect("the sandbox starts")
    }

    async fn run_all(setup: Setup, sandbox: Sandbox, url: &str, deployment: Option<Deployment>) -> Self {
        let store = Line::to(url).await;
        let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build();
        let mut system = Self {
            sandbox,
            store,
            deployment,
            workers: Vec::new(),
            client: client.expect("a client"),
            told: Mutex::default(),
        };
        system.tell(&system.sandbox.caller_key);
        // The most that can be logged must not be too much either.
        let all_logs = ("RUST_LOG", "trace".to_owned());
        let environment: BTreeMap<_, _> =
            std::iter::once(all_logs).chain(setup.environment).map(|(name, value)| (name.to_owned(), value)).collect();
        for (function, count) in [("callback", 1), ("refresh", 1), ("relay", setup.relays), ("webhook", 1)] {
            let mut own = environment.clone();
            let at_once = if function == "relay" { setup.at_once } else { 1 };
            if at_once > 1 {
                own.insert("AWS_LAMBDA_MAX_CONCURRENCY".to_owned(), at_once.to_string());
            }
            for number in 1..=count {
                system.run(function, function, number, own.clone());
            }
        }
        for (function, polls) in [("callback", 1), ("refresh", 1), ("relay", setup.relays * setup.at_once)] {
            system.wait_for_polls(function, polls).await;
        }
        system
    }

    fn run(&mut self, bootstrap_of: &str, function: &str, number: usize, own: BTreeMap<String, String>) {
        let mut environment = match &self.deployment {
            Some(deployment) => deployment.environment(bootstrap_of),
            None => self.sandbox.environment().clone(),
        };
        environment.insert("AWS_ENDPOINT_URL_DYNAMODB".to_owned(), self.store.url());
        environment.extend(own);
        let spec = WorkerSpec {
            function: function.to_owned(),
            worker: format!("{function}-{number}"),
            program: Program::Path(bootstrap(bootstrap_of)),
            environment,
            restart: false,
        };
        self.workers.push(Worker::start(spec, self.sandbox.surroundings()).expect("the function starts"));
    }

    /// Environment of the operator's commands.
    #[must_use]
    pub fn operators_environment(&self) -> BTreeMap<String, String> {
        let sandbox = self.sandbox.operators_environment();
        match &self.deployment {
            None => sandbox,
            Some(deployment) => {
                let lambda = sandbox.into_iter().filter(|(name, _)| name == "AWS_ENDPOINT_URL_LAMBDA");
                deployment.operators_environment().into_iter().chain(lambda).collect()
            }
        }
    }

    async fn wait_for_polls(&self, function: &str, polls: usize) {
        let started = until(|| usize::try_from(self.sandbox.runtime.polls(function)).is_ok_and(|seen| seen >= polls));
        assert!(started.await, "{function} does not ask for work: {:?}", self.last_lines());
    }

    /// Starts one more process of `bootstrap_of`, with other variables, as a function of another name.
    pub async fn start_apart(&mut self, bootstrap_of: &str, function: &str, own: &[(&str, &str)]) {
        let own = own.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        self.run(bootstrap_of, function, 1, own);
        self.wait_for_polls(function, 1).await;
    }

    /// Starts one more process of a function that has one.
    pub async fn start_another(&mut self, function: &str) {
        self.run(function, function, 2, BTreeMap::from([("RUST_LOG".to_owned(), "trace".to_owned())]));
        self.wait_for_polls(function, 2).await;
    }

    /// Remembers a secret that no log may contain.
    ///
    /// # Panics
    /// If it is so short that it could be found by chance.
    pub fn tell(&self, secret: &str) {
        assert!(secret.len() >= 8, "too short to be looked for");
        self.told.lock().unwrap_or_else(PoisonError::into_inner).insert(secret.to_owned());
    }

    /// Installs the app as from the marketplace's own pages.
    ///
    /// # Panics
    /// If it does not end on the page that says so.
    pub async fn install(&self, resource: &Resource) {
        let status = self.sandbox.install(resource.clone()).await.expect("an answer");
        assert_eq!(status, 303, "{resource} is installed: {:?}", self.last_lines());
    }

    /// A request to the gateway, as it is.
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.client.request(method, format!("{}{path}", self.sandbox.gateway.url()))
    }

    /// A request to the gateway with the key of the caller who may do everything.
    pub fn relay(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.request(method, path).bearer_auth(&self.sandbox.caller_key)
    }

    /// The same for a GET, sent.
    pub async fn get(&self, resource: &Resource, path: &str) -> Answer {
        send(self.relay(Method::GET, &route(resource, path))).await
    }

    /// Follows an absolute URL, with a cookie.
    pub async fn browse(&self, url: &str, cookie: Option<&str>) -> Answer {
        let request = self.client.get(url);
        let request = match cookie {
            Some(cookie) => request.header("cookie", cookie),
            None => request,
        };
        browsed(request).await
    }

    /// Posts a form, as a browser does.
    pub async fn post_form(&self, url: &str, fields: &[(String, String)]) -> Answer {
        let form = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
        let request = self.client.post(url).header("content-type", "application/x-www-form-urlencoded");
        browsed(request.body(form)).await
    }

    /// Invokes `relay` directly, by the alias of the caller who may do everything unless another one is given.
    ///
    /// # Panics
    /// If it answers with a function error.
    pub async fn invoke(&self, payload: impl Into<Bytes>, alias: Option<&str>) -> Value {
        self.invoke_as("relay", payload, alias).await
    }

    /// Invokes `relay` without a qualifier, as API Gateway does where there is no gateway alias.
    ///
    /// # Panics
    /// If it answers with a function error.
    pub async fn invoke_unqualified(&self, payload: impl Into<Bytes>) -> Value {
        self.invoke_by("relay", payload, None).await
    }

    /// The same for a function of another name.
    ///
    /// # Panics
    /// If it answers with a function error.
    pub async fn invoke_as(&self, function: &str, payload: impl Into<Bytes>, alias: Option<&str>) -> Value {
        self.invoke_by(function, payload, Some(alias.unwrap_or(CALLER_ALIAS))).await
    }

    async fn invoke_by(&self, function: &str, payload: impl Into<Bytes>, alias: Option<&str>) -> Value {
        let invocation = Invocation { qualifier: alias.map(str::to_owned), ..Invocation::default() };
        let answer = self.sandbox.runtime.invoke(function, payload, invocation).await;
        let answer = answer.unwrap_or_else(|error| panic!("{function} answers {error}: {:?}", self.last_lines()));
        serde_json::from_slice(&answer).expect("JSON")
    }

    /// Invokes `refresh` as the schedule and the queue do.
    ///
    /// # Errors
    /// Its own.
    pub async fn refresh(&self, event: &Value) -> Result<Value, FunctionError> {
        let qualifier = self.sandbox.environment().get("GATEWAY_ALIAS").cloned();
        let invocation = Invocation { qualifier, timeout: Duration::from_secs(75), trace_id: None };
        self.sandbox.runtime.invoke_json("refresh", event, invocation).await
    }

    /// Stops, continues or ends a process of a function, which are numbered from 1 (`relay-1`).
    ///
    /// # Panics
    /// If there is none of that name, or it does not take the signal.
    pub async fn signal(&self, worker: &str, signal: Signal) {
        let worker = self.workers.iter().find(|known| known.name() == worker).expect("a process of that name");
        assert!(worker.signal(signal).await, "{} takes the signal", worker.name());
    }

    /// How often the platform was asked to renew a token.
    #[must_use]
    pub fn refreshes(&self) -> usize {
        self.sandbox.marketplace.token_requests_for("refresh_token")
    }

    /// How many requests for a resource have arrived at the platform.
    #[must_use]
    pub fn arrived(&self, resource: &Resource) -> usize {
        self.sandbox.marketplace.api_requests(resource).len()
    }

    /// Processes of `relay` that have relayed anything.
    #[must_use]
    pub fn busy_relays(&self) -> usize {
        let lines = self.sandbox.logs.lines();
        let relayed = lines.iter().filter(|line| line.function == "relay" && line.line.contains("\"relayed\""));
        relayed.map(|line| line.worker.clone()).collect::<BTreeSet<_>>().len()
    }

    /// Sets numbers in a stored installation, as if it had been stored at another time.
    ///
    /// # Panics
    /// If there is none.
    pub async fn set_stored(&self, resource: &Resource, numbers: &[(&str, i64)]) {
        for (name, value) in numbers {
            let update = self.sandbox.dynamo.client().update_item().table_name(TABLE);
            update
                .key("pk", AttributeValue::S(format!("installation#{}", resource.to_string().replace(':', "#"))))
                .update_expression("SET #name = :value")
                .condition_expression("attribute_exists(#name)")
                .expression_attribute_names("#name", *name)
                .expression_attribute_values(":value", AttributeValue::N(value.to_string()))
                .send()
                .await
                .expect("an installation has it");
        }
    }

    /// Everything in the embedded table, texts and bytes alike, as one text.
    ///
    /// # Panics
    /// If it cannot be read.
    pub async fn stored(&self) -> String {
        let scan = self.sandbox.dynamo.client().scan().table_name(TABLE).send().await.expect("read");
        let mut text = String::new();
        for item in scan.items() {
            print_attributes(item, &mut text);
        }
        text
    }

    /// Every secret that was ever used here.
    #[must_use]
    pub fn secrets(&self) -> Vec<String> {
        let mut secrets: BTreeSet<String> = self.told.lock().unwrap_or_else(PoisonError::into_inner).clone();
        secrets.extend(self.sandbox.marketplace.every_secret());
        let texts = |secret: &str| -> Value {
            serde_json::from_str(&self.sandbox.secrets.get(secret).unwrap_or_default()).unwrap_or_default()
        };
        secrets.extend(texts(APP_SECRET)["client_secret"].as_str().map(str::to_owned));
        secrets.extend(texts(SEALING_SECRET)["k1"].as_str().map(str::to_owned));
        secrets.into_iter().filter(|secret| !secret.is_empty()).collect()
    }

    /// What the processes have written last.
    #[must_use]
    pub fn last_lines(&self) -> Vec<String> {
        let lines = self.sandbox.logs.lines();
        lines.iter().rev().take(20).rev().map(|line| format!("{}: {}", line.worker, line.line)).collect()
    }

    /// Ends all processes and looks through what they have written: nothing but JSON, no panic, no secret.
    ///
    /// # Panics
    /// If there is.
    pub async fn end(self) {
        for worker in &self.workers {
            assert!(worker.pid().is_some(), "{} has ended by itself: {:?}", worker.name(), self.last_lines());
            assert!(worker.signal(Signal::Terminate).await, "{} is told to end", worker.name());
        }
        // A process that is gone for its supervisor has been read to the end.
        assert!(until(|| self.workers.iter().all(|worker| worker.pid().is_none())).await, "they end when told to");
        let lines = self.sandbox.logs.lines();
        assert!(!lines.is_empty(), "nothing was read from any process");
        for line in &lines {
            let is_json = serde_json::from_str::<Value>(&line.line).is_ok_and(|value| value.is_object());
            assert!(is_json, "{} wrote a line that is no JSON: {}", line.worker, line.line);
            assert!(!line.line.contains("panicked"), "{} has panicked: {}", line.worker, line.line);
        }
        let secrets = self.secrets();
        assert!(secrets.len() >= 3, "client secret, sealing key and caller key at least");
        let search = Search::for_secrets(&secrets);
        for line in &lines {
            if let Some(found) = search.find(&line.line) {
                panic!("{} has logged {found}: {}", line.worker, line.line);
            }
            // Whatever is a metric is one that CloudWatch takes.
            let _metrics = emf::metrics(&serde_json::from_str(&line.line).expect("seen to be JSON"));
        }
        self.expect_found_if_written(&secrets).await;
    }

    /// The positive control: a process writes the secrets, and the same search finds each.
    async fn expect_found_if_written(&self, secrets: &[String]) {
        // As many as an environment has room for, each in all its forms.
        let some = || secrets.iter().rev().take(100).flat_map(|secret| forms(secret));
        let environment = some().enumerate().map(|(number, form)| (format!("S{number}"), format!("a{form}z")));
        let spec = WorkerSpec {
            function: "control".to_owned(),
            worker: "control-1".to_owned(),
            program: Program::Path(PathBuf::from("env")),
            environment: environment.collect(),
            restart: false,
        };
        let control = Worker::start(spec, self.sandbox.surroundings()).expect("env is everywhere");
        assert!(until(|| control.pid().is_none()).await, "env ends by itself");
        let search = Search::for_secrets(secrets);
        let lines = self.sandbox.logs.lines();
        let written: Vec<_> = lines.iter().filter(|line| line.worker == "control-1").collect();
        for form in some() {
            let found =
                written.iter().filter(|line| line.line.contains(&form)).any(|line| search.find(&line.line).is_some());
            assert!(found, "the search does not find {form}");
        }
    }
}

fn print_attributes(attributes: &HashMap<String, AttributeValue>, text: &mut String) {
    for (name, value) in attributes {
        print_attribute(name, value, text);
    }
}

fn print_attribute(name: &str, value: &AttributeValue, text: &mut String) {
    use std::fmt::Write as _;
    let _infallible = match value {
        AttributeValue::S(value) | AttributeValue::N(value) => writeln!(text, "{name} {value}"),
        AttributeValue::B(value) => writeln!(text, "{name} {}", String::from_utf8_lossy(value.as_ref())),
        AttributeValue::M(map) => {
            print_attributes(map, text);
            Ok(())
        }
        other => writeln!(text, "{name} {other:?}"),
    };
}

/// Sends a request to the relay; checks what every answer of it has.
///
/// # Panics
/// If there is no answer, or one that does not say whose it is.
pub async fn send(request: reqwest::RequestBuilder) -> Answer {
    let answer = browsed(request).await;
    assert!(answer.headers.contains_key("relay-request-id"), "{answer:?}");
    let content_type = answer.header("content-type");
    match answer.source() {
        "platform" => {}
        "relay" if answer.status < 400 => assert_eq!(content_type, "application/json", "{answer:?}"),
        "relay" => {
            assert_eq!(content_type, "application/problem+json", "{answer:?}");
            assert_eq!(answer.json()["status"], answer.status, "{answer:?}");
        }
        other => panic!("source {other:?} of {answer:?}"),
    }
    answer
}

async fn browsed(request: reqwest::RequestBuilder) -> Answer {
    let response = request.timeout(PATIENCE * 2).send().await.expect("an answer");
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    Answer { status, headers, body: response.bytes().await.expect("a whole body") }
}

impl Answer {
    /// The value of a header, empty where there is none.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// Who made it.
    #[must_use]
    pub fn source(&self) -> &str {
        self.header("relay-source")
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// If it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {:?}", self.body))
    }

    /// Status and code of a refusal; the code is empty for anything else.
    #[must_use]
    pub fn refusal(&self) -> (u16, String) {
        let code = match self.source() {
            "relay" if self.status >= 400 => self.json()["code"].as_str().unwrap_or_default().to_owned(),
            _ => String::new(),
        };
        (self.status, code)
    }

    /// When to come back, from the relay's two headers, which must agree.
    ///
    /// # Panics
    /// If they do not, or one is missing.
    #[must_use]
    pub fn retry_after(&self) -> Duration {
        let number = |name| self.header(name).parse::<u64>().unwrap_or_else(|_| panic!("{name} of {self:?}"));
        let (seconds, milliseconds) = (number("retry-after"), number("relay-retry-after-ms"));
        assert_eq!(seconds, milliseconds.div_ceil(1000).max(1), "{self:?}");
        Duration::from_millis(milliseconds)
    }
}

/// Waits for a condition, at most [`PATIENCE`]; whether it came.
pub async fn until(mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        if Instant::now() > deadline {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    true
}

/// A connection to a server that can be cut and mended. While it is cut, connections are closed without an answer.
#[derive(Debug)]
pub struct Line {
    address: std::net::SocketAddr,
    cut: watch::Sender<bool>,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Line {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Line {
    async fn to(url: &str) -> Self {
        let server = url.strip_prefix("http://").expect("http").trim_end_matches('/').to_owned();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (cut, is_cut) = watch::channel(false);
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(carry(stream, server.clone(), is_cut.clone()));
            }
        });
        Self { address, cut, serving }
    }

    /// Base URL of this end.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Closes all connections, and new ones at once.
    pub fn cut(&self) {
        self.cut.send_replace(true);
    }

    /// Carries again.
    pub fn mend(&self) {
        self.cut.send_replace(false);
    }
}

async fn carry(mut near: TcpStream, server: String, mut is_cut: watch::Receiver<bool>) {
    if *is_cut.borrow_and_update() {
        return;
    }
    let Ok(mut far) = TcpStream::connect(server).await else { return };
    let _without = (near.set_nodelay(true), far.set_nodelay(true));
    tokio::select! {
        _ended = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
        _cut = is_cut.wait_for(|cut| *cut) => {}
    }
}
