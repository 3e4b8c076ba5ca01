//! Background permits: those of queued calls, for which nobody waits. They leave places for callers that wait
//! (`class`).

use std::time::Duration;

use super::Limiter;
use super::class::{Class, QUICKEST};
use super::counters::LimitKind;
use super::permit::{LimiterError, Permit, Refusal};
use super::queue::PermitRequest;
use super::share::{SHARE_INTERVAL, ShareOwner, SharePermit};
use super::window::Window;
use crate::domain::clock::Millis;
use crate::domain::limits::{Endpoint, LimitPolicy, Limits};
use crate::domain::resource::Resource;
use crate::table::StoreError;
use crate::table::turns::Pattern;

/// The time for which a place stays free for callers that wait in other processes, before the queue takes it. A waiting
/// caller's process takes the place within some milliseconds.
const YIELD: Duration = Duration::from_millis(20);
/// A snapshot of this age is good enough to plan the calls of a batch of messages.
const FRESH: Duration = Duration::from_secs(1);
/// A queued call begins so long before it takes its permit, because it records its intent first. All calls that begin
/// together then take their permits in one write.
pub const LEAD: Duration = Duration::from_millis(100);

/// The time in which a queued call takes its permit.
#[derive(Clone, Copy, Debug)]
pub struct TakeTime {
    /// The earliest instant.
    pub from: Millis,
    /// The latest instant. After it, the call is refused.
    pub until: Millis,
}

/// Permits for queued calls.
#[derive(Debug)]
pub struct Background {
    limiter: Limiter,
    class: Class,
}

impl Background {
    /// Permits of `limiter`. `reserve` is the part of each limit that is kept for callers at most, in thousandths.
    #[must_use]
    pub fn new(limiter: Limiter, reserve: u32) -> Self {
        Self { limiter, class: Class::Background { reserve: reserve.min(1_000) } }
    }

    /// Takes a permit for a queued call within `time`, or refuses. `caller` is the id of a caller that has a share of its
    /// own, with the size of that share.
    ///
    /// # Errors
    /// [`LimiterError`]. A refusal names the first instant at which a permit can be available.
    pub async fn take<'a>(
        &self,
        to: impl Into<Endpoint<'a>>,
        caller: Option<(&str, u32)>,
        time: TakeTime,
    ) -> Result<Permit, LimiterError> {
        let to = to.into();
        let Some((id, burst)) = caller else { return self.take_of_resource(to, time).await };
        let policy = LimitPolicy::from(Limits { burst, interval: SHARE_INTERVAL, daily: u32::MAX });
        let share = self.limiter.queue(ShareOwner::Caller(id).key(to.resource), LimitKind::Caller, policy);
        share.adopt(policy);
        let request = PermitRequest { endpoint: None, wait_until: None, class: Class::Caller };
        let of_caller = SharePermit { share: &share, permit: share.take(request).await?, is_unused: true };
        match self.take_of_resource(to, time).await {
            Ok(permit) => Ok(Permit { send_by: of_caller.spend().await?.min(permit.send_by), ..permit }),
            Err(error) => {
                of_caller.give_back().await;
                Err(error)
            }
        }
    }

    async fn take_of_resource(&self, to: Endpoint<'_>, time: TakeTime) -> Result<Permit, LimiterError> {
        let queue = self.limiter.queue_of(to.resource);
        // Background permits need a snapshot, to know what callers use.
        queue.look(Duration::MAX).await?;
        tokio::time::sleep(time.from.since(self.limiter.now())).await;
        loop {
            let answer = queue.take(self.request(to)).await;
            let Err(LimiterError::Refused(refusal)) = &answer else { return answer };
            let again_at = refusal.retry_at + YIELD;
            if again_at > time.until {
                return answer;
            }
            tokio::time::sleep(again_at.since(self.limiter.now())).await;
        }
    }

    /// The instants at which so many queued calls of a resource can take their permits, if nobody else takes any. Reads the
    /// item if some can take them soon, unless this process has just seen it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn available(&self, resource: &Resource, count: usize) -> Result<Vec<Millis>, StoreError> {
        let queue = self.limiter.queue_of(resource);
        // Others can only make it later. So an old snapshot is good enough to wait.
        let is_soon = queue.next_available(1, self.class).iter().any(|at| *at <= self.limiter.now() + LEAD);
        if is_soon {
            queue.look(FRESH).await?;
        }
        let now = self.limiter.now();
        let yielding = |at: Millis| if at > now { at + YIELD } else { at };
        Ok(queue.next_available(count, self.class).into_iter().map(yielding).collect())
    }

    fn request<'a>(&self, to: Endpoint<'a>) -> PermitRequest<'a> {
        PermitRequest { endpoint: to.name, wait_until: None, class: self.class }
    }

    /// The refusal of a queued call, if this process knows that there is no permit until `latest`. Costs no call.
    #[must_use]
    pub fn local_refusal<'a>(&self, to: impl Into<Endpoint<'a>>, latest: Millis) -> Option<Refusal> {
        let to = to.into();
        let refusal = self.limiter.queue_of(to.resource).local_refusal(self.request(to))?;
        (refusal.retry_at + YIELD > latest).then_some(refusal)
    }

    /// The pattern of the schedule of a resource's queued calls: the limits, and what callers leave of them.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn pattern(&self, resource: &Resource) -> Result<Pattern, StoreError> {
        let queue = self.limiter.queue_of(resource);
        queue.look(Duration::MAX).await?;
        let (limits, reserved) = queue.limits_and_reserved(self.class);
        let window = Window::new(limits.interval);
        // Permits are taken as soon as they may be, in the same part of a slot each time. They are counted in the slot before
        // if there is time enough, so they come back a slot earlier.
        let (taken_at, slot) = (window.expires_at(0) + YIELD, window.slot_at(window.expires_at(0) + YIELD));
        let slots = if taken_at + QUICKEST <= window.end(slot) { slot - 1 } else { slot };
        let within = window.start(slots).since(window.start(0));
        Ok(Pattern { calls: limits.burst.saturating_sub(reserved).max(1), within })
    }
}
