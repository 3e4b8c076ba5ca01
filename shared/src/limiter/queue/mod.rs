//! Waiter queue: FIFO queue of this process's callers that wait for permits of one resource. One write serves all of
//! them (batching, or group commit).
//!
//! One future, the [`Batcher`], writes while anybody waits. Every waiter that is in the queue when a write starts is in
//! that write. The batcher starts with the first waiter and ends with the last, so nothing runs while nobody waits. Only a
//! caller that has its permit may run a batcher without waiters, to take permits ahead of need ([`WaiterQueue::take_ahead`]).
//!
//! Invariant: the batcher looks at the waiters and changes `has_batcher` under one lock. So a new waiter is either seen
//! by the batcher before it ends, or starts the next one.

mod batcher;
mod ticket;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};

use self::batcher::Batcher;
pub(super) use self::batcher::LONGEST_NAP;
use self::ticket::{RunningBatcher, Ticket};
use super::ahead::{Ahead, Demand, can_wait};
use super::class::{CallersUse, Class, Others, Wanted, WriteTime};
use super::counters::{Counters, LimitKind, Usage};
use super::decision::{Plan, exchange};
use super::item;
use super::memory::Memory;
use super::permit::{LimiterError, Permit, Refusal};
use super::snapshot::{NextAvailable, Snapshot};
use super::update::{Answer, restricts, update};
use super::window::Window;
use crate::domain::clock::{Clock, Millis};
use crate::domain::limits::{LimitPolicy, Limits};
use crate::table::{StoreError, Table, Write};

/// Failed conditions in a row after which a process pauses before its next write.
const EAGER_ATTEMPTS: u32 = 3;
/// Failed conditions in a row after which the store counts as out of order. Other processes can be faster only as often
/// as there are permits.
const MOST_ATTEMPTS: u32 = 100;

pub(super) type PermitResult = Result<Permit, LimiterError>;

/// A caller's request for one permit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PermitRequest<'a> {
    /// The platform's endpoint that the request goes to.
    pub(crate) endpoint: Option<&'a str>,
    /// The caller waits until then at most; `None` if it does not wait.
    pub(crate) wait_until: Option<Millis>,
    pub(crate) class: Class,
}

/// The waiters of one item (the counters of a resource, or of a share of it), and this process's memory of the item.
#[derive(Debug)]
pub(crate) struct WaiterQueue {
    table: Table,
    clock: Clock,
    key: String,
    /// The limit that a refusal names if no place in the window is available.
    burst_kind: LimitKind,
    state: Mutex<State>,
    /// Wakes a batcher that naps: a waiter has left, or the memory has changed.
    changed: Notify,
    /// Held while a limit update is decided and written, so that many equal answers cause one write.
    updating: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct State {
    waiters: VecDeque<Waiter>,
    has_batcher: bool,
    memory: Memory,
    callers_use: CallersUse,
    /// The time of the writes of permits.
    write_time: WriteTime,
    /// The time between a background permit and its request.
    intent_time: WriteTime,
    /// Permits that no waiter wants yet, oldest first. The next caller gets one without a write. Background requests get
    /// none, because they leave places for callers.
    spare: VecDeque<Permit>,
    demand: Demand,
    used_at: Millis,
}

#[derive(Debug)]
struct Waiter {
    endpoint: Option<String>,
    wait_until: Option<Millis>,
    class: Class,
    answer: oneshot::Sender<PermitResult>,
}

impl Waiter {
    fn request(&self) -> PermitRequest<'_> {
        PermitRequest { endpoint: self.endpoint.as_deref(), wait_until: self.wait_until, class: self.class }
    }
}

