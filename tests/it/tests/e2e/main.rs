//! End-to-end tests: the built functions run as processes under a Lambda Runtime API, with several processes of
//! `relay`. The platform is a fake, and the AWS services are emulators.
//!
//! The functions are in the target folder of this test (`cargo build --workspace --bins`), or in `FUNCTIONS_DIR`, the
//! output folder of cargo-lambda. Each test ends with a search for secrets in everything that its processes logged.

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
mod failing_services;
mod idempotency;
mod install;
mod limits;
mod monitoring;
mod moving;
mod operator;
mod platform_events;
mod queue;
mod relay;
mod restore;
mod tokens;
