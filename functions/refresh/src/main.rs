//! The bootstrap of the `refresh` function.

#[tokio::main]
async fn main() -> Result<(), lambda_runtime::Error> {
    refresh::run().await
}
