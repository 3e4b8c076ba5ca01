//! The figures on which docs/cost.md is based: capacity units and calls, as DynamoDB Local reports them. A change that
//! makes the system more expensive fails here.

use it::dynamo::{Engine, Kind};
use it::meter::{Meter, Reading};
use it::outside::{Setup, System, location};
use sandbox::whole::{APP_SECRET, CALLERS_SECRET, SEALING_SECRET, TABLE, scheduled_event};

const LOCATIONS: usize = 8;

/// Prints and returns the units and calls for one of `count` operations. `--nocapture` shows the printed figures.
fn each(what: &str, reading: &Reading, count: u32) -> (f64, f64) {
    let one = |units: f64| units / f64::from(count);
    let (writes, reads) = (one(reading.write_units), one(reading.read_units));
    let calls = &reading.calls;
    eprintln!("cost: {what}: {writes:.2} WRU, {reads:.2} RRU each; {count}: {calls:?}");
    (writes, reads)
}

fn count(number: usize) -> u32 {
    u32::try_from(number).expect("few")
}

#[tokio::test(flavor = "multi_thread")]
async fn consumed_capacity_is_within_the_figures_of_the_cost_document() {
    let name = "cost::consumed_capacity_is_within_the_figures_of_the_cost_document";
    let Some(engine) = Engine::start(Kind::Local, name).await else { return };
    let meter = Meter::before(&engine.url()).await;
    let store = Some(meter.url());
    // Without a bus, as in a stack that does not configure one.
    let environment = vec![("RUST_LOG", "info".to_owned()), ("EVENT_BUS_NAME", String::new())];
    let system = System::start(Setup { relays: 1, locations: LOCATIONS, store, environment, ..Setup::default() }).await;
    let _creating = meter.take();

    for number in 1..=LOCATIONS {
        system.install(&location(number)).await;
    }
    let (writes, reads) = each("an install", &meter.take(), count(LOCATIONS));
    assert!(writes <= 10.0 && reads <= 3.0, "{writes} {reads}");

    // One call after the other, so that every permit of a burst costs one write of its own and no write serves a group.
    let calls = 30 * LOCATIONS;
    for call in 0..calls {
        let answer = system.get(&location(1 + call % LOCATIONS), "/echo").await;
        assert_eq!((answer.status, answer.source()), (200, "platform"), "{answer:?}");
    }
    let (writes, reads) = each("a relayed call", &meter.take(), count(calls));
    assert!(writes <= 1.1 && reads <= 0.1, "{writes} {reads}");
    let bytes = logged(&system, "relay") / calls;
    eprintln!("cost: a relayed call logs {bytes} bytes");
    assert!(bytes <= 2_000, "{bytes} bytes");

    let idle = system.refresh(&scheduled_event()).await.expect("a summary");
    assert_eq!(idle["due"], 0);
    let (writes, reads) = each("a tick with nothing due", &meter.take(), 1);
    assert!(writes < 0.1 && reads <= 8.0, "{writes} {reads}");

    let past = shared::domain::clock::Clock::system().now().0 - 60_000;
    let client = sandbox::dynamo::client(&engine.url());
    for number in 1..=LOCATIONS {
        let key = format!("installation#location#{}", location(number).id());
        let write = client.update_item().table_name(TABLE).key("pk", aws_sdk_dynamodb::types::AttributeValue::S(key));
        let write = write.update_expression("SET due_at = :past");
        let past = aws_sdk_dynamodb::types::AttributeValue::N(past.to_string());
        write.expression_attribute_values(":past", past).send().await.expect("written");
    }
    let summary = system.refresh(&scheduled_event()).await.expect("a summary");
    assert_eq!(summary["refreshed"], LOCATIONS, "{summary}");
    let (writes, reads) = each("a refresh", &meter.take(), count(LOCATIONS));
    assert!(writes <= 12.0 && reads <= 3.0, "{writes} {reads}");
    let bytes = logged(&system, "refresh") / LOCATIONS;
    eprintln!("cost: a refresh logs {bytes} bytes");
    for secret in [APP_SECRET, SEALING_SECRET, CALLERS_SECRET] {
        let requests = system.sandbox.secrets.requests_for(secret);
        eprintln!("cost: {secret} was read {requests} times");
        assert!(requests <= 12, "each process reads it at most every 45 s");
    }
    let scan = client.scan().table_name(TABLE).return_consumed_capacity("TOTAL".into()).send().await.expect("read");
    for kind in ["installation#location", "quota#location"] {
        let items = scan.items().iter().filter(|item| item["pk"].as_s().is_ok_and(|key| key.starts_with(kind)));
        let sizes: Vec<usize> = items.map(size).collect();
        let most = sizes.iter().max().copied().unwrap_or(0);
        eprintln!("cost: {kind}: {} items of at most {most} bytes", sizes.len());
    }
    system.end().await;
}

/// Number of bytes that a function has logged.
fn logged(system: &System, function: &str) -> usize {
    let lines = system.sandbox.logs.lines();
    lines.iter().filter(|line| line.function == function).map(|line| line.line.len() + 1).sum()
}

/// The approximate size of an item in DynamoDB: names and values.
fn size(item: &shared::table::Item) -> usize {
    use aws_sdk_dynamodb::types::AttributeValue as Value;
    item.iter()
        .map(|(name, value)| {
            name.len()
                + match value {
                    Value::S(text) => text.len(),
                    Value::B(bytes) => bytes.as_ref().len(),
                    Value::N(digits) => digits.len() / 2 + 1,
                    Value::M(map) => 3 + size(map),
                    _ => 1,
                }
        })
        .sum()
}
