//! Each case of docs/decisions/idempotency.md, from the request to the answer of its repeat.

use std::time::Duration;

use futures_util::future::join_all;
use it::proxy::{Call, Fault as AwsFault};
use it::world::{SEALING_SECRET, World, location};
use sandbox::marketplace::faults::{Endpoint, Fault};
use serde_json::{Value, json};

use super::{Process, Sent, arrived, installed, keyed};

it::stories!(
    an_answer_is_given_again,
    each_outcome_decides_about_the_repeat,
    a_key_belongs_to_a_caller_and_a_resource,
    another_request_with_the_key_is_refused,
    many_senders_send_once,
    a_replay_takes_no_permit,
    a_sender_that_dies_without_a_permit_leaves_no_record,
    the_loser_of_a_race_hands_its_permit_on,
    a_request_that_is_too_late_for_its_permit_gets_another_one,
    a_late_request_is_not_unknown_if_its_release_fails_first,
    a_key_twice_in_a_batch_is_refused,
    a_dead_sender_is_followed_only_if_the_request_is_repeatable,
    refusals_of_the_relay_release_the_key,
    without_the_record_nothing_is_sent,
    without_the_outcome_a_post_is_unknown,
    a_slow_record_of_the_outcome_delays_no_answer_beyond_its_time,
    answers_are_sealed_and_outlive_their_data_key,
    a_large_answer_is_given_again_without_its_body,
    an_unknown_charge_is_looked_up,
);

async fn an_answer_is_given_again(world: World) {
    let (first, second) = (installed(&world).await, Process::start(&world).await);
    let request = keyed("k", "POST", "/contacts/");
    let created = first.send(&request).await;
    assert_eq!((created.status(), created.is_replayed(), arrived(&world)), (201, false, 1), "{created:?}");
    for process in [&first, &second] {
        let again = process.send(&request).await;
        assert!(again.is_replayed(), "{again:?}");
        assert_eq!((&again.0["status"], &again.0["source"]), (&json!(201), &json!("platform")));
        assert_eq!(again.0["body"], created.0["body"]);
        assert_eq!(again.header("content-type"), created.header("content-type"));
        assert_eq!(again.header("x-ratelimit-remaining"), None, "the limits of then say nothing");
    }
    world.advance(Duration::from_hours(23));
    assert!(second.send(&request).await.is_replayed());
    assert_eq!(arrived(&world), 1);
    world.advance(Duration::from_hours(1));
    let next_day = second.send(&request).await;
    assert_eq!((next_day.status(), next_day.is_replayed(), arrived(&world)), (201, false, 2), "{next_day:?}");
    let read = first.send(&keyed("read", "GET", "/contacts/")).await;
    let again = first.send(&keyed("read", "GET", "/contacts/")).await;
    assert_eq!((again.is_replayed(), &again.0["body"]), (true, &read.0["body"]), "a read with a key, too");
    world.end().await;
}

/// The answer to the repeat of a request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Repeat {
    /// The same answer, from the record.
    Replayed,
    /// The request is sent again.
    Sent,
    /// 409: the outcome of the first is unknown.
    Unknown,
}

