//! The bootstrap of the `callback` function.

#[tokio::main]
async fn main() -> std::process::ExitCode {
    shared::app::ended(callback::run().await)
}
