//! Engines (stores) as the processes of these tests use them: clients whose requests are counted, and tables.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::interceptors::BeforeTransmitInterceptorContextRef;
use aws_sdk_dynamodb::config::{BehaviorVersion, ConfigBag, Credentials, Intercept, Region, RuntimeComponents};
use aws_sdk_dynamodb::error::BoxError;
use aws_sdk_dynamodb::operation::create_table::CreateTableError;
use aws_sdk_dynamodb::types::{AttributeDefinition, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType};
pub(crate) use engines::variable;
pub use engines::{Kind, local_folder, skip, usual_local_folder};
use shared::table::Table;

/// A running engine. Dropping it stops it.
#[derive(Debug)]
pub struct Engine(engines::Engine);

/// Requests that were sent to an engine, SDK-internal retries included.
#[derive(Clone, Debug, Default)]
pub struct Calls(Arc<AtomicUsize>);

impl Calls {
    /// The number of requests so far.
    pub fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Intercept for Calls {
    fn name(&self) -> &'static str {
        "Calls"
    }

    fn read_before_transmit(
        &self,
        _: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

impl Engine {
    /// Starts an engine. `None` if `kind` is [`Kind::Local`] and this machine has no DynamoDB Local; `test` is then
    /// recorded as skipped.
    ///
    /// # Panics
    /// If an installed engine does not start, or if `test` would be skipped although `CI=true`.
    pub async fn start(kind: Kind, test: &str) -> Option<Self> {
        engines::Engine::start(kind, test).await.map(Self)
    }

    /// Base URL.
    pub fn url(&self) -> String {
        self.0.url()
    }

    /// A client of its own, as each process has one, and the count of the requests that the client sends.
    pub fn client(&self) -> (Client, Calls) {
        let calls = Calls::default();
        let config = aws_sdk_dynamodb::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .credentials_provider(Credentials::new("test", "test", None, None, "test"))
            .endpoint_url(self.url())
            .http_client(shared::http_client::aws())
            .interceptor(calls.clone())
            .build();
        (Client::from_conf(config), calls)
    }

    /// Creates a table of its own, with a partition key only.
    ///
    /// # Panics
    /// If the engine does not create it.
    pub async fn table(&self) -> Table {
        let name = format!("it-{}", shared::domain::random::hex::<8>());
        let (client, _) = self.client();
        let key = KeySchemaElement::builder().attribute_name("pk").key_type(KeyType::Hash).build();
        let attribute =
            AttributeDefinition::builder().attribute_name("pk").attribute_type(ScalarAttributeType::S).build();
        let created = client
            .create_table()
            .table_name(&name)
            .billing_mode(BillingMode::PayPerRequest)
            .key_schema(key.expect("a key"))
            .attribute_definitions(attribute.expect("an attribute"))
            .send()
            .await;
        // The SDK repeats the request if a cold engine answers the first one with an error. No other test uses the
        // name, so a table of that name is this one.
        if let Err(error) = created {
            let exists = error.as_service_error().is_some_and(CreateTableError::is_resource_in_use_exception);
            assert!(exists, "a table: {error:?}");
        }
        Table { client, name: name.into() }
    }
}
