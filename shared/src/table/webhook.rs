//! Webhooks that took effect, identified by their ids or, without an id, by their bytes.

use std::time::Duration;

use super::{Attributes, StoreError, Table, Update, n, s};
use crate::domain::clock::Millis;

/// The time for which the mark of a webhook is kept. The platform does not send a webhook again after this time.
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

impl Table {
    /// Returns true if the webhook took effect within the last 24 hours.
    pub async fn is_webhook_done(&self, key: &IdempotencyKey, now: Millis) -> Result<bool, StoreError> {
        let answer = self.client.get_item().table_name(&*self.name).key("pk", s(key.item_key()));
        let answer = answer.consistent_read(true).send().await?;
        // `DynamoDB` deletes expired items within days, not at once.
        let expires = answer.item().and_then(|item| Attributes::of(item).number::<i64>("expires_at"));
        Ok(expires.is_some_and(|end| now.seconds() < end))
    }

    /// Marks that a webhook took effect. The mark is written after the effect, so a crash between the two loses
    /// nothing: the webhook is judged again, and its effect is repeated.
    pub async fn set_webhook_done(&self, key: &IdempotencyKey, now: Millis) -> Result<(), StoreError> {
        let mut write = Update::of(key.item_key());
        write.set("expires_at", n((now + KEPT).seconds()));
        self.write(write).await.map(drop)
    }
}
