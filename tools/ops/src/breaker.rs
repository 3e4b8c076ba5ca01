//! The pause of all refreshing (`pause`), its end and the end of an open circuit breaker (`resume`), and advice for both.

use std::time::Duration;

use serde_json::json;
use shared::domain::clock::Millis;
use shared::domain::resource::Resource;
use shared::table::StoreError;
use shared::table::app::{BreakerReason, OpenBreaker};
use shared::table::installation::LEASE;
use shared::token::schedule::GRACE;

use crate::error::CommandError;
use crate::print::{Out, note};
use crate::progress;
use crate::stack::Stack;

/// A process claims no installation any more after this time: it has read the state before the pause, and the answer to
/// that read and the read of the sealing secret take up to 7 s each.
const NOTICED: Duration = Duration::from_secs(14);
/// The time after the start of a pause after which no renewal is under way.
pub(crate) const SETTLED: Duration = NOTICED.saturating_add(LEASE);
/// At most this many installations are named.
const SHOWN: usize = 20;

/// Pauses all refreshing, and waits until no renewal is under way. An installation whose answer is missing is presented
/// once more during the pause, as long as the platform repeats the answer.
pub(crate) async fn pause(stack: &Stack, out: Out) -> Result<(), CommandError> {
    stack.app.table.pause(stack.app.clock.now()).await?;
    wait(SETTLED).await;
    let mut left = in_doubt(stack).await?;
    if !left.is_empty() {
        wait(GRACE + LEASE).await;
        left = in_doubt(stack).await?;
    }
    if left.is_empty() {
        let text =
            "no refresh token is used any more, until ops resume. Calls go on with the access tokens that are valid";
        out.value(&json!({ "paused": true }), text);
        return Ok(());
    }
    for resource in left.iter().take(SHOWN) {
        note(&format!("{resource}: the platform's answer to its last renewal is missing"));
    }
    Err(CommandError::NotDone(format!(
        "refreshing is paused, but the stored pairs of {} installations may be spent. If no other system renews them, a \
         renewal decides: ops resume --yes, ops refresh RESOURCE for each of them, and ops pause again",
        left.len()
    )))
}

async fn wait(time: Duration) {
    let bar = progress::bar("waiting (s)", Some(time.as_secs()));
    for _ in 0..time.as_secs() {
        tokio::time::sleep(Duration::from_secs(1)).await;
        bar.inc(1);
    }
    bar.finish_and_clear();
}

/// The installations whose refresh token may have been presented without a known answer. Reads the whole table.
async fn in_doubt(stack: &Stack) -> Result<Vec<Resource>, StoreError> {
    let (mut found, mut from) = (Vec::new(), None);
    loop {
        let page = stack.app.table.overviews(from).await?;
        for one in page.items {
            let one = one?;
            if one.in_doubt {
                found.push(one.resource);
            }
        }
        from = page.next;
        if from.is_none() {
            return Ok(found);
        }
    }
}

/// Ends a pause. Without a pause, closes the circuit breaker: with `forget`, the refusals so far were true, and
/// installations that wait for a mark no longer count as signs of an incident. `resume` never makes further marks
/// possible.
pub(crate) async fn resume(stack: &Stack, out: Out, forget: bool, yes: bool) -> Result<(), CommandError> {
    let (table, now) = (&stack.app.table, stack.app.clock.now());
    let state = table.app_state().await?;
    let is_paused = state.paused_at.is_some();
    if is_paused && !yes {
        return Err(CommandError::without_yes(
            "this would let this system renew all installations again. Another system that renews one of them loses its \
             token, or takes the token of this one",
        ));
    }
    if forget {
        table.forget_waiting().await?;
    }
    if is_paused {
        table.end_pause().await?;
        let open = state.breaker.filter(|open| now < open.until).map(|open| open.reason.as_str());
        let text = match open {
            None => "the pause is over; refreshing continues within 5 s".to_owned(),
            Some(reason) => format!(
                "the pause is over, and the circuit breaker is still open ({reason}): ops resume closes it, too"
            ),
        };
        out.value(&json!({ "was_stopped": "paused", "still_stopped": open, "forgotten": forget }), &text);
        return Ok(());
    }
    let before = table.close_breaker().await?;
    let was = before.as_ref().filter(|open| now < open.until).map(|open| open.reason.as_str());
    let text = match was {
        None => "the circuit breaker was not open".to_owned(),
        Some(reason) => {
            format!("the circuit breaker was open ({reason}) and is closed; refreshing continues within 5 s")
        }
    };
    out.value(&json!({ "was_stopped": was, "still_stopped": null, "forgotten": forget }), &text);
    Ok(())
}

/// The meaning of a pause since `at`, and the operator's next step.
pub(crate) fn advice_on_pause(at: Millis) -> (String, &'static str) {
    (
        format!(
            "an operator has paused all refreshing (ops pause) at {}; access tokens end within a day",
            at.rfc3339()
        ),
        "if no other system renews the installations, run ops resume --yes; otherwise stay paused until this stack is \
         removed (docs/moving.md)",
    )
}

/// The meaning of an open breaker, and the operator's next step.
pub(crate) fn advice(open: &OpenBreaker) -> (&'static str, &'static str) {
    match open.reason {
        BreakerReason::WrongClient => (
            "the platform refuses the app's client id and secret; nothing is refreshed",
            "compare the app secret with the app's page in the marketplace; refreshing continues after the secret changes",
        ),
        BreakerReason::BadRequest => (
            "the platform does not accept the token request; nothing is refreshed",
            "search the logs of refresh for the alarm bad_request: its line has the platform's message",
        ),
        BreakerReason::MassRefusal => (
            "the platform has refused so many grants that the circuit breaker opened; the finding \"refusals\" has the number of marks",
            "check whether the platform has an incident; after its end, run ops resume",
        ),
    }
}
