//! The command that puts archived events on the bus again (`EventBridge`: archive and replay).

use aws_sdk_eventbridge::Client;
use aws_sdk_eventbridge::primitives::DateTime;
use aws_sdk_eventbridge::types::ReplayDestination;
use serde_json::json;
use shared::http_client::aws_error::describe;

use crate::arguments::Replay;
use crate::error::CommandError;
use crate::print::{Out, members};
use crate::stack::Stack;

/// Starts a replay. `EventBridge` delivers the events in the background, without their order, and adds `replay-name` to
/// each of them.
pub(crate) async fn run(stack: &Stack, out: Out, replay: &Replay) -> Result<(), CommandError> {
    let Some(archive) = &stack.event_archive_arn else {
        let why = "EVENT_ARCHIVE_ARN is not set: is there a bus, and is EventArchiveDays above 0?";
        return Err(CommandError::Environment(why.into()));
    };
    let now = stack.app.clock.now();
    let (from, to) = (replay.from, replay.to.min(now));
    if from >= to {
        return Err(CommandError::Environment("--from must be before --to, and in the past".into()));
    }
    let client = Client::new(&stack.app.aws);
    let bus = bus_of(&client, archive).await?;
    let name = format!("hoopai-relay-{}", now.0);
    let rules: Vec<_> = replay.rule.iter().map(|rule| rule_arn(&bus, rule)).collect();
    let destination = ReplayDestination::builder().arn(&bus).set_filter_arns((!rules.is_empty()).then_some(rules));
    let destination = destination.build().map_err(|error| CommandError::NotDone(error.to_string()))?;
    let started = client
        .start_replay()
        .replay_name(&name)
        .event_source_arn(archive)
        .event_start_time(DateTime::from_millis(from.0))
        .event_end_time(DateTime::from_millis(to.0))
        .destination(destination)
        .send()
        .await
        .map_err(|error| CommandError::NotDone(describe(&error)))?;
    let state = started.state().map_or("STARTING", |state| state.as_str());
    let rules = if replay.rule.is_empty() { "all".to_owned() } else { replay.rule.join(", ") };
    let watch = format!("aws events describe-replay --replay-name {name}");
    out.value(
        &json!({
            "replay": name, "state": state, "from": from.rfc3339(), "to": to.rfc3339(), "rules": replay.rule,
        }),
        &members(&[
            ("replay", name.clone()),
            ("state", state.to_owned()),
            ("from", from.rfc3339()),
            ("to", to.rfc3339()),
            ("rules", rules),
            ("watch it", watch),
        ]),
    );
    Ok(())
}

/// The ARN of the bus that an archive belongs to. A replay goes to no other bus.
async fn bus_of(client: &Client, archive: &str) -> Result<String, CommandError> {
    let name = archive.rsplit('/').next().unwrap_or(archive);
    let described = client.describe_archive().archive_name(name).send().await;
    let described = described.map_err(|error| CommandError::NotDone(describe(&error)))?;
    let bus = described.event_source_arn().map(str::to_owned);
    bus.ok_or_else(|| CommandError::NotFound(format!("the archive {name} names no bus")))
}

/// The ARN of a rule. Rules of the account's own bus are named without their bus.
fn rule_arn(bus: &str, rule: &str) -> String {
    match bus.split_once(":event-bus/") {
        _ if rule.starts_with("arn:") => rule.to_owned(),
        Some((before, "default")) => format!("{before}:rule/{rule}"),
        Some((before, name)) => format!("{before}:rule/{name}/{rule}"),
        None => rule.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_named_below_its_bus() {
        for (bus, rule, expected) in [
            ("default", "sync", "arn:aws:events:eu-central-1:1:rule/sync"),
            ("lifecycle", "sync", "arn:aws:events:eu-central-1:1:rule/lifecycle/sync"),
            ("lifecycle", "arn:aws:events:eu-central-1:1:rule/x", "arn:aws:events:eu-central-1:1:rule/x"),
        ] {
            assert_eq!(rule_arn(&format!("arn:aws:events:eu-central-1:1:event-bus/{bus}"), rule), expected);
        }
    }
}
