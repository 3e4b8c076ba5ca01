//! The world of a story: the platform, the table, the secrets, the queue, and any number of processes in it.
//!
//! All processes share a clock that stands still until the story moves it; the platform's moves with it. Time that a
//! story waits for in earnest is only that of a connection.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use aws_config::Region;
use aws_sdk_dynamodb::config::Credentials;
use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;
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
use shared::domain::access::Access;
use shared::domain::clock::{Clock, Millis};
use shared::domain::grant::Grant;
use shared::domain::installation::{Installation, SealedPair, StandbyPair};
use shared::domain::qualifier::GatewayAlias;
use shared::domain::redacted::Redacted;
use shared::domain::resource::{Kind, Resource};
use shared::domain::status::{Status, TokenVersion};
use shared::lambda::serve::{HttpFunction, answer_http};

use shared::seal::pair::{Slot, place};
use shared::seal::{DataKeys, Sealer};
use shared::table::{Item, Table};

use crate::dynamo::{self, Engine};
use crate::proxy::{Proxy, Upstreams};
use crate::redaction::Search;

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
    let answer = answer_http(&GatewayAlias::default(), function, event).await;
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
        self.stored(resource).await.status
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

    /// Every item of the table.
    ///
    /// # Panics
    /// If the table cannot be read.
    pub async fn items(&self) -> Vec<Item> {
        let scan =
            self.table.client.scan().table_name(&*self.table.name).consistent_read(true).into_paginator().items();
        scan.send().collect::<Result<_, _>>().await.expect("the table can be read")
    }

    /// Writes an item as it is.
    ///
    /// # Panics
    /// If the table cannot be written.
    pub async fn put(&self, item: Item) {
        let put = self.table.client.put_item().table_name(&*self.table.name).set_item(Some(item));
        put.send().await.expect("the table can be written");
    }

    /// Deletes an item.
    ///
    /// # Panics
    /// If the table cannot be written.
    pub async fn delete(&self, key: &str) {
        let delete = self.table.client.delete_item().table_name(&*self.table.name);
        delete.key("pk", AttributeValue::S(key.to_owned())).send().await.expect("the table can be written");
    }

    /// The refresh token of one of an installation's pairs.
    ///
    /// # Panics
    /// If it does not open.
    #[must_use]
    pub fn open(&self, stored: &Installation, slot: Slot, pair: &SealedPair) -> Option<Redacted> {
        let keys = DataKeys::parse(&self.secrets.get(SEALING_SECRET).expect("a sealing secret")).expect("keys");
        let sealer = Sealer::new(self.table.name.clone(), Arc::new(keys));
        let item = stored.key();
        let refresh = pair.refresh.as_ref()?;
        Some(sealer.open(place(&item, stored.version, slot.refresh()), refresh).expect("it opens"))
    }

    /// The refresh token of a standby pair.
    ///
    /// # Panics
    /// If it has none, or does not open.
    #[must_use]
    pub fn open_standby(&self, stored: &Installation, standby: &StandbyPair) -> Redacted {
        let version = TokenVersion { generation: standby.generation, ..stored.version };
        let sealed_under = Installation { version, ..stored.clone() };
        self.open(&sealed_under, Slot::Standby, &standby.pair).expect("a refresh token")
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

    /// Ends a story: what every story must leave behind, whatever happened in it.
    ///
    /// Faults end and paused locations go on. Then every installation that has a live grant at the platform must be
    /// usable by what the product itself does next: rescued pairs, the schedule, a caller. And no secret stands in
    /// the table or on the queue in the clear.
    ///
    /// # Panics
    /// If that does not hold.
    pub async fn end(self) {
        self.end_without(&[]).await;
    }

    /// [`World::end`], where the story has shown that these grants cannot be held.
    ///
    /// # Panics
    /// If that does not hold, or if one of them is usable after all.
    pub async fn end_without(self, lost: &[&Resource]) {
        self.market.clear_faults();
        let process = self.process().await;
        let failed = self.refresh(&process, self.rescued()).await;
        assert_eq!(failed, json!({ "batchItemFailures": [] }), "every rescued pair finds its place");
        for item in self.items().await {
            // A minted location has no grant of its own; its company's is looked at.
            let Some(resource) = installation_of(&item).filter(|_| !item.contains_key("minted")) else { continue };
            self.market.set_active(grantee(&resource), true);
            let live = !self.market.live_refresh_tokens(&grantee(&resource)).is_empty();
            let usable = self.becomes_usable(&process, &resource).await;
            let expected = live && !lost.contains(&&resource);
            assert_eq!(usable, expected, "{resource}: {:?}", self.stored(&resource).await);
        }
        self.assert_nothing_in_clear().await;
        self.assert_nothing_logged();
    }

    /// How often an alarm was raised about resources whose id begins with `prefix`, since the story began. The stories of a
    /// process share its log, so the prefix must be this story's own.
    #[must_use]
    pub fn alarms(&self, alarm: &str, prefix: &str) -> usize {
        let (alarm, resource) = (format!("\"alarm\":\"{alarm}\""), format!(":{prefix}"));
        let lines = &lines()[self.lines_before..];
        lines.iter().filter(|line| line.contains(&alarm) && line.contains(&resource)).count()
    }

    /// No line that was written since the story began tells a secret of it.
    fn assert_nothing_logged(&self) {
        let secrets = self.market.every_secret();
        let search = Search::for_secrets(&secrets);
        let control = secrets.last().expect("the platform has issued something");
        tracing::info!(target: "shared", control, "the positive control");
        let lines: Vec<String> = lines()[self.lines_before..].to_vec();
        let (of_control, others): (Vec<_>, Vec<_>) =
            lines.iter().partition(|line| line.contains("the positive control"));
        assert!(of_control.iter().any(|line| search.find(line).is_some()), "the search finds what is written");
        let found = others.iter().find_map(|line| Some((search.find(line)?, line)));
        assert!(found.is_none(), "a secret is in the log: {found:?}");
    }

    async fn becomes_usable(&self, process: &Process, resource: &Resource) -> bool {
        // Three times a minute: whoever held a lease has lost it, and every forced refresh is a minute old.
        for _ in 0..3 {
            self.refresh(process, json!({})).await;
            self.refresh(process, json!({ "resource": resource, "force": true })).await;
            let access = process.tokens.access(resource, self.deadline()).await;
            if self.works(access.ok().as_ref()) && self.standing(resource).await == Some(Standing::Live) {
                return true;
            }
            self.advance(Duration::from_secs(16));
        }
        false
    }

    fn works(&self, access: Option<&Access>) -> bool {
        access.is_some_and(|access| self.market.takes_access_token(access.token.expose()))
    }

    async fn assert_nothing_in_clear(&self) {
        let mut texts = self.texts().await;
        texts.extend(self.queue.messages().into_iter().map(|message| message.body.into_bytes()));
        for secret in self.market.every_secret() {
            let found = texts.iter().find(|text| holds(text, secret.as_bytes()));
            assert!(found.is_none(), "a secret is in the clear: {:?}", found.map(|text| String::from_utf8_lossy(text)));
        }
    }

    /// Whether some secret of the platform stands in the table in the clear: the positive control of the search.
    pub async fn tells(&self, secret: &str) -> bool {
        self.texts().await.iter().any(|text| holds(text, secret.as_bytes()))
    }

    /// Every text and every string of bytes in the table.
    async fn texts(&self) -> Vec<Vec<u8>> {
        let mut texts = Vec::new();
        for item in self.items().await {
            for value in item.values() {
                collect(value, &mut texts);
            }
        }
        texts
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

fn installation_of(item: &Item) -> Option<Resource> {
    let (kind, id) = item.get("pk")?.as_s().ok()?.strip_prefix("installation#")?.split_once('#')?;
    Resource::new(if kind == "company" { Kind::Company } else { Kind::Location }, id).ok()
}

/// Every text and every string of bytes of a value.
fn collect(value: &AttributeValue, texts: &mut Vec<Vec<u8>>) {
    match value {
        AttributeValue::S(text) => texts.push(text.clone().into_bytes()),
        AttributeValue::B(bytes) => texts.push(bytes.as_ref().to_vec()),
        AttributeValue::Ss(all) => texts.extend(all.iter().map(|text| text.clone().into_bytes())),
        AttributeValue::Bs(all) => texts.extend(all.iter().map(Blob::as_ref).map(<[u8]>::to_vec)),
        AttributeValue::L(values) => values.iter().for_each(|value| collect(value, texts)),
        AttributeValue::M(values) => values.values().for_each(|value| collect(value, texts)),
        _ => {}
    }
}

fn holds(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}
