//! The clients that a team already has, namely the platform's official clients and the AWS SDK, use the relay through a
//! real gateway. The examples of README.md, docs/calling.md and docs/recipes run as they are written, with the environment
//! that the sandbox prints.
//!
//! `SDK_NODE_MODULES` and `SDK_PYTHON` say where the clients of `tests/sdk` are installed; `.ci/run` installs them.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

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
