//! Background permits: those of queued calls, for which nobody waits. They leave places for callers that wait
//! (`class`).

use std::time::Duration;

use super::Limiter;
use super::class::Class;
use super::counters::LimitKind;
use super::permit::{LimiterError, Permit, Refusal};
use super::queue::PermitRequest;
use super::share::{SHARE_INTERVAL, ShareOwner, SharePermit};
use super::window::Window;
use crate::domain::clock::Millis;
use crate::domain::limits::{Endpoint, LimitPolicy, Limits};
use crate::domain::resource::Resource;
use crate::table::turns::Pattern;

/// The time for which a place stays free for callers that wait in other processes, before the queue takes it. A waiting
/// caller's process takes the place within some milliseconds.
const YIELD: Duration = Duration::from_millis(30);
/// The time in which the calls of a batch of messages gather for one write.
const GATHER: Duration = Duration::from_millis(10);

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

    /// Takes a permit for a queued call until `latest`, or refuses. `caller` is the id of a caller that has a share of its
    /// own, with the size of that share.
    ///
    /// # Errors
    /// [`LimiterError`]. A refusal names the first instant at which a permit can be available.
    pub async fn take<'a>(
        &self,
        to: impl Into<Endpoint<'a>>,
        caller: Option<(&str, u32)>,
        latest: Millis,
    ) -> Result<Permit, LimiterError> {
        let to = to.into();
        let Some((id, burst)) = caller else { return self.take_of_resource(to, latest).await };
        let policy = LimitPolicy::from(Limits { burst, interval: SHARE_INTERVAL, daily: u32::MAX });
        let share = self.limiter.queue(ShareOwner::Caller(id).key(to.resource), LimitKind::Caller, policy);
        share.adopt(policy);
        let request = PermitRequest { endpoint: None, wait_until: None, class: Class::Caller };
        let of_caller = SharePermit { share: &share, permit: share.take(request).await?, is_unused: true };
        match self.take_of_resource(to, latest).await {
            Ok(permit) => Ok(Permit { send_by: of_caller.spend().await?.min(permit.send_by), ..permit }),
            Err(error) => {
                of_caller.give_back().await;
                Err(error)
            }
        }
    }

    async fn take_of_resource(&self, to: Endpoint<'_>, latest: Millis) -> Result<Permit, LimiterError> {
        let queue = self.limiter.queue_of(to.resource);
        // Background permits need a snapshot, to know what callers use.
        queue.look().await?;
        // The other calls of a batch of messages come meanwhile, and one write serves all.
        tokio::time::sleep(GATHER).await;
        loop {
            let answer = queue.take(self.request(to)).await;
            let Err(LimiterError::Refused(refusal)) = &answer else { return answer };
            let again_at = refusal.retry_at + YIELD;
            if again_at > latest {
                return answer;
            }
            tokio::time::sleep(again_at.since(self.limiter.now())).await;
        }
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

    /// The number of queued calls of a resource in a window, and the length of a window: the interval, and the time for
    /// which a permit is counted beyond it. As far as this process knows the limits.
    #[must_use]
    pub fn pattern(&self, resource: &Resource) -> Pattern {
        let Class::Background { reserve } = self.class else { unreachable!("set by `new`") };
        let (limits, reserved) = self.limiter.queue_of(resource).limits_and_reserved(reserve);
        let window = Window::new(limits.interval);
        let counted = window.expires_at(0).since(window.start(0));
        // A permit is taken in the middle of its slot on average.
        let half_a_slot = Duration::from_millis(window.slot_ms().unsigned_abs() / 2);
        Pattern {
            calls: limits.burst.saturating_sub(reserved).max(1),
            within: (counted + YIELD).saturating_sub(half_a_slot),
        }
    }
}
