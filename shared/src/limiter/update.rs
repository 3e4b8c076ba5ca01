//! Limit updates: the change to an item that follows from the rate-limit headers of an answer. Pure.

use std::time::Duration;

use super::counters::{Closed, ClosedEndpoints, Counters, Day, LimitKind};
use super::snapshot::{LONGEST_CLOSURE, Snapshot, binds};
use super::window::Window;
use crate::domain::clock::Millis;
use crate::domain::limits::{Limits, ObservedLimits, Proposal};
use crate::platform::rate_limits::RateLimitHeaders;

/// A proposal is replaced by one that does not agree with it after this time at the earliest.
const PROPOSAL_STANDS: Duration = Duration::from_secs(10);
/// The end of a day is written again if it has moved by more than this. The header counts from the instant at which the
/// platform wrote it, which is known only roughly.
const DAY_END_TOLERANCE: Duration = Duration::from_mins(1);
/// The length of a closure because of the day if the end of the day is not known.
const UNKNOWN_DAY_END_CLOSURE: Duration = Duration::from_mins(15);
/// A closure because of the day is written again if it would end later by more than this.
const DAILY_CLOSURE_TOLERANCE: Duration = Duration::from_mins(1);
/// A `Retry-After` is followed up to this.
const LONGEST_RETRY_AFTER: Duration = Duration::from_mins(15);
/// The most endpoints that an item lists as closed. If there are more, those whose closures end first are dropped.
const MOST_CLOSED_ENDPOINTS: usize = 8;

/// Closures of these lengths are shorter than [`LONGEST_CLOSURE`], so they are not ignored.
const _: () = assert!(
    UNKNOWN_DAY_END_CLOSURE.as_secs() < LONGEST_CLOSURE.as_secs()
        && LONGEST_RETRY_AFTER.as_secs() < LONGEST_CLOSURE.as_secs()
);

/// An answer of the platform, as far as the limiter uses it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer<'a> {
    /// The endpoint of the request. Without one, a 429 closes the whole resource.
    pub(crate) endpoint: Option<&'a str>,
    /// The instant just before the request was sent.
    pub(crate) sent_at: Millis,
    pub(crate) headers: RateLimitHeaders,
}

/// A change to an item.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LimitUpdate {
    /// The observed limits after the change. If they are empty, all limits are the default again.
    pub(crate) observed: Option<ObservedLimits>,
    pub(crate) proposal: Option<ProposalChange>,
    /// The instant of the answer, if it lowers a limit.
    pub(crate) lowered_at: Option<Millis>,
    pub(crate) day: Option<DayChange>,
    pub(crate) closed: Option<Closed>,
    /// All endpoints that are closed after the change.
    pub(crate) closed_endpoints: Option<ClosedEndpoints>,
}

impl LimitUpdate {
    /// False if no take depends on the change: it only counts requests of the day, or changes the proposal.
    pub(crate) fn raises_revision(&self) -> bool {
        let day = self.day.filter(|change| matches!(change, DayChange::Used(_)));
        *self != Self { day, proposal: self.proposal.clone(), ..Self::default() }
    }
}

/// A change to the proposal of an item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ProposalChange {
    /// An answer has stated higher limits.
    Made(Proposal),
    /// The limits were raised.
    Ended,
}

/// A change to the day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DayChange {
    /// Other users of the app have sent requests, too: at least so many of the day are used.
    Used(u32),
    /// The day ends at another instant than was assumed.
    Replaced(Day),
}

