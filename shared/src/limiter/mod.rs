//! Rate limiter: at most so many requests in any interval and in a day, for each resource, across all processes.
//!
//! | mechanism | module |
//! |---|---|
//! | sliding window counter, cut into slots | `window`, `counters` |
//! | snapshot of an item, and the decision of the next write | `snapshot`, `memory`, `decision` |
//! | conditional writes, and compare-and-swap (optimistic concurrency) | `item` |
//! | permits ahead of need (prefetching) | `ahead` |
//! | waiter queue, and batching: one write for all waiters of a process | `queue` |
//! | hierarchical limits: the share that one owner has of a resource | `share` |
//! | permits of queued calls, which leave places for waiting callers | `background`, `class` |
//! | limit updates from the platform's rate-limit headers | `update` |
//! | simulation of several processes, with properties | `simulation` |
//!
//! # Admission
//! [`Limiter::take`] puts its caller into the waiter queue of the resource. One conditional `UpdateItem` on the one
//! item of the resource counts all waiters, in the sliding window and in the day at once, so both limits are granted or
//! neither is. It needs no read before it and no memory. The [`Permit`] says until when its request must leave.
//!
//! A write either adds to the counters under conditions that writes of other processes in between do not break; or it
//! replaces the item by compare-and-swap on its version, if a day that is over or expired slots must be dropped.
//!
//! # Refusal
//! If the condition fails, DynamoDB answers with the item. If no permit is available in it, the [`Refusal`] names the
//! instant at which the oldest permits expire. Until then the process refuses, or lets callers wait, without any call.
//!
//! # Rate-limit headers
//! [`Limiter::observe`] reads the rate-limit headers of each answer of the platform and writes a limit update if they
//! differ from the item. A change raises the item's revision, so the next take of a process with an older snapshot fails,
//! and shows it the change. Stricter limits hold at once. Higher limits hold when answers of two endpoints have stated
//! the same ones, within the bounds of the configuration, and lapse a day after the last answer that stated them. An
//! answer to a request that was sent before the limits were lowered raises nothing. A 429 closes the resource for all
//! processes, or only the endpoint if the headers say that the resource has requests left.
//!
//! # Clocks
//! The burst limit holds as long as the clocks of all processes agree to within [`clock_tolerance`]: 300 ms at an
//! interval of 10 s. If clocks differ by more, more requests than the limit can leave within an interval. A process
//! whose clock is behind uses the newest slot of the item, so its permits do not expire too early. Permits in
//! a slot more than a minute ahead come from a wrong clock and count as taken now. Days that end more than 48 hours
//! ahead, and closures that end more than 20 minutes ahead, are ignored.

mod ahead;
mod background;
mod class;
mod counters;
mod decision;
mod item;
mod memory;
mod permit;
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

pub use self::background::Background;
use self::class::Class;
pub use self::counters::{LimitKind, Meter, Usage};
pub use self::permit::{LimiterError, Permit, Refusal};
use self::queue::{LONGEST_NAP, PermitRequest, PermitResult, WaiterQueue};
pub use self::share::ShareOwner;
use self::snapshot::Snapshot;
use self::update::Answer;
use self::window::Window;
use crate::domain::clock::{Clock, Millis};
use crate::domain::limits::{Endpoint, LimitPolicy, Limits};
use crate::domain::resource::Resource;
use crate::platform::rate_limits::RateLimitHeaders;
use crate::table::{Attributes, Item, Page, StoreError, Table, quota_key, resource_of_quota_key};

/// Waiter queues that a process keeps. One takes up to 2 KB.
const MOST_QUEUES: usize = 1_024;

/// The burst limit holds as long as the clocks of any two processes differ by at most this: 300 ms at an interval of
/// 10 s.
pub fn clock_tolerance(limits: Limits) -> Duration {
    Duration::from_millis(Window::new(limits.interval).clock_tolerance_ms().unsigned_abs())
}

/// The rate limiter of all resources. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Limiter(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    table: Table,
    clock: Clock,
    policy: LimitPolicy,
    queues: Mutex<HashMap<String, Arc<WaiterQueue>>>,
}

