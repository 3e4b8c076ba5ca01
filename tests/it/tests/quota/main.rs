//! The limiter on real engines: its promises to the platform and to callers, and its cost in calls.

mod background;
mod clocks;
mod observed;
mod shares;
mod taking;

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use http::{HeaderMap, HeaderName};
use it::dynamo::{Calls, Engine, Kind};
use shared::domain::clock::{Clock, Millis};
use shared::domain::limits::{LimitPolicy, Limits};
use shared::domain::resource::Resource;
use shared::limiter::{Limiter, LimiterError, Permit, Refusal};
use shared::table::Table;

const TEN_SECONDS: Limits = Limits { burst: 100, interval: Duration::from_secs(10), daily: 200_000 };

/// A limiter with a client and a memory of its own, as in a process of its own.
fn process(engine: &Engine, table: &Table, clock: &Clock, policy: impl Into<LimitPolicy>) -> (Limiter, Calls) {
    let (client, calls) = engine.client();
    (Limiter::new(Table { client, name: table.name.clone() }, clock.clone(), policy), calls)
}

fn location() -> Resource {
    Resource::location("ve9EPM428h8vShlRW1KT").expect("an id")
}

/// Makes each story a test of its own on the embedded engine. DynamoDB Local takes seconds to start, so one test runs
/// all stories on it, one after the other.
macro_rules! stories {
    ($($group:ident: [$($story:ident),* $(,)?]),* $(,)?) => {
        mod embedded {
            $($(#[tokio::test(flavor = "multi_thread")]
            async fn $story() {
                let name = concat!("embedded::", stringify!($story));
                let engine = super::Engine::start(super::Kind::Embedded, name).await.expect("always there");
                super::$group::$story(&engine).await;
            })*)*
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn on_dynamodb_local() {
            let Some(engine) = Engine::start(Kind::Local, "on_dynamodb_local").await else { return };
            $($(report(concat!("DynamoDB Local: ", stringify!($story)));
            $group::$story(&engine).await;)*)*
        }
    };
}

stories!(
    taking: [
        a_process_that_used_the_whole_limit_refuses_without_a_call,
        several_processes_admit_the_whole_limit_and_no_more,
        an_admitted_request_costs_about_one_call,
        a_steady_process_takes_permits_ahead_of_need,
        no_caller_of_a_steady_process_waits_for_a_write,
        writes_ahead_of_need_that_are_given_up_lose_few_permits,
        no_spare_permit_is_handed_out_after_a_restriction,
        late_writes_lose_few_permits,
        expired_permits_of_a_process_that_ended_cost_nothing,
        a_batch_of_permits_takes_few_writes,
        a_cancelled_wait_takes_no_permit,
        waiters_are_served_in_order,
        a_large_burst_keeps_the_item_small,
        counters_that_were_restored_from_a_backup_are_used,
        without_the_store_every_permit_is_refused,
    ],
    observed: [
        limits_observed_by_one_process_apply_to_all,
        a_limit_above_the_default_needs_two_endpoints_and_is_used_by_all_processes,
        a_limit_above_the_default_lapses_after_a_day_without_an_answer,
        processes_that_disagree_at_once_leave_the_lower_limit,
        answers_to_requests_from_before_a_lowering_do_not_raise_the_limit,
        a_longer_interval_is_adopted_by_all_without_losing_a_permit,
        a_429_closes_the_resource_for_all_processes,
        a_429_with_requests_left_closes_its_endpoint_for_all_processes,
        a_used_up_day_without_a_known_end_closes_for_fifteen_minutes,
        requests_of_a_day_are_counted_until_the_day_ends,
    ],
    background: [
        background_permits_leave_places_for_callers,
        the_reserve_has_a_bound,
        a_caller_with_a_share_has_it_in_the_queue_too,
    ],
    shares: [
        callers_have_shares_of_their_own,
        nothing_of_a_share_is_taken_ahead_of_need,
        a_refused_request_takes_nothing_of_its_callers_share,
        a_cancelled_waiter_returns_its_part_of_the_share,
        if_two_limits_refuse_the_later_instant_is_promised,
        a_share_holds_behind_a_full_resource,
    ],
    clocks: [
        the_limit_holds_to_the_edge_of_the_clock_tolerance_and_not_beyond,
    ],
);

/// An instant at the start of a slot.
const START: Millis = Millis(1_800_000_000_000);

fn refused(answer: Result<Permit, LimiterError>) -> Refusal {
    match answer {
        Err(LimiterError::Refused(refusal)) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().expect("a value"))).collect()
}

/// The item of the counters of [`location`].
async fn counters(table: &Table) -> shared::table::Item {
    let key = AttributeValue::S(shared::table::quota_key(&location()));
    let item = table.client.get_item().table_name(&*table.name).key("pk", key).send().await.expect("a read").item;
    item.expect("an item")
}

#[expect(clippy::print_stdout, reason = "measurements are for the reader of the test's output")]
fn report(line: &str) {
    println!("{line}");
}

/// The largest number of requests in any `interval`. `sent` is in ms, ascending.
fn most_in_any(sent: &[i64], interval: i64) -> usize {
    (0..sent.len()).map(|i| i + 1 - sent.partition_point(|at| *at <= sent[i] - interval)).max().unwrap_or(0)
}
