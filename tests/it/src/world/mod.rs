//! The world of a story: the platform, the table, the secrets, the queue, and any number of processes in it.
//!
//! All processes share a clock that stands still until the story moves it; the platform's moves with it. Time that a
//! story waits for in earnest is only that of a connection.

mod ending;
mod table;

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use aws_config::Region;
use aws_sdk_dynamodb::config::Credentials;
use lambda_runtime::{Context, LambdaEvent};
use refresh::event::Event;
use refresh::{rescue, tick};
use sandbox::event_bridge::{self, EventBridge};
use sandbox::events::EventBus;
use sandbox::marketplace::grants::{Resource as Grantee, Standing};
use sandbox::marketplace::{Location, Marketplace, Options};
use sandbox::queue::Queue;
use sandbox::secrets::Secrets;
use serde::de::DeserializeOwned;
use serde_json::value::to_raw_value;
use serde_json::{Value, json};
use shared::app::{App, aws_defaults};
use shared::config::{self, AppConfig};
use shared::domain::clock::{Clock, Millis};
use shared::domain::grant::Grant;
use shared::domain::installation::Installation;
use shared::domain::qualifier::GatewayAlias;
use shared::domain::resource::{Kind, Resource};
use shared::domain::status::Status;
use shared::lambda::serve::{HttpFunction, answer_http};
use shared::seal::pair::Slot;
use shared::table::Table;

use crate::dynamo::{self, Engine};
use crate::proxy::{Proxy, Upstreams};

/// Id of the app's secret.
pub const APP_SECRET: &str = "app";
/// Id of the sealing secret.
pub const SEALING_SECRET: &str = "sealing";
/// Base of the pages, for links to install again.
pub const HOME: &str = "https://relay.example";
/// An invocation that a story does not end by itself.
const INVOCATION: Duration = Duration::from_secs(29);

/// The answer of a function to an event of API Gateway, in an invocation that ends at `deadline`.
///
/// # Panics
/// If the answer is not of the expected form.
pub async fn answered<T: DeserializeOwned>(
    function: &impl HttpFunction,
    event: &Value,
    request_id: &str,
    deadline: Millis,
) -> T {
    let mut context = Context::default();
    request_id.clone_into(&mut context.request_id);
    context.deadline = deadline.0.try_into().expect("after 1970");
    let event = LambdaEvent::new(to_raw_value(event).expect("JSON"), context);
    let answer = Box::pin(answer_http(&GatewayAlias::default(), function, event)).await;
    serde_json::to_value(answer).and_then(serde_json::from_value).expect("an answer in payload 2.0")
}

/// Everything outside the processes.
pub struct World {
    /// The platform.
    pub market: Marketplace,
    /// Secrets Manager.
    pub secrets: Secrets,
    /// The rescue queue.
    pub queue: Queue,
    /// The bus, for processes that are told of it.
    pub event_bridge: EventBridge,
    /// Moved by [`World::advance`] only.
    pub clock: Clock,
    /// The table, reached without a proxy.
    pub table: Table,
    engine: Arc<Engine>,
    /// How many lines had been written when this story began.
    lines_before: usize,
}

/// One process: its own clients, caches and connections.
pub struct Process {
    app: App,
    /// What lies between it and AWS.
    pub proxy: Proxy,
}

impl Deref for Process {
    type Target = App;

    fn deref(&self) -> &App {
        &self.app
    }
}

