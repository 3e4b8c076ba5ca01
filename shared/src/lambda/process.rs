//! The process of a function: on how many threads it runs, and how it ends.

use std::process::ExitCode;

use tokio::runtime::{Builder, Runtime};

use crate::config::events_at_once;

/// Runs a function to its end.
///
/// A process that is given one event at a time waits for one answer after the other, and has nothing for a second
/// thread to do: with several, each answer wakes the thread that reads sockets, which wakes the one that handles the
/// event. So all of it is done by one thread, unless Lambda says that several events come at once. That holds for `refresh`,
/// too, which has sixteen things under way but little to do for each.
///
/// A function that fails says why on its last log line.
pub fn run<E: std::fmt::Display>(serving: impl Future<Output = Result<(), E>>) -> ExitCode {
    let outcome = runtime().map(|runtime| {
        let ended = runtime.block_on(serving);
        // Tasks that still run on other threads are of no use any more.
        runtime.shutdown_background();
        ended
    });
    match outcome {
        Ok(Ok(())) => return ExitCode::SUCCESS,
        Ok(Err(error)) => tracing::error!(%error, "the function ends"),
        Err(error) => tracing::error!(%error, "the function cannot start"),
    }
    ExitCode::FAILURE
}

fn runtime() -> std::io::Result<Runtime> {
    let mut builder = if events_at_once() > 1 { Builder::new_multi_thread() } else { Builder::new_current_thread() };
    builder.enable_all().build()
}
