//! What the writes of installations have in common.

use aws_sdk_dynamodb::operation::update_item::builders::UpdateItemFluentBuilder;
use aws_sdk_dynamodb::types::{AttributeValue, ReturnValue, ReturnValuesOnConditionCheckFailure};

use super::b;
use crate::domain::clock::Millis;
use crate::domain::installation::installation_key;
use crate::domain::installation::{Installation, SealedPair};
use crate::domain::resource::Resource;
use crate::domain::status::{LeaseOwner, Status, TokenVersion};
use crate::table::{StoreError, Table, Written, n, s};

/// In how many partitions the index of what is due is spread.
pub const DUE_SHARDS: u32 = 8;

/// What a write by version came to.
#[derive(Debug)]
pub enum Changed {
    /// It was applied, now or by an earlier try of the same attempt.
    Done(Box<Installation>),
    /// The condition did not hold, and this is how the installation stands.
    Not(Box<Installation>),
    /// There is no such installation.
    Gone,
}

pub(in crate::table) const SET_PAIR: &str = "access_token = :access, refresh_token = :refresh, access_issued_at = :issued, \
                        access_expires_at = :expires";

impl Table {
    /// A write of any installation, whatever its version.
    pub(in crate::table) fn update(&self, resource: &Resource) -> UpdateItemFluentBuilder {
        self.client
            .update_item()
            .table_name(&*self.name)
            .key("pk", s(installation_key(resource)))
            .return_values(ReturnValue::AllNew)
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld)
    }

    /// A write that starts from a version: `:epoch` and `:generation`.
    pub(in crate::table) fn change(&self, resource: &Resource, version: TokenVersion) -> UpdateItemFluentBuilder {
        self.update(resource)
            .expression_attribute_values(":epoch", n(version.epoch))
            .expression_attribute_values(":generation", n(version.generation))
    }
}

/// The values that most writes name.
pub(in crate::table) trait InstallationWrite: Sized {
    /// `#status`, a reserved word of `DynamoDB`, and a state in the place of that name.
    fn status(self, place: &str, status: Status) -> Self;
    /// `:attempt`.
    fn by(self, attempt: &LeaseOwner) -> Self;
    /// `:due` and `:shard`.
    fn due(self, resource: &Resource, at: Millis) -> Self;
    /// Those two, `:active`, `:revoked` and `:next`: what a write names that makes a granted pair the current one.
    fn renewed(self, resource: &Resource, from: TokenVersion, attempt: &LeaseOwner, due_at: Millis) -> Self;
    /// Those of [`SET_PAIR`].
    fn pair(self, pair: &SealedPair) -> Self;
}

impl InstallationWrite for UpdateItemFluentBuilder {
    fn status(self, place: &str, status: Status) -> Self {
        self.expression_attribute_names("#status", "status").expression_attribute_values(place, s(status.as_str()))
    }

    fn by(self, attempt: &LeaseOwner) -> Self {
        self.expression_attribute_values(":attempt", s(attempt.as_str()))
    }

    fn due(self, resource: &Resource, at: Millis) -> Self {
        self.expression_attribute_values(":due", n(at)).expression_attribute_values(":shard", s(due_shard(resource)))
    }

    fn renewed(self, resource: &Resource, from: TokenVersion, attempt: &LeaseOwner, due_at: Millis) -> Self {
        self.status(":active", Status::Active)
            .status(":revoked", Status::Revoked)
            .expression_attribute_values(":next", n(from.next().generation))
            .by(attempt)
            .due(resource, due_at)
    }

    fn pair(self, pair: &SealedPair) -> Self {
        let refresh = pair.refresh.as_deref().map_or(AttributeValue::Null(true), b);
        self.expression_attribute_values(":access", b(&pair.access))
            .expression_attribute_values(":refresh", refresh)
            .expression_attribute_values(":issued", n(pair.access_issued_at))
            .expression_attribute_values(":expires", n(pair.access_expires_at))
    }
}

/// Whether `attempt` has written the current pair.
pub(in crate::table) fn committed_by(attempt: &LeaseOwner) -> impl Fn(&Installation) -> bool {
    |stored| stored.committed_by.as_deref() == Some(attempt.as_str())
}

pub(in crate::table) fn changed(written: Written, mine: impl Fn(&Installation) -> bool) -> Result<Changed, StoreError> {
    Ok(match written {
        Written::Applied(item) => Changed::Done(Installation::read(&item)?.into()),
        Written::Refused(None) => Changed::Gone,
        Written::Refused(Some(item)) => {
            let stored = Installation::read(&item)?;
            if mine(&stored) { Changed::Done(stored.into()) } else { Changed::Not(stored.into()) }
        }
    })
}

/// The shard of the index that an installation is in: any spread that does not change will do (FNV-1a).
pub(super) fn due_shard(resource: &Resource) -> String {
    let hash = installation_key(resource)
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    (hash % u64::from(DUE_SHARDS)).to_string()
}