async fn each_outcome_decides_about_the_repeat(world: World) {
    let process = installed(&world).await;
    let said = |status| Fault::refusal(status, "as planned");
    let timed_out = || Fault::refusal(400, "Request Timeout after 30000ms");
    let mut cases: Vec<(Fault, &str, Repeat)> = Vec::new();
    for method in ["POST", "PATCH", "GET", "PUT", "DELETE"] {
        let unknown = if ["POST", "PATCH"].contains(&method) { Repeat::Unknown } else { Repeat::Sent };
        for status in [200, 201, 303, 400, 402, 403, 404, 409, 410, 422] {
            cases.push((said(status), method, Repeat::Replayed));
        }
        for status in [425, 429] {
            cases.push((said(status), method, Repeat::Sent));
        }
        cases.push((Fault::unauthorized("The token is not authorized for this scope."), method, Repeat::Sent));
        cases.push((Fault::block_page(), method, Repeat::Sent));
        for status in [408, 500, 501, 502, 503, 504, 520] {
            cases.push((said(status), method, unknown));
        }
        cases.push((timed_out(), method, unknown));
        cases.push((Fault::HangUp { processed: true }, method, unknown));
        cases.push((Fault::HangUp { processed: false }, method, unknown));
    }
    for (number, (fault, method, expected)) in cases.into_iter().enumerate() {
        let request = keyed(&number.to_string(), method, "/echo");
        let what = format!("{method} after {fault:?}");
        world.market.fault(Endpoint::Api, fault, None);
        let first = process.send(&request).await;
        world.market.clear_faults();
        // Past the pause after a 429.
        world.advance(Duration::from_secs(30));
        let before = arrived(&world);
        let again = process.send(&request).await;
        let sent = arrived(&world) - before;
        match expected {
            Repeat::Replayed => {
                assert_eq!((again.is_replayed(), sent), (true, 0), "{what}: {again:?}");
                assert_eq!((&again.0["status"], &again.0["body"]), (&first.0["status"], &first.0["body"]), "{what}");
            }
            Repeat::Sent => {
                assert_eq!((again.status(), again.is_replayed(), sent), (200, false, 1), "{what}: {again:?}");
            }
            Repeat::Unknown => assert_eq!((again.refusal(), sent), ((409, "idempotency_unknown"), 0), "{what}"),
        }
    }
    // The invocation ends before the platform answers.
    for (method, expected) in [("POST", (409, "idempotency_unknown")), ("PUT", (200, ""))] {
        let request = keyed("slow", method, "/echo");
        world.market.fault(Endpoint::Api, Fault::Stall { processed: true }, Some(1));
        let late = Sent(
            process.invoke(if method == "POST" { "a" } else { "b" }, &request, Duration::from_millis(1_900)).await,
        );
        assert_eq!(late.refusal(), (504, "platform_timeout"), "{late:?}");
        let again =
            Sent(process.invoke(if method == "POST" { "a" } else { "b" }, &request, Duration::from_secs(29)).await);
        assert_eq!((again.status(), again.0["body"]["code"].as_str().unwrap_or_default()), expected, "{method}");
    }
    world.end().await;
}

async fn a_key_belongs_to_a_caller_and_a_resource(world: World) {
    let process = installed(&world).await;
    let installer = world.process().await;
    world.install(&installer, &location("L2")).await;
    let request = keyed("k", "POST", "/contacts/");
    let of_l2 = json!({ "resource": { "location": "L2" }, "method": "POST", "path": "/contacts/",
        "idempotency_key": "k", "body": { "firstName": "Grace Hopper" } });
    for (alias, request) in [("a", &request), ("b", &request), ("a", &of_l2)] {
        let sent = Sent(process.invoke(alias, request, Duration::from_secs(29)).await);
        assert_eq!((sent.status(), sent.is_replayed()), (201, false), "{alias} {request}");
        let again = Sent(process.invoke(alias, request, Duration::from_secs(29)).await);
        assert_eq!((again.status(), again.is_replayed()), (201, true), "{alias} {request}");
    }
    assert_eq!(arrived(&world), 2);
    world.end().await;
}

async fn another_request_with_the_key_is_refused(world: World) {
    let process = installed(&world).await;
    let request = keyed("k", "POST", "/contacts/");
    assert_eq!(process.send(&request).await.status(), 201);
    let with = |member: &str, value: Value| {
        let mut other = request.clone();
        other[member] = value;
        other
    };
    for other in [
        with("method", json!("PUT")),
        with("path", json!("/contacts")),
        with("query", json!("a=1")),
        with("body", json!({ "firstName": "Ada" })),
        with("headers", json!({ "Version": "v3" })),
    ] {
        assert_eq!(process.send(&other).await.refusal(), (422, "idempotency_conflict"), "{other}");
    }
    // A header of the attempt changes nothing.
    let same = with("headers", json!({ "User-Agent": "x", "X-Request-Id": "7", "traceparent": "1" }));
    assert!(process.send(&same).await.is_replayed());
    assert_eq!(arrived(&world), 1);
    world.end().await;
}

