//! At most so many requests in any interval and in a day, for each resource, across all processes.
//!
//! # How one request is admitted
//! [`Quota::take`] puts its caller into the *lane* of the resource. One conditional `UpdateItem` on the one item of the
//! resource counts all who wait there, in the burst window and in the day at once, so both limits are granted or
//! neither is. It needs no read before it and nothing remembered. The [`Permit`] says until when the request must leave.
//!
//! Each write moves the item's revision. A process between whose last 32 writes, and for a second, nobody else has written
//! takes itself to be alone: it writes what the item is to become as one text, on the one condition that the revision is
//! the last one seen, which costs the store no more than a plain counter and needs no answer. If it was wrong, the failed
//! condition answers with the item. Whoever comes second finds a text that cannot be added to, and takes it apart again.
//!
//! # How one is refused
//! A condition that fails answers with the item. If nothing is free in it, the [`Refusal`] names the instant at which
//! the oldest permits are given up, and until then the process refuses (or lets wait) without any call.
//! If something is free after all, because the sum holds dead slots, the next write knows what is live and takes it.
//!
//! # How the platform is heard
//! [`Quota::observe`] reads the headers of each answer and writes only what differs. A stored limit is part of every
//! condition, so a process that has not heard of it is bound by it all the same. A 429 closes the resource for all.
//!
//! # Clocks
//! Processes need the same time to within 300 ms (at an interval of 10 s). One that is behind uses the
//! newest slot of the item and so frees nothing too early. Slots, days and closures further ahead than could be right
//! (a minute, 48 hours, 20 minutes) come from a clock that is out of order and bind for a window only.

mod counters;
mod decision;
mod item;
mod lane;
mod learn;
mod limits;
mod memory;
mod packed;
#[cfg(test)]
mod simulation;
mod window;

use std::collections::{HashMap, HashSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::retry::RetryConfig;
use aws_sdk_dynamodb::config::timeout::TimeoutConfig;
use http::{HeaderMap, StatusCode};

use self::counters::Standing;
pub use self::counters::{LimitKind, Meter, Usage};
use self::lane::Lane;
use self::learn::Heard;
pub use self::limits::Limits;
use self::window::Slot;
use crate::clock::{Clock, Millis};
use crate::resource::Resource;
use crate::table::{StoreError, Table, quota_key};

/// What a caller's share is counted in, whatever the interval of the resource's limit.
const SHARE_INTERVAL: Duration = Duration::from_secs(10);
/// Lanes that a process keeps. One holds up to 2 KB.
const MOST_LANES: usize = 1_024;

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
pub enum QuotaError {
    /// A limit is reached.
    #[error("the {:?} limit is reached until {}", .0.limit, .0.retry_at.rfc3339())]
    Refused(Refusal),
    /// The counters do not answer. Nothing is sent blind.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl QuotaError {
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
pub struct Quota(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    table: Table,
    clock: Clock,
    ceilings: Limits,
    lanes: Mutex<HashMap<String, Arc<Lane>>>,
}

impl Quota {
    /// Counts in `table`, up to `ceilings` or what the platform says, whichever is less.
    #[must_use]
    pub fn new(table: Table, clock: Clock, ceilings: Limits) -> Self {
        let table = Table { client: impatient(&table.client), name: table.name };
        Self(Arc::new(Shared { table, clock, ceilings, lanes: Mutex::default() }))
    }

    /// Takes a permit for one request to `resource`, waiting in order of arrival until at most `wait_until`. Refuses at
    /// once if there can be none by then.
    ///
    /// A caller that goes away takes no permit with it.
    ///
    /// # Errors
    /// [`QuotaError`].
    pub async fn take(&self, resource: &Resource, wait_until: Option<Millis>) -> Result<Permit, QuotaError> {
        let Shared { table, clock, ceilings, .. } = &*self.0;
        self.lane(quota_key(resource), LimitKind::Burst).take(table, clock, *ceilings, wait_until).await
    }

    /// The same within `caller`'s own share of `resource`: `burst` requests in any 10 s, without a daily limit.
    ///
    /// The share is asked first, so that who has used it up takes nothing from the others. It counts what is sent: a
    /// request that the resource's limits refuse takes nothing of it. If both refuse, the answer is the refusal that
    /// ends later, for until then nothing can be sent.
    ///
    /// # Errors
    /// [`QuotaError`]; a refusal by the share is [`LimitKind::Caller`], with the share's usage.
    pub async fn take_within_share(
        &self,
        caller: &str,
        resource: &Resource,
        burst: u32,
        wait_until: Option<Millis>,
    ) -> Result<Permit, QuotaError> {
        let Shared { table, clock, ceilings, .. } = &*self.0;
        let key = format!("caller-quota#{caller}#{}#{}", resource.kind().as_str(), resource.id());
        let share = Limits { burst, interval: SHARE_INTERVAL, daily: u32::MAX };
        let (own, all) = (self.lane(key, LimitKind::Caller), self.lane(quota_key(resource), LimitKind::Burst));
        let own_refusal = || own.foreseen(share, clock.now(), wait_until);
        let refusal_of_all = || all.foreseen(*ceilings, clock.now(), wait_until);
        if let Some(refusal) = refusal_of_all() {
            return Err(QuotaError::Refused(refusal).or_later(own_refusal()));
        }
        let part = match own.take(table, clock, share, wait_until).await {
            Ok(permit) => Part { quota: self, lane: &own, permit: Some(permit) },
            Err(error) => return Err(error.or_later(refusal_of_all())),
        };
        match all.take(table, clock, *ceilings, wait_until).await {
            Ok(permit) => {
                part.spend();
                Ok(permit)
            }
            Err(error) => {
                part.give_back().await;
                Err(error.or_later(own_refusal()))
            }
        }
    }

    /// When a permit for `resource` is free again as far as this process remembers, if none is now. Costs nothing.
    #[must_use]
    pub fn opens_at(&self, resource: &Resource) -> Option<Millis> {
        let Shared { clock, ceilings, .. } = &*self.0;
        let refusal = self.lane(quota_key(resource), LimitKind::Burst).foreseen(*ceilings, clock.now(), None)?;
        Some(refusal.retry_at)
    }

    /// How the limits of `resource` stand as far as this process remembers. Costs nothing.
    #[must_use]
    pub fn remembered_usage(&self, resource: &Resource) -> Option<Usage> {
        self.lane(quota_key(resource), LimitKind::Burst).remembered_usage(self.0.clock.now())
    }

    /// Learns from an answer of the platform: its limits, the end of its day, the use that others make of them, and
    /// from a 429 that nothing more may be sent for now.
    ///
    /// # Errors
    /// [`StoreError`]; the answer itself is as good as before.
    pub async fn observe(
        &self,
        resource: &Resource,
        status: StatusCode,
        headers: &HeaderMap,
    ) -> Result<(), StoreError> {
        let heard = Heard::read(status, headers);
        if heard.is_empty() {
            return Ok(());
        }
        let Shared { table, clock, ceilings, .. } = &*self.0;
        self.lane(quota_key(resource), LimitKind::Burst).learn(table, clock, *ceilings, &heard).await
    }

    /// How the limits of `resource` stand, by a read. Takes no permit.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn usage(&self, resource: &Resource) -> Result<Usage, StoreError> {
        let Shared { table, clock, ceilings, .. } = &*self.0;
        let counters = item::read(table, &quota_key(resource)).await?;
        Ok(Standing::of(counters.as_ref(), *ceilings, clock.now()).usage())
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

    fn lane(&self, key: String, burst_kind: LimitKind) -> Arc<Lane> {
        let Shared { clock, ceilings, lanes, .. } = &*self.0;
        let mut lanes = lanes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lane) = lanes.get(&key) {
            return Arc::clone(lane);
        }
        if lanes.len() >= MOST_LANES {
            forget_idle(&mut lanes);
        }
        let lane = Arc::new(Lane::new(key, burst_kind, *ceilings, clock.now()));
        lanes.insert(lane.key().to_owned(), Arc::clone(&lane));
        lane
    }
}

/// A part of a caller's share on which nothing was sent yet. It is given back, also where whoever took it goes away
/// while waiting for the resource's permit.
struct Part<'a> {
    quota: &'a Quota,
    lane: &'a Arc<Lane>,
    permit: Option<Permit>,
}

