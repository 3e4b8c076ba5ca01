//! The bootstrap of the `webhook` function.

#[tokio::main]
async fn main() -> std::process::ExitCode {
    shared::app::ended(webhook::run().await)
}
