//! Installations in the table: what an item holds and how it is read.
//!
//! Each write is one `UpdateItem` whose condition names the version that it starts from. A condition that fails is
//! an answer and brings the item as it is. The writes: [`life`] (install, uninstall), [`rotation`] (everything under a
//! lease), [`due`] (the schedule's index), and [`super::minted`].

pub mod due;
pub mod life;
pub mod rotation;
pub(super) mod writing;

use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;

use super::{Attributes, Item, StoreError, Table, n, s};
use crate::domain::clock::Millis;
use crate::domain::event::Event;
use crate::domain::installation::{Gone, Installation, Minted, SealedPair, StandbyPair, installation_key, resource_of};
use crate::domain::resource::Resource;
use crate::domain::status::{Status, TokenVersion};

pub use due::{Due, DueKey, DuePage};
pub use life::NewInstallation;
pub use rotation::{Claim, LEASE, Renewal, Settlement};
pub use writing::DUE_SHARDS;

impl SealedPair {
    fn read(item: &Item) -> Option<Self> {
        let attributes = Attributes::of(item);
        Some(Self {
            access: attributes.bytes("access_token")?.to_vec(),
            refresh: attributes.bytes("refresh_token").map(<[u8]>::to_vec),
            access_issued_at: Millis(attributes.number("access_issued_at")?),
            access_expires_at: Millis(attributes.number("access_expires_at")?),
        })
    }

    fn to_map(&self) -> Item {
        let mut map = Item::from([
            ("access_token".to_owned(), b(&self.access)),
            ("access_issued_at".to_owned(), n(self.access_issued_at)),
            ("access_expires_at".to_owned(), n(self.access_expires_at)),
        ]);
        if let Some(refresh) = &self.refresh {
            map.insert("refresh_token".to_owned(), b(refresh));
        }
        map
    }
}

impl StandbyPair {
    fn read(map: &Item) -> Option<Self> {
        let attributes = Attributes::of(map);
        Some(Self {
            attempt: attributes.text("attempt")?.to_owned(),
            generation: attributes.number("generation")?,
            granted_from: attributes.number("granted_from")?,
            pair: SealedPair::read(map)?,
        })
    }

    pub(super) fn to_value(&self) -> AttributeValue {
        let mut map = self.pair.to_map();
        map.insert("attempt".to_owned(), s(&*self.attempt));
        map.insert("generation".to_owned(), n(self.generation));
        map.insert("granted_from".to_owned(), n(self.granted_from));
        AttributeValue::M(map)
    }
}

impl Gone {
    fn read(attributes: Attributes<'_>) -> Option<Self> {
        let generation: u64 = attributes.number("gone_generation")?;
        let is_current = attributes.number("generation") == Some(generation);
        let (since, tries) = (Millis(attributes.number("gone_since")?), attributes.number("gone_tries")?);
        is_current.then_some(Self { since, tries })
    }
}

impl Installation {
    pub(super) fn read(item: &Item) -> Result<Self, StoreError> {
        let attributes = Attributes::of(item);
        let need = |name: &'static str| attributes.malformed(name);
        let generation: u64 = attributes.number("generation").ok_or_else(|| need("generation"))?;
        let standby = item.get("standby").and_then(|value| value.as_l().ok()).map(Vec::as_slice).unwrap_or_default();
        // An element that cannot be read keeps its place, for writes name elements by their place: it is an error.
        let standby = standby.iter().map(|pair| pair.as_m().ok().and_then(StandbyPair::read));
        Ok(Self {
            resource: resource_of(attributes.text("pk").unwrap_or_default()).ok_or_else(|| need("pk"))?,
            status: attributes.text("status").and_then(Status::parse).ok_or_else(|| need("status"))?,
            version: TokenVersion { epoch: attributes.number("epoch").ok_or_else(|| need("epoch"))?, generation },
            pair: SealedPair::read(item),
            granted_from: attributes.number("granted_from").unwrap_or(generation.saturating_sub(1)),
            standby: standby.collect::<Option<_>>().ok_or_else(|| need("standby"))?,
            attempt: attributes.text("attempt").map(str::to_owned),
            lease_ends_at: attributes.number("lease_ends_at").map(Millis),
            committed_by: attributes.text("committed_by").map(str::to_owned),
            installed_at: Millis(attributes.number("installed_at").ok_or_else(|| need("installed_at"))?),
            revoked_at: attributes.number("revoked_at").map(Millis),
            due_at: attributes.number("due_at").map(Millis),
            forced_at: attributes.number("forced_at").map(Millis),
            doubted_generation: attributes.number("doubted_generation"),
            gone: Gone::read(attributes),
            tried_at: attributes.number("tried_at").map(Millis),
            claimed_from: attributes.text("claimed_from").and_then(Status::parse),
            retry_at: attributes.number("retry_at").map(Millis),
            failures: attributes.number("failures").unwrap_or(0),
            refused_generation: attributes.number("refused_generation"),
            company: attributes.text("company").map(str::to_owned),
            home: attributes.text("home").map(str::to_owned),
            minted: attributes.flag("minted").then(|| Minted {
                company_epoch: attributes.number("company_epoch").unwrap_or(0),
                absent_until: attributes.number("absent_until").map(Millis),
                absent_newest: attributes.number("absent_newest").map(Millis),
                search_since: attributes.number("search_since").map(Millis),
                supposed: attributes.flag("supposed"),
            }),
            told: attributes.text("told").and_then(Status::parse),
            outbox: attributes.texts("outbox").filter_map(Event::parse).collect(),
        })
    }
}

impl Table {
    /// Reads an installation as it is now (strongly consistent).
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn installation(&self, resource: &Resource) -> Result<Option<Installation>, StoreError> {
        let answer = self
            .client
            .get_item()
            .table_name(&*self.name)
            .key("pk", s(installation_key(resource)))
            .consistent_read(true)
            .send()
            .await?;
        answer.item().map(Installation::read).transpose()
    }
}

pub(super) fn b(bytes: &[u8]) -> AttributeValue {
    AttributeValue::B(Blob::new(bytes))
}
