//! Test support.

pub mod dynamo;
pub mod outside;
pub mod proxy;
pub mod world;
