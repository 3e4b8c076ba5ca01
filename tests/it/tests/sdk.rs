//! The clients that a team already has, namely the platform's official clients and the AWS SDK, use the relay through a
//! real gateway. The examples of README.md, docs/calling.md, docs/queue.md and docs/recipes run as they are written, with the
//! environment that the sandbox prints.
//!
//! `SDK_NODE_MODULES` and `SDK_PYTHON` say where the clients of `tests/sdk` are installed; `.ci/run` installs them.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use aws_sdk_lambda::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_lambda::primitives::Blob;
use it::dynamo::skip;
use it::outside::{Setup, System, company, location};
use serde_json::{Value, json};
use tokio::process::Command;

/// The value of `variable`, which names the installed client. `None` if `variable` is not set; `test` is then recorded
/// as skipped.
fn installed(variable: &str, test: &str) -> Option<String> {
    let value = std::env::var(variable).ok();
    if value.is_none() {
        skip(test, &format!("no official client: set {variable}"));
    }
    value
}

/// A folder with the command `ops` for this system, as the documents write it.
fn tools(system: &System, driver: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the test's own path");
    let built = test.parent().and_then(Path::parent).expect("a target folder").join("ops");
    assert!(built.is_file(), "{} is not there: cargo build --workspace --bins", built.display());
    let folder = std::env::temp_dir().join(format!("hoopai-relay-tools-{}-{driver}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let variables =
        system.operators_environment().into_iter().map(|(name, value)| format!("export {name}='{value}'\n"));
    let script = format!("#!/bin/sh\n{}exec '{}' \"$@\"\n", variables.collect::<String>(), built.display());
    let program = folder.join("ops");
    std::fs::write(&program, script).expect("a file");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("a program");
    folder
}

async fn drive(driver: &str, program: &str, variables: &[(&str, &str)]) {
    let callers = vec![
        json!({ "id": "billing", "aliases": ["billing"], "methods": ["GET"] }),
        json!({ "id": "job", "queue": true }),
    ];
    let environment = vec![("BURST_LIMIT", "60".to_owned())];
    let system = System::start(Setup { callers, environment, ..Setup::default() }).await;
    for resource in [location(1), location(2), company()] {
        system.install(&resource).await;
    }
    let tools = tools(&system, driver);
    let path = format!("{}:{}", tools.display(), std::env::var("PATH").unwrap_or_default());
    let output = Command::new(program)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../sdk").join(driver))
        .envs(system.sandbox.examples_environment())
        .env("PATH", path)
        .env("LIMITED_LOCATION_ID", location(2).id())
        .env("AWS_SESSION_TOKEN", "a-session-token")
        .envs(variables.iter().copied())
        .output()
        .await
        .expect("it can be run");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    std::fs::remove_dir_all(tools).expect("removed");
    eprint!("{said}");
    system.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_node_client() {
    let Some(modules) = installed("SDK_NODE_MODULES", "the_official_node_client") else { return };
    drive("drive.js", "node", &[("NODE_PATH", &modules)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_python_client() {
    let Some(python) = installed("SDK_PYTHON", "the_official_python_client") else { return };
    drive("drive.py", &python, &[]).await;
}

/// The lines of docs/calling.md.
async fn invoke(
    lambda: &aws_sdk_lambda::Client,
    relay_function: &str,
    location_id: &str,
) -> Result<Value, Box<dyn std::error::Error>> {
    // cargo add aws-sdk-lambda serde_json
    let request = serde_json::json!({
        "resource": { "location": location_id },
        "method": "GET",
        "path": "/contacts/",
        "query": { "limit": "20" },
    });
    let payload = Blob::new(request.to_string());
    let invocation = lambda.invoke().function_name(relay_function).qualifier("billing").payload(payload);
    let invoked = invocation.send().await?;
    let answer: serde_json::Value = serde_json::from_slice(invoked.payload().map(Blob::as_ref).unwrap_or_default())?;
    Ok(answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rust_example() {
    let page = include_str!("../../../docs/calling.md");
    let (_, example) = page.split_once("<!-- example:invoke-rust -->\n```rust\n").expect("an example");
    let (example, _) = example.split_once("```").expect("its end");
    let written: Vec<_> = example.lines().map(|line| format!("    {line}")).collect();
    let (_, body) = include_str!("sdk.rs").split_once("Box<dyn std::error::Error>> {\n").expect("`invoke`");
    let (body, _) = body.split_once("\n    Ok(answer)").expect("its end");
    assert_eq!(written.join("\n"), body, "the page has other lines than `invoke`");

    let callers = vec![json!({ "id": "billing", "aliases": ["billing"], "methods": ["GET"] })];
    let system = System::start(Setup { callers, ..Setup::default() }).await;
    system.install(&location(1)).await;
    let config = aws_sdk_lambda::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .http_client(shared::http_client::aws())
        .endpoint_url(system.sandbox.runtime.url())
        .region(Region::new("us-east-1"))
        .credentials_provider(Credentials::new("sandbox", "sandbox", None, None, "test"))
        .build();
    let lambda = aws_sdk_lambda::Client::from_conf(config);
    let answer = invoke(&lambda, "relay", location(1).id()).await.expect("an answer");
    assert_eq!((&answer["status"], &answer["source"]), (&json!(200), &json!("platform")), "{answer}");
    assert!(answer["body"]["contacts"].is_array(), "{answer}");
    system.end().await;
}