impl World {
    /// A new world on one engine; `None`, with a line that names `test`, where that engine is not to be had.
    ///
    /// # Panics
    /// If a part does not start.
    pub async fn start(kind: dynamo::Kind, test: &str) -> Option<Self> {
        let engine = engine(kind, test).await?;
        shared::log::capture(|line| lines().push(String::from_utf8_lossy(line).into_owned()));
        let lines_before = lines().len();
        let locations = (1..=3).map(|n| Location { id: format!("L{n}"), name: format!("Location {n}") }).collect();
        let options = Options { locations, ..Options::default() };
        let market = Marketplace::start(options, EventBus::default()).await.expect("the platform starts");
        let secrets = Secrets::start().await.expect("secrets start");
        let queue = Queue::start(Duration::ZERO).await.expect("the queue starts");
        let event_bridge = EventBridge::start(EventBus::default()).await.expect("the bus starts");
        let Options { client_id, client_secret, .. } = market.options();
        secrets.put(APP_SECRET, json!({ "client_id": client_id, "client_secret": client_secret }).to_string());
        secrets.put(SEALING_SECRET, r#"{"current":"k1","k1":"0123456789abcdef0123456789abcdef"}"#);
        let client = sandbox::dynamo::client(&engine.url());
        let name = format!("life-{}", shared::domain::random::hex::<8>());
        sandbox::dynamo::create_table(&client, &name).await.expect("a table");
        let clock = Clock::manual(Millis(i64::try_from(market.clock().now_ms()).expect("a time")));
        Some(Self {
            market,
            secrets,
            queue,
            event_bridge,
            clock,
            table: Table { client, name: name.into() },
            engine,
            lines_before,
        })
    }

    /// A new process.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn process(&self) -> Process {
        self.process_by(self.clock.clone()).await
    }

    /// A new process with a clock of its own.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn process_by(&self, clock: Clock) -> Process {
        self.process_of(clock, self.market.url()).await
    }

    /// A new process for which the platform's API is at `api`.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn process_at(&self, api: &str) -> Process {
        self.process_of(self.clock.clone(), api.to_owned()).await
    }

    /// A new process that tells of what happens on the bus.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn teller(&self) -> Process {
        let bus = [("EVENT_BUS_NAME", event_bridge::NAME)];
        let (app, proxy) = self.app(self.clock.clone(), self.market.url(), &bus).await;
        Process { app, proxy }
    }

    async fn process_of(&self, clock: Clock, api: String) -> Process {
        let (app, proxy) = self.app(clock, api, &[]).await;
        Process { app, proxy }
    }

    /// What a function is built of, in a process of its own, with further variables.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn app(&self, clock: Clock, api: String, further: &[(&'static str, &str)]) -> (App, Proxy) {
        let upstreams = Upstreams {
            dynamodb: self.engine.url(),
            secrets: self.secrets.url(),
            queue: self.queue.endpoint(),
            events: self.event_bridge.url(),
        };
        let proxy = Proxy::start(upstreams).await.expect("a proxy");
        let mut variables = BTreeMap::from([
            ("TABLE_NAME", self.table.name.to_string()),
            ("APP_SECRET_ID", APP_SECRET.to_owned()),
            ("SEALING_SECRET_ID", SEALING_SECRET.to_owned()),
            ("API_URL", api),
            ("RESCUE_QUEUE_URL", self.queue.url()),
        ]);
        variables.extend(further.iter().map(|(name, value)| (*name, (*value).to_owned())));
        let config = config::read(&|name| variables.get(name).cloned(), AppConfig::read).expect("a configuration");
        let aws = aws_defaults()
            // DynamoDB Local has tables of its own for each region and access key: those of the sandbox's client.
            .region(Region::from_static(sandbox::process::REGION))
            .credentials_provider(Credentials::new("sandbox", "sandbox", None, None, "sandbox"))
            .endpoint_url(proxy.url())
            .load()
            .await;
        (App::build(config, &aws, clock).expect("an app"), proxy)
    }

    /// Moves every clock on.
    pub fn advance(&self, by: Duration) {
        self.clock.advance(by);
        self.market.clock().advance(by);
    }

    /// When an invocation that begins now ends.
    #[must_use]
    pub fn deadline(&self) -> Millis {
        self.clock.now() + INVOCATION
    }

    /// What a human's consent to a location or a company leads to.
    ///
    /// # Panics
    /// If the platform grants nothing.
    pub async fn consent(&self, process: &Process, resource: &Resource) -> Grant {
        let code = self.market.authorize(grantee(resource));
        process.endpoint.exchange(&code.into(), HOME).await.expect("a grant")
    }

    /// Installs the app.
    ///
    /// # Panics
    /// If that fails.
    pub async fn install(&self, process: &Process, resource: &Resource) {
        let started = self.clock.now();
        // Boxed, because it is large and every story's future would hold room for it.
        let grant = Box::pin(self.consent(process, resource)).await;
        Box::pin(process.installations.install(&grant, started, HOME)).await.expect("installed");
    }

    /// Ends every access token, by the clock.
    pub fn expire(&self) {
        self.advance(self.market.options().token_life);
    }

    /// An installation as it stands in the table.
    ///
    /// # Panics
    /// If there is none.
    pub async fn stored(&self, resource: &Resource) -> Installation {
        self.table.installation(resource).await.expect("a table").expect("an installation")
    }

    /// The state of an installation.
    ///
    /// # Panics
    /// If there is none.
    pub async fn status(&self, resource: &Resource) -> Status {
        self.stored(resource).await.status()
    }

    /// How many refresh tokens were presented.
    #[must_use]
    pub fn presented(&self) -> usize {
        self.market.token_requests_for("refresh_token")
    }

    /// Invokes the refresh function in an invocation that ends at `deadline`.
    ///
    /// # Panics
    /// If it answers with an error.
    pub async fn refresh_until(&self, process: &Process, event: Value, deadline: Millis) -> Value {
        let answer = match Event::read(event).expect("an event") {
            Event::Tick(shards) => {
                serde_json::to_value(tick::run(process, shards, deadline).await.expect("what is due can be read"))
            }
            Event::One { resource, force } => {
                let done = tick::run_one(process, &resource, force, deadline).await;
                serde_json::to_value(done.expect("it can be read"))
            }
            Event::Rescue(messages) => serde_json::to_value(rescue::run(process, messages).await),
        };
        answer.expect("an answer is JSON")
    }

    /// A minute's invocation of the refresh function.
    pub async fn refresh(&self, process: &Process, event: Value) -> Value {
        Box::pin(self.refresh_until(process, event, self.clock.now() + Duration::from_mins(1))).await
    }

    /// What Lambda would hand to the refresh function of the rescue queue.
    #[must_use]
    pub fn rescued(&self) -> Value {
        let record = |message: sandbox::queue::Message| json!({ "messageId": message.id, "body": message.body });
        json!({ "Records": self.queue.messages().into_iter().map(record).collect::<Vec<_>>() })
    }

    /// Number of log lines about a resource, which no other story may have, in which a member has this value.
    #[must_use]
    pub fn logged(&self, resource: &Resource, member: &str, value: &str) -> usize {
        let resource = resource.to_string();
        let has = |line: &str| {
            let line: Value = serde_json::from_str(line).unwrap_or_default();
            line["resource"] == *resource && line[member] == value
        };
        lines()[self.lines_before..].iter().filter(|line| has(line)).count()
    }

    /// What the platform would say to the stored refresh token.
    pub async fn standing(&self, resource: &Resource) -> Option<Standing> {
        let stored = self.stored(resource).await;
        let token = self.open(&stored, Slot::Current, stored.pair.as_ref()?)?;
        Some(self.market.standing(token.expose()))
    }
}

