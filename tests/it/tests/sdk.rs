//! The clients that a team already has, namely the platform's official clients and the AWS SDK, use the relay through a
//! real gateway. The examples of README.md, docs/calling.md and docs/recipes/nightly-job.md run as they are written.
//!
//! `SDK_NODE_MODULES` and `SDK_PYTHON` say where the clients of `tests/sdk` are installed; `.ci/run` installs them.

use std::io::Write as _;
use std::path::Path;

use it::dynamo::skip;
use it::outside::{Setup, System, company, location};
use serde_json::json;
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
    let gateway = system.sandbox.gateway.url();
    let output = Command::new(program)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../sdk").join(driver))
        .env("GATEWAY_URL", &gateway)
        .env("DROP_IN_URL", format!("{gateway}/api"))
        .env("RELAY_URL", format!("{gateway}/relay"))
        .env("RELAY_KEY", &system.sandbox.caller_key)
        .env("RELAY_FUNCTION", "relay")
        .env("LOCATION_ID", location(1).id())
        .env("LIMITED_LOCATION_ID", location(2).id())
        .env("COMPANY_ID", company().id())
        .env("AWS_ENDPOINT_URL_LAMBDA", system.sandbox.runtime.url())
        .env("AWS_ENDPOINT_URL_SQS", system.sandbox.calls.endpoint())
        .env("CALLS_QUEUE_URL", system.sandbox.calls.url())
        .env("RESULTS_QUEUE_URL", system.sandbox.results.url())
        .env("AWS_REGION", "us-east-1")
        .env("AWS_DEFAULT_REGION", "us-east-1")
        .env("AWS_ACCESS_KEY_ID", "sandbox")
        .env("AWS_SECRET_ACCESS_KEY", "sandbox")
        .env("AWS_SESSION_TOKEN", "a-session-token")
        .envs(variables.iter().copied())
        .output()
        .await
        .expect("it can be run");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let _told = write!(std::io::stderr(), "{said}");
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
