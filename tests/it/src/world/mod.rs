//! The world of a story: the platform, the table, the secrets, the queue, and any number of processes.
//!
//! All processes share a clock that stands still until the story moves it; the platform's clock moves with it. Real
//! time passes only while a story waits for a connection.

mod ending;
mod table;

use std::collections::BTreeMap;
use std::ops::Deref;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use aws_config::Region;
use aws_sdk_dynamodb::config::Credentials;
use lambda_runtime::{Context, LambdaEvent};
use refresh::event::RefreshEvent;
use refresh::{rescue, tick};
use sandbox::event_bridge::{self, EventBridge};
use sandbox::events::EventBus;
use sandbox::marketplace::grants::{RefreshTokenState, Resource as Grantee};
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
use shared::table::Table;

use crate::dynamo::{self, Engine};
use crate::proxy::{Proxy, Upstreams};

/// Id of the app's secret.
pub const APP_SECRET: &str = "app";
/// Id of the sealing secret.
pub const SEALING_SECRET: &str = "sealing";
/// Base of the pages, for links to install again.
pub const HOME: &str = "https://relay.example";
/// Duration of an invocation for which the story sets no other deadline.
const INVOCATION: Duration = Duration::from_secs(29);

/// Duration of an invocation of the refresh function, as in the template.
const TICK: Duration = Duration::from_secs(85);

/// The answer of a function to an event of API Gateway. The invocation ends at `deadline`.
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
    /// The overflow queue of the platform's events.
    pub overflow: Queue,
    /// The bus, for processes that are configured to publish on it.
    pub event_bridge: EventBridge,
    /// The clock of the processes; only [`World::advance`] moves it.
    pub clock: Clock,
    /// The table, reached without a proxy.
    pub table: Table,
    engine: Arc<Engine>,
    /// The number of lines that the processes had logged when this story began.
    lines_before: usize,
}

/// One process: its own clients, caches and connections.
pub struct Process {
    app: App,
    /// The proxy between this process and AWS.
    pub proxy: Proxy,
}

impl Deref for Process {
    type Target = App;

    fn deref(&self) -> &App {
        &self.app
    }
}

impl World {
    /// A new world on one engine. `None` if this machine lacks that engine; `test` is then recorded as skipped.
    ///
    /// # Panics
    /// If a part of the world does not start.
    pub async fn start(kind: dynamo::Kind, test: &str) -> Option<Self> {
        let engine = engine(kind, test).await?;
        shared::log::capture(|line| lines().push(String::from_utf8_lossy(line).into_owned()));
        let lines_before = lines().len();
        let locations = (1..=3).map(|n| Location { id: format!("L{n}"), name: format!("Location {n}") }).collect();
        let options = Options { locations, ..Options::default() };
        let market = Marketplace::start(options, EventBus::default()).await.expect("the platform starts");
        let secrets = Secrets::start().await.expect("secrets start");
        let queue = Queue::start(Duration::ZERO).await.expect("the queue starts");
        let overflow = queue.another("overflow", Duration::ZERO);
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
            overflow,
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
    /// If the process does not start.
    pub async fn process(&self) -> Process {
        self.process_by(self.clock.clone()).await
    }

    /// A new process with a clock of its own.
    ///
    /// # Panics
    /// If the process does not start.
    pub async fn process_by(&self, clock: Clock) -> Process {
        self.process_of(clock, self.market.url()).await
    }

    /// A new process for which the platform's API is at `api`.
    ///
    /// # Panics
    /// If the process does not start.
    pub async fn process_at(&self, api: &str) -> Process {
        self.process_of(self.clock.clone(), api.to_owned()).await
    }

    /// A new process with further environment variables.
    ///
    /// # Panics
    /// If the process does not start.
    pub async fn process_with(&self, further: &[(&'static str, &str)]) -> Process {
        let (app, proxy) = self.app(self.clock.clone(), self.market.url(), further).await;
        Process { app, proxy }
    }

    /// A new process that publishes lifecycle events on the bus.
    ///
    /// # Panics
    /// If the process does not start.
    pub async fn teller(&self) -> Process {
        self.process_with(&[("EVENT_BUS_NAME", event_bridge::NAME)]).await
    }

    async fn process_of(&self, clock: Clock, api: String) -> Process {
        let (app, proxy) = self.app(clock, api, &[]).await;
        Process { app, proxy }
    }

    /// The parts of a function in a process of its own, with further environment variables.
    ///
    /// # Panics
    /// If the process does not start.
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
            // DynamoDB Local keeps separate tables for each region and access key, so both are those of the sandbox's
            // client.
            .region(Region::from_static(sandbox::process::REGION))
            .credentials_provider(Credentials::new("sandbox", "sandbox", None, None, "sandbox"))
            .endpoint_url(proxy.url())
            .load()
            .await;
        (App::build(config, &aws, clock).expect("an app"), proxy)
    }

    /// Moves the clock of the processes and the clock of the platform forward.
    pub fn advance(&self, by: Duration) {
        self.clock.advance(by);
        self.market.clock().advance(by);
    }

    /// Moves the clocks, `times` as fast as real time, until `work` is done.
    pub async fn at_speed<T>(&self, times: u32, work: impl Future<Output = T>) -> T {
        const STEP: Duration = Duration::from_millis(20);
        let (mut work, mut began) = (pin!(work), Instant::now());
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = tokio::time::sleep(STEP) => {
                    self.clock.advance(STEP * times);
                    // The platform's clock moves by itself, too.
                    self.market.clock().advance((STEP * times).saturating_sub(began.elapsed()));
                    began = Instant::now();
                }
            }
        }
    }

