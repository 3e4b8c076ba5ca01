//! The queue door: messages of the queue of calls, in partial batch responses (Lambda Developer Guide).
//!
//! A new message gets a turn. A message whose turn is far ahead is hidden until then; the others are sent now. Nothing
//! sleeps until a turn. docs/decisions/queue-door.md has the reasons.

mod delivery;
mod message;
mod result;
mod sqs;

use std::collections::HashMap;
use std::time::Duration;

use aws_lambda_events::sqs::{SqsBatchResponse, SqsEvent};
use futures_util::future::join_all;
use lambda_runtime::LambdaEvent;
use serde_json::value::RawValue;
use shared::app::App;
use shared::config::QueueConfig;
use shared::domain::clock::Millis;
use shared::domain::qualifier::InvocationKind;
use shared::limiter::{Background, LimitKind};
use shared::relay::queued::{End, LONGEST_WAIT, Next, Outcome, QueuedCall};
use shared::relay::{Invocation, Relay};
use shared::table::{StoreError, Table};

use self::delivery::{Admission, Delivery, Fate, Schedule};
use self::message::{Carried, Message};
use self::sqs::{Anew, Queues};
use crate::direct::raw;
use crate::event::EventKind;

/// The longest time for which a message is hidden. SQS allows 43,200 s in total from the receipt.
const LONGEST_HIDDEN: Duration = Duration::from_secs(43_000);
/// The longest delay of a message that is sent anew (Amazon SQS API Reference, `SendMessage`).
const LONGEST_DELAY: Duration = Duration::from_mins(15);
/// A message is sent anew after so many deliveries. SQS moves it to the dead-letter queue after 1,000 at most.
const MOST_RECEIVES: u32 = 500;
/// A message is sent anew at this age. SQS deletes it after 14 days at most.
const OLDEST: Duration = Duration::from_hours(24 * 12);
/// A message is delivered so long before its turn at least. SQS counts in whole seconds, so it may be a second more.
const EARLY: Duration = Duration::from_millis(150);
/// Time until the next delivery after a failure of our own, for each earlier delivery.
const PAUSE: Duration = Duration::from_secs(5);
/// The longest time until the next delivery after a failure of our own. With [`PAUSE`], a message is delivered
/// [`MOST_RECEIVES`] times in some three days.
const LONGEST_PAUSE: Duration = Duration::from_mins(10);

/// The queue door of one process.
pub struct Door {
    queues: Queues,
    permits: Background,
    table: Table,
}

impl Door {
    /// The door of an app that has a queue of calls.
    #[must_use]
    pub fn new(app: &App, config: QueueConfig) -> Self {
        let bus = app.config.event_bus_name.clone();
        Self {
            queues: Queues::new(&app.aws, config.calls_url, config.results_url, bus),
            permits: Background::new(app.limiter.clone(), config.reserve),
            table: app.table.clone(),
        }
    }
}

/// Answers an event of the queue of calls. Messages that stay on the queue are in the answer.
pub async fn answer(relay: &Relay, door: Option<&Door>, event: &LambdaEvent<Box<RawValue>>) -> Box<RawValue> {
    let now = relay.now();
    let read: SqsEvent = match serde_json::from_str(event.payload.get()) {
        Ok(read) => read,
        Err(error) => {
            tracing::error!(alarm = "queue", %error, "an SQS event cannot be read; its messages stay on the queue");
            return none_succeeded();
        }
    };
    let messages: Vec<Message> = read.records.iter().map(|message| Message::read(message, now)).collect();
    let all = |messages: &[Message]| failures(messages.iter());
    if let Err(refused) = relay.check_invocation_kind(InvocationKind::Queue, &event.context.invoked_function_arn) {
        let cause = refused.cause.as_deref();
        tracing::error!(alarm = "queue", cause, "an SQS event came by another qualifier");
        return all(&messages);
    }
    let Some(door) = door else {
        tracing::error!(alarm = "queue", "an SQS event came, but CALLS_QUEUE_URL is not set");
        return all(&messages);
    };
    let invocation = EventKind::Queue.invocation(&event.context, now);
    let batch = Batch { relay, door, invocation: &invocation, received_at: now };
    let left = match relay.callers().await {
        Ok(callers) => batch.run(messages.into_iter().map(|message| Delivery::of(message, &callers)).collect()).await,
        Err(refused) => {
            let cause = refused.cause.as_deref();
            tracing::error!(alarm = "queue", cause, "the callers cannot be read; queued calls wait");
            let all: Vec<_> = messages.iter().map(|message| batch.later(message, now)).collect();
            cloned(batch.keep(&all).await)
        }
    };
    failures(left.iter())
}

