//! Checks the platform and the queues.

use std::time::Duration;

use shared::http_client::{ResponseLimits, SendError};

use super::Finding;
use crate::stack::{RESCUE_QUEUE, Stack};

/// Time-out of a request to the platform.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The largest accepted response, in bytes.
const MAX_BODY: usize = 1024 * 1024;

pub(super) async fn check(stack: &Stack) -> Vec<Finding> {
    let mut findings = vec![platform(stack).await];
    for (what, url) in &stack.queues {
        let finding = queue(stack, what, url, |depth| {
            if *what == RESCUE_QUEUE {
                Finding::warn(
                    what,
                    format!("{depth} token pairs wait to be stored"),
                    "find in the logs of refresh why they are not stored; they are retried automatically",
                )
            } else {
                Finding::fail(
                    what,
                    format!("{depth} token pairs could not be stored for days"),
                    "docs/operations.md (\"Rescue failures\") describes the recovery; SQS deletes each of them 14 days after it was granted",
                )
            }
        });
        findings.push(finding.await);
    }
    findings.extend(overflow(stack).await);
    findings.extend(calls(stack).await);
    if stack.queues.is_empty() {
        let advice = "set RESCUE_QUEUE_URL: without it a token pair that cannot be stored is lost";
        findings.push(Finding::warn("rescue queue", "there is none", advice));
    }
    findings
}

/// Checks one queue. `filled` makes the finding of a queue that holds this number of messages.
async fn queue(stack: &Stack, what: &'static str, url: &str, filled: impl FnOnce(u64) -> Finding) -> Finding {
    match stack.depth(url).await {
        Err(failure) => {
            Finding::fail(what, failure.to_string(), "check the queue's URL and your permission sqs:GetQueueAttributes")
        }
        Ok(0) => Finding::ok(what, "empty"),
        Ok(depth) => filled(depth),
    }
}

/// Checks the queues of events that the bus did not take.
async fn overflow(stack: &Stack) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(url) = &stack.overflow_queue_url {
        let finding = queue(stack, "overflow queue", url, |depth| {
            Finding::warn(
                "overflow queue",
                format!("{depth} events wait for the bus"),
                "find in the logs of webhook why the bus does not take them; they are retried automatically",
            )
        });
        findings.push(finding.await);
    }
    if let Some(url) = &stack.overflow_failures_url {
        const WHAT: &str = "dead-letter queue of the overflow queue";
        let finding = queue(stack, WHAT, url, |depth| {
            Finding::fail(
                WHAT,
                format!("{depth} events could not be published for days"),
                "docs/operations.md (\"Events on the overflow queue\") describes the recovery; SQS deletes each of them 14 days after it arrived",
            )
        });
        findings.push(finding.await);
    }
    if stack.app.config.event_bus_name.is_none() {
        let said = "there is none: webhooks other than those about installations are ignored";
        findings.push(Finding::ok("event bus", said));
    }
    findings
}

/// Checks the queues of the queue door. A backlog of calls is no fault.
async fn calls(stack: &Stack) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(url) = &stack.calls.calls {
        const WHAT: &str = "queue of calls";
        let finding = queue(stack, WHAT, url, |depth| Finding::ok(WHAT, format!("{depth} calls wait")));
        findings.push(finding.await);
    }
    if let Some(url) = &stack.calls.results {
        const WHAT: &str = "queue of results";
        let finding = queue(stack, WHAT, url, |depth| Finding::ok(WHAT, format!("{depth} results wait to be read")));
        findings.push(finding.await);
    }
    if let Some(url) = &stack.calls.failures {
        const WHAT: &str = "dead-letter queue of the queue of calls";
        let finding = queue(stack, WHAT, url, |depth| {
            Finding::warn(
                WHAT,
                format!("{depth} messages are no calls"),
                "docs/operations.md (\"Messages that are no calls\"): the attribute Reason says why; they are kept for 14 days",
            )
        });
        findings.push(finding.await);
    }
    findings
}

/// Checks that the platform answers. The request has no token, so a refusal is expected.
async fn platform(stack: &Stack) -> Finding {
    let (what, url) = ("platform", &stack.app.config.api_url);
    match stack.app.connections.get(url, ResponseLimits { time: TIMEOUT, body: MAX_BODY }).await {
        Ok(answer) if answer.status.is_server_error() => {
            let advice = "see the platform's status page; stored tokens stay valid meanwhile";
            Finding::warn(what, format!("{url} answers {}", answer.status), advice)
        }
        Ok(_) => Finding::ok(what, format!("{url} answers")),
        Err(failure) => {
            let why = if matches!(failure, SendError::TimedOut) { "no answer in 10 s" } else { "not reached" };
            let advice = "check this machine's network, then the platform's status page";
            Finding::fail(what, format!("{url}: {why}"), advice)
        }
    }
}
