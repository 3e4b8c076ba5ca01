//! Permits for requests to the token endpoint, from the pace that all processes share ([`crate::domain::pace`]).
//!
//! A process learns of the pace from the item of the circuit breaker, which it reads before every renewal anyway. While
//! no pace is in force, a permit costs no read and no write.
//!
//! A request waits for its turn, makes its connection, and takes its permit directly before it is sent. A renewal waits
//! for its turn before it claims the installation, so no lease is held by a renewal that only waits. Of the requests of one priority in one process, one at
//! a time waits for a place; the others queue behind it in order of arrival.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, MutexGuard};
use tokio::time::timeout;

use super::COMMIT;
use super::breaker::Breaker;
use crate::domain::clock::{Clock, Millis};
use crate::domain::pace::{PERMIT_LIFE, Pace, Priority, REPLAY_WAIT};
use crate::platform::token_endpoint::PRESENTATION;
use crate::table::{StoreError, Table, Write};

/// The most tries of a compare-and-swap. Each conflict means that another process has changed the pace.
const ROUNDS: u32 = 20;
/// The longest time between two reads of the pace by a request that waits for a place.
const POLL: Duration = Duration::from_secs(1);
/// The time between two looks at the clock during a wait. A manual clock moves faster than real time.
const TICK: Duration = Duration::from_millis(20);

/// The part of an invocation that a replay needs: for the claim, one presentation and the commit.
pub const REPLAY_TIME: Duration = PRESENTATION.saturating_add(COMMIT).saturating_add(Duration::from_secs(1));
/// The part of an invocation that any other renewal needs while a pace is in force: if its answer is lost, the replay
/// waits for its place in the same invocation. A second more is for the claim and the connection.
pub const RENEWAL_TIME: Duration = REPLAY_WAIT.saturating_add(REPLAY_TIME).saturating_add(Duration::from_secs(1));

/// The priority of a request to the token endpoint, and the time until which it waits for a permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// The priority.
    pub priority: Priority,
    /// A request that would get its permit later is not made.
    pub until: Millis,
}

/// The permission to send one request to the token endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenPermit {
    /// The end of the permit. The request leaves by then or is not sent. `None` if no pace is in force.
    pub send_by: Option<Millis>,
}

impl TokenPermit {
    /// The permit while no pace is in force.
    pub const FREE: Self = Self { send_by: None };

    /// The latest time at which the request may leave: by the permit, and by `latest`.
    #[must_use]
    pub fn leave_by(self, latest: Millis) -> Millis {
        self.send_by.into_iter().fold(latest, Millis::min)
    }
}

/// The turn of a request: a place was free when the turn began. Other requests of the process with the same priority
/// wait until the turn is dropped.
#[derive(Debug)]
pub struct Turn<'a> {
    one_at_a_time: Option<MutexGuard<'a, ()>>,
}

/// The reasons for which a request gets no permit.
#[derive(Debug, thiserror::Error)]
pub enum NoPermit {
    /// No place is free before this time.
    #[error("the pace of the token endpoint has no place before {0}")]
    NotBefore(Millis),
    /// The table does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The pace of the token endpoint, as one process keeps to it.
pub struct Pacer {
    table: Table,
    clock: Clock,
    breaker: Arc<Breaker>,
    ceiling: Option<u32>,
    /// One queue for each priority.
    turns: [Mutex<()>; Priority::ALL.len()],
}

impl Pacer {
    /// A pacer with the operator's ceiling in requests a minute, if there is one.
    #[must_use]
    pub fn new(table: Table, clock: Clock, breaker: Arc<Breaker>, ceiling: Option<u32>) -> Self {
        Self { table, clock, breaker, ceiling, turns: Default::default() }
    }

    /// The limit in force, in requests a minute, as this process knows it. The knowledge may be 2 s old.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn limit(&self) -> Result<Option<u32>, StoreError> {
        Ok(self.known().await?.limit(self.ceiling, self.clock.now()))
    }

    /// The limit in force for requests of this priority, as [`Pacer::limit`].
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn limit_of(&self, priority: Priority) -> Result<Option<u32>, StoreError> {
        Ok(self.known().await?.limit_of(priority, self.ceiling, self.clock.now()))
    }

