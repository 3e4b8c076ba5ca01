//! Calls of the queue, for which nobody waits. Each ends once: in an answer, a refusal, or an unknown outcome.
//!
//! A call is recorded like a keyed request, by its idempotency key or by the id of its message, for longer than a queue
//! keeps messages. A repeated delivery finds the record, so it has the same end. An idempotency key holds no longer than
//! without a queue: after that, the record is for its message only.

use std::time::Duration;

use http::StatusCode;

use super::answer::Answer;
use super::call::Pacing;
use super::idempotent::{Resolved, is_repeatable, recorded_request};
use super::refused::Refused;
use super::retry::Execution;
use super::{Invocation, Performed, Relay, charges};
use crate::caller::Authorized;
use crate::domain::clock::Millis;
use crate::domain::problem::Code;
use crate::idempotency::{Ending, Found, RecordError, Recordable, RecordedAnswer};
use crate::limiter::{Background, LimitKind};
use crate::request::Request;
use crate::table::idempotency::CallId;

/// The time for which the end of a queued call is remembered. SQS keeps messages for 14 days at most.
const REMEMBERED: Duration = Duration::from_hours(24 * 15);
/// The longest wait of a delivery for its permit. SQS counts in whole seconds, so a message comes up to some 1.2 s before
/// its turn.
pub const LONGEST_WAIT: Duration = Duration::from_millis(1_500);
/// The time of an invocation that is kept for the record, the results and the next deliveries.
const FOR_THE_END: Duration = Duration::from_secs(4);
/// The part of it for the results and the next deliveries. The record has the rest, so that a repeated delivery finds it
/// even if the table is slow.
const FOR_THE_RESULT: Duration = Duration::from_secs(1);
/// The most tries of a call that the platform did not answer, or answered with a 5xx.
const MOST_TRIES: u32 = 5;
/// The time before the next try of a call that could not be sent or recorded.
const SOON: Duration = Duration::from_secs(5);
/// The calls to a closed endpoint come again within so much time after its end, for each delivery so far.
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
    /// The number of times that the request was sent by them.
    pub attempts: u32,
    /// The number of deliveries of the message.
    pub receives: u32,
    /// The call waits for its permit until then.
    pub wait_until: Millis,
}

