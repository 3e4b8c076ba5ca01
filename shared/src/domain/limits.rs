//! The limits of a resource: those that are configured, and those that the platform states.

use std::time::Duration;

use super::resource::Resource;

/// The ceilings of a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests in any [`Limits::interval`].
    pub burst: u32,
    /// The length of the burst window.
    pub interval: Duration,
    /// Requests in a day.
    pub daily: u32,
}

/// A day whose end is further ahead than this was written by a clock that is wrong.
pub(crate) const FURTHEST_DAY: Duration = Duration::from_hours(48);
/// The longest name of an endpoint that is told from others, in bytes.
const LONGEST_ENDPOINT: usize = 64;

/// Where a request goes, as far as limits are concerned: a resource, and the platform's endpoint.
#[derive(Clone, Copy, Debug)]
pub struct Endpoint<'a> {
    pub(crate) resource: &'a Resource,
    pub(crate) name: Option<&'a str>,
}

impl<'a> Endpoint<'a> {
    /// The endpoint of `path`, such as `/contacts/search`: its first segment, for this resource.
    #[must_use]
    pub fn of(resource: &'a Resource, path: &'a str) -> Self {
        let name = path.trim_start_matches('/').split(['/', '?']).next().unwrap_or_default();
        let name = name.get(..LONGEST_ENDPOINT).unwrap_or(name);
        Self { resource, name: (!name.is_empty()).then_some(name) }
    }
}

impl<'a> From<&'a Resource> for Endpoint<'a> {
    /// No endpoint in particular: closed only where the whole resource is.
    fn from(resource: &'a Resource) -> Self {
        Self { resource, name: None }
    }
}

/// Limits that the platform's headers stated. A header that never came is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ObservedLimits {
    pub(crate) burst: Option<u32>,
    pub(crate) interval: Option<Duration>,
    pub(crate) daily: Option<u32>,
}

impl ObservedLimits {
    /// The stricter of this and `ceilings` in each respect: fewer requests, and the longer window to count them in.
    pub(crate) fn under(self, ceilings: Limits) -> Limits {
        Limits {
            burst: self.burst.map_or(ceilings.burst, |burst| burst.min(ceilings.burst)),
            interval: self.interval.map_or(ceilings.interval, |interval| interval.max(ceilings.interval)),
            daily: self.daily.map_or(ceilings.daily, |daily| daily.min(ceilings.daily)),
        }
    }

    /// `self`, with what `newer` leaves out.
    pub(crate) fn updated_by(self, newer: Self) -> Self {
        Self {
            burst: newer.burst.or(self.burst),
            interval: newer.interval.or(self.interval),
            daily: newer.daily.or(self.daily),
        }
    }

    /// One attribute value, so that one comparison in a condition covers all of it: `25/10000/10000`, `-` for `None`.
    pub(crate) fn to_text(self) -> String {
        let part = |value: Option<u128>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
        let (burst, daily) = (self.burst.map(u128::from), self.daily.map(u128::from));
        format!("{}/{}/{}", part(burst), part(self.interval.map(|i| i.as_millis())), part(daily))
    }

    /// Reads the text that [`ObservedLimits::to_text`] wrote; `None` for any other.
    pub(crate) fn from_text(text: &str) -> Option<Self> {
        let mut observed = Self::default();
        let mut parts = text.split('/');
        let mut next = || parts.next();
        let (burst, interval, daily) = (next()?, next()?, next()?);
        let said = |part: &str| part != "-";
        if said(burst) {
            observed.burst = Some(burst.parse().ok()?);
        }
        if said(interval) {
            observed.interval = Some(Duration::from_millis(interval.parse().ok()?));
        }
        if said(daily) {
            observed.daily = Some(daily.parse().ok()?);
        }
        Some(observed)
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
    fn the_stored_form_is_read_back() {
        for observed in [
            ObservedLimits::default(),
            ObservedLimits { burst: Some(25), interval: None, daily: Some(10_000) },
            ObservedLimits { burst: Some(25), interval: Some(Duration::from_secs(10)), daily: None },
        ] {
            assert_eq!(ObservedLimits::from_text(&observed.to_text()), Some(observed));
        }
        assert_eq!(ObservedLimits::from_text("25/x/3"), None);
        assert_eq!(ObservedLimits::from_text("25"), None);
    }
}
