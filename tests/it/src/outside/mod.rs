//! The system from outside: the built functions run as processes, and tests reach them through the gateway or by
//! invocation. The tests do not use the internals of the functions.

mod client;
mod ending;
mod line;
mod observed;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_sdk_dynamodb::types::AttributeValue;
use sandbox::dynamo::create_table;
use sandbox::events::EventBus;
use sandbox::marketplace::grants::Resource;
use sandbox::marketplace::{Location, Options as Marketplace};
use sandbox::process::{Program, Signal, Worker, WorkerSpec};
use sandbox::whole::{CALLERS_SECRET, Options as Whole, Programs, Sandbox, TABLE, caller_entry};
use serde_json::{Value, json};

pub use self::client::{ClientResponse, send};
pub use self::line::Line;
use self::observed::Observed;
use crate::deployment::Deployment;

/// Longest time that a test waits for anything. Only a failing test waits so long, so it is generous.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// The bootstrap of a function: from the folder `FUNCTIONS_DIR` if that is set, else from the target folder of this
/// test.
///
/// # Panics
/// If the function has not been built.
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
pub fn location(number: usize) -> Resource {
    Resource::Location(format!("HLlocation{number:09}"))
}

/// The agency.
pub fn company() -> Resource {
    Resource::Company("HLcompany0000000001".to_owned())
}

/// The gateway's path of a resource, followed by the platform's path, which may be empty.
pub fn route(resource: &Resource, path: &str) -> String {
    match resource {
        Resource::Location(id) => format!("/relay/locations/{id}{path}"),
        Resource::Company(id) => format!("/relay/companies/{id}{path}"),
    }
}

/// The configuration of a system.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Number of processes of `relay`.
    pub relays: usize,
    /// Number of invocations that each process of `relay` takes at the same time. Lambda's default is one.
    pub at_once: usize,
    /// URL of another store than the embedded one.
    pub store: Option<String>,
    /// Further environment variables of all functions.
    pub environment: Vec<(&'static str, String)>,
    /// Further entries of the callers' secret, besides the entry of the caller that is allowed everything.
    pub callers: Vec<Value>,
    /// Number of locations of the agency.
    pub locations: usize,
}

impl Default for Setup {
    fn default() -> Self {
        Self { relays: 2, at_once: 1, store: None, environment: Vec::new(), callers: Vec::new(), locations: 3 }
    }
}

/// The endpoints of the services whose calls are observed.
const WATCHED: [&str; 4] = [
    "AWS_ENDPOINT_URL_DYNAMODB",
    "AWS_ENDPOINT_URL_SECRETS_MANAGER",
    "AWS_ENDPOINT_URL_SQS",
    "AWS_ENDPOINT_URL_EVENTBRIDGE",
];

/// The whole system. Each function runs as one or more processes of its built binary.
pub struct System {
    /// All emulators around the functions.
    pub sandbox: Sandbox,
    /// The connection to the store. A test can cut it.
    pub store: Line,
    /// The deployed account, if the system does not use the sandbox's own account.
    pub deployment: Option<Deployment>,
    workers: Vec<Worker>,
    observed: Observed,
    /// The further environment of all functions.
    environment: BTreeMap<String, String>,
    client: reqwest::Client,
    /// Secrets that must not be logged, besides those that the platform has issued.
    further_secrets: Mutex<BTreeSet<String>>,
}

impl System {
    /// Starts a system, and waits until every process has asked for work.
    ///
    /// # Panics
    /// If a part of the system does not start.
    pub async fn start(setup: Setup) -> Self {
        let sandbox = Self::start_sandbox(&setup).await;
        let url = setup.store.clone().unwrap_or_else(|| sandbox.dynamo.url().to_owned());
        create_table(&sandbox::dynamo::client(&url), TABLE).await.expect("the table is there");
        let mut callers = setup.callers.clone();
        callers.push(caller_entry(&sandbox.caller_key));
        sandbox.secrets.put(CALLERS_SECRET, json!({ "callers": callers }).to_string());
        Self::run_all(setup, sandbox, &url, None).await
    }

    /// Starts a system in an account to which the template has just been deployed: without a client secret and without
    /// callers. `None` if the emulators of the account are not installed; `test` is then recorded as skipped.
    ///
    /// # Panics
    /// If an installed part of the system does not start.
    pub async fn deployed(mut setup: Setup, test: &str) -> Option<Self> {
        setup.environment.push(("GATEWAY_ALIAS", "live".to_owned()));
        let sandbox = Self::start_sandbox(&setup).await;
        let (platform, client_id) = (sandbox.marketplace.url(), sandbox.marketplace.options().client_id);
        let parameters =
            [("ClientId", &*client_id), ("ApiUrl", &*platform), ("MarketplaceUrl", &*platform), ("LogLevel", "trace")];
        let deployment = Deployment::make(test, &parameters, &sandbox.gateway.url()).await?;
        let url = deployment.store();
        Some(Self::run_all(setup, sandbox, &url, Some(deployment)).await)
    }

