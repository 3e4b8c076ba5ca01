//! Calls of the queue: their records, and those of the idempotency keys that they use.

use std::time::Duration;

use http::Method;
use it::proxy::{Call, Fault as AwsFault, Proxy};
use it::world::{World, location};
use lambda_runtime::{Context, LambdaEvent};
use relay::queue::{self, Door};
use sandbox::marketplace::faults::{Endpoint, Fault};
use sandbox::queue::Queue;
use serde_json::value::to_raw_value;
use serde_json::{Value, json};
use shared::config::QueueConfig;
use shared::domain::status::LeaseOwner;
use shared::relay::Relay;
use shared::table::idempotency::{CallId, CallOutcome, Intent, MessageUse, RecordedRequest};

use super::{CALLERS, arrived, installed, keyed};

it::stories!(
    a_message_leaves_its_key_as_a_caller_would,
    a_key_of_a_message_ends_after_a_day,
    an_end_outlives_the_right_to_the_call,
    a_message_whose_process_died_is_refused_without_the_right,
    a_message_keeps_its_end_in_later_versions,
    a_failing_charge_ends,
    a_closed_endpoint_holds_no_other_call_up,
    results_that_cannot_be_sent_keep_their_messages,
    a_call_whose_result_is_late_is_not_sent_again,
    copies_of_a_charge_have_the_same_end,
    the_largest_message_can_be_sent_anew,
);

/// A process that consumes the queue of calls.
struct Consumer {
    relay: Relay,
    door: Door,
    proxy: Proxy,
    calls: Queue,
    results: Queue,
}

/// A message that is delivered.
#[derive(Clone)]
struct Message {
    id: String,
    body: Value,
    receives: u32,
    carried: Option<String>,
}

impl Message {
    /// A call of the caller `a` that has had its turn.
    fn of(request: &Value) -> Self {
        let mut body = request.clone();
        body["caller"] = json!("a");
        Self { id: shared::domain::random::hex::<8>(), body, receives: 2, carried: None }
    }

    /// A call whose next try is its last.
    fn at_its_last_try(request: &Value) -> Self {
        let mut message = Self::of(request);
        message.carried = Some(json!({ "id": message.id, "first_sent": 0, "tries": 4 }).to_string());
        message
    }
}

impl Consumer {
    async fn start(world: &World) -> Self {
        permit(world, &json!({ "id": "a", "aliases": ["a"], "queue": true }));
        let (app, proxy) = world.app(world.clock.clone(), world.market.url(), &[]).await;
        let name = |what: &str| format!("{what}-{}", shared::domain::random::hex::<4>());
        let calls = world.queue.another(&name("calls"), Duration::ZERO);
        let results = world.queue.another(&name("results"), Duration::ZERO);
        let config = QueueConfig { calls_url: calls.url(), results_url: Some(results.url()), reserve: 500 };
        let door = Door::new(&app, config);
        Self { relay: Relay::new(app, CALLERS), door, proxy, calls, results }
    }

    /// Delivers a message. Returns true if it stays on the queue.
    async fn deliver(&self, message: &Message) -> bool {
        let mut attributes = json!({});
        if let Some(carried) = &message.carried {
            attributes = json!({ "Relay": { "stringValue": carried, "dataType": "String" } });
        }
        let record = json!({ "messageId": message.id, "receiptHandle": "r", "body": message.body.to_string(),
            "attributes": { "ApproximateReceiveCount": message.receives.to_string(),
                "SentTimestamp": self.relay.now().0.to_string() },
            "messageAttributes": attributes, "eventSource": "aws:sqs", "awsRegion": "us-east-1" });
        let mut context = Context::default();
        "arn:aws:lambda:us-east-1:1:function:relay".clone_into(&mut context.invoked_function_arn);
        context.deadline = (self.relay.now() + Duration::from_secs(29)).0.try_into().expect("after 1970");
        let event = LambdaEvent::new(to_raw_value(&json!({ "Records": [record] })).expect("JSON"), context);
        let answer = Box::pin(queue::answer(&self.relay, Some(&self.door), &event)).await;
        let answer: Value = serde_json::from_str(answer.get()).expect("JSON");
        !answer["batchItemFailures"].as_array().expect("a list").is_empty()
    }

