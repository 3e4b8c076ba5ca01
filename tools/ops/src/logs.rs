//! The command `logs`: the lines of all functions about one location or company (CloudWatch Logs Insights, by the AWS CLI).

use std::time::Duration;

use serde_json::{Value, json};
use shared::domain::resource::Resource;

use crate::error::CommandError;
use crate::print::{Out, note};
use crate::stack::Stack;
use crate::stack_outputs::aws;

/// The most lines that are shown.
const MOST: usize = 1_000;
/// The number of times that the query's results are asked for, a second apart.
const LOOKS: u32 = 60;

/// Prints the newest lines about `resource` of the last `hours`, oldest first.
pub(crate) async fn run(stack: &Stack, out: Out, resource: &Resource, hours: u32) -> Result<(), CommandError> {
    if stack.log_groups.is_empty() {
        return Err(CommandError::Environment(
            "LOG_GROUPS is not set: the names of the log groups, with commas".into(),
        ));
    }
    let now = stack.app.clock.now();
    let from = now - Duration::from_hours(hours.into());
    let query =
        format!("fields @timestamp, @message | filter resource = \"{resource}\" | sort @timestamp desc | limit {MOST}");
    let (from, to) = (from.seconds().to_string(), now.seconds().to_string());
    let mut arguments = vec!["logs", "start-query", "--output", "json", "--start-time", &from, "--end-time", &to];
    arguments.extend(["--query-string", &query, "--log-group-names"]);
    arguments.extend(stack.log_groups.iter().map(String::as_str));
    let started = asked(&arguments)?;
    let id = started["queryId"].as_str().unwrap_or_default();
    let results = results(id).await?;
    let newest_first = results["results"].as_array().map(Vec::as_slice).unwrap_or_default();
    let lines: Vec<Value> = newest_first.iter().rev().map(line).collect();
    let texts = lines.iter().map(|line| {
        let text = |name: &str| line[name].as_str().unwrap_or_default();
        format!("{}  {}", text("at"), text("line"))
    });
    let text = texts.collect::<Vec<_>>().join("\n");
    out.value(&json!({ "lines": lines }), if text.is_empty() { "none" } else { &text });
    if lines.len() == MOST {
        note(&format!("only the newest {MOST} lines are shown: see --hours"));
    }
    Ok(())
}

/// Waits for the results of a query.
async fn results(id: &str) -> Result<Value, CommandError> {
    for _ in 0..LOOKS {
        let results = asked(&["logs", "get-query-results", "--output", "json", "--query-id", id])?;
        match results["status"].as_str() {
            Some("Scheduled" | "Running" | "Unknown") => tokio::time::sleep(Duration::from_secs(1)).await,
            Some("Complete") => return Ok(results),
            other => return Err(CommandError::NotDone(format!("the query of the logs ended: {other:?}"))),
        }
    }
    Err(CommandError::NotDone("the query of the logs has no result after a minute".into()))
}

fn asked(arguments: &[&str]) -> Result<Value, CommandError> {
    let answer = aws(arguments).map_err(CommandError::NotDone)?;
    serde_json::from_str(&answer).map_err(|_| CommandError::NotDone("the AWS CLI printed no JSON".into()))
}

/// A line of the log from the fields of a result.
fn line(fields: &Value) -> Value {
    let field = |name: &str| {
        let fields = fields.as_array().map(Vec::as_slice).unwrap_or_default();
        fields.iter().find(|field| field["field"] == name).map(|field| field["value"].clone())
    };
    json!({ "at": field("@timestamp"), "line": field("@message") })
}
