//! Test support.

pub mod deployment;
pub mod dynamo;
pub mod emf;
pub mod front;
pub mod meter;
pub mod outside;
pub mod proxy;
pub mod redaction;
pub mod sender;
pub mod stories;
pub mod world;