/// The change after which the item of `snapshot` agrees with `answer`, which came at `now`. `None` if the item agrees
/// already, or if there is no item.
pub(crate) fn update(snapshot: &Snapshot, answer: &Answer<'_>, now: Millis) -> Option<LimitUpdate> {
    let counters = snapshot.counters()?;
    let Answer { endpoint, headers, .. } = answer;
    let LimitChange { limits, observed, proposal, lowered_at } = limit_change(snapshot, counters, answer, now);
    let mut update = LimitUpdate { observed, proposal, lowered_at, ..LimitUpdate::default() };

    // Until the end of the day is known, a full count of its requests would close the resource until an assumed end.
    let end_is_known = headers.daily_reset.is_some() || snapshot.day(now).end_confirmed;
    if end_is_known {
        update.day = day_change(snapshot, limits, headers, now)
            .filter(|change| matches!(change, DayChange::Replaced(_)) || snapshot.day(now).ends == counters.day.ends);
    }
    if headers.out_of_day() {
        update.closed = (!end_is_known).then(|| unknown_day_end_closure(snapshot, now)).flatten();
    } else if headers.refused {
        let until = closed_until(headers, limits, now);
        match endpoint.filter(|_| headers.remaining.is_some_and(|left| left > 0)) {
            Some(endpoint) => update.closed_endpoints = with_closed(counters, endpoint, until, now),
            None => update.closed = later(snapshot, Closed { until, by: LimitKind::Burst }, now),
        }
    }
    (update != LimitUpdate::default()).then_some(update)
}

/// Returns true if the platform says that fewer requests may be sent than the snapshot allows.
pub(crate) fn restricts(snapshot: &Snapshot, headers: &RateLimitHeaders) -> bool {
    let current = snapshot.limits();
    let stated = snapshot.policy().bounded(headers.limits.or(current));
    headers.refused || headers.out_of_day() || current.stricter(stated) != current
}

/// The limits after an answer, and the changes to an item that lead to them.
struct LimitChange {
    limits: Limits,
    observed: Option<ObservedLimits>,
    proposal: Option<ProposalChange>,
    lowered_at: Option<Millis>,
}

/// Stricter limits hold at once. Higher limits need answers of two endpoints that agree, because an endpoint may state a
/// limit of its own. Two kinds of answers neither propose nor confirm higher limits: a 429, and an answer to a request
/// that was sent before the limits were lowered, because it may state the limits of that time. A proposal from before the
/// lowering does not count either.
fn limit_change(snapshot: &Snapshot, counters: &Counters, answer: &Answer<'_>, now: Millis) -> LimitChange {
    let Answer { endpoint, sent_at, headers } = answer;
    let (policy, current) = (snapshot.policy(), snapshot.limits());
    let stated = policy.bounded(headers.limits.or(current));
    let lowered = current.stricter(stated);
    let is_lowered = lowered != current;
    let is_current = |at| !snapshot.is_lowered_since(at, now);
    let may_raise = !headers.refused && is_current(*sent_at);
    let (mut limits, mut proposal) = (lowered, None);
    // An answer that lowers a limit may state a limit of its endpoint, so it raises none.
    if let Some(endpoint) = endpoint.filter(|_| may_raise && !is_lowered) {
        let higher = Proposal::new(stated.looser_than(current), endpoint, now);
        let old = counters.proposal.as_ref().filter(|old| old.is_recent(now) && is_current(old.at));
        let other = old.filter(|old| old.endpoint != higher.endpoint);
        let agreed = other.map(|other| higher.stated.agreed(other.stated)).unwrap_or_default();
        limits = agreed.or(current);
        let left = Proposal { stated: higher.stated.without(agreed), ..higher };
        proposal = match old {
            _ if left.stated.is_empty() => (!agreed.is_empty()).then_some(ProposalChange::Ended),
            // Endpoints that never agree must not cost a write for each answer.
            Some(old) if agreed.is_empty() && (old.stated == left.stated || now < old.at + PROPOSAL_STANDS) => None,
            _ => Some(ProposalChange::Made(left)),
        };
    }
    let raised = limits.looser_than(policy.default);
    let before = counters.observed.unwrap_or_default();
    let is_confirmed = may_raise && headers.limits.covers(raised);
    let confirmed_at = if is_confirmed { None } else { before.confirmed_at };
    let mut observed = ObservedLimits::of(limits, policy, now);
    observed.confirmed_at = observed.confirmed_at.map(|now| confirmed_at.unwrap_or(now));
    // Written only if other limits bind then, or for a confirmation: an app with the default limits never pays for it.
    let confirms = is_confirmed && before.is_due_for_confirmation(now);
    let observed = (limits != current || confirms).then_some(observed);
    LimitChange { limits, observed, proposal, lowered_at: is_lowered.then(|| snapshot.lowered_by(now)) }
}

