//! The commands that list, show, renew and revoke installations.

use aws_sdk_lambda::primitives::Blob;
use serde_json::{Map, Value, json};
use shared::domain::clock::Millis;
use shared::domain::resource::{Kind, Resource};
use shared::install::Uninstalled;
use shared::table::reconciliation::Comparison;
use shared::table::survey::Overview;

use crate::arguments::Which;
use crate::error::CommandError;
use crate::print::{Out, note};
use crate::progress;
use crate::stack::Stack;

/// Lists installations. Reports items that cannot be read on standard error.
pub(crate) async fn list(stack: &Stack, out: Out, which: &Which) -> Result<(), CommandError> {
    let bar = progress::bar("read", None);
    let (mut found, mut unreadable, mut more) = (Vec::new(), 0_u64, false);
    let mut from = None;
    loop {
        let part = stack.app.table.overviews(from).await?;
        for item in part.items {
            bar.inc(1);
            match item {
                Ok(one) if wanted(&one, which) && found.len() < which.limit => found.push(one),
                Ok(one) => more |= wanted(&one, which),
                Err(error) => {
                    unreadable += 1;
                    bar.suspend(|| note(&error.to_string()));
                }
            }
        }
        match part.next {
            Some(next) if !more => from = Some(next),
            _ => break,
        }
    }
    bar.finish_and_clear();
    found.sort_by(|a, b| a.resource.cmp(&b.resource));
    let values: Vec<Value> = found.iter().map(json_of).collect();
    let rows = found.iter().map(row).collect();
    out.list("installations", &values, &["resource", "status", "company", "token until", "due", "failures"], rows);
    if more {
        note(&format!("there are more than {}: see --limit", which.limit));
    }
    if unreadable > 0 {
        return Err(CommandError::NotDone(format!("{unreadable} items cannot be read")));
    }
    Ok(())
}

fn wanted(one: &Overview, which: &Which) -> bool {
    let of_company = |id: &String| one.company.as_ref() == Some(id) || one.resource.id() == id;
    (which.status.is_empty() || which.status.contains(&one.status))
        && which.company.as_ref().is_none_or(of_company)
        && (which.version.is_none() || which.version == one.details.version_id)
}

/// Shows one installation.
pub(crate) async fn show(stack: &Stack, out: Out, resource: &Resource) -> Result<(), CommandError> {
    let one = find(stack, resource).await?;
    let text = |value: &Value| match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let mut members = members_of(&one).to_vec();
    if resource.kind() == Kind::Company {
        members.extend(list_of(stack.app.table.comparison(resource.id()).await?));
    }
    let rows: Vec<_> = members.iter().map(|(name, value)| (*name, text(value))).collect();
    let rows = [vec![("resource", one.resource.to_string())], rows].concat();
    out.value(&object(&one, members), &crate::print::members(&rows));
    Ok(())
}

/// The members of a company that show the last comparison of its list of locations.
fn list_of(comparison: Option<Comparison>) -> Vec<(&'static str, Value)> {
    let Some(Comparison { at, listed, not_stored, not_listed }) = comparison else {
        return vec![("list_compared_at", Value::Null)];
    };
    vec![
        ("list_compared_at", json!(at.rfc3339())),
        ("listed", json!(listed)),
        ("not_stored", json!(not_stored.count)),
        ("not_stored_examples", json!(not_stored.examples)),
        ("not_listed", json!(not_listed.count)),
        ("not_listed_examples", json!(not_listed.examples)),
    ]
}

pub(crate) async fn find(stack: &Stack, resource: &Resource) -> Result<Overview, CommandError> {
    let found = stack.app.table.overview(resource).await?;
    found.ok_or_else(|| CommandError::NotFound(format!("{resource} is not known")))
}

/// Invokes the function `refresh`. So no token reaches the operator's machine, and a lost connection does no harm.
pub(crate) async fn refresh(stack: &Stack, out: Out, resource: &Resource, force: bool) -> Result<(), CommandError> {
    find(stack, resource).await?;
    let event = json!({ "resource": resource, "force": force });
    let summary = invoke_refresh(stack, &event).await?;
    let status = find(stack, resource).await?.status;
    let count = |name: &str| summary[name].as_u64().unwrap_or(0);
    let text = if count("refreshed") + count("minted") > 0 {
        format!("{resource} has a new token ({status})")
    } else if count("deferred") > 0 {
        format!("{resource}: the token is fresh, or another process renews it now ({status})")
    } else {
        let is_paused = stack.app.table.app_state().await?.paused_at.is_some();
        let why = if is_paused { "refreshing is paused (ops pause)" } else { "the log of refresh has the reason" };
        return Err(CommandError::NotDone(format!("{resource} has no new token ({status}); {why}")));
    };
    out.value(&json!({ "resource": resource, "status": status.as_str(), "summary": summary }), &text);
    Ok(())
}

