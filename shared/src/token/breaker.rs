//! The stop for the whole app: wrong client credentials, or refusals in such numbers that they are not about grants.

use std::sync::Mutex;
use std::time::Duration;

use super::endpoint::{TokenEndpoint, fingerprint};
use crate::clock::{Clock, Millis};
use crate::secrets::SecretError;
use crate::table::app::{BreakerReason, OpenBreaker, Tally};
use crate::table::{StoreError, Table};

/// How long what was read is believed.
const FRESH: Duration = Duration::from_secs(5);
/// How long what the platform does not accept is not tried again; refused credentials are as soon as they change.
const OUR_FAULT: Duration = Duration::from_mins(1);
/// Grants are counted in memory up to this number; refusals are counted at once.
const BATCH: u64 = 20;

/// Why a check has no answer.
#[derive(Debug, thiserror::Error)]
pub enum BreakerError {
    /// The table does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The credentials to compare with cannot be read.
    #[error(transparent)]
    Secret(#[from] SecretError),
}

/// The breaker as one process sees it.
pub struct Breaker {
    table: Table,
    clock: Clock,
    seen: Mutex<Option<(Millis, Option<OpenBreaker>)>>,
    uncounted: Mutex<Tally>,
}

impl Breaker {
    /// The breaker in `table`.
    #[must_use]
    pub fn new(table: Table, clock: Clock) -> Self {
        Self { table, clock, seen: Mutex::default(), uncounted: Mutex::default() }
    }

    /// Whether it is open, at most 5 s late. Credentials other than the refused ones close it at once.
    ///
    /// # Errors
    /// [`BreakerError`].
    pub async fn check(&self, endpoint: &TokenEndpoint) -> Result<Option<OpenBreaker>, BreakerError> {
        let now = self.clock.now();
        let seen = lock(&self.seen).clone();
        let open = match seen {
            Some((at, open)) if now.since(at) < FRESH => open,
            _ => {
                let open = self.table.breaker().await?;
                *lock(&self.seen) = Some((now, open.clone()));
                open
            }
        };
        let Some(open) = open.filter(|open| now < open.until) else { return Ok(None) };
        if open.reason == BreakerReason::WrongClient {
            let current = fingerprint(&*endpoint.credentials(FRESH).await?);
            if open.fingerprint.as_deref() != Some(current.as_str()) {
                return Ok(None);
            }
        }
        Ok(Some(open))
    }

    /// Opens it because the platform does not accept the credentials of this fingerprint.
    pub async fn wrong_client(&self, fingerprint: String) {
        tracing::error!(
            alarm = "wrong_client",
            "the platform refuses the app's client id and secret: nothing is refreshed until they change"
        );
        let until = self.clock.now() + OUR_FAULT;
        self.open(OpenBreaker { reason: BreakerReason::WrongClient, until, fingerprint: Some(fingerprint) }).await;
    }

    /// Opens it because the platform does not accept a parameter, whosever token is presented.
    pub async fn bad_request(&self, message: &str) {
        tracing::error!(alarm = "bad_request", said = message, "the token endpoint does not accept our request");
        let until = self.clock.now() + OUR_FAULT;
        self.open(OpenBreaker { reason: BreakerReason::BadRequest, until, fingerprint: None }).await;
    }

    /// Counts a grant.
    pub async fn granted(&self) {
        let due = {
            let mut uncounted = lock(&self.uncounted);
            uncounted.answered += 1;
            if uncounted.answered < BATCH {
                return;
            }
            std::mem::take(&mut *uncounted)
        };
        if let Err(error) = self.table.tally(due, self.clock.now()).await {
            tracing::warn!(%error, "refreshes were not counted");
        }
    }

    /// Counts a refusal, and says whether there are so many that nothing may be marked and all refreshing stops.
    ///
    /// # Errors
    /// [`StoreError`]: then nothing may be marked either.
    pub async fn refused(&self) -> Result<bool, StoreError> {
        let add = std::mem::take(&mut *lock(&self.uncounted)) + Tally { answered: 1, refused: 1 };
        let tally = self.table.tally(add, self.clock.now()).await?;
        if !tally.is_mass_refusal() {
            return Ok(false);
        }
        tracing::error!(
            alarm = "mass_refusal",
            answered = tally.answered,
            refused = tally.refused,
            "the platform refuses refresh tokens in numbers: refreshing has stopped until an operator resumes it"
        );
        self.open(OpenBreaker { reason: BreakerReason::MassRefusal, until: Millis(i64::MAX), fingerprint: None }).await;
        Ok(true)
    }

    async fn open(&self, open: OpenBreaker) {
        *lock(&self.seen) = Some((self.clock.now(), Some(open.clone())));
        if let Err(error) = self.table.open_breaker(&open).await {
            tracing::error!(%error, "the breaker is open in this process only");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
