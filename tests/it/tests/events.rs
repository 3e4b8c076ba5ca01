//! Lifecycle events: each event is published after the state that it reports is stored. Each event is published at
//! least once, even if a process dies in between. The number of events never exceeds what a subscriber wants to read.

use std::time::Duration;

use it::proxy::{Call, Fault as Cut, STALL};
use it::world::{HOME, Process, World, grantee, location};
use sandbox::event_bridge::Failure;
use sandbox::marketplace::Location;
use sandbox::marketplace::faults::{Endpoint, Fault};
use serde_json::{Value, json};
use shared::domain::resource::Resource;
use shared::domain::status::Status;
use shared::token::outcome::{Refreshed, Why};

it::stories!(
    each_change_is_published_once_after_it_is_stored,
    the_schedule_sends_events_that_were_not_sent,
    events_that_were_sent_but_not_acknowledged_are_sent_again,
    without_the_bus_operations_succeed_and_no_event_is_lost,
    the_schedule_sends_ten_in_one_request,
    an_entry_that_is_refused_is_sent_again,
    acknowledging_one_event_keeps_another_event_of_the_installation,
    a_refused_event_is_not_taken_for_the_same_event_of_another_installation,
    permanently_refused_events_do_not_block_others_and_are_kept,
    a_refused_event_is_kept_when_another_of_the_same_request_is_accepted,
    a_suspension_with_a_lost_answer_is_published_and_ends,
    an_install_and_an_uninstall_of_a_company_are_one_event_each,
    a_location_with_an_install_notice_is_published_once,
    without_a_configured_bus_no_event_is_stored,
);

fn company() -> Resource {
    Resource::company("HLcompany0000000001").expect("an id")
}

/// Names and epochs of the events that were published on the bus.
fn published(world: &World) -> Vec<(String, u64)> {
    let events = world.event_bridge.events();
    events.into_iter().map(|put| (put.detail_type, put.detail["epoch"].as_u64().expect("an epoch"))).collect()
}

fn expect(world: &World, expected: &[(&str, u64)]) {
    let expected: Vec<_> = expected.iter().map(|(name, epoch)| ((*name).to_owned(), *epoch)).collect();
    assert_eq!(published(world), expected);
}

/// Asserts that no outbox contains an event.
async fn expect_nothing_left(world: &World) {
    for item in world.items().await {
        let left: Vec<_> = item.keys().filter(|name| name.starts_with("outbox")).collect();
        assert!(left.is_empty(), "{left:?} of {:?}", item["pk"]);
    }
    world.advance(Duration::from_secs(10));
    assert_eq!(world.table.pending_events(world.clock.now(), 10).await.expect("the index can be read"), []);
}

async fn refresh(world: &World, process: &Process, resource: &Resource) -> Refreshed {
    let version = world.stored(resource).await.version;
    process.refresher.refresh(resource, version, Why::Operator, world.deadline()).await
}

fn refusal() -> Fault {
    Fault::refusal(400, "Invalid grant: refresh token is invalid")
}

/// Runs the schedule after the time in which another process may still publish the event.
async fn tick(world: &World, process: &Process) {
    world.advance(Duration::from_secs(6));
    world.refresh(process, json!({})).await;
}

async fn each_change_is_published_once_after_it_is_stored(world: World) {
    let (l1, process) = (location("L1"), world.teller().await);
    let installed_at = world.clock.now();
    world.install(&process, &l1).await;
    world.market.set_active(grantee(&l1), false);
    for _ in 0..3 {
        refresh(&world, &process, &l1).await;
        world.advance(Duration::from_mins(1));
    }
    world.market.set_active(grantee(&l1), true);
    for _ in 0..3 {
        assert!(matches!(refresh(&world, &process, &l1).await, Refreshed::Renewed(_)));
    }
    world.market.fault(Endpoint::Refresh, refusal(), Some(2));
    for _ in 0..2 {
        refresh(&world, &process, &l1).await;
    }
    // The platform accepts the token that it refused before, so the reported state is over.
    assert!(matches!(refresh(&world, &process, &l1).await, Refreshed::Renewed(_)));
    let uninstalled_at = world.clock.now();
    for _ in 0..2 {
        process.installations.uninstall(&l1, uninstalled_at).await.expect("a table");
    }
    world.advance(Duration::from_secs(1));
    world.install(&process, &l1).await;
    expect(
        &world,
        &[
            ("Installed", 1),
            ("Suspended", 1),
            ("Resumed", 1),
            ("NeedsReauthorization", 1),
            ("Resumed", 1),
            ("Uninstalled", 2),
            ("Installed", 3),
        ],
    );
    let events = world.event_bridge.events();
    assert!(
        events.iter().all(|put| put.source == "hoopai.relay" && put.detail["resource"] == json!({"location": "L1"}))
    );
    let expected =
        json!({"resource": {"location": "L1"}, "company": company().id(), "at": installed_at.rfc3339(), "epoch": 1});
    assert_eq!(events[0].detail, expected);
    assert_eq!(events[3].detail["reinstall_url"], json!(format!("{HOME}/oauth/install")));
    assert_eq!(events[5].detail["at"], json!(uninstalled_at.rfc3339()));
    assert_eq!(process.proxy.calls(Call::Events), 7, "one request each");
    expect_nothing_left(&world).await;
    tick(&world, &process).await;
    assert_eq!(published(&world).len(), 7, "and the schedule adds nothing");
    world.end().await;
}

