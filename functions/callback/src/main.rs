//! The bootstrap of the `callback` function.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    // What is wrong is in the log already.
    callback::run().await.map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS)
}
