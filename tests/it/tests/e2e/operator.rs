//! The operator's commands, as somebody types them: the built program runs against a running system. Its output
//! contains no secret, except that it shows a caller's new key once.

use std::path::PathBuf;
use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use futures_util::future::join_all;
use http::Method;
use it::outside::{Setup, System, company, location, route, send};
use sandbox::marketplace::faults::{Endpoint, Fault};
use sandbox::marketplace::grants::Resource;
use sandbox::marketplace::window::Limits;
use sandbox::whole::{APP_SECRET, CALLERS_SECRET, SEALING_SECRET, TABLE, scheduled_event, sha256_hex};
use serde_json::{Value, json};
use shared::domain::redacted::Redacted;
use shared::secrets::edit::{EditedSecret, Replaced};
use shared::table::Table;
use shared::table::app::{BreakerReason, OpenBreaker};
use shared::table::mark_budget::Requested;
use shared::table::reconciliation::{Comparison, Difference};
use tokio::process::Command;

/// The output and the exit code of a command.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Said {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The exit code, and the error text that was printed instead of an answer.
    fn refusal(&self) -> (i32, &str) {
        assert_eq!(self.out, "", "{self:?}");
        (self.code, self.err.trim_end())
    }
}

pub(crate) fn program() -> PathBuf {
    let test = std::env::current_exe().expect("the test's own path");
    let folder = test.parent().and_then(|folder| folder.parent()).expect("a target folder");
    let program = folder.join("ops");
    assert!(program.is_file(), "{} is not there: cargo build --workspace --bins", program.display());
    program
}

/// Runs a command, and asserts that its output contains no secret.
pub(crate) async fn ops(system: &System, arguments: &[&str]) -> Said {
    ops_in(system, system.operators_environment(), arguments).await
}

/// The same in another environment.
pub(crate) async fn ops_in(
    system: &System,
    environment: impl IntoIterator<Item = (String, String)>,
    arguments: &[&str],
) -> Said {
    let mut command = Command::new(program());
    let done = command.env_clear().envs(environment).args(arguments).output().await.expect("it runs");
    let err = String::from_utf8(done.stderr).expect("UTF-8");
    // An export is binary.
    let out = String::from_utf8_lossy(&done.stdout).into_owned();
    for secret in system.secrets() {
        assert!(!out.contains(&secret) && !err.contains(&secret), "{arguments:?} prints {secret}");
    }
    Said { code: done.status.code().expect("it is not killed"), out, err }
}

pub(crate) async fn done(system: &System, arguments: &[&str]) -> Value {
    let arguments = [&["--json"], arguments].concat();
    let said = ops(system, &arguments).await;
    assert_eq!(said.code, 0, "{arguments:?}: {said:?}, after {:#?}", system.last_lines());
    said.json()
}

fn table(system: &System) -> Table {
    Table { client: system.sandbox.dynamo.client(), name: TABLE.into() }
}

fn now() -> shared::domain::clock::Millis {
    shared::domain::clock::Clock::system().now()
}

