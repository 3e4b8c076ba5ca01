//! Batcher: writes for all waiters of a queue.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;

use super::{MOST_ATTEMPTS, WaiterQueue, store_out_of_order};
use crate::domain::clock::Millis;
use crate::limiter::ahead::Ahead;
use crate::limiter::class::Others;
use crate::limiter::counters::Counters;
use crate::limiter::decision::{Permits, Plan, plan};
use crate::limiter::memory::Memory;
use crate::limiter::permit::LimiterError;
use crate::limiter::snapshot::{FURTHEST_SLOT, Snapshot};
use crate::table::{StoreError, Write};

/// After this many consecutive writes whose answers came after their permits' `send_by`, all waiters get an error.
const LATE_WRITES: u32 = 3;
/// The longest lead of a write. The store's client lets no write take longer. After a freeze of the process or a change
/// of the clock, a longer lead would number the next permits far ahead, and all processes would have to follow.
const LONGEST_LEAD: Duration = Duration::from_secs(4);
/// A batcher that waits looks at the clock at least so often, because the clock may be corrected meanwhile.
pub(in crate::limiter) const LONGEST_NAP: Duration = Duration::from_secs(1);

/// Slots of permits with a lead still bind.
const _: () = assert!(LONGEST_LEAD.as_secs() < FURTHEST_SLOT.as_secs());

/// The time in which the queued calls of a batch of messages gather for one write.
const GATHER: Duration = Duration::from_millis(4);

/// The next step of a batcher.
enum Step {
    /// `ahead` is the number of permits that are taken ahead of need.
    Write {
        plan: Plan,
        at: Millis,
        ahead: u32,
    },
    Nap(Duration),
    /// Read the item, for background requests only.
    Look,
    End,
}

/// Answers the waiters of a queue, as long as there are any.
pub(super) struct Batcher {
    queue: Arc<WaiterQueue>,
    /// True if it also writes while nobody waits, to take permits ahead of need.
    takes_ahead: bool,
    /// The permits ahead of need in the write that is on its way.
    under_way: u32,
    ended: bool,
}

impl Batcher {
    /// A batcher for waiters.
    pub(super) fn new(queue: Arc<WaiterQueue>) -> Self {
        Self { queue, takes_ahead: false, under_way: 0, ended: false }
    }

    /// A batcher that takes permits ahead of need. It answers the waiters that come meanwhile, too.
    pub(super) fn ahead_of_need(queue: Arc<WaiterQueue>) -> Self {
        let mut batcher = Self::new(queue);
        batcher.takes_ahead = true;
        batcher
    }

    pub(super) async fn run(mut self) {
        // Waiters that arrive together with the first one are in its write. Timers wake queued calls within some
        // milliseconds. The request beside which permits are taken ahead of need leaves first.
        if self.takes_ahead || self.queue.state().has_callers() {
            tokio::task::yield_now().await;
        } else {
            tokio::time::sleep(GATHER).await;
        }
        let (mut failed, mut late, mut lead) = (0, 0, Duration::ZERO);
        // False after an error of the store.
        let mut store_works = true;
        loop {
            let (plan, at, ahead) = match self.step(lead, store_works) {
                Step::End => {
                    self.ended = true;
                    return;
                }
                Step::Look => {
                    if let Err(error) = self.queue.look().await {
                        self.fail_all(error);
                    }
                    continue;
                }
                Step::Nap(length) => {
                    let _ = tokio::time::timeout(length, self.queue.changed.notified()).await;
                    failed = 0;
                    continue;
                }
                Step::Write { plan, at, ahead } => (plan, at, ahead),
            };
            self.under_way = ahead;
            let answer = self.queue.write(&plan).await;
            self.under_way = 0;
            match answer {
                Err(error) => {
                    self.queue.state().demand.lapsed(ahead);
                    store_works = false;
                    self.fail_all(error);
                }
                Ok(conflict @ (Write::Conflict(_) | Write::NotFound)) => {
                    self.queue.after_conflict(conflict.into_item(), failed).await;
                    failed += 1;
                    if failed == MOST_ATTEMPTS {
                        (failed, store_works) = (0, false);
                        self.fail_all(store_out_of_order());
                    }
                }
                Ok(Write::Applied(counters)) => {
                    failed = 0;
                    self.queue.state().write_time.note(self.queue.clock.now().since(at));
                    if self.grant(plan.permits(), counters) {
                        (late, lead) = (0, Duration::ZERO);
                        continue;
                    }
                    // The permits are lost: counted, but never used. The next ones are of a later slot.
                    self.queue.state().demand.lapsed(ahead);
                    late += 1;
                    lead = self.queue.clock.now().since(at).min(LONGEST_LEAD);
                    if late == LATE_WRITES {
                        late = 0;
                        self.fail_all(StoreError::Unavailable(format!("a write took {} ms", lead.as_millis())));
                    }
                }
            }
        }
    }

