//! The Lambda runtime around a function: events in, answers out, start.

pub mod gateway;
pub mod process;
pub mod serve;
