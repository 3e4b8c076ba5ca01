//! Checks the table: its keys, indexes, deletion protection, time to live, point-in-time recovery and clock.

use aws_sdk_dynamodb::types::{
    KeySchemaElement, KeyType, PointInTimeRecoveryStatus, TableDescription, TableStatus, TimeToLiveStatus,
};
use shared::domain::clock::{Clock, TOLERATED_MS};
use shared::http_client::aws_error::describe;

use super::Finding;
use crate::stack::Stack;

const REPAIR: &str = "make it as template.yaml has it, by the AWS CLI: a deployment without a change repairs nothing";

/// The indexes of `shared::table`, with their keys.
const INDEXES: [(&str, [&str; 2]); 3] =
    [("due", ["due_shard", "due_at"]), ("company", ["company", "pk"]), ("outbox", ["outbox_shard", "outbox_at"])];

pub(super) async fn check(stack: &Stack) -> Vec<Finding> {
    let table = &stack.app.table;
    let described = table.client.describe_table().table_name(&*table.name).send().await;
    let described = match &described {
        Ok(described) => described.table(),
        Err(error) => {
            let advice = "check TABLE_NAME, the region, and your permission dynamodb:DescribeTable";
            return vec![Finding::fail("table", describe(error), advice)];
        }
    };
    let Some(described) = described else {
        return vec![Finding::fail("table", "DynamoDB returned no description", REPAIR)];
    };
    vec![schema(described), protection(described), expiry(stack).await, recovery(stack).await, clock(stack)]
}

fn schema(table: &TableDescription) -> Finding {
    let what = "table";
    let keys: Vec<_> = table.key_schema().iter().map(|key| (key.attribute_name(), key.key_type())).collect();
    if keys != [("pk", &KeyType::Hash)] {
        return Finding::fail(what, "its key must be pk alone", REPAIR);
    }
    for (name, wanted) in INDEXES {
        let index = table.global_secondary_indexes().iter().find(|index| index.index_name() == Some(name));
        let Some(index) = index else {
            return Finding::fail(what, format!("it has no index {name}"), REPAIR);
        };
        if index.key_schema().iter().map(KeySchemaElement::attribute_name).ne(wanted) {
            return Finding::fail(what, format!("its index {name} has other keys"), REPAIR);
        }
        if index.index_status().is_some_and(|status| status.as_str() != "ACTIVE") {
            return Finding::warn(
                what,
                format!("its index {name} is being built"),
                "wait until the index is built; until then its entries are found late",
            );
        }
    }
    let items = table.item_count().unwrap_or(0);
    match table.table_status().map(TableStatus::as_str) {
        Some("ACTIVE" | "UPDATING") | None => {
            Finding::ok(what, format!("keys and indexes are correct; about {items} items"))
        }
        Some(status) => Finding::fail(what, format!("it is {status}"), "look at the table in the AWS console"),
    }
}

/// A first deployment has no protection, because a protected table could not be rolled back.
fn protection(table: &TableDescription) -> Finding {
    let what = "deletion protection";
    match table.deletion_protection_enabled() {
        Some(true) => Finding::ok(what, "on"),
        Some(false) => Finding::warn(
            what,
            "off: the table can be deleted by hand",
            "deploy with ProtectTable=true once a customer has installed the app",
        ),
        None => Finding::skipped(what, "DynamoDB does not say if it is on"),
    }
}

async fn expiry(stack: &Stack) -> Finding {
    let (what, table) = ("time to live", &stack.app.table);
    match table.client.describe_time_to_live().table_name(&*table.name).send().await {
        Err(error) => Finding::skipped(what, describe(&error)),
        Ok(answer) => {
            let ttl = answer.time_to_live_description();
            let on = ttl.is_some_and(|ttl| {
                let status = ttl.time_to_live_status();
                matches!(status, Some(TimeToLiveStatus::Enabled | TimeToLiveStatus::Enabling))
                    && ttl.attribute_name() == Some("expires_at")
            });
            if on {
                Finding::ok(what, "on expires_at")
            } else {
                Finding::warn(what, "not on expires_at: old counters stay and cost money", REPAIR)
            }
        }
    }
}

async fn recovery(stack: &Stack) -> Finding {
    let (what, table) = ("point-in-time recovery", &stack.app.table);
    match table.client.describe_continuous_backups().table_name(&*table.name).send().await {
        Err(error) => Finding::skipped(what, describe(&error)),
        Ok(answer) => {
            let status = answer
                .continuous_backups_description()
                .and_then(|backups| backups.point_in_time_recovery_description())
                .and_then(|recovery| recovery.point_in_time_recovery_status());
            if status == Some(&PointInTimeRecoveryStatus::Enabled) {
                Finding::ok(what, "on")
            } else {
                Finding::warn(what, "off: a deleted table cannot be restored", REPAIR)
            }
        }
    }
}

/// Compares this machine's clock with the stack's clock, which earlier responses of DynamoDB have corrected.
fn clock(stack: &Stack) -> Finding {
    let offset = Clock::system().now().0.abs_diff(stack.app.clock.now().0);
    if offset <= TOLERATED_MS.unsigned_abs() {
        Finding::ok("clock", "agrees with DynamoDB's")
    } else {
        let said = format!("this machine's clock differs from DynamoDB's by {offset} ms");
        Finding::warn(
            "clock",
            said,
            "set the clock: the commands correct small offsets, but AWS refuses signatures with a large one",
        )
    }
}
