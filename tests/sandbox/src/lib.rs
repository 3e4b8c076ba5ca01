//! The whole system on one machine, and the doubles it needs for that.
//!
//! Each part starts by itself on a free loopback port and ends when its handle is dropped; tests take the parts they
//! need, [`whole::Sandbox`] takes them all.
//!
//! | part | stands for |
//! |---|---|
//! | [`dynamo`] | `DynamoDB`: an embedded engine, and the one table's schema |
//! | [`secrets`] | Secrets Manager |
//! | [`event_bridge`] | `EventBridge`: the bus of lifecycle events |
//! | [`queue`] | SQS, and Lambda's poller of it |
//! | [`marketplace`] | the platform: consent page, token endpoint, minting, a piece of its API |
//! | [`runtime_api`] | Lambda: the Runtime API that workers poll, and `Invoke` |
//! | [`gateway`] | API Gateway's HTTP API with payload 2.0 |
//! | [`console`] | nothing of theirs: a page that shows the system live, with buttons |
//! | [`process`] | workers as child processes: killed, frozen, started again |
//!
//! All of them tell an [`events::EventBus`] what happens.

mod aws_json;
pub mod clock;
pub mod console;
pub mod dynamo;
pub mod event_bridge;
pub mod events;
mod form;
pub mod gateway;
mod identity;
mod local;
mod lock;
pub mod marketplace;
pub mod process;
pub mod queue;
pub mod runtime_api;
pub mod secrets;
pub mod server;
pub mod terminal;
pub mod whole;
