//! Webhooks that were dealt with, by their ids.

use std::time::Duration;

use super::{Attributes, StoreError, Table, n, s};
use crate::clock::Millis;

/// Longer than any sender repeats itself.
const KEPT: Duration = Duration::from_hours(30 * 24);

impl Table {
    /// Whether a webhook was dealt with.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn is_webhook_done(&self, id: &str, now: Millis) -> Result<bool, StoreError> {
        let answer = self.client.get_item().table_name(&*self.name).key("pk", s(key(id)));
        let answer = answer.consistent_read(true).send().await?;
        // DynamoDB deletes what has expired within days, not at once.
        let expires = answer.item().and_then(|item| Attributes::of(item).number::<i64>("expires_at"));
        Ok(expires.is_some_and(|end| now.seconds() < end))
    }

    /// Notes that a webhook was dealt with: after its effect, so that a crash between them repeats the effect, which
    /// is judged by the installation's own times, and loses nothing.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn set_webhook_done(&self, id: &str, now: Millis) -> Result<(), StoreError> {
        self.client
            .update_item()
            .table_name(&*self.name)
            .key("pk", s(key(id)))
            .update_expression("SET expires_at = :expires")
            .expression_attribute_values(":expires", n((now + KEPT).seconds()))
            .send()
            .await?;
        Ok(())
    }
}

fn key(id: &str) -> String {
    format!("webhook#{id}")
}