impl WaiterQueue {
    pub(crate) fn new(table: Table, clock: Clock, key: String, burst_kind: LimitKind, policy: LimitPolicy) -> Self {
        let state = State {
            waiters: VecDeque::new(),
            has_batcher: false,
            memory: Memory::new(policy),
            callers_use: CallersUse::default(),
            write_time: WriteTime::default(),
            intent_time: WriteTime::default(),
            spare: VecDeque::new(),
            demand: Demand::default(),
            used_at: clock.now(),
        };
        let (changed, updating) = (Notify::new(), tokio::sync::Mutex::new(()));
        Self { table, clock, key, burst_kind, state: Mutex::new(state), changed, updating }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// Replaces the policy, and recomputes the snapshot under it.
    pub(crate) fn adopt(&self, policy: LimitPolicy) {
        self.state().memory.adopt(policy);
    }

    /// The instant of its last use; `None` while anybody waits.
    pub(crate) fn idle_since(&self) -> Option<Millis> {
        let state = self.state();
        (!state.has_batcher && state.waiters.is_empty()).then_some(state.used_at)
    }

    /// Takes a permit, in order of arrival.
    pub(crate) async fn take(self: &Arc<Self>, request: PermitRequest<'_>) -> PermitResult {
        let (ticket, batcher) = {
            let now = self.clock.now();
            let mut state = self.state();
            state.used_at = now;
            if request.class == Class::Caller {
                state.demand.arrived(now);
            }
            if let Some(refusal) = self.refusal_of_next(&mut state, request, now) {
                return Err(LimiterError::Refused(refusal));
            }
            let batcher =
                (!std::mem::replace(&mut state.has_batcher, true)).then(|| Batcher::new(Arc::clone(self)).run());
            if request.class == Class::Caller && state.waiters.iter().any(|waiter| waiter.class != Class::Caller) {
                // The batcher may nap until background requests get their permits.
                self.changed.notify_one();
            }
            (Ticket::new(self, &mut state, request), RunningBatcher::new(batcher))
        };
        batcher.until(ticket.wait()).await
    }

    /// Takes permits ahead of need if the next caller would otherwise wait for a write.
    ///
    /// If the future is dropped before its write is answered, the permits of the write have lapsed. So a write is never left to
    /// a task, which stands still while Lambda freezes the process.
    pub(crate) async fn take_ahead(self: &Arc<Self>) {
        let batcher = {
            let now = self.clock.now();
            let mut state = self.state();
            state.drop_useless(now);
            if state.has_batcher || !state.spare.is_empty() || self.ahead(&state, 0, now).count == 0 {
                return;
            }
            state.has_batcher = true;
            Batcher::ahead_of_need(Arc::clone(self))
        };
        Box::pin(batcher.run()).await;
    }

    /// The refusal that [`WaiterQueue::take`] would answer with, if it can be decided locally: without a call.
    pub(crate) fn local_refusal(&self, request: PermitRequest<'_>) -> Option<Refusal> {
        self.refusal_of_next(&mut self.state(), request, self.clock.now())
    }

    /// The usage, if the snapshot is recent enough.
    pub(crate) fn remembered_usage(&self) -> Option<Usage> {
        let now = self.clock.now();
        self.state().memory.recent(now).map(|snapshot| snapshot.usage(now))
    }

    /// Reads the item, if this process has not seen it for an interval.
    pub(crate) async fn look(&self) -> Result<(), StoreError> {
        let is_recent = || {
            let (state, now) = (self.state(), self.clock.now());
            let snapshot = state.memory.snapshot(now);
            snapshot.is_some_and(|snapshot| now.since(snapshot.seen_at()) < snapshot.limits().interval)
        };
        if is_recent() {
            return Ok(());
        }
        let _one_at_a_time = self.updating.lock().await;
        if !is_recent() {
            self.saw(item::read(&self.table, &self.key).await?);
        }
        Ok(())
    }

    /// The limits, and the places that are reserved for callers that come before permits of this class.
    pub(crate) fn limits_and_reserved(&self, class: Class) -> (Limits, u32) {
        let (state, now) = (self.state(), self.clock.now());
        match (state.memory.snapshot(now), class) {
            (Some(snapshot), Class::Background { reserve }) => {
                let limits = snapshot.limits();
                (limits, state.callers_use.reserve(reserve, limits, now).places(snapshot.callers_live(now)))
            }
            (Some(snapshot), Class::Caller) => (snapshot.limits(), 0),
            (None, _) => (state.memory.policy().default, 0),
        }
    }

    /// Notes the time between a background permit and its request.
    pub(crate) fn note_intent(&self, took: Duration) {
        self.state().intent_time.note(took);
    }

    /// Gives an unused permit to the next waiter of this process.
    pub(crate) fn hand_on(&self, permit: Permit) {
        self.state().give(permit);
        self.changed.notify_one();
    }

    /// Gives an unused permit of a share back to the store. Permits of a resource cannot be given back: their requests
    /// stay counted in the day.
    pub(crate) async fn give_back(&self, permit: &Permit) -> Result<(), StoreError> {
        let slot_ms = Window::new(self.state().memory.policy().default.interval).slot_ms();
        if let Write::Applied(counters) = item::give_back(&self.table, &self.key, permit.slot, slot_ms).await? {
            self.saw(Some(counters));
        }
        Ok(())
    }

    /// Returns the permit if it may still be used. Otherwise exchanges it for one of the current slot, without waiting: in
    /// place of the old permit, or as a further one.
    pub(crate) async fn exchange_if_late(&self, permit: Permit) -> PermitResult {
        for failed in 0..MOST_ATTEMPTS {
            let now = self.clock.now();
            if now <= permit.send_by {
                return Ok(permit);
            }
            let plan = {
                let state = self.state();
                exchange(&state.memory, now, permit.slot).ok_or_else(|| match state.memory.snapshot(now) {
                    Some(snapshot) => {
                        LimiterError::Refused(self.refusal_until(snapshot, snapshot.next_available(0, now), now))
                    }
                    None => store_out_of_order().into(),
                })?
            };
            match self.write(&plan).await? {
                Write::Applied(counters) => return Ok(plan.permits().permit(self.saw(Some(counters)))),
                conflict @ (Write::Conflict(_) | Write::NotFound) => {
                    self.after_conflict(conflict.into_item(), failed).await;
                }
            }
        }
        Err(store_out_of_order().into())
    }

    /// True if an answer changes nothing in the item, as far as this process knows it.
    pub(crate) fn agrees_with(&self, answer: &Answer<'_>) -> bool {
        let now = self.clock.now();
        self.state().memory.of_existing(now).is_some_and(|snapshot| update(snapshot, answer, now).is_none())
    }

    /// Writes the limit update that follows from an answer, if any does. Returns the limits before and after the update,
    /// if it changed them.
    pub(crate) async fn observe(&self, answer: &Answer<'_>) -> Result<Option<(Limits, Limits)>, StoreError> {
        let answered_at = self.clock.now();
        {
            // The platform's answer binds this process at once, even if the table does not take the write.
            let mut state = self.state();
            if state.memory.snapshot(answered_at).is_some_and(|snapshot| restricts(snapshot, &answer.headers)) {
                state.drop_spare();
            }
        }
        let _one_at_a_time = self.updating.lock().await;
        for failed in 0..MOST_ATTEMPTS {
            let snapshot = self.state().memory.of_existing(self.clock.now()).cloned();
            let Some(snapshot) = snapshot else {
                let found = item::read(&self.table, &self.key).await?;
                if found.is_none() {
                    return Ok(None);
                }
                self.saw(found);
                continue;
            };
            let update = update(&snapshot, answer, answered_at);
            let (Some(seen), Some(update)) = (snapshot.counters(), update) else { return Ok(None) };
            match item::update(&self.table, &self.key, seen, &update).await? {
                Write::Applied(counters) => {
                    let before = snapshot.limits();
                    let after = Snapshot::of(Some(counters.clone()), snapshot.policy(), answered_at).limits();
                    self.saw(Some(counters));
                    return Ok((before != after).then_some((before, after)));
                }
                Write::Conflict(found) => self.after_conflict(Some(found), failed).await,
                Write::NotFound => return Ok(None),
            }
        }
        Err(store_out_of_order())
    }

    /// The permits to take ahead of need in a write that takes `wanted` permits for waiters.
    fn ahead(&self, state: &State, wanted: u32, now: Millis) -> Ahead {
        // The share of a caller is not taken ahead: a lapsed permit would be a large part of it.
        let known = state.memory.snapshot(now).filter(|_| self.burst_kind == LimitKind::Burst);
        state.demand.ahead(known, wanted, now)
    }

    async fn write(&self, plan: &Plan) -> Result<Write<Counters>, StoreError> {
        match plan {
            Plan::Take(take) => item::take(&self.table, &self.key, take).await,
            Plan::Rewrite(rewrite) => item::rewrite(&self.table, &self.key, rewrite).await,
        }
    }

    /// Remembers the item that an answer contained, wakes a batcher that naps, and returns the usage.
    fn saw(&self, counters: Option<Counters>) -> Usage {
        let now = self.clock.now();
        let usage = self.state().saw(counters, now);
        self.changed.notify_one();
        usage
    }

    /// After a failed condition, with `failed` others in a row before it: another process was faster. The first tries
    /// follow at once. Later ones follow a short random pause (jitter), so that the others can finish. They forget the
    /// item that was seen before: after the restore of a backup its version would be later than any that is found.
    async fn after_conflict(&self, found: Option<Counters>, failed: u32) {
        if failed >= EAGER_ATTEMPTS {
            self.state().memory.forget();
        }
        self.saw(found);
        if failed >= EAGER_ATTEMPTS {
            let longest = 2_u64 << failed.min(5);
            tokio::time::sleep(Duration::from_millis(fastrand::u64(1..=longest))).await;
        }
    }

    /// The refusal of a request behind all waiters.
    fn refusal_of_next(&self, state: &mut State, request: PermitRequest<'_>, now: Millis) -> Option<Refusal> {
        state.drop_useless(now);
        self.refusal(state, state.ahead_of(request.class), request, now)?;
        // Waiters that have gone away are not before this request.
        state.waiters.retain(|waiter| !waiter.answer.is_closed());
        self.refusal(state, state.ahead_of(request.class), request, now)
    }

    /// The refusal of a request with `ahead` others before it, if the memory shows that it cannot have a permit in
    /// time.
    fn refusal(&self, state: &State, ahead: Others, request: PermitRequest<'_>, now: Millis) -> Option<Refusal> {
        let snapshot = state.memory.snapshot(now)?;
        // This holds for an old snapshot, too: no process ends the closure of an endpoint early.
        if let Some(until) = request.endpoint.and_then(|endpoint| snapshot.endpoint_closed_until(endpoint, now)) {
            let next = NextAvailable { at: until.max(snapshot.next_available(0, now).at), limit: LimitKind::Endpoint };
            return Some(self.refusal_until(snapshot, next, now));
        }
        // The snapshot counts the spare permits as used. They are for callers.
        let spare = if request.class == Class::Caller { state.spare.len() } else { 0 };
        let callers = ahead.callers.checked_sub(u32::try_from(spare).unwrap_or(u32::MAX))?;
        let snapshot = state.memory.recent(now)?;
        let next = match request.class {
            Class::Caller => snapshot.next_available(callers, now),
            Class::Background { reserve } => {
                state.callers_use.reserve(reserve, snapshot.limits(), now).next_available(ahead, snapshot, now)
            }
        };
        let is_too_late = next.at > request.wait_until.unwrap_or(now).max(now);
        is_too_late.then(|| self.refusal_until(snapshot, next, now))
    }

    fn refusal_until(&self, snapshot: &Snapshot, next: NextAvailable, now: Millis) -> Refusal {
        let limit = if next.limit == LimitKind::Burst { self.burst_kind } else { next.limit };
        Refusal { limit, retry_at: next.at, usage: snapshot.usage(now) }
    }
}

impl State {
    /// Drops the spare permits that may not be used any more ([`can_wait`]).
    fn drop_useless(&mut self, now: Millis) {
        let before = self.spare.len();
        let snapshot = self.memory.snapshot(now);
        self.spare.retain(|permit| can_wait(permit.send_by, permit.limits, snapshot, now));
        let lapsed = before - self.spare.len();
        self.demand.lapsed(u32::try_from(lapsed).unwrap_or(u32::MAX));
    }