    /// Delivers a message, and returns its result. `None` if it has not ended.
    async fn result(&self, message: &Message) -> Option<Value> {
        let before = self.results.messages().len();
        self.deliver(message).await;
        let new = self.results.messages().into_iter().nth(before)?;
        Some(serde_json::from_str(&new.body).expect("JSON"))
    }

    /// The message in the form in which it was sent anew last.
    fn sent_anew(&self, message: &Message) -> Option<Message> {
        let anew = self.calls.messages().pop()?;
        self.calls.purge();
        let carried = anew.attributes["Relay"]["StringValue"].as_str().map(str::to_owned);
        Some(Message { id: anew.id, carried, receives: 1, ..message.clone() })
    }
}

/// Makes this the only caller.
fn permit(world: &World, caller: &Value) {
    world.secrets.put(CALLERS, json!({ "callers": [caller] }).to_string());
}

/// The outcome and the status of a result.
fn end(result: &Value) -> (&str, u64) {
    (result["outcome"].as_str().expect("an outcome"), result["status"].as_u64().expect("a status"))
}

/// Each way in which the call of a message can end. A repeated delivery has the same end, and the next request with its key
/// gets what it would get after a request of a caller.
async fn a_message_leaves_its_key_as_a_caller_would(world: World) {
    let process = installed(&world).await;
    let consumer = Consumer::start(&world).await;
    let said = |status| Some(Fault::refusal(status, "as planned"));
    let wrong_scope = Some(Fault::unauthorized("The token is not authorized for this scope."));
    let cases = [
        ("POST", "L1", None, ("answered", 200), "replayed"),
        ("POST", "L1", said(404), ("answered", 404), "replayed"),
        ("POST", "L1", wrong_scope, ("answered", 401), "sent"),
        ("POST", "L1", said(425), ("answered", 425), "sent"),
        ("POST", "L1", Some(Fault::block_page()), ("answered", 403), "sent"),
        ("POST", "L1", said(500), ("unknown", 500), "unknown"),
        ("PUT", "L1", said(500), ("answered", 500), "sent"),
        ("PUT", "L1", Some(Fault::HangUp { processed: true }), ("unknown", 502), "sent"),
        ("POST", "L2", None, ("refused", 404), "sent"),
    ];
    for (number, (method, place, fault, expected, next)) in cases.into_iter().enumerate() {
        let mut request = keyed(&format!("k{number}"), method, "/echo");
        request["resource"] = json!({ "location": place });
        let what = format!("{method} {place} {fault:?}");
        if let Some(fault) = fault {
            world.market.fault(Endpoint::Api, fault, None);
        }
        let message = Message::at_its_last_try(&request);
        let first = consumer.result(&message).await.unwrap_or_else(|| panic!("{what} has not ended"));
        assert_eq!(end(&first), expected, "{what}: {first}");
        world.market.clear_faults();
        if place == "L2" {
            world.install(&world.process().await, &location("L2")).await;
        }
        // Past the pauses of a failing endpoint and of a missing installation.
        world.advance(Duration::from_secs(30));
        let repeated = consumer.result(&message).await.unwrap_or_else(|| panic!("{what} has not ended again"));
        assert_eq!((end(&repeated), &repeated["body"]), (end(&first), &first["body"]), "{what}");
        let sent = process.send(&request).await;
        match next {
            "replayed" => assert!(sent.is_replayed(), "{what}: {sent:?}"),
            "sent" => assert_eq!((sent.status(), sent.is_replayed()), (200, false), "{what}: {sent:?}"),
            _ => assert_eq!(sent.refusal(), (409, "idempotency_unknown"), "{what}"),
        }
    }
    world.end().await;
}

async fn a_key_of_a_message_ends_after_a_day(world: World) {
    let process = installed(&world).await;
    let consumer = Consumer::start(&world).await;
    let request = keyed("k", "POST", "/contacts/");
    let message = Message::of(&request);
    let first = consumer.result(&message).await.expect("an end");
    assert_eq!((end(&first), arrived(&world)), (("answered", 201), 1));
    world.advance(Duration::from_hours(23));
    assert!(process.send(&request).await.is_replayed());
    world.advance(Duration::from_hours(24 * 13));
    let repeated = consumer.result(&message).await.expect("an end");
    assert_eq!((&repeated["body"], arrived(&world)), (&first["body"], 1), "the message is remembered for two weeks");
    let sent = process.send(&request).await;
    assert_eq!((sent.status(), sent.is_replayed(), arrived(&world)), (201, false, 2), "{sent:?}");
    world.end().await;
}

