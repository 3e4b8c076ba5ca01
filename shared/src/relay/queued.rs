//! Calls of the queue, for which nobody waits. Each ends once: in an answer, a refusal, or an unknown outcome.
//!
//! A call is recorded like a keyed request, by its idempotency key or by the id of its message, for longer than a queue
//! keeps messages. A repeated delivery finds the record, so it has the same end.

use std::time::Duration;

use http::{Method, StatusCode};

use super::answer::Answer;
use super::call::Pacing;
use super::idempotent::{Resolved, recorded_request};
use super::refused::Refused;
use super::retry::Execution;
use super::{Invocation, Performed, Relay, charges};
use crate::caller::Authorized;
use crate::domain::clock::Millis;
use crate::domain::problem::Code;
use crate::idempotency::{Ending, Found, Recordable, RecordedAnswer};
use crate::limiter::{Background, LimitKind};
use crate::table::idempotency::CallId;

/// The time for which the end of a queued call is remembered. SQS keeps messages for 14 days at most.
const REMEMBERED: Duration = Duration::from_hours(24 * 15);
/// The longest wait of a delivery for its permit. SQS counts in whole seconds, so a message comes up to some 1.2 s before
/// its turn.
pub const LONGEST_WAIT: Duration = Duration::from_millis(1_500);
/// The time of an invocation that is kept for the record, the results and the next deliveries.
const FOR_THE_END: Duration = Duration::from_secs(4);
/// The most tries of a call that the platform did not answer, or answered with a 5xx.
const MOST_TRIES: u32 = 5;
/// The time before the next try of a call that could not be sent or recorded.
const SOON: Duration = Duration::from_secs(5);
/// The calls to a closed endpoint come again within so much time after its end.
const SPREAD: Duration = Duration::from_secs(10);
/// The longest time before the next try.
const LATEST: Duration = Duration::from_mins(10);

/// A message of the queue that is a call.
#[derive(Clone, Copy, Debug)]
pub struct QueuedCall<'a> {
    /// The id of the message when it was first sent.
    pub message_id: &'a str,
    /// The request.
    pub authorized: &'a Authorized,
    /// The earlier tries of the call.
    pub tries: u32,
    /// The call waits for its permit until then.
    pub wait_until: Millis,
}

/// What follows from a delivery of a call.
#[derive(Debug)]
pub enum Next {
    /// The call has ended.
    End(Box<End>),
    /// The call needs another turn, not before this instant, because a limit is reached.
    Turn(Millis),
    /// The call is to be delivered again at this instant.
    Again(Millis),
    /// The call was tried without success. It is to be delivered again at this instant, and its tries are to be counted.
    Retry(Millis),
}

/// The end of a call.
#[derive(Clone, Debug)]
pub struct End {
    /// The kind of the end.
    pub outcome: Outcome,
    /// The answer, without the limits of the moment.
    pub answer: Answer,
    /// The number of times that the request was sent.
    pub attempts: u32,
}

/// The kind of an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The platform has answered.
    Answered,
    /// The relay has refused the call.
    Refused,
    /// It is unknown if the platform has executed the request.
    Unknown,
}

impl Outcome {
    /// The name in results.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Refused => "refused",
            Self::Unknown => "unknown",
        }
    }
}

impl End {
    /// The end of a call that the relay refuses.
    pub fn refused(refused: &Refused, now: Millis) -> Self {
        Self { outcome: Outcome::Refused, answer: Answer::refused(refused, now), attempts: 0 }
    }

    /// The end that is recorded.
    fn recorded(recorded: RecordedAnswer, outcome: Outcome) -> Self {
        let attempts = recorded.attempts;
        Self { outcome, answer: Answer::of_record(recorded), attempts }
    }
}

