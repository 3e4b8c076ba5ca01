//! The library of the four functions. docs/architecture.md has the map.
//!
//! The rooms, from the bottom up. A room imports only rooms above it in this list; a test holds that.

pub mod domain;

pub mod config;
pub mod http_client;
pub mod log;
pub mod secrets;

pub mod lambda;
pub mod platform;
pub mod request;

pub mod caller;
pub mod seal;
pub mod table;

pub mod idempotency;

pub mod limiter;

pub mod events;

pub mod token;

pub mod install;

pub mod app;

pub mod relay;

#[cfg(test)]
mod rooms;
