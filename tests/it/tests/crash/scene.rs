//! The scene of a story: a platform, a table, secrets, a queue, and processes that can be killed or frozen one by one.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use aws_config::{BehaviorVersion, Region};
use aws_sdk_dynamodb::config::Credentials;
use aws_sdk_dynamodb::types::AttributeValue;
use it::outside::bootstrap;
use it::proxy::{Proxy, Upstreams};
use it::redaction::Search;
use sandbox::events::EventBus;
use sandbox::marketplace::grants::{Resource as Grantee, Rotation};
use sandbox::marketplace::{Options as Platform, TokenRequest};
use sandbox::process::{Program, REGION, Signal, Worker, WorkerSpec};
use sandbox::runtime_api::{FunctionError, Invocation};
use sandbox::whole::{CALLBACK_PATH, CALLER_ALIAS, Options, Programs, Sandbox, TABLE, scheduled_event};
use serde_json::{Value, json};
use shared::app::App;
use shared::config::{self, AppConfig};
use shared::domain::clock::Millis;
use shared::domain::installation::Installation;
use shared::domain::resource::Resource;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::JoinHandle;

/// Longest time that a test waits for anything. Only a failing test waits so long, so it is generous.
pub(crate) const PATIENCE: Duration = Duration::from_mins(2);
/// The location that every story uses.
const LOCATION: &str = "HLlocation000000001";

/// The limit of stories that run at the same time in this process. A story holds a turn except while it waits for the
/// end of a lease. With more stories the functions would run into their time-outs on a busy machine.
static TURNS: Semaphore = Semaphore::const_new(4);

/// The result of an invocation.
pub(crate) type Answered = Result<Value, FunctionError>;

/// The scene of one story. Dropping it ends all of its parts.
pub(crate) struct Scene {
    /// All parts except the functions.
    pub(crate) sandbox: Sandbox,
    /// The process that installs the app and reads the table. No story kills or freezes it.
    hand: App,
    _way_of_hand: Proxy,
    turn: Mutex<Option<SemaphorePermit<'static>>>,
}

/// The process of a function, and the proxy between that process and AWS.
pub(crate) struct Process {
    pub(crate) worker: Worker,
    pub(crate) proxy: Proxy,
}

impl Scene {
    /// Starts everything except the functions. The app is installed and its access token has expired.
    pub(crate) async fn set(rotation: Rotation) -> Self {
        let turn = Mutex::new(Some(TURNS.acquire().await.expect("open")));
        let options = Options {
            programs: Programs::None,
            refresh_every: None,
            marketplace: Platform { rotation, ..Platform::default() },
            // As in `template.yaml`. The refresh function requests a shorter time-out for a message that must come
            // again earlier.
            visibility: Duration::from_secs(90),
            ..Options::default()
        };
        let sandbox = Sandbox::start(options, EventBus::default()).await.expect("the sandbox starts");
        let way = way(&sandbox).await;
        let config = config::read(&|name| sandbox.environment().get(name).cloned(), AppConfig::read);
        let aws = aws_config::defaults(BehaviorVersion::latest())
            .region(Region::from_static(REGION))
            .credentials_provider(Credentials::new("sandbox", "sandbox", None, None, "sandbox"))
            .endpoint_url(way.url())
            .http_client(shared::http_client::aws())
            .load()
            .await;
        let hand = App::build(config.expect("a configuration"), &aws, shared::domain::clock::Clock::system());
        let scene = Self { sandbox, hand: hand.expect("an app"), _way_of_hand: way, turn };
        scene.install().await;
        scene.expire().await;
        scene
    }

    /// The grant that the platform gives after a human's consent.
    pub(crate) async fn install(&self) {
        let started = self.hand.clock.now();
        let code = self.sandbox.marketplace.authorize(grantee());
        let redirect = format!("{}{CALLBACK_PATH}", self.home());
        let grant = self.hand.codes.exchange(&code.into(), &redirect, self.hand.clock.now()).await.expect("a grant");
        self.hand.installations.install(&grant, started, &self.home()).await.expect("installed");
    }