    /// Drops all spare permits.
    fn drop_spare(&mut self) {
        self.demand.lapsed(u32::try_from(self.spare.len()).unwrap_or(u32::MAX));
        self.spare.clear();
    }

    /// Remembers the item that an answer contained, and returns the usage.
    fn saw(&mut self, counters: Option<Counters>, now: Millis) -> Usage {
        let snapshot = self.memory.saw(counters, now);
        self.callers_use.note(snapshot, now);
        snapshot.usage(now)
    }

    /// The waiters that come before a new one of this class.
    fn ahead_of(&self, class: Class) -> Others {
        let all = self.waiters();
        if class == Class::Caller { Others { background: 0, ..all } } else { all }
    }

    fn waiters(&self) -> Others {
        let mut others = Others::default();
        self.waiters.iter().for_each(|waiter| others.add(waiter.class));
        others
    }

    /// The permits that the waiters want.
    fn wanted(&self, now: Millis) -> Wanted {
        let Others { callers, background } = self.waiters();
        let reserve = self.waiters.iter().find_map(|waiter| match waiter.class {
            Class::Caller => None,
            Class::Background { reserve } => {
                Some(self.callers_use.reserve(reserve, self.memory.snapshot(now)?.limits(), now))
            }
        });
        let quick = self.write_time.quick(self.intent_time);
        Wanted { callers, background, reserve: reserve.unwrap_or_default(), quick }
    }

