//! Structured logs: one JSON object a line on standard output. A line can also be a metric.
//!
//! A field has the same name in all lines: `request_id` and `trace_id` (of the invocation, on each of its lines),
//! `resource`, `caller`, `outcome`, `status`, `generation`, durations as `…_ms`. A line with the field `alarm` needs an
//! operator. A field with the name of one of [`metrics::METRICS`] makes the line a metric.

mod line;
pub mod metrics;

use std::io::Write as _;

use tracing::level_filters::LevelFilter;
use tracing::{Level, Metadata};
use tracing_subscriber::filter::{FilterExt as _, ParseError, Targets, filter_fn};
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

use self::line::{INVOCATION, Lines};
use crate::config::variable;

/// The crates that may log below `ERROR`. At those levels, HTTP and AWS clients print headers and bodies, which contain
/// tokens. No setting of `RUST_LOG` enables them.
const OURS: [&str; 5] = ["shared", "callback", "refresh", "relay", "webhook"];

/// Starts logging in this process. A second call changes nothing.
pub fn start() {
    let (enabled, fault) = match targets(&variable("RUST_LOG").unwrap_or_default()) {
        Ok(targets) => (targets, None),
        Err(fault) => (all_at(LevelFilter::INFO), Some(fault)),
    };
    begin(enabled, |line| {
        // Standard output is the log. Its error cannot be reported anywhere.
        let _ = std::io::stdout().lock().write_all(line);
    });
    if let Some(error) = fault {
        tracing::warn!(%error, "RUST_LOG is malformed; the level is info");
    }
}

/// Passes all lines, at every level, to a test.
pub fn capture(write: impl Fn(&[u8]) + Send + Sync + 'static) {
    begin(all_at(LevelFilter::TRACE), write);
}

/// Reads `info,shared=debug`: a level for all targets, and levels for single targets and what is below them. An empty
/// text means `info`.
fn targets(directives: &str) -> Result<Targets, ParseError> {
    let directives: Vec<_> = directives.split(',').map(str::trim).filter(|one| !one.is_empty()).collect();
    if directives.is_empty() { Ok(all_at(LevelFilter::INFO)) } else { directives.join(",").parse() }
}

fn all_at(level: LevelFilter) -> Targets {
    Targets::new().with_default(level)
}

fn begin(targets: Targets, write: impl Fn(&[u8]) + Send + Sync + 'static) {
    // The level hints let `tracing` skip the events of libraries without a call of the filter.
    let ours = filter_fn(may_be_logged).with_max_level_hint(LevelFilter::TRACE);
    // The span of an invocation is recorded at every level, because its ids belong on every line.
    let invocation = filter_fn(is_invocation).with_max_level_hint(LevelFilter::INFO);
    let enabled = targets.and(ours).or(invocation);
    let _already_set = tracing_subscriber::registry().with(Lines::new(write).with_filter(enabled)).try_init();
}

fn may_be_logged(metadata: &Metadata<'_>) -> bool {
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
    fn directives_are_levels_and_targets() {
        for (directives, target, finest) in [
            ("", "relay", Level::INFO),
            (" , ", "relay", Level::INFO),
            ("warn", "relay", Level::WARN),
            ("DEBUG", "shared::token", Level::DEBUG),
            ("info,shared=debug", "relay", Level::INFO),
            ("info, shared=debug,", "shared::token", Level::DEBUG),
            ("error,shared::token=trace", "shared::token::mint", Level::TRACE),
            ("error,shared::token=trace", "shared::quota", Level::ERROR),
            ("info,shared", "shared", Level::TRACE),
        ] {
            let targets = targets(directives).expect("directives");
            for level in [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE] {
                assert_eq!(targets.would_enable(target, &level), level <= finest, "{directives:?}: {target} {level}");
            }
        }
        assert!(!targets("relay=off").expect("directives").would_enable("relay", &Level::ERROR));
        assert!(targets("shared=loud").is_err() && targets("a=b=c").is_err());
    }

    #[test]
    fn clients_that_would_print_tokens_are_not_logged() {
        for (target, ours) in
            [("shared::token", true), ("relay", true), ("relayed", false), ("hyper::proto", false), ("aws_sdk", false)]
        {
            assert_eq!(OURS.iter().any(|name| is_of(target, name)), ours, "{target}");
        }
    }
}
