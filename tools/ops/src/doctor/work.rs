//! Whether the work goes on: the stop, what is due, the states of all installations.

use std::collections::BTreeMap;
use std::time::Duration;

use shared::domain::clock::Millis;
use shared::domain::status::Status;
use shared::table::StoreError;
use shared::table::app::AppState;
use shared::table::installation::DUE_SHARDS;
use shared::table::mark_budget::PLACES;

use super::Finding;
use crate::progress;
use crate::stack::Stack;
use crate::stop::advice;

/// The schedule comes every minute; two missed ones are not yet a fault.
const LATE: Duration = Duration::from_mins(3);
const SEE_TABLE: &str = "see to the table first";

pub(super) async fn look(stack: &Stack) -> Vec<Finding> {
    let mut findings = vec![breaker(stack).await, refusals(stack).await, oldest_due(stack).await];
    findings.extend(
        states(stack).await.unwrap_or_else(|error| vec![Finding::fail("installations", error.to_string(), SEE_TABLE)]),
    );
    findings
}

async fn breaker(stack: &Stack) -> Finding {
    let what = "refreshing";
    match stack.app.table.breaker().await {
        Err(error) => Finding::fail(what, error.to_string(), SEE_TABLE),
        Ok(Some(open)) if stack.app.clock.now() < open.until => {
            let (said, todo) = advice(&open);
            Finding::fail(what, said, todo)
        }
        Ok(_) => Finding::ok(what, "not stopped"),
    }
}

async fn refusals(stack: &Stack) -> Finding {
    let what = "refusals";
    match stack.app.table.app_state().await {
        Err(error) => Finding::fail(what, error.to_string(), SEE_TABLE),
        Ok(AppState { budget, .. }) => {
            let (taken, waiting) = (budget.taken(stack.app.clock.now()), budget.waiting());
            let said = format!("{taken} of {PLACES} marks are used up, {waiting} refused installations wait for one");
            match (taken, waiting) {
                (_, 1..) => Finding::warn(what, said, "ops list --status Uncertain shows which wait"),
                (1.., _) => Finding::warn(what, said, "ops list --status NeedsReauthorization shows whose they were"),
                (0, _) => Finding::ok(what, said),
            }
        }
    }
}

async fn oldest_due(stack: &Stack) -> Finding {
    let (what, now) = ("due", stack.app.clock.now());
    let mut oldest: Option<Millis> = None;
    for shard in 0..DUE_SHARDS {
        match stack.app.table.due(shard, now, None, 1).await {
            Err(error) => return Finding::fail(what, error.to_string(), SEE_TABLE),
            Ok(page) => oldest = page.entries.iter().map(|due| due.due_at).chain(oldest).min(),
        }
    }
    let waited = oldest.map(|at| now.since(at));
    match waited {
        None => Finding::ok(what, "nothing waits"),
        Some(waited) if waited < LATE => Finding::ok(what, format!("the oldest for {} s", waited.as_secs())),
        Some(waited) => Finding::fail(
            what,
            format!("an installation waits for {} s; the schedule comes every minute", waited.as_secs()),
            "look at the schedule and at the logs of refresh: is it throttled, stopped, or short of time?",
        ),
    }
}

async fn states(stack: &Stack) -> Result<Vec<Finding>, StoreError> {
    let bar = progress::bar("read", None);
    let (mut states, mut unreadable, mut expired) = (BTreeMap::<&str, u64>::new(), 0, 0_u64);
    let (mut from, now) = (None, stack.app.clock.now());
    loop {
        let part = stack.app.table.overviews(from).await?;
        for item in part.items {
            bar.inc(1);
            match item {
                Err(_) => unreadable += 1,
                Ok(one) => {
                    *states.entry(one.status.as_str()).or_default() += 1;
                    let in_use = one.status == Status::Active && !one.minted;
                    let long_over =
                        one.access_expires_at.is_some_and(|at| now.since(at) > Duration::from_hours(24 * 90));
                    expired += u64::from(in_use && long_over);
                }
            }
        }
        from = part.next;
        if from.is_none() {
            break;
        }
    }
    bar.finish_and_clear();
    let count = |status: Status| states.get(status.as_str()).copied().unwrap_or(0);
    let all: Vec<_> = states.iter().map(|(status, count)| format!("{count} {status}")).collect();
    let what = "installations";
    let mut findings = vec![Finding::ok(what, if all.is_empty() { "none yet".to_owned() } else { all.join(", ") })];
    if count(Status::NeedsReauthorization) > 0 {
        let said = format!("{} need somebody to install again", count(Status::NeedsReauthorization));
        findings.push(Finding::warn(
            what,
            said,
            "ops list --status NeedsReauthorization; their reinstall_url is in ops show",
        ));
    }
    if count(Status::Blocked) > 0 {
        let said = format!("{} are answered with something that nobody has classified", count(Status::Blocked));
        findings.push(Finding::warn(what, said, "look for the alarm unclassified in the logs"));
    }
    if expired > 0 {
        let said = format!("{expired} active ones have not been renewed for three months");
        findings.push(Finding::fail(what, said, "ops refresh them; a refresh token ends after a year without use"));
    }
    if unreadable > 0 {
        let advice = "they were written by another version: ops list tells which";
        findings.push(Finding::fail(what, format!("{unreadable} items cannot be read"), advice));
    }
    Ok(findings)
}