impl Limiter {
    /// Counts in `table`, up to the observed limits of each resource within the bounds of `policy`, or its default where
    /// none were observed.
    pub fn new(table: Table, clock: Clock, policy: impl Into<LimitPolicy>) -> Self {
        let table = Table { client: with_short_timeouts(&table.client), name: table.name };
        Self(Arc::new(Shared { table, clock, policy: policy.into(), queues: Mutex::default() }))
    }

    /// Takes a permit for one request to a resource (`&Resource`) or to one endpoint of it ([`Endpoint::of`]). Waits in
    /// order of arrival until `wait_until` at most, and refuses at once if no permit can be available by then.
    ///
    /// If the caller drops the future, it takes no permit.
    pub async fn take<'a>(
        &self,
        to: impl Into<Endpoint<'a>>,
        wait_until: Option<Millis>,
    ) -> Result<Permit, LimiterError> {
        let Endpoint { resource, name } = to.into();
        let queue = self.queue_of(resource);
        loop {
            let answer = queue.take(PermitRequest { endpoint: name, wait_until, class: Class::Caller }).await;
            if !self.must_ask_again(&answer, wait_until).await {
                return answer;
            }
        }
    }

    /// Gives an unused permit of `resource` to the next caller of this process that can still use it.
    pub fn hand_on(&self, resource: &Resource, permit: Permit) {
        self.queue_of(resource).hand_on(permit);
    }

    /// Takes permits of `resource` ahead of need, if this process calls it steadily and its next caller would otherwise wait
    /// for a write. To be run while a request to the resource is on its way.
    ///
    /// If the caller drops the future before the write is answered, the permits of the write are lost, and fewer are taken
    /// ahead of need for a time.
    pub async fn take_ahead(&self, resource: &Resource) {
        self.queue_of(resource).take_ahead().await;
    }

    /// The instant of the next permit, if this process knows that none is available now. Makes no call.
    pub fn next_available_at<'a>(&self, to: impl Into<Endpoint<'a>>) -> Option<Millis> {
        let Endpoint { resource, name } = to.into();
        let refusal = self.queue_of(resource).local_refusal(PermitRequest {
            endpoint: name,
            wait_until: None,
            class: Class::Caller,
        })?;
        Some(refusal.retry_at)
    }

    /// The usage of the limits of `resource`, if this process has seen it recently. Costs no call.
    pub fn remembered_usage(&self, resource: &Resource) -> Option<Usage> {
        self.queue_of(resource).remembered_usage()
    }

    /// Observes the rate-limit headers of the platform's answer to a request to a resource (`&Resource`) or to one
    /// endpoint of it ([`Endpoint::of`]): the limits, the end of the day, the requests of other users of the app, and a
    /// 429, after which nothing may be sent for a time. A 429 whose headers say that requests are left closes only the
    /// endpoint. `sent_at` is the instant just before the request was sent.
    ///
    /// # Errors
    /// [`StoreError`]. The answer itself is not affected.
    pub async fn observe<'a>(
        &self,
        to: impl Into<Endpoint<'a>>,
        sent_at: Millis,
        status: StatusCode,
        headers: &HeaderMap,
    ) -> Result<(), StoreError> {
        let headers = RateLimitHeaders::read(status, headers);
        if headers.is_empty() {
            return Ok(());
        }
        let Endpoint { resource, name: endpoint } = to.into();
        let answer = Answer { endpoint, sent_at, headers };
        let queue = self.queue_of(resource);
        if queue.agrees_with(&answer) {
            return Ok(());
        }
        if let Some((before, after)) = Box::pin(queue.observe(&answer)).await? {
            log_change(resource, before, after);
        }
        Ok(())
    }

    /// The usage of the limits of `resource`, by a read. Takes no permit.
    pub async fn usage(&self, resource: &Resource) -> Result<Usage, StoreError> {
        let Shared { table, clock, policy, .. } = &*self.0;
        let counters = item::read(table, &quota_key(resource)).await?;
        let now = clock.now();
        Ok(Snapshot::of(counters, *policy, now).usage(now))
    }

    /// A page of the resources that have other limits than the default. Reads the whole table. For operators, not for
    /// functions.
    pub async fn other_limits(
        &self,
        from: Option<Item>,
    ) -> Result<Page<Result<(Resource, Limits), StoreError>>, StoreError> {
        let Shared { table, clock, policy, .. } = &*self.0;
        let ((items, next), now) = (table.counters_with_observed_limits(from).await?, clock.now());
        let read = |item: &Item| {
            let resource = Attributes::of(item).text("pk").and_then(resource_of_quota_key);
            let resource = resource.ok_or_else(|| Attributes::of(item).malformed("pk"))?;
            Ok((resource, Snapshot::of(Some(item::decode(item)?), *policy, now).limits()))
        };
        let differs = |one: &Result<(Resource, Limits), StoreError>| {
            one.as_ref().map_or(true, |(_, limits)| *limits != policy.default)
        };
        Ok(Page { items: items.iter().map(read).filter(differs).collect(), next })
    }

    /// Those of `resources` that were called within the last week: the counters of a day are kept for so long.
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

    /// True after a refusal that ends in time: the caller must ask again. If the refusal is about a closed endpoint, it
    /// waits first. It waits outside of the waiter queue, so that requests to other endpoints are not behind it.
    async fn must_ask_again(&self, answer: &PermitResult, wait_until: Option<Millis>) -> bool {
        let Err(LimiterError::Refused(Refusal { limit, retry_at, .. })) = answer else { return false };
        let is_in_time = wait_until.is_some_and(|until| *retry_at <= until);
        if is_in_time && *limit == LimitKind::Endpoint {
            // In short naps, because the clock may be corrected meanwhile.
            tokio::time::sleep(retry_at.since(self.0.clock.now()).min(LONGEST_NAP)).await;
        }
        is_in_time
    }

    fn now(&self) -> Millis {
        self.0.clock.now()
    }

    fn queue_of(&self, resource: &Resource) -> Arc<WaiterQueue> {
        self.queue(quota_key(resource), LimitKind::Burst, self.0.policy)
    }

    /// The waiter queue of the item `key`. A new one has this `policy`.
    fn queue(&self, key: String, burst_kind: LimitKind, policy: LimitPolicy) -> Arc<WaiterQueue> {
        let Shared { table, clock, queues, .. } = &*self.0;
        let mut queues = queues.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(queue) = queues.get(&key) {
            return Arc::clone(queue);
        }
        if queues.len() >= MOST_QUEUES {
            forget_idle(&mut queues);
        }
        let queue = Arc::new(WaiterQueue::new(table.clone(), clock.clone(), key, burst_kind, policy));
        queues.insert(queue.key().to_owned(), Arc::clone(&queue));
        queue
    }
}

