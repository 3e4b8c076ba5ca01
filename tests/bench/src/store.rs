//! The two engines, and clients that are configured as the functions' clients.

use std::path::Path;
use std::process::Stdio;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::{Credentials, Region};
use it::dynamo::{Engine, Kind, local_folder, usual_local_folder};
use shared::app::aws_defaults;
use shared::table::Table;
use tokio::process::Command;

const LOCAL: &str = "DynamoDB Local";

/// A running engine.
pub(crate) struct Store {
    /// The engine's name in the report.
    pub(crate) name: &'static str,
    engine: Engine,
}

impl Store {
    /// The engine that is part of this program.
    pub(crate) async fn embedded() -> Self {
        let engine = Engine::start(Kind::Embedded, "bench").await.expect("it is always there");
        Self { name: "embedded", engine }
    }

    /// DynamoDB Local, which is installed if it is missing. The error is the reason why it is not available.
    pub(crate) async fn local() -> Result<Self, String> {
        let java = Command::new("java").arg("-version").stdout(Stdio::null()).stderr(Stdio::null()).status().await;
        if !java.is_ok_and(|status| status.success()) {
            return Err("needs Java 17".to_owned());
        }
        if local_folder().is_none() {
            install().await?;
        }
        let engine = Engine::start(Kind::Local, "bench").await.ok_or("no jar in DYNAMODB_LOCAL_DIR")?;
        Ok(Self { name: LOCAL, engine })
    }

    /// Returns true if the engine is DynamoDB Local.
    pub(crate) fn is_local(&self) -> bool {
        self.name == LOCAL
    }

    /// The base URL.
    pub(crate) fn url(&self) -> String {
        self.engine.url()
    }

    /// Creates a table with the schema of the template.
    pub(crate) async fn table(&self) -> Table {
        let name = format!("bench-{}", shared::domain::random::hex::<8>());
        let client = client(&self.url()).await;
        sandbox::dynamo::create_table(&client, &name).await.expect("a table");
        Table { client, name: name.into() }
    }
}

/// Installs DynamoDB Local in the folder in which it is expected.
async fn install() -> Result<(), String> {
    if std::env::var_os("DYNAMODB_LOCAL_DIR").is_some() {
        return Err("no DynamoDBLocal.jar in DYNAMODB_LOCAL_DIR".to_owned());
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.ci/dynamodb-local");
    let output = Command::new(script).arg(usual_local_folder()).output().await;
    let output = output.map_err(|error| format!(".ci/dynamodb-local does not start: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("`.ci/dynamodb-local` fails: {}", said.trim().lines().last().unwrap_or("without a word")))
}

/// The SDK's configuration of a function, for services at `url`.
pub(crate) async fn sdk(url: &str) -> aws_config::SdkConfig {
    aws_defaults()
        .region(Region::from_static(sandbox::process::REGION))
        .credentials_provider(Credentials::new("sandbox", "sandbox", None, None, "sandbox"))
        .endpoint_url(url)
        .load()
        .await
}

/// A new client, configured as a function's client.
pub(crate) async fn client(url: &str) -> Client {
    Client::new(&sdk(url).await)
}
