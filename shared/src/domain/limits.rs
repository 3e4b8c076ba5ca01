//! The limits of a resource: the configured limits, and the observed limits that the platform states.

use std::time::Duration;

use super::clock::Millis;
use super::resource::Resource;

/// Numbers of requests that may be sent to a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The number of requests in any [`Limits::interval`].
    pub burst: u32,
    /// The length of the burst window.
    pub interval: Duration,
    /// The number of requests in a day.
    pub daily: u32,
}

impl Limits {
    /// The stricter value of each limit: the smaller number of requests, and the longer interval.
    pub(crate) fn stricter(self, other: Self) -> Self {
        Self {
            burst: self.burst.min(other.burst),
            interval: self.interval.max(other.interval),
            daily: self.daily.min(other.daily),
        }
    }

    /// The limits of `self` that allow more than those of `other`. The burst and its interval are one limit.
    pub(crate) fn looser_than(self, other: Self) -> StatedLimits {
        let burst = self.burst > other.burst || self.interval < other.interval;
        StatedLimits {
            burst: burst.then_some(self.burst),
            interval: burst.then_some(self.interval),
            daily: (self.daily > other.daily).then_some(self.daily),
        }
    }
}

/// The configured limits of every resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitPolicy {
    /// The limits that hold until the platform's headers have stated others.
    pub default: Limits,
    /// The bounds of all limits, whatever the headers state: the largest numbers of requests, and the shortest interval.
    pub bounds: Limits,
}

impl LimitPolicy {
    /// `limits` within the bounds.
    ///
    /// The bound of the burst holds for the default interval. A shorter interval is refused if it would allow more
    /// requests in the default interval.
    pub(crate) fn bounded(self, limits: Limits) -> Limits {
        let Self { default, bounds } = self;
        let (burst, mut interval) = (limits.burst.min(bounds.burst), limits.interval.max(bounds.interval));
        let turns = default.interval.as_millis().div_ceil(interval.as_millis().max(1));
        if turns > 1 && u128::from(burst) * turns > u128::from(bounds.burst) {
            interval = default.interval;
        }
        Limits { burst, interval, daily: limits.daily.min(bounds.daily) }
    }
}

impl From<Limits> for LimitPolicy {
    /// Limits that no header raises.
    fn from(limits: Limits) -> Self {
        Self { default: limits, bounds: limits }
    }
}

/// The longest time until the end of a day that is believed. A later end was written by a process whose clock is wrong.
pub(crate) const FURTHEST_DAY: Duration = Duration::from_hours(48);
/// The longest name of an endpoint, in bytes. Longer names are cut.
const LONGEST_ENDPOINT: usize = 64;

/// The target of a request for the purpose of limits: a resource, and an endpoint of the platform.
#[derive(Clone, Copy, Debug)]
pub struct Endpoint<'a> {
    pub(crate) resource: &'a Resource,
    pub(crate) name: Option<&'a str>,
}

impl<'a> Endpoint<'a> {
    /// The endpoint of `path`, such as `/contacts/search`: its first segment, for this resource.
    pub fn of(resource: &'a Resource, path: &'a str) -> Self {
        let name = path.trim_start_matches('/').split(['/', '?']).next().unwrap_or_default();
        let name = name.get(..LONGEST_ENDPOINT).unwrap_or(name);
        Self { resource, name: (!name.is_empty()).then_some(name) }
    }
}

impl<'a> From<&'a Resource> for Endpoint<'a> {
    /// A target without an endpoint. It is closed only if the whole resource is closed.
    fn from(resource: &'a Resource) -> Self {
        Self { resource, name: None }
    }
}

/// The limits that the headers of one answer state. `None` for a limit that no header states.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct StatedLimits {
    pub(crate) burst: Option<u32>,
    pub(crate) interval: Option<Duration>,
    pub(crate) daily: Option<u32>,
}

impl StatedLimits {
    /// The stated limits, and those of `others` where none is stated.
    pub(crate) fn or(self, others: Limits) -> Limits {
        Limits {
            burst: self.burst.unwrap_or(others.burst),
            interval: self.interval.unwrap_or(others.interval),
            daily: self.daily.unwrap_or(others.daily),
        }
    }

