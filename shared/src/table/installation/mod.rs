//! Installations in the table: their attributes, and their conversion from an item.
//!
//! Each write is one `UpdateItem` whose condition names the expected version (compare-and-swap). A failed condition is
//! an answer that has the unchanged item. The writes are in [`life`] (install, uninstall), [`rotation`] (the lease and
//! the writes that end it), [`details`] (the app's version and plan), [`due`] (the index of the schedule), and [`super::minted`].

pub mod details;
pub mod due;
pub mod life;
pub mod rotation;
pub(super) mod writing;

use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;

use super::{Attributes, Item, StoreError, Table, n, s};
use crate::domain::clock::Millis;
use crate::domain::event::Event;
use crate::domain::installation::{
    AppDetails, CompanySearch, Findings, Gone, Installation, Installed, Lease, Life, Minted, Schedule, SealedAccess,
    SealedPair, Source, StandbyPair, State, installation_key, resource_of,
};
use crate::domain::resource::Resource;
use crate::domain::status::{Status, TokenVersion};

pub use due::Due;
pub use life::{Import, NewInstallation};
pub use rotation::{Claim, Finding, LEASE, Release, Renewal};
pub use writing::DUE_SHARDS;

impl SealedAccess {
    fn read(attributes: Attributes<'_>) -> Option<Self> {
        Some(Self {
            token: attributes.bytes("access_token")?.to_vec(),
            issued_at: Millis(attributes.number("access_issued_at")?),
            expires_at: Millis(attributes.number("access_expires_at")?),
        })
    }
}

impl SealedPair {
    fn read(attributes: Attributes<'_>) -> Option<Self> {
        let refresh = attributes.bytes("refresh_token").map(<[u8]>::to_vec);
        Some(Self { access: SealedAccess::read(attributes)?, refresh })
    }

    fn to_map(&self) -> Item {
        let mut map = Item::from([
            ("access_token".to_owned(), b(&self.access.token)),
            ("access_issued_at".to_owned(), n(self.access.issued_at)),
            ("access_expires_at".to_owned(), n(self.access.expires_at)),
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
            owner: attributes.text("attempt")?.to_owned().into(),
            generation: attributes.number("generation")?,
            granted_from: attributes.number("granted_from")?,
            pair: SealedPair::read(attributes)?,
        })
    }

    pub(super) fn to_value(&self) -> AttributeValue {
        let mut map = self.pair.to_map();
        map.insert("attempt".to_owned(), s(self.owner.as_str()));
        map.insert("generation".to_owned(), n(self.generation));
        map.insert("granted_from".to_owned(), n(self.granted_from));
        AttributeValue::M(map)
    }
}

impl Life {
    /// Attributes that belong to another state are ignored.
    fn read(attributes: Attributes<'_>, installed_at: Millis) -> Result<Self, StoreError> {
        let status = attributes.text("status").and_then(Status::parse).ok_or_else(|| attributes.malformed("status"))?;
        let state = match status {
            Status::Active => State::Active,
            // The token may have been presented. Without a lease, the next claim may present the token again.
            Status::Refreshing => Lease::read(attributes).map_or(State::Uncertain, State::Refreshing),
            Status::Uncertain => State::Uncertain,
            Status::Suspended => State::Suspended,
            Status::Blocked => State::Blocked,
            Status::NeedsReauthorization => State::NeedsReauthorization,
            // An uninstall without a stored time happened after the install that it ended.
            Status::Revoked => {
                return Ok(Self::Revoked { at: attributes.number("revoked_at").map_or(installed_at, Millis) });
            }
        };
        let (source, schedule) = (Source::read(attributes)?, Schedule::read(attributes));
        Ok(Self::Installed(Installed { state, source, schedule }))
    }
}

impl Lease {
    fn read(attributes: Attributes<'_>) -> Option<Self> {
        Some(Self {
            owner: attributes.text("attempt")?.to_owned().into(),
            ends_at: Millis(attributes.number("lease_ends_at")?),
            claimed_from: attributes.text("claimed_from").and_then(Status::parse).unwrap_or(Status::Active),
        })
    }
}

