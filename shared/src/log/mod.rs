//! One JSON object a line on standard output: what happened, in which invocation, and the metrics of it.
//!
//! The same names everywhere: `request_id` and `trace_id` (of the invocation, on every line of it), `resource`,
//! `caller`, `outcome`, `status`, `generation`, durations as `…_ms`, and `alarm` on what somebody must look at. A field
//! that is named like one of [`metrics::METRICS`] makes the line a metric, too.

mod line;
pub mod metrics;

use std::io::Write as _;

use tracing::level_filters::LevelFilter;
use tracing::{Level, Metadata};
use tracing_subscriber::filter::{EnvFilter, FilterExt as _, filter_fn};
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

use self::line::{INVOCATION, Lines};
use crate::config::variable;

/// Crates whose words may be logged below `ERROR`. Others, such as HTTP and AWS clients, would print headers and
/// bodies there, and with them tokens: no setting of `RUST_LOG` reaches them.
const OURS: [&str; 5] = ["shared", "callback", "refresh", "relay", "webhook"];

/// Sets the process's logging up. A second call changes nothing.
pub fn start() {
    let directives = variable("RUST_LOG").unwrap_or_default();
    let builder = || EnvFilter::builder().with_default_directive(LevelFilter::INFO.into());
    let (filter, fault) = match builder().parse(directives) {
        Ok(filter) => (filter, None),
        Err(error) => (builder().parse_lossy(""), Some(error)),
    };
    begin(filter, |line| {
        // Standard output is the log; without it there is nobody to tell.
        let _ = std::io::stdout().lock().write_all(line);
    });
    if let Some(error) = fault {
        tracing::warn!(%error, "RUST_LOG is not understood; info is taken");
    }
}

/// Hands everything that could ever be logged to a test.
pub fn capture(write: impl Fn(&[u8]) + Send + Sync + 'static) {
    begin(EnvFilter::builder().with_default_directive(LevelFilter::TRACE.into()).parse_lossy(""), write);
}

fn begin(filter: EnvFilter, write: impl Fn(&[u8]) + Send + Sync + 'static) {
    // An invocation's own span is heard whatever the level, since its ids belong on every line.
    let told = filter.and(filter_fn(is_told)).or(filter_fn(is_invocation));
    let _already_set = tracing_subscriber::registry().with(Lines::new(write).with_filter(told)).try_init();
}

fn is_told(metadata: &Metadata<'_>) -> bool {
    *metadata.level() <= Level::ERROR || OURS.iter().any(|name| is_of(metadata.target(), name))
}

fn is_invocation(metadata: &Metadata<'_>) -> bool {
    metadata.is_span() && metadata.name() == INVOCATION
}

fn is_of(target: &str, name: &str) -> bool {
    target.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_that_would_print_tokens_are_not_heard() {
        for (target, ours) in
            [("shared::token", true), ("relay", true), ("relayed", false), ("hyper::proto", false), ("aws_sdk", false)]
        {
            assert_eq!(OURS.iter().any(|name| is_of(target, name)), ours, "{target}");
        }
    }
}
