//! The two engines, and clients of them as the functions have.

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::{Credentials, Region};
use it::dynamo::{Engine, Kind};
use shared::app::aws_defaults;
use shared::table::Table;

const LOCAL: &str = "DynamoDB Local";

/// A running engine.
pub(crate) struct Store {
    /// Its name in the report.
    pub(crate) name: &'static str,
    engine: Engine,
}

impl Store {
    /// The engine that is part of this program.
    pub(crate) async fn embedded() -> Self {
        let engine = Engine::start(Kind::Embedded, "bench").await.expect("it is always there");
        Self { name: "embedded", engine }
    }

    /// DynamoDB Local, where it is to be had.
    pub(crate) async fn local() -> Option<Self> {
        Some(Self { name: LOCAL, engine: Engine::start(Kind::Local, "bench").await? })
    }

    /// Whether it is DynamoDB Local.
    pub(crate) fn is_local(&self) -> bool {
        self.name == LOCAL
    }

    /// Base URL.
    pub(crate) fn url(&self) -> String {
        self.engine.url()
    }

    /// A new table with the schema of the template.
    pub(crate) async fn table(&self) -> Table {
        let name = format!("bench-{:016x}", fastrand::u64(..));
        let client = client(&self.url()).await;
        sandbox::dynamo::create_table(&client, &name).await.expect("a table");
        Table { client, name: name.into() }
    }
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

/// A client of its own, configured as a function's.
pub(crate) async fn client(url: &str) -> Client {
    Client::new(&sdk(url).await)
}