/// Everything that the processes of all stories have logged; they share this test's own.
fn lines() -> std::sync::MutexGuard<'static, Vec<String>> {
    static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());
    LINES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The embedded engine belongs to one story; `DynamoDB` Local takes seconds to start and is shared by those that run.
async fn engine(kind: dynamo::Kind, test: &str) -> Option<Arc<Engine>> {
    static LOCAL: Mutex<Weak<Engine>> = Mutex::new(Weak::new());
    static STARTING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    if kind == dynamo::Kind::Embedded {
        return Engine::start(kind, test).await.map(Arc::new);
    }
    let _one_at_a_time = STARTING.lock().await;
    let running = LOCAL.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
    if running.is_some() {
        return running;
    }
    let started = Arc::new(Engine::start(kind, test).await?);
    *LOCAL.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&started);
    Some(started)
}

/// Waits until something holds that another part of the story brings about.
///
/// # Panics
/// If it does not within half a minute.
pub async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(30), waiting).await.is_ok(), "never: {what}");
}

/// The platform's name of a resource.
#[must_use]
pub fn grantee(resource: &Resource) -> Grantee {
    match resource.kind() {
        Kind::Location => Grantee::Location(resource.id().to_owned()),
        Kind::Company => Grantee::Company(resource.id().to_owned()),
    }
}

/// A location of the story.
///
/// # Panics
/// If it is no id.
#[must_use]
pub fn location(id: &str) -> Resource {
    Resource::location(id).expect("an id")
}
