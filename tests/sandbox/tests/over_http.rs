//! Tests of the fake platform and the emulators over HTTP, with the clients that the functions use: the AWS SDKs and
//! `reqwest`.

use std::{collections::HashMap, time::Duration};

use sandbox::{
    events::EventBus,
    gateway::Gateway,
    marketplace::{
        self, Marketplace,
        faults::{Endpoint, Fault},
        grants::{RefreshTokenState, Resource, Rotation},
        window::Limits,
    },
    queue::Queue,
    runtime_api::{Invocation, RuntimeApi},
    secrets::{Failure, Secrets},
    whole::{Options, Programs, Sandbox},
};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};

type TestResult = Result<(), Box<dyn std::error::Error>>;

fn location(id: &str) -> Resource {
    Resource::Location(id.to_owned())
}

async fn platform() -> Marketplace {
    Marketplace::start(marketplace::Options::default(), EventBus::default()).await.expect("starts")
}

/// Posts a form to the token endpoint. Returns `Err` if no answer came.
async fn token(platform: &Marketplace, fields: &[(&str, &str)]) -> reqwest::Result<(u16, Value)> {
    let options = platform.options();
    let mut body = url::form_urlencoded::Serializer::new(String::new());
    // The first value of a name counts, so a test can give its own.
    body.extend_pairs(fields);
    body.append_pair("client_id", &options.client_id).append_pair("client_secret", &options.client_secret);
    let request = reqwest::Client::new()
        .post(format!("{}/oauth/token", platform.url()))
        .header("content-type", "application/x-www-form-urlencoded")
        .body(body.finish());
    let response = request.send().await?;
    let status = response.status().as_u16();
    let text = response.text().await?;
    Ok((status, serde_json::from_str(&text).unwrap_or(Value::String(text))))
}

async fn install(platform: &Marketplace, resource: Resource) -> Value {
    let code = platform.authorize(resource);
    let (status, answer) =
        token(platform, &[("grant_type", "authorization_code"), ("code", &code)]).await.expect("an answer");
    assert_eq!(status, 200, "{answer}");
    answer
}

async fn refresh(platform: &Marketplace, token_: &str) -> reqwest::Result<(u16, Value)> {
    token(platform, &[("grant_type", "refresh_token"), ("refresh_token", token_)]).await
}

async fn get(platform: &Marketplace, token: &str, target: &str) -> reqwest::Response {
    let request = reqwest::Client::new().get(format!("{}{target}", platform.url()));
    request.bearer_auth(token).header("version", "2021-07-28").send().await.expect("an answer")
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_else(|| panic!("{name} in {value}"))
}

#[tokio::test]
async fn a_lost_answer_is_recovered_within_the_window_and_a_dead_chain_stays_dead() -> TestResult {
    let platform = platform().await;
    let first = install(&platform, location("HLlocation000000001")).await;
    let old = text(&first, "refresh_token");
    platform.fault(Endpoint::Refresh, Fault::answer_lost(), Some(1));
    assert!(refresh(&platform, old).await.is_err(), "the connection closes without an answer");
    assert_eq!(platform.refresh_token_state(old), RefreshTokenState::Replayable, "the platform rotated all the same");
    let (status, second) = refresh(&platform, old).await?;
    assert_eq!(status, 200);
    assert_eq!(platform.refresh_token_state(text(&second, "refresh_token")), RefreshTokenState::Live);
    platform.advance(Duration::from_secs(31));
    let (status, refusal) = refresh(&platform, old).await?;
    assert_eq!(
        (status, refusal),
        (400, json!({ "statusCode": 400, "message": "Invalid grant: refresh token is invalid" }))
    );
    let outcomes: Vec<_> = platform.token_requests().iter().map(|seen| (seen.grant.clone(), seen.status)).collect();
    let refreshes = [None, Some(200), Some(400)].map(|status| ("refresh_token".to_owned(), status));
    assert_eq!(outcomes[1..], refreshes);

    platform.change(|options| options.rotation = Rotation::FamilyRevoking);
    refresh(&platform, old).await?;
    assert_eq!(platform.refresh_token_state(text(&second, "refresh_token")), RefreshTokenState::Dead);
    Ok(())
}

