//! What happens in the sandbox, as typed events: the terminal prints them, a console can stream them, tests await them.

use serde::Serialize;
use tokio::sync::broadcast;

/// One thing that happened.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A request went through the gateway.
    Gateway {
        /// HTTP method.
        method: String,
        /// Path as it was asked for, without the query, which may hold a code.
        path: String,
        /// Status of the answer.
        status: u16,
        /// `Relay-Source` of the answer: who spoke, the platform or the relay.
        source: Option<String>,
        /// Milliseconds it took.
        millis: u64,
    },
    /// A function answered an invocation that did not come through the gateway.
    Invoked {
        /// Name of the function.
        function: String,
        /// `ok`, or the kind of function error.
        outcome: String,
        /// Milliseconds it took.
        millis: u64,
        /// The answer where it is small.
        answer: Option<String>,
    },
    /// The platform's token endpoint, or its minting endpoint, was asked.
    Token {
        /// `authorization_code`, `refresh_token` or `mint`.
        grant: String,
        /// Whose token, where known.
        resource: Option<String>,
        /// What came of it, in a word or two.
        outcome: String,
        /// Status of the answer; absent where the connection was dropped.
        status: Option<u16>,
    },
    /// The platform's API was asked.
    Platform {
        /// Whose bucket it was counted in, where the token was known.
        resource: Option<String>,
        /// HTTP method.
        method: String,
        /// Path without the query.
        path: String,
        /// Status of the answer; absent where the connection was dropped.
        status: Option<u16>,
        /// Requests of this resource in the window that ends now, this one included.
        in_window: usize,
    },
    /// The platform told the app of something.
    Webhook {
        /// `INSTALL` or `UNINSTALL`.
        kind: String,
        /// Of what.
        resource: String,
        /// Status of the answer; absent where there was none.
        status: Option<u16>,
    },
    /// A function's process wrote a line.
    Log {
        /// Name of the function.
        function: String,
        /// Name of the worker process.
        worker: String,
        /// The line, without its end.
        line: String,
    },
    /// A function's process started or ended.
    Worker {
        /// Name of the function.
        function: String,
        /// Name of the worker process.
        worker: String,
        /// What happened, for people.
        what: String,
    },
    /// The system told of an installation on the lifecycle bus.
    Lifecycle {
        /// The event's `detail-type`, for example `Installed`.
        name: String,
        /// Its detail.
        detail: serde_json::Value,
    },
    /// Somebody used a control of the sandbox.
    Control {
        /// What was done, for people.
        what: String,
    },
}

/// The one channel all parts publish to.
#[derive(Debug, Clone)]
pub struct EventBus(broadcast::Sender<Event>);

impl Default for EventBus {
    fn default() -> Self {
        Self(broadcast::Sender::new(8192))
    }
}

impl EventBus {
    /// Tells everyone who listens; nobody listening is fine.
    pub fn publish(&self, event: Event) {
        let _nobody_listens = self.0.send(event);
    }

    /// All events from now on.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.0.subscribe()
    }
}
