//! The schedule's tick: the refresh function refreshes everything that is due within the time of the invocation, and
//! reports exactly what it did.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use it::proxy::Call;
use it::world::{World, location, until};
use sandbox::marketplace::faults::{Endpoint, Fault};
use serde_json::json;
use shared::domain::installation::installation_key;
use shared::domain::resource::Resource;
use shared::domain::status::Status;

it::stories!(
    exactly_the_due_installations_are_refreshed,
    shards_divide_the_due_installations,
    more_than_a_page_of_a_shard_is_looked_at,
    installations_that_stay_due_do_not_hide_others,
    a_tick_that_runs_out_of_time_reports_the_rest,
    a_tick_counts_the_installations_that_it_did_not_reach,
    an_unanswered_refresh_is_repeated_within_the_grace_period_by_the_same_tick,
);

async fn exactly_the_due_installations_are_refreshed(world: World) {
    let process = world.process().await;
    for n in 0..30 {
        world.install(&process, &location(&format!("D{n}"))).await;
    }
    let none = json!({ "due": 0, "refreshed": 0, "minted": 0, "deferred": 0, "failed": 0, "left": 0 });
    assert_eq!(world.refresh(&process, json!({})).await, none);
    world.advance(Duration::from_hours(20));
    let late = location("late");
    world.install(&process, &late).await;
    let all = json!({ "due": 30, "refreshed": 30, "minted": 0, "deferred": 0, "failed": 0, "left": 0 });
    assert_eq!(world.refresh(&process, json!({ "source": "aws.events" })).await, all);
    assert_eq!(world.presented(), 30);
    assert_eq!(world.stored(&late).await.version.generation, 1);
    assert_eq!(world.refresh(&process, json!({})).await, none);
    world.end().await;
}

async fn shards_divide_the_due_installations(world: World) {
    let process = world.process().await;
    for n in 0..12 {
        world.install(&process, &location(&format!("P{n}"))).await;
    }
    world.advance(Duration::from_hours(20));
    let part = |shard| world.refresh(&process, json!({ "shard": shard, "shards": 3 }));
    let (one, two, three) = tokio::join!(part(0), part(1), part(2));
    let refreshed = [&one, &two, &three].iter().filter_map(|part| part["refreshed"].as_u64()).sum::<u64>();
    assert_eq!((refreshed, world.presented()), (12, 12), "{one} {two} {three}");
    world.end().await;
}

async fn more_than_a_page_of_a_shard_is_looked_at(world: World) {
    let process = world.process().await;
    let first = location("page");
    world.install(&process, &first).await;
    let key = |resource: &Resource| AttributeValue::S(installation_key(resource));
    let get = world.table.client.get_item().table_name(&*world.table.name).key("pk", key(&first));
    let item = get.send().await.expect("an answer").item.expect("an installation");
    // Enough installations for three pages of one shard. No caller has used them for a week, so their renewal is put
    // off.
    let copies = (1..450).map(async |number| {
        let mut copy = item.clone();
        copy.insert("pk".to_owned(), key(&location(&format!("page{number}"))));
        let put = world.table.client.put_item().table_name(&*world.table.name).set_item(Some(copy));
        put.send().await.expect("a copy");
    });
    futures_util::future::join_all(copies).await;
    world.advance(Duration::from_hours(8 * 24));
    let done = world.refresh(&process, json!({})).await;
    assert_eq!((&done["due"], &done["deferred"]), (&json!(450), &json!(450)), "{done}");
    assert_eq!(world.refresh(&process, json!({})).await["due"], 0);
}

async fn installations_that_stay_due_do_not_hide_others(world: World) {
    let process = world.process().await;
    world.install(&process, &location("behind")).await;
    let mut stuck = world.items().await.remove(0);
    stuck.remove("epoch");
    stuck.insert("due_at".into(), AttributeValue::N("1".into()));
    // More items than fit on a page, all in one shard. They cannot be read, so they stay due forever.
    for number in 0..210 {
        stuck.insert("pk".into(), AttributeValue::S(format!("installation#location#stuck{number}")));
        world.put(stuck.clone()).await;
    }
    world.advance(Duration::from_hours(20));
    let done = world.refresh(&process, json!({})).await;
    assert_eq!((&done["due"], &done["refreshed"]), (&json!(1), &json!(1)), "{done}");
}

async fn a_tick_that_runs_out_of_time_reports_the_rest(world: World) {
    let process = world.process().await;
    for n in 0..24 {
        world.install(&process, &location(&format!("T{n}"))).await;
    }
    world.advance(Duration::from_hours(20));
    let soon = world.clock.now() + Duration::from_secs(15);
    let nothing = world.refresh_until(&process, json!({}), soon).await;
    assert_eq!((&nothing["left"], &nothing["due"], world.presented()), (&json!(24), &json!(24), 0), "{nothing}");
    world.market.fault(Endpoint::Refresh, Fault::Delay { millis: 100 }, None);
    let time = async {
        until("the tick has begun", async || process.proxy.calls(Call::Claim) > 0).await;
        world.clock.advance(Duration::from_secs(2));
    };
    let deadline = world.clock.now() + Duration::from_secs(17);
    let (some, ()) = tokio::join!(world.refresh_until(&process, json!({}), deadline), time);
    let number = |name: &str| some[name].as_u64().unwrap_or_default();
    assert_eq!((number("due"), number("refreshed") + number("left")), (24, 24), "{some}");
    assert!(number("left") >= 1 && number("refreshed") >= 1, "{some}");
    assert_eq!(world.presented() as u64, number("refreshed"));
    world.end().await;
}

async fn a_tick_counts_the_installations_that_it_did_not_reach(world: World) {
    let process = world.process().await;
    world.install(&process, &location("first")).await;
    let mut item = world.items().await.remove(0);
    for n in 0..449 {
        // Copies in one shard of the index. Their tokens are never opened.
        item.insert("pk".into(), AttributeValue::S(format!("installation#location#copy{n}")));
        world.put(item.clone()).await;
    }
    world.advance(Duration::from_hours(20));
    let soon = world.clock.now() + Duration::from_secs(15);
    let summary = world.refresh_until(&process, json!({}), soon).await;
    assert_eq!((&summary["left"], &summary["due"]), (&json!(450), &json!(450)), "{summary}");
    assert_eq!(world.presented(), 0);
}

async fn an_unanswered_refresh_is_repeated_within_the_grace_period_by_the_same_tick(world: World) {
    let (l1, process) = (location("L1"), world.process().await);
    world.install(&process, &l1).await;
    world.advance(Duration::from_hours(20));
    world.market.fault(Endpoint::Refresh, Fault::answer_lost(), Some(2));
    let summary = world.refresh(&process, json!({})).await;
    assert_eq!(
        (&summary["due"], &summary["refreshed"], &summary["failed"]),
        (&json!(1), &json!(1), &json!(0)),
        "{summary}"
    );
    assert_eq!(world.status(&l1).await, Status::Active);
    world.end().await;
}
