//! The bootstrap of the `webhook` function.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    // What is wrong is in the log already.
    webhook::run().await.map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS)
}
