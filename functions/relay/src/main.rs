//! The bootstrap of the `relay` function.

#[tokio::main]
async fn main() -> std::process::ExitCode {
    shared::app::ended(relay::run().await)
}
