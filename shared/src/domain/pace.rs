//! The pace of the token endpoint: a sliding window over the requests that all processes send to it, and the order in
//! which waiting requests are served. All code is pure.
//!
//! No number is published for the platform's token endpoint; one of its resellers names 5 requests a minute. Without a
//! pace, the app sends as it likes. A pace is in force if the operator sets a ceiling
//! (`TOKEN_REQUESTS_PER_MINUTE`), or after the platform has answered 429 ([`Pace::throttled`]).

use std::time::Duration;

use super::clock::Millis;

/// The limit after the first 429, in requests a minute: the only published number (help pages of the HoopAI platform).
/// No lower limit is learnt: the pauses after each 429 are enough for a lower one.
pub const PUBLISHED: u32 = 5;
/// A permit ends after this time: the request leaves by then, or needs another permit. Its connection is open already.
pub const PERMIT_LIFE: Duration = Duration::from_secs(1);
/// A minute, the life of a permit, and half a second for clocks that differ. So at most the limit of requests leave in
/// any minute, at whatever time of its permit's life each of them leaves.
const WINDOW: Duration = Duration::from_millis(61_500);
/// The most requests that the window remembers. A higher limit is divided into several shorter windows.
const MOST_REMEMBERED: u32 = 30;
/// The longest time between a request and a free place for its replay, if its answer is lost, unless the limit is 1. The
/// platform repeats an answer for 30 s. At [`PUBLISHED`] requests a minute, evenly spaced requests are that far apart, so
/// this place costs no other request its place.
pub const REPLAY_WAIT: Duration = Duration::from_millis(12_300);
/// For this time after a place is free, lower priorities leave it to the request that was announced for it. The request
/// claims its installation in this time.
const ANNOUNCED: Duration = Duration::from_secs(5);
/// The longest pause of a replay after a 429. Other requests wait as long as the platform asks, or for a [`WINDOW`].
const REPLAY_PAUSE: Duration = Duration::from_secs(5);
/// Added to the pause that the platform asks for, which it states in whole seconds and may have rounded down.
const ROUNDING: Duration = Duration::from_secs(1);
/// The longest pause that the platform can ask for.
const LONGEST_PAUSE: Duration = Duration::from_mins(30);
/// A 429 to a request that was sent so soon after another 429 says nothing new: a process knows of a 429 after 2 s, and a
/// permit ends after 1 s.
const SAME_MOMENT: Duration = Duration::from_secs(4);
/// After the first 429, the limit is raised for the first time after this time. If that 429 was a moment's fault, an app
/// with many installations is slow for a quarter of an hour: then the limit doubles each minute.
const FIRST_RAISE: Duration = Duration::from_mins(5);
/// The time between two raises of a limit, as long as no request is answered 429.
const NEXT_RAISE: Duration = Duration::from_mins(1);
/// After a 429 to a raised limit, the limit is raised again after this time.
const RETRY_RAISE: Duration = Duration::from_mins(15);
/// Minting counts in the pace for this time after it was answered 429 itself.
const MINTING_COUNTS: Duration = Duration::from_hours(1);
/// A learnt pace ends after this time without a 429 and without a minute that used half of the limit.
const LAPSE: Duration = Duration::from_hours(24);
/// The highest limit, in requests a minute.
pub const HIGHEST: u32 = 6_000;

/// The order of service. A request waits while one of a higher priority is announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// A renewal by the schedule. These requests are spaced evenly, so that a place is free soon for any other.
    Schedule,
    /// Minting. It is another endpoint, so it counts only after it was answered 429 itself.
    Minting,
    /// The exchange of an authorization code.
    Exchange,
    /// A renewal for a caller that waits.
    Caller,
    /// Another presentation of a refresh token whose answer was lost. The platform repeats the answer for 30 s.
    Replay,
}

impl Priority {
    /// All priorities, from the lowest to the highest.
    pub const ALL: [Self; Self::Replay as usize + 1] =
        [Self::Schedule, Self::Minting, Self::Exchange, Self::Caller, Self::Replay];
}

/// A limit that was learnt from the platform's answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LearntLimit {
    /// Requests a minute.
    pub limit: u32,
    /// The limit before the last raise. It was used for a minute without a 429.
    pub proven: u32,
    /// The limit is not raised before this time.
    pub raise_after: Millis,
    /// The end of this knowledge, if nothing needs the limit until then.
    pub lapses_at: Millis,
}