impl Part<'_> {
    fn spend(mut self) {
        self.permit = None;
    }

    async fn give_back(mut self) {
        if let Some(giving) = self.giving() {
            giving.await;
        }
    }

    fn giving(&mut self) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>> {
        let permit = self.permit.take()?;
        let (quota, lane) = (self.quota.clone(), Arc::clone(self.lane));
        Some(Box::pin(async move {
            if let Err(error) = lane.give_back(&quota.0.table, &quota.0.clock, &permit).await {
                tracing::warn!(share = lane.key(), %error, "a part of a share is lost for 10 s");
            }
        }))
    }
}

impl Drop for Part<'_> {
    fn drop(&mut self) {
        if let (Some(giving), Ok(runtime)) = (self.giving(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(giving);
        }
    }
}

/// Forgets the half of the lanes that was used longest ago, except where somebody waits. What they knew is in the
/// table.
fn forget_idle(lanes: &mut HashMap<String, Arc<Lane>>) {
    let mut idle: Vec<Millis> = lanes.values().filter_map(|lane| lane.idle_since()).collect();
    if idle.is_empty() {
        return;
    }
    let middle = idle.len() / 2;
    let (_, &mut median, _) = idle.select_nth_unstable(middle);
    lanes.retain(|_, lane| lane.idle_since().is_none_or(|since| since > median));
}

/// A write that takes longer than this is of no use to whoever wants to send a request now. A retry inside the SDK may
/// count a permit twice, which errs on the safe side.
fn impatient(client: &Client) -> Client {
    let timeouts = TimeoutConfig::builder().read_timeout(Duration::from_millis(1_500)).build();
    let config = client.config().to_builder();
    Client::from_conf(
        config.timeout_config(timeouts).retry_config(RetryConfig::standard().with_max_attempts(3)).build(),
    )
}
