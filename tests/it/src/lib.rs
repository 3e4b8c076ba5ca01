//! Test support.

pub mod dynamo;
