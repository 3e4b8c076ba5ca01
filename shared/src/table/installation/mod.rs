//! Installations in the table: what an item holds and how it is read.
//!
//! Each write is one `UpdateItem` whose condition names the lineage that it starts from. A condition that fails is
//! an answer and brings the item as it is. The writes: [`life`] (install, uninstall), [`rotation`] (everything under a
//! lease), [`due`] (the schedule's index), and [`super::minted`].

pub mod due;
pub mod life;
pub mod rotation;
pub(super) mod writing;

use std::fmt;

use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;

use super::{Attributes, Item, StoreError, Table, installation_key, n, outbox, s};
use crate::clock::Millis;
use crate::installation::state::{Lineage, Status};
use crate::lifecycle::event::Event;
use crate::resource::{Kind, Resource};

pub use due::{DUE_SHARDS, Due, DueKey, DuePage};
pub use life::NewInstallation;
pub use rotation::{Claim, Claimed, LEASE, Renewal, Settlement};
pub use writing::Changed;

/// Two sealed tokens and the life of the access token. `Debug` tells their lengths only.
#[derive(Clone, PartialEq, Eq)]
pub struct SealedPair {
    /// The sealed access token.
    pub access: Vec<u8>,
    /// The sealed refresh token.
    pub refresh: Option<Vec<u8>>,
    /// When the platform granted the access token.
    pub access_issued_at: Millis,
    /// When the access token ends.
    pub access_expires_at: Millis,
}

impl fmt::Debug for SealedPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (access, refresh) = (self.access.len(), self.refresh.as_ref().map_or(0, Vec::len));
        write!(f, "SealedPair({access} and {refresh} bytes, until {})", self.access_expires_at)
    }
}

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

/// A pair that was granted and did not become the current one. It may be the live one, and is tried before anybody is
/// asked to install again. It stays until then, whatever is stored as the current pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StandbyPair {
    /// The attempt that was granted it.
    pub attempt: String,
    /// The generation under which it is sealed: that of the pair which was current when this one came.
    pub generation: u64,
    /// The generation whose token was presented for it.
    pub granted_from: u64,
    /// The pair.
    pub pair: SealedPair,
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

/// An installation as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installation {
    /// Whose it is.
    pub resource: Resource,
    /// Its state.
    pub status: Status,
    /// Its lineage.
    pub lineage: Lineage,
    /// The current pair; a revoked installation has none.
    pub pair: Option<SealedPair>,
    /// The generation whose token was presented for the current pair.
    pub granted_from: u64,
    /// Other pairs that may be the live one, in the order in which they came.
    pub standby: Vec<StandbyPair>,
    /// Who holds or held the lease.
    pub attempt: Option<String>,
    /// When the lease ends.
    pub lease_ends_at: Option<Millis>,
    /// The attempt that wrote the current pair.
    pub committed_by: Option<String>,
    /// When the exchange of its code was begun.
    pub installed_at: Millis,
    /// When it was uninstalled, as the platform says.
    pub revoked_at: Option<Millis>,
    /// When the schedule looks at it next.
    pub due_at: Option<Millis>,
    /// When a refresh was last forced by a refused access token.
    pub forced_at: Option<Millis>,
    /// The generation that came of a renewal whose reason was a 401 that nobody has classified.
    pub doubted_generation: Option<u64>,
    /// That the platform knows no such location or company, as it said of the current generation.
    pub gone: Option<Gone>,
    /// When the refresh token was last tried.
    pub tried_at: Option<Millis>,
    /// The state that the last claim found.
    pub claimed_from: Option<Status>,
    /// Before this nobody tries again, since the platform has asked for it.
    pub retry_at: Option<Millis>,
    /// How many tries in a row have failed.
    pub failures: u32,
    /// The generation whose token the platform refused while no mark could be made.
    pub refused_generation: Option<u64>,
    /// The company, where it is known.
    pub company: Option<String>,
    /// The public base URL of the deployment's pages, for a link to install again.
    pub home: Option<String>,
    /// A location without a grant of its own: its token is minted from its company's.
    pub minted: Option<Minted>,
    /// The state without a token that the world was told of last, and since when nothing else was told.
    pub told: Option<Status>,
    /// Events that are not known to have been sent.
    pub outbox: Vec<Event>,
}

/// The platform knows no such location or company, as it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone {
    /// Since when.
    pub since: Millis,
    /// How often it has said so.
    pub tries: u32,
}

/// What is known of a location whose token is minted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Minted {
    /// The epoch of the company's installation that the stored token comes from.
    pub company_epoch: u64,
    /// No company has the app there, as the platform said; nobody asks again before this.
    pub absent_until: Option<Millis>,
    /// When the newest company was listed that was asked then. A newer one may have the app there after all.
    pub absent_newest: Option<Millis>,
    /// Since when the schedule asks the companies about this location.
    pub search_since: Option<Millis>,
    /// Nobody but a caller has ever named this location.
    pub supposed: bool,
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
            lineage: Lineage { epoch: attributes.number("epoch").ok_or_else(|| need("epoch"))?, generation },
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
            outbox: outbox::read(item),
        })
    }

    /// The key of the item.
    #[must_use]
    pub fn key(&self) -> String {
        installation_key(&self.resource)
    }

    /// Whether the current token came of a renewal whose reason was a 401 that nobody has classified.
    #[must_use]
    pub fn is_doubted(&self) -> bool {
        self.doubted_generation == Some(self.lineage.generation)
    }

    /// Whether the platform has refused the current token before, without a mark.
    #[must_use]
    pub fn was_refused(&self) -> bool {
        self.refused_generation == Some(self.lineage.generation)
    }

    /// Where a human installs again, if the deployment's address is known.
    #[must_use]
    pub fn reinstall_url(&self) -> Option<String> {
        self.home.as_ref().map(|home| format!("{}/oauth/install", home.trim_end_matches('/')))
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

pub(super) fn resource_of(key: &str) -> Option<Resource> {
    let (kind, id) = key.strip_prefix("installation#")?.split_once('#')?;
    let kind = match kind {
        "location" => Kind::Location,
        "company" => Kind::Company,
        _ => return None,
    };
    Resource::new(kind, id).ok()
}

pub(super) fn b(bytes: &[u8]) -> AttributeValue {
    AttributeValue::B(Blob::new(bytes))
}