    async fn start_sandbox(setup: &Setup) -> Sandbox {
        let owned = |(name, value): &(&'static str, String)| ((*name).to_owned(), value.clone());
        let locations = (1..=setup.locations)
            .map(|number| Location { id: location(number).id().to_owned(), name: format!("Location {number}") })
            .collect();
        let options = Whole {
            programs: Programs::None,
            refresh_every: None,
            marketplace: Marketplace { locations, ..Marketplace::default() },
            // The gateway and the queue must invoke the alias that the functions expect.
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
            observed: Observed::default(),
            environment: BTreeMap::new(),
            client: client.expect("a client"),
            further_secrets: Mutex::default(),
        };
        system.tell(&system.sandbox.caller_key);
        // All functions log at the most detailed level, so that the search for secrets covers every line that can be
        // logged.
        let all_logs = ("RUST_LOG", "trace".to_owned());
        let environment: BTreeMap<_, _> =
            std::iter::once(all_logs).chain(setup.environment).map(|(name, value)| (name.to_owned(), value)).collect();
        system.environment.clone_from(&environment);
        for (function, count) in [("callback", 1), ("refresh", 1), ("relay", setup.relays), ("webhook", 1)] {
            let mut own = environment.clone();
            let at_once = if function == "relay" { setup.at_once } else { 1 };
            if at_once > 1 {
                own.insert("AWS_LAMBDA_MAX_CONCURRENCY".to_owned(), at_once.to_string());
            }
            for number in 1..=count {
                system.run(function, function, number, own.clone()).await;
            }
        }
        for (function, polls) in [("callback", 1), ("refresh", 1), ("relay", setup.relays * setup.at_once)] {
            system.wait_for_polls(function, polls).await;
        }
        system
    }

    async fn run(&mut self, bootstrap_of: &str, function: &str, number: usize, own: BTreeMap<String, String>) {
        let mut environment = match &self.deployment {
            Some(deployment) => deployment.environment(bootstrap_of),
            None => self.sandbox.environment().clone(),
        };
        environment.insert("AWS_ENDPOINT_URL_DYNAMODB".to_owned(), self.store.url());
        environment.extend(own);
        for (name, value) in &mut environment {
            if WATCHED.contains(&name.as_str()) {
                *value = self.observed.watch(bootstrap_of, value).await;
            }
        }
        let spec = WorkerSpec {
            function: function.to_owned(),
            worker: format!("{function}-{number}"),
            program: Program::Path(bootstrap(bootstrap_of)),
            environment,
            restart: false,
        };
        self.workers.push(Worker::start(spec, self.sandbox.worker_context()).expect("the function starts"));
    }

    /// Environment of the operator's commands.
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

    /// Starts a further process of `bootstrap_of`, with other variables, as a function of another name.
    pub async fn start_apart(&mut self, bootstrap_of: &str, function: &str, own: &[(&str, &str)]) {
        let own = own.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        self.run(bootstrap_of, function, 1, own).await;
        self.wait_for_polls(function, 1).await;
    }

    /// Starts a second process of a function that has one process.
    pub async fn start_another(&mut self, function: &str) {
        self.start_more(function, 2).await;
    }

    /// Starts a further process of a function. No process may have had this number.
    ///
    /// # Panics
    /// If the process does not start.
    pub async fn start_more(&mut self, function: &str, number: usize) {
        let polls = self.sandbox.runtime.polls(function);
        self.run(function, function, number, self.environment.clone()).await;
        let started = until(|| self.sandbox.runtime.polls(function) > polls);
        assert!(started.await, "{function}-{number} does not ask for work: {:?}", self.last_lines());
    }

    /// Kills a process (`kill -9`), in the middle of its work.
    ///
    /// # Panics
    /// If there is no process of that name.
    pub async fn kill(&mut self, worker: &str) {
        let place = self.workers.iter().position(|known| known.name() == worker).expect("a process of that name");
        self.workers.remove(place).end().await;
    }

    /// Remembers a secret that no log may contain.
    ///
    /// # Panics
    /// If the secret is so short that the search could find it by chance.
    pub fn tell(&self, secret: &str) {
        assert!(secret.len() >= 8, "too short to be looked for");
        self.further_secrets.lock().unwrap_or_else(PoisonError::into_inner).insert(secret.to_owned());
    }

    /// Installs the app as from the marketplace's own pages.
    ///
    /// # Panics
    /// If the installation does not end in a redirect to the page that reports success.
    pub async fn install(&self, resource: &Resource) {
        let status = self.sandbox.install(resource.clone()).await.expect("an answer");
        assert_eq!(status, 303, "{resource} is installed: {:?}", self.last_lines());
    }

    /// Sends a signal to a process of a function: stop, continue or end. The processes are numbered from 1 (`relay-1`).
    ///
    /// # Panics
    /// If there is no process of that name, or if the process does not take the signal.
    pub async fn signal(&self, worker: &str, signal: Signal) {
        let worker = self.workers.iter().find(|known| known.name() == worker).expect("a process of that name");
        assert!(worker.signal(signal).await, "{} takes the signal", worker.name());
    }

    /// The number of requests for a refresh that the platform has received.
    pub fn refreshes(&self) -> usize {
        self.sandbox.marketplace.token_requests_for("refresh_token")
    }

    /// The number of requests for a resource that have arrived at the platform.
    pub fn arrived(&self, resource: &Resource) -> usize {
        self.sandbox.marketplace.api_requests(resource).len()
    }

    /// The number of processes of `relay` that have relayed a request.
    pub fn busy_relays(&self) -> usize {
        let lines = self.sandbox.logs.lines();
        let relayed = lines.iter().filter(|line| line.function == "relay" && line.line.contains("\"relayed\""));
        relayed.map(|line| line.worker.clone()).collect::<BTreeSet<_>>().len()
    }

    /// Sets numbers in a stored installation, as if it had been stored at another time.
    ///
    /// # Panics
    /// If there is no such installation.
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

    /// The last lines that the processes have logged.
    pub fn last_lines(&self) -> Vec<String> {
        let lines = self.sandbox.logs.lines();
        lines.iter().rev().take(20).rev().map(|line| format!("{}: {}", line.worker, line.line)).collect()
    }
}

/// Waits for a condition, at most for [`PATIENCE`]. Returns true if the condition came to hold.
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