    /// Base URL of the pages, for links to install the app again.
    pub(crate) fn home(&self) -> String {
        self.sandbox.gateway.url()
    }

    /// Expires every access token at the platform and in the table, and makes the installation due.
    pub(crate) async fn expire(&self) {
        self.sandbox.marketplace.expire_access_tokens();
        let update = self.sandbox.dynamo.client().update_item().table_name(TABLE);
        let past = AttributeValue::N((now().0 - 1_000).to_string());
        let key = AttributeValue::S(format!("installation#location#{LOCATION}"));
        let update = update.key("pk", key).update_expression("SET access_expires_at = :past, due_at = :past");
        update.expression_attribute_values(":past", past).send().await.expect("the table can be written");
    }

    /// Starts a process of a function. A process with a function name of its own can be invoked separately from others.
    pub(crate) async fn start(&self, bootstrap_of: &str, function: &str) -> Process {
        let process = self.begin(bootstrap_of, function, function).await;
        self.has_started(function, 1).await;
        process
    }

    /// Begins to start a process, and does not wait until the process asks for work.
    pub(crate) async fn begin(&self, bootstrap_of: &str, function: &str, name: &str) -> Process {
        self.begin_with(bootstrap_of, function, name, &[]).await
    }

    /// Begins to start a process with further environment variables.
    pub(crate) async fn begin_with(
        &self,
        bootstrap_of: &str,
        function: &str,
        name: &str,
        further: &[(&str, String)],
    ) -> Process {
        let proxy = way(&self.sandbox).await;
        let mut environment = self.sandbox.environment().clone();
        environment.extend(further.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        for service in ["DYNAMODB", "SECRETS_MANAGER", "SQS", "EVENTBRIDGE"] {
            environment.insert(format!("AWS_ENDPOINT_URL_{service}"), proxy.url());
        }
        let spec = WorkerSpec {
            function: function.to_owned(),
            worker: name.to_owned(),
            program: Program::Path(bootstrap(bootstrap_of)),
            environment,
            restart: false,
        };
        let worker = Worker::start(spec, self.sandbox.worker_context()).expect("the function starts");
        Process { worker, proxy }
    }

    /// Waits until the processes of a function have asked for work `polls` times.
    pub(crate) async fn has_started(&self, function: &str, polls: u64) {
        let asked = until(|| async { self.sandbox.runtime.polls(function) >= polls }).await;
        assert!(asked, "{function} does not ask for work: {:?}", self.sandbox.logs.lines());
    }

    /// Begins an invocation: the schedule's event for `refresh`, a relayed call for `relay`. The invocation lasts long
    /// enough for an answer from a process that is frozen for the duration of a lease.
    pub(crate) fn invoke(&self, bootstrap_of: &str, function: &str) -> JoinHandle<Answered> {
        self.invoke_for(bootstrap_of, function, Duration::from_secs(85))
    }

    /// Begins a relayed POST that creates a contact.
    pub(crate) fn post(&self, function: &str) -> JoinHandle<Answered> {
        let (runtime, function) = (self.sandbox.runtime.clone(), function.to_owned());
        let event = json!({ "resource": { "location": LOCATION }, "method": "POST", "path": "/contacts/",
            "body": { "firstName": "Once" } });
        let invocation = Invocation { qualifier: Some(CALLER_ALIAS.to_owned()), ..Invocation::default() };
        tokio::spawn(async move { runtime.invoke_json(&function, &event, invocation).await })
    }

    fn invoke_for(&self, bootstrap_of: &str, function: &str, timeout: Duration) -> JoinHandle<Answered> {
        let (runtime, function) = (self.sandbox.runtime.clone(), function.to_owned());
        let call = json!({ "resource": { "location": LOCATION }, "method": "GET", "path": "/contacts/" });
        let event = if bootstrap_of == "refresh" { scheduled_event() } else { call };
        let qualifier = (bootstrap_of == "relay").then(|| CALLER_ALIAS.to_owned());
        let invocation = Invocation { qualifier, timeout, ..Invocation::default() };
        tokio::spawn(async move { runtime.invoke_json(&function, &event, invocation).await })
    }

    /// Invokes `refresh` as the schedule does.
    pub(crate) async fn tick(&self) -> Value {
        self.invoke("refresh", "refresh").await.expect("no panic").expect("an answer")
    }

    /// Invokes `refresh` as an operator does, by force.
    pub(crate) async fn refresh_by_force(&self) -> Value {
        let event = json!({ "resource": { "location": LOCATION }, "force": true });
        let answer = self.sandbox.runtime.invoke_json("refresh", &event, Invocation::default()).await;
        answer.expect("an answer")
    }

    /// Makes a relayed call. Returns the status and, if the relay itself made the answer, its problem.
    pub(crate) async fn call(&self) -> (u64, Value) {
        direct_answer(&self.invoke_for("relay", "relay", Duration::from_secs(30)).await.expect("no panic"))
    }

    /// The status of the installation according to the status route.
    pub(crate) async fn status(&self) -> String {
        let url = format!("{}/relay/locations/{LOCATION}", self.home());
        let request = reqwest::Client::new().get(url).bearer_auth(&self.sandbox.caller_key);
        let answer = request.send().await.expect("an answer").bytes().await.expect("a body");
        let answer: Value = serde_json::from_slice(&answer).expect("JSON");
        answer["status"].as_str().unwrap_or_else(|| panic!("a status: {answer}")).to_owned()
    }

    /// The installation as it is stored in the table.
    pub(crate) async fn stored(&self) -> Installation {
        let location = Resource::location(LOCATION).expect("an id");
        self.hand.table.installation(&location).await.expect("a table").expect("an installation")
    }

    /// Every presentation of a refresh token, oldest first.
    pub(crate) fn presented(&self) -> Vec<TokenRequest> {
        let requests = self.sandbox.marketplace.token_requests();
        requests.into_iter().filter(|request| request.grant == "refresh_token").collect()
    }

    /// Waits until the platform has seen `count` presentations.
    pub(crate) async fn has_presented(&self, count: usize) {
        assert!(until(|| async { self.presented().len() >= count }).await, "nothing is presented");
    }

    /// Waits until the lease in the table has expired. Other stories have their turn meanwhile.
    pub(crate) async fn lease_is_over(&self) {
        if let Some(end) = self.stored().await.lease().map(|lease| lease.ends_at) {
            drop(self.turn.lock().expect("no panic").take());
            tokio::time::sleep(end.since(now()) + Duration::from_millis(1)).await;
            let turn = TURNS.acquire().await.expect("open");
            *self.turn.lock().expect("no panic") = Some(turn);
        }
    }

    /// Asserts that both tokens of the stored pair work. This must hold wherever the platform left a live grant.
    pub(crate) async fn assert_usable(&self) {
        assert_eq!(self.status().await, "Active");
        let before = self.presented().len();
        assert_eq!(self.call().await, (200, Value::Null), "the access token works");
        self.expire().await;
        assert_eq!(self.call().await, (200, Value::Null), "the refresh token works");
        let presented = self.presented();
        let outcomes: Vec<_> = presented[before..].iter().map(|request| request.outcome.as_str()).collect();
        assert_eq!(outcomes, ["granted"], "and is all that is presented");
    }

    /// The number of log lines of all processes in which a member has this value.
    pub(crate) fn logged(&self, member: &str, value: &str) -> usize {
        let has = |line: &str| serde_json::from_str::<Value>(line).is_ok_and(|line| has(&line, member, value));
        self.sandbox.logs.lines().iter().filter(|line| has(&line.line)).count()
    }

    /// Ends a story, and asserts that no log line contains a secret.
    pub(crate) fn end(self) {
        let mut secrets = self.sandbox.marketplace.every_secret();
        secrets.push(self.sandbox.caller_key.clone());
        let search = Search::for_secrets(&secrets);
        let lines = self.sandbox.logs.lines();
        let found = lines.iter().find_map(|line| Some((search.find(&line.line)?, &line.line)));
        assert!(found.is_none(), "a secret is in a log: {found:?}");
        let control = format!("a line that tells {}", secrets.last().expect("a key"));
        assert!(search.find(&control).is_some(), "the search finds what is there");
    }
}

/// Returns true if the log line contains this member, at any depth, since the subscriber may nest its fields.
fn has(line: &Value, member: &str, value: &str) -> bool {
    line.as_object().is_some_and(|members| {
        members.iter().any(|(name, found)| name == member && found == value || has(found, member, value))
    })
}

impl Process {
    /// Kills the process.
    pub(crate) async fn is_killed(&self) {
        assert!(self.worker.signal(Signal::Kill).await, "it is killed");
        assert!(until(|| async { self.worker.pid().is_none() }).await, "it is gone");
    }

