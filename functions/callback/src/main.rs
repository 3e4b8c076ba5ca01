//! The bootstrap of the `callback` function.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    callback::run().await
}