    /// Answers the waiters that can be answered without a call, and decides the next step for the others. Permits are taken
    /// ahead of need only if `store_works`.
    fn step(&self, lead: Duration, store_works: bool) -> Step {
        let mut state = self.queue.state();
        let now = self.queue.clock.now();
        state.waiters.retain(|waiter| !waiter.answer.is_closed());
        let (mut kept, mut ahead) = (VecDeque::with_capacity(state.waiters.len()), Others::default());
        for waiter in std::mem::take(&mut state.waiters) {
            if let Some(refusal) = self.queue.refusal(&state, ahead, waiter.request(), now) {
                let _ = waiter.answer.send(Err(LimiterError::Refused(refusal)));
            } else {
                ahead.add(waiter.class);
                kept.push_back(waiter);
            }
        }
        state.waiters = kept;
        while state.has_callers()
            && let Some(permit) = state.spare.pop_front()
        {
            state.give_to_caller(permit);
        }
        let nobody_waits = state.waiters.is_empty();
        let mut wanted = state.wanted(now);
        let memory = &state.memory;
        if wanted.background > 0 {
            let opens_in = memory.snapshot(now).map(|snapshot| wanted.opens_at(snapshot, now).since(now));
            match opens_in {
                None if wanted.callers == 0 => return Step::Look,
                Some(nap) if wanted.callers == 0 && !nap.is_zero() => return Step::Nap(nap.min(LONGEST_NAP)),
                Some(nap) if nap.is_zero() => {}
                // Callers do not wait for background requests.
                _ => wanted.background = 0,
            }
        }
        // Nothing is taken ahead while writes are slow: their slots lie far ahead. A write for background requests only has no
        // lead, because their schedule counts on it that their permits come back early.
        let is_needed = wanted.callers > 0 || (nobody_waits && self.takes_ahead && state.spare.is_empty());
        let foresees = is_needed && lead.is_zero() && store_works;
        let mut ahead = if foresees { self.queue.ahead(&state, wanted.count(), now) } else { Ahead::default() };
        if wanted.background > 0 {
            // Background requests take the places that callers leave.
            ahead.count = 0;
        }
        if nobody_waits && ahead.count == 0 {
            state.has_batcher = false;
            return Step::End;
        }
        let (callers, lead) = (wanted.callers, lead.max(ahead.lead));
        wanted.callers = callers.saturating_add(ahead.count);
        // A snapshot that is too old to refuse by is no reason to wait either.
        let unknown = || memory.recent(now).is_none().then(|| Memory::new(memory.policy()));
        let plan = plan(memory, now, lead, wanted).or_else(|| plan(&unknown()?, now, lead, wanted));
        let until_available = |snapshot: &Snapshot| snapshot.next_available(0, now).at.since(now);
        let nap = || Step::Nap(memory.snapshot(now).map_or(LONGEST_NAP, until_available).min(LONGEST_NAP));
        plan.map_or_else(nap, |plan| {
            let Permits { count, background, .. } = plan.permits();
            let ahead = (count - background).saturating_sub(callers);
            Step::Write { plan, at: now, ahead }
        })
    }

    /// Hands out the permits of an applied write, unless it took longer than they are good for.
    fn grant(&self, permits: Permits, counters: Counters) -> bool {
        let now = self.queue.clock.now();
        let mut state = self.queue.state();
        let usage = state.saw(Some(counters), now);
        let is_in_time = now <= permits.send_by;
        if is_in_time {
            // The permits that are still to be given are not used, and this process has them.
            for left in (0..permits.count).rev() {
                let permit = permits.permit(usage.with_unused(left));
                // Callers' permits come first.
                if left < permits.background {
                    state.give(permit);
                } else {
                    state.give_to_caller(permit);
                }
            }
        }
        is_in_time
    }

    fn fail_all(&self, error: impl Into<LimiterError>) {
        self.queue.state().fail_all(&error.into());
    }
}

impl Drop for Batcher {
    fn drop(&mut self) {
        // A batcher that has ended may have a successor.
        if self.ended {
            return;
        }
        let successor = {
            let mut state = self.queue.state();
            state.demand.lapsed(self.under_way);
            // Waiters may have come while permits were taken ahead of need. Their callers do not run this batcher.
            let runtime = Handle::try_current().ok().filter(|_| self.takes_ahead && !state.waiters.is_empty());
            state.has_batcher = runtime.is_some();
            if runtime.is_none() {
                // One that was torn down must not leave waiters without an answer.
                state.waiters.clear();
            }
            runtime
        };
        if let Some(runtime) = successor {
            runtime.spawn(Self::new(Arc::clone(&self.queue)).run());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limiter::class::Class;
    use crate::limiter::queue::PermitRequest;
    use crate::limiter::queue::ticket::Ticket;

    #[tokio::test]
    async fn a_batcher_that_is_torn_down_leaves_nobody_waiting() {
        let queue = Arc::new(WaiterQueue::unconnected());
        let request = PermitRequest { endpoint: None, wait_until: None, class: Class::Caller };
        let ticket = Ticket::new(&queue, &mut queue.state(), request);
        queue.state().has_batcher = true;
        drop(Batcher::new(Arc::clone(&queue)));
        assert!(matches!(ticket.wait().await, Err(LimiterError::Store(_))));
        assert!(!queue.state().has_batcher, "the next waiter starts another batcher");
    }
}
