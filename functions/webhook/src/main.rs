//! The bootstrap of the `webhook` function.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    webhook::run().await
}
