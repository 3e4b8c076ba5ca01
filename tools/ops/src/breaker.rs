//! The circuit breaker of all refreshing: the command `pause`, which opens it, `resume`, which closes it, and advice for each reason of an open
//! breaker.

use std::time::Duration;

use serde_json::json;
use shared::domain::clock::Millis;
use shared::table::app::{BreakerReason, OpenBreaker};
use shared::table::installation::LEASE;

use crate::error::CommandError;
use crate::print::Out;
use crate::stack::Stack;

/// A process notices an open breaker after this time at the latest: it keeps the state for 2 s, and the write of a claim
/// takes up to 7 s.
const NOTICED: Duration = Duration::from_secs(9);

/// Opens the breaker until an operator closes it, and waits until no lease that was claimed before is held.
pub(crate) async fn pause(stack: &Stack, out: Out) -> Result<(), CommandError> {
    let open = OpenBreaker { reason: BreakerReason::Paused, until: Millis(i64::MAX), fingerprint: None };
    stack.app.table.open_breaker(&open).await?;
    let wait = NOTICED + LEASE;
    let bar = crate::progress::bar("waiting (s)", Some(wait.as_secs()));
    for _ in 0..wait.as_secs() {
        tokio::time::sleep(Duration::from_secs(1)).await;
        bar.inc(1);
    }
    bar.finish_and_clear();
    let text = "no refresh token is used any more, until ops resume. Calls go on with the access tokens that are valid";
    out.value(&json!({ "paused": true }), text);
    Ok(())
}

/// Closes the breaker. With `forget`, the refusals so far were true: installations that wait for a mark no longer count as
/// signs of an incident. `resume` never makes further marks possible.
pub(crate) async fn resume(stack: &Stack, out: Out, forget: bool) -> Result<(), CommandError> {
    let (table, now) = (&stack.app.table, stack.app.clock.now());
    if forget {
        table.forget_waiting().await?;
    }
    let before = table.close_breaker().await?;
    let was = before.as_ref().filter(|open| now < open.until).map(|open| open.reason.as_str());
    let text = match was {
        None => "the circuit breaker was not open".to_owned(),
        Some(reason) => {
            format!("the circuit breaker was open ({reason}) and is closed; refreshing continues within 5 s")
        }
    };
    out.value(&json!({ "was_stopped": was, "forgotten": forget }), &text);
    Ok(())
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
        BreakerReason::Paused => (
            "an operator has paused all refreshing (ops pause); access tokens end within a day",
            "run ops resume, unless the installations have moved to another system",
        ),
        BreakerReason::MassRefusal => (
            "the platform has refused so many grants that the circuit breaker opened; the finding \"refusals\" has the number of marks",
            "check whether the platform has an incident; after its end, run ops resume",
        ),
    }
}
