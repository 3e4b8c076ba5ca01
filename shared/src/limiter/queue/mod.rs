//! FIFO queue of this process's callers that wait for permits of one resource. One write serves all of them.
//!
//! While anybody waits, one future (the [`Batcher`]) writes for all of them: every waiter that is in the queue when a
//! write starts is in that write. The batcher starts with the first waiter and ends with the last, so nothing runs once
//! everyone is answered.
//!
//! Invariant: the queue is looked at and `has_batcher` is changed under the same lock, so a waiter is either seen by
//! the batcher before it ends or starts a new one.

mod batcher;
mod ticket;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};

use self::batcher::Batcher;
pub(super) use self::batcher::LONGEST_NAP;
use self::ticket::{RunningBatcher, Ticket};
use super::counters::{Counters, LimitKind};
use super::decision::{Plan, renewal};
use super::item::{self, Write};
use super::snapshot::{Memory, NextAvailable, Snapshot};
use super::update::update;
use super::window::Window;
use super::{LimiterError, Permit, Refusal, Usage};
use crate::domain::clock::{Clock, Millis};
use crate::domain::limits::Limits;
use crate::platform::rate_limits::RateLimitHeaders;
use crate::table::{StoreError, Table};

/// The age of a snapshot up to which a process refuses by it. Only a change of the limits or of the day by another
/// process can free permits earlier than the item said, and this is how long it may go unnoticed. Longer than any
/// window.
const REMEMBERED: Duration = Duration::from_secs(70);
/// Failed conditions in a row after which the others are left to finish first.
const EAGER_ATTEMPTS: u32 = 3;
/// Failed conditions in a row after which something else must be wrong: others can be faster only as often as there are
/// permits.
const MOST_ATTEMPTS: u32 = 100;

type Answer = Result<Permit, LimiterError>;

