//! Those of one process who want permits of one resource, in order of arrival.
//!
//! While anybody waits, one future (the *driver*) decides for all of them: everyone who is there when a write starts is
//! in that write. It starts with the first waiter and ends with the last, so nothing runs once everyone is answered.
//!
//! Invariant: the queue is looked at and `driven` is changed under the same lock, so a waiter is either seen by the
//! driver before it ends or starts a new one.

mod driver;
mod waiting;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};

use self::driver::Driver;
use self::waiting::{Driving, Waiting};
use super::counters::{Counters, LimitKind, Opening, Standing};
use super::item::{self, Outcome};
use super::learn::{Heard, correction};
use super::limits::Limits;
use super::memory::{Memory, Seen};
use super::window::Window;
use super::{Permit, QuotaError, Refusal, Usage};
use crate::clock::{Clock, Millis};
use crate::table::{StoreError, Table};

/// How long a process refuses by memory. Only a change of the limits or of the day by another process can free
/// permits earlier than the item said, and this is how long it may go unnoticed. Longer than any window.
const REMEMBERED: Duration = Duration::from_secs(70);
/// Failed conditions in a row after which the others are left to finish first.
const EAGER_ATTEMPTS: u32 = 3;
/// Failed conditions in a row after which something else must be wrong: others can be faster only as often as there are
/// permits.
const MOST_ATTEMPTS: u32 = 100;
/// Failed conditions from one knock to the next.
const KNOCKS_APART: u32 = 8;

type Answer = Result<Permit, QuotaError>;