async fn many_senders_send_once(world: World) {
    let mut processes = vec![installed(&world).await];
    for _ in 1..4 {
        processes.push(Process::start(&world).await);
    }
    world.market.fault(Endpoint::Api, Fault::Late { millis: 700 }, Some(1));
    let request = keyed("k", "POST", "/contacts/");
    let answers = join_all((0..24).map(|number| processes[number % 4].send(&request))).await;
    let created = answers.iter().filter(|answer| answer.status() == 201).count();
    let refused: Vec<_> = answers.iter().filter(|answer| answer.status() != 201).map(Sent::refusal).collect();
    assert_eq!((created, arrived(&world)), (1, 1), "{refused:?}");
    assert!(refused.iter().all(|refusal| *refusal == (409, "idempotency_in_progress")), "{refused:?}");
    let waiting = answers.iter().find(|answer| answer.status() == 409).expect("one of them");
    assert_eq!(waiting.header("retry-after"), Some("1"));
    assert!(processes[3].send(&request).await.is_replayed());
    world.end().await;
}

/// A request without a key.
fn unkeyed() -> Value {
    let mut request = keyed("none", "GET", "/echo");
    request["idempotency_key"] = Value::Null;
    request
}

async fn a_replay_takes_no_permit(world: World) {
    installed(&world).await;
    let process = Process::start_with(&world, &[("BURST_LIMIT", "1")]).await;
    let created = process.send(&keyed("k", "POST", "/contacts/")).await;
    assert_eq!(process.send(&unkeyed()).await.refusal(), (429, "burst_limited"), "the only permit is used");
    let again = process.send(&keyed("k", "POST", "/contacts/")).await;
    assert_eq!((again.status(), again.is_replayed(), &again.0["body"]), (201, true, &created.0["body"]));
    assert_eq!(process.send(&keyed("l", "POST", "/contacts/")).await.refusal(), (429, "burst_limited"));
    assert_eq!(process.proxy.calls(Call::Intent), 1, "a refused request leaves no record");
    world.end().await;
}

async fn a_sender_that_dies_without_a_permit_leaves_no_record(world: World) {
    let process = installed(&world).await;
    for method in ["POST", "PATCH", "PUT"] {
        let dying = Process::start(&world).await;
        let request = keyed(method, method, "/echo");
        let gate = dying.proxy.hold(Call::Permit);
        tokio::select! {
            answer = dying.send(&request) => panic!("{answer:?}"),
            () = gate.reached() => {}
        }
        let sent = process.send(&request).await;
        assert_eq!((sent.status(), sent.is_replayed()), (200, false), "{method}: {sent:?}");
    }
    assert_eq!(arrived(&world), 3);
    world.end().await;
}

async fn the_loser_of_a_race_hands_its_permit_on(world: World) {
    installed(&world).await;
    let process = Process::start_with(&world, &[("BURST_LIMIT", "2")]).await;
    let request = keyed("k", "POST", "/contacts/");
    let gate = process.proxy.hold(Call::Intent);
    let both_have_permits = async {
        it::world::until("two intents", async || process.proxy.calls(Call::Intent) == 2).await;
        gate.open();
    };
    let (answers, ()) = tokio::join!(join_all((0..2).map(|_| process.send(&request))), both_have_permits);
    let created = answers.iter().filter(|answer| answer.status() == 201 && !answer.is_replayed()).count();
    assert_eq!((created, arrived(&world)), (1, 1), "{answers:?}");
    let next = process.send(&unkeyed()).await;
    assert_eq!((next.status(), arrived(&world)), (200, 2), "the second permit was not used: {next:?}");
    assert_eq!(process.send(&unkeyed()).await.refusal(), (429, "burst_limited"));
    world.end().await;
}

async fn a_request_that_is_too_late_for_its_permit_gets_another_one(world: World) {
    let process = installed(&world).await;
    let request = keyed("k", "POST", "/contacts/");
    let gate = process.proxy.hold_answer(Call::Intent);
    let late = async {
        gate.reached().await;
        world.advance(Duration::from_secs(2));
        gate.open();
    };
    let (sent, ()) = tokio::join!(process.send(&request), late);
    assert_eq!((sent.status(), sent.is_replayed(), arrived(&world)), (201, false, 1), "{sent:?}");
    let writes = [Call::Intent, Call::Outcome].map(|call| process.proxy.calls(call));
    assert_eq!(writes, [2; 2], "the first intent was released");
    assert!(process.send(&request).await.is_replayed());
    world.end().await;
}

