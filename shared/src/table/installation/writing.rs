//! The clauses and conditions that several writes of installations share.

use aws_sdk_dynamodb::types::AttributeValue;

use super::b;
use crate::domain::clock::Millis;
use crate::domain::installation::{Installation, SealedPair, installation_key};
use crate::domain::resource::Resource;
use crate::domain::status::{LeaseOwner, Status, TokenVersion, Transition};
use crate::table::{StoreError, Table, Update, Write, n, s};

/// The number of partitions of the index `due` that hold installations.
pub const DUE_SHARDS: u32 = 8;

impl Update {
    /// A write of an installation with any version.
    pub(in crate::table) fn of_installation(resource: &Resource) -> Self {
        Self::of(installation_key(resource))
    }

    /// A write that is applied only if the installation still has this version.
    pub(in crate::table) fn of_version(resource: &Resource, version: TokenVersion) -> Self {
        let mut write = Self::of_installation(resource);
        write.when_equal("epoch", n(version.epoch)).when_equal("generation", n(version.generation));
        write
    }

    pub(in crate::table) fn set_status(&mut self, status: Status) -> &mut Self {
        self.set("#status", s(status.as_str()))
    }

    /// The condition that `may` is true for the stored state, as text for [`Self::when`].
    pub(in crate::table) fn status_is(&mut self, may: impl Fn(Status) -> bool) -> String {
        let states: Vec<_> = Status::ALL.iter().copied().filter(|status| may(*status)).collect();
        let placeholders: Vec<_> = states.iter().map(|status| format!(":{status}")).collect();
        for (placeholder, status) in placeholders.iter().zip(states) {
            self.value(placeholder, s(status.as_str()));
        }
        format!("#status IN ({})", placeholders.join(", "))
    }

    /// Adds the condition that `may` is true for the stored state.
    pub(in crate::table) fn when_status(&mut self, may: impl Fn(Status) -> bool) -> &mut Self {
        let condition = self.status_is(may);
        self.when(&condition)
    }

    /// Adds the condition that the transition is legal in the stored state.
    pub(in crate::table) fn when_legal(&mut self, transition: Transition) -> &mut Self {
        self.when_status(|status| transition.is_legal(status))
    }

    /// Adds the condition that `owner` holds the lease.
    pub(in crate::table) fn when_leased_by(&mut self, owner: &LeaseOwner) -> &mut Self {
        self.when_equal("attempt", s(owner.as_str()))
    }

    pub(in crate::table) fn release_lease(&mut self) -> &mut Self {
        self.remove(["attempt", "lease_ends_at"])
    }

    /// Adds the installation to the index `due`.
    pub(in crate::table) fn set_due(&mut self, resource: &Resource, at: Millis) -> &mut Self {
        self.set("due_at", n(at)).set("due_shard", s(due_shard(resource)))
    }

    /// Removes the installation from the index `due`.
    pub(in crate::table) fn unschedule(&mut self) -> &mut Self {
        self.remove(["due_at", "due_shard"])
    }

    pub(in crate::table) fn set_pair(&mut self, pair: &SealedPair) -> &mut Self {
        let SealedPair { access, refresh } = pair;
        self.set("access_token", b(&access.token))
            .set("refresh_token", refresh.as_deref().map_or(AttributeValue::Null(true), b))
            .set("access_issued_at", n(access.issued_at))
            .set("access_expires_at", n(access.expires_at))
    }

    pub(in crate::table) fn erase_pair(&mut self) -> &mut Self {
        self.remove(["access_token", "refresh_token", "access_issued_at", "access_expires_at"])
    }
}

impl Table {
    /// Sends a write of an installation.
    pub(in crate::table) async fn write_installation(
        &self,
        write: Update,
    ) -> Result<Write<Box<Installation>>, StoreError> {
        self.write(write).await?.read(|item| Installation::read(item).map(Box::new))
    }
}

/// The shard of the index for an installation. The hash (FNV-1a) only has to be stable and evenly distributed.
pub(super) fn due_shard(resource: &Resource) -> String {
    let hash = installation_key(resource)
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    (hash % u64::from(DUE_SHARDS)).to_string()
}