async fn an_end_outlives_the_right_to_the_call(world: World) {
    installed(&world).await;
    let consumer = Consumer::start(&world).await;
    let made = Message::of(&keyed("k", "POST", "/contacts/"));
    let mut unkeyed = keyed("", "POST", "/contacts/");
    unkeyed.as_object_mut().expect("members").remove("idempotency_key");
    let (made_too, late) = (Message::of(&unkeyed), Message::of(&unkeyed));
    for message in [&made, &made_too] {
        assert_eq!(end(&consumer.result(message).await.expect("an end")), ("answered", 201));
    }
    permit(&world, &json!({ "id": "a", "aliases": ["a"], "queue": true, "methods": ["GET"] }));
    world.advance(Duration::from_mins(2));
    for message in [&made, &made_too] {
        assert_eq!(end(&consumer.result(message).await.expect("an end")), ("answered", 201), "it was made");
    }
    assert_eq!(end(&consumer.result(&late).await.expect("an end")), ("refused", 403));
    // A message without the right learns nothing of another request with its key, and changes nothing of it.
    let curious = Message::of(&keyed("k", "POST", "/contacts/"));
    assert_eq!(end(&consumer.result(&curious).await.expect("an end")), ("refused", 403));
    permit(&world, &json!({ "id": "a", "aliases": ["a"], "queue": true }));
    world.advance(Duration::from_mins(2));
    assert_eq!(end(&consumer.result(&late).await.expect("an end")), ("refused", 403), "it was refused");
    assert_eq!(end(&consumer.result(&made).await.expect("an end")), ("answered", 201), "its record is as it was");
    assert_eq!(arrived(&world), 2);
    world.end().await;
}

/// The beginnings of the record of a message: an intent, as a process with other fingerprints has written it.
async fn begun(world: &World, message: &Message, method: &str) -> (CallId, LeaseOwner) {
    let (id, owner, now) = (CallId::of_message(&message.id), LeaseOwner::new(), world.clock.now());
    let [caller, resource, path, fingerprint] = ["a", "location:L1", "/echo", "of another version"].map(str::to_owned);
    let request = RecordedRequest { caller, resource, method: method.to_owned(), path, fingerprint };
    let day = Duration::from_hours(24);
    let intent = Intent {
        request: &request,
        is_repeatable: method != "POST",
        lease_ends_at: now + Duration::from_secs(30),
        kept_until: now + day * 15,
        message: Some(MessageUse { id: &message.id, key_holds_until: now + day }),
    };
    assert!(world.table.claim_call(&id, &owner, &intent, now).await.expect("a write").is_applied());
    (id, owner)
}

/// A repeatable call whose process died may be sent again, but not by a caller without the right. So it ends.
async fn a_message_whose_process_died_is_refused_without_the_right(world: World) {
    installed(&world).await;
    let consumer = Consumer::start(&world).await;
    let message = Message::of(&json!({ "resource": { "location": "L1" }, "method": "PUT", "path": "/echo" }));
    let _dead = begun(&world, &message, "PUT").await;
    permit(&world, &json!({ "id": "a", "aliases": ["a"], "queue": true, "methods": ["GET"] }));
    world.advance(Duration::from_mins(2));
    assert_eq!(end(&consumer.result(&message).await.expect("an end")), ("refused", 403));
    assert_eq!(arrived(&world), 0);
    world.end().await;
}

/// An update may compute another fingerprint of the same message. The message is no other request.
async fn a_message_keeps_its_end_in_later_versions(world: World) {
    installed(&world).await;
    let consumer = Consumer::start(&world).await;
    let message = Message::of(&json!({ "resource": { "location": "L1" }, "method": "POST", "path": "/echo" }));
    let (id, owner) = begun(&world, &message, "POST").await;
    let (now, made) = (world.clock.now(), CallOutcome::Answered((201, None)));
    let kept = Duration::from_hours(24 * 15);
    assert!(world.table.end_call(&id, &owner, &made, now + kept, now).await.expect("a write"));
    assert_eq!(end(&consumer.result(&message).await.expect("an end")), ("answered", 201));
    assert_eq!(arrived(&world), 0);
    world.end().await;
}

