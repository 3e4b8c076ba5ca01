//! A bare Lambda function: it shows the cost of a function before any code of this project runs. Its environment chooses
//! the task:
//!
//! | variables | task |
//! |---|---|
//! | none | nothing |
//! | `RAW_TABLE`, `RAW_URL`, `RAW_TOKEN` | one `UpdateItem` and one call of the platform |
//! | and `RAW_ITEM`, `RAW_SECRETS` | the same after one `GetItem`; reads the secrets before its first poll |
//! | `WEBHOOK_PUBLIC_KEYS` | verifies a webhook and sends it to the bus |
//! | and `RAW_TABLE` | the same between the two writes of a record by which an event is sent once |

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use aws_sdk_dynamodb::types::AttributeValue;
use aws_sdk_eventbridge::types::PutEventsRequestEntry;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lambda_runtime::{Error, LambdaEvent, run, service_fn};
use serde::Deserialize;
use serde_json::json;
use serde_json::value::{RawValue, to_raw_value};

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    if let Some(key) = variable("WEBHOOK_PUBLIC_KEYS") {
        return webhooks(&key).await;
    }
    if let (Some(table), Some(url), Some(token)) = (variable("RAW_TABLE"), variable("RAW_URL"), variable("RAW_TOKEN")) {
        return calls(&table, &url, &token).await;
    }
    run(service_fn(async |event: LambdaEvent<Box<RawValue>>| Ok::<_, Error>(event.payload))).await
}

async fn calls(table: &str, url: &str, token: &str) -> Result<(), Error> {
    let aws = shared::app::aws_defaults().load().await;
    let dynamodb = &aws_sdk_dynamodb::Client::new(&aws);
    let http = &reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build()?;
    let item = &variable("RAW_ITEM");
    if let Some(secrets) = variable("RAW_SECRETS") {
        let client = aws_sdk_secretsmanager::Client::new(&aws);
        let read = |id: &str| client.get_secret_value().secret_id(id).send();
        futures_util::future::try_join_all(secrets.split(',').map(read)).await?;
    }
    run(service_fn(async |_: LambdaEvent<Box<RawValue>>| {
        if let Some(item) = item {
            let key = AttributeValue::S(item.clone());
            dynamodb.get_item().table_name(table).key("pk", key).consistent_read(true).send().await?;
        }
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
        Ok::<_, Error>(to_raw_value(&json!({ "status": status, "body": body }))?)
    }))
    .await
}

#[derive(Deserialize)]
struct Request {
    headers: Headers,
    body: String,
}

#[derive(Deserialize)]
struct Headers {
    #[serde(rename = "x-ghl-signature")]
    signature: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Notice {
    r#type: String,
    webhook_id: String,
    location_id: String,
}

async fn webhooks(key: &str) -> Result<(), Error> {
    let aws = shared::app::aws_defaults().load().await;
    let (bus, dynamodb) = (&aws_sdk_eventbridge::Client::new(&aws), &aws_sdk_dynamodb::Client::new(&aws));
    let (name, table) = (&variable("EVENT_BUS_NAME").ok_or("no bus")?, &variable("RAW_TABLE"));
    let der = STANDARD.decode(key)?;
    // The last 32 bytes of its DER are the key (RFC 8410 section 4).
    let key = &UnparsedPublicKey::new(&ED25519, der[der.len() - 32..].to_vec());
    run(service_fn(async |event: LambdaEvent<Request>| {
        let Request { headers, body } = event.payload;
        key.verify(body.as_bytes(), &STANDARD.decode(headers.signature)?)?;
        let notice: Notice = serde_json::from_str(&body)?;
        let record = |expression: &str| {
            let update = dynamodb.update_item().set_table_name(table.clone());
            let update = update.key("pk", AttributeValue::S(format!("raw#{}", notice.webhook_id)));
            update.update_expression(expression)
        };
        let number = |number: i64| AttributeValue::N(number.to_string());
        if table.is_some() {
            record("SET claimed_by = :owner, claim_ends_at = :ends, expires_at = :expires")
                .condition_expression("attribute_not_exists(pk) OR claim_ends_at <= :now OR expires_at <= :now")
                .expression_attribute_values(":owner", AttributeValue::S(notice.webhook_id.clone()))
                .expression_attribute_values(":ends", number(1_900_000_000_000))
                .expression_attribute_values(":expires", number(1_900_000_000))
                .expression_attribute_values(":now", number(1_800_000_000))
                .send()
                .await?;
        }
        let entry = PutEventsRequestEntry::builder()
            .source("highlevel")
            .detail_type(&notice.r#type)
            .detail(&body)
            .resources(format!("location:{}", notice.location_id))
            .event_bus_name(name)
            .build();
        let put = bus.put_events().entries(entry).send().await?;
        if put.failed_entry_count() > 0 {
            return Err(Error::from("the bus refuses the event"));
        }
        if table.is_some() {
            record("SET expires_at = :expires REMOVE claimed_by, claim_ends_at")
                .expression_attribute_values(":expires", number(1_900_000_000))
                .send()
                .await?;
        }
        let headers = json!({ "content-type": "application/json" });
        Ok(json!({ "statusCode": 200, "headers": headers, "body": "{\"outcome\":\"published\"}" }))
    }))
    .await
}
