//! The bootstrap of the `callback` function.

#[tokio::main]
async fn main() -> Result<(), lambda_runtime::Error> {
    callback::run().await
}
