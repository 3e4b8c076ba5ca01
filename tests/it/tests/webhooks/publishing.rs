//! Each verified webhook is on the bus as it came, once for each `webhookId`.

use std::time::Duration;

use futures_util::future::join_all;
use it::proxy::Call;
use it::sender::{Sender, reply};
use it::world::World;
use serde_json::json;
use shared::config::{Dedupe, WebhookSettings};
use shared::table::webhook::LEASE;

use crate::{BUS, contact, published, publisher};

it::stories!(
    each_type_is_published_byte_for_byte,
    a_body_that_is_not_an_event_is_refused_after_its_signature,
    an_event_that_is_too_large_is_published_by_name,
    the_same_id_is_published_once_in_a_day,
    an_event_without_an_id_is_published_at_each_delivery,
    without_deduplication_nothing_is_written,
    many_deliveries_at_once_are_published_once,
    a_delivery_during_another_is_asked_for_again,
    the_claim_of_a_dead_process_lapses,
    without_a_bus_other_events_are_ignored,
);

/// Bodies as the platform documents them, with the type and the resources of each.
const BODIES: [(&str, &[&str], &str); 19] = [
    (
        "ContactCreate",
        &["location:ve9EPM428h8vShlRW1KT"],
        r#"{"type":"ContactCreate","locationId":"ve9EPM428h8vShlRW1KT","id":"nmFmQEsNgz6AVpgLVUJ0","address1":"3535 1st St N","city":"ruDolomitebika","state":"AL","companyName":"Loram ipsum","country":"DE","source":"xyz form","dateAdded":"2021-11-26T12:41:02.193Z","dateOfBirth":"2000-01-05T00:00:00.000Z","dnd":true,"email":"JohnDeo@gmail.comm","name":"John Deo","firstName":"John","lastName":"Deo","phone":"+919509597501","postalCode":"452001","tags":["id magna sed Lorem","Duis dolor commodo aliqua"],"website":"https://www.google.com/","attachments":[],"assignedTo":"nmFmQEsNgz6AVpgLVUJ0","customFields":[{"id":"BcdmQEsNgz6AVpgLVUJ0","value":"XYZ Corp"}],"webhookId":"w-1","timestamp":"2025-06-25T06:57:06.225Z"}"#,
    ),
    (
        "ContactDndUpdate",
        &["location:ve9EPM428h8vShlRW1KT"],
        r#"{ "type": "ContactDndUpdate", "locationId": "ve9EPM428h8vShlRW1KT", "id": "nm", "dndSettings": {"SMS": {"status": "inactive", "message": "", "code": ""}} }"#,
    ),
    (
        "InboundMessage",
        &["location:l1C08ntBrFjLS0elLIYU"],
        r#"{"type":"InboundMessage","locationId":"l1C08ntBrFjLS0elLIYU","attachments":[],"body":"This is a test message \u2014 with an escape, an é and a 🦀","contactId":"cI08i1Bls3iTB9bKgFJh","contentType":"text/plain","conversationId":"fcanlLgpbQgQhderivVs","dateAdded":"2021-04-21T11:31:45.750Z","direction":"inbound","messageType":"SMS","status":"delivered","messageId":"cI08i1Bls3iTB9bKgFJh"}"#,
    ),
    (
        "OutboundMessage",
        &["location:l1C08ntBrFjLS0elLIYU"],
        "{\"type\":\"OutboundMessage\",\r\n\t\"locationId\" : \"l1C08ntBrFjLS0elLIYU\",\"messageType\":\"Email\",\"emailMessageId\":\"CWl2aEiDTOMwAgQTuXTN\",\"threadId\":\"x\",\"source\":\"workflow\",\"from\":\"a@b.example\"}\n",
    ),
    (
        "OpportunityStageUpdate",
        &["location:ve9EPM428h8vShlRW1KT"],
        r#"{"type":"OpportunityStageUpdate","locationId":"ve9EPM428h8vShlRW1KT","id":"wWhVuzvpRuOA1ZVWi4FC","assignedTo":"bNl8QNGXhIQJLv8eeASQ","contactId":"cJAWDskpkJHbRbhAT7bs","monetaryValue":40.10,"name":"Loram ipsu","pipelineId":"VDm7RPYC2GLUvdpKmBfC","pipelineStageId":"e93ba61a-53b3-45e7-985a-c7732dbcdb69","source":"form","status":"open","dateAdded":"2021-11-26T12:41:02.193Z"}"#,
    ),
    (
        "AppointmentCreate",
        &["location:0IHuJvc2ofPAAA8GzTRi"],
        r#"{"type":"AppointmentCreate","locationId":"0IHuJvc2ofPAAA8GzTRi","appointment":{"id":"0TkCdp9PfvLeWKYRRvIz","address":"https://meet.google.com/yoa-vmru-rze","title":"test","calendarId":"BqTwX8QFwXzpegMve9EQ","contactId":"9NkT25Vor1v4aQatFsv2","groupId":"9NkT25Vor1v4aQatFsv2","appointmentStatus":"confirmed","assignedUserId":"YlWd2wuCAZQzh2cH1fVZ","users":["YlWd2wuCAZQzh2cH1fVZ"],"notes":"Some dummy note","source":"booking_widget","startTime":"2023-09-25T16:00:00+05:30","endTime":"2023-09-25T16:00:00+05:30","dateAdded":"2023-09-25T16:00:00+05:30","dateUpdated":"2023-09-25T16:00:00+05:30"}}"#,
    ),
    (
        "InvoicePaid",
        &["location:6578278e879ad2646715ba9c"],
        r#"{"type":"InvoicePaid","_id":"6578278e879ad2646715ba9c","status":"paid","liveMode":false,"amountPaid":999,"altId":"6578278e879ad2646715ba9c","altType":"location","name":"New Invoice","currency":"USD","total":999,"invoiceItems":[{"name":"Price Discount","qty":1,"amount":999.0e0}]}"#,
    ),
    (
        "OrderCreate",
        &["location:9nEIHUDDHEQlOIAO93"],
        r#"{"type":"OrderCreate","_id":"6578","altId":"9nEIHUDDHEQlOIAO93","altType":"location","contactId":"c","currency":"USD","amount":123456789012345678901234567890}"#,
    ),
    (
        "NoteCreate",
        &["location:ve9EPM428h8vShlRW1KT"],
        r#"{"type":"NoteCreate","locationId":"ve9EPM428h8vShlRW1KT","id":"otg8dTQqGLh3Q6iQI55w","body":"Loram ipsum","contactId":"CWBf1PR9LvvBkcYqiXlc","dateAdded":"2021-11-26T12:41:02.193Z"}"#,
    ),
    (
        "TaskCreate",
        &["location:ve9EPM428h8vShlRW1KT"],
        r#"{"type":"TaskCreate","locationId":"ve9EPM428h8vShlRW1KT","id":"otg8","assignedTo":"GWBf","body":"Loram ipsum","contactId":"CWBf","title":"Loram ipsum","dueDate":null}"#,
    ),
    (
        "LocationCreate",
        &["company:UAXssdawIWAWD"],
        r#"{"type":"LocationCreate","id":"ve9EPM428h8vShlRW1KT","companyId":"UAXssdawIWAWD","name":"John Deo","email":"JohnDeo@gmail.com","stripeProductId":"prod_xyz123abc"}"#,
    ),
    (
        "UserCreate",
        &["location:ve9EPM428h8vShlRW1KT"],
        r#"{"type":"UserCreate","locationId":"ve9EPM428h8vShlRW1KT","id":"u","firstName":"A","permissions":{"contactsEnabled":true},"extension":"","role":"admin"}"#,
    ),
    (
        "ProductCreate",
        &["location:3SwdhCsvxI8Au3KsPJt6"],
        r#"{"type":"ProductCreate","_id":"655b33aa2209e60b6adb87a7","description":"<p>a</p>","variants":[],"locationId":"3SwdhCsvxI8Au3KsPJt6","availableInStore":true}"#,
    ),
    (
        "RecordCreate",
        &["location:eHy2cOSZxMQzQ6Yyvl8P"],
        r#"{"id":"67f0","owner":[],"followers":[],"properties":{"note":"a"},"locationId":"eHy2cOSZxMQzQ6Yyvl8P","objectKey":"custom_objects.pets","associationId":"x","type":"RecordCreate"}"#,
    ),
    (
        "ConversationUnreadWebhook",
        &["location:ve9EPM428h8vShlRW1KT"],
        r#"{"type":"ConversationUnreadWebhook","locationId":"ve9EPM428h8vShlRW1KT","id":"9VEmS0si86GW6gXWU89b","contactId":"ojkOVDFhFF2tB8WUJ5gs","unreadCount":1,"inbox":true,"starred":false,"deleted":false}"#,
    ),
    (
        "VoiceAiCallEnd",
        &["location:L1", "location:L2", "company:C1"],
        r#"{"type":"VoiceAiCallEnd","locationIds":["L2","L1"],"companyId":"C1"}"#,
    ),
    ("NeverHeardOf", &[], r#"{"type":"NeverHeardOf","type2":{"type":"x"},"a":1,"a":2,"locationId":{"odd":true}}"#),
    (
        "InboundMessage",
        &["location:L1"],
        r#"{"type":"InboundMessage","locationId":"L1","body":"a text that was cut within an emoji \ud83d","cost":1e400}"#,
    ),
    ("x\u{e4}y", &[], "  {\"type\":\"x\\u00e4y\"}  "),
];

async fn each_type_is_published_byte_for_byte(world: World) {
    let sender = publisher(&world).await;
    for (kind, resources, body) in BODIES {
        assert_eq!(sender.send_text(body).await, reply(200, "published"), "{kind}");
        let put = published(&world).pop().expect("on the bus");
        assert_eq!((&*put.detail_type, &*put.text), (kind, body));
        assert_eq!(put.resources, resources, "{kind}");
    }
    assert_eq!(published(&world).len(), BODIES.len());
    let long = json!({"type": "x".repeat(500), "locationId": "L1"});
    assert_eq!(sender.send(&long).await, reply(200, "published"));
    let put = published(&world).pop().expect("on the bus");
    assert_eq!((put.detail_type, put.detail), ("x".repeat(128), long));
}

async fn a_body_that_is_not_an_event_is_refused_after_its_signature(world: World) {
    let sender = publisher(&world).await;
    for body in ["", "{", "[]", "null", "7", r#"["ContactCreate"]"#, "{}", r#"{"type":""}"#, r#"{"type":7}"#, "{} {}"] {
        assert_eq!(sender.send_text(body).await, reply(400, "malformed"), "{body}");
        assert_eq!(sender.send_bytes(body, "AAAA").await, reply(401, "not_signed"), "{body}");
    }
    let foreign = json!({"type": "ContactCreate", "appId": "another", "locationId": "L1", "webhookId": "w"});
    assert_eq!(sender.send(&foreign).await, reply(403, "foreign_app"));
    assert_eq!(published(&world), []);
    assert_eq!(sender.proxy.calls(Call::Write), 0);
}

async fn an_event_that_is_too_large_is_published_by_name(world: World) {
    let sender = publisher(&world).await;
    let body = |size: usize| {
        let mut body = contact("w1");
        body["note"] = json!("");
        body["note"] = json!("x".repeat(size - body.to_string().len()));
        body.to_string()
    };
    // The time, the source, the type and the resource count.
    let most = 1024 * 1024 - 1 - 14 - "hoopai.platform".len() - "ContactCreate".len() - "location:L1".len();
    assert_eq!(sender.send_text(&body(most)).await, reply(200, "published"));
    assert_eq!(published(&world).pop().expect("on the bus").text, body(most));
    for (id, larger_by) in [("w2", 1), ("w3", 4 * 1024 * 1024)] {
        let text = body(most + larger_by).replace("\"w1\"", &format!("\"{id}\""));
        assert_eq!(sender.send_text(&text).await, reply(200, "published"));
        let expected = json!({"type": "ContactCreate", "webhookId": id, "locationId": "L1", "truncated": true});
        let put = published(&world).pop().expect("on the bus");
        assert_eq!((put.detail, &*put.detail_type), (expected, "ContactCreate"));
        assert_eq!(put.resources, ["location:L1"]);
    }
}

async fn the_same_id_is_published_once_in_a_day(world: World) {
    let sender = publisher(&world).await;
    assert_eq!(sender.send(&contact("w1")).await, reply(200, "published"));
    let mut repeated = contact("w1");
    repeated["timestamp"] = json!("2026-01-01T00:00:00Z");
    assert_eq!(sender.send(&repeated).await, reply(200, "repeated"), "the id counts, not the body");
    assert_eq!(sender.send(&contact("w2")).await, reply(200, "published"));
    world.advance(Duration::from_hours(24) - Duration::from_secs(1));
    assert_eq!(sender.send(&contact("w1")).await, reply(200, "repeated"));
    assert_eq!(published(&world).len(), 2);
    assert_eq!(sender.proxy.calls(Call::Write), 2 * 2 + 2, "two writes for an event, one for a repetition");
    world.advance(Duration::from_secs(2));
    assert_eq!(sender.send(&contact("w1")).await, reply(200, "published"));
}

async fn an_event_without_an_id_is_published_at_each_delivery(world: World) {
    let sender = publisher(&world).await;
    for id in [json!(null), json!(7), json!(""), json!("x".repeat(201))] {
        let mut body = contact("");
        body["webhookId"] = id;
        for _ in 0..2 {
            assert_eq!(sender.send(&body).await, reply(200, "published"), "{}", body["webhookId"]);
        }
    }
    assert_eq!(published(&world).len(), 8, "the same bytes may report another event");
    assert_eq!(sender.proxy.calls(Call::Write), 0);
}

async fn without_deduplication_nothing_is_written(world: World) {
    let settings = WebhookSettings { dedupe: Dedupe::Off, ..WebhookSettings::default() };
    let sender = Sender::with(&world, &BUS, settings).await;
    for _ in 0..2 {
        assert_eq!(sender.send(&contact("w1")).await, reply(200, "published"));
    }
    assert_eq!((published(&world).len(), sender.proxy.calls(Call::Store)), (2, 0));
    // A late repetition of an install or uninstall must not change anything.
    let notice = sender.notice("INSTALL", world.clock.now(), "w2", &json!({"locationId": "L1"}));
    assert_eq!(sender.send(&notice).await, reply(200, "stored"));
    assert_eq!(sender.send(&notice).await, reply(200, "repeated"));
}

async fn many_deliveries_at_once_are_published_once(world: World) {
    let senders = [publisher(&world).await, publisher(&world).await, publisher(&world).await];
    for round in 0..5 {
        let body = contact(&format!("w{round}"));
        let signed: Vec<_> = senders.iter().cycle().take(24).collect();
        let answers = join_all(signed.into_iter().map(|sender| sender.send(&body))).await;
        let count = |wanted: &(u16, String)| answers.iter().filter(|answer| *answer == wanted).count();
        assert_eq!(count(&reply(200, "published")), 1, "{answers:?}");
        assert_eq!(count(&reply(429, "in_progress")) + count(&reply(200, "repeated")), 23, "{answers:?}");
        assert_eq!(published(&world).len(), round + 1);
    }
}

async fn a_delivery_during_another_is_asked_for_again(world: World) {
    let (slow, other) = (publisher(&world).await, publisher(&world).await);
    let at_the_bus = slow.proxy.hold(Call::Events);
    let body = contact("w1");
    let meanwhile = async {
        at_the_bus.reached().await;
        assert_eq!(other.send(&body).await, reply(429, "in_progress"), "the first may still fail");
        at_the_bus.open();
    };
    let (first, ()) = tokio::join!(slow.send(&body), meanwhile);
    assert_eq!(first, reply(200, "published"));
    assert_eq!(other.send(&body).await, reply(200, "repeated"));
    assert_eq!(published(&world).len(), 1);
}

async fn the_claim_of_a_dead_process_lapses(world: World) {
    let (doomed, other) = (publisher(&world).await, publisher(&world).await);
    let body = contact("w1");
    for call in [Call::Events, Call::WebhookMark] {
        let gate = doomed.proxy.hold(call);
        tokio::select! {
            answer = doomed.send(&body) => panic!("it waits: {answer:?}"),
            // The process dies here.
            () = gate.reached() => {}
        }
        assert_eq!(other.send(&body).await, reply(429, "in_progress"));
        world.advance(LEASE);
        assert_eq!(other.send(&body).await, reply(200, "published"));
        assert_eq!(other.send(&body).await, reply(200, "repeated"));
        doomed.proxy.heal();
        world.advance(Duration::from_hours(25));
    }
}

async fn without_a_bus_other_events_are_ignored(world: World) {
    let sender = Sender::new(&world).await;
    for (kind, ..) in BODIES {
        assert_eq!(sender.send(&json!({"type": kind, "webhookId": "w1"})).await, reply(200, "ignored"), "{kind}");
    }
    assert_eq!((sender.proxy.calls(Call::Store), published(&world).len()), (0, 0));
    let unreadable = json!({"type": "UNINSTALL", "appId": sender.app_id, "locationId": "../x"});
    assert_eq!(sender.send(&unreadable).await, reply(400, "malformed"));
}
