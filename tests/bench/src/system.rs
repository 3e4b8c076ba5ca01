//! The functions as they are deployed: release binaries as processes of their own, under a Runtime API.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use sandbox::events::EventBus;
use sandbox::process::{LogBook, Program, Worker, WorkerContext, WorkerSpec};
use sandbox::runtime_api::{Invocation, RuntimeApi};
use sandbox::secrets::Secrets;
use serde_json::{Value, json};
use shared::app::App;
use shared::config::{self, AppConfig};
use shared::domain::clock::Clock;
use shared::domain::grant::Grant;
use shared::domain::limits::Limits;
use shared::domain::resource::Resource;
use shared::table::Table;

use crate::platform::{Platform, access_token, refresh_token};
use crate::store::{self, Store};
use crate::wire::{Upstreams, Wire};

/// The folder of the built functions.
#[derive(Clone, Debug)]
pub(crate) struct Functions(pub(crate) PathBuf);

impl Functions {
    /// The path of a function's bootstrap, as built by cargo or by cargo-lambda.
    pub(crate) fn bootstrap(&self, function: &str) -> PathBuf {
        let packed = self.0.join(function).join("bootstrap");
        if packed.is_file() { packed } else { self.0.join(function) }
    }
}

/// The added delay of answers that come from another machine in reality.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Distances {
    pub(crate) dynamodb: Duration,
    pub(crate) secrets: Duration,
    pub(crate) platform: Duration,
}

/// The route of calls to AWS: through the counting proxy, or directly to the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Through {
    Wire,
    Nothing,
}

/// All services around the functions.
pub(crate) struct System {
    /// The emulator of Lambda's Runtime API.
    pub(crate) runtime: RuntimeApi,
    /// The proxy that counts the calls to AWS.
    pub(crate) wire: Wire,
    /// The fake platform.
    pub(crate) platform: Platform,
    /// The table, reached without the proxy.
    pub(crate) table: Table,
    /// The parts of a function, for preparing the table.
    pub(crate) app: App,
    environment: BTreeMap<String, String>,
    worker_context: WorkerContext,
    functions: Functions,
    _secrets: Secrets,
}

/// A higher limit than a platform allows, because a benchmark calls more often. A shorter interval would have shorter
/// slots. A permit whose write takes longer than a slot cannot be used, which would happen on a busy machine.
pub(crate) const MANY: Limits = Limits { burst: 10_000, interval: Duration::from_secs(5), daily: 100_000_000 };
/// The highest limit of which no permit is taken ahead of need: each call makes a write.
pub(crate) const ONE_BY_ONE: Limits = Limits { burst: 199, ..MANY };

impl System {
    pub(crate) async fn new(store: &Store, functions: &Functions, through: Through, distances: Distances) -> Self {
        Self::with_limits(store, functions, through, distances, MANY).await
    }

