//! Stored formats: every kind of item that a released version has written must be read by all later versions.
//!
//! `tests/it/data/items/VERSION.json` holds the items of a version, as that version wrote them: 0.2.0 is the first. A file
//! never changes after its release. A new version whose items differ gets a file of its own, named after the version in
//! Cargo.toml:
//!
//! ```sh
//! GOLDEN_ITEMS=$PWD/tests/it/data/items/0.3.0.json cargo test --workspace --test lifecycle golden
//! ```

use std::path::{Path, PathBuf};
use std::time::Duration;

use engines::{Engine, Kind};
use sandbox::dynamo::{client, create_table};
use serde_json::{Value, json};
use shared::domain::api_version::{ApiVersion, OwnCall};
use shared::domain::clock::{Clock, Millis};
use shared::domain::event::{Event, Name};
use shared::domain::installation::{AppDetails, Installation, StandbyPair};
use shared::domain::limits::Limits;
use shared::domain::pace::{LearntLimit, Pace, Priority};
use shared::domain::redacted::Redacted;
use shared::domain::resource::{Kind as ResourceKind, Resource};
use shared::domain::status::{LeaseOwner, Status, TokenVersion};
use shared::limiter::{Limiter, ShareOwner};
use shared::platform::company_api::ListPosition;
use shared::seal::pair::{Pair, PairRole, place};
use shared::seal::{Binding, DataKeys, Field, Sealer};
use shared::table::app::{BreakerReason, OpenBreaker};
use shared::table::company::{ListReading, Note};
use shared::table::idempotency::{CallId, CallOutcome, CallProgress, Intent, RecordedRequest};
use shared::table::installation::{Claim, Finding, Import, NewInstallation, Release, Renewal};
use shared::table::mark_budget::MarkBudget;
use shared::table::minted::{InstallNotice, MintSource};
use shared::table::reconciliation::{Comparison, Difference, ListedPage};
use shared::table::redirect::{Ending, Progress as RedirectProgress, RedirectArrival, RedirectId};
use shared::table::search::SearchReason;
use shared::table::turns::Pattern;
use shared::table::webhook::{IdempotencyKey, Progress};
use shared::table::{Table, Write};

const NOW: Millis = Millis(1_795_000_000_000);
const DAY: Duration = Duration::from_hours(24);
const TABLE: &str = "golden";
const LIMITS: Limits = Limits { burst: 100, interval: Duration::from_secs(10), daily: 200_000 };

