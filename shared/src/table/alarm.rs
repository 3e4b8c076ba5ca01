//! Alarms that concern the whole app and are raised once in a while, however many installations meet their cause.

use std::time::Duration;

use super::{StoreError, Table, Written, n, s, written};
use crate::domain::clock::Millis;

impl Table {
    /// Whether nobody has raised this alarm of the app within `apart`; then it counts as raised at `now`. One conditional
    /// write decides between all processes.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn raise_alarm(&self, alarm: &str, now: Millis, apart: Duration) -> Result<bool, StoreError> {
        let result = self
            .client
            .update_item()
            .table_name(&*self.name)
            .key("pk", s(format!("app#alarm#{alarm}")))
            // An instant far in the future is that of a clock which was wrong.
            .condition_expression("attribute_not_exists(raised_at) OR NOT raised_at BETWEEN :before AND :after")
            .update_expression("SET raised_at = :now, expires_at = :expires")
            .expression_attribute_values(":before", n(now - apart + Duration::from_millis(1)))
            .expression_attribute_values(":after", n(now + apart))
            .expression_attribute_values(":now", n(now))
            .expression_attribute_values(":expires", n((now + apart * 2).seconds()))
            .send()
            .await;
        Ok(matches!(written(result)?, Written::Applied(_)))
    }
}