    /// Kills the process, so that its invocation ends without an answer.
    pub(crate) async fn dies(&self, invocation: JoinHandle<Answered>) {
        self.is_killed().await;
        let answered = invocation.await.expect("no panic");
        assert!(matches!(answered, Err(FunctionError::Exited(_))), "it died before it could answer: {answered:?}");
    }

    /// Freezes the process.
    pub(crate) async fn freezes(&self) {
        assert!(self.worker.signal(Signal::Stop).await, "it is stopped");
    }

    /// Lets the frozen process run again.
    pub(crate) async fn thaws(&self) {
        assert!(self.worker.signal(Signal::Continue).await, "it goes on");
    }
}

/// The status and, if the relay itself made the answer, the problem of a direct answer.
pub(crate) fn direct_answer(answered: &Answered) -> (u64, Value) {
    let answer = answered.as_ref().expect("an answer");
    let problem = if answer["source"] == "relay" { answer["body"].clone() } else { Value::Null };
    (answer["status"].as_u64().expect("a status"), problem)
}

async fn way(sandbox: &Sandbox) -> Proxy {
    let upstreams = Upstreams {
        dynamodb: sandbox.dynamo.url().to_owned(),
        secrets: sandbox.secrets.url(),
        queue: sandbox.queue.endpoint(),
        events: sandbox.event_bridge.url(),
    };
    Proxy::start(upstreams).await.expect("a proxy")
}

/// The platform's name for the holder of the location's grant.
pub(crate) fn grantee() -> Grantee {
    Grantee::Location(LOCATION.to_owned())
}

/// The time on the machine's clock.
pub(crate) fn now() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    Millis(i64::try_from(since.as_millis()).expect("before the year 292 million"))
}

/// Waits for a condition, at most for [`PATIENCE`]. Returns true if the condition came to hold.
pub(crate) async fn until<F: Future<Output = bool>>(mut condition: impl FnMut() -> F) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        if Instant::now() > deadline {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    true
}

/// The name of a story, and the story.
pub(crate) type Story<T> = (String, Pin<Box<dyn Future<Output = T> + Send>>);

/// Runs stories at the same time, so that they wait for the end of their leases together.
pub(crate) async fn together<T: Send + 'static>(stories: Vec<Story<T>>) -> BTreeMap<String, T> {
    let running: Vec<_> = stories.into_iter().map(|(name, story)| (name, tokio::spawn(story))).collect();
    let (mut ended, mut failed) = (BTreeMap::new(), Vec::new());
    for (name, story) in running {
        match story.await {
            Ok(outcome) => drop(ended.insert(name, outcome)),
            Err(error) => failed.push(format!("{name}: {error}")),
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
    ended
}
