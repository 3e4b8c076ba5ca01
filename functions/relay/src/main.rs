//! The bootstrap of the `relay` function.

#[tokio::main]
async fn main() -> Result<(), lambda_runtime::Error> {
    relay::run().await
}