impl Relay {
    /// Sends a call of the queue, or finds its end.
    pub async fn call_queued(&self, call: QueuedCall<'_>, permits: &Background, invocation: &Invocation) -> Next {
        let QueuedCall { message_id, authorized, tries, wait_until } = call;
        let request = authorized.request();
        let started = self.now();
        let quarter = invocation.deadline.since(started) / 4;
        let deadline = invocation.deadline - FOR_THE_END.min(quarter);
        let wait_until = wait_until.min(started + quarter);
        if let Some(refusal) = permits.local_refusal(request.endpoint(), wait_until) {
            return after_refusal(refusal.limit == LimitKind::Endpoint, refusal.retry_at);
        }
        let is_repeatable = is_repeatable(&request.method);
        let id = match &request.idempotency_key {
            Some(key) => CallId::of_key(authorized.caller().id(), &request.resource, key.as_str()),
            None => CallId::of_message(message_id),
        };
        let recordable = Recordable { id, request: recorded_request(authorized), is_repeatable, kept: REMEMBERED };
        let pacing = Pacing::Background(permits, wait_until);
        let mut performed = self.perform(authorized, deadline, pacing, Some(&recordable)).await;
        if let Some(found) = performed.found.take() {
            return Box::pin(self.after_record(found, call, &recordable.id, deadline)).await;
        }
        let now = self.now();
        let opens_at = self.limiter.next_available_at(request.endpoint());
        let has_key = request.idempotency_key.is_some();
        let (ending, next) = decide(&performed, is_repeatable, has_key, tries, opens_at, now);
        let next = match next {
            Next::End(end) if end.outcome == Outcome::Unknown && charges::question(request).is_some() => {
                Next::Retry(now + charges::VISIBLE_AFTER)
            }
            next => next,
        };
        match (performed.claim.take(), ending) {
            (Some(claim), ending) => self.recorder.end(claim, ending).await,
            // A repeated delivery must have the same end.
            (None, Ending::Executed(answer)) => {
                match Box::pin(self.recorder.answer_unsent(&recordable, answer)).await {
                    Ok(None) => {}
                    Ok(Some(found)) => return Box::pin(self.after_record(found, call, &recordable.id, deadline)).await,
                    Err(error) => {
                        tracing::warn!(message_id, %error, "the end of a queued call cannot be recorded");
                        return Next::Again(self.now() + SOON);
                    }
                }
            }
            (None, Ending::NotExecuted | Ending::Unknown(_)) => {}
        }
        if !matches!(next, Next::Turn(_)) {
            self.log_performed(authorized, invocation, &performed, started);
        }
        next
    }

    /// Decides what follows from the record of an earlier delivery, or of an equal request. An unknown charge is looked up.
    async fn after_record(&self, found: Found, call: QueuedCall<'_>, id: &CallId, deadline: Millis) -> Next {
        let QueuedCall { message_id, authorized, tries, .. } = call;
        let end = |end| Next::End(Box::new(end));
        match found {
            Found::Answered(answer) => {
                let outcome = outcome_of(&answer);
                end(End::recorded(*answer, outcome))
            }
            Found::InProgress(until) => Next::Again(until),
            Found::Conflict => end(End::refused(&Refused::by_other_request(), self.now())),
            Found::Unknown(seen, answer) => match self.resolve_charge(authorized, id, &seen, deadline).await {
                // The next delivery finds the answer, or sends the request.
                Ok(Resolved::Known) => Next::Again(self.now()),
                Ok(Resolved::AskAgain(at)) if tries < MOST_TRIES => Next::Retry(at),
                Ok(Resolved::AskAgain(_) | Resolved::Never) => end(if let Some(answer) = answer {
                    End::recorded(*answer, Outcome::Unknown)
                } else {
                    let refused = End::refused(&Refused::by_unknown_outcome(), self.now());
                    End { outcome: Outcome::Unknown, attempts: 1, ..refused }
                }),
                Err(error) => {
                    tracing::warn!(message_id, %error, "the record of a queued call cannot be read");
                    Next::Again(self.now() + SOON)
                }
            },
        }
    }

    /// Writes the line of a queued call that was refused before it was sent.
    pub fn log_refused(&self, message_id: &str, refused: &Refused) {
        let code = refused.problem.code.as_str();
        tracing::info!(message_id, outcome = code, cause = refused.cause.as_deref(), Calls = 1, "refused");
    }
}

/// True if a request of the queue may be sent again after an unknown outcome.
fn is_repeatable(method: &Method) -> bool {
    [Method::GET, Method::HEAD, Method::PUT, Method::DELETE].contains(method)
}

