//! The circuit breaker of the whole app, and its budget of marks.
//!
//! The breaker opens, and all refreshing stops, for wrong client credentials, for a request that the platform does not
//! accept, and for a mass refusal: the budget of marks ([`crate::table::mark_budget`]) is used up and refusals go on.
//! The breaker closes by itself after the first two; after a mass refusal, only an operator closes the breaker. An
//! operator can also pause all refreshing (`ops pause`), whatever the state of the breaker.

use std::sync::Mutex;
use std::time::Duration;

use super::lock;
use crate::domain::clock::{Clock, Millis};
use crate::domain::pace::Pace;
use crate::domain::status::LeaseOwner;
use crate::platform::token_endpoint::{TokenEndpoint, fingerprint};
use crate::secrets::SecretError;
use crate::table::app::{AppState, BreakerReason, OpenBreaker};
use crate::table::mark_budget::{MarkBudget, PLACES, Requested};
use crate::table::{StoreError, Table, Write};

/// The app state in memory is used for this time before the table is read again.
const FRESH: Duration = Duration::from_secs(2);
/// The breaker stays open for this time after wrong credentials or a rejected parameter. Changed credentials close the
/// breaker earlier.
const OUR_FAULT: Duration = Duration::from_mins(1);

/// The reasons for which the breaker cannot be checked.
#[derive(Debug, thiserror::Error)]
pub enum BreakerError {
    /// The table does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The app's credentials cannot be read, so they cannot be compared with the refused credentials.
    #[error(transparent)]
    Secret(#[from] SecretError),
}

/// The decision of [`Breaker::reserve`] about the mark of a refused installation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marking {
    /// The installation may be marked: a place of the budget is reserved for the mark.
    Reserved,
    /// No place is left. The installation waits and is tried again.
    NoPlace,
    /// No place is left and refusals go on: all refreshing has stopped.
    Stopped,
}

/// The circuit breaker, with this process's copy of its state.
pub struct Breaker {
    table: Table,
    clock: Clock,
    seen: Mutex<Option<(Millis, AppState)>>,
    /// Single flight: if hundreds of mintings begin together, only one of them reads the item.
    reading: tokio::sync::Mutex<()>,
}

impl Breaker {
    /// The breaker in `table`.
    pub fn new(table: Table, clock: Clock) -> Self {
        Self { table, clock, seen: Mutex::default(), reading: tokio::sync::Mutex::default() }
    }

    /// Returns the breaker if it is open for refreshes. The answer may be 2 s old. If the app's credentials differ from
    /// the refused ones, the breaker counts as closed.
    ///
    /// # Errors
    /// [`BreakerError`].
    pub async fn check(&self, endpoint: &TokenEndpoint) -> Result<Option<OpenBreaker>, BreakerError> {
        let Some(open) = self.open_now().await? else { return Ok(None) };
        if open.reason == BreakerReason::WrongClient {
            let current = fingerprint(&*endpoint.credentials(FRESH).await?);
            if open.fingerprint.as_deref() != Some(current.as_str()) {
                return Ok(None);
            }
        }
        Ok(Some(open))
    }