async fn a_failing_charge_ends(world: World) {
    installed(&world).await;
    let consumer = Consumer::start(&world).await;
    let charge = json!({ "resource": { "location": "L1" }, "method": "POST", "path": "/marketplace/billing/charges",
        "body": { "eventId": "e1", "units": 1 } });
    let mut message = Message::of(&charge);
    // Every charge fails, and every look for it works.
    let mut is_look = false;
    for delivery in 0..40 {
        if !is_look {
            world.market.fault(Endpoint::Api, Fault::refusal(500, "as planned"), Some(1));
        }
        if let Some(result) = consumer.result(&message).await {
            assert_eq!(end(&result), ("unknown", 500), "{result}");
            world.market.clear_faults();
            let again = consumer.result(&message).await.expect("an end");
            assert_eq!(again, result, "a repeated delivery has the same end");
            let sent = world.market.api_requests(&sandbox::marketplace::grants::Resource::Location("L1".to_owned()));
            let made = sent.iter().filter(|request| request.method == Method::POST.as_str()).count();
            assert_eq!((made, &result["attempts"]), (5, &json!(5)), "in {delivery} deliveries: {result}");
            world.end().await;
            return;
        }
        let anew = consumer.sent_anew(&message);
        is_look = anew.is_some();
        message = anew.unwrap_or(message);
        world.advance(Duration::from_mins(2));
    }
    panic!("the call has not ended after 40 deliveries");
}

async fn a_closed_endpoint_holds_no_other_call_up(world: World) {
    installed(&world).await;
    let consumer = Consumer::start(&world).await;
    let unkeyed = |path: &str| Message::of(&json!({ "resource": { "location": "L1" }, "method": "GET", "path": path }));
    world.market.fault(Endpoint::Api, Fault::throttled(), Some(1));
    let refused = unkeyed("/contacts/");
    assert!(consumer.deliver(&refused).await, "it waits");
    let keys: Vec<_> = world.items().await.iter().map(|item| item["pk"].as_s().expect("a key").clone()).collect();
    assert!(!keys.iter().any(|key| key.starts_with("turns#")), "it takes a turn of its location: {keys:?}");
    let mut other = unkeyed("/echo");
    other.receives = 1;
    assert_eq!(end(&consumer.result(&other).await.expect("an end")), ("answered", 200));
    world.end().await;
}

async fn results_that_cannot_be_sent_keep_their_messages(world: World) {
    installed(&world).await;
    let consumer = Consumer::start(&world).await;
    let mut message = Message::of(&keyed("k", "POST", "/contacts/"));
    consumer.results.fail(true);
    // It is sent anew with the mark that its call has ended.
    assert!(!consumer.deliver(&message).await);
    message = consumer.sent_anew(&message).expect("it is sent anew");
    assert!(consumer.deliver(&message).await);
    assert!(consumer.calls.messages().is_empty(), "it carries the mark");
    // SQS would take the message away soon, so it is sent anew.
    message.receives = 500;
    assert!(!consumer.deliver(&message).await);
    let anew = consumer.sent_anew(&message).expect("it is sent anew");
    // So are the messages of callers that cannot be read.
    consumer.results.fail(false);
    let cold = Consumer::start(&world).await;
    cold.proxy.always(Call::Secrets, AwsFault::AccessDenied);
    assert!(!cold.deliver(&Message { receives: 500, ..anew.clone() }).await);
    assert!(cold.sent_anew(&anew).is_some());
    world.advance(Duration::from_mins(11));
    assert_eq!(end(&consumer.result(&anew).await.expect("an end")), ("answered", 201));
    assert_eq!(arrived(&world), 1);
    world.end().await;
}