/// The next delivery after a limit has refused a call until `at`. Calls to other endpoints must not wait for a closed one,
/// so a call to that endpoint takes no turn in the schedule of its resource.
fn after_refusal(of_endpoint: bool, at: Millis) -> Next {
    if of_endpoint { Next::Again(at + SPREAD.mul_f64(fastrand::f64())) } else { Next::Turn(at) }
}

/// The kind of the end that a recorded answer was. The relay answers for the platform if the platform's answer was too large
/// to pass on.
fn outcome_of(answer: &RecordedAnswer) -> Outcome {
    let is_answered = answer.is_of_platform || answer.status == StatusCode::PAYLOAD_TOO_LARGE;
    if is_answered { Outcome::Answered } else { Outcome::Refused }
}

/// Decides what is recorded and what follows, after a call was performed.
fn decide(
    performed: &Performed,
    is_repeatable: bool,
    has_key: bool,
    tries: u32,
    opens_at: Option<Millis>,
    now: Millis,
) -> (Ending, Next) {
    let recorded = || performed.bare.recorded(performed.timings.attempts);
    let end = |outcome| {
        let (answer, attempts) = (performed.bare.clone(), performed.timings.attempts);
        Next::End(Box::new(End { outcome, answer, attempts }))
    };
    let retry = || Next::Retry(now + (SOON * (1 << tries.min(8))).min(LATEST));
    match (performed.execution, &performed.refused) {
        (Execution::Unknown, _) if !is_repeatable => (Ending::Unknown(Some(recorded())), end(Outcome::Unknown)),
        (Execution::Unknown, _) if tries + 1 < MOST_TRIES => (Ending::NotExecuted, retry()),
        (Execution::Answered, _) | (Execution::Unknown, None) => (Ending::Executed(recorded()), end(Outcome::Answered)),
        (Execution::Unknown, Some(_)) => (Ending::Unknown(Some(recorded())), end(Outcome::Unknown)),
        (Execution::No, Some(refused)) => match refused.problem.code {
            Code::BurstLimited | Code::DailyLimited => {
                let of_endpoint = refused.limit() == Some("endpoint");
                (Ending::NotExecuted, after_refusal(of_endpoint, refused.problem.retry_at.unwrap_or(now)))
            }
            Code::RefreshInProgress
            | Code::StoreUnavailable
            | Code::Misconfigured
            | Code::PlatformUnreachable
            | Code::PlatformTimeout => {
                let at = refused.problem.retry_at.unwrap_or(now).max(now + SOON);
                (Ending::NotExecuted, Next::Again(at))
            }
            _ => (Ending::Executed(recorded()), end(Outcome::Refused)),
        },
        (Execution::No, None) => match performed.bare.status {
            StatusCode::TOO_MANY_REQUESTS => (Ending::NotExecuted, Next::Turn(opens_at.unwrap_or(now + SOON))),
            // A 401 is final for a message. A key may be used again.
            StatusCode::UNAUTHORIZED if has_key => (Ending::NotExecuted, end(Outcome::Answered)),
            StatusCode::UNAUTHORIZED => (Ending::Executed(recorded()), end(Outcome::Answered)),
            _ if tries + 1 < MOST_TRIES => (Ending::NotExecuted, retry()),
            _ => (Ending::Executed(recorded()), end(Outcome::Answered)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http_client::SendError;
    use crate::relay::call::Timings;

    /// The end of a call without a response, and the end that a repeated delivery finds in its record.
    fn ends(refused: Refused, execution: Execution) -> (Outcome, Outcome) {
        let answer = Answer::refused(&refused, Millis(0));
        let (bare, timings) = (answer.clone(), Timings::default());
        let performed =
            Performed { answer, bare, refused: Some(refused), execution, timings, claim: None, found: None };
        let (Ending::Executed(recorded), Next::End(end)) = decide(&performed, false, false, 0, None, Millis(0)) else {
            panic!("it has not ended")
        };
        (end.outcome, outcome_of(&recorded))
    }

    #[test]
    fn a_repeated_delivery_has_the_same_kind_of_end() {
        let too_large = Refused::by_platform(&SendError::TooLarge(StatusCode::OK));
        assert_eq!(ends(too_large, Execution::Answered), (Outcome::Answered, Outcome::Answered));
        assert_eq!(ends(Refused::by_other_request(), Execution::No), (Outcome::Refused, Outcome::Refused));
    }
}