/// The answer that keeps all messages on the queue, whatever their ids are. An empty id makes the batch a complete failure
/// (Lambda Developer Guide, "Implementing partial batch responses").
fn none_succeeded() -> Box<RawValue> {
    let mut answer = SqsBatchResponse::default();
    answer.set_failures([String::new()]);
    raw(&answer)
}

fn cloned(messages: Vec<&Message>) -> Vec<Message> {
    messages.into_iter().cloned().collect()
}

/// The answer that keeps these messages on the queue.
fn failures<'a>(messages: impl Iterator<Item = &'a Message>) -> Box<RawValue> {
    let mut answer = SqsBatchResponse::default();
    answer.set_failures(messages.map(|message| message.sqs_id.clone()));
    raw(&answer)
}

/// One invocation.
struct Batch<'a> {
    relay: &'a Relay,
    door: &'a Door,
    invocation: &'a Invocation,
    received_at: Millis,
}

impl Batch<'_> {
    /// Decides the fate of each message and carries it out. Returns the messages that stay on the queue.
    async fn run(&self, mut deliveries: Vec<Delivery>) -> Vec<Message> {
        self.give_turns_to_new(&mut deliveries).await;
        self.send_all(&mut deliveries).await;
        self.give_turns_to_refused(&mut deliveries).await;
        self.carry_out(deliveries).await
    }

    /// Gives turns to the messages that have none. A message whose turn is far ahead waits for it.
    async fn give_turns_to_new(&self, deliveries: &mut [Delivery]) {
        let now = self.relay.now();
        let mut new: HashMap<Schedule, Vec<&mut Delivery>> = HashMap::new();
        for delivery in deliveries.iter_mut().filter(|delivery| delivery.fate.is_none()) {
            if let Some(turn) = delivery.message.turn().filter(|turn| is_ahead(*turn, now)) {
                delivery.fate = Some(Fate::Turn(turn));
            } else if delivery.message.is_new()
                && let Some(schedule) = delivery.schedule()
            {
                new.entry(schedule).or_default().push(delivery);
            }
        }
        join_all(new.into_iter().map(|(schedule, new)| async move {
            match self.turns(&schedule, new.len(), now).await {
                Ok(turns) => {
                    for (delivery, turn) in new.into_iter().zip(turns) {
                        delivery.fate = is_ahead(turn, now).then_some(Fate::Turn(turn));
                    }
                }
                Err(_) => new.into_iter().for_each(|delivery| delivery.fate = Some(Fate::Later(now))),
            }
        }))
        .await;
    }

    /// Sends the calls of all messages that have no fate yet, all at the same time. The limiter takes the permits of those
    /// that it admits at the same instant in one write. The others take a new turn.
    async fn send_all(&self, deliveries: &mut [Delivery]) {
        let undecided = deliveries.iter_mut().filter(|delivery| delivery.fate.is_none());
        join_all(undecided.map(|delivery| self.send(delivery))).await;
    }

    /// Gives new turns to the messages that the limits have refused.
    async fn give_turns_to_refused(&self, deliveries: &mut [Delivery]) {
        let mut refused: HashMap<Schedule, Vec<(Millis, &mut Delivery)>> = HashMap::new();
        for delivery in deliveries {
            if let (Some(Fate::NewTurn(earliest)), Some(schedule)) = (&delivery.fate, delivery.schedule()) {
                refused.entry(schedule).or_default().push((*earliest, delivery));
            }
        }
        join_all(refused.into_iter().map(|(schedule, refused)| async move {
            let now = self.relay.now();
            let first = refused.iter().map(|(earliest, _)| *earliest).min().unwrap_or(now);
            let turns = self.turns(&schedule, refused.len(), first).await;
            for (number, (earliest, delivery)) in refused.into_iter().enumerate() {
                delivery.fate = Some(match &turns {
                    Ok(turns) => Fate::Turn(turns[number].max(earliest)),
                    Err(_) => Fate::Later(earliest),
                });
            }
        }))
        .await;
    }

    /// Takes so many turns.
    async fn turns(&self, schedule: &Schedule, count: usize, earliest: Millis) -> Result<Vec<Millis>, StoreError> {
        let Schedule { resource, share } = schedule;
        let share = share.as_ref().map(|(caller, most)| (caller.as_str(), *most));
        let turns = async {
            let pattern = self.door.permits.pattern(resource, share.map(|(_, most)| most)).await?;
            let caller = share.map(|(caller, _)| caller);
            self.door.table.take_turns(resource, caller, count, pattern, earliest, self.relay.now()).await
        };
        turns.await.inspect_err(|error| tracing::warn!(%resource, %error, "queued calls get no turn"))
    }

    /// Sends the call of a message, or refuses it.
    async fn send(&self, delivery: &mut Delivery) {
        let Carried { id, tries, attempts, ended, .. } = &delivery.message.carried;
        let next = match &delivery.call {
            None => return,
            Some(call) if *ended => {
                let (caller, request) = call.parts();
                Box::pin(self.relay.ended_queued(id, caller, request)).await
            }
            Some(Admission::Refused(call, refused)) => {
                Box::pin(self.relay.refuse_queued(id, &call.caller, &call.request, refused)).await
            }
            Some(Admission::Authorized(authorized)) => {
                let wait_until = self.received_at + LONGEST_WAIT;
                let (tries, attempts, receives) = (*tries, *attempts, delivery.message.receives);
                let call = QueuedCall { message_id: id, authorized, tries, attempts, receives, wait_until };
                Box::pin(self.relay.call_queued(call, &self.door.permits, self.invocation)).await
            }
        };
        delivery.is_parked = matches!(next, Next::Turn(_, LimitKind::Daily));
        delivery.fate = Some(match next {
            Next::End(end) => Fate::End(end),
            Next::Turn(earliest, _) => Fate::NewTurn(earliest),
            Next::Again(at) => Fate::Again(at),
            Next::Later(at) => Fate::Later(at),
            Next::Retry { at, attempts } => Fate::Retry { at, attempts },
        });
    }

    /// Sends results, hides messages and sends messages anew. Returns the messages that stay on the queue.
    async fn carry_out(&self, deliveries: Vec<Delivery>) -> Vec<Message> {
        let now = self.relay.now();
        let (mut ends, mut kept) = (Vec::new(), Vec::new());
        for delivery in &deliveries {
            let message = &delivery.message;
            match &delivery.fate {
                Some(Fate::End(end)) => ends.push((delivery, end.clone())),
                Some(Fate::Poison(refused)) => {
                    self.relay.log_refused(&message.carried.id, refused);
                    let is_buried = message.carried.ended || message.is_too_large();
                    if is_buried || self.door.queues.bury(message, &refused.problem.detail).await {
                        ends.push((delivery, Box::new(End::refused(refused, now))));
                    } else {
                        kept.push(self.later(message, now));
                    }
                }
                Some(Fate::Turn(at)) => kept.push(Kept::new(message, until_turn(*at, now), *at)),
                Some(Fate::Again(at)) => kept.push(Kept::new(message, until(*at, now), *at)),
                Some(Fate::Retry { at, attempts }) => {
                    kept.push(Kept { tried: Some(*attempts), ..Kept::new(message, until(*at, now), *at) });
                }
                Some(Fate::Later(at)) => kept.push(self.later(message, *at)),
                Some(Fate::NewTurn(_)) | None => kept.push(self.later(message, now)),
            }
        }
        let results: Vec<_> = ends
            .iter()
            .map(|(Delivery { message, reference, resource, .. }, end)| {
                (message, result::render(message, reference.as_deref(), resource.as_ref(), end))
            })
            .collect();
        let (sent, mut left) = tokio::join!(self.door.queues.send_results(&results), self.keep(&kept));
        let mut failed = Vec::new();
        for ((Delivery { message, call, .. }, end), sent) in ends.iter().zip(sent) {
            if sent {
                log_end(message, end, now);
            } else {
                // A refused call is refused again, or sent if its caller has got the right to it. A read is made again.
                let ended = call.as_ref().is_none_or(|call| {
                    let (_, request) = call.parts();
                    end.outcome != Outcome::Refused && !request.method.is_safe()
                });
                failed.push(Kept { ended, ..self.later(message, now) });
            }
        }
        left.extend(self.keep(&failed).await);
        let parked = deliveries.iter().filter(|delivery| delivery.is_parked).count();
        if parked > 0 {
            tracing::info!(CallsParked = parked, "queued calls wait for the next day");
        }
        cloned(left)
    }

    /// A message that is delivered again after a failure of our own, not before `at`.
    fn later<'m>(&self, message: &'m Message, at: Millis) -> Kept<'m> {
        let now = self.relay.now();
        let at = at.max(now + pause(message.receives));
        Kept::new(message, until(at, now), at)
    }

    /// Hides messages or sends them anew, so that none is received so often, or becomes so old, that SQS takes it away. One
    /// that has something new to carry is sent anew. Returns the messages that stay on the queue.
    async fn keep<'m>(&self, messages: &[Kept<'m>]) -> Vec<&'m Message> {
        let now = self.relay.now();
        let (mut hidden, mut anew) = (Vec::new(), Vec::new());
        for kept in messages {
            let Kept { message, time, at, .. } = *kept;
            match hidden_for(message, time, at, self.received_at, now).filter(|_| !kept.has_news()) {
                Some(time) => hidden.push((message, time)),
                None => anew.push(anew_at(kept, now)),
            }
        }
        let (moved, ()) = tokio::join!(self.door.queues.send_anew(&anew), self.door.queues.hide(&hidden));
        let failed: Vec<_> = anew
            .iter()
            .zip(moved)
            .filter(|(_, moved)| !moved)
            .map(|(anew, _)| (anew.message, self.later(anew.message, now).time))
            .collect();
        self.door.queues.hide(&failed).await;
        hidden.into_iter().chain(failed).map(|(message, _)| message).collect()
    }
}

