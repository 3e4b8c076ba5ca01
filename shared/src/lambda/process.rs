//! The process of a function: its threads and its exit code.

use std::process::ExitCode;

use tokio::runtime::{Builder, Runtime};

use crate::config::events_at_once;

/// Runs a function to its end.
///
/// A process that gets one event at a time waits for one answer after the other, and has no work for a second thread.
/// With several threads, each answer wakes the thread that reads sockets, which wakes the thread that handles the
/// event. So one thread does all the work, unless Lambda sends several events at once. This is also true of `refresh`,
/// which runs sixteen renewals at once but has little work for each.
///
/// A function that fails writes the reason on its last log line.
pub fn run<E: std::fmt::Display>(serving: impl Future<Output = Result<(), E>>) -> ExitCode {
    let outcome = runtime().map(|runtime| {
        let ended = runtime.block_on(serving);
        // Tasks that still run on other threads are no longer needed.
        runtime.shutdown_background();
        ended
    });
    match outcome {
        Ok(Ok(())) => return ExitCode::SUCCESS,
        Ok(Err(error)) => tracing::error!(%error, "the function ended with an error"),
        Err(error) => tracing::error!(%error, "the function cannot start"),
    }
    ExitCode::FAILURE
}

fn runtime() -> std::io::Result<Runtime> {
    let mut builder = if events_at_once() > 1 { Builder::new_multi_thread() } else { Builder::new_current_thread() };
    builder.enable_all().build()
}