impl Source {
    /// A refresh token and standby pairs of a minted location are ignored, because the next minted token replaces them.
    fn read(attributes: Attributes<'_>) -> Result<Self, StoreError> {
        if attributes.flag("minted") {
            let minted = Minted {
                company_epoch: attributes.number("company_epoch").unwrap_or(0),
                is_placeholder: attributes.flag("placeholder"),
            };
            return Ok(Self::Minted { access: SealedAccess::read(attributes), minted });
        }
        // An unreadable element is an error and is not left out, because writes identify the elements by their
        // position.
        let standby = attributes.list("standby").iter().map(|pair| pair.as_m().ok().and_then(StandbyPair::read));
        let standby = standby.collect::<Option<_>>().ok_or_else(|| attributes.malformed("standby"))?;
        Ok(Self::Own { pair: SealedPair::read(attributes), standby })
    }
}

impl Schedule {
    fn read(attributes: Attributes<'_>) -> Self {
        Self {
            due_at: attributes.number("due_at").map(Millis),
            retry_at: attributes.number("retry_at").map(Millis),
            tried_at: attributes.number("tried_at").map(Millis),
            failures: attributes.number("failures").unwrap_or(0),
            forced_at: attributes.number("forced_at").map(Millis),
        }
    }
}

impl CompanySearch {
    fn read(attributes: Attributes<'_>) -> Self {
        Self {
            absent_until: attributes.number("absent_until").map(Millis),
            absent_newest: attributes.number("absent_newest").map(Millis),
            search_since: attributes.number("search_since").map(Millis),
            others_again_at: attributes.number("others_again_at").map(Millis),
        }
    }
}

impl Findings {
    fn read(attributes: Attributes<'_>, generation: u64) -> Self {
        let is_about_current = |attribute| attributes.number(attribute) == Some(generation);
        let gone =
            || Some(Gone { since: Millis(attributes.number("gone_since")?), tries: attributes.number("gone_tries")? });
        Self {
            is_doubted: is_about_current("doubted_generation"),
            was_refused: is_about_current("refused_generation"),
            is_answered: is_about_current("answered_generation"),
            gone: is_about_current("gone_generation").then(gone).flatten(),
        }
    }
}

impl Installation {
    /// Reads an item. Combinations of attributes that no write produces have a defined meaning, which is documented at
    /// the types of the parts.
    pub(super) fn read(item: &Item) -> Result<Self, StoreError> {
        let attributes = Attributes::of(item);
        let need = |name: &'static str| attributes.malformed(name);
        let number = |name: &'static str| attributes.number::<u64>(name).ok_or_else(|| need(name));
        let version = TokenVersion { epoch: number("epoch")?, generation: number("generation")? };
        let installed_at = Millis(attributes.number("installed_at").ok_or_else(|| need("installed_at"))?);
        Ok(Self {
            resource: resource_of(attributes.text("pk").unwrap_or_default()).ok_or_else(|| need("pk"))?,
            version,
            life: Life::read(attributes, installed_at)?,
            granted_from: attributes.number("granted_from").unwrap_or(version.generation.saturating_sub(1)),
            committed_by: attributes.text("committed_by").map(|owner| owner.to_owned().into()),
            imported_sha256: attributes.text("imported_sha256").map(str::to_owned),
            findings: Findings::read(attributes, version.generation),
            search: CompanySearch::read(attributes),
            installed_at,
            company: attributes.text("company").map(str::to_owned),
            scope: attributes.text("scope").map(str::to_owned),
            home: attributes.text("home").map(str::to_owned),
            details: AppDetails::read(attributes),
            published: attributes.text("published").and_then(Status::parse),
            outbox: attributes.texts("outbox").filter_map(Event::parse).collect(),
        })
    }
}

impl Table {
    /// Reads the current state of an installation (strongly consistent).
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

#[cfg(test)]
mod tests {
    use super::*;

    fn item(attributes: &[(&str, AttributeValue)]) -> Item {
        let base = [
            ("pk", s("installation#location#L1")),
            ("status", s("Active")),
            ("epoch", n(1)),
            ("generation", n(7)),
            ("installed_at", n(1_000)),
            ("access_token", b(b"access")),
            ("refresh_token", b(b"refresh")),
            ("access_issued_at", n(2_000)),
            ("access_expires_at", n(3_000)),
        ];
        base.iter().chain(attributes).map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
    }

