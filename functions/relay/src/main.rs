//! The bootstrap of the `relay` function.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    relay::run().await
}
