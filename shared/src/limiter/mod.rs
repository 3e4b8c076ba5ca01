//! At most so many requests in any interval and in a day, for each resource, across all processes.
//!
//! # How one request is admitted
//! [`Limiter::take`] puts its caller into the waiter queue of the resource. One conditional `UpdateItem` on the one item
//! of the resource counts all waiters, in the burst's sliding window and in the day at once, so both limits are granted
//! or neither is. It needs no read before it and nothing remembered. The [`Permit`] says until when the request must
//! leave.
//!
//! A write either adds to the counters under conditions, and other processes may write in between; or it replaces the
//! item by compare-and-swap on its revision, where something must go: a day that is over, expired slots.
//!
//! # How one is refused
//! A condition that fails answers with the item. If nothing is free in it, the [`Refusal`] names the instant at which
//! the oldest permits expire, and until then the process refuses (or lets wait) without any call.
//!
//! # What the platform's answers teach
//! [`Limiter::observe`] reads the rate-limit headers of each answer and writes only what differs. An observed limit is
//! part of every condition, so a process that does not know it is bound by it all the same. A 429 closes the resource
//! for all processes, or only the endpoint if the headers say that the resource has room left.
//!
//! # Clocks
//! The burst limit holds as long as the clocks of all processes agree to within [`clock_tolerance`]: 300 ms at
//! an interval of 10 s. With clocks that are further apart, more than the limit can leave within an interval. A process
//! whose clock is behind uses the newest slot of the item, so that its permits do not expire too early. Slots, days and
//! closures further ahead than could be right (a minute, 48 hours, 20 minutes) come from a clock that is out of order
//! and bind for a window only.

mod counters;
mod decision;
mod item;
mod queue;
mod share;
#[cfg(test)]
mod simulation;
mod snapshot;
mod update;
mod window;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::retry::RetryConfig;
use aws_sdk_dynamodb::config::timeout::TimeoutConfig;
use http::{HeaderMap, StatusCode};

pub use self::counters::{LimitKind, Meter, Usage};
use self::queue::{LONGEST_NAP, WaiterQueue};
pub use self::share::ShareOwner;
use self::share::{Part, SHARE_INTERVAL};
use self::snapshot::Snapshot;
use self::window::{Slot, Window};
use crate::domain::clock::{Clock, Millis};
use crate::domain::limits::{Endpoint, Limits};
use crate::domain::resource::Resource;
use crate::platform::rate_limits::RateLimitHeaders;
use crate::table::{StoreError, Table, quota_key};

/// Waiter queues that a process keeps. One holds up to 2 KB.
const MOST_QUEUES: usize = 1_024;

/// The burst limit holds as long as the clocks of any two processes differ by at most this: 300 ms at an interval of
/// 10 s.
#[must_use]
pub fn clock_tolerance(limits: Limits) -> Duration {
    Duration::from_millis(Window::new(limits.interval).clock_tolerance_ms().unsigned_abs())
}

/// The right to send one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permit {
    /// The limits as they stand with this permit taken.
    pub usage: Usage,
    /// The request must be handed to the connection by then, or another permit is needed: what is promised is when
    /// requests leave, not when they were allowed to.
    pub send_by: Millis,
    /// Where it is counted, so that it can be given back.
    slot: Slot,
}

/// No permit in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The limit that was reached.
    pub limit: LimitKind,
    /// A permit is free then, after those who wait already and if nobody else takes it. None is before.
    pub retry_at: Millis,
    /// The limits as they stand.
    pub usage: Usage,
}

/// Why there is no permit.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LimiterError {
    /// A limit is reached.
    #[error("the {:?} limit is reached until {}", .0.limit, .0.retry_at.rfc3339())]
    Refused(Refusal),
    /// The counters do not answer. Nothing is sent blind.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl LimiterError {
    /// Of two refusals the one that ends later.
    fn or_later(self, other: Option<Refusal>) -> Self {
        match (self, other) {
            (Self::Refused(this), Some(other)) if this.retry_at < other.retry_at => Self::Refused(other),
            (this, _) => this,
        }
    }
}

/// The limits of all resources. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Limiter(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    table: Table,
    clock: Clock,
    ceilings: Limits,
    queues: Mutex<HashMap<String, Arc<WaiterQueue>>>,
}

impl Limiter {
    /// Counts in `table`, up to `ceilings` or what the platform says, whichever is less.
    #[must_use]
    pub fn new(table: Table, clock: Clock, ceilings: Limits) -> Self {
        let table = Table { client: with_short_timeouts(&table.client), name: table.name };
        Self(Arc::new(Shared { table, clock, ceilings, queues: Mutex::default() }))
    }

