//! Those of one process who want permits of one resource, in order of arrival.
//!
//! While anybody waits, one future (the *driver*) decides for all of them: everyone who is there when a write starts is
//! in that write. It starts with the first waiter and ends with the last, so nothing runs once everyone is answered.
//!
//! Invariant: the queue is looked at and `driven` is changed under the same lock, so a waiter is either seen by the
//! driver before it ends or starts a new one.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};

use super::counters::{Counters, LimitKind, Opening, Standing};
use super::decision::Plan;
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
/// A driver that waits looks at the clock at least so often: the clock may be corrected meanwhile.
const LONGEST_NAP: Duration = Duration::from_secs(1);
/// Failed conditions in a row after which the others are left to finish first.
const EAGER_ATTEMPTS: u32 = 3;
/// Failed conditions in a row after which something else must be wrong: others can be faster only as often as there are
/// permits.
const MOST_ATTEMPTS: u32 = 100;
/// Failed conditions from one knock to the next.
const KNOCKS_APART: u32 = 8;
/// Writes in a row that came too late for their permits before the store counts as out of order.
const LATE_WRITES: u32 = 3;

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

/// What a driver does next.
enum Step {
    Write(Box<Attempt>),
    Nap(Duration),
    End,
}

struct Attempt {
    plan: Plan,
    at: Millis,
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
            let (sender, answer) = oneshot::channel();
            state.queue.push_back(Waiter { until, answer: sender });
            let driver = (!std::mem::replace(&mut state.driven, true)).then(|| {
                Driver { lane: Arc::clone(self), table: table.clone(), clock: clock.clone(), ended: false }.run()
            });
            (Waiting { lane: self, answer, answered: false }, Driving(driver.map(|run| Box::pin(run) as Run)))
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
                    self.state().memory.saw(Seen::Item(counters), clock.now());
                    self.changed.notify_one();
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
                self.state().memory.saw(Seen::Item(counters), clock.now());
                self.changed.notify_one();
                return Ok(());
            };
            match item::correct(table, &self.key, &counters, &change).await? {
                Outcome::Applied(counters) => {
                    self.state().memory.saw(Seen::Item(counters), clock.now());
                    self.changed.notify_one();
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

/// The end of a queue that somebody stands at. Leaving gives back what came too late to be used.
struct Waiting<'a> {
    lane: &'a Lane,
    answer: oneshot::Receiver<Answer>,
    answered: bool,
}

impl Waiting<'_> {
    async fn wait(mut self) -> Answer {
        let answer = (&mut self.answer).await;
        self.answered = true;
        answer.unwrap_or_else(|_| Err(StoreError::Unavailable("the quota's driver stopped".to_owned()).into()))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.answered {
            return;
        }
        self.answer.close();
        if let Ok(Ok(permit)) = self.answer.try_recv() {
            self.lane.state().give(permit);
        }
        self.lane.changed.notify_one();
    }
}

type Run = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A driver that the first waiter drives itself, which spares a task for the many who are alone. What is left of it
/// when that waiter has its answer, or goes away, becomes a task.
struct Driving(Option<Run>);

impl Driving {
    async fn until(mut self, answer: impl Future<Output = Answer>) -> Answer {
        let mut answer = pin!(answer);
        poll_fn(|context| {
            if self.0.as_mut().is_some_and(|run| run.as_mut().poll(context).is_ready()) {
                self.0 = None;
            }
            answer.as_mut().poll(context)
        })
        .await
    }
}

impl Drop for Driving {
    fn drop(&mut self) {
        if let (Some(run), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(run);
        }
    }
}

/// Decides for all who wait, as long as somebody does.
struct Driver {
    lane: Arc<Lane>,
    table: Table,
    clock: Clock,
    ended: bool,
}

impl Driver {
    async fn run(mut self) {
        // Whoever arrives together with the first is in its write.
        tokio::task::yield_now().await;
        let (mut failed, mut late, mut lead) = (0, 0, Duration::ZERO);
        loop {
            let attempt = match self.step(lead) {
                Step::End => {
                    self.ended = true;
                    return;
                }
                Step::Nap(length) => {
                    let _ = tokio::time::timeout(length, self.lane.changed.notified()).await;
                    failed = 0;
                    continue;
                }
                Step::Write(attempt) => attempt,
            };
            let outcome = match &attempt.plan {
                Plan::Take(take) => item::take(&self.table, &self.lane.key, take).await,
                Plan::Rewrite(rewrite) => item::rewrite(&self.table, &self.lane.key, rewrite).await,
                Plan::Wait(_) => continue,
            };
            match outcome {
                Err(error) => self.lane.state().fail_all(&error.into()),
                Ok(Outcome::Refused(found)) => {
                    if let Err(error) = self.lane.after_refusal(&self.table, &self.clock, found, failed).await {
                        self.lane.state().fail_all(&error.into());
                    }
                    failed += 1;
                    if failed == MOST_ATTEMPTS {
                        failed = 0;
                        self.lane.state().fail_all(&outrun().into());
                    }
                }
                Ok(Outcome::Applied(counters)) => {
                    failed = 0;
                    if self.grant(&attempt, counters) {
                        (late, lead) = (0, Duration::ZERO);
                        continue;
                    }
                    // The permits are lost, which errs on the safe side. The next ones are of a later slot.
                    late += 1;
                    lead = self.clock.now().since(attempt.at);
                    if late == LATE_WRITES {
                        late = 0;
                        let error = StoreError::Unavailable(format!("a write took {} ms", lead.as_millis()));
                        self.lane.state().fail_all(&error.into());
                    }
                }
            }
        }
    }

