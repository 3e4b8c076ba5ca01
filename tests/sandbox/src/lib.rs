//! The whole system on one machine, with a fake platform and emulators of the AWS services that the system needs.
//!
//! Each part listens on its own loopback port and ends when its handle is dropped. A test starts the parts that it
//! needs; [`whole::Sandbox`] starts all of them.
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
//! | [`console`] | no service: a page that shows the system live, with buttons |
//! | [`process`] | the functions' processes: started, killed, frozen, started again |
//!
//! Each part publishes its events on an [`events::EventBus`].

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