    /// Takes a permit for one request to a resource (`&Resource`) or to one endpoint of it ([`Endpoint::of`]), waiting
    /// in order of arrival until at most `wait_until`. Refuses at once if there can be none by then.
    ///
    /// A caller that goes away takes no permit with it.
    ///
    /// # Errors
    /// [`LimiterError`].
    pub async fn take<'a>(
        &self,
        to: impl Into<Endpoint<'a>>,
        wait_until: Option<Millis>,
    ) -> Result<Permit, LimiterError> {
        let to = to.into();
        let queue = self.queue_of(to.resource);
        loop {
            let answer = self.take_of_all(&queue, to, wait_until).await;
            if !self.waited_for_endpoint(&answer, wait_until).await {
                return answer;
            }
        }
    }

    /// The same within the share of `owner` in the resource: `burst` requests in any 10 s, without a daily limit. The
    /// permit is good only while both of its parts are, the share's and the resource's.
    ///
    /// The share's part is taken first, so that an owner that has used up its share takes nothing from the others. If
    /// the resource's permit comes so late that the share's part is too old to send on, the part is exchanged for one
    /// of the present; where the share has none, the resource's permit goes to the next waiter of this process. A
    /// request that the resource's limits refuse takes nothing of the share. If both refuse, the answer is the refusal
    /// that ends later, for until then nothing can be sent.
    ///
    /// # Errors
    /// [`LimiterError`]; a refusal by the share is [`LimitKind::Caller`], with the share's usage.
    pub async fn take_within_share<'a>(
        &self,
        owner: ShareOwner<'_>,
        to: impl Into<Endpoint<'a>>,
        burst: u32,
        wait_until: Option<Millis>,
    ) -> Result<Permit, LimiterError> {
        let Shared { table, clock, ceilings, .. } = &*self.0;
        let to = to.into();
        let share = Limits { burst, interval: SHARE_INTERVAL, daily: u32::MAX };
        let own = self.queue(owner.key(to.resource), LimitKind::Caller);
        let all = self.queue_of(to.resource);
        let own_refusal = || own.checked_locally(share, None, clock.now(), wait_until);
        let refusal_of_all = || all.checked_locally(*ceilings, to.name, clock.now(), wait_until);
        loop {
            if let Some(refusal) = refusal_of_all() {
                let refused = Err(LimiterError::Refused(refusal));
                if self.waited_for_endpoint(&refused, wait_until).await {
                    continue;
                }
                return refused.map_err(|error| error.or_later(own_refusal()));
            }
            let part = match own.take(table, clock, share, None, wait_until).await {
                Ok(permit) => Part::new(self, &own, permit),
                Err(error) => return Err(error.or_later(refusal_of_all())),
            };
            let permit = match self.take_of_all(&all, to, wait_until).await {
                Ok(permit) => permit,
                refused => {
                    part.give_back().await;
                    if self.waited_for_endpoint(&refused, wait_until).await {
                        continue;
                    }
                    return refused.map_err(|error| error.or_later(own_refusal()));
                }
            };
            match part.spend(clock).await {
                Ok(send_by) => return Ok(Permit { send_by: send_by.min(permit.send_by), ..permit }),
                Err(error) => {
                    all.hand_on(permit);
                    let is_in_time = |at| wait_until.is_some_and(|until| at <= until);
                    if !matches!(&error, LimiterError::Refused(refusal) if is_in_time(refusal.retry_at)) {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// When a permit is free again as far as this process remembers, if none is now. Costs no call.
    #[must_use]
    pub fn opens_at<'a>(&self, to: impl Into<Endpoint<'a>>) -> Option<Millis> {
        let Shared { clock, ceilings, .. } = &*self.0;
        let to = to.into();
        let refusal = self.queue_of(to.resource).checked_locally(*ceilings, to.name, clock.now(), None)?;
        Some(refusal.retry_at)
    }

    /// The usage of the limits of `resource` as far as this process remembers. Costs no call.
    #[must_use]
    pub fn remembered_usage(&self, resource: &Resource) -> Option<Usage> {
        self.queue_of(resource).remembered_usage(self.0.clock.now())
    }

    /// Learns from an answer of the platform to a request that went to a resource (`&Resource`) or to one endpoint of
    /// it ([`Endpoint::of`]): its limits, the end of its day, the use that others make of them, and from a 429 that
    /// nothing more may be sent for now. A 429 whose headers say that room is left closes only the endpoint.
    ///
    /// # Errors
    /// [`StoreError`]; the answer itself is as good as before.
    pub async fn observe<'a>(
        &self,
        to: impl Into<Endpoint<'a>>,
        status: StatusCode,
        headers: &HeaderMap,
    ) -> Result<(), StoreError> {
        let headers = RateLimitHeaders::read(status, headers);
        if headers.is_empty() {
            return Ok(());
        }
        let Shared { table, clock, ceilings, .. } = &*self.0;
        let to = to.into();
        self.queue_of(to.resource).learn(table, clock, *ceilings, &headers, to.name).await
    }

    /// The usage of the limits of `resource`, by a read. Takes no permit.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn usage(&self, resource: &Resource) -> Result<Usage, StoreError> {
        let Shared { table, clock, ceilings, .. } = &*self.0;
        let counters = item::read(table, &quota_key(resource)).await?;
        let now = clock.now();
        Ok(Snapshot::of(counters, *ceilings, now).usage(now))
    }

    /// Which of `resources` were called within the last week: a day's counters are kept for so long.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn in_use(&self, resources: &[&Resource]) -> Result<HashSet<Resource>, StoreError> {
        let Shared { table, clock, .. } = &*self.0;
        let mut in_use = HashSet::new();
        for some in resources.chunks(item::MOST_READ) {
            let keys: HashMap<String, &Resource> =
                some.iter().map(|resource| (quota_key(resource), *resource)).collect();
            let kept = item::kept(table, keys.keys().map(String::as_str), clock.now()).await?;
            in_use.extend(kept.iter().filter_map(|key| keys.get(key)).map(|resource| (*resource).clone()));
        }
        Ok(in_use)
    }

    async fn take_of_all(
        &self,
        queue: &Arc<WaiterQueue>,
        to: Endpoint<'_>,
        wait_until: Option<Millis>,
    ) -> Result<Permit, LimiterError> {
        let Shared { table, clock, ceilings, .. } = &*self.0;
        queue.take(table, clock, *ceilings, to.name, wait_until).await
    }

    /// After a refusal because of a closed endpoint: waits until it opens, if that is in time. It waits outside of the
    /// queue, so that requests to other endpoints are not behind it. Says whether it has waited.
    async fn waited_for_endpoint(&self, answer: &Result<Permit, LimiterError>, wait_until: Option<Millis>) -> bool {
        let Err(LimiterError::Refused(Refusal { limit: LimitKind::Endpoint, retry_at, .. })) = answer else {
            return false;
        };
        let is_in_time = wait_until.is_some_and(|until| *retry_at <= until);
        if is_in_time {
            // In short naps: the clock may be corrected meanwhile.
            tokio::time::sleep(retry_at.since(self.0.clock.now()).min(LONGEST_NAP)).await;
        }
        is_in_time
    }

    fn queue_of(&self, resource: &Resource) -> Arc<WaiterQueue> {
        self.queue(quota_key(resource), LimitKind::Burst)
    }

    fn queue(&self, key: String, burst_kind: LimitKind) -> Arc<WaiterQueue> {
        let Shared { clock, ceilings, queues, .. } = &*self.0;
        let mut queues = queues.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(queue) = queues.get(&key) {
            return Arc::clone(queue);
        }
        if queues.len() >= MOST_QUEUES {
            forget_idle(&mut queues);
        }
        let queue = Arc::new(WaiterQueue::new(key, burst_kind, *ceilings, clock.now()));
        queues.insert(queue.key().to_owned(), Arc::clone(&queue));
        queue
    }
}

