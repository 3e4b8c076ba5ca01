//! Writes for all that wait in a queue.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::{Answer, MOST_ATTEMPTS, REMEMBERED, WaiterQueue, outrun, write};
use crate::domain::clock::{Clock, Millis};
use crate::limiter::LimiterError;
use crate::limiter::counters::Counters;
use crate::limiter::decision::{Plan, plan};
use crate::limiter::item::Write;
use crate::table::{StoreError, Table};

/// Writes in a row that came too late for their permits before the store counts as out of order.
const LATE_WRITES: u32 = 3;
/// A write is not expected to take longer than the store's client lets it. A process that was frozen meanwhile, or a
/// clock that was set, must not number the next permits far ahead: all others would have to follow.
const LONGEST_LEAD: Duration = Duration::from_secs(4);
/// A batcher that waits looks at the clock at least so often: the clock may be corrected meanwhile.
pub(in crate::limiter) const LONGEST_NAP: Duration = Duration::from_secs(1);

/// The next step of a batcher.
enum Step {
    Write { plan: Box<Plan>, at: Millis },
    Nap(Duration),
    End,
}

/// Answers the waiters of a queue, as long as there are any.
pub(super) struct Batcher {
    queue: Arc<WaiterQueue>,
    table: Table,
    clock: Clock,
    ended: bool,
}

impl Batcher {
    pub(super) fn new(queue: Arc<WaiterQueue>, table: Table, clock: Clock) -> Self {
        Self { queue, table, clock, ended: false }
    }

    pub(super) async fn run(mut self) {
        // Waiters that arrive together with the first one are in its write.
        tokio::task::yield_now().await;
        let (mut failed, mut late, mut lead) = (0, 0, Duration::ZERO);
        loop {
            let (plan, at) = match self.step(lead) {
                Step::End => {
                    self.ended = true;
                    return;
                }
                Step::Nap(length) => {
                    let _ = tokio::time::timeout(length, self.queue.changed.notified()).await;
                    failed = 0;
                    continue;
                }
                Step::Write { plan, at } => (plan, at),
            };
            match write(&self.table, &self.queue.key, &plan).await {
                Ok(None) => {}
                Err(error) => self.queue.state().fail_all(&error.into()),
                Ok(Some(Write::Conflict(found))) => {
                    self.queue.after_conflict(&self.clock, found, failed).await;
                    failed += 1;
                    if failed == MOST_ATTEMPTS {
                        failed = 0;
                        self.queue.state().fail_all(&outrun().into());
                    }
                }
                Ok(Some(Write::Applied(counters))) => {
                    failed = 0;
                    if self.grant(&plan, counters) {
                        (late, lead) = (0, Duration::ZERO);
                        continue;
                    }
                    // The permits are lost, which errs on the safe side. The next ones are of a later slot.
                    late += 1;
                    lead = self.clock.now().since(at).min(LONGEST_LEAD);
                    if late == LATE_WRITES {
                        late = 0;
                        let error = StoreError::Unavailable(format!("a write took {} ms", lead.as_millis()));
                        self.queue.state().fail_all(&error.into());
                    }
                }
            }
        }
    }

    /// Answers the waiters that can be answered by what is known, and says what to do for the others.
    fn step(&self, lead: Duration) -> Step {
        let mut state = self.queue.state();
        let now = self.clock.now();
        state.waiters.retain(|waiter| !waiter.answer.is_closed());
        state.spare.retain(|permit| now <= permit.send_by);
        let mut kept = VecDeque::with_capacity(state.waiters.len());
        for waiter in std::mem::take(&mut state.waiters) {
            match self.queue.refusal(&state, kept.len(), waiter.endpoint.as_deref(), now, waiter.until) {
                Some(refusal) => drop::<Result<(), Answer>>(waiter.answer.send(Err(LimiterError::Refused(refusal)))),
                None => kept.push_back(waiter),
            }
        }
        state.waiters = kept;
        while !state.waiters.is_empty()
            && let Some(permit) = state.spare.pop()
        {
            state.give(permit);
        }
        if state.waiters.is_empty() {
            state.has_batcher = false;
            return Step::End;
        }
        let wanted = u32::try_from(state.waiters.len()).unwrap_or(u32::MAX);
        let snapshot = state.memory.snapshot();
        // A snapshot that is too old to refuse by is no reason to wait either.
        let is_old = snapshot.is_none_or(|snapshot| now.since(snapshot.seen_at()) > REMEMBERED);
        let plan = match plan(snapshot, state.ceilings, now, lead, wanted) {
            Plan::Wait if is_old => plan(None, state.ceilings, now, lead, wanted),
            plan => plan,
        };
        if matches!(plan, Plan::Wait) {
            let until_free = snapshot.map_or(LONGEST_NAP, |snapshot| snapshot.next_available(0, now).at.since(now));
            return Step::Nap(until_free.min(LONGEST_NAP));
        }
        Step::Write { plan: Box::new(plan), at: now }
    }

    /// Hands out the permits of an applied write, unless it took too long for them to be of use.
    fn grant(&self, plan: &Plan, counters: Counters) -> bool {
        let Some(permits) = plan.permits() else { return true };
        let now = self.clock.now();
        let mut state = self.queue.state();
        let ceilings = state.ceilings;
        state.memory.saw(Some(counters), ceilings, now);
        let Some(usage) = state.memory.snapshot().map(|snapshot| snapshot.usage(now)) else { return true };
        if now > permits.send_by {
            return false;
        }
        for _ in 0..permits.count {
            state.give(permits.permit(usage));
        }
        true
    }
}

impl Drop for Batcher {
    fn drop(&mut self) {
        // A batcher that ended by itself may have a successor already. One that was torn down leaves nobody waiting in
        // vain.
        if !self.ended {
            let mut state = self.queue.state();
            state.has_batcher = false;
            state.waiters.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::limits::Limits;
    use crate::limiter::LimitKind;
    use crate::limiter::queue::ticket::Ticket;

    const LIMITS: Limits = Limits { burst: 2, interval: Duration::from_secs(10), daily: 9 };

    #[tokio::test]
    async fn a_batcher_that_is_torn_down_leaves_nobody_waiting() {
        let queue = Arc::new(WaiterQueue::new("quota#location#L".to_owned(), LimitKind::Burst, LIMITS, Millis(0)));
        let ticket = Ticket::behind(&queue, &mut queue.state(), None, None);
        queue.state().has_batcher = true;
        let config = aws_sdk_dynamodb::Config::builder()
            .behavior_version(aws_sdk_dynamodb::config::BehaviorVersion::latest())
            .build();
        let table = Table { client: aws_sdk_dynamodb::Client::from_conf(config), name: "t".into() };
        drop(Batcher::new(Arc::clone(&queue), table, Clock::manual(Millis(0))));
        assert!(matches!(ticket.wait().await, Err(LimiterError::Store(_))));
        assert!(!queue.state().has_batcher, "the next one starts another batcher");
    }
}