    pub(crate) fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// True if a limit is stated wherever `other` states one.
    pub(crate) fn covers(self, other: Self) -> bool {
        (other.burst.is_none() || self.burst.is_some()) && (other.daily.is_none() || self.daily.is_some())
    }

    /// The limits for which both have the same value. The burst and its interval are one limit.
    pub(crate) fn agreed(self, other: Self) -> Self {
        let burst = self.burst == other.burst && self.interval == other.interval;
        Self {
            burst: self.burst.filter(|_| burst),
            interval: self.interval.filter(|_| burst),
            daily: self.daily.filter(|_| self.daily == other.daily),
        }
    }

    /// The limits for which `other` has no value.
    pub(crate) fn without(self, other: Self) -> Self {
        Self {
            burst: self.burst.filter(|_| other.burst.is_none()),
            interval: self.interval.filter(|_| other.interval.is_none()),
            daily: self.daily.filter(|_| other.daily.is_none()),
        }
    }

    /// `burst/interval in ms/daily`, such as `25/10000/10000`, with `-` for `None`.
    fn to_text(self) -> String {
        let part = |value: Option<u128>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
        let (burst, daily) = (self.burst.map(u128::from), self.daily.map(u128::from));
        format!("{}/{}/{}", part(burst), part(self.interval.map(|i| i.as_millis())), part(daily))
    }

    /// Reads the first three parts of a text. `None` if they are not as [`StatedLimits::to_text`] writes them.
    fn from_parts<'a>(parts: &mut impl Iterator<Item = &'a str>) -> Option<Self> {
        let number = |part: &str| if part == "-" { Some(None) } else { part.parse().ok().map(Some) };
        let mut next = || number(parts.next()?);
        let (burst, interval, daily): (Option<u64>, Option<u64>, Option<u64>) = (next()?, next()?, next()?);
        let count = |number: Option<u64>| number.map(u32::try_from).transpose().ok();
        Some(Self { burst: count(burst)?, interval: interval.map(Duration::from_millis), daily: count(daily)? })
    }
}

/// Observed limits: the limits of one resource that the platform's headers have stated. `None` for a limit that is the
/// default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ObservedLimits {
    pub(crate) stated: StatedLimits,
    /// The time at which an answer stated them last, in whole seconds. Only limits above the default need it.
    pub(crate) confirmed_at: Option<Millis>,
}

/// A limit above the default holds for so long after an answer has stated it.
const CONFIRMED_FOR: Duration = Duration::from_hours(24);
/// A confirmation is written again when it is older than this.
const CONFIRMED_ANEW_AFTER: Duration = Duration::from_hours(6);
/// A confirmation that is further ahead was written by a process whose clock is wrong, and does not count.
const FURTHEST_CONFIRMATION: Duration = Duration::from_mins(1);

impl ObservedLimits {
    /// The limits `limits` as observed at `now`.
    pub(crate) fn of(limits: Limits, policy: LimitPolicy, now: Millis) -> Self {
        let LimitPolicy { default, .. } = policy;
        let stated = StatedLimits {
            burst: (limits.burst != default.burst).then_some(limits.burst),
            interval: (limits.interval != default.interval).then_some(limits.interval),
            daily: (limits.daily != default.daily).then_some(limits.daily),
        };
        let is_raised = !limits.looser_than(default).is_empty();
        Self { stated, confirmed_at: is_raised.then_some(Millis(now.0 / 1_000 * 1_000)) }
    }

    /// The limits that hold at `now`.
    pub(crate) fn limits(self, policy: LimitPolicy, now: Millis) -> Limits {
        let limits = policy.bounded(self.stated.or(policy.default));
        if self.is_confirmed(now) { limits } else { limits.stricter(policy.default) }
    }

    /// True if the last confirmation is so old that another one should be written.
    pub(crate) fn is_due_for_confirmation(self, now: Millis) -> bool {
        self.confirmed_at.is_some_and(|at| now >= at + CONFIRMED_ANEW_AFTER)
    }

    /// The instant at which the limits above the default end, if they hold at `now`.
    pub(crate) fn lapse_at(self, now: Millis) -> Option<Millis> {
        self.confirmed_at.filter(|_| self.is_confirmed(now)).map(|at| at + CONFIRMED_FOR)
    }

