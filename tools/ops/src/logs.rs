//! The command `logs`: the lines of all functions about one location or company (CloudWatch Logs Insights, by the AWS CLI).

use std::time::Duration;

use serde_json::{Value, json};
use shared::domain::clock::Millis;
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
    let query =
        format!("fields @timestamp, @message | filter resource = \"{resource}\" | sort @timestamp desc | limit {MOST}");
    let newest_first = query_logs(stack, &query, Duration::from_hours(hours.into())).await?;
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

/// The last call of a caller, by one of its keys or without a key.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct LastCall {
    pub(crate) caller: String,
    pub(crate) key: Option<String>,
    /// UTC.
    pub(crate) at: String,
}

/// The last calls within `span`, as the logs have them.
pub(crate) async fn last_calls(stack: &Stack, span: Duration) -> Result<Vec<LastCall>, CommandError> {
    const QUERY: &str = "filter ispresent(caller) | stats max(@timestamp) as last by caller, caller_key | limit 10000";
    Ok(query_logs(stack, QUERY, span).await?.iter().filter_map(last_call).collect())
}

/// A last call, from the fields of a result.
fn last_call(fields: &Value) -> Option<LastCall> {
    let text = |name: &str| field(fields, name)?.as_str().map(str::to_owned);
    let last = text("last")?;
    // An aggregate of times is in milliseconds since 1970.
    let at = last.parse().map_or(last, |millis| Millis(millis).rfc3339());
    Some(LastCall { caller: text("caller")?, key: text("caller_key").filter(|key| !key.is_empty()), at })
}

/// The results of a query over all log groups of the stack, for the time `span` that ends now.
async fn query_logs(stack: &Stack, query: &str, span: Duration) -> Result<Vec<Value>, CommandError> {
    if stack.log_groups.is_empty() {
        return Err(CommandError::Environment(
            "LOG_GROUPS is not set: the names of the log groups, with commas".into(),
        ));
    }
    let now = stack.app.clock.now();
    let (from, to) = ((now - span).seconds().to_string(), now.seconds().to_string());
    let mut arguments = vec!["logs", "start-query", "--output", "json", "--start-time", &from, "--end-time", &to];
    arguments.extend(["--query-string", query, "--log-group-names"]);
    arguments.extend(stack.log_groups.iter().map(String::as_str));
    let started = asked(&arguments)?;
    let id = started["queryId"].as_str().unwrap_or_default();
    Ok(results(id).await?["results"].as_array().cloned().unwrap_or_default())
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
    json!({ "at": field(fields, "@timestamp"), "line": field(fields, "@message") })
}

fn field(fields: &Value, name: &str) -> Option<Value> {
    let fields = fields.as_array().map(Vec::as_slice).unwrap_or_default();
    fields.iter().find(|field| field["field"] == name).map(|field| field["value"].clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_call_of_a_caller_is_read_in_both_forms_of_a_time() {
        let field = |name: &str, value: &str| json!({ "field": name, "value": value });
        for (last, at) in
            [("1795000000000", "2026-11-18T11:06:40Z"), ("2026-11-18 11:06:40.000", "2026-11-18 11:06:40.000")]
        {
            let (caller, at) = ("billing".to_owned(), at.to_owned());
            let mut fields = vec![field("caller", "billing"), field("last", last)];
            let without_key = LastCall { caller: caller.clone(), key: None, at: at.clone() };
            assert_eq!(last_call(&json!(fields)), Some(without_key));
            fields.push(field("caller_key", "9f86d081884c"));
            let by_key = LastCall { caller, key: Some("9f86d081884c".to_owned()), at };
            assert_eq!(last_call(&json!(fields)), Some(by_key));
        }
        assert_eq!(last_call(&json!([{ "field": "last", "value": "1" }])), None);
    }
}
