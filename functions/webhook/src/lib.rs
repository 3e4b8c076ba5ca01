//! The `webhook` function.

/// Serves events until the process is ended.
///
/// # Errors
/// Configuration that is missing or malformed, or a Runtime API that cannot be reached.
pub async fn run() -> Result<(), lambda_runtime::Error> {
    Ok(())
}