    fn is_confirmed(self, now: Millis) -> bool {
        self.confirmed_at.is_some_and(|at| at <= now + FURTHEST_CONFIRMATION && now < at + CONFIRMED_FOR)
    }

    /// All limits as one attribute value, which one comparison in a condition covers: `burst/interval in ms/daily`, such
    /// as `25/10000/10000`, with `-` for `None`; for limits above the default, `/` and the seconds of `confirmed_at`.
    pub(crate) fn to_text(self) -> String {
        let stated = self.stated.to_text();
        self.confirmed_at.map_or_else(|| stated.clone(), |at| format!("{stated}/{}", at.seconds()))
    }

    /// Parses the text that [`ObservedLimits::to_text`] wrote. `None` for any other text.
    pub(crate) fn from_text(text: &str) -> Option<Self> {
        let mut parts = text.split('/');
        let stated = StatedLimits::from_parts(&mut parts)?;
        let confirmed_at = parts.next().map(seconds).map_or(Some(None), |at| at.map(Some))?;
        Some(Self { stated, confirmed_at })
    }
}

/// Limits above those that hold, as one answer has stated them. They are raised if an answer of another endpoint agrees:
/// an endpoint may state a limit of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Proposal {
    pub(crate) stated: StatedLimits,
    /// The time of the answer, in whole seconds.
    pub(crate) at: Millis,
    pub(crate) endpoint: String,
}

/// The characters of an endpoint that a proposal keeps, so that its item stays small.
const ENDPOINT_OF_PROPOSAL: usize = 24;

impl Proposal {
    pub(crate) fn new(stated: StatedLimits, endpoint: &str, now: Millis) -> Self {
        let endpoint = endpoint.chars().take(ENDPOINT_OF_PROPOSAL).collect();
        Self { stated, at: Millis(now.0 / 1_000 * 1_000), endpoint }
    }

    /// True if it was made at most a day ago.
    pub(crate) fn is_recent(&self, now: Millis) -> bool {
        self.at <= now + FURTHEST_CONFIRMATION && now < self.at + CONFIRMED_FOR
    }

    /// `burst/interval in ms/daily/seconds/endpoint`. An endpoint has no `/`.
    pub(crate) fn to_text(&self) -> String {
        format!("{}/{}/{}", self.stated.to_text(), self.at.seconds(), self.endpoint)
    }

    /// Parses the text that [`Proposal::to_text`] wrote. `None` for any other text.
    pub(crate) fn from_text(text: &str) -> Option<Self> {
        let mut parts = text.split('/');
        let stated = StatedLimits::from_parts(&mut parts)?;
        Some(Self { stated, at: seconds(parts.next()?)?, endpoint: parts.next()?.to_owned() })
    }
}