#[tokio::test]
async fn a_fault_before_the_work_spends_nothing_and_each_counts_down() -> TestResult {
    let platform = platform().await;
    let first = install(&platform, location("HLlocation000000001")).await;
    let old = text(&first, "refresh_token");
    platform.fault(Endpoint::Refresh, Fault::HangUp { processed: false }, Some(1));
    platform.fault(Endpoint::Token, Fault::wrong_client(), Some(1));
    assert!(refresh(&platform, old).await.is_err());
    let (status, refusal) = refresh(&platform, old).await?;
    assert_eq!((status, text(&refusal, "error_description")), (401, "Invalid client credentials!"));
    assert_eq!(platform.refresh_token_state(old), RefreshTokenState::Live);
    platform.fault(Endpoint::Refresh, Fault::Without { field: "refresh_token".into() }, Some(1));
    let (status, answer) = refresh(&platform, old).await?;
    assert_eq!((status, answer.get("refresh_token")), (200, None));
    platform.fault(Endpoint::Refresh, Fault::Truncated, Some(1));
    let (status, answer) = refresh(&platform, old).await?;
    assert!(status == 200 && answer.is_string(), "unreadable: {answer}");
    assert_eq!(refresh(&platform, old).await?.0, 200, "no fault is left");
    Ok(())
}

#[tokio::test]
async fn codes_are_checked_before_the_client_and_the_classes_differ() -> TestResult {
    let platform = platform().await;
    let code = platform.authorize(location("HLlocation000000001"));
    let with_secret = |code: &str, secret: &str| {
        let fields = [("grant_type", "authorization_code"), ("code", code), ("client_secret", secret)];
        let fields = fields.map(|(name, value)| (name, value.to_owned()));
        let platform = &platform;
        async move { token(platform, &fields.each_ref().map(|(name, value)| (*name, value.as_str()))).await }
    };
    let said = |description: &str| (401, json!({ "error": "UnAuthorized!", "error_description": description }));
    assert_eq!(with_secret("unknown", "wrong").await?, said("Authorization code not found"));
    assert_eq!(with_secret(&code, "wrong").await?, said("Invalid client credentials!"));
    let right = platform.options().client_secret;
    assert_eq!(with_secret(&code, &right).await?.0, 200, "a wrong secret does not spend the code");
    assert_eq!(with_secret(&code, "wrong").await?, said("Authorization code not found"));
    let agency = install(&platform, Resource::Company("HLcompany0000000001".into())).await;
    assert_eq!(text(&agency, "userType"), "Company");
    assert_eq!(agency.get("locationId"), None);
    let access = text(&agency, "access_token");
    let refused = get(&platform, access, "/contacts/").await;
    assert_eq!(refused.status(), 401, "a company's token on a location's route");
    let minted = reqwest::Client::new()
        .post(format!("{}/oauth/locationToken", platform.url()))
        .bearer_auth(access)
        .header("version", "2021-07-28")
        .header("content-type", "application/x-www-form-urlencoded")
        .body("companyId=HLcompany0000000001&locationId=HLlocation000000002")
        .send()
        .await?;
    assert_eq!(minted.status(), 201);
    let minted: Value = serde_json::from_str(&minted.text().await?)?;
    assert_eq!(get(&platform, text(&minted, "access_token"), "/contacts/").await.status(), 200);
    assert_eq!(
        get(&platform, text(&minted, "access_token"), "/contacts/?locationId=HLlocation000000001").await.status(),
        403
    );
    let page = "/oauth/installedLocations?companyId=HLcompany0000000001&appId=6512ab34cd56ef7890ab12cd&skip=2&limit=2";
    let page: Value = serde_json::from_str(&get(&platform, access, page).await.text().await?)?;
    assert_eq!((page["locations"].as_array().map(Vec::len), &page["count"]), (Some(1), &json!(3)));
    assert_eq!(page["locations"][0]["_id"], "HLlocation000000003");
    Ok(())
}

#[tokio::test]
async fn the_api_counts_requests_sends_limit_headers_and_refuses_above_the_limit() -> TestResult {
    let platform = platform().await;
    let resource = location("HLlocation000000001");
    platform.change(|options| options.limits = Limits { burst: 3, interval_ms: 10_000, daily: 100 });
    let pair = install(&platform, resource.clone()).await;
    let access = text(&pair, "access_token");
    let first = get(&platform, access, "/contacts/?limit=1").await;
    assert_eq!(first.headers()["x-ratelimit-max"], "3");
    assert_eq!(first.headers()["x-ratelimit-remaining"], "2");
    platform.expire_access_tokens();
    let expired = get(&platform, access, "/contacts/").await;
    assert_eq!(expired.status(), 401);
    assert!(expired.text().await?.contains("Invalid JWT"));
    let (_, pair) = refresh(&platform, text(&pair, "refresh_token")).await?;
    let access = text(&pair, "access_token");
    assert_eq!(get(&platform, access, "/payments/orders").await.status(), 401);
    let over = get(&platform, access, "/contacts/").await;
    assert_eq!(over.status(), 429);
    assert_eq!((platform.worst_window(&resource), platform.api_requests(&resource).len()), (4, 4));
    platform.advance(Duration::from_secs(10));
    assert_eq!(get(&platform, access, "/contacts/").await.status(), 200);
    assert_eq!(get(&platform, "garbage", "/contacts/").await.status(), 401);
    assert_eq!((platform.worst_window(&resource), platform.strangers()), (4, 1));
    Ok(())
}

