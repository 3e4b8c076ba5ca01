//! The contents of one item: the counters of a resource, or of a share of it.

use std::collections::BTreeMap;

use super::window::Slot;
use crate::domain::clock::Millis;
use crate::domain::limits::ObservedLimits;

/// Which limit refused.
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
    /// The name in an item of the limit by which the platform closed its resource.
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
    /// The number that is allowed.
    pub limit: u32,
    /// The number that is left now.
    pub remaining: u32,
    /// The instant at which all are free again, if no more are taken.
    pub resets_at: Millis,
}

/// Both limits of a resource and their use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Requests in the interval.
    pub burst: Meter,
    /// Requests in the day.
    pub daily: Meter,
}

/// Requests counted in the current day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Day {
    pub(crate) used: u32,
    pub(crate) ends: Millis,
    /// True if the platform said when it ends; else the end is assumed.
    pub(crate) told: bool,
}

/// The platform refused: nothing may be sent before `until`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Closed {
    pub(crate) until: Millis,
    pub(crate) by: LimitKind,
}

/// Endpoints that the platform has closed, by their name, and until when.
pub(crate) type ClosedEndpoints = BTreeMap<String, Millis>;

/// An item, as read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Counters {
    /// Grows with every write, so an item of the same revision is the same item. 0 in an item that has none.
    pub(crate) revision: i64,
    /// Length of the slots that `newest` and `slots` are numbered in.
    pub(crate) slot_ms: i64,
    pub(crate) newest: Slot,
    /// Permits by slot, ascending; expired ones too, until a rewrite drops them.
    pub(crate) slots: Vec<(Slot, u32)>,
    /// The sum of `slots`.
    pub(crate) counted: u32,
    pub(crate) day: Day,
    pub(crate) observed: Option<ObservedLimits>,
    pub(crate) closed: Option<Closed>,
    pub(crate) closed_endpoints: ClosedEndpoints,
}
