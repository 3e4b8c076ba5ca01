//! The whole system with all parts connected. `cargo run -p sandbox` starts it, and end-to-end tests use it.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use shared::domain::random;
use shared::table::Table;
use tokio::task::JoinHandle;

use crate::{
    console::{Console, Controls},
    dynamo::{self, Dynamo},
    event_bridge::{self, EventBridge},
    events::{Event, EventBus},
    gateway::Gateway,
    marketplace::{self, Marketplace, grants::Resource},
    process::{self, LogBook, Program, Worker, WorkerContext, WorkerSpec},
    queue::{Poller, Queue},
    runtime_api::{Invocation, RuntimeApi},
    secrets::Secrets,
    server::StartError,
};

/// Name of the `DynamoDB` table.
pub const TABLE: &str = "hoopai-relay";
/// Name of the secret with the app's client id and client secret.
pub const APP_SECRET: &str = "hoopai-relay/app";
/// Name of the secret with the sealing keys.
pub const SEALING_SECRET: &str = "hoopai-relay/sealing";
/// Name of the secret with the callers.
pub const CALLERS_SECRET: &str = "hoopai-relay/callers";
/// Name of the secret that webhooks are signed with, if they have an HMAC signature.
pub const WEBHOOK_SECRET: &str = "hoopai-relay/webhook";
/// Id of the entry of the caller that is allowed everything.
pub const CALLER: &str = "sandbox";
/// Alias of `relay` that the caller `sandbox` invokes.
pub const CALLER_ALIAS: &str = "sandbox";
/// Further callers, as the documents' examples name them: a function that invokes the alias `billing`, and a job that only
/// uses the queue of calls.
const EXAMPLE_CALLERS: [&str; 2] = ["billing", "job"];
/// Visibility time-out of the queue of calls. An invocation of `relay` takes a few seconds.
const CALLS_VISIBILITY: Duration = Duration::from_secs(30);
/// Number of invocations of `relay` for the queue of calls at the same time.
const CALLS_POLLERS: usize = 2;
/// Path of the redirect URI.
pub const CALLBACK_PATH: &str = "/oauth/callback";
/// Path of the app's webhook URL.
pub const WEBHOOK_PATH: &str = "/webhooks/marketplace";

const FUNCTIONS: [&str; 4] = ["callback", "refresh", "relay", "webhook"];

/// The source of the functions' programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Programs {
    /// This binary, which contains the functions.
    Itself,
    /// A directory with the built bootstraps `callback`, `refresh`, `relay` and `webhook`.
    Directory(PathBuf),
    /// No functions are started. A test starts its own functions, with [`Sandbox::environment`].
    None,
}

/// Options of the sandbox.
#[derive(Debug, Clone)]
pub struct Options {
    /// Port of the gateway on 127.0.0.1; 0 selects a free port.
    pub port: u16,
    /// Options of the fake platform, including its client id, client secret and port.
    pub marketplace: marketplace::Options,
    /// Database file. If absent, the database is in memory. Other data that must outlive a restart is kept beside the
    /// file.
    pub data: Option<PathBuf>,
    /// Number of `relay` processes. Each other function has one process.
    pub relays: usize,
    /// Interval at which the schedule invokes `refresh`. If absent, the schedule never invokes `refresh`.
    pub refresh_every: Option<Duration>,
    /// The source of the functions' programs.
    pub programs: Programs,
    /// Additional environment of all functions, which overrides the environment that the sandbox sets. If it contains
    /// `GATEWAY_ALIAS`, the gateway and the queue invoke the functions by that alias.
    pub environment: BTreeMap<String, String>,
    /// Time during which a received message of the rescue queue stays invisible.
    pub visibility: Duration,
    /// True if the platform sends install and uninstall webhooks to the app. A test that counts events may switch them
    /// off.
    pub webhooks: bool,
    /// Ports on 127.0.0.1 that the console tries in order; 0 selects a free port. If the list is empty, there is no
    /// console.
    pub console: Vec<u16>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            port: 0,
            marketplace: marketplace::Options::default(),
            data: None,
            relays: 2,
            refresh_every: Some(Duration::from_secs(30)),
            programs: Programs::Itself,
            environment: BTreeMap::new(),
            visibility: Duration::from_secs(5),
            webhooks: false,
            console: Vec::new(),
        }
    }
}

