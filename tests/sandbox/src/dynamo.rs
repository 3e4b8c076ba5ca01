//! `DynamoDB` on this machine: an embedded engine that speaks the real wire protocol, and the schema of the one table.

use std::{path::Path, time::Duration};

use aws_sdk_dynamodb::{
    Client,
    config::{BehaviorVersion, Credentials, Region},
    error::DisplayErrorContext,
    operation::create_table::CreateTableError,
    types::{
        AttributeDefinition, BillingMode, GlobalSecondaryIndex, KeySchemaElement, KeyType, Projection, ProjectionType,
        ScalarAttributeType, TimeToLiveSpecification,
    },
};
use dynoxide::Database;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};

use crate::server::StartError;

/// Name of a key attribute and its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// Attribute name.
    pub name: &'static str,
    /// `S` or `N`, as `DynamoDB` writes it.
    pub kind: &'static str,
}

/// The attributes that an index holds besides its own keys and the table's keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Projected {
    /// Projection `KEYS_ONLY`.
    Keys,
    /// Projection `INCLUDE` with these attributes.
    Include(&'static [&'static str]),
}

/// A global secondary index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Index {
    /// Name.
    pub name: &'static str,
    /// Hash key.
    pub hash: Key,
    /// Range key.
    pub range: Key,
    /// Projection.
    pub projected: Projected,
}

/// A table as `template.yaml` declares it, with on-demand billing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableSchema {
    /// Hash key. The table has no range key.
    pub hash: Key,
    /// Indexes of the table.
    pub indexes: &'static [Index],
    /// Attribute with the second after which an item may be removed (TTL).
    pub expires: &'static str,
}

const PK: Key = Key { name: "pk", kind: "S" };

/// The schema of the one table. A test compares `template.yaml` with it.
pub const SCHEMA: TableSchema = TableSchema {
    hash: PK,
    indexes: &[
        Index {
            name: "due",
            hash: Key { name: "due_shard", kind: "S" },
            range: Key { name: "due_at", kind: "N" },
            projected: Projected::Include(&["epoch", "generation", "status", "lease_ends_at"]),
        },
        Index { name: "company", hash: Key { name: "company", kind: "S" }, range: PK, projected: Projected::Keys },
        Index {
            name: "outbox",
            hash: Key { name: "outbox_shard", kind: "S" },
            range: Key { name: "outbox_at", kind: "N" },
            projected: Projected::Keys,
        },
    ],
    expires: "expires_at",
};

impl TableSchema {
    /// Returns the schema in the form of a `CreateTable` request, without the table's name. Attributes are sorted by
    /// name.
    pub fn to_json(&self) -> Value {
        let key = |key: Key, role: &str| json!({ "AttributeName": key.name, "KeyType": role });
        let projection = |projected: Projected| match projected {
            Projected::Keys => json!({ "ProjectionType": "KEYS_ONLY" }),
            Projected::Include(names) => json!({ "ProjectionType": "INCLUDE", "NonKeyAttributes": names }),
        };
        let index = |index: &Index| {
            json!({
                "IndexName": index.name,
                "KeySchema": [key(index.hash, "HASH"), key(index.range, "RANGE")],
                "Projection": projection(index.projected),
            })
        };
        let attribute = |key: Key| json!({ "AttributeName": key.name, "AttributeType": key.kind });
        json!({
            "AttributeDefinitions": self.keys().into_iter().map(attribute).collect::<Vec<_>>(),
            "KeySchema": [key(self.hash, "HASH")],
            "GlobalSecondaryIndexes": self.indexes.iter().map(index).collect::<Vec<_>>(),
            "BillingMode": "PAY_PER_REQUEST",
        })
    }

    /// Returns every attribute that is a key of the table or of an index, sorted by name.
    fn keys(&self) -> Vec<Key> {
        let of_indexes = self.indexes.iter().flat_map(|index| [index.hash, index.range]);
        let mut keys: Vec<Key> = std::iter::once(self.hash).chain(of_indexes).collect();
        keys.sort_by_key(|key| key.name);
        keys.dedup();
        keys
    }
}

/// Creates the table with [`SCHEMA`]. A table that exists already is left unchanged.
///
/// # Errors
/// The engine refuses to create the table.
pub async fn create_table(client: &Client, name: &str) -> Result<(), StartError> {
    let refused = |error: String| StartError::Table(error);
    let mut create = client
        .create_table()
        .table_name(name)
        .billing_mode(BillingMode::PayPerRequest)
        .key_schema(element(SCHEMA.hash, KeyType::Hash).map_err(refused)?);
    for index in SCHEMA.indexes {
        create = create.global_secondary_indexes(global_index(index).map_err(refused)?);
    }
    for key in SCHEMA.keys() {
        let definition = AttributeDefinition::builder()
            .attribute_name(key.name)
            .attribute_type(ScalarAttributeType::from(key.kind))
            .build();
        create = create.attribute_definitions(definition.map_err(|error| refused(error.to_string()))?);
    }
    match create.send().await {
        Ok(_) => {}
        Err(error) if error.as_service_error().is_some_and(CreateTableError::is_resource_in_use_exception) => {
            return Ok(());
        }
        Err(error) => return Err(refused(DisplayErrorContext(error).to_string())),
    }
    let expiry = TimeToLiveSpecification::builder().enabled(true).attribute_name(SCHEMA.expires).build();
    client
        .update_time_to_live()
        .table_name(name)
        .time_to_live_specification(expiry.map_err(|error| refused(error.to_string()))?)
        .send()
        .await
        .map_err(|error| refused(DisplayErrorContext(error).to_string()))?;
    Ok(())
}

