//! Simulation of several processes on one resource and on one share of it, with the real
//! [`decision`](super::decision)s: the store answers late or not at all, clocks differ, and memories are lost. An
//! oracle counts the requests that leave for the platform, and when.
//!
//! The simulated [`store`] copies the conditions of the real writes; [`engines`] compares it with real engines.

mod engines;
mod properties;
mod run;
mod scenarios;
mod store;
mod world;

/// The start of each run.
const START: i64 = 1_800_000_000_000;