/// A request whose permit came too late was not sent. If the table does not take that either, nothing is sent under the intent,
/// and the request is not unknown afterwards.
async fn a_late_request_is_not_unknown_if_its_release_fails_first(world: World) {
    let process = installed(&world).await;
    let request = keyed("k", "POST", "/contacts/");
    let gate = process.proxy.hold_answer(Call::Intent);
    process.proxy.fault(Call::Outcome, 0, Some(1), AwsFault::AccessDenied);
    let late = async {
        gate.reached().await;
        world.advance(Duration::from_secs(2));
        gate.open();
    };
    let (sent, ()) = tokio::join!(process.send(&request), late);
    assert_eq!((sent.refusal(), arrived(&world)), ((503, "store_unavailable"), 0), "{sent:?}");
    process.proxy.heal();
    let again = process.send(&request).await;
    assert_eq!((again.status(), again.is_replayed(), arrived(&world)), (201, false, 1), "{again:?}");
    world.end().await;
}

async fn a_key_twice_in_a_batch_is_refused(world: World) {
    let process = installed(&world).await;
    let request = keyed("k", "POST", "/contacts/");
    let mut other = request.clone();
    other["body"] = json!({ "firstName": "Ada" });
    let mut elsewhere = keyed("k2", "POST", "/contacts/");
    elsewhere["idempotency_key"] = json!("l");
    // More requests than run at once lie between the first and its repeat.
    let between = (0..20).map(|number| keyed(&format!("n{number}"), "GET", "/echo"));
    let requests: Vec<Value> =
        [request.clone(), request.clone(), other, elsewhere].into_iter().chain(between).chain([request]).collect();
    let answer = process.invoke("a", &json!({ "requests": requests }), Duration::from_secs(29)).await;
    let answers: Vec<_> = answer["responses"].as_array().expect("answers").iter().cloned().map(Sent).collect();
    assert_eq!((answers[0].status(), answers[3].status()), (201, 201));
    assert_eq!(answers[1].refusal(), (409, "idempotency_in_progress"));
    assert_eq!(answers[2].refusal(), (422, "idempotency_conflict"));
    assert_eq!(answers[24].refusal(), (409, "idempotency_in_progress"), "although the first has ended");
    assert_eq!(arrived(&world), 22);
    world.end().await;
}

async fn a_dead_sender_is_followed_only_if_the_request_is_repeatable(world: World) {
    let process = installed(&world).await;
    for (method, after) in [
        ("POST", Some("idempotency_unknown")),
        ("PATCH", Some("idempotency_unknown")),
        ("PUT", None),
        ("GET", None),
        ("DELETE", None),
    ] {
        let dying = Process::start(&world).await;
        let request = keyed(method, method, "/echo");
        world.market.fault(Endpoint::Api, Fault::Stall { processed: true }, Some(1));
        let died = tokio::time::timeout(Duration::from_secs(20), async {
            let sending = dying.send(&request);
            tokio::select! {
                answer = sending => panic!("{answer:?}"),
                () = it::world::until("the request arrives", async || world.market.faults().is_empty()) => {}
            }
        });
        died.await.expect("it arrives");
        assert_eq!(process.send(&request).await.refusal(), (409, "idempotency_in_progress"), "{method}");
        world.advance(Duration::from_secs(35));
        let again = process.send(&request).await;
        match after {
            Some(code) => assert_eq!(again.refusal(), (409, code), "{method}"),
            None => assert_eq!((again.status(), again.is_replayed()), (200, false), "{method}: {again:?}"),
        }
    }
    world.end().await;
}

