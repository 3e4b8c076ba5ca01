//! The bootstrap of the `refresh` function.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    // What is wrong is in the log already.
    refresh::run().await.map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS)
}
