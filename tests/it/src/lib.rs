//! Test support.

pub mod dynamo;
pub mod proxy;
