//! The contents of one item: the sliding window counter and the day of a resource, or of a share of it.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use super::window::Slot;
use crate::domain::clock::Millis;
use crate::domain::limits::{ObservedLimits, Proposal};

/// The limit that a refusal is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LimitKind {
    /// The resource's requests in an interval.
    Burst,
    /// The resource's requests in a day.
    Daily,
    /// The caller's own share of the resource's requests in an interval.
    Caller,
    /// A limit that the platform keeps for one endpoint of the resource.
    Endpoint,
}

impl LimitKind {
    /// The name in refusals and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Burst => "burst",
            Self::Daily => "daily",
            Self::Caller => "caller",
            Self::Endpoint => "endpoint",
        }
    }

    /// The stored name (`closed_by`) of the limit because of which the platform closed a resource.
    pub(crate) fn to_text(self) -> &'static str {
        if self == Self::Daily { "daily" } else { "burst" }
    }

    /// Reads the text that [`LimitKind::to_text`] wrote; `None` for any other.
    pub(crate) fn from_text(text: &str) -> Option<Self> {
        match text {
            "daily" => Some(Self::Daily),
            "burst" => Some(Self::Burst),
            _ => None,
        }
    }
}

/// One limit and its use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meter {
    /// Requests that are allowed.
    pub limit: u32,
    /// Requests that are left now.
    pub remaining: u32,
    /// The instant at which all are left again, if no more are sent.
    pub resets_at: Millis,
}

/// Both limits of a resource and their use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Requests in the interval.
    pub burst: Meter,
    /// The length of the interval.
    pub interval: Duration,
    /// Requests in the day.
    pub daily: Meter,
}

impl Usage {
    /// The same usage, if so many of the counted permits are not used. A meter without any remaining requests keeps
    /// none, because the resource may be closed.
    pub(crate) fn with_unused(mut self, count: u32) -> Self {
        for meter in [&mut self.burst, &mut self.daily] {
            if meter.remaining > 0 {
                meter.remaining = meter.remaining.saturating_add(count).min(meter.limit);
            }
        }
        self
    }
}

/// Requests counted in the current day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Day {
    pub(crate) used: u32,
    pub(crate) ends: Millis,
    /// True if the platform named the end; else the end is assumed.
    pub(crate) end_confirmed: bool,
}

/// A closure of a resource after a 429: nothing may be sent before `until`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Closed {
    pub(crate) until: Millis,
    pub(crate) by: LimitKind,
}

/// Endpoints that are closed after a 429, each with the instant until which it is.
pub(crate) type ClosedEndpoints = BTreeMap<String, Millis>;

/// The decoded item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Counters {
    /// Grows with every write that changes more than permits and the proposal, see [`Version`].
    pub(crate) revision: i64,
    /// Length of a slot in milliseconds, which `newest` and `slots` are numbered by.
    pub(crate) slot_ms: i64,
    pub(crate) newest: Slot,
    /// Permits by slot, ascending. Expired permits are in it until a rewrite drops them; the others are live.
    pub(crate) slots: Vec<(Slot, u32)>,
    /// The sum of `slots`, expired permits included.
    pub(crate) counted: u32,
    /// The background permits among `slots`. `None` if there has been none since the item is there.
    pub(crate) background: Option<Vec<(Slot, u32)>>,
    pub(crate) day: Day,
    pub(crate) observed: Option<ObservedLimits>,
    pub(crate) proposal: Option<Proposal>,
    /// The instant at which an answer has last lowered a limit.
    pub(crate) lowered_at: Option<Millis>,
    pub(crate) closed: Option<Closed>,
    pub(crate) closed_endpoints: ClosedEndpoints,
}

/// Version of an item for compare-and-swap; a later version is greater. Permits leave the revision and raise the count of
/// the day. A permit that is given back only lowers the sum of the slots. Two items of one version differ by the proposal,
/// at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    pub(crate) revision: i64,
    pub(crate) day_used: u32,
    pub(crate) counted: Reverse<u32>,
}

impl Counters {
    pub(crate) fn version(&self) -> Version {
        Version { revision: self.revision, day_used: self.day.used, counted: Reverse(self.counted) }
    }

    /// True if `next` has the limits, the closures, the end of the day and the length of slots of this item.
    pub(crate) fn differs_in_permits_only(&self, next: &Self) -> bool {
        let Self { revision, newest, counted, .. } = *next;
        let day = Day { used: next.day.used, ..self.day };
        let (slots, background) = (next.slots.clone(), next.background.clone());
        *next == Self { revision, newest, slots, counted, background, day, ..self.clone() }
    }
}