/// A message that is to be delivered again.
struct Kept<'m> {
    message: &'m Message,
    /// The time until its next delivery.
    time: Duration,
    at: Millis,
    /// The number of times that its request was sent in a try that is to be counted.
    tried: Option<u32>,
    /// See [`Carried::ended`].
    ended: bool,
}

impl<'m> Kept<'m> {
    fn new(message: &'m Message, time: Duration, at: Millis) -> Self {
        Self { message, time, at, tried: None, ended: message.carried.ended }
    }

    /// True if the message must carry more than it does.
    fn has_news(&self) -> bool {
        let has_news = self.tried.is_some() || self.ended != self.message.carried.ended;
        has_news && !self.message.is_too_large()
    }
}

/// The time until the next delivery of a message after a failure of our own, by its deliveries so far.
fn pause(receives: u32) -> Duration {
    (PAUSE * receives.max(1)).min(LONGEST_PAUSE)
}

/// The time for which a message is hidden that waits for `time`, until `at`. `None` if it must be sent anew: it is old, or
/// it does not carry its turn, which is further ahead than a message can be hidden. A message that carries its turn is
/// hidden as often as necessary.
fn hidden_for(message: &Message, time: Duration, at: Millis, received_at: Millis, now: Millis) -> Option<Duration> {
    let longest = LONGEST_HIDDEN.saturating_sub(now.since(received_at));
    let is_young = message.receives < MOST_RECEIVES && now.since(message.sent_at) < OLDEST;
    let carries_turn = message.turn() == Some(at);
    (is_young && (time <= longest || carries_turn)).then_some(time.min(longest))
}