fn seconds(text: &str) -> Option<Millis> {
    text.parse::<i64>().ok()?.checked_mul(1_000).map(Millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEN: Duration = Duration::from_secs(10);
    const DEFAULT: Limits = Limits { burst: 100, interval: TEN, daily: 200_000 };
    const POLICY: LimitPolicy = LimitPolicy {
        default: DEFAULT,
        bounds: Limits { burst: 1_000, interval: Duration::from_secs(1), daily: 10_000_000 },
    };
    const NOW: Millis = Millis(1_800_000_000_000);

    fn limits(burst: u32, seconds: u64, daily: u32) -> Limits {
        Limits { burst, interval: Duration::from_secs(seconds), daily }
    }

    #[test]
    fn limits_stay_within_their_bounds() {
        for (stated, bounded) in [
            (limits(100, 10, 200_000), limits(100, 10, 200_000)),
            (limits(25, 10, 10_000), limits(25, 10, 10_000)),
            (limits(500, 10, 1_000_000), limits(500, 10, 1_000_000)),
            (limits(5_000, 10, 99_000_000), limits(1_000, 10, 10_000_000)),
            (limits(5_000, 60, 1), limits(1_000, 60, 1)),
            // 100 in 1 s is 1,000 in 10 s. More would exceed the bound.
            (limits(100, 1, 1), limits(100, 1, 1)),
            (limits(101, 1, 1), limits(101, 10, 1)),
        ] {
            assert_eq!(POLICY.bounded(stated), bounded, "{stated:?}");
        }
        let fixed = LimitPolicy::from(DEFAULT);
        assert_eq!(fixed.bounded(limits(500, 5, 900_000)), DEFAULT);
        assert_eq!(fixed.bounded(limits(50, 5, 900)), limits(50, 10, 900));
        let tight = LimitPolicy { default: DEFAULT, bounds: limits(100, 1, 200_000) };
        assert_eq!(tight.bounded(limits(100, 5, 1)), limits(100, 10, 1), "100 in 5 s is 200 in 10 s");
        assert_eq!(tight.bounded(limits(50, 5, 1)), limits(50, 5, 1));
    }

    #[test]
    fn limits_above_the_default_lapse_a_day_after_their_last_confirmation() {
        let observed = ObservedLimits::of(limits(500, 10, 10_000), POLICY, NOW);
        let at = |hours: i64| observed.limits(POLICY, Millis(NOW.0 + hours * 3_600_000));
        assert_eq!((at(0), at(23)), (limits(500, 10, 10_000), limits(500, 10, 10_000)));
        assert_eq!(at(24), limits(100, 10, 10_000), "a limit below the default stays");
        assert_eq!(at(-24), limits(100, 10, 10_000), "confirmed by a clock that is wrong");
        assert_eq!(observed.lapse_at(NOW), Some(NOW + CONFIRMED_FOR));
        assert_eq!(observed.lapse_at(NOW + CONFIRMED_FOR), None);

        let lower = ObservedLimits::of(limits(25, 60, 10_000), POLICY, NOW);
        assert_eq!((lower.confirmed_at, lower.lapse_at(NOW)), (None, None));
        assert_eq!(lower.limits(POLICY, NOW + Duration::from_hours(10_000)), limits(25, 60, 10_000));
        assert_eq!(ObservedLimits::of(DEFAULT, POLICY, NOW), ObservedLimits::default());
    }

    #[test]
    fn observed_limits_are_read_back_from_their_text() {
        for observed in [
            ObservedLimits::default(),
            ObservedLimits::of(limits(25, 10, 10_000), POLICY, NOW),
            ObservedLimits::of(limits(500, 5, 200_000), POLICY, NOW),
        ] {
            assert_eq!(ObservedLimits::from_text(&observed.to_text()), Some(observed));
        }
        assert_eq!(ObservedLimits::from_text("25/-/10000").and_then(|o| o.stated.burst), Some(25), "of earlier builds");
        for other in ["25/x/3", "25", "4294967296/-/-", "500/-/-/soon"] {
            assert_eq!(ObservedLimits::from_text(other), None, "{other}");
        }
    }

    #[test]
    fn a_proposal_is_read_back_from_its_text() {
        let stated = limits(500, 10, 1_000_000).looser_than(DEFAULT);
        let long = "ä".repeat(64);
        for endpoint in ["contacts", "", "a:b c", &long] {
            let proposal = Proposal::new(stated, endpoint, NOW);
            assert_eq!(Proposal::from_text(&proposal.to_text()), Some(proposal));
        }
        assert_eq!(Proposal::from_text("500/10000/-"), None);
        assert_eq!(Proposal::from_text("500/10000/-/1800000000"), None);
    }

    #[test]
    fn a_burst_and_its_interval_are_one_limit() {
        let looser = |a: Limits| a.looser_than(DEFAULT);
        let (burst, interval) = (Some(100), Some(Duration::from_secs(5)));
        assert_eq!(looser(limits(100, 5, 200_000)), StatedLimits { burst, interval, daily: None });
        assert!(looser(limits(100, 20, 9)).is_empty());
        let (a, b) = (looser(limits(500, 10, 300_000)), looser(limits(500, 20, 300_000)));
        assert_eq!(a.agreed(b), StatedLimits { daily: Some(300_000), ..StatedLimits::default() });
        assert_eq!(a.without(a.agreed(b)), StatedLimits { daily: None, ..a });
        assert!(a.covers(b) && !a.agreed(b).covers(a));
    }

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