/// The running system. Dropping the handle ends all of its processes, servers and tasks.
#[derive(Debug)]
pub struct Sandbox {
    /// Processes of the functions, by function. This field is the first, because fields are dropped in order: the
    /// functions must end before the parts that they use.
    pub workers: Vec<Worker>,
    _schedule: Option<Schedule>,
    _pollers: Vec<Poller>,
    /// API Gateway.
    pub gateway: Gateway,
    /// Lambda.
    pub runtime: RuntimeApi,
    /// The platform.
    pub marketplace: Marketplace,
    /// `DynamoDB`.
    pub dynamo: Dynamo,
    /// Secrets Manager.
    pub secrets: Secrets,
    /// The rescue queue.
    pub queue: Queue,
    /// The overflow queue of the platform's events.
    pub overflow: Queue,
    /// The queue of calls.
    pub calls: Queue,
    /// The queue of the results of calls.
    pub results: Queue,
    /// The dead-letter queue of the queue of calls.
    pub dead_calls: Queue,
    /// The bus of lifecycle events and of the platform's events.
    pub event_bridge: EventBridge,
    /// All output of the functions.
    pub logs: LogBook,
    _data: Option<DataFile>,
    /// The events of all parts.
    pub bus: EventBus,
    /// The page that shows the events, if there is one.
    pub console: Option<Console>,
    /// Bearer key of the caller `sandbox`, which may do everything.
    pub caller_key: String,
    environment: BTreeMap<String, String>,
}

/// Keys that must stay the same after a restart, because otherwise the sealed tokens in a data file could not be
/// opened.
#[derive(Debug, Serialize, Deserialize)]
struct Keys {
    client_secret: String,
    sealing_key: String,
    caller_key: String,
}

impl Keys {
    fn new(client_secret: String) -> Self {
        let caller_key = format!("rk_{}", random::hex::<24>());
        Self { client_secret, sealing_key: random::hex::<32>(), caller_key }
    }

    /// Loads the keys from the file beside the data file. Creates the file if it is missing.
    fn beside(data: &Path, client_secret: String) -> Result<Self, StartError> {
        let path = beside(data, "keys.json");
        let problem = |problem: String| StartError::File { path: path.display().to_string(), problem };
        if path.exists() {
            let text = std::fs::read_to_string(&path).map_err(|error| problem(error.to_string()))?;
            return serde_json::from_str(&text).map_err(|error| problem(error.to_string()));
        }
        let keys = Self::new(client_secret);
        let text = serde_json::to_string_pretty(&keys).map_err(|error| problem(error.to_string()))?;
        std::fs::write(&path, text).map_err(|error| problem(error.to_string()))?;
        Ok(keys)
    }

    fn fill(&self, secrets: &Secrets, client_id: &str) {
        let app = json!({ "client_id": client_id, "client_secret": self.client_secret });
        let [billing, job] = EXAMPLE_CALLERS;
        let examples = [json!({ "id": billing, "aliases": [billing] }), json!({ "id": job, "queue": true })];
        let callers: Vec<_> = std::iter::once(caller_entry(&self.caller_key)).chain(examples).collect();
        secrets.put(APP_SECRET, app.to_string());
        secrets.put(SEALING_SECRET, json!({ "current": "k1", "k1": self.sealing_key }).to_string());
        secrets.put(CALLERS_SECRET, json!({ "callers": callers }).to_string());
    }
}