/// Invokes the function `refresh` as the schedule does.
pub(crate) async fn tick(stack: &Stack, out: Out) -> Result<(), CommandError> {
    let summary = invoke_refresh(stack, &json!({})).await?;
    let count = |name: &str| summary[name].as_u64().unwrap_or(0);
    let text = format!(
        "{} were due: {} were renewed, {} minted, {} deferred, {} failed, {} are left for the next tick",
        count("due"),
        count("refreshed"),
        count("minted"),
        count("deferred"),
        count("failed"),
        count("left")
    );
    out.value(&summary, &text);
    Ok(())
}

/// Invokes the function `refresh` and returns its answer.
pub(crate) async fn invoke_refresh(stack: &Stack, event: &Value) -> Result<Value, CommandError> {
    let Some(function) = &stack.refresh_function else {
        return Err(CommandError::Environment(
            "REFRESH_FUNCTION is not set: it is the name or ARN of the function".into(),
        ));
    };
    let invocation = stack.lambda().invoke().function_name(function).payload(Blob::new(event.to_string()));
    let invoked = invocation.send().await;
    let invoked = invoked.map_err(|error| CommandError::NotDone(shared::http_client::aws_error::describe(&error)))?;
    let answer = invoked.payload().map(|blob| String::from_utf8_lossy(blob.as_ref()).into_owned()).unwrap_or_default();
    if invoked.function_error().is_some() {
        return Err(CommandError::NotDone(format!("refresh failed: {answer}; its log has the reason")));
    }
    Ok(serde_json::from_str(&answer).unwrap_or_default())
}

/// Erases the tokens of an installation, as an uninstall does.
pub(crate) async fn revoke(stack: &Stack, out: Out, resource: &Resource, yes: bool) -> Result<(), CommandError> {
    let one = find(stack, resource).await?;
    if !yes {
        let what = format!(
            "this would erase the tokens of {resource} ({}), and only a new install would restore access",
            one.status
        );
        return Err(CommandError::without_yes(&what));
    }
    let text = match stack.app.installations.uninstall(resource, stack.app.clock.now()).await? {
        Uninstalled::Done => format!("{resource} is revoked and its tokens are erased"),
        Uninstalled::Older => {
            return Err(CommandError::Refused(format!(
                "{resource} was installed at the same moment; nothing was erased"
            )));
        }
        Uninstalled::Unknown => return Err(CommandError::NotFound(format!("{resource} is not known"))),
    };
    out.value(&json!({ "resource": resource, "status": "Revoked" }), &text);
    Ok(())
}

fn json_of(one: &Overview) -> Value {
    object(one, members_of(one))
}

fn object(one: &Overview, members: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
    let members = [("resource", json!(one.resource))].into_iter().chain(members);
    members.map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>().into()
}

/// The members of an installation but for its resource, in the order in which they are shown.
fn members_of(one: &Overview) -> [(&'static str, Value); 21] {
    let at = |instant: Option<Millis>| json!(instant.map(Millis::rfc3339));
    [
        ("status", json!(one.status.as_str())),
        ("epoch", json!(one.version.epoch)),
        ("generation", json!(one.version.generation)),
        ("company", json!(one.company)),
        ("minted", json!(one.minted)),
        ("installed_at", at(Some(one.installed_at))),
        ("uninstalled_at", at(one.revoked_at)),
        ("token_granted_at", at(one.access_issued_at)),
        ("token_expires_at", at(one.access_expires_at)),
        ("due_at", at(one.due_at)),
        ("tried_at", at(one.tried_at)),
        ("retry_at", at(one.retry_at)),
        ("lease_ends_at", at(one.lease_ends_at)),
        ("failures", json!(one.failures)),
        ("scope", json!(one.scope)),
        ("version_id", json!(one.details.version_id)),
        ("plan_id", json!(one.details.plan_id)),
        ("trial_ends_at", at(one.details.trial_ends_at)),
        ("installed_by", json!(one.details.installed_by)),
        ("white_label", json!(one.details.white_label)),
        ("reinstall_url", json!(one.reinstall_url)),
    ]
}

fn row(one: &Overview) -> Vec<String> {
    // Times in the table are rounded down to seconds.
    let at =
        |instant: Option<Millis>| instant.map_or_else(|| "-".to_owned(), |at| Millis(at.0 / 1000 * 1000).rfc3339());
    vec![
        one.resource.to_string(),
        one.status.to_string(),
        one.company.clone().unwrap_or_else(|| "-".to_owned()) + if one.minted { " (minted)" } else { "" },
        at(one.access_expires_at),
        at(one.due_at),
        one.failures.to_string(),
    ]
}
