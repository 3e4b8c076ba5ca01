//! The platform's rate-limit headers of one answer.

use std::time::Duration;

use http::{HeaderMap, StatusCode};

use crate::domain::limits::{FURTHEST_DAY, ObservedLimits};

/// Intervals in milliseconds that can be right. Others are ignored.
const PLAUSIBLE_INTERVALS: std::ops::RangeInclusive<u64> = 100..=600_000;

/// The rate-limit headers of one answer. A header that is absent or malformed is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RateLimitHeaders {
    pub(crate) limits: ObservedLimits,
    /// `X-RateLimit-Remaining` of a 429. If it is above 0, the 429 is about one endpoint and not about the resource.
    ///
    /// It is not read from other answers. It also counts requests of other users of the app, in a window that is not
    /// documented, and it does not count our requests on their way.
    pub(crate) remaining: Option<i64>,
    pub(crate) daily_remaining: Option<i64>,
    pub(crate) daily_reset: Option<Duration>,
    /// True for a 429.
    pub(crate) refused: bool,
    pub(crate) retry_after: Option<Duration>,
}

impl RateLimitHeaders {
    /// Reads the headers. It ignores malformed ones, and limits and times that are zero or negative.
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

    /// True if the answer states nothing about limits.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// True if the day's budget is used up, whatever the status of the answer.
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
    fn malformed_headers_are_ignored() {
        assert!(read(200, &[]).is_empty());
        let garbage =
            [("x-ratelimit-max", "-5"), ("x-ratelimit-limit-daily", "many"), ("x-ratelimit-daily-reset", "0")];
        assert!(read(200, &garbage).is_empty());
        assert!(read(200, &[("x-ratelimit-interval-milliseconds", "99999999999")]).is_empty());
    }

    #[test]
    fn the_remaining_count_is_read_from_a_429_only() {
        let left = [("x-ratelimit-remaining", "80")];
        assert_eq!((read(200, &left).remaining, read(429, &left).remaining), (None, Some(80)));
    }
}
