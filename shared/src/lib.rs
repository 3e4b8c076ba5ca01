//! What the four functions have in common.
//!
//! Dependencies point one way: pure rules ← [`table`] ← operations ← the functions. Pure modules take `now` and
//! decide; operations do what was decided, each change one conditional write; the functions translate events.

pub mod app;
pub mod aws_error;
pub mod caller;
pub mod clock;
pub mod config;
pub mod gateway;
pub mod http_client;
pub mod installation;
pub mod lifecycle;
pub mod log;
pub mod platform;
pub mod problem;
pub mod process;
pub mod qualifier;
pub mod quota;
pub mod random;
pub mod redacted;
pub mod relay;
pub mod resource;
pub mod seal;
pub mod secrets;
pub mod serve;
pub mod table;
pub mod token;
pub mod vault;
