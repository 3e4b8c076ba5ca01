//! A keyed request is sent once. The relay of each story runs in this process, on each engine, and is reached by direct
//! invocations.

mod keys;
mod messages;
mod records;

use std::time::Duration;

use it::proxy::Proxy;
use it::world::{World, location};
use lambda_runtime::{Context, LambdaEvent};
use relay::direct;
use serde_json::value::to_raw_value;
use serde_json::{Value, json};
use shared::relay::Relay;

const CALLERS: &str = "callers";

/// A process of the relay.
pub(crate) struct Process {
    pub(crate) relay: Relay,
    pub(crate) proxy: Proxy,
}

impl Process {
    /// Starts a process. The callers `a` and `b` may do everything.
    pub(crate) async fn start(world: &World) -> Self {
        Self::start_with(world, &[]).await
    }

    /// Starts a process with further environment variables.
    pub(crate) async fn start_with(world: &World, further: &[(&'static str, &str)]) -> Self {
        let callers = json!({ "callers": [{ "id": "a", "aliases": ["a"] }, { "id": "b", "aliases": ["b"] }] });
        world.secrets.put(CALLERS, callers.to_string());
        let (app, proxy) = world.app(world.clock.clone(), world.market.url(), further).await;
        Self { relay: Relay::new(app, CALLERS), proxy }
    }

    /// Invokes the relay by the alias of a caller, in an invocation that lasts this long.
    pub(crate) async fn invoke(&self, alias: &str, event: &Value, lasts: Duration) -> Value {
        let mut context = Context::default();
        context.invoked_function_arn = format!("arn:aws:lambda:us-east-1:1:function:relay:{alias}");
        context.deadline = (self.relay.now() + lasts).0.try_into().expect("after 1970");
        let event = LambdaEvent::new(to_raw_value(event).expect("JSON"), context);
        let answer = Box::pin(direct::answer(&self.relay, &event)).await;
        serde_json::from_str(answer.get()).expect("JSON")
    }

    /// Sends a request of the caller `a`.
    pub(crate) async fn send(&self, request: &Value) -> Sent {
        Sent(self.invoke("a", request, Duration::from_secs(29)).await)
    }
}

/// A keyed request for the location L1.
pub(crate) fn keyed(key: &str, method: &str, path: &str) -> Value {
    json!({ "resource": { "location": "L1" }, "method": method, "path": path, "idempotency_key": key,
        "body": { "firstName": "Grace Hopper" } })
}

/// The answer to a request.
#[derive(Debug)]
pub(crate) struct Sent(pub(crate) Value);

impl Sent {
    pub(crate) fn status(&self) -> u64 {
        self.0["status"].as_u64().expect("a status")
    }

    /// Status and code of a refusal by the relay.
    pub(crate) fn refusal(&self) -> (u64, &str) {
        assert_eq!(self.0["source"], "relay", "{self:?}");
        (self.status(), self.0["body"]["code"].as_str().unwrap_or_default())
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.0["headers"][name].as_str()
    }

    pub(crate) fn is_replayed(&self) -> bool {
        self.header("relay-replayed") == Some("true")
    }
}

/// The number of requests for L1 that have arrived at the platform.
pub(crate) fn arrived(world: &World) -> usize {
    world.market.api_requests(&sandbox::marketplace::grants::Resource::Location("L1".to_owned())).len()
}

/// Installs the app in L1 and starts a process.
pub(crate) async fn installed(world: &World) -> Process {
    let installer = world.process().await;
    world.install(&installer, &location("L1")).await;
    Process::start(world).await
}