#[tokio::test]
async fn the_echo_returns_the_path_undecoded() -> TestResult {
    let platform = platform().await;
    let pair = install(&platform, location("HLlocation000000001")).await;
    let target = "/echo/a%2Fb//c%20d/?tag=a&tag=b%2Cc&&empty=&plus=+";
    let echo = get(&platform, text(&pair, "access_token"), target).await.text().await?;
    let echo: Value = serde_json::from_str(&echo)?;
    assert_eq!(format!("{}?{}", text(&echo, "path"), text(&echo, "query")), target);
    let bytes = get(&platform, text(&pair, "access_token"), "/bytes").await.bytes().await?;
    assert!(bytes.len() == 511 && std::str::from_utf8(&bytes).is_err());
    Ok(())
}

#[tokio::test]
async fn consent_redirects_with_a_code_and_the_state() -> TestResult {
    let platform = platform().await;
    platform.allow_redirect("http://127.0.0.1:1/oauth/callback");
    let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build()?;
    let form = |redirect: &str, choice: &str| {
        let mut form = url::form_urlencoded::Serializer::new(String::new());
        form.append_pair("response_type", "code").append_pair("client_id", &platform.options().client_id);
        form.append_pair("redirect_uri", redirect).append_pair("state", "a b&c").append_pair("choice", choice);
        let request = client.post(format!("{}/v2/oauth/chooselocation", platform.url()));
        request.header("content-type", "application/x-www-form-urlencoded").body(form.finish()).send()
    };
    let agreed = form("http://127.0.0.1:1/oauth/callback", "location:HLlocation000000001").await?;
    let back = agreed.headers()["location"].to_str()?;
    assert!(back.starts_with("http://127.0.0.1:1/oauth/callback?code=") && back.ends_with("&state=a+b%26c"), "{back}");
    let refused = form("http://127.0.0.1:1/oauth/callback", "refuse").await?;
    assert!(refused.headers()["location"].to_str()?.contains("?error=access_denied&"));
    assert_eq!(form("http://127.0.0.1:1/oauth/callback/", "refuse").await?.status(), 400, "compared exactly");
    Ok(())
}

#[tokio::test]
async fn secrets_manager_answers_the_sdk() -> TestResult {
    use aws_sdk_secretsmanager::{Client, Config, config, operation::get_secret_value::GetSecretValueError};
    let secrets = Secrets::start().await?;
    let client = Client::from_conf(
        Config::builder()
            .behavior_version(config::BehaviorVersion::latest())
            .region(config::Region::new("us-east-1"))
            .credentials_provider(config::Credentials::new("a", "b", None, None, "test"))
            .retry_config(config::retry::RetryConfig::disabled())
            .endpoint_url(secrets.url())
            .http_client(shared::http_client::aws())
            .build(),
    );
    secrets.put("app", "one");
    assert_eq!(client.get_secret_value().secret_id("app").send().await?.secret_string(), Some("one"));
    let missing = client.get_secret_value().secret_id("none").send().await.expect_err("missing");
    assert!(
        missing.as_service_error().is_some_and(GetSecretValueError::is_resource_not_found_exception),
        "{missing:?}"
    );
    client.put_secret_value().secret_id("app").secret_string("two").send().await?;
    assert_eq!(secrets.get("app").as_deref(), Some("two"));
    secrets.fail(Some(Failure::AccessDenied));
    let denied = client.get_secret_value().secret_id("app").send().await.expect_err("denied");
    assert_eq!(denied.as_service_error().and_then(|error| error.meta().code()), Some("AccessDeniedException"));
    assert_eq!((secrets.requests_for("app"), secrets.requests()), (3, 4));
    Ok(())
}