    /// True if a caller waits. Callers come before background requests.
    fn has_callers(&self) -> bool {
        self.waiters.front().is_some_and(|waiter| waiter.class == Class::Caller)
    }

    /// Gives `permit` to the first waiter that still wants one.
    fn give(&mut self, permit: Permit) {
        while let Some(waiter) = self.waiters.pop_front() {
            let (class, limits) = (waiter.class, permit.limits);
            if waiter.answer.send(Ok(permit)).is_ok() {
                if class == Class::Caller {
                    self.demand.used(limits);
                }
                return;
            }
        }
        self.spare.push_back(permit);
    }

    /// Gives `permit` to the first caller that still wants one, but to no background request.
    fn give_to_caller(&mut self, permit: Permit) {
        while self.has_callers()
            && let Some(waiter) = self.waiters.pop_front()
        {
            if waiter.answer.send(Ok(permit)).is_ok() {
                self.demand.used(permit.limits);
                return;
            }
        }
        self.spare.push_back(permit);
    }

    fn fail_all(&mut self, error: &LimiterError) {
        for waiter in self.waiters.drain(..) {
            let _ = waiter.answer.send(Err(error.clone()));
        }
    }
}

/// [`MOST_ATTEMPTS`] conditions in a row have failed.
fn store_out_of_order() -> StoreError {
    StoreError::Unavailable(format!("{MOST_ATTEMPTS} conditional writes in a row failed"))
}

#[cfg(test)]
impl WaiterQueue {
    /// The queue of a resource whose store cannot be reached.
    fn unconnected() -> Self {
        Self::of_store(aws_sdk_dynamodb::Config::builder(), LimitKind::Burst)
    }

    fn of_store(store: aws_sdk_dynamodb::config::Builder, burst_kind: LimitKind) -> Self {
        let config = store.behavior_version(aws_sdk_dynamodb::config::BehaviorVersion::latest()).build();
        let table = Table { client: aws_sdk_dynamodb::Client::from_conf(config), name: "t".into() };
        let limits = Limits { burst: 400, interval: Duration::from_secs(10), daily: 9_000 };
        Self::new(table, Clock::manual(Millis(0)), "quota#location#L".to_owned(), burst_kind, limits.into())
    }
}

#[cfg(test)]
mod tests;
