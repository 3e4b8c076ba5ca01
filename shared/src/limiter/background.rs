//! Background permits: those of queued calls, for which nobody waits. They leave places for callers that wait
//! (`class`).

use std::time::Duration;

use super::Limiter;
use super::class::{Class, QUICKEST, YIELD};
use super::permit::{LimiterError, Permit, Refusal};
use super::queue::PermitRequest;
use super::share::{SHARE_INTERVAL, ShareOwner, take_both};
use super::window::Window;
use crate::domain::clock::Millis;
use crate::domain::limits::Endpoint;
use crate::domain::resource::Resource;
use crate::table::StoreError;
use crate::table::turns::Pattern;

/// For each so many places of a window, the schedule has one extra turn. If a call comes too late for its place, the call of
/// an extra turn takes that place. Otherwise the limits refuse that call, and it gets a new turn.
const SURPLUS: u32 = 30;

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

    /// Takes a permit for a queued call. Waits until `latest` at most, and refuses at once if no permit can be available by
    /// then. `caller` is the id of a caller that has a share of its own, with the size of that share.
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
        let (request, queue) = (self.request(to, latest), self.limiter.queue_of(to.resource));
        let share = caller.map(|(id, burst)| self.limiter.share_of(ShareOwner::Caller(id), to.resource, burst));
        // Background permits need a snapshot, to know what callers use.
        queue.look().await?;
        loop {
            let answer = match &share {
                // A permit of the share would end while it waits for one of the resource.
                Some(share) => take_both(share, &queue, PermitRequest { wait_until: None, ..request }).await,
                None => queue.take(request).await,
            };
            let Err(LimiterError::Refused(refusal)) = &answer else { return answer };
            if refusal.retry_at > latest {
                return answer;
            }
            tokio::time::sleep((refusal.retry_at + YIELD).since(self.limiter.now())).await;
        }
    }

    /// Notes the time that a call needed between its permit and its request. The next permits are counted in a slot in which
    /// there is so much time.
    pub fn note_intent(&self, resource: &Resource, took: Duration) {
        self.limiter.queue_of(resource).note_intent(took);
    }

    fn request<'a>(&self, to: Endpoint<'a>, latest: Millis) -> PermitRequest<'a> {
        PermitRequest { endpoint: to.name, wait_until: Some(latest), class: self.class }
    }

    /// The refusal of a queued call, if this process knows that there is no permit until `latest`. Costs no call.
    #[must_use]
    pub fn local_refusal<'a>(&self, to: impl Into<Endpoint<'a>>, latest: Millis) -> Option<Refusal> {
        let to = to.into();
        self.limiter.queue_of(to.resource).local_refusal(self.request(to, latest))
    }

    /// The pattern of the schedule of a resource's queued calls: the limits, and what callers leave of them. `share` is the
    /// size of the caller's own share, if it has one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn pattern(&self, resource: &Resource, share: Option<u32>) -> Result<Pattern, StoreError> {
        let queue = self.limiter.queue_of(resource);
        queue.look().await?;
        let (limits, reserved) = queue.limits_and_reserved(self.class);
        let window = Window::new(limits.interval);
        // Permits are taken as soon as they may be, in the same part of a slot each time. They are counted in the slot before
        // if there is time enough, so they come back a slot earlier.
        let (taken_at, slot) = (window.expires_at(0) + YIELD, window.slot_at(window.expires_at(0) + YIELD));
        let slots = if taken_at + QUICKEST <= window.end(slot) { slot - 1 } else { slot };
        let within = window.start(slots).since(window.start(0));
        let in_a_window = |share: u32| {
            let share = u128::from(share) * limits.interval.as_millis() / SHARE_INTERVAL.as_millis();
            u32::try_from(share).unwrap_or(u32::MAX)
        };
        let places = limits.burst.saturating_sub(reserved).min(share.map_or(u32::MAX, in_a_window)).max(1);
        Ok(Pattern { calls: places + places / SURPLUS, within })
    }
}