fn day_change(snapshot: &Snapshot, limits: Limits, headers: &RateLimitHeaders, now: Millis) -> Option<DayChange> {
    let day = snapshot.day(now);
    let left = headers.daily_remaining.map(|left| u32::try_from(left.max(0)).unwrap_or(u32::MAX));
    let mut used = day.used;
    if let Some(left) = left {
        let ours = limits.daily.saturating_sub(day.used);
        // Tolerance: while much is left, the requests of other users of the app must not cost a write each.
        if left < ours.saturating_sub(left / 100) {
            used = limits.daily - left;
        }
    }
    let stated = headers.daily_reset.map(|reset| now + reset);
    let is_new = |end: &Millis| apart(*end, day.ends) > DAY_END_TOLERANCE || (left == Some(0) && !day.end_confirmed);
    let Some(ends) = stated.filter(is_new) else {
        return (used > day.used).then_some(DayChange::Used(used));
    };
    if apart(ends, day.ends) > DAY_END_TOLERANCE
        && ends > day.ends
        && let (Some(limit), Some(left)) = (headers.limits.daily, left)
    {
        // The day began later than assumed. Requests before its start do not count in it; requests that may still be on
        // their way to the platform do.
        used = used.min(limit.saturating_sub(left).saturating_add(snapshot.live(now)));
    }
    Some(DayChange::Replaced(Day { used, ends, end_confirmed: true }))
}

/// The closure if the day's budget is used up and the end of the day is not known: some minutes, then one request
/// probes.
fn unknown_day_end_closure(snapshot: &Snapshot, now: Millis) -> Option<Closed> {
    let until = (now + UNKNOWN_DAY_END_CLOSURE).min(snapshot.day(now).ends);
    let closed = later(snapshot, Closed { until, by: LimitKind::Daily }, now)?;
    let is_new = snapshot.closed(now).is_none_or(|old| old.until + DAILY_CLOSURE_TOLERANCE < until);
    is_new.then_some(closed)
}

/// `new`, unless the resource is closed for at least as long already.
fn later(snapshot: &Snapshot, new: Closed, now: Millis) -> Option<Closed> {
    snapshot.closed(now).is_none_or(|old| old.until < new.until).then_some(new)
}

/// The end of the closure after a 429: an interval later, as if the refused request had taken a permit, or later if
/// `Retry-After` says so. It is the end of a slot, so that many refusals at the same time cause one write.
fn closed_until(headers: &RateLimitHeaders, limits: Limits, now: Millis) -> Millis {
    let window = Window::new(limits.interval);
    let asked = headers.retry_after.map_or(now, |after| now + after.min(LONGEST_RETRY_AFTER));
    window.round_up(asked).max(window.expires_at(window.slot_at(now)))
}

/// The closed endpoints and `endpoint`; `None` if `endpoint` is closed for at least as long already.
fn with_closed(counters: &Counters, endpoint: &str, until: Millis, now: Millis) -> Option<ClosedEndpoints> {
    let mut closed = counters.closed_endpoints.clone();
    closed.retain(|_, until| binds(*until, now));
    if closed.get(endpoint).is_some_and(|old| *old >= until) {
        return None;
    }
    closed.insert(endpoint.to_owned(), until);
    while closed.len() > MOST_CLOSED_ENDPOINTS {
        let first = closed.iter().min_by_key(|(_, until)| **until).map(|(name, _)| name.clone())?;
        closed.remove(&first);
    }
    Some(closed)
}

fn apart(a: Millis, b: Millis) -> Duration {
    a.since(b).max(b.since(a))
}

#[cfg(test)]
mod tests;
