//! A caller's place in a queue, and the batcher that a caller runs meanwhile.

use std::future::poll_fn;
use std::pin::{Pin, pin};

use tokio::sync::oneshot;

use super::{Answer, State, Waiter, WaiterQueue};
use crate::domain::clock::Millis;
use crate::table::StoreError;

/// A caller's place in a queue. A caller that leaves gives back a permit that came too late to be used.
pub(super) struct Ticket<'a> {
    queue: &'a WaiterQueue,
    answer: oneshot::Receiver<Answer>,
    answered: bool,
}

impl<'a> Ticket<'a> {
    /// A place behind all who wait in `queue`, which is in this `state`.
    pub(super) fn behind(
        queue: &'a WaiterQueue,
        state: &mut State,
        endpoint: Option<&str>,
        until: Option<Millis>,
    ) -> Self {
        let (sender, answer) = oneshot::channel();
        state.waiters.push_back(Waiter { endpoint: endpoint.map(str::to_owned), until, answer: sender });
        Self { queue, answer, answered: false }
    }

    pub(super) async fn wait(mut self) -> Answer {
        let answer = (&mut self.answer).await;
        self.answered = true;
        answer.unwrap_or_else(|_| Err(StoreError::Unavailable("the quota's batcher stopped".to_owned()).into()))
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if self.answered {
            return;
        }
        self.answer.close();
        if let Ok(Ok(permit)) = self.answer.try_recv() {
            self.queue.state().give(permit);
        }
        self.queue.changed.notify_one();
    }
}

type Run = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A batcher that the first waiter runs itself, which spares a task for the many that have no company. If others still
/// wait when that waiter has its answer or goes away, the batcher becomes a task.
pub(super) struct RunningBatcher(Option<Run>);

impl RunningBatcher {
    pub(super) fn new(run: Option<impl Future<Output = ()> + Send + 'static>) -> Self {
        Self(run.map(|run| Box::pin(run) as Run))
    }

    pub(super) async fn until(mut self, answer: impl Future<Output = Answer>) -> Answer {
        let mut answer = pin!(answer);
        poll_fn(|context| {
            if self.0.as_mut().is_some_and(|run| run.as_mut().poll(context).is_ready()) {
                self.0 = None;
            }
            answer.as_mut().poll(context)
        })
        .await
    }
}

impl Drop for RunningBatcher {
    fn drop(&mut self) {
        if let (Some(run), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(run);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::domain::limits::Limits;
    use crate::limiter::{LimitKind, Meter, Permit, Usage};

    const LIMITS: Limits = Limits { burst: 2, interval: Duration::from_secs(10), daily: 9 };

    fn permit(send_by: i64) -> Permit {
        let meter = Meter { limit: 2, remaining: 1, resets_at: Millis(0) };
        Permit { usage: Usage { burst: meter, daily: meter }, send_by: Millis(send_by), slot: 0 }
    }

    #[tokio::test]
    async fn a_permit_of_a_waiter_that_has_left_goes_to_the_next() {
        let queue = WaiterQueue::new("quota#location#L".to_owned(), LimitKind::Burst, LIMITS, Millis(0));
        let ticket = || Ticket::behind(&queue, &mut queue.state(), None, None);
        let (gone, first, second) = (ticket(), ticket(), ticket());
        drop(gone);
        queue.hand_on(permit(1));
        drop(first); // It was given the permit, and never looked.
        assert_eq!(second.wait().await.expect("handed on").send_by, Millis(1));
        queue.hand_on(permit(2));
        assert_eq!(queue.state().spare, [permit(2)], "nobody is left");
    }
}