fn sealer_bound(binding: Binding) -> Sealer {
    let keys = DataKeys::parse(r#"{"current":"k1","k1":"0123456789abcdef0123456789abcdef"}"#).expect("well formed");
    Sealer::new(binding, keys.into())
}

fn sealer() -> Sealer {
    sealer_bound(Binding::new("golden-stack", TABLE))
}

fn owner(name: &str) -> LeaseOwner {
    LeaseOwner::from(name.to_owned())
}

fn location(id: &str) -> Resource {
    Resource::location(id).expect("an id")
}

fn company() -> Resource {
    Resource::company("C1").expect("an id")
}

fn pair(number: u32) -> Pair {
    let refresh = Some(format!("refresh-{number}").into());
    Pair { access: format!("access-{number}").into(), refresh, issued_at: NOW, expires_at: NOW + DAY }
}

/// A table in an engine, with requests in `DynamoDB`'s own JSON.
struct Store {
    _engine: Engine,
    url: String,
    table: Table,
}

impl Store {
    async fn new() -> Self {
        let engine = Engine::start(Kind::Embedded, "golden").await.expect("the embedded engine is always there");
        let (url, client) = (engine.url(), client(&engine.url()));
        create_table(&client, TABLE).await.expect("a table");
        Self { _engine: engine, url, table: Table { client, name: TABLE.into() } }
    }

    async fn send(&self, operation: &str, body: &Value) -> Value {
        let request = reqwest::Client::new().post(&self.url).header("content-type", "application/x-amz-json-1.0");
        let request = request.header("x-amz-target", format!("DynamoDB_20120810.{operation}")).body(body.to_string());
        let scope = "sandbox/20261128/us-east-1/dynamodb/aws4_request";
        let authorization = format!("AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=0");
        let request = request.header("authorization", authorization).header("x-amz-date", "20261128T000000Z");
        let answer = request.send().await.expect("an answer");
        let (status, body) = (answer.status(), answer.bytes().await.expect("a body"));
        assert_eq!(status, 200, "{operation}: {}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).expect("JSON")
    }

    fn limiter(&self) -> Limiter {
        Limiter::new(self.table.clone(), Clock::manual(NOW), LIMITS)
    }
}

async fn install(table: &Table, resource: &Resource, number: u32) -> Installation {
    let by = owner(&format!("installer-{number}"));
    let details = AppDetails { version_id: Some("V1".to_owned()), version_at: Some(NOW), ..AppDetails::default() };
    let new = NewInstallation {
        resource,
        owner: &by,
        installed_at: NOW,
        due_at: NOW + DAY,
        company: Some("C1"),
        home: Some("https://relay.example.com"),
        scope: Some("contacts.readonly"),
        details: Some(&details),
        now: NOW,
    };
    let first = TokenVersion { epoch: 1, generation: 1 };
    // The agency's pair is bound to the name of the table, as without a sealing context.
    let sealer = if *resource == company() { sealer_bound(Binding::to_table(TABLE)) } else { sealer() };
    let sealed = pair(number).seal(&sealer, resource, first, PairRole::Current);
    let event = Event { name: Name::Installed, at: NOW, epoch: 1 };
    let stored = applied(table.install(&new, None, &sealed, Some(event)).await.expect("a table"));
    assert_eq!(stored.version, first);
    *stored
}

fn applied<T>(write: Write<T>) -> T {
    match write {
        Write::Applied(item) => item,
        Write::Conflict(_) | Write::NotFound => panic!("the write is not applied"),
    }
}

fn claim<'a>(stored: &'a Installation, by: &'a LeaseOwner, minting: bool) -> Claim<'a> {
    let (resource, version) = (&stored.resource, stored.version);
    let lease_ends_at = NOW + Duration::from_secs(15);
    Claim {
        resource,
        version,
        owner: by,
        now: NOW,
        lease_ends_at,
        given_up_too: false,
        forced_before: None,
        doubted: false,
        minting,
    }
}

/// Writes an item of every kind, as this version does.
async fn write_all(store: &Store) {
    let table = &store.table;
    write_installations(table).await;
    table.list_company("C1", NOW).await.expect("a table");
    table.note_task("C1", Note::Installing(NOW), NOW).await.expect("a table");
    let reading = ListReading { since: NOW, pages: 1, position: ListPosition::After("token".to_owned()) };
    table.set_locations_read("C1", Some(&reading), NOW).await.expect("a table");
    let page = ListedPage { installed: vec![location("L1"), location("L2")], new: vec![location("L2")] };
    table.keep_listed_page("C1", 0, &page, NOW).await.expect("a table");
    let not_stored = Difference::of([&location("L2")]);
    let comparison = Comparison { at: NOW, listed: 2, not_stored, not_listed: Difference::default() };
    table.record_comparison("C1", &comparison).await.expect("a table");
    let open = OpenBreaker { reason: BreakerReason::WrongClient, until: NOW + DAY, fingerprint: Some("f1".to_owned()) };
    table.open_breaker(&open).await.expect("a table");
    table.pause(NOW).await.expect("a table");
    applied(table.reserve_mark(&MarkBudget::default(), &owner("marker"), NOW).await.expect("a table"));
    applied(table.write_pace(&pace()).await.expect("a table"));
    table.remember_api_version(OwnCall::Mint, ApiVersion::V3).await.expect("a table");
    assert!(table.raise_alarm("unseal", NOW, DAY).await.expect("a table"));
    applied(table.claim_webhook(&IdempotencyKey::Id("W1".to_owned()), &owner("hook"), NOW).await.expect("a table"));
    table.set_webhook_done(&IdempotencyKey::Bytes("00ff".to_owned()), NOW).await.expect("a table");
    let (id, arrival) = redirect();
    applied(table.claim_redirect(&id, &arrival, &owner("redirect"), NOW).await.expect("a table"));
    let ending = Ending::Connected(ResourceKind::Location);
    assert!(table.end_redirect(&id, &owner("redirect"), ending, NOW).await.expect("a table"));
    let link = RedirectId::of_state(b"nonce");
    applied(table.claim_redirect(&link, &arrival, &owner("link"), NOW).await.expect("a table"));
    table.take_exchange("link", 1, NOW).await.expect("a table").expect("a place");
    let limiter = store.limiter();
    for (share, resource) in shares() {
        limiter.take_within_share(share, &resource, 1, None).await.expect("a permit");
    }
    let request = recorded();
    for id in calls() {
        applied(table.claim_call(&id, &owner("sender"), &intent(&request), NOW).await.expect("a table"));
    }
    let [answered, _] = calls();
    let outcome = CallOutcome::Answered((201, Some(b"sealed".to_vec())));
    assert!(table.end_call(&answered, &owner("sender"), &outcome, NOW + DAY, NOW).await.expect("a table"));
    table.take_turns(&location("L1"), None, 2, PATTERN, NOW, NOW).await.expect("turns");
}

const PATTERN: Pattern = Pattern { calls: 10, within: Duration::from_secs(10) };

/// A keyed request that has ended, and a message whose call is on its way.
fn calls() -> [CallId; 2] {
    [CallId::of_key("billing", &location("L1"), "order-17"), CallId::of_message("message-1")]
}

fn recorded() -> RecordedRequest {
    let [caller, resource, method, path, fingerprint] =
        ["billing", "location:L1", "POST", "/contacts/", "f1"].map(str::to_owned);
    RecordedRequest { caller, resource, method, path, fingerprint }
}

fn intent(request: &RecordedRequest) -> Intent<'_> {
    Intent {
        request,
        is_repeatable: false,
        lease_ends_at: NOW + Duration::from_secs(30),
        kept_until: NOW + DAY,
        message: None,
    }
}

/// The shares of a permit each.
fn shares() -> [(ShareOwner<'static>, Resource); 3] {
    let caller = ShareOwner::Caller("billing");
    [(caller, company()), (ShareOwner::Minter, company()), (caller, location("L1"))]
}

async fn write_installations(table: &Table) {
    // A renewed pair and a standby pair.
    let stored = install(table, &location("L1"), 1).await;
    let next = stored.version.next();
    let sealed = pair(2).seal(&sealer(), &stored.resource, next, PairRole::Current);
    let renewal = Renewal { owner: &owner("renewer"), pair: &sealed, due_at: NOW + DAY, event: None };
    let renewed = applied(table.commit(&stored.resource, stored.version, renewal).await.expect("a table"));
    let standby = StandbyPair {
        owner: owner("second"),
        generation: renewed.version.generation,
        granted_from: 1,
        pair: pair(3).seal(&sealer(), &renewed.resource, renewed.version, PairRole::Standby),
    };
    applied(table.add_standby(&renewed, &standby, NOW).await.expect("a table"));
    // A lease, an uninstall, an agency, a minted location, and a placeholder whose company is searched for.
    let leased = install(table, &location("L2"), 4).await;
    applied(table.claim(&claim(&leased, &owner("holder"), false)).await.expect("a table"));
    install(table, &location("L3"), 5).await;
    let uninstalled = table.uninstall(&location("L3"), NOW + DAY, None, None, NOW + DAY).await;
    applied(uninstalled.expect("a table"));
    install(table, &company(), 6).await;
    let notice = InstallNotice { company: Some("C1"), at: NOW, event: None, now: NOW };
    assert!(table.record_install_notice(&location("L4"), notice).await.expect("a table").is_applied());
    let minted = table.installation(&location("L4")).await.expect("a table").expect("stored");
    let token = Pair { refresh: None, ..pair(7) };
    let sealed = token.seal(&sealer(), &minted.resource, minted.version.next(), PairRole::Current);
    let renewal = Renewal { owner: &owner("minter"), pair: &sealed, due_at: NOW + DAY, event: None };
    let source = MintSource { company: "C1", epoch: 1 };
    applied(table.commit_minted(&minted.resource, minted.version, renewal, source).await.expect("a table"));
    table.keep_placeholder(&location("L5"), NOW).await.expect("a table");
    let placeholder = table.installation(&location("L5")).await.expect("a table").expect("stored");
    let seeker = owner("seeker");
    applied(table.claim(&claim(&placeholder, &seeker, true)).await.expect("a table"));
    let is_queued = table.queue_search(&placeholder.resource, placeholder.version, &seeker, SearchReason::Unknown, NOW);
    assert!(is_queued.await.expect("a table"));
    write_import(table).await;
}

/// Writes an imported pair beside the imported pair before it. The platform has refused the newer one for now.
async fn write_import(table: &Table) {
    let (resource, mut seen) = (location("L6"), None::<Installation>);
    for number in [8, 9] {
        let by = owner(&format!("importer-{number}"));
        let new = NewInstallation {
            resource: &resource,
            owner: &by,
            installed_at: NOW,
            due_at: NOW + DAY,
            company: None,
            home: None,
            scope: None,
            details: None,
            now: NOW,
        };
        let sealed = pair(number).seal(&sealer(), &resource, Import::version(seen.as_ref()), PairRole::Current);
        let standby = seen.iter().map(|stored| StandbyPair {
            owner: owner("importer-8"),
            generation: stored.version.generation,
            granted_from: stored.granted_from,
            pair: pair(8).seal(&sealer(), &resource, stored.version, PairRole::Standby),
        });
        let (sha256, standby) = (pair(number).refresh_sha256(), standby.collect::<Vec<_>>());
        let import = Import { pair: &sealed, refresh_sha256: sha256.as_deref(), standby: &standby };
        seen = Some(*applied(table.import(&new, seen.as_ref(), &import, None).await.expect("a table")));
    }
    let (stored, by) = (seen.expect("imported"), owner("refused"));
    applied(table.claim(&claim(&stored, &by, false)).await.expect("a table"));
    let to = Release {
        status: Status::Uncertain,
        due_at: Some(NOW + DAY),
        failures: 1,
        retry_at: Some(NOW + DAY),
        finding: Some(Finding::Waits),
        now: NOW,
    };
    applied(table.release(&resource, stored.version, &by, to, None).await.expect("a table"));
}

fn pace() -> Pace {
    let learnt = LearntLimit { limit: 30, proven: 20, raise_after: NOW, lapses_at: NOW + DAY };
    let waiting = Some((Priority::Schedule, NOW + DAY));
    let (throttled_at, paused_until, counts_minting_until) = (NOW, NOW, NOW + DAY);
    Pace {
        revision: 1,
        learnt: Some(learnt),
        sent: vec![NOW],
        throttled_at,
        paused_until,
        counts_minting_until,
        waiting,
    }
}

fn redirect() -> (RedirectId, RedirectArrival) {
    let [code, browser, network] = ["c0de", "b0b0", "0ada"].map(str::to_owned);
    (RedirectId::of_code(&"a-code".into()), RedirectArrival { code, browser, network })
}

/// Reads every kind of item, and expects what [`write_all`] has written.
async fn expect_all(store: &Store) {
    let table = &store.table;
    expect_installations(table).await;
    let (listed, more) = table.newest_companies(5).await.expect("a table");
    assert_eq!((listed[0].company.clone(), listed[0].listed_at, more), (company(), NOW, false));
    let task = table.task("C1", NOW).await.expect("a table").expect("a task");
    assert_eq!((task.noted_at, task.installing), (NOW, Some(NOW)));
    let reading = task.reading.expect("a reading");
    assert_eq!((reading.pages, reading.position), (1, ListPosition::After("token".to_owned())));
    let due = table.due_tasks(NOW, None, 5).await.expect("a table").items;
    assert_eq!(due, ["C1"]);
    let page = table.listed_page("C1", 0).await.expect("a table").expect("a page");
    assert_eq!((page.installed.len(), page.new), (2, vec![location("L2")]));
    let comparison = table.comparison("C1").await.expect("a table").expect("a comparison");
    assert_eq!((comparison.listed, comparison.not_stored.examples), (2, vec!["L2".to_owned()]));
    let app = table.app_state().await.expect("a table");
    let open = app.breaker.expect("open");
    assert_eq!(
        (open.reason, open.until, open.fingerprint.as_deref()),
        (BreakerReason::WrongClient, NOW + DAY, Some("f1"))
    );
    assert_eq!((app.budget.taken(NOW), app.paused_at, app.pace), (1, Some(NOW), pace()));
    assert_eq!(table.api_versions().await.expect("a table"), [(OwnCall::Mint, ApiVersion::V3)]);
    assert!(!table.raise_alarm("unseal", NOW, DAY).await.expect("a table"), "it was raised");
    let claimed = table.claim_webhook(&IdempotencyKey::Id("W1".to_owned()), &owner("other"), NOW).await;
    assert_eq!(claimed.expect("a table"), Write::Conflict(Progress::Claimed));
    let done = table.claim_webhook(&IdempotencyKey::Bytes("00ff".to_owned()), &owner("other"), NOW).await;
    assert_eq!(done.expect("a table"), Write::Conflict(Progress::Done));
    let (id, arrival) = redirect();
    let stored = table.redirect(&id, NOW).await.expect("a table").expect("a redirect");
    assert_eq!(stored.first, arrival);
    assert_eq!(stored.progress, RedirectProgress::Connected { kind: ResourceKind::Location, at: NOW });
    let link = table.redirect(&RedirectId::of_state(b"nonce"), NOW).await.expect("a table").expect("a redirect");
    assert_eq!((link.first, link.progress), (arrival, RedirectProgress::Exchanging));
    assert_eq!(table.take_exchange("link", 1, NOW).await.expect("a table"), None, "the place is taken");
    let usage = store.limiter().usage(&company()).await.expect("a table");
    assert_eq!((usage.burst.remaining, usage.daily.remaining), (98, 199_998));
    for (share, resource) in shares() {
        let refused = store.limiter().take_within_share(share, &resource, 1, None).await;
        assert!(refused.is_err(), "the share is used up");
    }
    let [answered, in_flight] = calls();
    let call = table.call(&answered, NOW).await.expect("a table").expect("a record");
    let answer = CallProgress::Answered((201, Some(b"sealed".to_vec())));
    assert_eq!((call.request, call.progress, call.kept_until), (recorded(), answer, NOW + DAY));
    let call = table.call(&in_flight, NOW).await.expect("a table").expect("a record");
    assert_eq!(call.progress, CallProgress::InFlight(NOW + Duration::from_secs(30)));
    let turns = table.take_turns(&location("L1"), None, 9, PATTERN, NOW, NOW).await.expect("turns");
    assert!(turns[7] < NOW + PATTERN.within && turns[8] == NOW + PATTERN.within, "two turns were taken: {turns:?}");
}

async fn expect_installations(table: &Table) {
    let stored = async |resource: &Resource| table.installation(resource).await.expect("a table").expect("an item");
    let open = |stored: &Installation, version, field, sealed: &[u8]| {
        let opened = sealer().open(place(&stored.key(), version, field), sealed);
        opened.map(|token| token.expose().to_owned()).expect("it opens")
    };
    let tokens = |stored: &Installation| {
        let access = stored.access().map(|access| open(stored, stored.version, Field::Access, &access.token));
        let refresh = stored.refresh_token().map(|token| open(stored, stored.version, Field::Refresh, token));
        (access, refresh)
    };
    let of = |number: u32| (Some(format!("access-{number}")), Some(format!("refresh-{number}")));
    let own = stored(&location("L1")).await;
    assert_eq!(
        (own.status(), own.version, tokens(&own)),
        (Status::Active, TokenVersion { epoch: 1, generation: 2 }, of(2))
    );
    assert_eq!((own.company.as_deref(), own.scope.as_deref()), (Some("C1"), Some("contacts.readonly")));
    assert_eq!(own.reinstall_url().as_deref(), Some("https://relay.example.com/oauth/install"));
    assert_eq!((own.details.version_id.as_deref(), own.outbox.len(), own.installed_at), (Some("V1"), 1, NOW));
    assert_eq!(own.schedule().due_at, Some(NOW + DAY));
    let [standby] = own.standby() else { panic!("one standby pair: {own:?}") };
    let refresh = standby.pair.refresh.as_deref().expect("a token");
    assert_eq!(open(&own, own.version, Field::StandbyRefresh, refresh), "refresh-3");
    let leased = stored(&location("L2")).await;
    assert_eq!((leased.status(), tokens(&leased)), (Status::Refreshing, of(4)));
    assert_eq!(leased.lease().map(|lease| lease.owner.as_str()), Some("holder"));
    assert_eq!(stored(&location("L3")).await.revoked_at(), Some(NOW + DAY));
    assert_eq!(tokens(&stored(&company()).await), of(6));
    let minted = stored(&location("L4")).await;
    assert_eq!((minted.minted().map(|minted| minted.company_epoch), tokens(&minted).0), (Some(1), of(7).0));
    assert_eq!(table.locations_of("C1", None).await.expect("a table").len(), 4);
    let placeholder = stored(&location("L5")).await;
    assert!(placeholder.is_placeholder());
    assert_eq!(table.searches().await.expect("a table"), [location("L5")]);
    assert_eq!(table.search(&location("L5")).await.expect("a table").expect("a search").since, NOW);
    let imported = stored(&location("L6")).await;
    assert_eq!((imported.status(), imported.findings.is_answered, tokens(&imported)), (Status::Uncertain, true, of(9)));
    assert_eq!(imported.imported_sha256, pair(9).refresh_sha256());
    let [standby] = imported.standby() else { panic!("one standby pair: {imported:?}") };
    let version = TokenVersion { generation: standby.generation, ..imported.version };
    let refresh = standby.pair.refresh.as_deref().expect("a token");
    assert_eq!(open(&imported, version, Field::StandbyRefresh, refresh), "refresh-8");
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/items")
}

#[tokio::test(flavor = "multi_thread")]
async fn this_version_reads_what_it_writes() {
    let store = Store::new().await;
    write_all(&store).await;
    if let Some(file) = engines::variable("GOLDEN_ITEMS") {
        let scanned = store.send("Scan", &json!({ "TableName": TABLE })).await;
        let mut items = scanned["Items"].as_array().expect("items").clone();
        items.sort_by_key(|item| item["pk"]["S"].to_string());
        let lines: Vec<_> = items.iter().map(Value::to_string).collect();
        std::fs::write(file, format!("[\n{}\n]\n", lines.join(",\n"))).expect("a file");
    }
    expect_all(&store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_items_of_every_released_version_are_read() {
    let mut versions = 0;
    for entry in std::fs::read_dir(folder()).expect("a folder") {
        let path = entry.expect("an entry").path();
        let items: Vec<Value> = serde_json::from_slice(&std::fs::read(&path).expect("a file")).expect("JSON");
        let store = Store::new().await;
        for item in items {
            store.send("PutItem", &json!({ "TableName": TABLE, "Item": item })).await;
        }
        expect_all(&store).await;
        versions += 1;
    }
    assert!(versions > 0, "{} is empty", folder().display());
}

/// Every kind of key in the list at the head of `shared/src/table/mod.rs` is in each file.
#[test]
fn every_kind_of_item_is_in_each_file() {
    let list = include_str!("../../../../shared/src/table/mod.rs");
    let rows = list.lines().filter_map(|line| line.strip_prefix("//! | `")?.split(" | ").next());
    let keys = rows.flat_map(|row| row.split('`').step_by(2)).filter(|key| key.contains('#'));
    let kinds: Vec<&str> = keys
        .map(|key| key.split(char::is_uppercase).next().unwrap_or(key))
        .map(|key| key.trim_end_matches('…'))
        .collect();
    assert!(kinds.len() >= 15, "{kinds:?}");
    for entry in std::fs::read_dir(folder()).expect("a folder") {
        let path = entry.expect("an entry").path();
        let text = Redacted::from(std::fs::read_to_string(&path).expect("a file"));
        for kind in &kinds {
            assert!(text.expose().contains(&format!("\"S\":\"{kind}")), "{}: no item {kind}", path.display());
        }
    }
}
