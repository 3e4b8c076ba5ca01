//! Idempotency: a request with a key, or a message of the queue, has one effect and one answer.
//!
//! [`Recorder::begin`] records the intent directly before the request is sent, or finds the record of an equal request.
//! [`Recorder::end`] records the outcome. docs/decisions/idempotency.md has the table of all cases.

mod answer;

use std::sync::Arc;
use std::time::Duration;

pub use self::answer::RecordedAnswer;
use crate::domain::clock::{Clock, Millis};
use crate::domain::status::LeaseOwner;
use crate::seal::vault::Vault;
use crate::seal::{Field, Place};
use crate::secrets::SecretError;
use crate::table::idempotency::{
    CallId, CallOutcome, CallProgress, Intent, MessageUse, RecordedRequest, SealedAnswer, StoredCall,
};
use crate::table::{StoreError, Table, Write};

/// The time for which an idempotency key holds.
pub const KEY_HOLDS: Duration = Duration::from_hours(24);
/// The time between the deadline of an invocation and the end of its lease. Nothing is sent after the deadline, and
/// clocks differ by less.
const LEASE_MARGIN: Duration = Duration::from_secs(2);
/// The longest lease. No Lambda invocation takes longer than 15 minutes.
const LONGEST_LEASE: Duration = Duration::from_mins(16);
/// The time that the record of an outcome may take while a caller waits for the answer.
pub const FOR_THE_OUTCOME: Duration = Duration::from_millis(900);

/// Records keyed requests in the table.
#[derive(Clone)]
pub struct Recorder {
    table: Table,
    vault: Arc<Vault>,
    clock: Clock,
}

/// A request to record.
#[derive(Clone, Debug)]
pub struct Recordable {
    /// The record's id.
    pub id: CallId,
    /// The request.
    pub request: RecordedRequest,
    /// True if the request may be sent again if it is unknown whether it was executed.
    pub is_repeatable: bool,
    /// The time for which the record is kept.
    pub kept: Duration,
    /// The id of the message of the queue that sends the request. An idempotency key holds for [`KEY_HOLDS`], and the
    /// record for its message for longer.
    pub message: Option<String>,
}

impl Recordable {
    fn intent(&self, lease_ends_at: Millis, now: Millis) -> Intent<'_> {
        let key_holds_until = now + KEY_HOLDS;
        let message = self.message.as_deref().map(|id| MessageUse { id, key_holds_until });
        let Self { request, is_repeatable, kept, .. } = self;
        Intent { request, is_repeatable: *is_repeatable, lease_ends_at, kept_until: now + *kept, message }
    }

    /// True if an earlier delivery of the same message has made the record.
    fn has_message_of(&self, stored: &StoredCall) -> bool {
        stored.message.is_some() && stored.message == self.message
    }
}

/// The lease of a recorded request. Its holder may send the request.
#[derive(Debug)]
#[must_use]
pub struct Claim {
    id: CallId,
    owner: LeaseOwner,
    is_repeatable: bool,
    kept: Duration,
}

/// The start of a request.
#[derive(Debug)]
pub enum Begun {
    /// The intent is recorded. The request may be sent.
    Claimed(Claim),
    /// There is a record already.
    Found(Found),
}

/// The record of an equal request.
#[derive(Debug)]
pub enum Found {
    /// An equal request has this answer.
    Answered(Box<RecordedAnswer>),
    /// An equal request is in progress. Its lease ends at this instant.
    InProgress(Millis),
    /// It is unknown if an equal request was executed. It may have got an answer that does not say it.
    Unknown(Box<StoredCall>, Option<Box<RecordedAnswer>>),
    /// The key belongs to another request.
    Conflict,
}

/// The end of a call.
#[derive(Debug)]
pub enum Ending {
    /// The request was executed and has an answer.
    Executed(RecordedAnswer),
    /// The request was certainly not executed.
    NotExecuted,
    /// The call of a message of the queue has ended, but its request was certainly not executed, or may be sent again. The
    /// record holds for that message only, not for its idempotency key.
    OfMessage {
        /// The answer.
        answer: RecordedAnswer,
        /// True if it is unknown whether the request was executed.
        is_unknown: bool,
    },
    /// It is unknown if the request was executed. With an answer that does not say it, the record keeps that answer, even
    /// if the request is repeatable.
    Unknown(Option<RecordedAnswer>),
}

