//! A time-out that reads what has already arrived before it expires.

use std::pin::pin;
use std::time::Duration;

use tokio::time::error::Elapsed;
use tokio::time::timeout;

/// Turns of the scheduler that the work gets after its limit. Each step of a response (TLS record, head, piece of the
/// body) takes two or three turns: the connection's task and the reader of the response take turns.
const TURNS: u32 = 64;
/// Time that the work gets after its limit. In a runtime with several threads, turns of one thread say nothing about
/// the others.
const DRAIN: Duration = Duration::from_millis(20);

/// Waits for `work` until `limit` has passed, and then lets it read what has arrived before it gives up.
///
/// A process that was frozen or starved finds its timer expired and the response in its socket. A plain time-out polls
/// the work once; the connection's task has not delivered anything yet, and the response is lost. A response of the
/// token endpoint may hold the only valid token pair of an installation, so the work gets some more turns. `work` must
/// cover head and body of the response, and must not contain a time-out of its own.
///
/// # Errors
/// [`Elapsed`]: the limit has passed, and what had arrived did not complete the work.
pub async fn within<F: Future>(limit: Duration, work: F) -> Result<F::Output, Elapsed> {
    let mut work = pin!(work);
    if let Ok(output) = timeout(limit, &mut work).await {
        return Ok(output);
    }
    for _ in 0..TURNS {
        tokio::select! {
            biased;
            output = &mut work => return Ok(output),
            () = tokio::task::yield_now() => {}
        }
    }
    timeout(DRAIN, work).await
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[tokio::test]
    async fn work_in_time_is_done_and_work_that_never_ends_is_given_up_soon_after_its_limit() {
        assert_eq!(within(Duration::from_secs(5), std::future::ready(7)).await, Ok(7));
        let began = Instant::now();
        assert!(within(Duration::from_millis(30), std::future::pending::<()>()).await.is_err());
        assert!(began.elapsed() >= Duration::from_millis(50), "{:?}", began.elapsed());
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn work_that_is_ready_after_some_turns_is_done_though_its_limit_has_passed() {
        let turns = async {
            // The process is stopped for longer than the limit.
            std::thread::sleep(Duration::from_millis(50));
            for _ in 0..TURNS / 2 {
                tokio::task::yield_now().await;
            }
            7
        };
        assert_eq!(within(Duration::from_millis(10), turns).await, Ok(7));
    }
}