/// States of the findings about `what`.
fn findings(said: &Value, what: &str) -> Vec<String> {
    let all = said["findings"].as_array().expect("findings");
    let about = all.iter().filter(|finding| finding["what"] == what);
    about.map(|finding| finding["state"].as_str().expect("a state").to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn installations_are_listed_shown_renewed_and_revoked() {
    let system = System::start(Setup { relays: 1, ..Setup::default() }).await;
    assert_eq!(done(&system, &["list"]).await, json!({ "installations": [] }));
    for resource in [location(1), location(2), company()] {
        system.install(&resource).await;
    }
    let (first, second) = (location(1).to_string(), location(2).to_string());
    let listed = done(&system, &["list"]).await;
    let names = |listed: &Value| -> Vec<Value> {
        let all = listed["installations"].as_array().expect("a list").iter();
        all.map(|one| one["resource"].clone()).collect()
    };
    let (json_1, json_2) = (json!({ "location": location(1).id() }), json!({ "location": location(2).id() }));
    assert_eq!(names(&listed), [json_1.clone(), json_2.clone(), json!({ "company": company().id() })]);
    assert_eq!(names(&done(&system, &["list", "--status", "revoked"]).await), Vec::<Value>::new());
    let capped = ops(&system, &["--json", "list", "--limit", "2"]).await;
    assert_eq!((names(&capped.json()).len(), capped.err.trim_end()), (2, "there are more than 2: see --limit"));

    assert_eq!(system.get(&location(1), "/echo").await.status, 200);
    // A caller names a location without the app. The placeholder that the relay stores for that location is no
    // installation.
    let unknown = location(9).to_string();
    assert_eq!(system.get(&location(9), "/echo").await.status, 404);
    assert!(system.stored().await.contains(location(9).id()), "the control: there is a place for it");
    assert_eq!(names(&done(&system, &["list"]).await).len(), 3);
    let sentence = format!("ops: {unknown} is not known");
    for command in [vec!["show"], vec!["quota"], vec!["refresh"], vec!["revoke", "--yes"]] {
        let said = ops(&system, &[&[command[0], &unknown], &command[1..]].concat()).await;
        assert_eq!(said.refusal(), (3, sentence.as_str()), "{command:?}");
    }
    let doctor = done(&system, &["doctor"]).await;
    let told = |finding: &&Value| finding["what"] == "installations";
    let installations = doctor["findings"].as_array().expect("findings").iter().find(told).expect("told");
    assert_eq!(installations["said"], "3 Active");

    assert_eq!(done(&system, &["quota", &first]).await["burst"]["remaining"], 99);
    assert_eq!(done(&system, &["quota", &second]).await["daily"]["remaining"], 200_000);
    assert_eq!(done(&system, &["quota"]).await["limits"], json!([]));
    system.sandbox.marketplace.set_limits_of(location(1), Limits::sandbox_agency());
    assert_eq!(system.get(&location(1), "/echo").await.status, 200);
    let limits = json!([{ "resource": json_1, "burst": 25, "interval_ms": 10_000, "daily": 10_000 }]);
    assert_eq!(done(&system, &["quota"]).await["limits"], limits);

    let shown = done(&system, &["show", &first]).await;
    assert_eq!((&shown["status"], &shown["generation"]), (&json!("Active"), &json!(1)));
    let renewed = done(&system, &["refresh", &first]).await;
    assert_eq!((&renewed["summary"]["refreshed"], system.refreshes()), (&json!(1), 1));
    assert_eq!(done(&system, &["show", &first]).await["generation"], 2);
    assert_eq!(done(&system, &["refresh", &first, "--if-due"]).await["summary"]["deferred"], 1);
    system.sandbox.marketplace.set_active(location(2), false);
    let paused = ops(&system, &["refresh", &second]).await;
    let expected = format!("ops: {second} has no new token (Suspended); the log of refresh has the reason");
    assert_eq!(paused.refusal(), (1, expected.as_str()));

    let not_yet = ops(&system, &["revoke", &second]).await;
    assert_eq!(not_yet.code, 4, "{not_yet:?}");
    assert_eq!(done(&system, &["show", &second]).await["status"], "Suspended", "nothing was done");
    done(&system, &["revoke", &second, "--yes"]).await;
    assert_eq!(system.get(&location(2), "/echo").await.refusal(), (410, "revoked".to_owned()));
    assert_eq!(names(&done(&system, &["list", "--status", "Revoked"]).await), [json_2]);

    assert_eq!(ops(&system, &["show", "location:nobody"]).await.refusal(), (3, "ops: location:nobody is not known"));
    for wrong in [&["show", "L1"][..], &["list", "--status", "fine"], &["dance"], &[]] {
        assert_eq!(ops(&system, wrong).await.refusal().0, 2, "{wrong:?}");
    }
    let bare = ops_in(&system, [], &["--json", "list"]).await;
    let told: Value = serde_json::from_str(&bare.err).expect("JSON");
    assert_eq!((bare.code, &told["exit_code"]), (2, &json!(2)));
    assert!(told["error"].as_str().is_some_and(|text| text.contains("TABLE_NAME")), "{told}");

    let mut stranger = system.operators_environment();
    stranger.retain(|name, _| !["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "HOME"].contains(&name.as_str()));
    stranger.insert("AWS_EC2_METADATA_DISABLED".to_owned(), "true".to_owned());
    let said = ops_in(&system, stranger.clone(), &["list"]).await;
    assert!(said.code == 2 && said.err.starts_with("ops: no AWS credentials could be loaded: "), "{said:?}");
    let said = ops_in(&system, stranger, &["--json", "doctor"]).await.json();
    assert_eq!((&said["faults"], findings(&said, "environment")), (&json!(1), vec!["fail".to_owned()]), "{said}");
    let mut unreachable = system.operators_environment();
    unreachable.insert("AWS_ENDPOINT_URL_DYNAMODB".to_owned(), "http://127.0.0.1:1".to_owned());
    let said = ops_in(&system, unreachable, &["--json", "doctor", "--quick"]).await.json();
    assert_eq!(findings(&said, "table"), ["fail"]);
    assert_eq!(findings(&said, "clock"), [""; 0], "nothing is said about a clock that was not read");
    system.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stack_is_named_the_schedule_runs_once_and_dead_messages_go_back() {
    use std::os::unix::fs::PermissionsExt as _;

    let system = System::start(Setup { relays: 0, ..Setup::default() }).await;
    system.install(&location(1)).await;
    system.set_stored(&location(1), &[("due_at", 1)]).await;
    let ticked = done(&system, &["tick"]).await;
    assert_eq!((&ticked["due"], &ticked["refreshed"]), (&json!(1), &json!(1)), "{ticked}");
    let whole = done(&system, &["doctor"]).await;
    let quick = done(&system, &["doctor", "--quick"]).await;
    for (said, states) in [(whole, vec!["ok".to_owned()]), (quick, Vec::new())] {
        assert_eq!((findings(&said, "installations"), findings(&said, "refreshing")), (states, vec!["ok".to_owned()]));
    }

    // A queue of a test, because the messages of the rescue queue are taken by the function.
    let queue = system.sandbox.queue.another("stuck", Duration::from_secs(30));
    queue.allow_receives(0);
    queue.send("a dead message");
    assert_eq!(queue.receive(1).await, 0);
    assert_eq!((queue.messages().len(), queue.dead_letters().len()), (0, 1));
    let mut environment = system.operators_environment();
    environment.insert("RESCUE_FAILURES_URL".to_owned(), format!("{}-failures", queue.url()));
    let moved = ops_in(&system, environment.clone(), &["--json", "redrive"]).await;
    let expected = json!([{ "queue": "dead-letter queue of the rescue queue", "messages": 1 }]);
    assert_eq!((moved.code, &moved.json()["moving"]), (0, &expected), "{moved:?}");
    assert_eq!((queue.messages().len(), queue.dead_letters().len()), (1, 0));
    assert_eq!(ops(&system, &["redrive"]).await.code, 2, "no dead-letter queue is named");

    // The AWS CLI is a program that prints the outputs of a stack of this name.
    let folder = std::env::temp_dir().join(format!("hoopai-relay-aws-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let (named, endpoints): (Vec<_>, Vec<_>) = environment.into_iter().partition(|(name, _)| !name.starts_with("AWS_"));
    let value = named.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ");
    let outputs = json!([{ "OutputKey": "OperatorEnvironment", "OutputValue": value }]);
    let printed = json!({ "Stacks": [{ "Outputs": outputs }] });
    let line = json!([{ "field": "@timestamp", "value": "10:00" }, { "field": "@message", "value": "a line" }]);
    let lines = json!({ "status": "Complete", "results": [line] });
    let asked = format!(r#"fields @timestamp, @message | filter resource = "{}" |"#, location(1));
    let last = |time: &str, key: &[&str]| {
        let named =
            [("caller", "sandbox"), ("last", time)].into_iter().chain(key.iter().map(|key| ("caller_key", *key)));
        named.map(|(field, value)| json!({ "field": field, "value": value })).collect::<Vec<_>>()
    };
    let listed = done(&system, &["callers", "list"]).await;
    let key = listed["callers"][0]["keys"][0].as_str().expect("a key");
    let by_key = last("1795000000000", &[key]);
    let calls = json!({ "status": "Complete", "results": [by_key, last("1794000000000", &[])] });
    let logs = format!(
        "case \"$1 $2 $*\" in\n'logs start-query '*'{asked}'*' one two') echo '{{\"queryId\":\"q1\"}}'; exit;;\n\
         'logs start-query '*'by caller'*' one two') echo '{{\"queryId\":\"q2\"}}'; exit;;\n\
         'logs get-query-results '*'--query-id q2') echo '{calls}'; exit;;\n\
         'logs get-query-results '*'--query-id q1') echo '{lines}'; exit;;\nesac\n"
    );
    let script =
        format!("#!/bin/sh\n{logs}[ \"$1 $4\" = 'cloudformation my-relay' ] || exit 9\ncat <<'END'\n{printed}\nEND\n");
    let program = folder.join("aws");
    std::fs::write(&program, script).expect("a file");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).expect("a program");
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap_or_default());
    let account: Vec<_> = endpoints.into_iter().chain([("PATH".to_owned(), path)]).collect();
    let shown =
        ops_in(&system, account.clone(), &["--stack", "my-relay", "--json", "show", &location(1).to_string()]).await;
    assert_eq!((shown.code, &shown.json()["generation"]), (0, &json!(2)), "{shown:?}");
    let listed = ops_in(&system, account.clone(), &["list", "--stack=my-relay"]).await;
    assert!(listed.code == 0 && listed.out.contains(&location(1).to_string()), "{listed:?}");
    let groups = account.iter().cloned().chain([("LOG_GROUPS".to_owned(), "one,two".to_owned())]);
    let with_logs: Vec<_> = named.into_iter().chain(groups).collect();
    let callers = ops_in(&system, with_logs.clone(), &["--json", "callers", "list", "--last-call", "30"]).await;
    let callers = callers.json()["callers"].clone();
    let at = json!("2026-11-18T11:06:40Z");
    assert_eq!((&callers[0]["id"], &callers[0]["last_call"]), (&json!("sandbox"), &at));
    assert_eq!(callers[0]["last_call_by_key"][key], at);
    let logged = ops_in(&system, with_logs, &["--json", "logs", &location(1).to_string()]).await;
    assert_eq!(
        (logged.code, logged.json()),
        (0, json!({ "lines": [{ "at": "10:00", "line": "a line" }] })),
        "{logged:?}"
    );
    assert_eq!(ops_in(&system, account, &["--stack", "another", "list"]).await.code, 2);
    std::fs::remove_dir_all(folder).expect("removed");
    system.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_platform_is_made_to_uninstall_the_app() {
    let system = System::start(Setup { relays: 1, ..Setup::default() }).await;
    let market = &system.sandbox.marketplace;
    for resource in [location(1), company()] {
        system.install(&resource).await;
    }
    let (first, agency) = (location(1).to_string(), company().to_string());
    let deletions =
        |resource: &Resource| market.api_requests(resource).iter().filter(|asked| asked.method == "DELETE").count();
    for (resource, words) in [(&first, format!("from {first} (Active) and")), (&agency, "and all its locations".into())]
    {
        let not_yet = ops(&system, &["uninstall", resource]).await;
        let (code, text) = not_yet.refusal();
        assert!(code == 4 && text.contains(&words) && text.contains("--yes"), "{not_yet:?}");
    }
    assert_eq!(ops(&system, &["uninstall", "location:nobody", "--yes"]).await.code, 3);
    market.fault(Endpoint::Api, Fault::refusal(422, "not today"), Some(1));
    let refused = ops(&system, &["uninstall", &first, "--yes"]).await;
    let expected =
        format!("ops: the platform has not uninstalled the app from {first}: 422: not today. Nothing was changed here");
    assert_eq!(refused.refusal(), (1, expected.as_str()));
    assert_eq!(system.get(&location(1), "/echo").await.status, 200);
    assert_eq!((deletions(&location(1)), deletions(&company())), (1, 0));

    let uninstalled = ops(&system, &["uninstall", &first, "--yes", "--reason", "moving on"]).await;
    let sentence = format!("the platform has uninstalled the app from {first}; its tokens are erased");
    assert_eq!((uninstalled.code, uninstalled.out.trim_end()), (0, sentence.as_str()));
    assert_eq!(deletions(&location(1)), 2);
    assert_eq!(done(&system, &["show", &first]).await["status"], "Revoked");
    let again = ops(&system, &["uninstall", &first, "--yes"]).await;
    assert_eq!(again.out.trim_end(), format!("the app was not installed in {first} any more; its tokens are erased"));

    assert_eq!(system.get(&location(2), "/echo").await.status, 200, "with a minted token");
    let whole = done(&system, &["uninstall", &agency, "--yes"]).await;
    assert_eq!((&whole["platform"], &whole["here"]), (&json!("uninstalled"), &json!("revoked")), "{whole}");
    assert_eq!(system.get(&location(2), "/echo").await.refusal(), (410, "revoked".to_owned()));
    system.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_differences_of_an_agencys_list_are_shown() {
    let system = System::start(Setup { relays: 0, ..Setup::default() }).await;
    let what = "agencies' lists";
    assert_eq!(findings(&done(&system, &["doctor"]).await, what), ["ok"]);
    system.install(&company()).await;
    let agency = company().to_string();
    assert_eq!(done(&system, &["show", &agency]).await["list_compared_at"], Value::Null);
    system.refresh(&scheduled_event()).await.expect("a summary");
    let shown = done(&system, &["show", &agency]).await;
    assert_eq!((&shown["listed"], &shown["not_stored"], &shown["not_listed"]), (&json!(3), &json!(0), &json!(0)));
    assert!(shown["list_compared_at"].is_string(), "{shown}");

    // One location moves away, and another one comes. The agency's token is due.
    let long_ago = now().0 - 600_000;
    system.set_stored(&location(2), &[("installed_at", long_ago)]).await;
    system.set_stored(&company(), &[("installed_at", long_ago), ("due_at", now().0 - 1)]).await;
    system.sandbox.marketplace.change(|options| {
        options.locations[1].id = location(7).id().to_owned();
    });
    for _ in 0..2 {
        system.refresh(&scheduled_event()).await.expect("a summary");
    }
    let shown = done(&system, &["show", &agency]).await;
    assert_eq!((&shown["not_stored"], &shown["not_stored_examples"]), (&json!(1), &json!([location(7).id()])));
    assert_eq!((&shown["not_listed"], &shown["not_listed_examples"]), (&json!(1), &json!([location(2).id()])));
    assert_eq!(done(&system, &["show", &location(2).to_string()]).await["status"], "Active", "it stays");
    let doctor = done(&system, &["doctor"]).await;
    let all = doctor["findings"].as_array().expect("findings");
    let finding = all.iter().find(|finding| finding["what"] == what).expect("told");
    let said = finding["said"].as_str().expect("text");
    assert!(finding["state"] == "warn" && said.contains("1 stored locations are not listed"), "{finding}");
    assert!(said.contains(&agency), "{finding}");

    // The schedule does not read the list any more.
    let comparison = table(&system).comparison(company().id()).await.expect("a table").expect("compared");
    let days = Duration::from_hours(24 * 9);
    let (at, not_listed) = (comparison.at - days, Difference::default());
    let old = Comparison { at, not_listed, ..comparison };
    table(&system).record_comparison(company().id(), &old).await.expect("a table");
    assert_eq!(findings(&done(&system, &["doctor"]).await, what), ["ok"], "an installation of today");
    system.set_stored(&company(), &[("installed_at", (now() - days).0)]).await;
    assert_eq!(findings(&done(&system, &["doctor"]).await, what), ["warn"]);
    system.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_reports_an_open_circuit_breaker_and_resume_closes_it() {
    let system = System::start(Setup { relays: 1, ..Setup::default() }).await;
    system.install(&location(1)).await;
    let healthy = ops(&system, &["--json", "doctor"]).await;
    assert_eq!((healthy.code, &healthy.json()["faults"]), (0, &json!(0)), "{healthy:?}");

    let table = table(&system);
    let until = shared::domain::clock::Millis(i64::MAX);
    let stop = OpenBreaker { reason: BreakerReason::MassRefusal, until, fingerprint: None };
    table.open_breaker(&stop).await.expect("stored");
    for _ in 0..7 {
        table.count_waiting(Requested::Refresh).await.expect("counted");
    }
    let resource = location(1).to_string();
    assert_eq!(ops(&system, &["refresh", &resource]).await.code, 1, "stopped");
    assert_eq!(system.refreshes(), 0);
    let ill = ops(&system, &["--json", "doctor"]).await;
    assert_eq!((ill.code, findings(&ill.json(), "refreshing")), (5, vec!["fail".to_owned()]), "{ill:?}");
    assert_eq!(findings(&ill.json(), "refusals"), ["warn"]);

    assert_eq!(done(&system, &["resume"]).await["was_stopped"], "mass_refusal");
    let waiting = async || table.app_state().await.expect("read").budget.waiting();
    assert_eq!(waiting().await, 7, "they count on");
    assert_eq!(done(&system, &["resume", "--forget"]).await["was_stopped"], Value::Null);
    assert_eq!(waiting().await, 0);
    // The function caches the value for 5 s.
    let mut tries = 0;
    while ops(&system, &["refresh", &resource]).await.code != 0 {
        tries += 1;
        assert!(tries < 100, "it goes on within 5 s");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(system.refreshes(), 1);
    system.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_reports_each_fault() {
    let system = System::start(Setup { relays: 1, ..Setup::default() }).await;
    system.install(&location(1)).await;
    let ill = async |what: &str| {
        let said = ops(&system, &["--json", "doctor"]).await;
        (said.code, findings(&said.json(), what))
    };
    let fail = || (5, vec!["fail".to_owned()]);

    system.set_stored(&location(1), &[("due_at", now().0 - 600_000)]).await;
    assert_eq!(ill("due").await, fail());
    system.set_stored(&location(1), &[("due_at", now().0 + 600_000)]).await;
    assert_eq!(ill("due").await, (0, vec!["ok".to_owned()]), "the control");

    system.sandbox.queue.send("not a pair");
    assert_eq!(ill("rescue queue").await, (0, vec!["warn".to_owned()]));
    let app = system.sandbox.secrets.get(APP_SECRET).expect("there");
    system.sandbox.secrets.put(APP_SECRET, r#"{"client_id":"abc","client_secret":""}"#);
    assert_eq!(ill("app secret").await, fail());
    system.sandbox.secrets.put(APP_SECRET, app);
    let sealing = system.sandbox.secrets.get(SEALING_SECRET).expect("there");
    system.sandbox.secrets.remove(SEALING_SECRET);
    assert_eq!(ill("sealing secret").await, fail());
    system.sandbox.secrets.put(SEALING_SECRET, sealing);
    system.sandbox.secrets.put(CALLERS_SECRET, r#"{"callers":[{"id":"x","key":"y"}]}"#);
    assert_eq!(ill("callers").await, fail());
    system.sandbox.secrets.put(CALLERS_SECRET, r#"{"callers":[]}"#);
    assert_eq!(ill("callers").await, (0, vec!["warn".to_owned()]));

    assert_eq!(ill("token endpoint").await.1, ["ok"], "no pace");

    let elsewhere = |name: &str, value: &str| {
        let mut environment = system.sandbox.operators_environment();
        environment.insert(name.to_owned(), value.to_owned());
        environment
    };
    for (name, value, what) in [
        ("TABLE_NAME", "no-such-table", "table"),
        ("API_URL", "http://127.0.0.1:9", "platform"),
        ("TABLE_NAME", "", "environment"),
        ("API_URL", "http://example.com", "environment"),
    ] {
        let said = ops_in(&system, elsewhere(name, value), &["--json", "doctor"]).await;
        assert_eq!((said.code, findings(&said.json(), what)), fail(), "{name}={value}: {said:?}");
    }
    let said = ops_in(&system, elsewhere("TOKEN_REQUESTS_PER_MINUTE", "5"), &["doctor"]).await.out;
    let pace = "5 requests a minute (set by TOKEN_REQUESTS_PER_MINUTE), enough for about 5040 installations; 1 renew";
    assert!(said.contains(pace), "{said}");
    system.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callers_key_is_printed_once_and_concurrent_edits_are_both_kept() {
    let mut system = System::start(Setup { relays: 0, ..Setup::default() }).await;
    system.install(&location(1)).await;
    let added = done(&system, &["callers", "add", "billing", "--method", "GET", "--path", "/echo/**"]).await;
    let key = added["key"].as_str().expect("a key").to_owned();
    system.tell(&key);
    assert_eq!(added["sha256"], sha256_hex(&key));
    // A relay reads the callers when it starts, and notices a change within a minute.
    system.start_apart("relay", "relay", &[]).await;
    let call = |method: Method| send(system.request(method, &route(&location(1), "/echo")).bearer_auth(&key));
    assert_eq!(call(Method::GET).await.status, 200);
    assert_eq!(call(Method::POST).await.refusal(), (403, "forbidden".to_owned()));

    done(&system, &["callers", "set", "billing", "--method", "POST"]).await;
    assert_eq!(ops(&system, &["callers", "set", "nobody"]).await.code, 3);
    let listed = done(&system, &["callers", "list"]).await;
    let billing = |callers: &Value| {
        let callers = callers["callers"].as_array().expect("a list").iter();
        callers.clone().find(|caller| caller["id"] == "billing").expect("listed").clone()
    };
    let of = billing(&listed);
    assert_eq!((&of["methods"], &of["paths"]), (&json!(["POST"]), &json!(["/echo/**"])), "what is not named stays");
    let cleared = done(&system, &["callers", "set", "billing", "--clear", "paths", "--requests-per-10s", "50"]).await;
    let of = billing(&cleared);
    assert_eq!(
        (&of["methods"], &of["paths"], &of["requests_per_10s"]),
        (&json!(["POST"]), &Value::Null, &json!(50)),
        "{cleared}"
    );
    assert_eq!(billing(&done(&system, &["callers", "list"]).await), of);

    let rotated = done(&system, &["callers", "rotate", "billing"]).await;
    let newer = rotated["key"].as_str().expect("a key").to_owned();
    system.tell(&newer);
    let keys = async || {
        let listed = done(&system, &["callers", "list"]).await;
        let callers = listed["callers"].as_array().expect("a list").clone();
        let billing = callers.into_iter().find(|caller| caller["id"] == "billing").expect("listed");
        billing["keys"].as_array().expect("keys").clone()
    };
    let short = |key: &str| json!(sha256_hex(key)[..12]);
    assert_eq!(keys().await, [short(&key), short(&newer)]);
    assert_eq!(done(&system, &["callers", "retire", "billing"]).await["ended"], 1);
    assert_eq!(keys().await, [short(&newer)]);
    let prefix = &sha256_hex(&newer)[..8];
    assert_eq!(ops(&system, &["callers", "remove", "billing", "--key", prefix]).await.code, 4, "not without --yes");
    assert_eq!(ops(&system, &["callers", "remove", "billing", "--key", "ffff0", "--yes"]).await.code, 3);
    done(&system, &["callers", "remove", "billing", "--key", prefix, "--yes"]).await;
    assert_eq!(keys().await, Vec::<Value>::new());
    assert_eq!(ops(&system, &["callers", "add", "billing"]).await.code, 4, "there is one");
    assert_eq!(
        ops(&system, &["callers", "add", "odd", "--method", "FETCH"]).await.code,
        2,
        "the relay would refuse it"
    );
    assert_eq!(ops(&system, &["callers", "remove", "nobody", "--yes"]).await.code, 3);
    let stored = system.sandbox.secrets.get(CALLERS_SECRET).expect("there");
    assert!(!stored.contains(&key) && !stored.contains(&newer) && stored.contains("sandbox"), "{stored}");

    // Eight commands at once: a caller is in the list exactly if its command reported success.
    let names: Vec<String> = (1..=8).map(|number| format!("caller-{number}")).collect();
    let adding = names.iter().map(async |name| ops(&system, &["callers", "add", name, "--no-key"]).await.code);
    let codes = join_all(adding).await;
    let listed = done(&system, &["callers", "list"]).await.to_string();
    for (name, code) in names.iter().zip(&codes) {
        assert!([0, 4].contains(code), "{codes:?}");
        assert_eq!(listed.contains(&format!("\"{name}\"")), *code == 0, "{name} of {codes:?}: {listed}");
    }
    assert!(codes.contains(&0), "{codes:?}");

    // The same conflict without chance: both writers have read the same version.
    let secret = || {
        let config = aws_sdk_secretsmanager::Config::builder()
            .behavior_version(aws_sdk_secretsmanager::config::BehaviorVersion::latest())
            .region(aws_sdk_secretsmanager::config::Region::new("us-east-1"))
            .credentials_provider(aws_sdk_secretsmanager::config::Credentials::new("a", "b", None, None, "test"))
            .http_client(shared::http_client::aws())
            .endpoint_url(system.sandbox.secrets.url());
        EditedSecret::new(aws_sdk_secretsmanager::Client::from_conf(config.build()), CALLERS_SECRET.to_owned())
    };
    let (one, other) = (secret().read().await.expect("read"), secret().read().await.expect("read"));
    let text = |id: &str| Redacted::from(json!({ "callers": [{ "id": id }] }).to_string());
    assert_eq!(secret().replace(&one, &text("mine")).await, Ok(Replaced::Applied));
    assert_eq!(secret().replace(&other, &text("yours")).await, Ok(Replaced::Conflict));
    assert!(secret().read().await.is_ok_and(|now| now.text.expose().contains("mine")));
    system.end().await;
}

/// All attributes of the item of an installation.
async fn item(system: &System, number: usize) -> shared::table::Item {
    let key = AttributeValue::S(format!("installation#location#{}", location(number).id()));
    let got = system.sandbox.dynamo.client().get_item().table_name(TABLE).key("pk", key).send().await;
    got.expect("read").item.expect("there")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sealing_key_is_rotated_under_traffic_and_retired_when_unused() {
    let system = System::start(Setup { relays: 2, at_once: 10, locations: 30, ..Setup::default() }).await;
    for number in 1..=30 {
        system.install(&location(number)).await;
    }
    let sealing = |system: &System| -> Value {
        serde_json::from_str(&system.sandbox.secrets.get(SEALING_SECRET).expect("there")).expect("JSON")
    };
    let old_key = sealing(&system)["k1"].as_str().expect("a key").to_owned();
    system.tell(&old_key);
    let values = |listed: &Value| -> Vec<(String, String, u64)> {
        let text = |key: &Value, name: &str| key[name].as_str().expect("text").to_owned();
        let keys = listed["keys"].as_array().expect("keys").iter();
        keys.map(|key| (text(key, "id"), text(key, "state"), key["values"].as_u64().expect("a count"))).collect()
    };
    let row = |id: &str, state: &str, count| (id.to_owned(), state.to_owned(), count);
    assert_eq!(values(&done(&system, &["sealing", "list"]).await), [row("k1", "current", 60)]);
    let before = item(&system, 30).await;

    // Callers use and renew tokens during the whole rotation.
    let rotation = done(&system, &["sealing", "rotate"]);
    let traffic = async {
        for round in 0..3 {
            let calls = (1..=12).map(async |number| system.get(&location(number), "/echo").await);
            for answer in join_all(calls).await {
                assert_eq!((answer.status, answer.source()), (200, "platform"), "{answer:?}");
            }
            let renewing = json!({ "resource": location(1 + round), "force": true });
            assert_eq!(system.refresh(&renewing).await.expect("a summary")["refreshed"], 1);
        }
    };
    let (rotated, ()) = tokio::join!(rotation, traffic);
    assert_eq!((&rotated["current"], &rotated["to_retire"]), (&json!("k2"), &json!(["k1"])));
    system.tell(sealing(&system)["k2"].as_str().expect("a key"));
    done(&system, &["sealing", "reseal"]).await;
    assert_eq!(values(&done(&system, &["sealing", "list"]).await), [row("k1", "old", 0), row("k2", "current", 60)]);
    assert_eq!(ops(&system, &["sealing", "rotate"]).await.code, 4, "one rotation at a time");

    let refused = async |why: &str| {
        let said = ops(&system, &["sealing", "retire", "k1"]).await;
        let (code, text) = said.refusal();
        assert!(code == 4 && text.contains(why), "{said:?}");
        assert_eq!(sealing(&system)["k1"], old_key, "it stays");
    };
    refused("until").await;
    system.sandbox.secrets.age(SEALING_SECRET, Duration::from_mins(3));
    let now = item(&system, 30).await;
    let put = |item| system.sandbox.dynamo.client().put_item().table_name(TABLE).set_item(Some(item)).send();
    put(before).await.expect("put back");
    refused("2 values are sealed under k1").await;
    put(now).await.expect("put back");
    system.sandbox.queue.send("not a pair");
    refused("the rescue queue holds 1 messages").await;
    system.sandbox.queue.purge();

    assert_eq!(ops(&system, &["sealing", "retire", "k2"]).await.code, 4, "the current one");
    assert_eq!(ops(&system, &["sealing", "retire", "k7"]).await.code, 3);
    assert_eq!(done(&system, &["sealing", "retire", "k1"]).await["retired"], "k1");
    assert_eq!(sealing(&system).as_object().map(serde_json::Map::len), Some(2), "k2 and which is current");
    for number in 1..=30 {
        let answer = system.get(&location(number), "/echo").await;
        assert_eq!((answer.status, answer.source()), (200, "platform"), "{number}: {answer:?}");
    }
    let one = json!({ "resource": location(9), "force": true });
    assert_eq!(system.refresh(&one).await.expect("a summary")["refreshed"], 1);
    system.end().await;
}
