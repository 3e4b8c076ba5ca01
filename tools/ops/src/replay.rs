//! The command that puts archived events on the bus again (`EventBridge`: archive and replay).

use std::time::Duration;

use aws_sdk_eventbridge::Client;
use aws_sdk_eventbridge::operation::describe_rule::DescribeRuleError;
use aws_sdk_eventbridge::operation::start_replay::StartReplayError;
use aws_sdk_eventbridge::primitives::DateTime;
use aws_sdk_eventbridge::types::ReplayDestination;
use serde_json::json;
use shared::http_client::aws_error::describe;

use crate::arguments::Replay;
use crate::error::CommandError;
use crate::print::{Out, members};
use crate::stack::Stack;

/// The time after which an event is in the archive (Amazon `EventBridge` User Guide, "Archiving and replaying events").
const ARCHIVED_AFTER: Duration = Duration::from_mins(10);

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
    let mut rules = Vec::new();
    for rule in &replay.rule {
        rules.push(rule_arn(&client, &bus, rule).await?);
    }
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
        .await;
    let state = match &started {
        Ok(started) => started.state().map_or("STARTING", |state| state.as_str()),
        // The name is new, so an earlier try of this request has started the replay, and its answer was lost.
        Err(error) if error.as_service_error().is_some_and(StartReplayError::is_resource_already_exists_exception) => {
            "STARTING"
        }
        Err(error) => return Err(CommandError::NotDone(describe(error))),
    };
    let rules = if replay.rule.is_empty() { "all".to_owned() } else { replay.rule.join(", ") };
    let mut rows = vec![
        ("replay", name.clone()),
        ("state", state.to_owned()),
        ("from", from.rfc3339()),
        ("to", to.rfc3339()),
        ("rules", rules),
        ("watch it", format!("aws events describe-replay --replay-name {name}")),
    ];
    if now.since(to) < ARCHIVED_AFTER {
        rows.push(("note", "events of the last ten minutes may not be in the archive yet".to_owned()));
    }
    out.value(
        &json!({
            "replay": name, "state": state, "from": from.rfc3339(), "to": to.rfc3339(), "rules": replay.rule,
        }),
        &members(&rows),
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

/// The ARN of a rule of a bus. `EventBridge` may accept a replay for a rule that does not exist, and then delivers nothing.
async fn rule_arn(client: &Client, bus: &str, rule: &str) -> Result<String, CommandError> {
    let name = rule_name(rule);
    let missing = || CommandError::NotFound(format!("the bus {bus} has no rule {name}"));
    match client.describe_rule().name(name).event_bus_name(bus).send().await {
        Ok(described) => described.arn().map(str::to_owned).ok_or_else(missing),
        Err(error) if error.as_service_error().is_some_and(DescribeRuleError::is_resource_not_found_exception) => {
            Err(missing())
        }
        Err(error) => Err(CommandError::NotDone(describe(&error))),
    }
}

/// The name of a rule that is given by its name, by its ARN, or as `CloudFormation` names it (`BUS|NAME`).
fn rule_name(rule: &str) -> &str {
    rule.rsplit(['/', '|']).next().unwrap_or(rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_given_by_its_name_its_arn_or_its_physical_id() {
        for rule in [
            "sync",
            "arn:aws:events:eu-central-1:1:rule/sync",
            "arn:aws:events:eu-central-1:1:rule/lifecycle/sync",
            "lifecycle|sync",
        ] {
            assert_eq!(rule_name(rule), "sync", "{rule}");
        }
    }
}
