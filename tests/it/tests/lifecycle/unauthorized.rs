//! The cost of a 401 to a relayed call: one rotation if a new token helps, and none if it does not, for any number of
//! processes that receive the 401.

use std::time::Duration;

use futures_util::future::join_all;
use http::Method;
use it::proxy::Proxy;
use it::world::{World, grantee, location};
use sandbox::marketplace::faults::{Endpoint, Fault};
use serde_json::json;
use shared::caller::Identity;
use shared::domain::resource::Resource;
use shared::relay::answer::Answer;
use shared::relay::{Invocation, Relay};
use shared::request::Request;
use shared::request::path::Path;

it::stories!(
    an_unknown_401_costs_one_rotation_for_all_processes,
    concurrent_unknown_401s_cost_one_rotation,
    a_token_that_has_worked_is_not_renewed_for_an_unknown_401,
    a_useful_renewal_may_be_repeated,
    a_401_about_the_request_costs_nothing,
    a_token_refused_in_known_words_is_renewed,
    a_rotation_whose_answer_is_lost_counts_as_one,
);

const ARN: &str = "arn:aws:lambda:us-east-1:1:function:relay:billing";

/// The relay in a process of its own.
struct Caller {
    relay: Relay,
    _proxy: Proxy,
}

impl Caller {
    async fn new(world: &World) -> Self {
        let callers = json!({ "callers": [{ "id": "billing", "aliases": ["billing"] }] });
        world.secrets.put("callers", callers.to_string());
        let (app, proxy) = world.app(world.clock.clone(), world.market.url(), &[]).await;
        Self { relay: Relay::new(app, "callers"), _proxy: proxy }
    }

    async fn call(&self, world: &World, resource: &Resource, path: &str) -> Answer {
        let request = Request::new(resource.clone(), Method::GET, Path::parse(path).expect("a path"));
        let callers = self.relay.callers().await.expect("callers");
        let caller = callers.authenticate(Identity::Invocation(ARN)).expect("known");
        let invocation = Invocation { request_id: "r".into(), trace_id: None, deadline: world.deadline() };
        self.relay.call(&caller.authorize(request).expect("allowed"), &invocation).await
    }

    async fn status(&self, world: &World, resource: &Resource) -> u16 {
        self.call(world, resource, "/echo").await.status.as_u16()
    }
}

/// Two processes, and a location in which the app is installed.
async fn scene(world: &World) -> ([Caller; 2], Resource) {
    let l1 = location("L1");
    let process = world.process().await;
    world.install(&process, &l1).await;
    ([Caller::new(world).await, Caller::new(world).await], l1)
}

fn new_text() -> Fault {
    Fault::unauthorized("Something new")
}

async fn an_unknown_401_costs_one_rotation_for_all_processes(world: World) {
    let (callers, l1) = Box::pin(scene(&world)).await;
    let process = world.process().await;
    world.market.fault(Endpoint::Api, new_text(), None);
    // First a call every minute, then a call every two hours.
    for (times, pause) in [(6, Duration::from_secs(61)), (5, Duration::from_hours(2))] {
        for _ in 0..times {
            for caller in &callers {
                assert_eq!(caller.status(&world, &l1).await, 401);
            }
            world.advance(pause);
        }
        assert_eq!(world.presented(), 1, "one rotation every {pause:?}");
    }
    // A renewal by the schedule allows one further rotation, and no more.
    world.market.clear_faults();
    world.refresh(&process, json!({ "resource": l1, "force": true })).await;
    assert_eq!(world.presented(), 2);
    world.market.fault(Endpoint::Api, new_text(), None);
    for _ in 0..4 {
        for caller in &callers {
            assert_eq!(caller.status(&world, &l1).await, 401);
        }
        world.advance(Duration::from_hours(1));
    }
    assert_eq!(world.presented(), 3);
    world.end().await;
}

async fn concurrent_unknown_401s_cost_one_rotation(world: World) {
    let (callers, l1) = Box::pin(scene(&world)).await;
    world.market.fault(Endpoint::Api, new_text(), None);
    for _ in 0..3 {
        let calls = (0..20).map(|n| callers[n % 2].status(&world, &l1));
        assert!(join_all(calls).await.into_iter().all(|status| status == 401));
        world.advance(Duration::from_mins(61));
    }
    assert_eq!(world.presented(), 1);
    let arrived = world.market.api_requests(&grantee(&l1)).len();
    assert!(arrived > 60, "no contention: only {arrived} arrived, and none was sent again");
    world.end().await;
}