/// The waiters of one item (the counters of a resource, or of a share of it), and what is known of the item.
#[derive(Debug)]
pub(crate) struct WaiterQueue {
    key: String,
    /// The limit that its refusals by the burst name.
    burst_kind: LimitKind,
    state: Mutex<State>,
    /// Something changed for a batcher that naps: a waiter left, or more is known.
    changed: Notify,
    /// Held while a limit update is decided and written, so that a volley of equal answers makes one write.
    updating: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct State {
    ceilings: Limits,
    waiters: VecDeque<Waiter>,
    has_batcher: bool,
    memory: Memory,
    /// Permits that nobody in the queue wants any more.
    spare: Vec<Permit>,
    used_at: Millis,
}

#[derive(Debug)]
struct Waiter {
    /// The platform's endpoint that the request goes to.
    endpoint: Option<String>,
    until: Option<Millis>,
    answer: oneshot::Sender<Answer>,
}

impl WaiterQueue {
    pub(crate) fn new(key: String, burst_kind: LimitKind, ceilings: Limits, now: Millis) -> Self {
        Self {
            key,
            burst_kind,
            state: Mutex::new(State {
                ceilings,
                waiters: VecDeque::new(),
                has_batcher: false,
                memory: Memory::default(),
                spare: Vec::new(),
                used_at: now,
            }),
            changed: Notify::new(),
            updating: tokio::sync::Mutex::new(()),
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
        (!state.has_batcher && state.waiters.is_empty()).then_some(state.used_at)
    }

    /// Waits for a permit until at most `until`, in order of arrival.
    pub(crate) async fn take(
        self: &Arc<Self>,
        table: &Table,
        clock: &Clock,
        ceilings: Limits,
        endpoint: Option<&str>,
        until: Option<Millis>,
    ) -> Answer {
        let (ticket, batcher) = {
            let now = clock.now();
            let mut state = self.state();
            state.adopt(ceilings);
            state.used_at = now;
            if let Some(refusal) = self.known_refusal(&mut state, endpoint, now, until) {
                return Err(LimiterError::Refused(refusal));
            }
            let batcher = (!std::mem::replace(&mut state.has_batcher, true))
                .then(|| Batcher::new(Arc::clone(self), table.clone(), clock.clone()).run());
            (Ticket::behind(self, &mut state, endpoint, until), RunningBatcher::new(batcher))
        };
        batcher.until(ticket.wait()).await
    }

    /// The refusal that a [`WaiterQueue::take`] would have at once and without a call, if so.
    pub(crate) fn checked_locally(
        &self,
        ceilings: Limits,
        endpoint: Option<&str>,
        now: Millis,
        until: Option<Millis>,
    ) -> Option<Refusal> {
        let mut state = self.state();
        state.adopt(ceilings);
        self.known_refusal(&mut state, endpoint, now, until)
    }

    /// The usage, if the last snapshot is recent enough.
    pub(crate) fn remembered_usage(&self, now: Millis) -> Option<Usage> {
        self.state().recent_snapshot(now).map(|snapshot| snapshot.usage(now))
    }

    /// Gives `permit`, on which nothing was sent, to the next waiter of this process.
    pub(crate) fn hand_on(&self, permit: Permit) {
        self.state().give(permit);
        self.changed.notify_one();
    }

    /// Gives a permit back to the store, on which nothing was sent and nothing will be. Not for the permits of a
    /// resource: a request that was counted in a day stays counted.
    pub(crate) async fn give_back(&self, table: &Table, clock: &Clock, permit: &Permit) -> Result<(), StoreError> {
        let slot_ms = Window::new(self.state().ceilings.interval).slot_ms();
        match item::give_back(table, &self.key, permit.slot, slot_ms).await? {
            Write::Applied(counters) => self.saw(Some(counters), clock.now()),
            Write::Conflict(_) => {}
        }
        Ok(())
    }

    /// Exchanges a permit that is too old to send on, and on which nothing was sent, for one of the present. It waits
    /// for nobody: the place of the old permit is used, or one that is free.
    pub(crate) async fn renew(&self, table: &Table, clock: &Clock, permit: &Permit) -> Answer {
        for failed in 0..MOST_ATTEMPTS {
            let now = clock.now();
            let plan = {
                let state = self.state();
                let plan = renewal(state.memory.snapshot(), state.ceilings, now, permit.slot);
                if let (Plan::Wait, Some(snapshot)) = (&plan, state.memory.snapshot()) {
                    return Err(LimiterError::Refused(self.refusal_until(
                        snapshot,
                        snapshot.next_available(0, now),
                        now,
                    )));
                }
                plan
            };
            match write(table, &self.key, &plan).await? {
                Some(Write::Applied(counters)) => {
                    let now = clock.now();
                    self.saw(Some(counters), now);
                    let renewed = plan.permits().zip(self.remembered_usage(now));
                    return renewed.map(|(permits, usage)| permits.permit(usage)).ok_or_else(|| outrun().into());
                }
                Some(Write::Conflict(found)) => self.after_conflict(clock, found, failed).await,
                None => break,
            }
        }
        Err(outrun().into())
    }

    /// Remembers what was seen of the item, and tells a batcher that naps.
    fn saw(&self, counters: Option<Counters>, at: Millis) {
        let mut state = self.state();
        let ceilings = state.ceilings;
        state.memory.saw(counters, ceilings, at);
        drop(state);
        self.changed.notify_one();
    }

    /// After a failed condition, the `failed`th in a row before it: another process was faster. At first that costs
    /// only another try; if it goes on, a short and random pause lets the others through.
    async fn after_conflict(&self, clock: &Clock, found: Option<Counters>, failed: u32) {
        self.saw(found, clock.now());
        if failed >= EAGER_ATTEMPTS {
            let most = 2_u64 << failed.min(5);
            tokio::time::sleep(Duration::from_millis(fastrand::u64(1..=most))).await;
        }
    }

    /// A refusal that needs no call: by the last snapshot there is nothing in time for one more behind those who wait.
    fn known_refusal(
        &self,
        state: &mut State,
        endpoint: Option<&str>,
        now: Millis,
        until: Option<Millis>,
    ) -> Option<Refusal> {
        state.spare.retain(|permit| now <= permit.send_by);
        let refusal = self.refusal(state, state.waiters.len(), endpoint, now, until)?;
        let waiting = state.waiters.len();
        state.waiters.retain(|waiter| !waiter.answer.is_closed());
        if state.waiters.len() == waiting {
            return Some(refusal);
        }
        self.refusal(state, state.waiters.len(), endpoint, now, until)
    }

    /// Why a request with `ahead` others before it cannot have a permit until `until`, if so.
    fn refusal(
        &self,
        state: &State,
        ahead: usize,
        endpoint: Option<&str>,
        now: Millis,
        until: Option<Millis>,
    ) -> Option<Refusal> {
        let snapshot = state.memory.snapshot()?;
        // However old the snapshot is: nobody opens an endpoint before its time.
        if let Some(until) = endpoint.and_then(|endpoint| snapshot.endpoint_closed_until(endpoint, now)) {
            let next = NextAvailable { at: until.max(snapshot.next_available(0, now).at), limit: LimitKind::Endpoint };
            return Some(self.refusal_until(snapshot, next, now));
        }
        if ahead < state.spare.len() {
            return None;
        }
        let snapshot = state.recent_snapshot(now)?;
        let next = snapshot.next_available(u32::try_from(ahead).unwrap_or(u32::MAX), now);
        (next.at > until.unwrap_or(now).max(now)).then(|| self.refusal_until(snapshot, next, now))
    }

    fn refusal_until(&self, snapshot: &Snapshot, next: NextAvailable, now: Millis) -> Refusal {
        let limit = if next.limit == LimitKind::Burst { self.burst_kind } else { next.limit };
        Refusal { limit, retry_at: next.at, usage: snapshot.usage(now) }
    }

    /// Learns from the rate-limit headers of an answer.
    pub(crate) async fn learn(
        &self,
        table: &Table,
        clock: &Clock,
        ceilings: Limits,
        headers: &RateLimitHeaders,
        endpoint: Option<&str>,
    ) -> Result<(), StoreError> {
        // Most answers teach nothing, and need not wait for those that do.
        if let Some(snapshot) = self.state().memory.snapshot()
            && snapshot.counters().is_some()
            && update(snapshot, ceilings, headers, endpoint, clock.now()).is_none()
        {
            return Ok(());
        }
        Box::pin(self.learn_more(table, clock, ceilings, headers, endpoint)).await
    }

    async fn learn_more(
        &self,
        table: &Table,
        clock: &Clock,
        ceilings: Limits,
        headers: &RateLimitHeaders,
        endpoint: Option<&str>,
    ) -> Result<(), StoreError> {
        let _one_at_a_time = self.updating.lock().await;
        let answered_at = clock.now();
        for failed in 0..MOST_ATTEMPTS {
            let known = self.state().memory.snapshot().filter(|snapshot| snapshot.counters().is_some()).cloned();
            let snapshot = if let Some(snapshot) = known {
                snapshot
            } else {
                let read = item::read(table, &self.key).await?;
                self.saw(read.clone(), clock.now());
                Snapshot::of(read, ceilings, clock.now())
            };
            // Where nothing was ever counted, there is nothing to update either.
            let Some(counters) = snapshot.counters() else { return Ok(()) };
            let Some(change) = update(&snapshot, ceilings, headers, endpoint, answered_at) else { return Ok(()) };
            match item::update(table, &self.key, counters, &change).await? {
                Write::Applied(counters) => {
                    self.saw(Some(counters), clock.now());
                    return Ok(());
                }
                Write::Conflict(None) => return Ok(()),
                Write::Conflict(found) => self.after_conflict(clock, found, failed).await,
            }
        }
        Err(outrun())
    }
}

impl State {
    /// Other ceilings hold from now on, if they are other ones.
    fn adopt(&mut self, ceilings: Limits) {
        self.ceilings = ceilings;
        self.memory.adopt(ceilings);
    }

