//! The circuit breaker of all refreshing: the command `resume`, which closes it, and advice for each reason of an open
//! breaker.

use serde_json::json;
use shared::table::app::{BreakerReason, OpenBreaker};

use crate::error::CommandError;
use crate::print::Out;
use crate::stack::Stack;

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
        BreakerReason::MassRefusal => (
            "the platform has refused so many grants that the circuit breaker opened; the finding \"refusals\" has the number of marks",
            "check whether the platform has an incident; after its end, run ops resume",
        ),
    }
}