/// Logs that other limits bind for a resource from now on. The line is the metric, too.
fn log_change(resource: &Resource, before: Limits, after: Limits) {
    let change = if after.looser_than(before).is_empty() { "lowered" } else { "raised" };
    tracing::info!(
        %resource,
        change,
        burst = after.burst,
        interval_ms = u64::try_from(after.interval.as_millis()).unwrap_or(u64::MAX),
        daily = after.daily,
        burst_before = before.burst,
        daily_before = before.daily,
        LimitsChanged = 1,
        "the platform states other limits"
    );
}

/// Forgets the half of the queues that was used longest ago, but none with waiters. Their memory can be read from the
/// table again.
fn forget_idle(queues: &mut HashMap<String, Arc<WaiterQueue>>) {
    let mut idle: Vec<Millis> = queues.values().filter_map(|queue| queue.idle_since()).collect();
    if idle.is_empty() {
        return;
    }
    let middle = idle.len() / 2;
    let (_, &mut median, _) = idle.select_nth_unstable(middle);
    queues.retain(|_, queue| queue.idle_since().is_none_or(|since| since > median));
}

/// A client with short time-outs: a write that takes longer is of no use to a caller that wants to send a request now.
/// A retry inside the SDK may count a permit twice, so fewer requests leave than might.
fn with_short_timeouts(client: &Client) -> Client {
    let timeouts = TimeoutConfig::builder().read_timeout(Duration::from_millis(1_500)).build();
    let config = client.config().to_builder();
    Client::from_conf(
        config.timeout_config(timeouts).retry_config(RetryConfig::standard().with_max_attempts(3)).build(),
    )
}