/// Starts a worker in this process. It answers every invocation with the result of `work` for the event.
async fn work(runtime: &RuntimeApi, function: &str, work: fn(&Value) -> Value) -> tokio::task::JoinHandle<()> {
    let base = format!("{}/2018-06-01/runtime/invocation", runtime.url_for(function, "test"));
    let worker = tokio::spawn(async move {
        let client = reqwest::Client::new();
        while let Ok(job) = client.get(format!("{base}/next")).send().await {
            let id = job.headers()["lambda-runtime-aws-request-id"].to_str().expect("text").to_owned();
            let event: Value = serde_json::from_str(&job.text().await.expect("a body")).expect("JSON");
            let answer = work(&event).to_string();
            client.post(format!("{base}/{id}/response")).body(answer).send().await.expect("taken");
        }
    });
    while runtime.polls(function) == 0 {
        tokio::task::yield_now().await;
    }
    worker
}

#[tokio::test]
async fn the_queue_accepts_messages_from_the_sdk_and_delivers_them_to_the_function() -> TestResult {
    use aws_sdk_sqs::{Client, Config, config};
    let runtime = RuntimeApi::start(EventBus::default()).await?;
    let queue = Queue::start(Duration::ZERO).await?;
    let client = Client::from_conf(
        Config::builder()
            .behavior_version(config::BehaviorVersion::latest())
            .region(config::Region::new("us-east-1"))
            .credentials_provider(config::Credentials::new("a", "b", None, None, "test"))
            .endpoint_url(queue.endpoint())
            .http_client(shared::http_client::aws())
            .build(),
    );
    for body in ["good", "bad"] {
        client.send_message().queue_url(queue.url()).message_body(body).send().await?;
    }
    let read = client.receive_message().queue_url(queue.url()).max_number_of_messages(10).send().await?;
    assert_eq!(read.messages().iter().filter_map(|message| message.body()).collect::<Vec<_>>(), ["good", "bad"]);
    let refuse_bad = |event: &Value| {
        let records = event["Records"].as_array().expect("records").iter();
        let bad = records.filter(|record| record["body"] == "bad");
        json!({ "batchItemFailures": bad.map(|record| json!({ "itemIdentifier": record["messageId"] })).collect::<Vec<_>>() })
    };
    let worker = work(&runtime, "refresh", refuse_bad).await;
    let _poller = queue.deliver_to(&runtime, "refresh", None);
    let dead = async {
        while queue.dead_letters().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), dead).await?;
    assert_eq!(queue.dead_letters()[0].body, "bad");
    assert_eq!(queue.dead_letters()[0].receives, 5);
    assert!(queue.messages().is_empty(), "the good one is deleted");
    worker.abort();
    Ok(())
}

#[tokio::test]
async fn the_gateway_passes_requests_to_the_function_and_answers_back() -> TestResult {
    let runtime = RuntimeApi::start(EventBus::default()).await?;
    let gateway = Gateway::start(0, runtime.clone(), None, EventBus::default()).await?;
    let echo = |event: &Value| {
        json!({
            "statusCode": 201,
            "headers": { "content-type": "application/json" },
            "cookies": ["seen=1; HttpOnly"],
            "body": event.to_string(),
        })
    };
    let worker = work(&runtime, "relay", echo).await;
    let client = reqwest::Client::new();
    let url = format!("{}/relay/locations/L1/contacts/?tag=a&tag=b%2Cc", gateway.url());
    let response = client.post(&url).header("cookie", "a=1; b=2").body("x").send().await?;
    assert_eq!(response.status(), 201);
    assert_eq!(response.headers()["set-cookie"], "seen=1; HttpOnly");
    let event: Value = serde_json::from_str(&response.text().await?)?;
    assert_eq!(event["routeKey"], "ANY /relay/locations/{id}/{path+}");
    assert_eq!(event["pathParameters"], json!({ "id": "L1", "path": "contacts/" }));
    assert_eq!(event["rawQueryString"], "tag=a&tag=b%2Cc");
    assert_eq!(event["cookies"], json!(["a=1", "b=2"]));

    let unsigned = client.get(format!("{}/iam/relay/locations/L1", gateway.url())).send().await?;
    assert_eq!(unsigned.status(), 403);
    assert_eq!(client.get(format!("{}/nothing", gateway.url())).send().await?.status(), 404);
    for (size, status) in [(10 * 1024 * 1024, 500), (10 * 1024 * 1024 + 1, 413)] {
        // The smaller body passes the gateway, but is larger than Lambda's limit.
        let response = client.post(&url).body(vec![b'x'; size]).send().await?;
        assert_eq!(response.status(), status, "{size} bytes");
    }
    worker.abort();

    let qualified = Invocation { timeout: Duration::from_millis(50), ..Invocation::default() };
    assert!(runtime.invoke_json("relay", &json!({}), qualified).await.is_err(), "nobody is left to answer");
    Ok(())
}