async fn the_schedule_sends_events_that_were_not_sent(world: World) {
    let (l1, doomed, schedule) = (location("L1"), world.teller().await, world.teller().await);
    let sending = doomed.proxy.hold(Call::Events);
    {
        let install = world.install(&doomed, &l1);
        tokio::select! {
            () = install => panic!("it waits for the bus"),
            // The process dies here: the state is stored, and no event was published.
            () = sending.reached() => {}
        }
    }
    assert_eq!(world.status(&l1).await, Status::Active);
    world.refresh(&schedule, json!({})).await;
    expect(&world, &[]);
    assert_eq!(schedule.proxy.calls(Call::Events), 0, "whoever wrote it may be sending it");
    tick(&world, &schedule).await;
    expect(&world, &[("Installed", 1)]);
    expect_nothing_left(&world).await;
}

async fn events_that_were_sent_but_not_acknowledged_are_sent_again(world: World) {
    let (l1, doomed, schedule) = (location("L1"), world.teller().await, world.teller().await);
    doomed.proxy.always(Call::Acknowledge, Cut::HangUp { applied: false });
    world.install(&doomed, &l1).await;
    expect(&world, &[("Installed", 1)]);
    tick(&world, &schedule).await;
    expect(&world, &[("Installed", 1), ("Installed", 1)]);
    expect_nothing_left(&world).await;
    world.end().await;
}

async fn without_the_bus_operations_succeed_and_no_event_is_lost(world: World) {
    let (l1, process) = (location("L1"), world.teller().await);
    world.event_bridge.fail(Some(Failure::HangUp));
    world.install(&process, &l1).await;
    process.proxy.always(Call::Events, Cut::Stall { applied: false });
    let began = std::time::Instant::now();
    world.advance(Duration::from_secs(1));
    process.installations.uninstall(&l1, world.clock.now()).await.expect("it is stored all the same");
    world.advance(Duration::from_secs(1));
    world.install(&process, &l1).await;
    assert!(began.elapsed() < STALL, "neither operation waits for the bus to answer: {:?}", began.elapsed());
    process.proxy.heal();
    world.event_bridge.fail(Some(Failure::AccessDenied));
    tick(&world, &process).await;
    expect(&world, &[]);
    world.event_bridge.fail(None);
    tick(&world, &process).await;
    expect(&world, &[("Installed", 1), ("Uninstalled", 2), ("Installed", 3)]);
    expect_nothing_left(&world).await;
    world.end().await;
}

async fn the_schedule_sends_ten_in_one_request(world: World) {
    let process = world.teller().await;
    world.event_bridge.fail(Some(Failure::AccessDenied));
    for n in 0..25 {
        world.install(&process, &location(&format!("T{n}"))).await;
    }
    let before = world.event_bridge.requests();
    tick(&world, &process).await;
    assert_eq!(world.event_bridge.requests() - before, 1, "a bus that takes nothing is not asked for each");
    world.event_bridge.fail(None);
    let before = world.event_bridge.requests();
    tick(&world, &process).await;
    assert_eq!((published(&world).len(), world.event_bridge.requests() - before), (25, 3));
    expect_nothing_left(&world).await;
}