/// True if a message is hidden until its turn. A message of a nearer turn is sent now, and waits for its permit.
fn is_ahead(turn: Millis, now: Millis) -> bool {
    !until_turn(turn, now).is_zero()
}

/// The whole seconds until a message is to be delivered for its turn. Its calls must not come late, because a place that
/// nobody waits for is lost.
fn until_turn(turn: Millis, now: Millis) -> Duration {
    Duration::from_secs((turn - EARLY).since(now).as_secs())
}

/// The whole seconds until `at`, at least one.
fn until(at: Millis, now: Millis) -> Duration {
    let seconds = at.since(now).as_millis().div_ceil(1_000).try_into().unwrap_or(u64::MAX);
    Duration::from_secs(seconds).max(Duration::from_secs(1))
}

/// A message that is sent anew and delivered at its instant, or earlier if that is too far ahead.
fn anew_at<'m>(kept: &Kept<'m>, now: Millis) -> Anew<'m> {
    let Kept { message, at, tried, ended, .. } = *kept;
    let mut carried = Carried { turn: Some(at.0), ended, ..message.carried.clone() };
    if let Some(attempts) = tried {
        carried.tries += 1;
        carried.attempts += attempts;
    }
    let delay = until(at, now).min(LONGEST_DELAY);
    Anew { message, carried, delay }
}