async fn a_token_that_has_worked_is_not_renewed_for_an_unknown_401(world: World) {
    let (callers, l1) = Box::pin(scene(&world)).await;
    assert_eq!(callers[0].status(&world, &l1).await, 200);
    for pause in [0, 9, 60, 200] {
        world.advance(Duration::from_secs(pause));
        world.market.fault(Endpoint::Api, new_text(), Some(1));
        assert_eq!(callers[0].status(&world, &l1).await, 401, "after {pause} s");
    }
    assert_eq!(world.presented(), 0);
    // An older success of the token proves nothing, nor does a success that this process has not seen.
    world.advance(Duration::from_secs(32));
    world.market.fault(Endpoint::Api, new_text(), Some(1));
    assert_eq!((callers[0].status(&world, &l1).await, world.presented()), (200, 1));
    world.end().await;
}

async fn a_useful_renewal_may_be_repeated(world: World) {
    let (callers, l1) = Box::pin(scene(&world)).await;
    for rotations in 1..=3 {
        world.market.fault(Endpoint::Api, new_text(), Some(1));
        assert_eq!((callers[0].status(&world, &l1).await, world.presented()), (200, rotations));
        assert!(!world.stored(&l1).await.findings.is_doubted);
        world.advance(Duration::from_mins(59));
        world.market.fault(Endpoint::Api, new_text(), Some(1));
        assert_eq!((callers[1].status(&world, &l1).await, world.presented()), (401, rotations), "not within the hour");
        world.advance(Duration::from_mins(2));
    }
    world.end().await;
}

async fn a_401_about_the_request_costs_nothing(world: World) {
    let (callers, l1) = Box::pin(scene(&world)).await;
    for fault in [
        Fault::unauthorized("No conversation provider found for this message"),
        Fault::unauthorized("This location is not accessible from this token!"),
        Fault::refusal_v3(401, "The token is not authorized for this scope."),
        Fault::refusal_v3(401, "Endpoint GET /echo is not available in API version v3"),
        Fault::Answer { processed: false, status: 401, body: "<html>".into(), content_type: Some("text/html".into()) },
    ] {
        world.market.fault(Endpoint::Api, fault.clone(), Some(2));
        for caller in &callers {
            assert_eq!(caller.status(&world, &l1).await, 401, "{fault:?}");
        }
    }
    assert_eq!(world.presented(), 0);
    assert_eq!(world.market.api_requests(&grantee(&l1)).len(), 10, "and nothing is sent twice");
    world.end().await;
}

async fn a_token_refused_in_known_words_is_renewed(world: World) {
    let (callers, l1) = Box::pin(scene(&world)).await;
    for (rotations, fault) in [
        Fault::unauthorized("Invalid token: access token is invalid"),
        Fault::refusal_v3(401, "Invalid token: access token is invalid"),
        Fault::unauthorized("Invalid JWT"),
    ]
    .into_iter()
    .enumerate()
    {
        // The fault causes a rotation even though the token worked a moment ago.
        assert_eq!(callers[0].status(&world, &l1).await, 200);
        world.market.fault(Endpoint::Api, fault.clone(), Some(1));
        assert_eq!((callers[0].status(&world, &l1).await, world.presented()), (200, rotations + 1), "{fault:?}");
        world.advance(Duration::from_secs(61));
    }
    world.end().await;
}

async fn a_rotation_whose_answer_is_lost_counts_as_one(world: World) {
    let (callers, l1) = Box::pin(scene(&world)).await;
    world.market.fault(Endpoint::Api, new_text(), None);
    world.market.fault(Endpoint::Refresh, Fault::answer_lost(), Some(2));
    assert_eq!(callers[0].status(&world, &l1).await, 401, "the platform's answer, and not ours");
    world.advance(Duration::from_secs(16));
    for _ in 0..4 {
        for caller in &callers {
            assert_eq!(caller.status(&world, &l1).await, 401);
        }
        world.advance(Duration::from_mins(61));
    }
    assert_eq!(
        (world.presented(), world.stored(&l1).await.version.generation),
        (3, 2),
        "the same token, until it is answered"
    );
    world.end().await;
}
