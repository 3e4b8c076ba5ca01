//! The bootstrap of the `webhook` function.

#[tokio::main]
async fn main() -> Result<(), lambda_runtime::Error> {
    webhook::run().await
}