/// Runs the sandbox with options that cannot work. Returns its exit code and what it says.
async fn refused(options: &[&str]) -> (Option<i32>, String) {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_sandbox"));
    let command =
        command.args(["--port", "0", "--platform-port", "0", "--no-console"]).args(options).kill_on_drop(true);
    let run = tokio::time::timeout(Duration::from_mins(1), command.output()).await;
    let done = run.unwrap_or_else(|_| panic!("{options:?}: it runs on")).expect("it runs");
    assert_eq!(String::from_utf8_lossy(&done.stdout), "", "{options:?}");
    (done.status.code(), String::from_utf8_lossy(&done.stderr).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_option_that_cannot_work_is_refused_with_one_sentence() {
    let folder = std::env::temp_dir().join(format!("sandbox-options-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let (inside, file) = (folder.join("data"), folder.join("relay.db"));
    std::fs::create_dir_all(&inside).expect("a folder");
    let data = Some(file.clone());
    let other = Sandbox::start(Options { data, programs: Programs::None, ..Options::default() }, EventBus::default());
    let other = other.await.expect("the first sandbox with this file");
    let path = |path: &std::path::Path| path.to_str().expect("UTF-8").to_owned();
    for (options, said) in [
        (["--burst", "0"], "--burst must be 1 or more"),
        (["--relays", "0"], "--relays must be 1 or more"),
        (["--data", &path(&inside)], "this is a folder"),
        (["--data", &path(&folder.join("no/relay.db"))], "cannot be written"),
        (["--data", &path(&file)], "another sandbox uses this file"),
        (["--env", "BURST_LIMIT=many"], "does not start: BURST_LIMIT must be a whole number"),
    ] {
        let (code, text) = refused(&options).await;
        assert_eq!((code, text.lines().count()), (Some(1), 1), "{options:?}: {text}");
        assert!(text.starts_with("sandbox: ") && text.contains(said), "{options:?}: {text}");
    }
    assert_eq!(std::fs::read_dir(&inside).expect("a folder").count(), 0, "nothing is written");
    other.end().await;
    std::fs::remove_dir_all(&folder).expect("removed");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_sandbox_prints_is_enough_to_install_and_to_call() {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_sandbox"));
    let options = ["--port", "0", "--platform-port", "0", "--console-port", "0"];
    let mut child =
        command.args(options).stdout(std::process::Stdio::piped()).kill_on_drop(true).spawn().expect("runs");
    let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
    let mut said = Vec::new();
    while let Some(line) = lines.next_line().await.expect("its output") {
        let is_last = line.starts_with("Ctrl-C");
        said.push(line);
        if is_last {
            break;
        }
    }
    let exports: HashMap<_, _> = said
        .iter()
        .filter_map(|line| line.strip_prefix("export ")?.split_once('='))
        .map(|(name, value)| (name, value.trim_matches('\'')))
        .collect();
    let after = |label: &str| {
        let found =
            said.iter().find_map(|line| line.split(label).nth(1)).unwrap_or_else(|| panic!("{label}: {said:#?}"));
        found.trim().to_owned()
    };
    let location = exports["LOCATION_ID"];
    let body = json!({ "resource": { "location": location } }).to_string();
    let http = reqwest::Client::new();
    let install = said.iter().find(|line| line.contains("/_sandbox/install")).expect("a command");
    assert!(install.contains(&body), "{install}");
    let installed =
        http.post(install.split_whitespace().last().expect("a URL")).body(body).send().await.expect("an answer");
    assert_eq!(installed.status(), 200, "the page after the redirect");
    let url = format!("{}/locations/{location}/contacts/", exports["RELAY_URL"]);
    let answer = http.get(url).bearer_auth(exports["RELAY_KEY"]).send().await.expect("an answer");
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["relay-source"]),
        (200, &"platform".parse().expect("a value"))
    );
    let console = after("the console, with buttons");
    let same = http.get(format!("{console}/exports")).send().await.expect("an answer").text().await.expect("a text");
    assert!(same.lines().all(|line| said.iter().any(|known| known == line)), "{same}");
}