async fn an_entry_that_is_refused_is_sent_again(world: World) {
    let (l1, process) = (location("L1"), world.teller().await);
    world.event_bridge.fail(Some(Failure::Entries));
    world.install(&process, &l1).await;
    tick(&world, &process).await;
    expect(&world, &[]);
    world.event_bridge.fail(None);
    tick(&world, &process).await;
    expect(&world, &[("Installed", 1)]);
    expect_nothing_left(&world).await;
}

/// The ids of the locations whose events were published on the bus.
fn published_of(world: &World) -> Vec<String> {
    let id = |put: &sandbox::event_bridge::Put| put.detail["resource"]["location"].as_str().map(str::to_owned);
    let mut ids: Vec<_> = world.event_bridge.events().iter().filter_map(id).collect();
    ids.sort();
    ids
}

async fn a_refused_event_is_not_taken_for_the_same_event_of_another_installation(world: World) {
    let process = world.teller().await;
    let all = ["L1", "L2", "L3"];
    world.event_bridge.fail(Some(Failure::HangUp));
    // Installed in the same millisecond, so the three events differ only by their installation.
    for id in all {
        world.install(&process, &location(id)).await;
    }
    world.event_bridge.fail(None);
    for code in ["InternalFailure", "ThrottlingException", "MalformedDetail"] {
        world.event_bridge.refuse(&[("\"L2\"", code)]);
        tick(&world, &process).await;
        assert_eq!(published_of(&world), ["L1", "L3"], "{code}");
        assert_eq!(world.stored(&location("L2")).await.outbox.len(), 1, "{code}: it is kept");
        assert!(world.stored(&location("L1")).await.outbox.is_empty(), "{code}");
    }
    world.event_bridge.refuse(&[]);
    world.advance(Duration::from_hours(1));
    tick(&world, &process).await;
    assert_eq!(published_of(&world), all);
    expect_nothing_left(&world).await;
    world.end().await;
}

async fn permanently_refused_events_do_not_block_others_and_are_kept(world: World) {
    let process = world.teller().await;
    world.event_bridge.fail(Some(Failure::HangUp));
    let ids: Vec<String> = (0..24).map(|n| format!("T{n:02}")).collect();
    for id in &ids {
        world.install(&process, &location(id)).await;
        world.advance(Duration::from_millis(1));
    }
    world.event_bridge.fail(None);
    // More refused events than one request can hold. They are older than all other events.
    let refused: Vec<String> = ids[..12].iter().map(|id| format!("\"{id}\"")).collect();
    let codes = ["MalformedDetail", "InvalidArgument", "AccessDeniedException", "NotAuthorizedForSourceException"];
    let refused: Vec<_> = refused.iter().map(String::as_str).zip(codes.into_iter().cycle()).collect();
    world.event_bridge.refuse(&refused);
    tick(&world, &process).await;
    assert_eq!(published_of(&world), ids[12..], "those behind them are sent in the same tick");
    let before = world.event_bridge.requests();
    tick(&world, &process).await;
    assert_eq!(world.event_bridge.requests(), before, "nobody asks again within the hour");
    world.event_bridge.refuse(&[]);
    world.advance(Duration::from_hours(1));
    tick(&world, &process).await;
    assert_eq!(published_of(&world), ids, "none is lost");
    expect_nothing_left(&world).await;
    world.end().await;
}

async fn a_refused_event_is_kept_when_another_of_the_same_request_is_accepted(world: World) {
    let (l1, process) = (location("L1"), world.teller().await);
    world.event_bridge.refuse(&[("\"epoch\":1", "MalformedDetail")]);
    world.install(&process, &l1).await;
    world.advance(Duration::from_secs(1));
    process.installations.uninstall(&l1, world.clock.now()).await.expect("a table");
    expect(&world, &[("Uninstalled", 2)]);
    assert_eq!(world.stored(&l1).await.outbox.len(), 1);
    world.event_bridge.refuse(&[]);
    world.advance(Duration::from_hours(1));
    tick(&world, &process).await;
    expect(&world, &[("Uninstalled", 2), ("Installed", 1)]);
    expect_nothing_left(&world).await;
}