    /// With these limits, which the platform states, too.
    pub(crate) async fn with_limits(
        store: &Store,
        functions: &Functions,
        through: Through,
        distances: Distances,
        limits: Limits,
    ) -> Self {
        let secrets = Secrets::start().await.expect("secrets");
        secrets.put("app", r#"{"client_id":"bench-app","client_secret":"bench-client-secret"}"#);
        secrets.put("sealing", r#"{"current":"k1","k1":"0123456789abcdef0123456789abcdef"}"#);
        secrets.put("callers", r#"{"callers":[],"unlisted":"allow"}"#);
        let table = store.table().await;
        let platform = Platform::start(distances.platform, limits).await;
        let wire = Wire::to(Upstreams {
            dynamodb: store.url(),
            dynamodb_takes: distances.dynamodb,
            dynamodb_jitter: Duration::ZERO,
            secrets: secrets.url(),
            secrets_take: distances.secrets,
        })
        .await;
        let (dynamodb, secrets_manager) = match through {
            Through::Wire => (wire.url(), wire.url()),
            Through::Nothing => (store.url(), secrets.url()),
        };
        let environment: BTreeMap<String, String> = [
            ("TABLE_NAME", table.name.to_string()),
            ("APP_SECRET_ID", "app".to_owned()),
            ("SEALING_SECRET_ID", "sealing".to_owned()),
            ("CALLERS_SECRET_ID", "callers".to_owned()),
            ("API_URL", platform.url()),
            ("AWS_ENDPOINT_URL_DYNAMODB", dynamodb),
            ("AWS_ENDPOINT_URL_SECRETS_MANAGER", secrets_manager),
            ("BURST_LIMIT", limits.burst.to_string()),
            ("BURST_INTERVAL_MS", limits.interval.as_millis().to_string()),
            ("DAILY_LIMIT", limits.daily.to_string()),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
        let bus = EventBus::default();
        let runtime = RuntimeApi::start(bus.clone()).await.expect("a Runtime API");
        let worker_context = WorkerContext { runtime: runtime.clone(), bus, logs: LogBook::default() };
        let app = app(&environment, &store.url(), &secrets.url()).await;
        let functions = functions.clone();
        Self { runtime, wire, platform, table, app, environment, worker_context, functions, _secrets: secrets }
    }

    /// Starts a process.
    pub(crate) fn start(&self, program: Program, function: &str, own: &[(&str, String)]) -> Worker {
        let mut environment = self.environment.clone();
        environment.extend(own.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        let spec = WorkerSpec {
            function: function.to_owned(),
            worker: format!("{function}-1"),
            program,
            environment,
            restart: false,
        };
        Worker::start(spec, self.worker_context.clone()).expect("the function is built")
    }

    /// Starts a process of a function.
    pub(crate) fn start_function(&self, function: &str) -> Worker {
        self.start(Program::Path(self.functions.bootstrap(function)), function, &[])
    }

    /// The variables that all functions get.
    pub(crate) fn environment(&self) -> &BTreeMap<String, String> {
        &self.environment
    }

    /// Invokes a function and returns its answer.
    pub(crate) async fn invoke(&self, function: &str, payload: impl Into<Bytes>) -> Bytes {
        let invocation = Invocation { timeout: Duration::from_secs(85), ..Invocation::default() };
        match self.runtime.invoke(function, payload, invocation).await {
            Ok(answer) => answer,
            Err(error) => panic!("{function}: {error}: {:?}", self.worker_context.logs.lines().last()),
        }
    }

    /// Calls the platform through the relay.
    pub(crate) async fn relay(&self, payload: &Bytes) {
        let answer = self.invoke("relay", payload.clone()).await;
        let answered: Value = serde_json::from_slice(&answer).expect("JSON");
        assert_eq!((&answered["status"], &answered["source"]), (&json!(200), &json!("platform")), "{answered}");
    }

    /// Installs the app in a location.
    pub(crate) async fn install(&self, location: &Resource, number: usize) {
        let grant = Grant {
            resource: location.clone(),
            company: Some("C1".to_owned()),
            access: access_token(number).into(),
            refresh: Some(refresh_token(location.id(), number).into()),
            expires_in: Duration::from_secs(86_399),
            scope: None,
            bulk: false,
        };
        let started = self.app.clock.now();
        self.app.installations.install(&grant, started, "https://relay.example").await.expect("installed");
    }
}

/// A request through the relay, in the form in which another function invokes the relay.
pub(crate) fn request(location: &Resource) -> Bytes {
    let request = json!({
        "resource": { "location": location.id() }, "method": "GET", "path": "/contacts/sx6wyHhbFdRXh302LLNR",
        "headers": { "accept": "application/json" },
    });
    request.to_string().into()
}

/// The location of this number.
pub(crate) fn location(number: usize) -> Resource {
    Resource::location(&format!("benchLocation{number:07}")).expect("an id")
}

async fn app(environment: &BTreeMap<String, String>, dynamodb: &str, secrets: &str) -> App {
    let config = config::read(&|name| environment.get(name).cloned(), AppConfig::read).expect("a configuration");
    // A process requests all services at one URL. A separate proxy of the benchmark tells the services apart.
    let upstreams = Upstreams { dynamodb: dynamodb.to_owned(), secrets: secrets.to_owned(), ..Upstreams::default() };
    let wire = Box::leak(Box::new(Wire::to(upstreams).await));
    App::build(config, &store::sdk(&wire.url()).await, Clock::system()).expect("an app")
}
