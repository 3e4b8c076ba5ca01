//! The limits of a resource: the configured ceilings, and the observed limits that the platform states.

use std::time::Duration;

use super::resource::Resource;

/// The configured ceilings of a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The number of requests in any [`Limits::interval`].
    pub burst: u32,
    /// The length of the burst window.
    pub interval: Duration,
    /// The number of requests in a day.
    pub daily: u32,
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

/// Observed limits: the limits that the platform's headers have stated. `None` for a limit that no header has stated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ObservedLimits {
    pub(crate) burst: Option<u32>,
    pub(crate) interval: Option<Duration>,
    pub(crate) daily: Option<u32>,
}

impl ObservedLimits {
    /// The stricter of each observed limit and its ceiling: the smaller number of requests, and the longer interval.
    pub(crate) fn under(self, ceilings: Limits) -> Limits {
        Limits {
            burst: self.burst.map_or(ceilings.burst, |burst| burst.min(ceilings.burst)),
            interval: self.interval.map_or(ceilings.interval, |interval| interval.max(ceilings.interval)),
            daily: self.daily.map_or(ceilings.daily, |daily| daily.min(ceilings.daily)),
        }
    }

    /// The limits of `newer`, and the limits of `self` where `newer` states none.
    pub(crate) fn updated_by(self, newer: Self) -> Self {
        Self {
            burst: newer.burst.or(self.burst),
            interval: newer.interval.or(self.interval),
            daily: newer.daily.or(self.daily),
        }
    }

    /// All limits as one attribute value, which one comparison in a condition covers: `burst/interval in ms/daily`,
    /// such as `25/10000/10000`, with `-` for `None`.
    pub(crate) fn to_text(self) -> String {
        let part = |value: Option<u128>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
        let (burst, daily) = (self.burst.map(u128::from), self.daily.map(u128::from));
        format!("{}/{}/{}", part(burst), part(self.interval.map(|i| i.as_millis())), part(daily))
    }

    /// Parses the text that [`ObservedLimits::to_text`] wrote. `None` for any other text.
    pub(crate) fn from_text(text: &str) -> Option<Self> {
        let number = |part: &str| if part == "-" { Some(None) } else { part.parse().ok().map(Some) };
        let mut parts = text.split('/');
        let mut next = || number(parts.next()?);
        let (burst, interval, daily): (Option<u64>, Option<u64>, Option<u64>) = (next()?, next()?, next()?);
        let count = |number: Option<u64>| number.map(u32::try_from).transpose().ok();
        Some(Self { burst: count(burst)?, interval: interval.map(Duration::from_millis), daily: count(daily)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CEILINGS: Limits = Limits { burst: 100, interval: Duration::from_secs(10), daily: 200_000 };

    #[test]
    fn observed_limits_lower_and_never_raise() {
        let observed = |burst, seconds, daily| ObservedLimits {
            burst: Some(burst),
            interval: Some(Duration::from_secs(seconds)),
            daily: Some(daily),
        };
        assert_eq!(ObservedLimits::default().under(CEILINGS), CEILINGS);
        let lower = observed(25, 10, 10_000).under(CEILINGS);
        assert_eq!((lower.burst, lower.daily), (25, 10_000));
        assert_eq!(observed(500, 5, 900_000).under(CEILINGS), CEILINGS);
        assert_eq!(observed(100, 60, 200_000).under(CEILINGS).interval, Duration::from_mins(1));
    }

    #[test]
    fn observed_limits_are_read_back_from_their_text() {
        for observed in [
            ObservedLimits::default(),
            ObservedLimits { burst: Some(25), interval: None, daily: Some(10_000) },
            ObservedLimits { burst: Some(25), interval: Some(Duration::from_secs(10)), daily: None },
        ] {
            assert_eq!(ObservedLimits::from_text(&observed.to_text()), Some(observed));
        }
        assert_eq!(ObservedLimits::from_text("25/x/3"), None);
        assert_eq!(ObservedLimits::from_text("25"), None);
        assert_eq!(ObservedLimits::from_text("4294967296/-/-"), None);
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