/// The consequence of a delivery of a call.
#[derive(Debug)]
pub enum Next {
    /// The call has ended.
    End(Box<End>),
    /// The call needs another turn, not before this instant, because this limit is reached.
    Turn(Millis, LimitKind),
    /// The call is to be delivered again at this instant.
    Again(Millis),
    /// The call could not be sent or recorded. It is to be delivered again after a pause that grows, and not before this
    /// instant.
    Later(Millis),
    /// The call was tried without success. It is to be delivered again at this instant, and its tries are to be counted.
    Retry {
        /// The instant.
        at: Millis,
        /// The number of times that the request was sent in this try.
        attempts: u32,
    },
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
        let QueuedCall { message_id, authorized, wait_until, .. } = call;
        let request = authorized.request();
        let started = self.now();
        let quarter = invocation.deadline.since(started) / 4;
        let deadline = invocation.deadline - FOR_THE_END.min(quarter);
        let pacing = Pacing::Background(permits, wait_until.min(started + quarter));
        if let Some(refusal) = permits.local_refusal(request.endpoint(), wait_until.min(started + quarter)) {
            return after_refusal(refusal.limit, refusal.retry_at, call.receives);
        }
        let recordable = recordable(message_id, authorized.caller().id(), request);
        let mut performed = self.perform(authorized, deadline, pacing, Some(&recordable)).await;
        if let Some(found) = performed.found.take() {
            return Box::pin(self.after_record(found, call, &recordable.id, deadline, pacing)).await;
        }
        let now = self.now();
        let closed = permits.local_refusal(request.endpoint(), now).map(|refusal| (refusal.limit, refusal.retry_at));
        let (ending, next) = decide(&performed, &call, closed, now);
        let next = match next {
            Next::End(end) if end.outcome == Outcome::Unknown && charges::question(request).is_some() => {
                Next::Retry { at: now + charges::VISIBLE_AFTER, attempts: performed.timings.attempts }
            }
            next => next,
        };
        match (performed.claim.take(), ending) {
            (Some(claim), ending) => {
                let within = (invocation.deadline - FOR_THE_RESULT).since(self.now());
                let _logged = self.recorder.end(&claim, ending, within).await;
            }
            // A repeated delivery must have the same end.
            (None, Ending::OfMessage { answer, .. }) => {
                match Box::pin(self.recorder.answer_unsent(&recordable, answer)).await {
                    Ok(None) => {}
                    Ok(Some(found)) => {
                        return Box::pin(self.after_record(found, call, &recordable.id, deadline, pacing)).await;
                    }
                    Err(error) => return self.not_recorded(message_id, &error),
                }
            }
            (None, Ending::NotExecuted | Ending::Executed(_) | Ending::Unknown(_)) => {}
        }
        if !matches!(next, Next::Turn(..)) {
            self.log_performed(authorized, invocation, &performed, started);
        }
        next
    }

    /// The end of a call that its caller may not make, or the end that an earlier delivery had when the caller still might.
    /// Records of other requests with the same idempotency key are neither read out nor replaced.
    pub async fn refuse_queued(&self, message_id: &str, caller: &str, request: &Request, refused: &Refused) -> Next {
        let now = self.now();
        let mut recordable = recordable(message_id, caller, request);
        match self.recorder.find_of_message(&recordable).await {
            Ok(None) => {}
            Ok(Some(found)) => return self.settled(found, message_id, request, &recordable.id).await,
            Err(error) => return self.not_recorded(message_id, &error),
        }
        recordable.id = CallId::of_message(message_id);
        let refusal = End::refused(refused, now);
        match self.recorder.answer_unsent(&recordable, refusal.answer.recorded(0)).await {
            Ok(None) => {
                self.log_refused(message_id, refused);
                Next::End(Box::new(refusal))
            }
            Ok(Some(found)) => after_earlier(found, now),
            Err(error) => self.not_recorded(message_id, &error),
        }
    }

    /// The end of a message that has ended before. Its record may be gone, because it is old, or because another request has its
    /// idempotency key since. Then its answer is not known. Nothing is sent.
    pub async fn ended_queued(&self, message_id: &str, caller: &str, request: &Request) -> Next {
        let recordable = recordable(message_id, caller, request);
        match self.recorder.find_ended(&recordable).await {
            Ok(None | Some(Found::Conflict)) => Next::End(Box::new(unknown(self.now()))),
            Ok(Some(found)) => self.settled(found, message_id, request, &recordable.id).await,
            Err(error) => self.not_recorded(message_id, &error),
        }
    }

    /// Decides what follows from the record of an earlier delivery, or of an equal request. An unknown charge is looked up.
    async fn after_record(
        &self,
        found: Found,
        call: QueuedCall<'_>,
        id: &CallId,
        deadline: Millis,
        pacing: Pacing<'_>,
    ) -> Next {
        let Found::Unknown(seen, _) = &found else { return after_earlier(found, self.now()) };
        if seen.is_settled || call.tries >= MOST_TRIES {
            return self.settled(found, call.message_id, call.authorized.request(), id).await;
        }
        match self.resolve_charge(call.authorized, id, seen, deadline, pacing).await {
            // The next delivery finds the answer, or sends the request.
            Ok(Resolved::Known) => Next::Again(self.now()),
            Ok(Resolved::AskAgain(at)) => Next::Retry { at, attempts: 0 },
            Ok(Resolved::NotAsked(limit, at)) => after_refusal(limit, at, call.receives),
            Ok(Resolved::Never) => after_earlier(found, self.now()),
            Err(error) => self.not_recorded(call.message_id, &error),
        }
    }

    /// The end that an earlier delivery had. An unknown charge is settled first: each delivery must have the same end, whatever a
    /// look would find, and a copy of the message may have had fewer tries.
    async fn settled(&self, found: Found, message_id: &str, request: &Request, id: &CallId) -> Next {
        if let Found::Unknown(seen, _) = &found
            && !seen.is_settled
            && charges::question(request).is_some()
        {
            match self.recorder.settle(id, seen).await {
                Ok(true) => {}
                Ok(false) => return Next::Again(self.now()),
                Err(error) => return self.not_recorded(message_id, &error),
            }
        }
        after_earlier(found, self.now())
    }

    fn not_recorded(&self, message_id: &str, error: &RecordError) -> Next {
        tracing::warn!(message_id, %error, "the record of a queued call cannot be read or written");
        Next::Later(self.now())
    }

    /// Writes the line of a queued call that was refused before it was sent.
    pub fn log_refused(&self, message_id: &str, refused: &Refused) {
        let code = refused.problem.code.as_str();
        tracing::info!(message_id, outcome = code, cause = refused.cause.as_deref(), Calls = 1, "refused");
    }
}

