//! Alarms of the whole app. Each is raised once in a while, even if many installations have its cause.

use std::time::Duration;

use super::{StoreError, Table, Update, n};
use crate::domain::clock::Millis;

impl Table {
    /// Returns true if no process has raised this alarm of the app within `apart`. The alarm then counts as raised at
    /// `now`. One conditional write decides between all processes.
    pub async fn raise_alarm(&self, alarm: &str, now: Millis, apart: Duration) -> Result<bool, StoreError> {
        let mut write = Update::of(format!("app#alarm#{alarm}"));
        // An instant far in the future was written by a process whose clock was wrong.
        write.when("attribute_not_exists(raised_at) OR NOT raised_at BETWEEN :before AND :after");
        write.value(":before", n(now - apart + Duration::from_millis(1))).value(":after", n(now + apart));
        write.set("raised_at", n(now)).set("expires_at", n((now + apart * 2).seconds()));
        Ok(self.write(write).await?.is_applied())
    }
}
