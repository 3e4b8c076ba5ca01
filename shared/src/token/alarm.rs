//! Alarms of the whole app: what two hundred installations meet at once is one alarm an hour, not two hundred.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use http::StatusCode;

use super::lock;
use crate::domain::clock::{Clock, Millis};
use crate::domain::resource::Resource;
use crate::table::Table;

/// An alarm of the app is raised at most so often.
const APART: Duration = Duration::from_hours(1);

/// The alarms of the app, as one process raises them.
pub struct AppAlarms {
    table: Table,
    clock: Clock,
    /// When this process last knew of each alarm that somebody had raised it: no write is needed for a while.
    raised: Mutex<HashMap<&'static str, Millis>>,
}

impl AppAlarms {
    /// The alarms of the app in `table`.
    #[must_use]
    pub fn new(table: Table, clock: Clock) -> Self {
        Self { table, clock, raised: Mutex::default() }
    }

    /// The platform gave an answer that nobody has classified; `said` is a redacted sample of it.
    pub async fn unclassified(&self, resource: &Resource, status: StatusCode, said: &str) {
        const TEXT: &str = "the platform gave an answer that nobody has classified";
        let status = status.as_u16();
        if self.is_first("unclassified").await {
            tracing::error!(alarm = "unclassified", %resource, status, said, "{TEXT}");
        } else {
            tracing::warn!(%resource, status, said, "{TEXT}");
        }
    }

    /// Something in front of the platform answered in its place.
    pub async fn not_reached(&self, resource: &Resource) {
        const TEXT: &str =
            "something in front of the platform answered in its place, such as the block page of its CDN";
        if self.is_first("not_reached").await {
            tracing::error!(alarm = "not_reached", %resource, "{TEXT}");
        } else {
            tracing::warn!(%resource, "{TEXT}");
        }
    }

    /// The platform does not allow what a company's token is for; the app lacks `scope`.
    pub async fn not_allowed(&self, company: &Resource, scope: &str, said: &str) {
        const TEXT: &str = "a company's token may not do this: does the app have the scope?";
        if self.is_first("not_allowed").await {
            tracing::error!(alarm = "not_allowed", %company, scope, said, "{TEXT}");
        } else {
            tracing::warn!(%company, scope, said, "{TEXT}");
        }
    }

    /// Whether this is the first time within the hour, in all processes. Where the table does not say it counts as the
    /// first: an alarm too many is better than none.
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
