//! How much a resource may be asked: what is configured, and what the platform says of itself.

use std::time::Duration;

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

/// What the platform's headers said. A header that never came is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Learnt {
    pub(crate) burst: Option<u32>,
    pub(crate) interval: Option<Duration>,
    pub(crate) daily: Option<u32>,
}

impl Learnt {
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

    /// What [`Learnt::to_text`] wrote; `None` if it did not.
    pub(crate) fn from_text(text: &str) -> Option<Self> {
        let mut learnt = Self::default();
        let mut parts = text.split('/');
        let mut next = || parts.next();
        let (burst, interval, daily) = (next()?, next()?, next()?);
        let said = |part: &str| part != "-";
        if said(burst) {
            learnt.burst = Some(burst.parse().ok()?);
        }
        if said(interval) {
            learnt.interval = Some(Duration::from_millis(interval.parse().ok()?));
        }
        if said(daily) {
            learnt.daily = Some(daily.parse().ok()?);
        }
        Some(learnt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CEILINGS: Limits = Limits { burst: 100, interval: Duration::from_secs(10), daily: 200_000 };

    #[test]
    fn what_is_learnt_lowers_and_never_raises() {
        let learnt = |burst, seconds, daily| Learnt {
            burst: Some(burst),
            interval: Some(Duration::from_secs(seconds)),
            daily: Some(daily),
        };
        assert_eq!(Learnt::default().under(CEILINGS), CEILINGS);
        let lower = learnt(25, 10, 10_000).under(CEILINGS);
        assert_eq!((lower.burst, lower.daily), (25, 10_000));
        assert_eq!(learnt(500, 5, 900_000).under(CEILINGS), CEILINGS);
        assert_eq!(learnt(100, 60, 200_000).under(CEILINGS).interval, Duration::from_mins(1));
    }

    #[test]
    fn the_stored_form_is_read_back() {
        for learnt in [
            Learnt::default(),
            Learnt { burst: Some(25), interval: None, daily: Some(10_000) },
            Learnt { burst: Some(25), interval: Some(Duration::from_secs(10)), daily: None },
        ] {
            assert_eq!(Learnt::from_text(&learnt.to_text()), Some(learnt));
        }
        assert_eq!(Learnt::from_text("25/x/3"), None);
        assert_eq!(Learnt::from_text("25"), None);
    }
}