    /// The last snapshot, if it is recent enough to refuse by.
    fn recent_snapshot(&self, now: Millis) -> Option<&Snapshot> {
        let snapshot = self.memory.snapshot().filter(|snapshot| snapshot.counters().is_some())?;
        (now.since(snapshot.seen_at()) <= REMEMBERED).then_some(snapshot)
    }

    /// Gives `permit` to the first waiter that still wants one.
    fn give(&mut self, permit: Permit) {
        while let Some(waiter) = self.waiters.pop_front() {
            if waiter.answer.send(Ok(permit)).is_ok() {
                return;
            }
        }
        self.spare.push(permit);
    }

    fn fail_all(&mut self, error: &LimiterError) {
        for waiter in self.waiters.drain(..) {
            let _ = waiter.answer.send(Err(error.clone()));
        }
    }
}

/// Writes what was planned; nothing where the plan is to wait.
async fn write(table: &Table, key: &str, plan: &Plan) -> Result<Option<Write>, StoreError> {
    Ok(match plan {
        Plan::Take(take) => Some(item::take(table, key, take).await?),
        Plan::Rewrite(rewrite) => Some(item::rewrite(table, key, rewrite).await?),
        Plan::Wait => None,
    })
}

/// [`MOST_ATTEMPTS`] are reached.
fn outrun() -> StoreError {
    StoreError::Unavailable(format!("{MOST_ATTEMPTS} writes in a row were refused"))
}
