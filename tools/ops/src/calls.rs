//! Recorded calls: `show`, and `resolve` for a call whose outcome the relay does not know.

use serde_json::{Value, json};
use shared::idempotency::{Ending, RecordedAnswer, Recorder};
use shared::table::idempotency::{CallId, CallProgress, StoredCall};

use crate::arguments::{Calls, WhichCall};
use crate::error::CommandError;
use crate::print::{Out, members};
use crate::stack::Stack;

pub(crate) async fn run(stack: &Stack, out: Out, command: Calls) -> Result<(), CommandError> {
    match command {
        Calls::Show(which) => show(stack, out, &which).await,
        Calls::Resolve { which, executed, not_executed: _, status, yes } => {
            let ending = executed.then_some(status);
            resolve(stack, out, &which, ending, yes).await
        }
    }
}

/// The id of the record that the arguments name.
fn id(which: &WhichCall) -> Result<CallId, CommandError> {
    if let Some(message) = &which.message {
        return Ok(CallId::of_message(message));
    }
    let key = which.key.as_deref().unwrap_or_default();
    match (CallId::parse(key), &which.caller, &which.resource) {
        (Some(id), ..) => Ok(id),
        (None, Some(caller), Some(resource)) => Ok(CallId::of_key(caller, resource, key)),
        _ => Err(CommandError::Environment(
            "the table holds a digest of caller, resource and key: add --caller and --resource".into(),
        )),
    }
}

async fn find(stack: &Stack, id: &CallId) -> Result<StoredCall, CommandError> {
    let found = stack.app.table.call(id, stack.app.clock.now()).await?;
    found.ok_or_else(|| CommandError::NotFound("no such call is recorded, or its record has ended".into()))
}

async fn show(stack: &Stack, out: Out, which: &WhichCall) -> Result<(), CommandError> {
    let id = id(which)?;
    let stored = find(stack, &id).await?;
    let value = json_of(&id, &stored);
    let text = |name: &str| match &value[name] {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let names = [
        "record",
        "caller",
        "resource",
        "method",
        "path",
        "progress",
        "status",
        "since",
        "sent_after",
        "key_until",
        "kept_until",
    ];
    out.value(&value, &members(&names.map(|name| (name, text(name)))));
    Ok(())
}

/// The record as JSON. An answer's headers and body are not shown, because they may hold personal data.
fn json_of(id: &CallId, stored: &StoredCall) -> Value {
    let (progress, status, since) = match &stored.progress {
        CallProgress::InFlight(until) => ("in_flight", None, Some(*until)),
        CallProgress::Answered((status, _)) => ("answered", Some(*status), None),
        CallProgress::Unknown { since, answer } => {
            ("unknown", answer.as_ref().map(|(status, _)| *status), Some(*since))
        }
    };
    let request = &stored.request;
    json!({
        "record": id.as_str(),
        "caller": request.caller,
        "resource": request.resource,
        "method": request.method,
        "path": request.path,
        "progress": progress,
        "status": status,
        "since": since.map(shared::domain::clock::Millis::rfc3339),
        "sent_after": stored.claimed_at.rfc3339(),
        "key_until": stored.key_holds_until.unwrap_or(stored.kept_until).rfc3339(),
        "kept_until": stored.kept_until.rfc3339(),
    })
}

/// Records what somebody has found out about an unknown call. `executed` is the status that its repeats get; `None` if
/// the call was not executed.
async fn resolve(
    stack: &Stack,
    out: Out,
    which: &WhichCall,
    executed: Option<u16>,
    yes: bool,
) -> Result<(), CommandError> {
    let id = id(which)?;
    let seen = find(stack, &id).await?;
    if !matches!(seen.progress, CallProgress::Unknown { .. }) {
        return Err(CommandError::Refused("the outcome of this call is not unknown: nothing was done".into()));
    }
    let (ending, effect) = match executed {
        Some(status) => (
            Ending::Executed(RecordedAnswer::without_body(status)),
            format!("repeats of the call are answered {status} and not sent"),
        ),
        None => (Ending::NotExecuted, "the next repeat of the call is sent".to_owned()),
    };
    if !yes {
        return Err(CommandError::without_yes(&effect));
    }
    let app = &stack.app;
    let recorder = Recorder::new(app.table.clone(), app.vault.clone(), app.clock.clone());
    let resolved = recorder.resolve(&id, &seen, ending).await;
    if !resolved.map_err(|error| CommandError::NotDone(error.to_string()))? {
        return Err(CommandError::Refused("the record has just changed: nothing was done, look at it again".into()));
    }
    out.value(&json!({ "record": id.as_str(), "executed": executed.is_some(), "status": executed }), &effect);
    Ok(())
}
