//! The overflow queue: its messages are published by the same function, each message by itself.

use aws_lambda_events::sqs::SqsMessage;
use it::proxy::{Call, Fault};
use it::sender::{Sender, reply};
use it::world::World;
use sandbox::event_bridge::Failure;
use serde_json::json;

use crate::{contact, published, with_overflow};

it::stories!(
    what_the_bus_did_not_take_is_published_later,
    a_message_that_is_not_published_stays_on_the_queue,
    large_events_are_divided_among_requests,
);

/// Invokes the function with the messages of the queue, and deletes those that it has published.
async fn drain(world: &World, sender: &Sender) -> Vec<String> {
    let of = |message: &sandbox::queue::Message| {
        let mut record = SqsMessage::default();
        record.message_id = Some(message.id.clone());
        record.body = Some(message.body.clone());
        record
    };
    let messages = world.overflow.messages();
    let ends = world.deadline().0.try_into().expect("after 1970");
    let answer = sender.listener.drain(&messages.iter().map(of).collect::<Vec<_>>(), ends).await;
    let failed: Vec<String> = answer.batch_item_failures.into_iter().map(|failed| failed.item_identifier).collect();
    let left: Vec<_> = messages.into_iter().filter(|message| failed.contains(&message.id)).collect();
    world.overflow.purge();
    for message in &left {
        world.overflow.send(message.body.clone());
    }
    left.into_iter().map(|message| message.body).collect()
}

async fn what_the_bus_did_not_take_is_published_later(world: World) {
    let sender = with_overflow(&world).await;
    world.event_bridge.fail(Some(Failure::HangUp));
    let bodies: Vec<_> = (0..25).map(|number| contact(&format!("w{number}")).to_string()).collect();
    for body in &bodies {
        assert_eq!(sender.send_text(body).await, reply(200, "queued"));
    }
    assert_eq!(drain(&world, &sender).await, bodies, "the bus is still down");
    world.event_bridge.fail(None);
    let before = world.event_bridge.requests();
    assert_eq!(drain(&world, &sender).await, [""; 0]);
    let mut texts: Vec<_> = published(&world).into_iter().map(|put| put.text).collect();
    texts.sort();
    let mut expected = bodies;
    expected.sort();
    assert_eq!(texts, expected);
    assert!(published(&world).iter().all(|put| put.detail_type == "ContactCreate" && put.resources == ["location:L1"]));
    assert_eq!(world.event_bridge.requests() - before, 3, "ten in a request");
}

async fn a_message_that_is_not_published_stays_on_the_queue(world: World) {
    let sender = with_overflow(&world).await;
    let texts = ["one", "two", "three"].map(|id| contact(id).to_string());
    for text in &texts {
        world.overflow.send(text.clone());
    }
    world.overflow.send("not an event");
    world.event_bridge.refuse(&[("\"two\"", "MalformedDetail")]);
    assert_eq!(drain(&world, &sender).await, [&texts[1], "not an event"]);
    world.event_bridge.refuse(&[]);
    for fault in [Fault::AccessDenied, Fault::Stall { applied: false }] {
        sender.proxy.always(Call::Events, fault);
        assert_eq!(drain(&world, &sender).await.len(), 2);
        sender.proxy.heal();
    }
    let without_bus = Sender::new(&world).await;
    assert_eq!(drain(&world, &without_bus).await.len(), 2);
    assert_eq!(drain(&world, &sender).await, ["not an event"]);
    assert_eq!(published(&world).len(), 3);
}

async fn large_events_are_divided_among_requests(world: World) {
    let sender = with_overflow(&world).await;
    for number in 0..5 {
        let mut body = contact(&format!("w{number}"));
        body["note"] = json!("x".repeat(400_000));
        world.overflow.send(body.to_string());
    }
    assert_eq!(drain(&world, &sender).await, [""; 0]);
    assert_eq!((published(&world).len(), world.event_bridge.requests()), (5, 3));
}