/// The record of a call of the queue.
fn recordable(message_id: &str, caller: &str, request: &Request) -> Recordable {
    let id = match &request.idempotency_key {
        Some(key) => CallId::of_key(caller, &request.resource, key.as_str()),
        None => CallId::of_message(message_id),
    };
    let (is_repeatable, message) = (is_repeatable(&request.method), Some(message_id.to_owned()));
    Recordable { id, request: recorded_request(caller, request), is_repeatable, kept: REMEMBERED, message }
}

/// The consequence of the record of an earlier delivery, or of an equal request.
fn after_earlier(found: Found, now: Millis) -> Next {
    let end = |end| Next::End(Box::new(end));
    match found {
        Found::Answered(answer) => {
            let outcome = outcome_of(&answer);
            end(End::recorded(*answer, outcome))
        }
        Found::InProgress(until) => Next::Again(until),
        Found::Conflict => end(End::refused(&Refused::by_other_request(), now)),
        Found::Unknown(_, Some(answer)) => end(End::recorded(*answer, Outcome::Unknown)),
        Found::Unknown(_, None) => end(unknown(now)),
    }
}

/// The end of a call that was sent, and whose answer is not known.
fn unknown(now: Millis) -> End {
    let refused = End::refused(&Refused::by_unknown_outcome(), now);
    End { outcome: Outcome::Unknown, attempts: 1, ..refused }
}

/// The next delivery after a limit has refused a call until `at`. Calls to other endpoints must not wait for a closed one,
/// so a call to that endpoint takes no turn in the schedule of its resource. Such calls come again within a time that grows
/// with their deliveries, because the endpoint may admit only a few of many at once.
fn after_refusal(limit: LimitKind, at: Millis, receives: u32) -> Next {
    let spread = (SPREAD * receives.max(1)).min(LATEST);
    if limit == LimitKind::Endpoint { Next::Again(at + spread.mul_f64(fastrand::f64())) } else { Next::Turn(at, limit) }
}

/// The kind of the end that a recorded answer was. The relay answers for the platform if the platform's answer was too large
/// to pass on.
fn outcome_of(answer: &RecordedAnswer) -> Outcome {
    let is_answered = answer.is_of_platform || answer.status == StatusCode::PAYLOAD_TOO_LARGE;
    if is_answered { Outcome::Answered } else { Outcome::Refused }
}

