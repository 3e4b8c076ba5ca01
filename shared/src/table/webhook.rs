//! Webhooks that took effect, identified by their ids or, without an id, by their bytes.

use std::time::Duration;

use super::{Attributes, StoreError, Table, Update, n, s};
use crate::domain::clock::Millis;

/// The time for which the mark of a webhook is kept. The platform does not send a webhook again after this time.
const KEPT: Duration = Duration::from_hours(24);

/// The identity of a webhook: two deliveries of the same identity are the same webhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The same `webhookId`.
    Id(String),
    /// The same body, by the SHA-256 of its bytes in hexadecimal digits.
    Bytes(String),
}

impl Delivery {
    fn key(&self) -> String {
        match self {
            Self::Id(id) => format!("webhook#id#{id}"),
            Self::Bytes(digest) => format!("webhook#bytes#{digest}"),
        }
    }
}

impl Table {
    /// Returns true if the webhook took effect within the last 24 hours.
    pub async fn is_webhook_done(&self, delivery: &Delivery, now: Millis) -> Result<bool, StoreError> {
        let answer = self.client.get_item().table_name(&*self.name).key("pk", s(delivery.key()));
        let answer = answer.consistent_read(true).send().await?;
        // `DynamoDB` deletes expired items within days, not at once.
        let expires = answer.item().and_then(|item| Attributes::of(item).number::<i64>("expires_at"));
        Ok(expires.is_some_and(|end| now.seconds() < end))
    }

    /// Marks that a webhook took effect. The mark is written after the effect, so a crash between the two loses
    /// nothing: the webhook is judged again, and its effect is repeated.
    pub async fn set_webhook_done(&self, delivery: &Delivery, now: Millis) -> Result<(), StoreError> {
        let mut write = Update::of(delivery.key());
        write.set("expires_at", n((now + KEPT).seconds()));
        self.write(write).await.map(drop)
    }
}