/// A resource's or a caller's counters and those who wait for them.
#[derive(Debug)]
pub(crate) struct Lane {
    key: String,
    /// What its refusals by the burst limit are called.
    burst_kind: LimitKind,
    state: Mutex<State>,
    /// Something changed for a driver that naps: somebody left, or more is known.
    changed: Notify,
    /// Held while a correction is decided and written, so that a volley of equal answers makes one write.
    learning: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct State {
    ceilings: Limits,
    queue: VecDeque<Waiter>,
    driven: bool,
    memory: Memory,
    /// Permits whose taker left before they came.
    spare: Vec<Permit>,
    used_at: Millis,
}

#[derive(Debug)]
struct Waiter {
    until: Option<Millis>,
    answer: oneshot::Sender<Answer>,
}

impl Lane {
    pub(crate) fn new(key: String, burst_kind: LimitKind, ceilings: Limits, now: Millis) -> Self {
        Self {
            key,
            burst_kind,
            state: Mutex::new(State {
                ceilings,
                queue: VecDeque::new(),
                driven: false,
                memory: Memory::new(now),
                spare: Vec::new(),
                used_at: now,
            }),
            changed: Notify::new(),
            learning: tokio::sync::Mutex::new(()),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// When it was last used, or nothing while somebody waits.
    pub(crate) fn idle_since(&self) -> Option<Millis> {
        let state = self.state();
        (!state.driven && state.queue.is_empty()).then_some(state.used_at)
    }

    /// Waits for a permit until at most `until`, in order of arrival.
    pub(crate) async fn take(
        self: &Arc<Self>,
        table: &Table,
        clock: &Clock,
        ceilings: Limits,
        until: Option<Millis>,
    ) -> Answer {
        let (waiting, driving) = {
            let now = clock.now();
            let mut state = self.state();
            state.ceilings = ceilings;
            state.used_at = now;
            if let Some(refusal) = self.known_refusal(&mut state, now, until) {
                return Err(QuotaError::Refused(refusal));
            }
            let driver = (!std::mem::replace(&mut state.driven, true))
                .then(|| Driver::new(Arc::clone(self), table.clone(), clock.clone()).run());
            (Waiting::behind(self, &mut state, until), Driving::new(driver))
        };
        driving.until(waiting.wait()).await
    }

    /// The refusal that a [`Lane::take`] would have at once and without a call, if so.
    pub(crate) fn foreseen(&self, ceilings: Limits, now: Millis, until: Option<Millis>) -> Option<Refusal> {
        let mut state = self.state();
        state.ceilings = ceilings;
        self.known_refusal(&mut state, now, until)
    }

    /// How things stand, if that is known.
    pub(crate) fn remembered_usage(&self, now: Millis) -> Option<Usage> {
        self.state().standing(now).map(|standing| standing.usage())
    }

    /// Gives back a permit on which nothing was sent and nothing will be. Not for the lane of a resource: what was
    /// counted of a day stays counted.
    pub(crate) async fn give_back(&self, table: &Table, clock: &Clock, permit: &Permit) -> Result<(), StoreError> {
        let slot_ms = Window::new(self.state().ceilings.interval).slot_ms();
        for failed in 0..MOST_ATTEMPTS {
            let seen = self.state().memory.seen().counters().cloned();
            let was_packed = seen.as_ref().is_some_and(|seen| seen.packed);
            let written = item::give_back(table, &self.key, seen.as_ref(), permit.slot, slot_ms).await?;
            match written {
                Some(Outcome::Applied(counters)) => {
                    self.saw(counters, clock.now());
                    return Ok(());
                }
                // Nothing is left to give back where the slot is dead and dropped, or the item is numbered anew.
                None | Some(Outcome::Refused(None)) => return Ok(()),
                Some(Outcome::Refused(Some(found))) if !was_packed && !found.packed => return Ok(()),
                Some(Outcome::Refused(found)) => self.after_refusal(table, clock, found, failed).await?,
            }
        }
        Err(outrun())
    }

    /// Remembers what was seen of the item, and tells a driver that naps.
    fn saw(&self, counters: Counters, at: Millis) {
        self.state().memory.saw(Seen::Item(counters), at);
        self.changed.notify_one();
    }

    /// After a write that was refused, the `failed`th in a row before it: what was found is remembered, and others get
    /// time to finish.
    ///
    /// Who has the item for itself fails only when somebody else has written, and replaces it as often as it is called:
    /// a newcomer could lose to it each time. So after its second refusal a newcomer knocks, which cannot be refused.
    async fn after_refusal(
        &self,
        table: &Table,
        clock: &Clock,
        found: Option<Counters>,
        failed: u32,
    ) -> Result<(), StoreError> {
        let is_packed = found.as_ref().is_some_and(|found| found.packed);
        self.state().memory.refused(found, clock.now());
        if !is_packed || failed % KNOCKS_APART != 1 {
            pause_after(failed).await;
            return Ok(());
        }
        let (Outcome::Applied(counters) | Outcome::Refused(Some(counters))) = item::knock(table, &self.key).await?
        else {
            return Ok(());
        };
        self.state().memory.refused(Some(counters), clock.now());
        Ok(())
    }

    /// A refusal that needs no call: what was seen last leaves nothing in time for one more behind those who wait.
    fn known_refusal(&self, state: &mut State, now: Millis, until: Option<Millis>) -> Option<Refusal> {
        let standing = state.standing(now)?;
        state.spare.retain(|permit| now <= permit.send_by);
        let ahead = u32::try_from(state.queue.len()).unwrap_or(u32::MAX);
        if usize::try_from(ahead).is_ok_and(|ahead| ahead < state.spare.len()) {
            return None;
        }
        let refusal = self.refusal(&standing, ahead, until)?;
        let waiting = state.queue.len();
        state.queue.retain(|waiter| !waiter.answer.is_closed());
        if state.queue.len() == waiting {
            return Some(refusal);
        }
        self.refusal(&standing, u32::try_from(state.queue.len()).unwrap_or(u32::MAX), until)
    }

    /// Why somebody with `ahead` others before it cannot have a permit until `until`, if so.
    fn refusal(&self, standing: &Standing, ahead: u32, until: Option<Millis>) -> Option<Refusal> {
        let Opening { at, limit } = standing.opening(ahead);
        (at > until.unwrap_or(standing.now).max(standing.now)).then(|| Refusal {
            limit: if limit == LimitKind::Burst { self.burst_kind } else { limit },
            retry_at: at,
            usage: standing.usage(),
        })
    }

    /// Learns from an answer of the platform.
    pub(crate) async fn learn(
        &self,
        table: &Table,
        clock: &Clock,
        ceilings: Limits,
        heard: &Heard,
    ) -> Result<(), StoreError> {
        // Most answers teach nothing, and need not wait for those that do.
        if let Some(counters) = self.state().memory.seen().counters()
            && correction(counters, ceilings, heard, clock.now()).is_none()
        {
            return Ok(());
        }
        Box::pin(self.learn_more(table, clock, ceilings, heard)).await
    }

    async fn learn_more(
        &self,
        table: &Table,
        clock: &Clock,
        ceilings: Limits,
        heard: &Heard,
    ) -> Result<(), StoreError> {
        let _one_at_a_time = self.learning.lock().await;
        let heard_at = clock.now();
        for failed in 0..MOST_ATTEMPTS {
            let known = self.state().memory.seen().counters().cloned();
            let counters = match known {
                Some(counters) => counters,
                None => match item::read(table, &self.key).await? {
                    Some(counters) => counters,
                    // Nothing was ever counted, so there is nothing to correct either.
                    None => return Ok(()),
                },
            };
            let Some(change) = correction(&counters, ceilings, heard, heard_at) else {
                self.saw(counters, clock.now());
                return Ok(());
            };
            match item::correct(table, &self.key, &counters, &change).await? {
                Outcome::Applied(counters) => {
                    self.saw(counters, clock.now());
                    return Ok(());
                }
                Outcome::Refused(None) => return Ok(()),
                Outcome::Refused(found) => self.after_refusal(table, clock, found, failed).await?,
            }
        }
        Err(outrun())
    }
}

impl State {
    /// How things stand by what was seen, if that is recent enough to refuse by.
    fn standing(&self, now: Millis) -> Option<Standing> {
        let counters = self.memory.seen().counters()?;
        (now.since(self.memory.seen_at()) <= REMEMBERED).then(|| Standing::of(Some(counters), self.ceilings, now))
    }

    /// Gives `permit` to the first who still wants one.
    fn give(&mut self, permit: Permit) {
        while let Some(waiter) = self.queue.pop_front() {
            if waiter.answer.send(Ok(permit)).is_ok() {
                return;
            }
        }
        self.spare.push(permit);
    }

    fn fail_all(&mut self, error: &QuotaError) {
        for waiter in self.queue.drain(..) {
            let _ = waiter.answer.send(Err(error.clone()));
        }
    }
}

/// [`MOST_ATTEMPTS`] are reached.
fn outrun() -> StoreError {
    StoreError::Unavailable(format!("{MOST_ATTEMPTS} writes in a row were refused"))
}

/// After a failed condition: somebody else was faster. At first that costs only another try; if it goes on, a short
/// and random pause lets the others through.
async fn pause_after(failed: u32) {
    if failed >= EAGER_ATTEMPTS {
        let most = 2_u64 << failed.min(5);
        tokio::time::sleep(Duration::from_millis(fastrand::u64(1..=most))).await;
    }
}