    /// Waits until a place is free. The place is not taken: [`Pacer::take`] does that.
    ///
    /// # Errors
    /// [`NoPermit`].
    pub async fn turn(&self, patience: Patience) -> Result<Turn<'_>, NoPermit> {
        let Patience { priority, until } = patience;
        if self.limit_of(priority).await?.is_none() {
            return Ok(Turn { one_at_a_time: None });
        }
        let queue = &self.turns[priority as usize];
        let guard = match queue.try_lock() {
            Ok(guard) => guard,
            Err(_) => match timeout(until.since(self.clock.now()), queue.lock()).await {
                Ok(guard) => guard,
                Err(_) => return Err(NoPermit::NotBefore(self.next_place(priority).await?)),
            },
        };
        self.place(patience).await?;
        Ok(Turn { one_at_a_time: Some(guard) })
    }

    /// Waits until a place is free again, without losing the turn.
    ///
    /// # Errors
    /// [`NoPermit`].
    pub async fn turn_again<'a>(&'a self, turn: Turn<'a>, patience: Patience) -> Result<Turn<'a>, NoPermit> {
        if turn.one_at_a_time.is_none() {
            return self.turn(patience).await;
        }
        self.place(patience).await?;
        Ok(turn)
    }

    async fn place(&self, Patience { priority, until }: Patience) -> Result<(), NoPermit> {
        loop {
            let pace = self.breaker.read_again().await?.pace;
            let now = self.clock.now();
            let Some(limit) = pace.limit_of(priority, self.ceiling, now) else { return Ok(()) };
            let at = pace.earliest(priority, limit, now);
            if at <= now {
                return Ok(());
            }
            if let Some(raised) = pace.raised(self.ceiling, now) {
                if self.write(&raised).await?.is_applied() {
                    tracing::info!(
                        limit = raised.learnt.map(|learnt| learnt.limit),
                        "the pace of the token endpoint is raised"
                    );
                }
                continue;
            }
            // A caller that does not wait here comes back at that time, if it has no usable token.
            let comes_back = at <= until || priority >= Priority::Caller && now < until;
            if comes_back
                && let Some(announced) = pace.announced(priority, at, now)
                && !self.write(&announced).await?.is_applied()
            {
                continue;
            }
            if at > until {
                return Err(NoPermit::NotBefore(at));
            }
            sleep_until(&self.clock, at.min(now + POLL)).await;
        }
    }

    /// Takes a place for a request that is sent now.
    ///
    /// # Errors
    /// [`NoPermit`]. After [`NoPermit::Store`] the place may be taken.
    pub async fn take(&self, priority: Priority) -> Result<TokenPermit, NoPermit> {
        let mut pace = self.known().await?;
        for _ in 0..ROUNDS {
            let now = self.clock.now();
            let Some(limit) = pace.limit_of(priority, self.ceiling, now) else {
                return Ok(TokenPermit::FREE);
            };
            let at = pace.earliest(priority, limit, now);
            if at > now {
                return Err(NoPermit::NotBefore(at));
            }
            match self.write(&pace.sent_one(priority, limit, now)).await? {
                Write::Applied(_) => return Ok(TokenPermit { send_by: Some(now + PERMIT_LIFE) }),
                Write::Conflict(newer) => pace = newer,
                Write::NotFound => pace = Pace::default(),
            }
        }
        Err(StoreError::Unavailable("the pace changes faster than it can be written".into()).into())
    }

    /// Learns from a 429 of the token endpoint to a request that was sent at `sent_at`. Returns the time before which no
    /// request of this priority is sent.
    pub async fn throttled(&self, priority: Priority, sent_at: Millis, retry_after: Option<Duration>) -> Millis {
        let learnt = async {
            let mut pace = self.breaker.read_again().await?.pace;
            for _ in 0..ROUNDS {
                let now = self.clock.now();
                let Some(next) = pace.throttled(priority, sent_at, retry_after, self.ceiling, now) else {
                    return Ok(pace);
                };
                match self.write(&next).await? {
                    Write::Applied(pace) => {
                        tracing::warn!(
                            limit = pace.learnt.map(|learnt| learnt.limit),
                            retry_after_s = retry_after.map(|pause| pause.as_secs()),
                            "the token endpoint answers 429: all processes keep to a pace of this many requests a minute"
                        );
                        return Ok(pace);
                    }
                    Write::Conflict(newer) => pace = newer,
                    Write::NotFound => pace = Pace::default(),
                }
            }
            Err(StoreError::Unavailable("the pace changes faster than it can be written".into()))
        };
        let now = self.clock.now();
        match learnt.await {
            Ok(pace) => self.earliest(&pace, priority, now),
            Err(error) => {
                tracing::warn!(%error, "the token endpoint answers 429, and the table does not take the note of it");
                now + retry_after.unwrap_or(POLL)
            }
        }
    }

    /// The next time at which a place for this priority is free, by the knowledge of this process.
    async fn next_place(&self, priority: Priority) -> Result<Millis, StoreError> {
        let (pace, now) = (self.known().await?, self.clock.now());
        Ok(self.earliest(&pace, priority, now))
    }

    /// The earliest time for a request of this priority. It is now if no limit is in force.
    fn earliest(&self, pace: &Pace, priority: Priority, now: Millis) -> Millis {
        pace.limit(self.ceiling, now).map_or(now, |limit| pace.earliest(priority, limit, now))
    }

    async fn known(&self) -> Result<Pace, StoreError> {
        Ok(self.breaker.state().await?.pace)
    }

    async fn write(&self, next: &Pace) -> Result<Write<Pace>, StoreError> {
        let written = self.table.write_pace(next).await?;
        if let Write::Applied(pace) | Write::Conflict(pace) = &written {
            self.breaker.note_pace(pace);
        }
        Ok(written)
    }
}

/// Waits until shortly before `at`, the time at which the pace has a place: the request must wait for its turn before that
/// time, so that no other request takes the place.
pub async fn sleep_until_soon_before(clock: &Clock, at: Millis) {
    const EARLY: Duration = Duration::from_secs(3);
    let soon = clock.now() + Duration::from_secs(1);
    sleep_until(clock, at.min(soon.max(at - EARLY))).await;
}

/// Waits until the clock shows `at`. A manual clock may stand still, so the wait is at most as long in real time.
pub async fn sleep_until(clock: &Clock, at: Millis) {
    let (began, longest) = (Instant::now(), at.since(clock.now()));
    while clock.now() < at && began.elapsed() < longest {
        tokio::time::sleep(at.since(clock.now()).min(TICK)).await;
    }
}