/// Writes the line of a call that has ended. It holds no header and no body.
fn log_end(message: &Message, end: &End, now: Millis) {
    let waited_ms = now.since(Millis(message.carried.first_sent)).as_millis();
    tracing::info!(
        message_id = message.carried.id,
        outcome = end.outcome.as_str(),
        status = end.answer.status.as_u16(),
        attempts = end.attempts,
        receives = message.receives,
        CallsCompleted = 1,
        QueueTime = u64::try_from(waited_ms).unwrap_or(u64::MAX),
        "queued call ended"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Millis = Millis(1_800_000_000_000);

    fn message() -> Message {
        let carried = Carried { id: "m1".to_owned(), first_sent: NOW.0, ..Carried::default() };
        let (receipt, body) = (String::new(), String::new());
        Message { sqs_id: "m1".to_owned(), receipt, body, group: None, receives: 1, sent_at: NOW, carried }
    }

    /// An unknown charge that is looked up too early would use up its tries within a second.
    #[test]
    fn a_further_try_never_comes_early() {
        for (ms, seconds) in [(60_000, 60), (59_001, 60), (1_000, 1), (400, 1), (0, 1), (901_000, 900)] {
            let (message, at) = (message(), NOW + Duration::from_millis(ms));
            let kept = Kept { tried: Some(1), ..Kept::new(&message, Duration::ZERO, at) };
            let anew = anew_at(&kept, NOW).delay;
            assert_eq!(anew, Duration::from_secs(seconds), "{ms}");
        }
    }

    #[test]
    fn a_failure_of_days_takes_no_message_away() {
        assert_eq!([1, 2, 60, 120, 999].map(|receives| pause(receives).as_secs()), [5, 10, 300, 600, 600]);
        let until_anew: Duration = (1..MOST_RECEIVES).map(pause).sum();
        assert!(until_anew > Duration::from_hours(60), "{until_anew:?}");
    }

    #[test]
    fn a_message_whose_turn_is_tomorrow_is_sent_anew_once() {
        let (turn, first) = (NOW + Duration::from_hours(20), message());
        let hidden = |message: &Message, now| hidden_for(message, until_turn(turn, now), turn, now, now);
        assert_eq!(hidden(&first, NOW), None, "it does not carry its turn");
        let anew = anew_at(&Kept::new(&first, Duration::ZERO, turn), NOW);
        assert_eq!((anew.delay, anew.carried.turn), (LONGEST_DELAY, Some(turn.0)));
        let now = NOW + anew.delay;
        let second = Message { sqs_id: "m2".to_owned(), sent_at: NOW, carried: anew.carried, ..first.clone() };
        assert_eq!(hidden(&second, now), Some(LONGEST_HIDDEN));
        let now = now + LONGEST_HIDDEN;
        let third = Message { receives: 2, ..second.clone() };
        assert_eq!(hidden(&third, now), Some(until_turn(turn, now)));
        // SQS counts the time from the receipt.
        let late = now + Duration::from_secs(5);
        let longest = Duration::from_secs(42_995);
        assert_eq!(hidden_for(&second, LONGEST_HIDDEN, turn, now, late), Some(longest));
        // An old message is sent anew in any case.
        let often = Message { receives: MOST_RECEIVES, ..second.clone() };
        let old = Message { sent_at: now - OLDEST, ..second };
        assert_eq!([hidden(&often, now), hidden(&old, now)], [None; 2]);
    }
}