async fn refusals_of_the_relay_release_the_key(world: World) {
    let process = installed(&world).await;
    let request = |key: &str| {
        let mut request = keyed(key, "POST", "/contacts/");
        request["resource"] = json!({ "location": "L2" });
        request
    };
    assert_eq!(process.send(&request("k")).await.refusal(), (404, "not_installed"));
    let installer = world.process().await;
    world.install(&installer, &location("L2")).await;
    world.advance(Duration::from_secs(30));
    let sent = process.send(&request("k")).await;
    assert_eq!((sent.status(), sent.is_replayed()), (201, false), "{sent:?}");
    // A request that the caller may not send touches no record.
    let answer = Sent(process.invoke("stranger", &request("k"), Duration::from_secs(29)).await);
    assert_eq!(answer.refusal(), (401, "unauthenticated"));
    for key in ["", "a b", &"k".repeat(129)] {
        assert_eq!(process.send(&request(key)).await.refusal(), (400, "invalid_request"), "{key:?}");
    }
    world.end().await;
}

async fn without_the_record_nothing_is_sent(world: World) {
    let process = installed(&world).await;
    for (number, fault) in
        [AwsFault::AccessDenied, AwsFault::HangUp { applied: true }, AwsFault::HangUp { applied: false }]
            .into_iter()
            .enumerate()
    {
        let request = keyed(&format!("k{number}"), "POST", "/contacts/");
        let before = arrived(&world);
        process.proxy.always(Call::Intent, fault.clone());
        assert_eq!(process.send(&request).await.refusal(), (503, "store_unavailable"), "{fault:?}");
        assert_eq!(arrived(&world), before, "{fault:?}");
        process.proxy.heal();
        let sent = process.send(&request).await;
        assert_eq!((sent.status(), arrived(&world)), (201, before + 1), "{fault:?}: {sent:?}");
    }
    world.end().await;
}

async fn without_the_outcome_a_post_is_unknown(world: World) {
    let process = installed(&world).await;
    for (method, after) in [("POST", (409, "idempotency_unknown")), ("PUT", (200, ""))] {
        let request = keyed(method, method, "/echo");
        process.proxy.always(Call::Outcome, AwsFault::AccessDenied);
        assert_eq!(process.send(&request).await.status(), 200, "the caller gets the answer");
        process.proxy.heal();
        assert_eq!(process.send(&request).await.refusal(), (409, "idempotency_in_progress"), "{method}");
        world.advance(Duration::from_secs(35));
        let again = process.send(&request).await;
        assert_eq!((again.status(), again.0["body"]["code"].as_str().unwrap_or_default()), after, "{again:?}");
    }
    world.end().await;
}

async fn a_slow_record_of_the_outcome_delays_no_answer_beyond_its_time(world: World) {
    let process = installed(&world).await;
    // The platform answers at the end of its time, or too late by a moment.
    world.market.fault(Endpoint::Api, Fault::Late { millis: 2_700 }, Some(1));
    let _gate = process.proxy.hold(Call::Outcome);
    let sent = process.invoke("a", &keyed("k", "POST", "/echo"), Duration::from_secs(4)).await;
    assert_eq!(arrived(&world), 1);
    assert!(!sent.to_string().contains("nothing was sent"), "{sent}");
    world.end().await;
}

async fn answers_are_sealed_and_outlive_their_data_key(world: World) {
    let process = installed(&world).await;
    let request = keyed("order-17", "POST", "/contacts/");
    let created = process.send(&request).await;
    for item in world.items().await {
        let text = format!("{item:?}");
        let bytes = item.get("answer").and_then(|answer| answer.as_b().ok()).map(|b| b.as_ref().to_vec());
        let holds = |word: &str| {
            text.contains(word) || bytes.as_ref().is_some_and(|b| b.windows(word.len()).any(|w| w == word.as_bytes()))
        };
        assert!(!holds("Hopper") && !holds("order-17"), "{text}");
    }
    let rotated = r#"{"current":"k2","k1":"0123456789abcdef0123456789abcdef","k2":"abcdef0123456789abcdef0123456789"}"#;
    world.secrets.put(SEALING_SECRET, rotated);
    let fresh = Process::start(&world).await;
    let again = fresh.send(&request).await;
    assert_eq!((again.is_replayed(), &again.0["body"]), (true, &created.0["body"]));
    // Without the data key, the status is left.
    let item = world.items().await.into_iter().find(|item| item.contains_key("answer")).expect("a record");
    let mut broken = item.clone();
    let mut bytes = item["answer"].as_b().expect("bytes").clone().into_inner();
    *bytes.last_mut().expect("a byte") ^= 1;
    broken.insert("answer".to_owned(), aws_sdk_dynamodb::types::AttributeValue::B(bytes.into()));
    world.put(broken).await;
    let without = fresh.send(&request).await;
    assert_eq!((without.status(), without.header("relay-body-omitted")), (201, Some("true")), "{without:?}");
    assert_eq!(arrived(&world), 1);
    world.end().await;
}

