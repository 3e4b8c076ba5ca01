//! From outside: the built functions as processes under a Lambda Runtime API, several of `relay` at once, against the
//! doubles of everything around them.
//!
//! The functions are found beside this test (`cargo build --workspace --bins`), or in `FUNCTIONS_DIR` as cargo-lambda
//! leaves them. Each scenario ends with a search of everything its processes have written.

mod agency;
mod bad_input;
mod byte_for_byte;
mod callers;
mod connections;
mod cost;
mod deployment;
mod drop_in;
mod dynamodb_local;
mod events;
mod install;
mod limits;
mod monitoring;
mod operator;
mod relay;
mod tokens;
