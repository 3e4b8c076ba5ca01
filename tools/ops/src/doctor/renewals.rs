//! Checks the renewals: the circuit breaker, the refusals, the oldest due installation, and the states of all installations.

use std::collections::BTreeMap;
use std::time::Duration;

use shared::domain::clock::Millis;
use shared::domain::pace::{Pace, installations_carried};
use shared::domain::status::Status;
use shared::table::StoreError;
use shared::table::app::AppState;
use shared::table::installation::DUE_SHARDS;
use shared::table::mark_budget::PLACES;

use super::{Finding, State};
use crate::breaker::{advice, advice_on_pause};
use crate::progress;
use crate::stack::Stack;

/// The age of a due installation from which it is a fault. The schedule runs every minute, and two missed runs are no fault
/// yet.
const LATE: Duration = Duration::from_mins(3);
/// A token is due at 60 to 80 % of its life of a day. If it has been due for this time, it may expire in an hour.
const EXPIRING: Duration = Duration::from_hours(4);
const SEE_TABLE: &str = "repair the access to the table first";

pub(super) async fn check(stack: &Stack) -> Vec<Finding> {
    vec![breaker(stack).await, refusals(stack).await, oldest_due(stack).await]
}

/// The checks that read the whole table.
pub(super) async fn check_installations(stack: &Stack) -> Vec<Finding> {
    let further = async {
        let pace = stack.app.table.app_state().await?.pace;
        let counts_minting = stack.app.clock.now() < pace.counts_minting_until;
        let (states, renewed) = states(stack, counts_minting).await?;
        Ok::<_, StoreError>([vec![token_endpoint(stack, &pace, renewed)], states].concat())
    };
    further.await.unwrap_or_else(|error| vec![Finding::fail("installations", error.to_string(), SEE_TABLE)])
}

async fn breaker(stack: &Stack) -> Finding {
    let what = "refreshing";
    let (paused_at, open) = match stack.app.table.app_state().await {
        Err(error) => return Finding::fail(what, error.to_string(), SEE_TABLE),
        Ok(AppState { paused_at, breaker, .. }) => {
            (paused_at, breaker.filter(|open| stack.app.clock.now() < open.until))
        }
    };
    match (paused_at, open) {
        (None, None) => Finding::ok(what, "the circuit breaker is closed"),
        (Some(at), None) => {
            let (said, advice) = advice_on_pause(at);
            Finding::fail(what, said, advice)
        }
        (paused_at, Some(open)) => {
            let (said, advice) = advice(&open);
            let too = if paused_at.is_some() { "; an operator has paused all refreshing, too (ops pause)" } else { "" };
            Finding::fail(what, format!("{said}{too}"), advice)
        }
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
        match stack.app.table.due(shard, Millis(0), now, None, 1).await {
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
        Some(waited) => {
            let said =
                format!("an installation has been due for {} s; the schedule runs every minute", waited.as_secs());
            let ceiling = stack.app.config.token_requests_per_minute;
            match stack.app.table.app_state().await {
                Ok(AppState { pace, .. }) if pace.limit(ceiling, now).is_some() && waited < EXPIRING => Finding::warn(
                    what,
                    format!("{said}, at the pace of the token endpoint (below)"),
                    "wait if the pace carries all installations; a token lasts hours after it is due",
                ),
                _ => Finding::fail(
                    what,
                    said,
                    "check the schedule and the logs of refresh: the function may be throttled, disabled or short of time",
                ),
            }
        }
    }
}

/// The pace of the token endpoint, and its capacity for the `renewed` installations.
fn token_endpoint(stack: &Stack, pace: &Pace, renewed: u64) -> Finding {
    let (what, now, ceiling) = ("token endpoint", stack.app.clock.now(), stack.app.config.token_requests_per_minute);
    let Some(limit) = pace.limit(ceiling, now) else {
        return Finding::ok(what, "no pace is in force: the platform has not answered 429 lately");
    };
    let origin = if ceiling == Some(limit) { "set by TOKEN_REQUESTS_PER_MINUTE" } else { "learnt from a 429" };
    let carried = installations_carried(limit);
    let pause = if now < pace.paused_until {
        format!("; no request before {}, because the platform has answered 429", pace.paused_until.rfc3339())
    } else {
        String::new()
    };
    let said = format!(
        "{limit} requests a minute ({origin}), enough for about {carried} installations; {renewed} renew their tokens there{pause}"
    );
    let advice =
        "ask the platform for a higher limit, or let agencies install the app: their locations' tokens are minted";
    match load(renewed, carried) {
        State::Ok | State::Skipped => Finding::ok(what, said),
        State::Warn => Finding::warn(what, said, advice),
        State::Fail => Finding::fail(what, said, advice),
    }
}

/// A pace is a defect from half of the installations that it carries, so that there is time to act.
fn load(renewed: u64, carried: u64) -> State {
    match renewed {
        _ if renewed > carried => State::Fail,
        _ if renewed * 2 >= carried => State::Warn,
        _ => State::Ok,
    }
}

/// The states of all installations, and the number of those that the schedule renews at the token endpoint.
async fn states(stack: &Stack, counts_minting: bool) -> Result<(Vec<Finding>, u64), StoreError> {
    let bar = progress::bar("read", None);
    let (mut states, mut unreadable, mut expired) = (BTreeMap::<&str, u64>::new(), 0, 0_u64);
    let mut renewed = 0;
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
                    renewed += u64::from(one.due_at.is_some() && (!one.minted || counts_minting));
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
    Ok((findings, renewed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_is_a_defect_from_half_of_what_it_carries_and_a_fault_above_all_of_it() {
        let loads = [0, 2_519, 2_520, 5_040, 5_041].map(|renewed| load(renewed, installations_carried(5)));
        assert_eq!(loads, [State::Ok, State::Ok, State::Warn, State::Warn, State::Fail]);
    }
}