/// The state of the pace, shared by all processes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    /// The number of changes. Each write compares it (compare-and-swap).
    pub revision: u64,
    /// The limit that was learnt.
    pub learnt: Option<LearntLimit>,
    /// The times of the last requests, oldest first.
    pub sent: Vec<Millis>,
    /// The time of the last 429.
    pub throttled_at: Millis,
    /// No request but a replay is sent before this time, because of the last 429.
    pub paused_until: Millis,
    /// Minting counts in the pace until this time, because it was answered 429.
    pub counts_minting_until: Millis,
    /// A request that waits, and the time until which lower priorities leave the next place to it.
    pub waiting: Option<(Priority, Millis)>,
}

/// A window: the requests that it admits, and its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Window {
    places: u32,
    length: Duration,
}

impl Window {
    /// As many windows of equal length as needed make up [`WINDOW`], so any minute has at most `limit` requests.
    fn of(limit: u32) -> Self {
        let windows = limit.div_ceil(MOST_REMEMBERED).max(1);
        Self { places: (limit / windows).max(1), length: WINDOW / windows }
    }
}

/// The number of installations with a grant of their own that a limit can carry. Each renews at 60 to 80 % of a token's
/// life of a day, so on average each 0.7 days.
#[must_use]
pub fn installations_carried(limit: u32) -> u64 {
    u64::from(limit) * 60 * 24 * 7 / 10
}

impl Pace {
    /// The limit in force, in requests a minute. `None` if there is none.
    #[must_use]
    pub fn limit(&self, ceiling: Option<u32>, now: Millis) -> Option<u32> {
        let learnt = self.learnt.filter(|learnt| now < learnt.lapses_at).map(|learnt| learnt.limit);
        learnt.into_iter().chain(ceiling).min()
    }

    /// The limit in force for requests of this priority, in requests a minute. `None` if there is none.
    #[must_use]
    pub fn limit_of(&self, priority: Priority, ceiling: Option<u32>, now: Millis) -> Option<u32> {
        let counts = priority != Priority::Minting || now < self.counts_minting_until;
        self.limit(ceiling, now).filter(|_| counts)
    }

    /// The part of the limit that is in use at `now`, in percent.
    #[must_use]
    pub fn percent_used(&self, limit: u32, now: Millis) -> u64 {
        let window = Window::of(limit);
        self.live(window, now).len() as u64 * 100 / u64::from(window.places)
    }

    /// The earliest time at which a request of this priority may be sent, as far as is known at `now`.
    #[must_use]
    pub fn earliest(&self, priority: Priority, limit: u32, now: Millis) -> Millis {
        let window = Window::of(limit);
        // A replay that is refused costs one request. A replay that comes too late costs a new install by a human.
        let replay = (priority == Priority::Replay).then_some(self.throttled_at + REPLAY_PAUSE);
        let pause = replay.into_iter().fold(self.paused_until, Millis::min);
        let mut at = now.max(pause);
        let places = window.places as usize;
        if self.sent.len() >= places {
            at = at.max(self.sent[self.sent.len() - places] + window.length);
        }
        // The last place of a window goes to a replay, or to a request after which another place is free soon.
        if priority != Priority::Replay && places > 1 && self.sent.len() + 1 >= places {
            let oldest = self.sent[self.sent.len() + 1 - places];
            at = at.max(oldest + window.length.saturating_sub(REPLAY_WAIT));
        }
        if priority == Priority::Schedule
            && let Some(last) = self.sent.last()
        {
            // A little closer than evenly, because each renewal takes some time between its turn and its permit.
            at = at.max(*last + window.length / window.places * 15 / 16);
        }
        match self.waiting {
            Some((waiting, until)) if waiting > priority => at.max(until),
            _ => at,
        }
    }

    /// The pace after a request of this priority was sent at `now`.
    #[must_use]
    pub fn sent_one(&self, priority: Priority, limit: u32, now: Millis) -> Self {
        let window = Window::of(limit);
        let mut next = self.next();
        // Another process's clock may be ahead.
        next.sent.push(now.max(self.sent.last().copied().unwrap_or(now)));
        let expired = next.sent.len() - next.live(window, now).len();
        next.sent.drain(..expired);
        if next.live(window, now).len() * 2 >= window.places as usize
            && let Some(learnt) = &mut next.learnt
        {
            learnt.lapses_at = now + LAPSE;
        }
        next.waiting = next.waiting.filter(|(waiting, until)| *waiting > priority && *until > now);
        next
    }

