//! The bootstrap of the `refresh` function.

#[tokio::main]
async fn main() -> std::process::ExitCode {
    shared::app::ended(refresh::run().await)
}