    /// The deadline of an invocation that begins now.
    pub fn deadline(&self) -> Millis {
        self.clock.now() + INVOCATION
    }

    /// The grant that the platform gives after a human's consent to a location or a company.
    ///
    /// # Panics
    /// If the platform grants nothing.
    pub async fn consent(&self, process: &Process, resource: &Resource) -> Grant {
        let code = self.market.authorize(grantee(resource));
        process.codes.exchange(&code.into(), HOME, self.deadline()).await.expect("a grant")
    }

    /// Installs the app.
    ///
    /// # Panics
    /// If the installation fails.
    pub async fn install(&self, process: &Process, resource: &Resource) {
        let started = self.clock.now();
        // Boxed, because the future is large, and every story's future would otherwise reserve room for it.
        let grant = Box::pin(self.consent(process, resource)).await;
        Box::pin(process.installations.install(&grant, started, HOME)).await.expect("installed");
    }

    /// Expires every access token by moving the clocks past the life of a token.
    pub fn expire(&self) {
        self.advance(self.market.options().token_life);
    }

    /// An installation as it is stored in the table.
    ///
    /// # Panics
    /// If there is no such installation.
    pub async fn stored(&self, resource: &Resource) -> Installation {
        self.table.installation(resource).await.expect("a table").expect("an installation")
    }

    /// The state of an installation.
    ///
    /// # Panics
    /// If there is no such installation.
    pub async fn status(&self, resource: &Resource) -> Status {
        self.stored(resource).await.status()
    }

    /// The number of refresh tokens that were presented to the platform.
    pub fn presented(&self) -> usize {
        self.market.token_requests_for("refresh_token")
    }

    /// Invokes the refresh function in an invocation that ends at `deadline`.
    ///
    /// # Panics
    /// If the function answers with an error.
    pub async fn refresh_until(&self, process: &Process, event: Value, deadline: Millis) -> Value {
        let answer = match RefreshEvent::read(event).expect("an event") {
            RefreshEvent::Tick(shards) => {
                serde_json::to_value(tick::run(process, shards, deadline).await.expect("what is due can be read"))
            }
            RefreshEvent::One { resource, force } => {
                let done = tick::run_one(process, &resource, force, deadline).await;
                serde_json::to_value(done.expect("it can be read"))
            }
            RefreshEvent::Uninstall { resource, reason } => {
                serde_json::to_value(refresh::uninstall::run(process, &resource, &reason, deadline).await)
            }
            RefreshEvent::Rescue(messages) => serde_json::to_value(rescue::run(process, messages).await),
        };
        answer.expect("an answer is JSON")
    }

    /// Invokes the refresh function in an invocation that lasts as long as the template lets it.
    pub async fn refresh(&self, process: &Process, event: Value) -> Value {
        Box::pin(self.refresh_until(process, event, self.clock.now() + TICK)).await
    }

    /// The event with which Lambda would invoke the refresh function for the messages of the rescue queue.
    pub fn rescued(&self) -> Value {
        let record = |message: sandbox::queue::Message| json!({ "messageId": message.id, "body": message.body });
        json!({ "Records": self.queue.messages().into_iter().map(record).collect::<Vec<_>>() })
    }

    /// The number of log lines about `resource` whose member `member` has this value. No other story may use the
    /// resource.
    pub fn logged(&self, resource: &Resource, member: &str, value: &str) -> usize {
        let resource = resource.to_string();
        let has = |line: &str| {
            let line: Value = serde_json::from_str(line).unwrap_or_default();
            line["resource"] == *resource && line[member] == value
        };
        lines()[self.lines_before..].iter().filter(|line| has(line)).count()
    }

    /// The platform's state of the stored refresh token; `None` if no refresh token is stored.
    pub async fn refresh_token_state(&self, resource: &Resource) -> Option<RefreshTokenState> {
        let stored = self.stored(resource).await;
        let token = self.open_current(&stored)?;
        Some(self.market.refresh_token_state(token.expose()))
    }
}

/// Every line that the processes of all stories have logged. The processes of all stories run in the process of this
/// test.
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

/// Waits until a condition holds that another part of the story brings about.
///
/// # Panics
/// If the condition does not hold within half a minute.
pub async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(30), waiting).await.is_ok(), "never: {what}");
}

/// The platform's name for the holder of a grant of this resource.
pub fn grantee(resource: &Resource) -> Grantee {
    match resource.kind() {
        Kind::Location => Grantee::Location(resource.id().to_owned()),
        Kind::Company => Grantee::Company(resource.id().to_owned()),
    }
}

/// A location of the story.
///
/// # Panics
/// If `id` is not a valid id.
pub fn location(id: &str) -> Resource {
    Resource::location(id).expect("an id")
}