/// Results may be refused for longer than a record or an idempotency key holds.
async fn a_call_whose_result_is_late_is_not_sent_again(world: World) {
    let process = installed(&world).await;
    let consumer = Consumer::start(&world).await;
    let (keyed, other) = (keyed("k", "POST", "/contacts/"), keyed("k", "POST", "/echo"));
    let mut unkeyed = keyed.clone();
    unkeyed.as_object_mut().expect("members").remove("idempotency_key");
    let mut ended = Vec::new();
    consumer.results.fail(true);
    for request in [&keyed, &unkeyed] {
        let message = Message::of(request);
        consumer.deliver(&message).await;
        ended.push(consumer.sent_anew(&message).expect("it is sent anew"));
    }
    // Another message with the key gets the answer of the first one, and a refused one is refused.
    for (request, of_first) in [(&keyed, true), (&other, false)] {
        let message = Message::of(request);
        consumer.deliver(&message).await;
        let anew = consumer.sent_anew(&message);
        assert_eq!(anew.is_some(), of_first, "a refusal is no end that could be lost");
        consumer.results.fail(false);
        let message = anew.unwrap_or(message);
        world.advance(Duration::from_mins(1));
        let expected = if of_first { ("answered", 201) } else { ("refused", 422) };
        assert_eq!(end(&consumer.result(&message).await.expect("an end")), expected);
        consumer.results.fail(true);
    }
    consumer.results.fail(false);
    world.advance(Duration::from_hours(25));
    assert_eq!((process.send(&other).await.status(), arrived(&world)), (200, 3), "another request uses the key");
    assert_eq!(end(&consumer.result(&ended[0]).await.expect("an end")), ("unknown", 409));
    assert_eq!(end(&consumer.result(&ended[1]).await.expect("an end")), ("answered", 201));
    world.advance(Duration::from_hours(24 * 15));
    for message in &ended {
        assert_eq!(end(&consumer.result(message).await.expect("an end")), ("unknown", 409), "its record is gone");
    }
    assert_eq!(arrived(&world), 3);
    world.end().await;
}

/// SQS may deliver a message twice, and one of the copies may have had fewer tries.
async fn copies_of_a_charge_have_the_same_end(world: World) {
    installed(&world).await;
    let consumer = Consumer::start(&world).await;
    let charge = json!({ "resource": { "location": "L1" }, "method": "POST", "path": "/marketplace/billing/charges",
        "body": { "eventId": "e1", "units": 1 } });
    let copy = Message::of(&charge);
    let mut message = Message { carried: Message::at_its_last_try(&charge).carried, ..copy.clone() };
    message.carried = message.carried.map(|carried| {
        let mut carried: Value = serde_json::from_str(&carried).expect("JSON");
        carried["id"] = json!(copy.id);
        carried.to_string()
    });
    world.market.fault(Endpoint::Api, Fault::refusal(500, "as planned"), Some(1));
    assert!(consumer.result(&message).await.is_none());
    message = consumer.sent_anew(&message).expect("a further try");
    world.advance(Duration::from_mins(2));
    let first = consumer.result(&message).await.expect("an end");
    assert_eq!(end(&first), ("unknown", 500));
    assert_eq!(consumer.result(&copy).await.expect("an end"), first);
    assert_eq!(arrived(&world), 1);
    world.end().await;
}

/// SQS counts attributes, too.
async fn the_largest_message_can_be_sent_anew(world: World) {
    installed(&world).await;
    let consumer = Consumer::start(&world).await;
    let of = |bytes: usize| {
        let request = |body: &str| {
            let resource = json!({ "location": "L1" });
            Message::of(&json!({ "resource": resource, "method": "PUT", "path": "/echo", "body": body }))
        };
        let bare = request("").body.to_string().len();
        request(&"x".repeat(bytes - bare))
    };
    world.market.fault(Endpoint::Api, Fault::refusal(500, "as planned"), Some(1));
    let largest = of(1_047_552);
    assert!(!consumer.deliver(&largest).await, "a further try");
    let anew = consumer.sent_anew(&largest).expect("it is sent anew");
    world.advance(Duration::from_mins(1));
    assert_eq!(end(&consumer.result(&anew).await.expect("an end")), ("answered", 200));
    let too_large = of(1_047_553);
    assert_eq!(end(&consumer.result(&too_large).await.expect("an end")), ("refused", 413));
    assert!(!consumer.deliver(&too_large).await, "it leaves the queue");
    world.end().await;
}
