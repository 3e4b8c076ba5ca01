//! Ticket: the place of one caller in a waiter queue; and the batcher that the first caller runs while it waits.

use std::future::poll_fn;
use std::pin::{Pin, pin};

use tokio::sync::oneshot;

use super::{Class, PermitRequest, PermitResult, State, Waiter, WaiterQueue};
use crate::table::StoreError;

/// The place of one caller. If the caller leaves when its permit has just been given to it, the next waiter gets the
/// permit.
pub(super) struct Ticket<'a> {
    queue: &'a WaiterQueue,
    answer: oneshot::Receiver<PermitResult>,
    answered: bool,
}

impl<'a> Ticket<'a> {
    /// A place behind all waiters of the same class in `queue`, which is in this `state`.
    pub(super) fn new(queue: &'a WaiterQueue, state: &mut State, request: PermitRequest<'_>) -> Self {
        let PermitRequest { endpoint, wait_until, class } = request;
        let (sender, answer) = oneshot::channel();
        let waiter = Waiter { endpoint: endpoint.map(str::to_owned), wait_until, class, answer: sender };
        // Callers come before background requests.
        let place = match class {
            Class::Caller => state.waiters.iter().position(|other| other.class != Class::Caller),
            Class::Background { .. } => None,
        };
        state.waiters.insert(place.unwrap_or(state.waiters.len()), waiter);
        Self { queue, answer, answered: false }
    }

    pub(super) async fn wait(mut self) -> PermitResult {
        let answer = (&mut self.answer).await;
        self.answered = true;
        answer.unwrap_or_else(|_| Err(StoreError::Unavailable("the batcher of the limiter stopped".to_owned()).into()))
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

/// A batcher that the first waiter runs itself, so that a waiter without others needs no task. If others still wait
/// when the first waiter has its answer or goes away, the batcher becomes a task.
pub(super) struct RunningBatcher(Option<Run>);

impl RunningBatcher {
    pub(super) fn new(run: Option<impl Future<Output = ()> + Send + 'static>) -> Self {
        Self(run.map(|run| Box::pin(run) as Run))
    }

    pub(super) async fn until(mut self, answer: impl Future<Output = PermitResult>) -> PermitResult {
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
    use super::*;
    use crate::domain::clock::Millis;
    use crate::domain::limits::Limits;
    use crate::limiter::{Meter, Permit, Usage};

    fn permit(send_by: i64) -> Permit {
        let meter = Meter { limit: 2, remaining: 1, resets_at: Millis(0) };
        let interval = std::time::Duration::from_secs(10);
        let usage = Usage { burst: meter, interval, daily: meter };
        let limits = Limits { burst: 400, interval, daily: 9_000 };
        Permit { usage, send_by: Millis(send_by), slot: 0, limits }
    }

    #[tokio::test]
    async fn a_permit_of_a_waiter_that_has_left_goes_to_the_next() {
        let queue = WaiterQueue::unconnected();
        let request = PermitRequest { endpoint: None, wait_until: None, class: Class::Caller };
        let ticket = || Ticket::new(&queue, &mut queue.state(), request);
        let (gone, first, second) = (ticket(), ticket(), ticket());
        drop(gone);
        queue.hand_on(permit(1));
        drop(first); // It was given the permit, and leaves without it.
        assert_eq!(second.wait().await.expect("handed on").send_by, Millis(1));
        queue.hand_on(permit(2));
        assert_eq!(queue.state().spare, [permit(2)], "nobody is left");
    }
}
