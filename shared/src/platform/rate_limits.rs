//! The rate-limit headers of one response of the platform. Pure.

use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{HeaderMap, HeaderName, StatusCode};

use crate::domain::limits::{FURTHEST_DAY, StatedLimits};

/// The burst limit: the most requests in an interval.
pub(crate) const MAX: HeaderName = HeaderName::from_static("x-ratelimit-max");
/// The requests that are left in the present interval.
pub(crate) const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
/// The length of the interval, in milliseconds.
pub(crate) const INTERVAL: HeaderName = HeaderName::from_static("x-ratelimit-interval-milliseconds");
/// The daily limit.
pub(crate) const DAILY_MAX: HeaderName = HeaderName::from_static("x-ratelimit-limit-daily");
/// The requests that are left of the day.
pub(crate) const DAILY_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-daily-remaining");
/// The time until the day ends, in milliseconds.
pub(crate) const DAILY_RESET: HeaderName = HeaderName::from_static("x-ratelimit-daily-reset");

/// Plausible lengths of an interval, in milliseconds. Any other value is ignored.
const PLAUSIBLE_INTERVALS: std::ops::RangeInclusive<u64> = 100..=600_000;

/// The rate-limit headers of one response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RateLimitHeaders {
    pub(crate) limits: StatedLimits,
    /// `X-RateLimit-Remaining` of a 429. If it is above 0, the resource has requests left, and the 429 is the limit of one
    /// endpoint.
    ///
    /// In other responses this header is ignored. It also counts the requests of other programs for the same app, the
    /// shape of its window is not documented, and it does not contain our requests that are under way.
    pub(crate) remaining: Option<i64>,
    pub(crate) daily_remaining: Option<i64>,
    pub(crate) daily_reset: Option<Duration>,
    /// True for a 429.
    pub(crate) refused: bool,
    pub(crate) retry_after: Option<Duration>,
}

impl RateLimitHeaders {
    /// Reads the headers. A header that is absent or malformed is ignored, and so is a limit or time of zero or less.
    pub(crate) fn read(status: StatusCode, headers: &HeaderMap) -> Self {
        let number = |name: &HeaderName| headers.get(name)?.to_str().ok()?.trim().parse::<i64>().ok();
        let positive = |name: &HeaderName| number(name).filter(|&n| n > 0);
        let count = |name: &HeaderName| positive(name).and_then(|n| u32::try_from(n).ok());
        let interval = positive(&INTERVAL).and_then(|n| u64::try_from(n).ok());
        let length = |name: &HeaderName, unit: fn(u64) -> Duration| positive(name)?.try_into().ok().map(unit);
        let refused = status == StatusCode::TOO_MANY_REQUESTS;
        Self {
            limits: StatedLimits {
                burst: count(&MAX),
                interval: interval.filter(|ms| PLAUSIBLE_INTERVALS.contains(ms)).map(Duration::from_millis),
                daily: count(&DAILY_MAX),
            },
            remaining: refused.then(|| number(&REMAINING)).flatten(),
            daily_remaining: number(&DAILY_REMAINING),
            daily_reset: length(&DAILY_RESET, Duration::from_millis).filter(|&reset| reset < FURTHEST_DAY),
            refused,
            retry_after: length(&RETRY_AFTER, Duration::from_secs),
        }
    }

    /// True if no header was read and the status is not 429.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// True if the platform says, with any status, that no request is left of the day.
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