    fn read(attributes: &[(&str, AttributeValue)]) -> Installation {
        Installation::read(&item(attributes)).expect("readable")
    }

    #[test]
    fn a_lease_belongs_to_a_refreshing_installation() {
        let lease = [("attempt", s("me")), ("lease_ends_at", n(9_000)), ("claimed_from", s("Blocked"))];
        let refreshing = ("status", s("Refreshing"));
        let whole = read(&[&lease[..], std::slice::from_ref(&refreshing)].concat());
        let owner = "me".to_owned().into();
        let expected = Lease { owner, ends_at: Millis(9_000), claimed_from: Status::Blocked };
        assert_eq!(whole.lease(), Some(&expected));
        // The token may have been presented. Without a complete lease, the next claim may present the token again.
        assert_eq!(read(std::slice::from_ref(&refreshing)).status(), Status::Uncertain);
        assert_eq!(read(&[refreshing.clone(), lease[0].clone()]).status(), Status::Uncertain);
        assert_eq!(read(&[refreshing, lease[1].clone()]).status(), Status::Uncertain);
        for status in Status::ALL.iter().copied().filter(|status| *status != Status::Refreshing) {
            let stored = read(&[&lease[..], &[("status", s(status.as_str()))]].concat());
            assert_eq!((stored.status(), stored.lease()), (status, None), "no other state has a lease");
        }
    }

    #[test]
    fn a_revoked_installation_has_neither_a_pair_nor_a_due_time() {
        let due = ("due_at", n(5_000));
        let revoked = read(&[("status", s("Revoked")), ("revoked_at", n(4_000)), due.clone()]);
        assert_eq!(revoked.life, Life::Revoked { at: Millis(4_000) });
        assert_eq!(read(&[("status", s("Revoked"))]).revoked_at(), Some(Millis(1_000)), "at its install, or later");
        let active = read(&[("revoked_at", n(4_000)), due]);
        assert_eq!((active.revoked_at(), active.schedule().due_at), (None, Some(Millis(5_000))));
    }

    #[test]
    fn a_minted_location_has_neither_a_refresh_token_nor_standby_pairs() {
        let pair = SealedPair::read(Attributes::of(&item(&[]))).expect("a pair");
        let standby = StandbyPair { owner: "me".to_owned().into(), generation: 6, granted_from: 5, pair };
        let standby = ("standby", AttributeValue::L(vec![standby.to_value()]));
        let own = read(&[standby.clone(), ("company_epoch", n(3))]);
        assert_eq!((own.standby().len(), own.minted()), (1, None), "an epoch of a company does not make it minted");
        assert!(own.refresh_token().is_some());
        let minted = read(&[standby, ("company_epoch", n(3)), ("minted", AttributeValue::Bool(true))]);
        assert_eq!((minted.standby(), minted.minted().expect("minted").company_epoch), (&[][..], 3));
        assert_eq!((minted.access().is_some(), minted.refresh_token()), (true, None));
        let unreadable = item(&[("standby", AttributeValue::L(vec![AttributeValue::Null(true)]))]);
        let error = Installation::read(&unreadable).expect_err("an element that keeps its place");
        assert!(matches!(error, StoreError::Malformed { attribute: "standby", .. }), "{error}");
    }

    #[test]
    fn a_finding_about_another_generation_is_forgotten() {
        let found = |generation: u64| {
            let generation = n(generation);
            let names = ["doubted_generation", "refused_generation", "answered_generation", "gone_generation"];
            let about = names.map(|name| (name, generation.clone()));
            read(&[&about[..], &[("gone_since", n(10)), ("gone_tries", n(2))]].concat()).findings
        };
        let gone = Some(Gone { since: Millis(10), tries: 2 });
        assert_eq!(found(7), Findings { is_doubted: true, was_refused: true, is_answered: true, gone });
        for other in [6, 8] {
            assert_eq!(found(other), Findings::default(), "{other}");
        }
    }
}