async fn a_large_answer_is_given_again_without_its_body(world: World) {
    let process = installed(&world).await;
    let mut request = keyed("k", "POST", "/echo");
    for (size, whole) in [(100_000, true), (300_000, false)] {
        request["body"] = json!("b".repeat(size));
        request["idempotency_key"] = json!(size.to_string());
        let first = process.send(&request).await;
        assert!(first.0["body"]["body_base64"].as_str().is_some_and(|body| body.len() > size));
        let again = process.send(&request).await;
        assert_eq!((again.status(), again.is_replayed()), (200, true));
        assert_eq!(again.header("relay-body-omitted"), (!whole).then_some("true"));
        assert_eq!(again.0["body"] == first.0["body"], whole);
    }
    world.end().await;
}

async fn an_unknown_charge_is_looked_up(world: World) {
    let process = installed(&world).await;
    let charge = |event: &str| {
        let mut request = keyed(event, "POST", "/marketplace/billing/charges");
        request["body"] = json!({ "eventId": event, "meterId": "m", "units": "1" });
        request
    };
    let made = |event: &str| {
        let mut list = keyed("unused", "GET", "/marketplace/billing/charges");
        list["query"] = json!({ "eventId": event });
        list["idempotency_key"] = Value::Null;
        list
    };
    let count = async |event: &str| process.send(&made(event)).await.0["body"]["total"].as_u64().expect("a number");

    world.market.fault(Endpoint::Api, Fault::HangUp { processed: true }, Some(1));
    assert_eq!(process.send(&charge("executed")).await.refusal().0, 502);
    for _ in 0..2 {
        let found = process.send(&charge("executed")).await;
        assert_eq!((found.status(), found.is_replayed()), (200, true), "{found:?}");
        assert_eq!(found.0["body"]["eventId"], "executed", "{found:?}");
    }
    assert_eq!(count("executed").await, 1);

    world.market.fault(Endpoint::Api, Fault::HangUp { processed: false }, Some(1));
    assert_eq!(process.send(&charge("lost")).await.refusal().0, 502);
    let early = process.send(&charge("lost")).await;
    assert_eq!(early.refusal(), (409, "idempotency_unknown"), "it may still be on its way");
    assert_eq!(early.header("retry-after"), Some("60"));
    world.advance(Duration::from_secs(61));
    let made_now = process.send(&charge("lost")).await;
    assert_eq!((made_now.status(), made_now.is_replayed()), (201, false), "{made_now:?}");
    assert_eq!(count("lost").await, 1);

    // While the platform does not list charges, nothing is decided.
    world.market.fault(Endpoint::Api, Fault::HangUp { processed: true }, Some(1));
    assert_eq!(process.send(&charge("unseen")).await.refusal().0, 502);
    world.advance(Duration::from_secs(61));
    world.market.fault(Endpoint::Api, Fault::refusal(500, "no"), None);
    assert_eq!(process.send(&charge("unseen")).await.refusal(), (409, "idempotency_unknown"));
    world.market.clear_faults();
    world.market.fault(Endpoint::Api, Fault::refusal(200, "an answer without a list"), None);
    assert_eq!(process.send(&charge("unseen")).await.refusal(), (409, "idempotency_unknown"));
    world.market.clear_faults();
    assert!(process.send(&charge("unseen")).await.is_replayed());
    assert_eq!(count("unseen").await, 1);
    world.end().await;
}
