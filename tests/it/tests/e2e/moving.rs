//! Installations move in from another system, are used, and move out again. No two systems ever use the same refresh
//! token, and the platform refuses none.

use std::collections::{BTreeMap, HashMap};
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use it::outside::{Setup, System, company, location};
use sandbox::dynamo::create_table;
use sandbox::marketplace::grants::Resource;
use sandbox::whole::{TABLE, scheduled_event};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::operator::{Said, done, ops, ops_in, program};

/// The number of locations that move.
const LOCATIONS: usize = 100;

/// Another system with the same app: it holds pairs and renews them itself.
struct OtherSystem {
    token_url: String,
    client: (String, String),
    http: reqwest::Client,
    /// The token endpoint's last answer for each resource.
    held: Mutex<BTreeMap<Resource, Value>>,
}

impl OtherSystem {
    fn new(system: &System) -> Self {
        let options = system.sandbox.marketplace.options();
        Self {
            token_url: format!("{}/oauth/token", system.sandbox.marketplace.url().trim_end_matches('/')),
            client: (options.client_id, options.client_secret),
            http: reqwest::Client::new(),
            held: Mutex::default(),
        }
    }

    fn held(&self) -> std::sync::MutexGuard<'_, BTreeMap<Resource, Value>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn token(&self, resource: &Resource, grant: &str, name: &str, secret: &str) {
        let (id, key) = &self.client;
        let form = [("client_id", &**id), ("client_secret", key), ("grant_type", grant), (name, secret)];
        let body: String = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
        let request = self.http.post(&self.token_url).header("content-type", "application/x-www-form-urlencoded");
        let answer = request.body(body).send().await.expect("an answer");
        assert_eq!(answer.status(), 200, "{grant} of {resource}");
        let mut answer: Value = serde_json::from_slice(&answer.bytes().await.expect("a body")).expect("JSON");
        let life = answer["expires_in"].as_i64().expect("a life");
        answer["expire_at"] = json!(shared::domain::clock::Clock::system().now().0 + life * 1_000);
        self.held().insert(resource.clone(), answer);
    }

    async fn install(&self, system: &System, resource: &Resource) {
        let code = system.sandbox.marketplace.authorize(resource.clone());
        self.token(resource, "authorization_code", "code", &code).await;
    }

    /// Renews every pair once.
    async fn renew_all(&self) {
        let tokens: Vec<_> =
            self.held().iter().map(|(resource, pair)| (resource.clone(), pair["refresh_token"].clone())).collect();
        for (resource, token) in tokens {
            self.token(&resource, "refresh_token", "refresh_token", token.as_str().expect("a token")).await;
        }
    }

    /// The official SDK's documents, as mongoexport prints them.
    fn documents(&self) -> String {
        let (app, _) = self.client.0.split_once('-').unwrap_or((&self.client.0, ""));
        let document = |(resource, pair): (&Resource, &Value)| {
            let mut document = pair.clone();
            document["_id"] = json!({ "$oid": "6650a1b2c3d4e5f601234567" });
            document["applicationId"] = json!(app);
            document["resourceId"] = json!(resource.id());
            document["expire_at"] = json!({ "$numberLong": pair["expire_at"].to_string() });
            document["createdAt"] = json!({ "$date": "2026-01-02T03:04:05.678Z" });
            document.to_string()
        };
        self.held().iter().map(document).collect::<Vec<_>>().join("\n")
    }
}

/// A file of this test, which is removed at the end.
struct File(PathBuf);

