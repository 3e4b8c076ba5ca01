//! A Lambda function that does nothing, or, if configured, makes one `UpdateItem` and one call of the platform and
//! nothing else. It shows the cost of a function before any code of this project runs.

use aws_sdk_dynamodb::types::AttributeValue;
use lambda_runtime::{Error, LambdaEvent, run, service_fn};
use serde_json::value::{RawValue, to_raw_value};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let variable = |name| std::env::var(name).ok();
    let (Some(table), Some(url), Some(token)) = (variable("RAW_TABLE"), variable("RAW_URL"), variable("RAW_TOKEN"))
    else {
        return run(service_fn(async |event: LambdaEvent<Box<RawValue>>| Ok::<_, Error>(event.payload))).await;
    };
    let dynamodb = aws_sdk_dynamodb::Client::new(&shared::app::aws_defaults().load().await);
    let http = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build()?;
    let (table, url, token, dynamodb, http) = (&table, &url, &token, &dynamodb, &http);
    run(service_fn(async |_: LambdaEvent<Box<RawValue>>| {
        dynamodb
            .update_item()
            .table_name(table)
            .key("pk", AttributeValue::S("raw#0".to_owned()))
            .update_expression("SET used = used + :one")
            .condition_expression("used < :most")
            .expression_attribute_values(":one", AttributeValue::N("1".to_owned()))
            .expression_attribute_values(":most", AttributeValue::N("1000000000".to_owned()))
            .send()
            .await?;
        let answer = http.get(url).bearer_auth(token).header("accept", "application/json").send().await?;
        let status = answer.status().as_u16();
        let body = answer.text().await?;
        Ok::<_, Error>(to_raw_value(&serde_json::json!({ "status": status, "body": body }))?)
    }))
    .await
}
