//! The platform's rate-limit headers of one answer.

use std::time::Duration;

use http::{HeaderMap, StatusCode};

use crate::domain::limits::FURTHEST_DAY;
use crate::domain::limits::ObservedLimits;

/// Windows outside of this are taken for a mistake.
const PLAUSIBLE_INTERVALS: std::ops::RangeInclusive<u64> = 100..=600_000;

/// The limits as one answer of the platform states them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RateLimitHeaders {
    pub(crate) limits: ObservedLimits,
    /// `X-RateLimit-Remaining` of a 429: above 0, the resource has room left, and the 429 is about one endpoint.
    ///
    /// Of other answers it is not used: it also counts what others send for the same app, in a window whose shape is
    /// not documented, and a request of ours that is on its way is not in it.
    pub(crate) remaining: Option<i64>,
    pub(crate) daily_remaining: Option<i64>,
    pub(crate) daily_reset: Option<Duration>,
    /// True for a 429.
    pub(crate) refused: bool,
    pub(crate) retry_after: Option<Duration>,
}

impl RateLimitHeaders {
    /// Reads the headers. A header that is absent or garbage teaches nothing; nor does a limit or a time that is zero
    /// or negative.
    pub(crate) fn read(status: StatusCode, headers: &HeaderMap) -> Self {
        let number = |name: &str| headers.get(name)?.to_str().ok()?.trim().parse::<i64>().ok();
        let positive = |name: &str| number(name).filter(|&n| n > 0);
        let count = |name: &str| positive(name).and_then(|n| u32::try_from(n).ok());
        let interval = positive("x-ratelimit-interval-milliseconds").and_then(|n| u64::try_from(n).ok());
        let length = |name: &str, unit: fn(u64) -> Duration| positive(name)?.try_into().ok().map(unit);
        let refused = status == StatusCode::TOO_MANY_REQUESTS;
        Self {
            limits: ObservedLimits {
                burst: count("x-ratelimit-max"),
                interval: interval.filter(|ms| PLAUSIBLE_INTERVALS.contains(ms)).map(Duration::from_millis),
                daily: count("x-ratelimit-limit-daily"),
            },
            remaining: refused.then(|| number("x-ratelimit-remaining")).flatten(),
            daily_remaining: number("x-ratelimit-daily-remaining"),
            daily_reset: length("x-ratelimit-daily-reset", Duration::from_millis).filter(|&reset| reset < FURTHEST_DAY),
            refused,
            retry_after: length("retry-after", Duration::from_secs),
        }
    }

    /// True if there is nothing to learn.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// True if the platform says that the day's budget is used up, with any status.
    pub(crate) fn out_of_day(&self) -> bool {
        self.daily_remaining.is_some_and(|left| left <= 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(status: u16, headers: &[(&'static str, &str)]) -> RateLimitHeaders {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().expect("a value"));
        }
        RateLimitHeaders::read(StatusCode::from_u16(status).expect("a status"), &map)
    }

    #[test]
    fn garbage_teaches_nothing() {
        assert!(read(200, &[]).is_empty());
        let garbage =
            [("x-ratelimit-max", "-5"), ("x-ratelimit-limit-daily", "many"), ("x-ratelimit-daily-reset", "0")];
        assert!(read(200, &garbage).is_empty());
        assert!(read(200, &[("x-ratelimit-interval-milliseconds", "99999999999")]).is_empty());
    }

    #[test]
    fn the_room_that_is_left_counts_in_a_429_only() {
        let left = [("x-ratelimit-remaining", "80")];
        assert_eq!((read(200, &left).remaining, read(429, &left).remaining), (None, Some(80)));
    }
}
