//! The stop of all refreshing: what has caused it, and how it is lifted.

use serde_json::json;
use shared::table::app::{BreakerReason, OpenBreaker};

use crate::ending::Failure;
use crate::print::Out;
use crate::stack::Stack;

/// Closes the breaker. `forget` says that the refusals were true: those that wait for a mark no longer count as signs of
/// an incident. Neither makes further marks possible.
pub(crate) async fn resume(stack: &Stack, out: Out, forget: bool) -> Result<(), Failure> {
    let (table, now) = (&stack.app.table, stack.app.clock.now());
    if forget {
        table.forget_waiting().await?;
    }
    let before = table.close_breaker().await?;
    let was = before.as_ref().filter(|open| now < open.until).map(|open| open.reason.as_str());
    let text = match was {
        None => "refreshing was not stopped".to_owned(),
        Some(reason) => format!("refreshing was stopped ({reason}) and goes on within 5 s"),
    };
    out.value(&json!({ "was_stopped": was, "forgotten": forget }), &text);
    Ok(())
}

/// What an open breaker means and what to do.
pub(crate) fn advice(open: &OpenBreaker) -> (&'static str, &'static str) {
    match open.reason {
        BreakerReason::WrongClient => (
            "the platform refuses the app's client id and secret; nothing is refreshed",
            "compare the app secret with the app's page in the marketplace; refreshing goes on when it changes",
        ),
        BreakerReason::BadRequest => (
            "the platform does not accept the token request; nothing is refreshed",
            "look for the alarm bad_request in the logs of refresh: it has the platform's words",
        ),
        BreakerReason::MassRefusal => (
            "the platform has refused so many grants that refreshing was stopped; ops doctor says how many marks were made",
            "see whether the platform has an incident; when it is over: ops resume",
        ),
    }
}
