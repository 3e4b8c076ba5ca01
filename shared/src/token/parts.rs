//! The parts of the app that every operation on tokens uses.

use std::sync::Arc;

use super::alarm::AppAlarms;
use super::breaker::Breaker;
use super::pace::Pacer;
use crate::domain::clock::Clock;
use crate::events::Events;
use crate::platform::token_endpoint::TokenEndpoint;
use crate::seal::vault::Vault;
use crate::table::Table;

/// The parts of the app that a refresh and a mint both use. A clone shares all of them.
#[derive(Clone)]
pub struct TokenParts {
    /// The table.
    pub table: Table,
    /// Seals and opens token pairs.
    pub vault: Arc<Vault>,
    /// The token endpoint.
    pub endpoint: TokenEndpoint,
    /// The circuit breaker of the token endpoint.
    pub breaker: Arc<Breaker>,
    /// The pace of the token endpoint.
    pub pace: Arc<Pacer>,
    /// The outbox of lifecycle events.
    pub events: Events,
    /// Alarms of the whole app.
    pub alarms: Arc<AppAlarms>,
    /// The clock.
    pub clock: Clock,
}
