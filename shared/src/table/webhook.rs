//! Webhooks that are being processed or were processed, by their ids or, without an id, by their bytes.
//!
//! An invocation claims a webhook (lease), processes it, and records that it is done. If the process dies in between, the claim
//! lapses after [`LEASE`], and the next delivery of the webhook is processed. So a webhook is processed at least once,
//! and in almost all cases once.

use std::time::Duration;

use super::{Attributes, Item, StoreError, Table, Update, Write, n, s};
use crate::domain::clock::Millis;
use crate::domain::status::LeaseOwner;

/// The time after which a claim lapses. It is longer than an invocation, and shorter than the time until the platform
/// sends a webhook again.
pub const LEASE: Duration = Duration::from_secs(10);
/// The time for which the record of a webhook is kept. The platform does not send a webhook again after this time.
const KEPT: Duration = Duration::from_hours(24);

/// The idempotency key of a webhook: two deliveries with the same key are the same webhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdempotencyKey {
    /// The same `webhookId`.
    Id(String),
    /// The same body, by the SHA-256 of its bytes in hexadecimal digits.
    Bytes(String),
}

impl IdempotencyKey {
    fn item_key(&self) -> String {
        match self {
            Self::Id(id) => format!("webhook#id#{id}"),
            Self::Bytes(digest) => format!("webhook#bytes#{digest}"),
        }
    }
}

/// The progress of a webhook that was delivered before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Another invocation holds the claim.
    Claimed,
    /// The webhook was processed within the last 24 hours.
    Done,
}

impl Table {
    /// Claims a webhook for `owner`. A conflict says why the webhook cannot be claimed.
    ///
    /// # Errors
    /// [`StoreError`]: the webhook may be claimed, and the claim then lapses.
    pub async fn claim_webhook(
        &self,
        key: &IdempotencyKey,
        owner: &LeaseOwner,
        now: Millis,
    ) -> Result<Write<Progress>, StoreError> {
        let mut write = Update::of(key.item_key());
        // `DynamoDB` deletes expired items within days, not at once.
        write.when("attribute_not_exists(pk) OR claim_ends_at <= :now OR expires_at <= :now_seconds");
        write.value(":now", n(now)).value(":now_seconds", n(now.seconds()));
        write.set("claimed_by", s(owner.as_str())).set("claim_ends_at", n(now + LEASE));
        write.set("expires_at", n((now + KEPT).seconds()));
        let is_own = |item: &Item| Attributes::of(item).text("claimed_by") == Some(owner.as_str());
        let is_claimed = |item: &Item| Attributes::of(item).number::<i64>("claim_ends_at").is_some();
        let progress = |item: &Item| Ok(if is_claimed(item) { Progress::Claimed } else { Progress::Done });
        self.write(write).await?.or_applied_before(is_own).read(progress)
    }

    /// Ends the claim of `owner` without an effect, so that the next delivery can claim the webhook at once.
    pub async fn release_webhook(&self, key: &IdempotencyKey, owner: &LeaseOwner) -> Result<(), StoreError> {
        let mut write = Update::of(key.item_key());
        write.when_equal("claimed_by", s(owner.as_str())).set("claim_ends_at", n(0));
        self.write(write).await.map(drop)
    }

    /// Records that a webhook is done. The record is written after the effect, so a crash between the two loses nothing: the
    /// webhook is processed again.
    pub async fn set_webhook_done(&self, key: &IdempotencyKey, now: Millis) -> Result<(), StoreError> {
        let mut write = Update::of(key.item_key());
        write.set("expires_at", n((now + KEPT).seconds())).remove(["claimed_by", "claim_ends_at"]);
        self.write(write).await.map(drop)
    }
}