async fn acknowledging_one_event_keeps_another_event_of_the_installation(world: World) {
    let (l1, slow, other) = (location("L1"), world.teller().await, world.teller().await);
    let strike = slow.proxy.hold(Call::Acknowledge);
    let story = async {
        strike.reached().await;
        world.event_bridge.fail(Some(Failure::HangUp));
        world.advance(Duration::from_secs(1));
        other.installations.uninstall(&l1, world.clock.now()).await.expect("a table");
        world.event_bridge.fail(None);
        strike.open();
    };
    tokio::join!(world.install(&slow, &l1), story);
    expect(&world, &[("Installed", 1)]);
    tick(&world, &other).await;
    let told = published(&world);
    assert_eq!(told.last(), Some(&("Uninstalled".to_owned(), 2)), "{told:?}");
    expect_nothing_left(&world).await;
}

async fn a_suspension_with_a_lost_answer_is_published_and_ends(world: World) {
    let (l1, process) = (location("L1"), world.teller().await);
    world.install(&process, &l1).await;
    world.market.set_active(grantee(&l1), false);
    refresh(&world, &process, &l1).await;
    world.market.set_active(grantee(&l1), true);
    world.market.fault(Endpoint::Refresh, Fault::HangUp { processed: true }, Some(2));
    refresh(&world, &process, &l1).await;
    assert_eq!(world.status(&l1).await, Status::Uncertain);
    expect(&world, &[("Installed", 1), ("Suspended", 1)]);
    world.advance(Duration::from_secs(16));
    assert!(matches!(refresh(&world, &process, &l1).await, Refreshed::Renewed(_)));
    expect(&world, &[("Installed", 1), ("Suspended", 1), ("Resumed", 1)]);
    expect_nothing_left(&world).await;
    world.end().await;
}

async fn an_install_and_an_uninstall_of_a_company_are_one_event_each(world: World) {
    let all: Vec<_> = (0..120).map(|n| format!("A{n}")).collect();
    let locations = all.iter().map(|id| Location { id: id.clone(), name: "A location".into() }).collect();
    world.market.change(|options| options.locations = locations);
    let process = world.teller().await;
    world.install(&process, &company()).await;
    process.tokens.access(&location("A7"), world.deadline()).await.expect("minted at the first call");
    tick(&world, &process).await;
    world.advance(Duration::from_secs(1));
    process.installations.uninstall(&company(), world.clock.now()).await.expect("a table");
    tick(&world, &process).await;
    expect(&world, &[("Installed", 1), ("Uninstalled", 2)]);
    let events = world.event_bridge.events();
    assert!(events.iter().all(|put| put.detail["resource"] == json!({"company": company().id()})));
    assert!(events.iter().all(|put| put.detail["company"] == json!(company().id())));
    expect_nothing_left(&world).await;
}

async fn a_location_with_an_install_notice_is_published_once(world: World) {
    let (l1, process) = (location("L1"), world.teller().await);
    let hear = async || process.installations.on_install_notice(&l1, Some(company().id()), world.clock.now()).await;
    assert!(hear().await.expect("a table"));
    world.advance(Duration::from_secs(1));
    assert!(hear().await.expect("a table"));
    expect(&world, &[("Installed", 1)]);
    world.advance(Duration::from_secs(1));
    process.installations.uninstall(&l1, world.clock.now()).await.expect("a table");
    assert!(!hear().await.expect("a table"), "one that is no later than the uninstall");
    world.advance(Duration::from_secs(1));
    assert!(hear().await.expect("a table"));
    expect(&world, &[("Installed", 1), ("Uninstalled", 2), ("Installed", 3)]);
    assert_eq!(world.event_bridge.events()[2].detail["company"], json!(company().id()));
    expect_nothing_left(&world).await;
}

async fn without_a_configured_bus_no_event_is_stored(world: World) {
    let (l1, process) = (location("L1"), world.process().await);
    world.install(&process, &l1).await;
    world.market.set_active(grantee(&l1), false);
    refresh(&world, &process, &l1).await;
    world.market.set_active(grantee(&l1), true);
    refresh(&world, &process, &l1).await;
    world.advance(Duration::from_secs(1));
    process.installations.uninstall(&l1, world.clock.now()).await.expect("a table");
    let reads = process.proxy.calls(Call::Store);
    tick(&world, &process).await;
    let item: Value = json!(world.items().await[0].keys().collect::<Vec<_>>());
    assert!(!item.to_string().contains("outbox") && !item.to_string().contains("published"), "{item}");
    assert_eq!((world.event_bridge.requests(), process.proxy.calls(Call::Events)), (0, 0));
    assert_eq!(
        process.proxy.calls(Call::Store) - reads,
        12,
        "the pace, eight parts of what is due, the tasks, the searches and the breaker"
    );
}