    /// Returns true if minting has stopped. The answer may be 2 s old. Only a mass refusal stops minting, since a
    /// location's token is minted without the app's credentials.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn stops_minting(&self) -> Result<bool, StoreError> {
        Ok(self.open_now().await?.is_some_and(|open| open.reason == BreakerReason::MassRefusal))
    }

    /// Returns true if an operator has paused all refreshing. The answer may be 2 s old.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn is_paused(&self) -> Result<bool, StoreError> {
        Ok(self.state().await?.paused_at.is_some())
    }

    async fn open_now(&self) -> Result<Option<OpenBreaker>, StoreError> {
        let breaker = self.state().await?.breaker;
        let now = self.clock.now();
        Ok(breaker.filter(|open| now < open.until))
    }

    /// The app state. It may be 2 s old.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(super) async fn state(&self) -> Result<AppState, StoreError> {
        match self.fresh() {
            Some(state) => Ok(state),
            None => self.read().await,
        }
    }

    /// The app state as it is in the table now.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(super) async fn read_again(&self) -> Result<AppState, StoreError> {
        let now = self.clock.now();
        let state = self.table.app_state().await?;
        *lock(&self.seen) = Some((now, state.clone()));
        Ok(state)
    }

    /// Notes the pace that a write of this process has returned.
    pub(super) fn note_pace(&self, pace: &Pace) {
        if let Some((_, state)) = lock(&self.seen).as_mut() {
            state.pace = pace.clone();
        }
    }

    async fn read(&self) -> Result<AppState, StoreError> {
        let _one_at_a_time = self.reading.lock().await;
        if let Some(state) = self.fresh() {
            return Ok(state);
        }
        self.read_again().await
    }

    /// The app state in memory, if it was read less than [`FRESH`] ago.
    fn fresh(&self) -> Option<AppState> {
        let now = self.clock.now();
        lock(&self.seen).as_ref().filter(|(at, _)| now.since(*at) < FRESH).map(|(_, state)| state.clone())
    }

    /// Opens the breaker because the platform does not accept the credentials with this fingerprint.
    pub async fn wrong_client(&self, fingerprint: String) {
        tracing::error!(
            alarm = "wrong_client",
            "the platform refuses the app's client id and secret: nothing is refreshed until they change"
        );
        let until = self.clock.now() + OUR_FAULT;
        self.open(OpenBreaker { reason: BreakerReason::WrongClient, until, fingerprint: Some(fingerprint) }).await;
    }

    /// Opens the breaker because the platform does not accept a parameter of the request. The rejection would be the
    /// same for every token.
    pub async fn bad_request(&self, message: &str) {
        tracing::error!(alarm = "bad_request", said = message, "the token endpoint does not accept our request");
        let until = self.clock.now() + OUR_FAULT;
        self.open(OpenBreaker { reason: BreakerReason::BadRequest, until, fingerprint: None }).await;
    }

    /// Counts a grant if, as far as this process knows, places of the budget of marks are in use.
    pub async fn granted(&self, requested: Requested) {
        let now = self.clock.now();
        let counts = lock(&self.seen).as_ref().is_some_and(|(_, state)| state.budget.taken(now) > 0);
        if counts && let Err(error) = self.table.count_grant(requested, now).await {
            tracing::warn!(%error, "a grant was not counted");
        }
    }

    /// Reserves a place of the budget to mark an installation whose `attempt` was refused. `first` is true if the
    /// installation was not refused before with the same token. Opens the breaker if no place is left and refusals go
    /// on.
    ///
    /// # Errors
    /// [`StoreError`]: the installation must not be marked. A place may have been reserved in vain.
    pub async fn reserve(
        &self,
        requested: Requested,
        attempt: &LeaseOwner,
        first: bool,
    ) -> Result<Marking, StoreError> {
        let now = self.clock.now();
        let mut budget = self.table.app_state().await?.budget;
        while budget.taken(now) < PLACES {
            match self.table.reserve_mark(&budget, attempt, now).await? {
                Write::Applied(budget) => {
                    if let Some((_, state)) = lock(&self.seen).as_mut() {
                        state.budget = budget;
                    }
                    return Ok(Marking::Reserved);
                }
                // Each conflict means that another mark took a place. After a few conflicts no place is left.
                Write::Conflict(newer) => budget = newer,
                Write::NotFound => budget = MarkBudget::default(),
            }
        }
        if first {
            budget = self.table.count_waiting(requested).await?;
        }
        if !budget.is_mass_refusal(requested) {
            return Ok(Marking::NoPlace);
        }
        if !self.has_seen_mass_refusal() {
            tracing::error!(
                alarm = "mass_refusal",
                ?requested,
                waiting = budget.waiting(),
                "the platform refuses grants in numbers: refreshing has stopped until an operator resumes it"
            );
        }
        self.open(OpenBreaker { reason: BreakerReason::MassRefusal, until: Millis(i64::MAX), fingerprint: None }).await;
        Ok(Marking::Stopped)
    }

    /// Returns true if this process knows of the open breaker. So each process raises one alarm for one stop, however
    /// many requests were under way.
    fn has_seen_mass_refusal(&self) -> bool {
        let seen = lock(&self.seen);
        let breaker = seen.as_ref().and_then(|(_, state)| state.breaker.as_ref());
        breaker.is_some_and(|open| open.reason == BreakerReason::MassRefusal)
    }

    async fn open(&self, open: OpenBreaker) {
        {
            let mut seen = lock(&self.seen);
            let known = seen.take().map(|(_, state)| state).unwrap_or_default();
            *seen = Some((self.clock.now(), AppState { breaker: Some(open.clone()), ..known }));
        }
        if let Err(error) = self.table.open_breaker(&open).await {
            tracing::error!(%error, "the table did not store the open circuit breaker: only this process has stopped refreshing");
        }
    }
}