/// Decides what is recorded and what follows, after a call was performed. `closed` is the limit that closes its endpoint now,
/// with the end of that.
fn decide(
    performed: &Performed,
    call: &QueuedCall<'_>,
    closed: Option<(LimitKind, Millis)>,
    now: Millis,
) -> (Ending, Next) {
    let request = call.authorized.request();
    let attempts = call.attempts + performed.timings.attempts;
    let recorded = || performed.bare.recorded(attempts);
    let end = |outcome| Next::End(Box::new(End { outcome, answer: performed.bare.clone(), attempts }));
    // An end of the message only: a request with its idempotency key is sent again.
    let of_message = |outcome| {
        let is_unknown = outcome == Outcome::Unknown;
        (Ending::OfMessage { answer: recorded(), is_unknown }, end(outcome))
    };
    let is_last_try = call.tries + 1 >= MOST_TRIES;
    let retry = || {
        let at = now + (SOON * (1 << call.tries.min(8))).min(LATEST);
        (Ending::NotExecuted, Next::Retry { at, attempts: performed.timings.attempts })
    };
    match (performed.execution, &performed.refused) {
        (Execution::Unknown, _) if !is_repeatable(&request.method) => {
            (Ending::Unknown(Some(recorded())), end(Outcome::Unknown))
        }
        (Execution::Answered, _) => (Ending::Executed(recorded()), end(Outcome::Answered)),
        (Execution::Unknown, _) if !is_last_try => retry(),
        (Execution::Unknown, None) => of_message(Outcome::Answered),
        (Execution::Unknown, Some(_)) => of_message(Outcome::Unknown),
        (Execution::No, Some(Refused { limit: Some(limit), problem, .. })) => {
            (Ending::NotExecuted, after_refusal(*limit, problem.retry_at.unwrap_or(now), call.receives))
        }
        (Execution::No, Some(refused)) => match refused.problem.code {
            Code::RefreshInProgress
            | Code::StoreUnavailable
            | Code::Misconfigured
            | Code::PlatformUnreachable
            | Code::PlatformTimeout => (Ending::NotExecuted, Next::Later(refused.problem.retry_at.unwrap_or(now))),
            _ => of_message(Outcome::Refused),
        },
        (Execution::No, None) => match performed.bare.status {
            StatusCode::TOO_MANY_REQUESTS => {
                let next = closed.map_or(Next::Later(now), |(limit, at)| after_refusal(limit, at, call.receives));
                (Ending::NotExecuted, next)
            }
            StatusCode::UNAUTHORIZED => of_message(Outcome::Answered),
            _ if !is_last_try => retry(),
            _ => of_message(Outcome::Answered),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caller::Callers;
    use crate::http_client::SendError;
    use crate::relay::call::Timings;
    use crate::request::path::Path;
    use http::Method;

    fn request(method: Method) -> Authorized {
        let location = crate::domain::resource::Resource::location("L1").expect("an id");
        let request = Request::new(location, method, Path::parse("/contacts/").expect("a path"));
        let callers = Callers::parse(r#"{"callers":[{"id":"a","queue":true}]}"#).expect("callers");
        callers.of_queue("a").expect("a caller").authorize(request).expect("its right")
    }

    /// The end of a call without a response, and the end that a repeated delivery finds in its record.
    fn ends(method: Method, refused: Refused, execution: Execution) -> (Outcome, Outcome) {
        let answer = Answer::refused(&refused, Millis(0));
        let (bare, timings) = (answer.clone(), Timings::default());
        let performed =
            Performed { answer, bare, refused: Some(refused), execution, timings, claim: None, found: None };
        let authorized = request(method);
        let (tries, attempts, wait_until) = (MOST_TRIES - 1, 0, Millis(0));
        let call = QueuedCall { message_id: "m1", authorized: &authorized, tries, attempts, receives: 1, wait_until };
        let (ending, Next::End(end)) = decide(&performed, &call, None, Millis(0)) else { panic!("it has not ended") };
        let repeated = match ending {
            Ending::Executed(answer) | Ending::OfMessage { answer, is_unknown: false } => outcome_of(&answer),
            Ending::Unknown(_) | Ending::OfMessage { is_unknown: true, .. } => Outcome::Unknown,
            Ending::NotExecuted => panic!("nothing is recorded"),
        };
        (end.outcome, repeated)
    }

    #[test]
    fn a_repeated_delivery_has_the_same_kind_of_end() {
        let too_large = Refused::by_platform(&SendError::TooLarge(StatusCode::OK));
        let late = || Refused::by_platform(&SendError::TimedOut);
        for (method, refused, execution, outcome) in [
            (Method::POST, too_large, Execution::Answered, Outcome::Answered),
            (Method::POST, Refused::by_other_request(), Execution::No, Outcome::Refused),
            (Method::POST, late(), Execution::Unknown, Outcome::Unknown),
            (Method::PUT, late(), Execution::Unknown, Outcome::Unknown),
        ] {
            assert_eq!(ends(method, refused, execution), (outcome, outcome), "{outcome:?}");
        }
    }
}