    /// The pace after a request of this priority has begun to wait for a place at `at`. `None` if lower priorities
    /// leave that place free already.
    #[must_use]
    pub fn announced(&self, priority: Priority, at: Millis, now: Millis) -> Option<Self> {
        let is_known = |(waiting, until): (Priority, Millis)| {
            until > now && (waiting > priority || waiting == priority && until >= at)
        };
        if priority == Priority::Schedule || self.waiting.is_some_and(is_known) {
            return None;
        }
        Some(Self { waiting: Some((priority, at + ANNOUNCED)), ..self.next() })
    }

    /// The pace with twice the limit, if requests wait although half of the places were used and none was answered 429 for
    /// long enough. Requests wait before all places are used, because they are spaced and leave a place for a replay.
    #[must_use]
    pub fn raised(&self, ceiling: Option<u32>, now: Millis) -> Option<Self> {
        let learnt = self.learnt.filter(|learnt| now >= learnt.raise_after && now < learnt.lapses_at)?;
        let limit = learnt.limit.saturating_mul(2).min(ceiling.unwrap_or(HIGHEST));
        let window = Window::of(learnt.limit);
        if limit <= learnt.limit || self.live(window, now).len() * 2 < window.places as usize {
            return None;
        }
        let learnt = LearntLimit { limit, proven: learnt.limit, raise_after: now + NEXT_RAISE, ..learnt };
        Some(Self { learnt: Some(learnt), ..self.next() })
    }

    /// The pace after a request that was sent at `sent_at` was answered 429. `None` if the answer says nothing new: the
    /// request was under way when another one was answered 429, or it is minting and there is no pace.
    #[must_use]
    pub fn throttled(
        &self,
        priority: Priority,
        sent_at: Millis,
        retry_after: Option<Duration>,
        ceiling: Option<u32>,
        now: Millis,
    ) -> Option<Self> {
        let mut next = self.next();
        if priority == Priority::Minting {
            let is_first = sent_at >= self.counts_minting_until;
            next.counts_minting_until = now + MINTING_COUNTS;
            if is_first {
                return self.limit(ceiling, now).map(|_| next);
            }
        }
        if let Some(pause) = retry_after {
            next.paused_until = self.paused_until.max(now + pause.min(LONGEST_PAUSE) + ROUNDING);
        }
        if sent_at <= self.throttled_at + SAME_MOMENT {
            return (next.paused_until > self.paused_until).then_some(next);
        }
        next.throttled_at = now;
        // A replay during the pause has met the same cause.
        if sent_at < self.paused_until {
            return Some(next);
        }
        let learnt = self.learnt.filter(|learnt| now < learnt.lapses_at);
        let first = ceiling.unwrap_or(HIGHEST);
        let accepted = self.accepted(learnt.map_or(first, |learnt| learnt.limit), now);
        let change = match learnt {
            Some(LearntLimit { limit, proven, .. }) if limit > proven => Some((proven, RETRY_RAISE)),
            // Other programs have used up the limit, or the fault has passed.
            Some(LearntLimit { limit, .. }) if accepted < limit / 2 => None,
            Some(LearntLimit { limit, .. }) => Some((accepted.max(PUBLISHED).min(limit), RETRY_RAISE)),
            None => Some((accepted.max(PUBLISHED).min(first), FIRST_RAISE)),
        };
        if let Some((limit, raise)) = change {
            next.learnt = Some(LearntLimit { limit, proven: limit, raise_after: now + raise, lapses_at: now + LAPSE });
        }
        // If the window is full, it ends the pause.
        let is_full =
            change.or(learnt.map(|learnt| (learnt.limit, RETRY_RAISE))).is_some_and(|(limit, _)| accepted >= limit);
        if retry_after.is_none() && !is_full {
            next.paused_until = next.paused_until.max(now + WINDOW);
        }
        Some(next)
    }

    /// The requests a minute that were sent before the one that was answered 429.
    fn accepted(&self, limit: u32, now: Millis) -> u32 {
        let window = Window::of(limit);
        let others = self.live(window, now).len().saturating_sub(1);
        u32::try_from(others).unwrap_or(u32::MAX).saturating_mul(limit / window.places)
    }

    fn live(&self, window: Window, now: Millis) -> &[Millis] {
        let expired = self.sent.iter().take_while(|at| **at + window.length <= now).count();
        &self.sent[expired..]
    }

    fn next(&self) -> Self {
        Self { revision: self.revision + 1, ..self.clone() }
    }
}

#[cfg(test)]
mod tests;
