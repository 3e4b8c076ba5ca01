//! Who decides for all that wait in a lane.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::{Lane, MOST_ATTEMPTS, REMEMBERED, outrun};
use crate::clock::{Clock, Millis};
use crate::quota::counters::{Counters, Standing};
use crate::quota::decision::{Plan, plan};
use crate::quota::item::{self, Outcome};
use crate::quota::memory::Memory;
use crate::quota::{Permit, QuotaError};
use crate::table::{StoreError, Table};

/// Writes in a row that came too late for their permits before the store counts as out of order.
const LATE_WRITES: u32 = 3;
/// A write is not expected to take longer than the store's client lets it. A process that was frozen meanwhile, or a
/// clock that was set, must not number the next permits far ahead: all others would have to follow.
const LONGEST_LEAD: Duration = Duration::from_secs(4);
/// A driver that waits looks at the clock at least so often: the clock may be corrected meanwhile.
const LONGEST_NAP: Duration = Duration::from_secs(1);

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

/// Decides for all who wait, as long as somebody does.
pub(super) struct Driver {
    lane: Arc<Lane>,
    table: Table,
    clock: Clock,
    ended: bool,
}

impl Driver {
    pub(super) fn new(lane: Arc<Lane>, table: Table, clock: Clock) -> Self {
        Self { lane, table, clock, ended: false }
    }

    pub(super) async fn run(mut self) {
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
                    lead = self.clock.now().since(attempt.at).min(LONGEST_LEAD);
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
        match plan(&state.memory, state.ceilings, now, lead, wanted) {
            Plan::Wait(_) if stale => {
                let plan = plan(&Memory::new(now), state.ceilings, now, lead, wanted);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quota::lane::waiting::Waiting;
    use crate::quota::{LimitKind, Limits};

    const LIMITS: Limits = Limits { burst: 2, interval: Duration::from_secs(10), daily: 9 };

    #[tokio::test]
    async fn a_driver_that_is_torn_down_leaves_nobody_waiting() {
        let lane = Arc::new(Lane::new("quota#location#L".to_owned(), LimitKind::Burst, LIMITS, Millis(0)));
        let waiting = Waiting::behind(&lane, &mut lane.state(), None);
        lane.state().driven = true;
        let config = aws_sdk_dynamodb::Config::builder()
            .behavior_version(aws_sdk_dynamodb::config::BehaviorVersion::latest())
            .build();
        let table = Table { client: aws_sdk_dynamodb::Client::from_conf(config), name: "t".into() };
        drop(Driver::new(Arc::clone(&lane), table, Clock::manual(Millis(0))));
        assert!(matches!(waiting.wait().await, Err(QuotaError::Store(_))));
        assert!(!lane.state().driven, "the next one starts another driver");
    }
}