/// Returns the entry of the caller `sandbox`. The caller may do everything, and can identify itself by its key, by its
/// alias, or by a signature with the access key id `sandbox`.
pub fn caller_entry(key: &str) -> Value {
    let principal = format!("arn:aws:sts::{}:assumed-role/sandbox/*", process::ACCOUNT);
    json!({
        "id": CALLER,
        "keys_sha256": [sha256_hex(key)],
        "aliases": [CALLER_ALIAS],
        "principals": [principal],
        "queue": true,
    })
}

/// The data file of one sandbox. The lock ends with the process, also if it crashes.
#[derive(Debug)]
struct DataFile {
    _lock: std::fs::File,
}

impl DataFile {
    /// Takes the data file for this process, before anything is written.
    fn open(path: &Path) -> Result<Self, StartError> {
        let problem = |problem: String| StartError::File { path: path.display().to_string(), problem };
        if path.is_dir() {
            return Err(problem("this is a folder; --data needs the path of a file".to_owned()));
        }
        let lock = beside(path, "lock");
        let lock = std::fs::File::create(&lock).map_err(|error| problem(format!("cannot be written: {error}")))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { _lock: lock }),
            Err(std::fs::TryLockError::WouldBlock) => {
                Err(problem("another sandbox uses this file; end it, or choose another file".to_owned()))
            }
            Err(std::fs::TryLockError::Error(error)) => Err(problem(format!("cannot be locked: {error}"))),
        }
    }
}

/// Returns the path of a file beside the data file: `relay.db` → `relay.db-keys.json`. `.gitignore` covers these files.
fn beside(data: &Path, ending: &str) -> PathBuf {
    let mut name = data.as_os_str().to_owned();
    name.push("-");
    name.push(ending);
    PathBuf::from(name)
}

impl Sandbox {
    /// Starts all parts and waits until every function has asked for work or has reported an error at its start.
    ///
    /// # Errors
    /// A port is taken, a file cannot be read, or a program does not start.
    pub async fn start(mut options: Options, bus: EventBus) -> Result<Self, StartError> {
        let data = options.data.as_deref().map(DataFile::open).transpose()?;
        let keys = match &options.data {
            Some(data) => Keys::beside(data, options.marketplace.client_secret.clone())?,
            None => Keys::new(options.marketplace.client_secret.clone()),
        };
        options.marketplace.client_secret.clone_from(&keys.client_secret);
        let client_id = options.marketplace.client_id.clone();
        let dynamo = match &options.data {
            Some(path) => Dynamo::file(path).await?,
            None => Dynamo::memory().await?,
        };
        dynamo::create_table(&dynamo.client(), TABLE).await?;
        let secrets = Secrets::start().await?;
        keys.fill(&secrets, &client_id);
        if let Some(secret) = &options.marketplace.webhook_secret {
            secrets.put(WEBHOOK_SECRET, json!({ "secrets": [secret] }).to_string());
        }
        let queue = Queue::start(options.visibility).await?;
        // The same number as in `template.yaml`.
        queue.allow_receives(1_000);
        let overflow = queue.another("overflow", options.visibility);
        overflow.allow_receives(1_000);
        let [calls, results, dead_calls] =
            ["calls", "results", "dead-calls"].map(|name| queue.another(name, CALLS_VISIBILITY));
        calls.allow_receives(1_000);
        calls.redrive_to(&dead_calls);
        let event_bridge = EventBridge::start(bus.clone()).await?;
        let runtime = RuntimeApi::start(bus.clone()).await?;
        let alias = options.environment.get("GATEWAY_ALIAS").cloned();
        if let Some(alias) = &alias {
            for function in FUNCTIONS {
                runtime.create_alias(function, alias);
            }
        }
        runtime.create_alias("relay", CALLER_ALIAS);
        // A test that starts its own functions has callers of its own.
        if options.programs != Programs::None {
            runtime.create_alias("relay", EXAMPLE_CALLERS[0]);
        }
        let gateway = Gateway::start(options.port, runtime.clone(), alias.as_deref(), bus.clone()).await?;
        let marketplace = Box::pin(Marketplace::start(options.marketplace.clone(), bus.clone())).await?;
        marketplace.allow_redirect(format!("{}{CALLBACK_PATH}", gateway.url()));
        if let Some(data) = &options.data {
            marketplace.keep_in(&beside(data, "platform.json"))?;
        }
        let mut pollers = vec![("refresh", &queue), ("webhook", &overflow)];
        pollers.extend([("relay", &calls); CALLS_POLLERS]);
        let pollers =
            pollers.into_iter().map(|(function, queue)| queue.deliver_to(&runtime, function, alias.as_deref()));
        let pollers = pollers.collect();
        let schedule = options.refresh_every.map(|every| Schedule::start(every, runtime.clone(), bus.clone()));
        let mut sandbox = Self {
            workers: Vec::new(),
            _schedule: schedule,
            _pollers: pollers,
            gateway,
            runtime,
            marketplace,
            dynamo,
            secrets,
            queue,
            overflow,
            calls,
            results,
            dead_calls,
            event_bridge,
            logs: LogBook::default(),
            _data: data,
            bus,
            console: None,
            caller_key: keys.caller_key,
            environment: BTreeMap::new(),
        };
        sandbox.environment = sandbox.contract();
        sandbox.environment.extend(options.environment);
        sandbox.marketplace.tell_operators(sandbox.operators_environment());
        sandbox.start_functions(&options.programs, options.relays)?;
        sandbox.wait_for_workers().await;
        if options.webhooks {
            sandbox.marketplace.webhooks().send_to(format!("{}{WEBHOOK_PATH}", sandbox.gateway.url()));
        }
        sandbox.console = Console::start_on_one_of(&options.console, &sandbox.controls()).await?;
        Ok(sandbox)
    }

