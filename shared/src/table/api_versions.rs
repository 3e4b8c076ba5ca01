//! The versions of the platform's API that work, remembered for all processes in the item `app#api`.

use super::{Attributes, StoreError, Table, Update, s};
use crate::domain::api_version::{ApiVersion, OwnCall};
use crate::platform::api_versions::{Remembered, Remembering, VersionMemory};

/// The key of the item. Each attribute is a call, and its value a version.
const KEY: &str = "app#api";

impl Table {
    /// The version that works for each of the system's own calls, where one is remembered.
    pub async fn api_versions(&self) -> Result<Remembered, StoreError> {
        let answer = self.client.get_item().table_name(&*self.name).key("pk", s(KEY)).send().await?;
        let Some(item) = answer.item() else { return Ok(Remembered::new()) };
        let attributes = Attributes::of(item);
        let version = |call: OwnCall| Some((call, ApiVersion::parse(attributes.text(call.as_str())?)?));
        Ok(OwnCall::ALL.iter().copied().filter_map(version).collect())
    }

    /// Remembers the version that works for one of the system's own calls.
    pub async fn remember_api_version(&self, call: OwnCall, version: ApiVersion) -> Result<(), StoreError> {
        let mut write = Update::of(KEY);
        // Names with `#`, because some are reserved words of DynamoDB.
        write.set(&format!("#{}", call.as_str()), s(version.as_str()));
        self.write(write).await.map(drop)
    }
}

impl VersionMemory for Table {
    fn load(&self) -> Remembering<'_, Remembered> {
        Box::pin(async { self.api_versions().await.map_err(|error| error.to_string()) })
    }

    fn store(&self, call: OwnCall, version: ApiVersion) -> Remembering<'_, ()> {
        Box::pin(async move { self.remember_api_version(call, version).await.map_err(|error| error.to_string()) })
    }
}
