//! Events of the sandbox, as types: the terminal prints them, the console streams them, and tests wait for them.

use serde::Serialize;
use tokio::sync::broadcast;

/// One event.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A request went through the gateway.
    Gateway {
        /// HTTP method.
        method: String,
        /// Path of the request, without the query, because the query may hold a code.
        path: String,
        /// Status of the answer.
        status: u16,
        /// `Relay-Source` of the answer, which names the author of the answer: the platform or the relay.
        source: Option<String>,
        /// Duration in milliseconds.
        millis: u64,
    },
    /// A function answered an invocation that did not come through the gateway.
    Invoked {
        /// Name of the function.
        function: String,
        /// `ok`, or the kind of function error.
        outcome: String,
        /// Duration in milliseconds.
        millis: u64,
        /// The answer, if it is small.
        answer: Option<String>,
    },
    /// The platform's token endpoint or minting endpoint received a request.
    Token {
        /// `authorization_code`, `refresh_token` or `mint`.
        grant: String,
        /// The resource of the token, if known.
        resource: Option<String>,
        /// The outcome, in a word or two.
        outcome: String,
        /// Status of the answer; absent if the connection was dropped.
        status: Option<u16>,
    },
    /// The platform's API received a request.
    Platform {
        /// The resource in whose window the request was counted, if the token was known.
        resource: Option<String>,
        /// HTTP method.
        method: String,
        /// Path without the query.
        path: String,
        /// Status of the answer; absent if the connection was dropped.
        status: Option<u16>,
        /// Requests of this resource in the window that ends now, this one included.
        in_window: usize,
    },
    /// The platform sent a webhook to the app.
    Webhook {
        /// `INSTALL` or `UNINSTALL`.
        kind: String,
        /// The resource that was installed or uninstalled.
        resource: String,
        /// Status of the answer; absent if there was none.
        status: Option<u16>,
    },
    /// A function's process wrote a line.
    Log {
        /// Name of the function.
        function: String,
        /// Name of the worker process.
        worker: String,
        /// The line, without its line end.
        line: String,
    },
    /// A function's process started or ended.
    Worker {
        /// Name of the function.
        function: String,
        /// Name of the worker process.
        worker: String,
        /// The event in words, for people.
        what: String,
    },
    /// The system published an event of an installation on the lifecycle bus.
    Lifecycle {
        /// The event's `detail-type`, for example `Installed`.
        name: String,
        /// Its detail.
        detail: serde_json::Value,
    },
    /// An event of the platform is on the bus.
    Published {
        /// The event's type, for example `ContactCreate`.
        name: String,
        /// The resources that it is about.
        resources: Vec<String>,
    },
    /// A person or a test used a control of the sandbox.
    Control {
        /// The action in words, for people.
        what: String,
    },
}

/// The one channel to which all parts publish.
#[derive(Debug, Clone)]
pub struct EventBus(broadcast::Sender<Event>);

impl Default for EventBus {
    fn default() -> Self {
        Self(broadcast::Sender::new(8192))
    }
}

impl EventBus {
    /// Sends an event to all subscribers. Without subscribers, the event is dropped.
    pub fn publish(&self, event: Event) {
        let _nobody_listens = self.0.send(event);
    }

    /// Returns a receiver of all events from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.0.subscribe()
    }
}
