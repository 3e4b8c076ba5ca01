//! Who waits in a lane, and drives it meanwhile.

use std::future::poll_fn;
use std::pin::{Pin, pin};

use tokio::sync::oneshot;

use super::{Answer, Lane, State, Waiter};
use crate::clock::Millis;
use crate::table::StoreError;

/// The end of a queue that somebody stands at. Leaving gives back what came too late to be used.
pub(super) struct Waiting<'a> {
    lane: &'a Lane,
    answer: oneshot::Receiver<Answer>,
    answered: bool,
}

impl<'a> Waiting<'a> {
    /// Stands behind all who are in the queue of `lane`, which is in this `state`.
    pub(super) fn behind(lane: &'a Lane, state: &mut State, until: Option<Millis>) -> Self {
        let (sender, answer) = oneshot::channel();
        state.queue.push_back(Waiter { until, answer: sender });
        Self { lane, answer, answered: false }
    }

    pub(super) async fn wait(mut self) -> Answer {
        let answer = (&mut self.answer).await;
        self.answered = true;
        answer.unwrap_or_else(|_| Err(StoreError::Unavailable("the quota's driver stopped".to_owned()).into()))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.answered {
            return;
        }
        self.answer.close();
        if let Ok(Ok(permit)) = self.answer.try_recv() {
            self.lane.state().give(permit);
        }
        self.lane.changed.notify_one();
    }
}

type Run = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A driver that the first waiter drives itself, which spares a task for the many who are alone. What is left of it
/// when that waiter has its answer, or goes away, becomes a task.
pub(super) struct Driving(Option<Run>);

impl Driving {
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

impl Drop for Driving {
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
    use crate::quota::{LimitKind, Limits, Meter, Permit, Usage};

    const LIMITS: Limits = Limits { burst: 2, interval: Duration::from_secs(10), daily: 9 };

    fn permit(send_by: i64) -> Permit {
        let meter = Meter { limit: 2, remaining: 1, resets_at: Millis(0) };
        Permit { usage: Usage { burst: meter, daily: meter }, send_by: Millis(send_by), slot: 0 }
    }

    #[tokio::test]
    async fn a_permit_that_comes_to_somebody_who_has_left_goes_to_the_next() {
        let lane = Lane::new("quota#location#L".to_owned(), LimitKind::Burst, LIMITS, Millis(0));
        let stand_in_line = || Waiting::behind(&lane, &mut lane.state(), None);
        let (gone, first, second) = (stand_in_line(), stand_in_line(), stand_in_line());
        drop(gone);
        lane.state().give(permit(1));
        drop(first); // It was given the permit, and never looked.
        assert_eq!(second.wait().await.expect("handed on").send_by, Millis(1));
        lane.state().give(permit(2));
        assert_eq!(lane.state().spare, [permit(2)], "nobody is left");
    }
}