impl File {
    fn of(name: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("hoopai-relay-{}-{name}", std::process::id()));
        std::fs::write(&path, text).expect("a file");
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("UTF-8")
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Exports with further arguments, and returns the decrypted text and the text for people.
async fn export(system: &System, further: &[&str]) -> (String, String) {
    let identity = age::x25519::Identity::generate();
    let recipient = identity.to_public().to_string();
    let mut command = Command::new(program());
    let command = command.env_clear().envs(system.operators_environment());
    let command = command.args(["export", "--yes", "--recipient", &recipient]).args(further);
    let done = command.output().await.expect("it runs");
    let said = String::from_utf8(done.stderr).expect("UTF-8");
    assert_eq!(done.status.code(), Some(0), "{said}");
    let text = String::from_utf8_lossy(&done.stdout);
    for secret in system.secrets() {
        assert!(!text.contains(&secret) && !said.contains(&secret), "a secret is in the clear");
    }
    let mut lines = String::new();
    let decryptor = age::Decryptor::new(&*done.stdout).expect("an age file");
    let mut reader = decryptor.decrypt(std::iter::once(&identity as &dyn age::Identity)).expect("for this recipient");
    reader.read_to_string(&mut lines).expect("whole");
    (lines, said)
}

/// The installations of an export by their resource.
fn by_resource(export: &str) -> BTreeMap<String, Value> {
    let mut lines = export.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let count = lines.next().expect("a first line");
    let lines: BTreeMap<_, _> =
        lines.map(|line| (line["resource"].as_str().expect("a resource").to_owned(), line)).collect();
    assert_eq!(count, json!({ "count": lines.len() }));
    lines
}

/// An export is imported by another stack, as in another region: with its own table, sealing key and context. It holds the
/// same installations, and calls with their tokens.
async fn another_stack_takes(system: &mut System, exported: &str, minted: usize) {
    const NAME: &str = "another-stack";
    let key = "k".repeat(40);
    system.tell(&key);
    system.sandbox.secrets.put("another-sealing", json!({ "current": "k1", "k1": key }).to_string());
    create_table(&system.sandbox.dynamo.client(), NAME).await.expect("a table");
    let own = [("TABLE_NAME", NAME), ("SEALING_CONTEXT", NAME), ("SEALING_SECRET_ID", "another-sealing")];
    let mut environment = system.operators_environment();
    environment.extend(own.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let lines = by_resource(exported);
    let file = File::of("exported.json", exported);
    let ops = async |arguments: &[&str]| {
        let said = ops_in(system, environment.clone(), arguments).await;
        assert_eq!(said.code, 0, "{arguments:?}: {said:?}");
        said.json()
    };
    let imported = ops(&["--json", "import", file.path()]).await;
    assert_eq!((counts(&imported), &imported["without_token"]), ([lines.len(), 0, 0, 0], &json!(minted)));
    let listed = ops(&["--json", "list"]).await;
    assert_eq!(listed["installations"].as_array().map(Vec::len), Some(lines.len()), "{listed}");
    let (renewals, counted) = (system.refreshes(), counters(system, TABLE).await);
    system.start_apart("relay", "relay-of-another", &own).await;
    for line in lines.values() {
        let (kind, id) = line["resource"].as_str().and_then(|name| name.split_once(':')).expect("a resource");
        let event = json!({ "resource": { kind: id }, "method": "GET", "path": "/echo" });
        let answer = system.invoke_as("relay-of-another", event.to_string(), None).await;
        assert_eq!(answer["status"], 200, "{id}: {answer}");
    }
    assert_eq!(system.refreshes(), renewals, "the imported access tokens are used");
    assert_eq!(counters(system, TABLE).await, counted, "the other stack counts in its own table");
    assert_eq!(counters(system, NAME).await.len(), lines.len());
}

/// The counters of the limits in a table.
async fn counters(system: &System, table: &str) -> Vec<HashMap<String, AttributeValue>> {
    let found = system.sandbox.dynamo.client().scan().table_name(table).send().await.expect("read");
    let is_counter =
        |item: &HashMap<String, AttributeValue>| item["pk"].as_s().is_ok_and(|key| key.starts_with("quota#"));
    let mut counters: Vec<_> = found.items().iter().filter(|item| is_counter(item)).cloned().collect();
    counters.sort_by_key(|item| item["pk"].as_s().cloned().ok());
    counters
}

/// The refusals of refresh tokens by the platform.
fn refusals(system: &System) -> Vec<(Option<Resource>, String)> {
    let requests = system.sandbox.marketplace.token_requests().into_iter();
    let refused = requests.filter(|request| request.grant == "refresh_token" && request.outcome != "granted");
    refused.map(|request| (request.resource, request.outcome)).collect()
}

/// The members of an import's answer: stored, same, imported before, kept.
fn counts(imported: &Value) -> [usize; 4] {
    ["stored", "same", "imported_before", "kept"].map(|name| {
        let count = imported[name].as_u64().unwrap_or_else(|| panic!("{name}: {imported}"));
        usize::try_from(count).expect("a small number")
    })
}

/// Imports of spent and of unknown tokens after `renewed` installations were renewed here, `first` among them.
async fn late_imports_replace_nothing(system: &System, other: &OtherSystem, first: &Resource, renewed: usize) {
    // The times of a file may be wrong. The imported tokens are spent, whatever their times say.
    let later = shared::domain::clock::Clock::system().now().0 + 86_400_000;
    other.held().values_mut().for_each(|pair| pair["expire_at"] = json!(later));
    let wrong = File::of("wrong-times.json", &other.documents());
    let late_import = done(system, &["import", wrong.path(), "--format", "sdk"]).await;
    assert_eq!(counts(&late_import), [0, 0, renewed, 0]);
    // A token of which nothing is known.
    let unknown = "a-refresh-token-of-nobody";
    system.tell(unknown);
    let unknown = File::of("unknown.csv", &format!("resource,refresh_token\n{first},{unknown}\n"));
    let kept = ops(system, &["--json", "import", unknown.path()]).await;
    assert_eq!((kept.code, counts(&serde_json::from_str(&kept.out).expect("JSON"))), (4, [0, 0, 0, 1]), "{kept:?}");
    assert_eq!(ops(system, &["import", unknown.path(), "--replace"]).await.code, 4, "not without --yes");
}

/// Refuses exports until renewals are paused and those that were under way have ended.
async fn an_export_waits_for_a_whole_pause(system: &System) {
    let recipient = age::x25519::Identity::generate().to_public().to_string();
    let refused = ops(system, &["export", "--yes", "--recipient", &recipient]).await;
    assert_eq!((refused.code, refused.out.as_str()), (4, ""), "renewals go on: {refused:?}");
    assert!(refused.err.contains("ops pause"), "{refused:?}");
    // A pause that was interrupted, or that another terminal has begun: renewals may be under way.
    let interrupted = tokio::time::timeout(Duration::from_secs(5), ops(system, &["pause"])).await;
    assert!(interrupted.is_err(), "a pause waits for renewals that are under way");
    let refused = ops(system, &["export", "--yes", "--incomplete", "--recipient", &recipient]).await;
    assert_eq!((refused.code, refused.out.as_str()), (4, ""), "{refused:?}");
    assert!(refused.err.contains("a moment ago"), "{refused:?}");
    assert_eq!(done(system, &["pause"]).await["paused"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_installations_move_in_are_used_and_move_out() {
    let mut system = System::start(Setup { relays: 1, locations: LOCATIONS, ..Setup::default() }).await;
    let other = Arc::new(OtherSystem::new(&system));
    // Most locations have a grant of their own. The others depend on the agency's.
    let own: Vec<_> = (1..=LOCATIONS - 4).map(location).collect();
    let minted: Vec<_> = (LOCATIONS - 3..=LOCATIONS).map(location).collect();
    let (late, early) = own.split_last().expect("many");
    let before = early.len() + 1;
    for resource in early.iter().chain([&company()]) {
        other.install(&system, resource).await;
    }

    // The other system renews until the switch. What was read before is only good for a rehearsal.
    let rehearsal = File::of("rehearsal.json", &other.documents());
    let would = done(&system, &["import", rehearsal.path(), "--format", "sdk", "--dry-run"]).await;
    assert_eq!((counts(&would), &would["dry_run"]), ([before, 0, 0, 0], &json!(true)));
    assert_eq!(done(&system, &["list"]).await, json!({ "installations": [] }));
    let (paused, ()) = tokio::join!(done(&system, &["pause"]), other.renew_all());
    assert_eq!(paused["paused"], true);

    // The switch: the other system has stopped.
    let moved = File::of("moved.json", &other.documents());
    let arguments = ["import", moved.path(), "--format", "sdk"];
    let renewing = ops(&system, &[&arguments[..], &["--renew", "60"]].concat()).await;
    assert_eq!(renewing.code, 4, "a pause is noticed before anything is stored: {renewing:?}");
    assert_eq!(done(&system, &["list"]).await, json!({ "installations": [] }));
    assert_eq!(counts(&done(&system, &arguments).await), [before, 0, 0, 0]);
    assert_eq!(counts(&done(&system, &arguments).await), [0, before, 0, 0]);
    // Until the redirect URI has moved, new installs come to the other system.
    other.install(&system, late).await;
    let moved = File::of("moved-again.json", &other.documents());
    let arguments = ["import", moved.path(), "--format", "sdk"];
    assert_eq!(counts(&done(&system, &arguments).await), [1, before, 0, 0]);
    let shown = done(&system, &["show", &own[0].to_string()]).await;
    let granted_at = other.held()[&own[0]]["expire_at"].as_i64().expect("a time") - 86_400_000;
    assert_eq!((&shown["status"], &shown["company"]), (&json!("Active"), &json!(company().id())));
    assert_eq!(shown["installed_at"], json!(shared::domain::clock::Millis(granted_at).rfc3339()));
    let renewals_before = system.refreshes();
    for resource in own.iter().chain(&minted) {
        assert_eq!(system.get(resource, "/echo").await.status, 200, "{resource}");
    }
    // The tick reads the agency's list. The locations keep grants of their own.
    system.refresh(&scheduled_event()).await.expect("a summary");
    assert_eq!(system.refreshes(), renewals_before, "the imported access tokens are good, and nothing is renewed");

    // From now on this system renews. A process notices it after a moment.
    assert_eq!(ops(&system, &["resume"]).await.code, 4);
    assert_eq!(done(&system, &["resume", "--yes"]).await["was_stopped"], "paused");
    let first = own[0].to_string();
    let mut tries = 0;
    while ops(&system, &["refresh", &first]).await.code != 0 {
        tries += 1;
        assert!(tries < 100, "it goes on within 5 s");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let renewed = done(&system, &[&arguments[..], &["--renew", "6000"]].concat()).await;
    assert_eq!(counts(&renewed), [0, before, 1, 0]);
    assert_eq!((&renewed["renewed"], &renewed["not_renewed"]), (&json!(before), &json!(0)), "{renewed}");
    assert_eq!(counts(&done(&system, &arguments).await), [0, 0, before + 1, 0]);
    late_imports_replace_nothing(&system, &other, &own[0], before + 1).await;
    assert_eq!(refusals(&system), []);
    for resource in &own {
        assert_eq!(system.get(resource, "/echo").await.status, 200, "{resource}");
    }

    an_export_waits_for_a_whole_pause(&system).await;
    let (text, _) = export(&system, &[]).await;
    let lines = by_resource(&text);
    assert_eq!(lines.len(), LOCATIONS + 1);
    assert_eq!(lines[&minted[0].to_string()].get("refresh_token"), None);
    another_stack_takes(&mut system, &text, minted.len()).await;

    // Moving out: nothing is renewed here any more, and calls go on.
    let paused = done(&system, &["pause"]).await;
    assert_eq!(paused["paused"], true);
    let doctor = ops(&system, &["--json", "doctor", "--quick"]).await;
    assert!(doctor.code == 5 && doctor.out.contains("ops resume --yes"), "{doctor:?}");
    let (moving, _) = export(&system, &[]).await;
    assert_eq!(by_resource(&moving), lines);
    let renewals_before = system.refreshes();
    for resource in own.iter().chain([&company()]) {
        other.held().insert(resource.clone(), lines[&resource.to_string()].clone());
        system.set_stored(resource, &[("due_at", 1)]).await;
    }
    system.refresh(&scheduled_event()).await.expect("a summary");
    let refused = ops(&system, &["refresh", &own[0].to_string()]).await;
    assert!(refused.code == 1 && refused.err.contains("paused"), "{refused:?}");
    assert_eq!(system.refreshes(), renewals_before, "nothing was renewed after the pause");
    // The platform knows only the app: an uninstall here would end the installation for the new system, too.
    let refused = ops(&system, &["uninstall", &own[0].to_string(), "--yes"]).await;
    assert!(refused.code == 4 && refused.err.contains("--while-paused"), "{refused:?}");
    // A customer installs again before the new system has the redirect URI. The second export has another token for it.
    let again = &own[1];
    system.install(again).await;
    let (second, _) = export(&system, &[]).await;
    let second = by_resource(&second);
    let token = |line: &Value| line["refresh_token"].clone();
    let differing = lines.iter().filter(|(name, line)| token(&second[*name]) != token(line));
    let differing: Vec<_> = differing.map(|(name, _)| name).collect();
    assert_eq!(differing, [&again.to_string()]);
    other.held().insert(again.clone(), second[&again.to_string()].clone());
    other.renew_all().await;
    assert_eq!(refusals(&system), []);
    for resource in &own {
        let live = system.sandbox.marketplace.live_refresh_tokens(resource);
        let held = other.held()[resource]["refresh_token"].as_str().map(str::to_owned);
        assert!(held.is_some_and(|held| live.contains(&held)), "{resource}: the other system holds the valid token");
        assert_eq!(system.get(resource, "/echo").await.status, 200, "{resource}: until the callers have switched, too");
    }
    system.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_file_stores_nothing_and_an_export_needs_a_recipient() {
    let system = System::start(Setup { relays: 0, ..Setup::default() }).await;
    let token = "a-refresh-token-of-the-test";
    system.tell(token);
    let wrong =
        File::of("wrong.csv", &format!("resource,refresh_token\nlocation:L1,{token}\nteam:L2,{token}\nlocation:L3,\n"));
    let said: Said = ops(&system, &["import", wrong.path()]).await;
    assert_eq!((said.code, said.out.as_str()), (2, ""), "{said:?}");
    for line in ["nothing was stored", "line 3: resource is not", "line 4: refresh_token is missing"] {
        assert!(said.err.contains(line), "{line}: {said:?}");
    }
    assert_eq!(done(&system, &["list"]).await, json!({ "installations": [] }));
    assert_eq!(ops(&system, &["import", "/nowhere/at.all"]).await.code, 2);
    assert_eq!(ops(&system, &["export", "--yes"]).await.code, 2);
    let recipient = age::x25519::Identity::generate().to_public().to_string();
    for wrong in ["age1nobody", "AGE-SECRET-KEY-1PASTED"] {
        let said = ops(&system, &["export", "--yes", "--recipient", wrong]).await;
        assert!(said.code == 2 && !said.err.contains(wrong), "{said:?}");
    }
    assert_eq!(ops(&system, &["export", "--recipient", &recipient]).await.code, 4);
    system.sandbox.queue.send("{}");
    let full = ops(&system, &["export", "--yes", "--recipient", &recipient]).await;
    assert_eq!((full.code, full.out.as_str()), (4, ""), "{full:?}");
    let right = File::of("right.csv", &format!("resource,refresh_token\nlocation:L1,{token}\n"));
    let full = ops(&system, &["import", right.path()]).await;
    assert_eq!((full.code, full.out.as_str()), (4, ""), "{full:?}");
    assert_eq!(done(&system, &["list"]).await, json!({ "installations": [] }));
    system.sandbox.queue.purge();
    system.end().await;
}