    /// Answers those who can be answered by what is known, and says what to do for the others.
    fn step(&self, lead: Duration) -> Step {
        let mut state = self.lane.state();
        let now = self.clock.now();
        state.queue.retain(|waiter| !waiter.answer.is_closed());
        while let Some(permit) = state.spare.pop() {
            if now <= permit.send_by && !state.queue.is_empty() {
                state.give(permit);
            }
        }
        if let Some(standing) = state.standing(now) {
            let mut kept = VecDeque::with_capacity(state.queue.len());
            for waiter in std::mem::take(&mut state.queue) {
                let ahead = u32::try_from(kept.len()).unwrap_or(u32::MAX);
                match self.lane.refusal(&standing, ahead, waiter.until) {
                    Some(refusal) => drop(waiter.answer.send(Err(QuotaError::Refused(refusal)))),
                    None => kept.push_back(waiter),
                }
            }
            state.queue = kept;
        }
        if state.queue.is_empty() {
            state.driven = false;
            return Step::End;
        }
        let wanted = u32::try_from(state.queue.len()).unwrap_or(u32::MAX);
        // What was seen too long ago to refuse by is no reason to wait either.
        let stale = now.since(state.memory.seen_at()) > REMEMBERED;
        match state.memory.plan(state.ceilings, now, lead, wanted) {
            Plan::Wait(_) if stale => {
                let plan = Memory::new(now).plan(state.ceilings, now, lead, wanted);
                Step::Write(Box::new(Attempt { plan, at: now }))
            }
            Plan::Wait(opening) => Step::Nap(opening.at.since(now).min(LONGEST_NAP)),
            plan => Step::Write(Box::new(Attempt { plan, at: now })),
        }
    }

    /// Hands out the permits of an applied write, unless it took too long for them to be of use.
    fn grant(&self, attempt: &Attempt, counters: Counters) -> bool {
        let Some((permits, slot)) = attempt.plan.permits() else { return true };
        let now = self.clock.now();
        let mut state = self.lane.state();
        let after = Standing::of(Some(&counters), state.ceilings, now);
        let (send_by, usage) = (after.window.send_by(slot), after.usage());
        state.memory.applied(&attempt.plan, counters, now);
        if now > send_by {
            return false;
        }
        for _ in 0..permits {
            state.give(Permit { usage, send_by, slot });
        }
        true
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // One that ended by itself may have a successor already. One that was torn down leaves nobody waiting in vain.
        if !self.ended {
            let mut state = self.lane.state();
            state.driven = false;
            state.queue.clear();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quota::Meter;

    const LIMITS: Limits = Limits { burst: 2, interval: Duration::from_secs(10), daily: 9 };

    fn permit(send_by: i64) -> Permit {
        let meter = Meter { limit: 2, remaining: 1, resets_at: Millis(0) };
        Permit { usage: Usage { burst: meter, daily: meter }, send_by: Millis(send_by), slot: 0 }
    }

    fn stand_in_line(lane: &Lane) -> Waiting<'_> {
        let (sender, answer) = oneshot::channel();
        lane.state().queue.push_back(Waiter { until: None, answer: sender });
        Waiting { lane, answer, answered: false }
    }

    #[tokio::test]
    async fn a_permit_that_comes_to_somebody_who_has_left_goes_to_the_next() {
        let lane = Lane::new("quota#location#L".to_owned(), LimitKind::Burst, LIMITS, Millis(0));
        let (gone, first, second) = (stand_in_line(&lane), stand_in_line(&lane), stand_in_line(&lane));
        drop(gone);
        lane.state().give(permit(1));
        drop(first); // It was given the permit, and never looked.
        assert_eq!(second.wait().await.expect("handed on").send_by, Millis(1));
        lane.state().give(permit(2));
        assert_eq!(lane.state().spare, [permit(2)], "nobody is left");
    }

    #[tokio::test]
    async fn a_driver_that_is_torn_down_leaves_nobody_waiting() {
        let lane = Arc::new(Lane::new("quota#location#L".to_owned(), LimitKind::Burst, LIMITS, Millis(0)));
        let waiting = stand_in_line(&lane);
        lane.state().driven = true;
        let config = aws_sdk_dynamodb::Config::builder()
            .behavior_version(aws_sdk_dynamodb::config::BehaviorVersion::latest())
            .build();
        let table = Table { client: aws_sdk_dynamodb::Client::from_conf(config), name: "t".into() };
        drop(Driver { lane: Arc::clone(&lane), table, clock: Clock::manual(Millis(0)), ended: false });
        assert!(matches!(waiting.wait().await, Err(QuotaError::Store(_))));
        assert!(!lane.state().driven, "the next one starts another driver");
    }
}