/// The reason why nothing is recorded, and nothing is sent.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RecordError {
    /// The data keys cannot be read, so an answer could not be sealed.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The table does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Recorder {
    /// Records in `table`.
    pub fn new(table: Table, vault: Arc<Vault>, clock: Clock) -> Self {
        Self { table, vault, clock }
    }

    /// Finds the record of an equal request, by a read. `None` if the request may be sent.
    pub async fn find(&self, call: &Recordable) -> Result<Option<Found>, RecordError> {
        let now = self.clock.now();
        Ok(match self.table.call(&call.id, now).await? {
            // Its sender died. It is repeatable, so the next sender may claim it.
            Some(StoredCall { progress: CallProgress::InFlight(until), .. }) if until <= now => None,
            Some(stored) if !stored.holds_for_all(now) => None,
            Some(stored) => Some(self.found(call, stored).await),
            None => None,
        })
    }

    /// Finds the record that the message of a request has made itself.
    pub async fn find_of_message(&self, call: &Recordable) -> Result<Option<Found>, RecordError> {
        let now = self.clock.now();
        let stored = self.table.call(&call.id, now).await?;
        Ok(match stored.filter(|stored| call.has_message_of(stored)) {
            // Its sender died, and the request is repeatable. So it has no end yet.
            Some(StoredCall { progress: CallProgress::InFlight(until), .. }) if until <= now => None,
            Some(stored) => Some(self.found(call, stored).await),
            None => None,
        })
    }

    /// Finds the record of a request that has ended: its own, or that of an equal request with its key.
    pub async fn find_ended(&self, call: &Recordable) -> Result<Option<Found>, RecordError> {
        match self.find_of_message(call).await? {
            None => self.find(call).await,
            found => Ok(found),
        }
    }

    /// Records the intent to send a request until `deadline`, or finds the record of an equal request.
    pub async fn begin(&self, call: &Recordable, deadline: Millis) -> Result<Begun, RecordError> {
        // Without the data keys the answer could not be recorded.
        self.vault.sealer().await?;
        let now = self.clock.now();
        let intent = call.intent(deadline.min(now + LONGEST_LEASE) + LEASE_MARGIN, now);
        let (id, is_repeatable, kept) = (call.id.clone(), call.is_repeatable, call.kept);
        let claim = Claim { id, owner: LeaseOwner::new(), is_repeatable, kept };
        match self.table.claim_call(&claim.id, &claim.owner, &intent, now).await {
            Ok(Write::Applied(_)) => Ok(Begun::Claimed(claim)),
            Ok(Write::Conflict(stored)) => Ok(Begun::Found(self.found(call, stored).await)),
            Ok(Write::NotFound) => Err(vanished()),
            Err(error) => {
                // The intent may be recorded, although nothing is sent.
                let _logged = self.end(&claim, Ending::NotExecuted, FOR_THE_OUTCOME).await;
                Err(error.into())
            }
        }
    }

    /// Records the answer to the message of a request that is not sent. One write does it, so a process that dies leaves no
    /// intent. Returns the record of an equal request, if there is one.
    pub async fn answer_unsent(&self, call: &Recordable, answer: RecordedAnswer) -> Result<Option<Found>, RecordError> {
        let now = self.clock.now();
        let outcome = self.outcome(&call.id, Ending::OfMessage { answer, is_unknown: false }).await?;
        let (owner, intent) = (LeaseOwner::new(), call.intent(now, now));
        match self.table.record_call(&call.id, &owner, &intent, &outcome, now).await? {
            Write::Applied(_) => Ok(None),
            Write::Conflict(stored) => Ok(Some(self.found(call, stored).await)),
            Write::NotFound => Err(vanished()),
        }
    }

    /// Reads the record that a request has met.
    async fn found(&self, call: &Recordable, stored: StoredCall) -> Found {
        // A message is always the same request, even if a later version computes another fingerprint.
        if stored.request.fingerprint != call.request.fingerprint && !call.has_message_of(&stored) {
            return Found::Conflict;
        }
        match &stored.progress {
            CallProgress::InFlight(until) => Found::InProgress(*until),
            CallProgress::Unknown { answer, .. } => {
                let answer = match answer {
                    Some(answer) => Some(Box::new(self.open(&call.id, answer).await)),
                    None => None,
                };
                Found::Unknown(Box::new(stored), answer)
            }
            CallProgress::Answered(answer) => Found::Answered(Box::new(self.open(&call.id, answer).await)),
        }
    }

    /// Records the end of a call. If the table does not take the record, the lease expires, and then the outcome of a
    /// request that is not repeatable is unknown.
    ///
    /// `within` is the time that the record may take.
    ///
    /// # Errors
    /// [`RecordError`]: the end may not be recorded.
    pub async fn end(&self, claim: &Claim, ending: Ending, within: Duration) -> Result<(), RecordError> {
        let recording = tokio::time::timeout(within, Box::pin(self.record(claim, ending))).await;
        let recorded =
            recording.unwrap_or_else(|_| Err(StoreError::Unavailable("no answer in time".to_owned()).into()));
        recorded.inspect_err(|error| {
            tracing::error!(call = claim.id.as_str(), %error, "the outcome of a keyed request is not recorded");
        })
    }

    async fn record(&self, claim: &Claim, ending: Ending) -> Result<(), RecordError> {
        let outcome = match ending {
            Ending::Unknown(None) if claim.is_repeatable => CallOutcome::Released,
            ending => self.outcome(&claim.id, ending).await?,
        };
        let now = self.clock.now();
        if !self.table.end_call(&claim.id, &claim.owner, &outcome, now + claim.kept, now).await? {
            tracing::warn!(
                call = claim.id.as_str(),
                "the outcome of a keyed request came too late: another sender has taken it over, or it is settled as unknown"
            );
        }
        Ok(())
    }

    /// Records the outcome of an unknown request, as the relay or an operator has found it out. Returns false if the
    /// record has changed since it was `seen`.
    pub async fn resolve(&self, id: &CallId, seen: &StoredCall, ending: Ending) -> Result<bool, RecordError> {
        let outcome = self.outcome(id, ending).await?;
        Ok(self.table.resolve_call(id, seen, &outcome, self.clock.now()).await?)
    }

    /// Settles an unknown outcome, with which a message of the queue ends. Returns false if somebody has found the outcome out
    /// meanwhile.
    pub async fn settle(&self, id: &CallId, seen: &StoredCall) -> Result<bool, RecordError> {
        Ok(self.table.settle_call(id, seen, self.clock.now()).await?)
    }

    async fn outcome(&self, id: &CallId, ending: Ending) -> Result<CallOutcome, SecretError> {
        Ok(match ending {
            Ending::Executed(answer) => CallOutcome::Answered(self.seal(id, &answer).await?),
            Ending::OfMessage { answer, is_unknown } => {
                CallOutcome::OfMessage { answer: self.seal(id, &answer).await?, is_unknown }
            }
            Ending::Unknown(Some(answer)) => CallOutcome::Unknown(Some(self.seal(id, &answer).await?)),
            Ending::Unknown(None) => CallOutcome::Unknown(None),
            Ending::NotExecuted => CallOutcome::Released,
        })
    }

    async fn seal(&self, id: &CallId, answer: &RecordedAnswer) -> Result<SealedAnswer, SecretError> {
        let sealed = self.vault.sealer().await?.seal(place(id), answer.encode().expose());
        Ok((answer.status.as_u16(), Some(sealed)))
    }

    /// Opens a recorded answer. One that does not open keeps its status: its data key may have been removed.
    async fn open(&self, id: &CallId, (status, sealed): &SealedAnswer) -> RecordedAnswer {
        let status = *status;
        let Some(sealed) = sealed else { return RecordedAnswer::without_body(status) };
        match self.vault.open(place(id), sealed).await {
            Ok(text) => RecordedAnswer::decode(status, text.expose()),
            Err(error) => {
                tracing::warn!(call = id.as_str(), %error, "a recorded answer does not open");
                RecordedAnswer::without_body(status)
            }
        }
    }
}

/// A conditional write that may create its item found none.
fn vanished() -> RecordError {
    StoreError::Unavailable("a record vanished".to_owned()).into()
}

/// The place of a sealed answer. A record has no versions: its key is in use for one request.
fn place(id: &CallId) -> Place<'_> {
    Place { item: id.as_str(), epoch: 0, generation: 0, field: Field::Answer }
}
