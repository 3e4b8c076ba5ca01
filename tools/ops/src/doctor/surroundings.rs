//! The clock, the platform, the queues.

use std::time::Duration;

use shared::domain::clock::Clock;
use shared::http_client::{ResponseLimits, SendError};

use super::Finding;
use crate::stack::Stack;

/// Limits are kept by clocks; the functions correct what is proven to be further off, in milliseconds.
const OFFSET: u64 = 100;
/// How long the platform may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The largest answer that is read, in bytes.
const LARGEST: usize = 1024 * 1024;

pub(super) async fn look(stack: &Stack) -> Vec<Finding> {
    let mut findings = vec![clock(stack), platform(stack).await];
    for (what, url) in &stack.queues {
        findings.push(match stack.depth(url).await {
            Err(failure) => Finding::fail(what, failure.to_string(), "look at its URL and at sqs:GetQueueAttributes"),
            Ok(0) => Finding::ok(what, "empty"),
            Ok(depth) if *what == "rescue queue" => Finding::warn(
                what,
                format!("{depth} token pairs wait to be stored"),
                "see why refresh cannot store them; they are tried again by themselves",
            ),
            Ok(depth) => Finding::fail(
                what,
                format!("{depth} token pairs could not be stored for days"),
                "docs/operations.md says how they are brought back; they are kept for 14 days",
            ),
        });
    }
    if stack.queues.is_empty() {
        let advice = "set RESCUE_QUEUE_URL: without it a pair that cannot be stored is lost";
        findings.push(Finding::warn("rescue queue", "none", advice));
    }
    findings
}

/// The table's answers, which came before, have corrected the stack's clock if this machine's is off.
fn clock(stack: &Stack) -> Finding {
    let offset = Clock::system().now().0.abs_diff(stack.app.clock.now().0);
    if offset <= OFFSET {
        Finding::ok("clock", "agrees with DynamoDB's")
    } else {
        let said = format!("this machine's is off by {offset} ms, by DynamoDB's");
        Finding::warn(
            "clock",
            said,
            "set it: the commands correct it, but signatures of requests to AWS fail in the end",
        )
    }
}

/// Any answer will do: without a token it is a refusal.
async fn platform(stack: &Stack) -> Finding {
    let (what, url) = ("platform", &stack.app.config.api_url);
    match stack.app.connections.get(url, ResponseLimits { time: PATIENCE, body: LARGEST }).await {
        Ok(answer) if answer.status.is_server_error() => {
            let advice = "see the platform's status page; tokens live on meanwhile";
            Finding::warn(what, format!("{url} answers {}", answer.status), advice)
        }
        Ok(_) => Finding::ok(what, format!("{url} answers")),
        Err(failure) => {
            let why = if matches!(failure, SendError::TimedOut) { "no answer in 10 s" } else { "not reached" };
            let advice = "see this machine's network, then the platform's status page";
            Finding::fail(what, format!("{url}: {why}"), advice)
        }
    }
}
