//! Faults of the table, the bus and the overflow queue. A webhook that was answered 200 is on the bus or in the queue, and
//! each webhook is answered in time.

use std::time::Instant;

use futures_util::future::join_all;
use it::proxy::{Call, Fault};
use it::sender::reply;
use it::world::World;
use sandbox::event_bridge::Failure;
use shared::table::webhook::LEASE;

use crate::{ANSWERED, contact, published, publisher, with_overflow};

it::stories!(
    an_event_is_published_while_the_table_is_down,
    an_event_goes_to_the_overflow_queue_while_the_bus_is_down,
    an_event_that_neither_takes_is_asked_for_again,
    lost_answers_lose_no_event,
    a_mark_that_fails_leads_to_a_second_publication_at_most,
    whatever_hangs_a_webhook_is_answered_in_time,
);

const FAULTS: [Fault; 4] =
    [Fault::Unavailable, Fault::Throttled, Fault::AccessDenied, Fault::HangUp { applied: false }];

async fn an_event_is_published_while_the_table_is_down(world: World) {
    let sender = publisher(&world).await;
    for (number, fault) in FAULTS.into_iter().chain([Fault::Stall { applied: false }]).enumerate() {
        sender.proxy.always(Call::Store, fault.clone());
        let body = contact(&format!("w{number}"));
        for _ in 0..2 {
            assert_eq!(sender.send(&body).await, reply(200, "published"), "{fault:?}: at least once beats once");
        }
        sender.proxy.heal();
        assert_eq!(published(&world).len(), 2 * (number + 1));
    }
}

async fn an_event_goes_to_the_overflow_queue_while_the_bus_is_down(world: World) {
    let sender = with_overflow(&world).await;
    let queued = |number: usize| {
        let messages = world.overflow.messages();
        assert_eq!(messages.len(), number + 1);
        messages[number].body.clone()
    };
    let mut number = 0;
    for fault in FAULTS.into_iter().chain([Fault::Stall { applied: false }]) {
        sender.proxy.always(Call::Events, fault.clone());
        let body = contact(&format!("w{number}"));
        assert_eq!(sender.send(&body).await, reply(200, "queued"), "{fault:?}");
        sender.proxy.heal();
        assert_eq!(queued(number), body.to_string(), "{fault:?}");
        assert_eq!(sender.send(&body).await, reply(200, "repeated"), "{fault:?}: the queue has it");
        number += 1;
    }
    for code in ["InternalFailure", "ThrottlingException", "MalformedDetail", "AccessDeniedException"] {
        world.event_bridge.refuse(&[("ContactCreate", code)]);
        let body = contact(&format!("w{number}"));
        assert_eq!(sender.send(&body).await, reply(200, "queued"), "{code}");
        assert_eq!(queued(number), body.to_string(), "{code}");
        number += 1;
    }
    assert_eq!(published(&world), []);
}

async fn an_event_that_neither_takes_is_asked_for_again(world: World) {
    let (sender, without_queue) = (with_overflow(&world).await, publisher(&world).await);
    world.event_bridge.fail(Some(Failure::AccessDenied));
    world.overflow.fail(true);
    for sender in [&sender, &without_queue] {
        assert_eq!(sender.send(&contact("w1")).await, reply(429, "try_again"));
    }
    world.event_bridge.fail(None);
    assert_eq!(sender.send(&contact("w1")).await, reply(200, "published"), "the claim is free again");
    assert_eq!((published(&world).len(), world.overflow.messages().len()), (1, 0));
}

async fn lost_answers_lose_no_event(world: World) {
    let sender = with_overflow(&world).await;
    let lost = Fault::HangUp { applied: true };
    sender.proxy.once(Call::WebhookClaim, lost.clone());
    assert_eq!(sender.send(&contact("w1")).await, reply(200, "published"), "the SDK's second try finds its own claim");
    assert_eq!(sender.send(&contact("w1")).await, reply(200, "repeated"));
    assert_eq!(published(&world).len(), 1);
    sender.proxy.once(Call::Events, lost.clone());
    assert_eq!(sender.send(&contact("w2")).await, reply(200, "published"), "twice, by the SDK's second try");
    sender.proxy.always(Call::Events, lost.clone());
    assert_eq!(sender.send(&contact("w3")).await, reply(200, "queued"));
    sender.proxy.heal();
    sender.proxy.always(Call::Events, Fault::HangUp { applied: false });
    sender.proxy.always(Call::Queue, lost);
    assert_eq!(sender.send(&contact("w4")).await, reply(429, "try_again"));
    let messages = world.overflow.messages();
    assert!(messages.iter().any(|message| message.body.contains("\"w4\"")), "it may be there nevertheless");
}

async fn a_mark_that_fails_leads_to_a_second_publication_at_most(world: World) {
    let sender = publisher(&world).await;
    sender.proxy.always(Call::WebhookMark, Fault::AccessDenied);
    assert_eq!(sender.send(&contact("w1")).await, reply(200, "published"));
    sender.proxy.heal();
    assert_eq!(sender.send(&contact("w1")).await, reply(429, "in_progress"));
    world.advance(LEASE);
    assert_eq!(sender.send(&contact("w1")).await, reply(200, "published"));
    assert_eq!(sender.send(&contact("w1")).await, reply(200, "repeated"));
    assert_eq!(published(&world).len(), 2);
}

async fn whatever_hangs_a_webhook_is_answered_in_time(world: World) {
    let stall = Fault::Stall { applied: false };
    let subsets: Vec<Vec<Call>> = vec![
        vec![Call::Store],
        vec![Call::Events],
        vec![Call::Queue],
        vec![Call::WebhookMark],
        vec![Call::Events, Call::Queue],
        vec![Call::Store, Call::Events],
        vec![Call::Store, Call::Events, Call::Queue],
        vec![Call::Secrets],
    ];
    let cases = subsets.into_iter().enumerate().map(|(number, hanging)| {
        let (world, stall) = (&world, stall.clone());
        async move {
            let sender = with_overflow(world).await;
            for call in &hanging {
                sender.proxy.always(*call, stall.clone());
            }
            let began = Instant::now();
            let install = number % 2 == 1;
            let members = serde_json::json!({"locationId": format!("S{number}")});
            let notice = sender.notice("INSTALL", world.clock.now(), &format!("w{number}"), &members);
            let body = if install { notice } else { contact(&format!("w{number}")) };
            let answer = sender.send(&body).await;
            assert!(began.elapsed() < ANSWERED, "{hanging:?}: {answer:?} after {:?}", began.elapsed());
            assert!([200, 429].contains(&answer.0), "{hanging:?}: {answer:?}");
            let id = format!("\"w{number}\"");
            let is_there = published(world).iter().any(|put| put.text.contains(&id))
                || world.overflow.messages().iter().any(|message| message.body.contains(&id));
            assert!(answer.0 == 429 || is_there, "{hanging:?}: {answer:?}");
            (hanging, install, answer)
        }
    });
    for (hanging, install, answer) in join_all(cases).await {
        let hangs = |call| hanging.contains(&call);
        let expected =
            if hangs(Call::Secrets) || (hangs(Call::Events) && hangs(Call::Queue)) || (install && hangs(Call::Store)) {
                429
            } else {
                200
            };
        assert_eq!(answer.0, expected, "{hanging:?}: {answer:?}");
    }
}