    /// Returns the parts of the sandbox that the console uses.
    fn controls(&self) -> Controls {
        Controls {
            platform: self.marketplace.platform(),
            platform_url: self.marketplace.url(),
            gateway_url: self.gateway.url(),
            runtime: self.runtime.clone(),
            secrets: self.secrets.writer(),
            table: Table { client: self.dynamo.client(), name: TABLE.into() },
            caller_key: self.caller_key.clone(),
            exports: self.exports(),
            calls: self.calls.clone(),
            workers: self.workers.iter().map(Worker::handle).collect(),
            bus: self.bus.clone(),
        }
    }

    /// Returns the environment that the contract of the functions names, with the addresses of this sandbox.
    fn contract(&self) -> BTreeMap<String, String> {
        let hmac = self.marketplace.options().webhook_secret.is_some();
        let public_keys = if hmac { "none".to_owned() } else { self.marketplace.webhooks().public_key() };
        [
            ("TABLE_NAME", TABLE.to_owned()),
            ("APP_SECRET_ID", APP_SECRET.to_owned()),
            ("SEALING_SECRET_ID", SEALING_SECRET.to_owned()),
            ("CALLERS_SECRET_ID", CALLERS_SECRET.to_owned()),
            ("API_URL", self.marketplace.url()),
            ("MARKETPLACE_URL", self.marketplace.url()),
            ("PUBLIC_URL", self.gateway.url()),
            ("RESCUE_QUEUE_URL", self.queue.url()),
            ("WEBHOOK_PUBLIC_KEYS", public_keys),
            // An empty variable counts as absent.
            ("WEBHOOK_SECRET_ID", if hmac { WEBHOOK_SECRET.to_owned() } else { String::new() }),
            ("EVENTS_OVERFLOW_QUEUE_URL", self.overflow.url()),
            ("CALLS_QUEUE_URL", self.calls.url()),
            ("RESULTS_QUEUE_URL", self.results.url()),
            ("EVENT_BUS_NAME", event_bridge::NAME.to_owned()),
            ("AWS_ENDPOINT_URL_EVENTBRIDGE", self.event_bridge.url()),
            ("AWS_ENDPOINT_URL_DYNAMODB", self.dynamo.url().to_owned()),
            ("AWS_ENDPOINT_URL_SECRETS_MANAGER", self.secrets.url()),
            ("AWS_ENDPOINT_URL_SQS", self.queue.endpoint()),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
    }

    /// Returns the environment of the functions, without Lambda's own variables.
    pub fn environment(&self) -> &BTreeMap<String, String> {
        &self.environment
    }

    /// Returns the environment of the operator's commands: the functions' environment, and the names of the functions
    /// that the commands invoke.
    pub fn operators_environment(&self) -> BTreeMap<String, String> {
        let own = [
            ("REFRESH_FUNCTION", "refresh".to_owned()),
            ("RELAY_FUNCTION", "relay".to_owned()),
            ("AWS_ENDPOINT_URL_LAMBDA", self.runtime.url()),
            ("EVENT_ARCHIVE_ARN", self.event_bridge.archive()),
        ];
        let own = own.map(|(name, value)| (name.to_owned(), value));
        let account = process::account().into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
        account.chain(self.environment.clone()).chain(own).collect()
    }

    /// Returns the environment of the programs in README.md, docs/calling.md and docs/recipes.
    pub fn examples_environment(&self) -> Vec<(&'static str, String)> {
        let options = self.marketplace.options();
        let gateway = self.gateway.url();
        let own = vec![
            ("RELAY_KEY", self.caller_key.clone()),
            ("RELAY_URL", format!("{gateway}/relay")),
            ("DROP_IN_URL", format!("{gateway}/api")),
            ("GATEWAY_URL", gateway),
            ("LOCATION_ID", options.locations.first().map(|location| location.id.clone()).unwrap_or_default()),
            ("COMPANY_ID", options.company.clone()),
            ("RELAY_FUNCTION", "relay".to_owned()),
            ("CALLS_QUEUE_URL", self.calls.url()),
            ("RESULTS_QUEUE_URL", self.results.url()),
            ("AWS_ENDPOINT_URL_LAMBDA", self.runtime.url()),
            ("AWS_ENDPOINT_URL_SQS", self.queue.endpoint()),
        ];
        own.into_iter().chain(process::account().map(|(name, value)| (name, value.to_owned()))).collect()
    }

    /// Returns [`Self::examples_environment`] as commands of a shell.
    pub fn exports(&self) -> String {
        let lines = self.examples_environment().into_iter().map(|(name, value)| format!("export {name}='{value}'"));
        lines.collect::<Vec<_>>().join("\n")
    }

    /// Returns the first function of which no process has asked for work, and the last line that it has logged.
    pub fn start_failure(&self) -> Option<(&'static str, String)> {
        let is_idle = |function: &&str| self.workers_of(function).next().is_some() && self.runtime.polls(function) == 0;
        let function = FUNCTIONS.into_iter().find(is_idle)?;
        let lines = self.logs.lines().into_iter().rev();
        let line = lines.filter(|line| line.function == function).map(|line| line.line).next();
        let line = line.unwrap_or_else(|| "it logs nothing".to_owned());
        // A wrong environment is logged as a list of sentences.
        let sentences = line.split_once("[\"").and_then(|(_, rest)| rest.rsplit_once("\"]"));
        let problem = sentences.map_or(line.clone(), |(sentences, _)| sentences.replace("\", \"", "; "));
        Some((function, problem))
    }

    /// Returns the parts of the sandbox that a worker uses.
    pub fn worker_context(&self) -> WorkerContext {
        WorkerContext { runtime: self.runtime.clone(), bus: self.bus.clone(), logs: self.logs.clone() }
    }

    fn start_functions(&mut self, programs: &Programs, relays: usize) -> Result<(), StartError> {
        for (function, count) in [("callback", 1), ("refresh", 1), ("relay", relays), ("webhook", 1)] {
            let program = match programs {
                Programs::Itself => Program::Itself,
                Programs::Directory(directory) => Program::Path(directory.join(function)),
                Programs::None => return Ok(()),
            };
            for number in 1..=count {
                self.start_worker(function, number, program.clone(), BTreeMap::new())?;
            }
        }
        Ok(())
    }

    /// Starts one more process of a function, with additional environment.
    ///
    /// # Errors
    /// The program does not start.
    pub fn start_worker(
        &mut self,
        function: &str,
        number: usize,
        program: Program,
        own: BTreeMap<String, String>,
    ) -> Result<(), StartError> {
        let mut environment = self.environment.clone();
        environment.extend(own);
        let worker = format!("{function}-{number}");
        let spec = WorkerSpec { function: function.to_owned(), worker, program, environment, restart: true };
        self.workers.push(Worker::start(spec, self.worker_context())?);
        Ok(())
    }

    /// Returns the workers of a function.
    pub fn workers_of(&self, function: &str) -> impl Iterator<Item = &Worker> {
        self.workers.iter().filter(move |worker| worker.function() == function)
    }

    async fn wait_for_workers(&self) {
        let started = |function: &str| {
            let wanted = self.workers_of(function).count() as u64;
            self.runtime.polls(function) >= wanted || !self.runtime.init_errors(function).is_empty()
        };
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline && !self.workers.iter().all(|worker| started(worker.function())) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Ends every process and waits until it is gone, then ends the other parts. Dropping the sandbox ends the same
    /// processes and parts without waiting.
    pub async fn end(mut self) {
        for worker in self.workers.drain(..) {
            worker.end().await;
        }
    }

    /// Installs the app as from the marketplace's own pages, without a state. Returns the status of the callback's
    /// answer.
    ///
    /// # Errors
    /// The gateway does not answer.
    pub async fn install(&self, resource: Resource) -> reqwest::Result<u16> {
        let code = self.marketplace.authorize(resource);
        let url = format!("{}{CALLBACK_PATH}?code={code}", self.gateway.url());
        let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build()?;
        Ok(client.get(url).send().await?.status().as_u16())
    }
}

/// Returns the parameters with which `refresh` is invoked. The time-out is that of `template.yaml`.
pub(crate) fn refresh_invocation() -> Invocation {
    Invocation { timeout: Duration::from_secs(85), ..Invocation::default() }
}

/// Returns the event that `EventBridge` sends for a schedule.
pub fn scheduled_event() -> Value {
    let now = time::OffsetDateTime::now_utc();
    json!({
        "version": "0",
        "id": crate::identity::uuid(),
        "detail-type": "Scheduled Event",
        "source": "aws.scheduler",
        "account": crate::process::ACCOUNT,
        "time": now.format(&time::format_description::well_known::Rfc3339).unwrap_or_default(),
        "region": crate::process::REGION,
        "resources": [],
        "detail": {},
    })
}

/// Invokes `refresh` at regular intervals, until the schedule is dropped.
#[derive(Debug)]
struct Schedule(JoinHandle<()>);

impl Drop for Schedule {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Schedule {
    fn start(every: Duration, runtime: RuntimeApi, bus: EventBus) -> Self {
        Self(tokio::spawn(async move {
            let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let began = Instant::now();
                let answer = runtime.invoke_json("refresh", &scheduled_event(), refresh_invocation()).await;
                let (outcome, answer) = match answer {
                    Ok(summary) => ("ok".to_owned(), Some(summary.to_string())),
                    Err(error) => (error.to_string(), None),
                };
                let millis = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                bus.publish(Event::Invoked { function: "refresh".to_owned(), outcome, millis, answer });
            }
        }))
    }
}

/// Returns a SHA-256 hash as lower-case hex, the form in which the callers secret holds keys.
pub fn sha256_hex(text: &str) -> String {
    hex::encode(digest::digest(&digest::SHA256, text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_sha256sum() {
        assert_eq!(sha256_hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