fn element(key: Key, role: KeyType) -> Result<KeySchemaElement, String> {
    KeySchemaElement::builder().attribute_name(key.name).key_type(role).build().map_err(|error| error.to_string())
}

fn global_index(index: &Index) -> Result<GlobalSecondaryIndex, String> {
    let projection = match index.projected {
        Projected::Keys => Projection::builder().projection_type(ProjectionType::KeysOnly),
        Projected::Include(names) => Projection::builder()
            .projection_type(ProjectionType::Include)
            .set_non_key_attributes(Some(names.iter().map(|&name| name.to_owned()).collect())),
    };
    GlobalSecondaryIndex::builder()
        .index_name(index.name)
        .key_schema(element(index.hash, KeyType::Hash)?)
        .key_schema(element(index.range, KeyType::Range)?)
        .projection(projection.build())
        .build()
        .map_err(|error| error.to_string())
}

/// Returns a client of the `DynamoDB` endpoint at `url`. Its credentials are valid nowhere.
pub fn client(url: &str) -> Client {
    let config = aws_sdk_dynamodb::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::from_static(crate::process::REGION))
        .credentials_provider(Credentials::new("sandbox", "sandbox", None, None, "sandbox"))
        .endpoint_url(url)
        .http_client(shared::http_client::aws())
        .build();
    Client::from_conf(config)
}

/// The embedded engine and its server. Dropping the handle ends the server.
#[derive(Debug)]
pub struct Dynamo {
    url: String,
    client: Client,
    _serving: Serving,
}

#[derive(Debug)]
struct Serving {
    _stop: oneshot::Sender<()>,
    server: JoinHandle<()>,
    sweeper: JoinHandle<()>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.sweeper.abort();
        self.server.abort();
    }
}

/// Interval at which expired items are removed. A real table may take hours; a minute shows that no code relies on TTL.
const SWEEP_EVERY: Duration = Duration::from_mins(1);

impl Dynamo {
    /// Starts an engine in memory, on a free port.
    ///
    /// # Errors
    /// The engine does not start, or no port is free.
    pub async fn memory() -> Result<Self, StartError> {
        Self::serve(Database::memory().map_err(|error| StartError::Database(error.to_string()))?).await
    }

    /// Starts an engine on a file, on a free port. Creates the file if it is missing.
    ///
    /// # Errors
    /// The engine does not start, no port is free, or the file is not a database.
    pub async fn file(path: &Path) -> Result<Self, StartError> {
        let database = Database::new(&path.to_string_lossy());
        Self::serve(database.map_err(|error| StartError::Database(format!("{}: {error}", path.display())))?).await
    }

    async fn serve(database: Database) -> Result<Self, StartError> {
        let refused = |source| StartError::Port { port: 0, source };
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(refused)?;
        let url = format!("http://{}", listener.local_addr().map_err(refused)?);
        let sweeper = tokio::spawn(sweep(database.clone()));
        let (stop, stopped) = oneshot::channel::<()>();
        let server = tokio::spawn(async move {
            let until = async {
                let _dropped = stopped.await;
            };
            let _served = dynoxide::server::serve_with_shutdown(listener, database, until).await;
        });
        let client = client(&url);
        Ok(Self { url, client, _serving: Serving { _stop: stop, server, sweeper } })
    }

    /// Returns the base URL, for `AWS_ENDPOINT_URL_DYNAMODB`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns a client of this engine.
    pub fn client(&self) -> Client {
        self.client.clone()
    }
}

async fn sweep(database: Database) {
    let mut every = tokio::time::interval(SWEEP_EVERY);
    loop {
        every.tick().await;
        let database = database.clone();
        // The engine is synchronous, and reading one page of a large table takes some time.
        let _swept = tokio::task::spawn_blocking(move || database.sweep_ttl()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_sdk_dynamodb::types::AttributeValue;

    #[tokio::test]
    async fn the_table_has_its_indexes_and_creating_it_twice_is_no_error() {
        let dynamo = Dynamo::memory().await.expect("starts");
        let client = dynamo.client();
        for _ in 0..2 {
            create_table(&client, "relay").await.expect("created, or there already");
        }
        client
            .put_item()
            .table_name("relay")
            .item("pk", AttributeValue::S("a".into()))
            .item("due_shard", AttributeValue::S("0".into()))
            .item("due_at", AttributeValue::N("7".into()))
            .item("epoch", AttributeValue::N("1".into()))
            .item("sealed", AttributeValue::S("not projected".into()))
            .send()
            .await
            .expect("written");
        let due = client
            .query()
            .table_name("relay")
            .index_name("due")
            .key_condition_expression("due_shard = :s AND due_at < :t")
            .expression_attribute_values(":s", AttributeValue::S("0".into()))
            .expression_attribute_values(":t", AttributeValue::N("8".into()))
            .send()
            .await
            .expect("queried");
        let item = due.items().first().expect("one item is due");
        assert!(item.contains_key("epoch") && !item.contains_key("sealed"), "{item:?}");
    }
}
