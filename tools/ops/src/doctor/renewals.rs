//! Checks the renewals: the circuit breaker, the refusals, the oldest due installation, and the states of all installations.

use std::collections::BTreeMap;
use std::time::Duration;

use shared::domain::clock::Millis;
use shared::domain::status::Status;
use shared::table::StoreError;
use shared::table::app::AppState;
use shared::table::installation::DUE_SHARDS;
use shared::table::mark_budget::PLACES;

use super::Finding;
use crate::breaker::advice;
use crate::progress;
use crate::stack::Stack;

/// The age of a due installation from which it is a fault. The schedule runs every minute, and two missed runs are no fault
/// yet.
const LATE: Duration = Duration::from_mins(3);
const SEE_TABLE: &str = "repair the access to the table first";

pub(super) async fn check(stack: &Stack) -> Vec<Finding> {
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
            let (said, advice) = advice(&open);
            Finding::fail(what, said, advice)
        }
        Ok(_) => Finding::ok(what, "the circuit breaker is closed"),
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
                (_, 1..) => Finding::warn(what, said, "ops list --status Uncertain lists those that wait"),
                (1.., _) => {
                    Finding::warn(what, said, "ops list --status NeedsReauthorization lists the marked installations")
                }
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
            Ok(page) => oldest = page.items.iter().map(|due| due.due_at).chain(oldest).min(),
        }
    }
    let waited = oldest.map(|at| now.since(at));
    match waited {
        None => Finding::ok(what, "no installation is due"),
        Some(waited) if waited < LATE => {
            Finding::ok(what, format!("the oldest has been due for {} s", waited.as_secs()))
        }
        Some(waited) => Finding::fail(
            what,
            format!("an installation has been due for {} s; the schedule runs every minute", waited.as_secs()),
            "check the schedule and the logs of refresh: the function may be throttled, disabled or short of time",
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
                    let in_use = one.status.has_live_pair() && !one.minted;
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
        let said = format!("{} need a person to install the app again", count(Status::NeedsReauthorization));
        findings.push(Finding::warn(
            what,
            said,
            "ops list --status NeedsReauthorization lists them; ops show prints the reinstall_url",
        ));
    }
    if count(Status::Blocked) > 0 {
        let said = format!("{} get answers of the platform that are not classified", count(Status::Blocked));
        findings.push(Finding::warn(what, said, "search the logs for the alarm unclassified"));
    }
    if expired > 0 {
        let said = format!("{expired} active installations have not been renewed for three months");
        findings.push(Finding::fail(
            what,
            said,
            "run ops refresh for each: a refresh token expires after a year without use",
        ));
    }
    if unreadable > 0 {
        let advice = "another version has written them: ops list names them";
        findings.push(Finding::fail(what, format!("{unreadable} items cannot be read"), advice));
    }
    Ok(findings)
}