/// Forgets the half of the queues that was used longest ago, except where somebody waits. Their
/// knowledge is in the table.
fn forget_idle(queues: &mut HashMap<String, Arc<WaiterQueue>>) {
    let mut idle: Vec<Millis> = queues.values().filter_map(|queue| queue.idle_since()).collect();
    if idle.is_empty() {
        return;
    }
    let middle = idle.len() / 2;
    let (_, &mut median, _) = idle.select_nth_unstable(middle);
    queues.retain(|_, queue| queue.idle_since().is_none_or(|since| since > median));
}

/// A write that takes longer than this is of no use to a caller that wants to send a request now. A retry inside the
/// SDK may count a permit twice, which errs on the safe side.
fn with_short_timeouts(client: &Client) -> Client {
    let timeouts = TimeoutConfig::builder().read_timeout(Duration::from_millis(1_500)).build();
    let config = client.config().to_builder();
    Client::from_conf(
        config.timeout_config(timeouts).retry_config(RetryConfig::standard().with_max_attempts(3)).build(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_the_first_segment_of_a_path() {
        let resource = Resource::location("L1").expect("an id");
        let long = format!("/{}/x", "a".repeat(100));
        for (path, name) in [
            ("/contacts/", Some("contacts")),
            ("/contacts", Some("contacts")),
            ("contacts/search?query=x/y", Some("contacts")),
            ("//contacts", Some("contacts")),
            ("/", None),
            ("", None),
            (&long, long.get(1..65)),
        ] {
            assert_eq!(Endpoint::of(&resource, path).name, name, "{path}");
        }
    }
}
