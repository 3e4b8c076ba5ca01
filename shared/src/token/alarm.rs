//! Alarms of the whole app. If two hundred installations meet the same fault, one alarm an hour is raised.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use http::StatusCode;

use super::lock;
use crate::domain::clock::{Clock, Millis};
use crate::domain::resource::Resource;
use crate::table::Table;

/// The least time between two raises of the same alarm.
const APART: Duration = Duration::from_hours(1);

/// Raises the alarms of the app, each at most once an hour in all processes.
pub struct AppAlarms {
    table: Table,
    clock: Clock,
    /// The time at which this process last raised each alarm. Within `APART` of that time, no write to the table is
    /// needed.
    raised: Mutex<HashMap<&'static str, Millis>>,
}

impl AppAlarms {
    /// The alarms of the app in `table`.
    pub fn new(table: Table, clock: Clock) -> Self {
        Self { table, clock, raised: Mutex::default() }
    }

    /// Raises the alarm that the platform gave an unclassified answer. `said` is a redacted sample of the answer.
    pub async fn unclassified(&self, resource: &Resource, status: StatusCode, said: &str) {
        const TEXT: &str = "the platform gave an answer that nobody has classified";
        let status = status.as_u16();
        if self.is_first("unclassified").await {
            tracing::error!(alarm = "unclassified", %resource, status, said, "{TEXT}");
        } else {
            tracing::warn!(%resource, status, said, "{TEXT}");
        }
    }

    /// Raises the alarm that something in front of the platform answered in its place, such as its CDN.
    pub async fn not_reached(&self, resource: &Resource) {
        const TEXT: &str =
            "something in front of the platform answered in its place, such as the block page of its CDN";
        if self.is_first("not_reached").await {
            tracing::error!(alarm = "not_reached", %resource, "{TEXT}");
        } else {
            tracing::warn!(%resource, "{TEXT}");
        }
    }

    /// Raises the alarm that the platform does not allow a company's token to be used because the app lacks `scope`.
    pub async fn not_allowed(&self, company: &Resource, scope: &str, said: &str) {
        const TEXT: &str =
            "the platform does not allow this request with the company's token; check that the app has the scope";
        if self.is_first("not_allowed").await {
            tracing::error!(alarm = "not_allowed", %company, scope, said, "{TEXT}");
        } else {
            tracing::warn!(%company, scope, said, "{TEXT}");
        }
    }

    /// Returns true if no process has raised the alarm within the last hour. Returns true also if the table does not
    /// answer: one alarm too many is better than none.
    async fn is_first(&self, alarm: &'static str) -> bool {
        let now = self.clock.now();
        let known = lock(&self.raised).get(alarm).copied();
        if known.is_some_and(|at| now.since(at) < APART) {
            return false;
        }
        let first = self.table.raise_alarm(alarm, now, APART).await.unwrap_or(true);
        if first {
            lock(&self.raised).insert(alarm, now);
        }
        first
    }
}
