//! Records of keyed calls: the intent before a request is sent, and its outcome afterwards (write-ahead intent).
//!
//! A record is first a lease and later an outcome. The condition of [`Table::claim_call`] admits one sender. If the sender
//! died, the lease expires. Then a repeatable request may be claimed again, and any other has an unknown outcome.
//!
//! The table holds no idempotency key, but only a digest of it. An answer is sealed by the caller of this module.

use std::time::Duration;

use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;

use super::{Attributes, Item, StoreError, Table, Update, Write, n, s};
use crate::domain::clock::Millis;
use crate::domain::digest::sha256;
use crate::domain::resource::Resource;
use crate::domain::status::LeaseOwner;

/// A released record ends so long before the present. The clocks of two processes differ by less.
const RELEASED: Duration = Duration::from_mins(1);

/// Identifies a record.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CallId(String);

impl CallId {
    /// The record of an idempotency key. Each caller has keys of its own for each resource.
    #[must_use]
    pub fn of_key(caller: &str, resource: &Resource, key: &str) -> Self {
        // The length makes the parts unambiguous, whatever characters they have.
        Self(format!("call#key#{}", sha256(format!("{}:{caller}{resource} {key}", caller.len()).as_bytes())))
    }

    /// The record of a message of the queue.
    #[must_use]
    pub fn of_message(message_id: &str) -> Self {
        Self(format!("call#message#{}", sha256(message_id.as_bytes())))
    }

    /// Reads the id of a record as logs have it. `None` if the text is no such id.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digest = text.strip_prefix("call#key#").or_else(|| text.strip_prefix("call#message#"))?;
        let is_digest = digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_digest.then(|| Self(text.to_owned()))
    }

    /// The partition key of the record.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The request of a record, as an operator sees it. It has no query, headers or body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedRequest {
    /// The id of the caller.
    pub caller: String,
    /// The location or company, as `location:ID` or `company:ID`.
    pub resource: String,
    /// The method.
    pub method: String,
    /// The path.
    pub path: String,
    /// The digest of all parts that make two requests the same request.
    pub fingerprint: String,
}

/// The intent to send a request.
#[derive(Clone, Debug)]
pub struct Intent<'a> {
    /// The request.
    pub request: &'a RecordedRequest,
    /// True if the request may be sent again after its sender died.
    pub is_repeatable: bool,
    /// The end of the lease. The sender sends nothing after it.
    pub lease_ends_at: Millis,
    /// The end of the record.
    pub kept_until: Millis,
    /// The message of the queue that sends the request.
    pub message: Option<MessageUse<'a>>,
}

/// A message of the queue, which may use an idempotency key. The record holds for its repeated deliveries until its end,
/// and for all other requests with the key until `key_holds_until`.
#[derive(Clone, Copy, Debug)]
pub struct MessageUse<'a> {
    /// The id of the message.
    pub id: &'a str,
    /// The end of the key.
    pub key_holds_until: Millis,
}

/// The status of an answer, and the rest of it, sealed. An answer that an operator records has no rest.
pub type SealedAnswer = (u16, Option<Vec<u8>>);

/// The outcome that the owner of a record stores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallOutcome {
    /// The request has this answer.
    Answered(SealedAnswer),
    /// The request may have been executed. It may have an answer that does not say it.
    Unknown(Option<SealedAnswer>),
    /// The request was certainly not executed, or may be sent again. The record ends.
    Released,
    /// The same, and the call of a message of the queue has ended with this answer. The record goes on for that message
    /// only, not for its idempotency key.
    OfMessage {
        /// The answer.
        answer: SealedAnswer,
        /// True if the request may have been executed.
        is_unknown: bool,
    },
}

/// The progress of a recorded request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallProgress {
    /// Its sender has the lease until then.
    InFlight(Millis),
    /// It has an answer.
    Answered(SealedAnswer),
    /// It may have been executed, and is not sent again.
    Unknown {
        /// The sender stopped at this instant at the latest.
        since: Millis,
        /// The answer that does not say if the request was executed.
        answer: Option<SealedAnswer>,
    },
}

/// A record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredCall {
    /// The request.
    pub request: RecordedRequest,
    /// Its progress.
    pub progress: CallProgress,
    /// The instant of the intent.
    pub claimed_at: Millis,
    /// The end of the record.
    pub kept_until: Millis,
    /// The id of the message of the queue that has sent the request.
    pub message: Option<String>,
    /// The end of the idempotency key, if a message of the queue has sent the request. The record goes on for that message.
    pub key_holds_until: Option<Millis>,
    /// True if a message of the queue has ended with this unknown outcome. Then no delivery of it looks for another end.
    pub is_settled: bool,
}

impl StoredCall {
    /// True if the record holds for every request with its key, and not only for its message.
    #[must_use]
    pub fn holds_for_all(&self, now: Millis) -> bool {
        self.key_holds_until.is_none_or(|until| until.seconds() > now.seconds())
    }
}

impl Table {
    /// The record. `None` if there is none or it has ended.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn call(&self, id: &CallId, now: Millis) -> Result<Option<StoredCall>, StoreError> {
        let read = self.client.get_item().table_name(&*self.name).key("pk", s(&id.0)).consistent_read(true);
        let stored = read.send().await?.item().map(|item| stored(item, now)).transpose()?;
        // `DynamoDB` deletes expired items within days, not at once.
        Ok(stored.filter(|stored| stored.kept_until.seconds() > now.seconds()))
    }

    /// Records the intent of `owner` to send a request. A conflict returns the record of another sender.
    ///
    /// # Errors
    /// [`StoreError`]: the intent may have been recorded.
    pub async fn claim_call(
        &self,
        id: &CallId,
        owner: &LeaseOwner,
        intent: &Intent<'_>,
        now: Millis,
    ) -> Result<Write<StoredCall>, StoreError> {
        let mut write = claim(id, owner, intent, now);
        write.set("expires_at", n(intent.kept_until.seconds()));
        match intent.message {
            Some(message) => write.set("key_holds_until", n(message.key_holds_until.seconds())),
            None => write.remove(["key_holds_until"]),
        };
        write.remove(["outcome", "#status", "answer", "ended_at"]);
        let is_own = |item: &Item| {
            let attributes = Attributes::of(item);
            attributes.text("claimed_by") == Some(owner.as_str()) && attributes.text("outcome").is_none()
        };
        self.write(write).await?.or_applied_before(is_own).read(|item| stored(item, now))
    }

    /// Records a request that is not sent, together with its outcome. A conflict returns the record of another sender.
    ///
    /// # Errors
    /// [`StoreError`]: the outcome may have been recorded.
    pub async fn record_call(
        &self,
        id: &CallId,
        owner: &LeaseOwner,
        intent: &Intent<'_>,
        outcome: &CallOutcome,
        now: Millis,
    ) -> Result<Write<StoredCall>, StoreError> {
        let mut write = claim(id, owner, intent, now);
        set_outcome(&mut write, outcome, intent.kept_until, now);
        let is_own = |item: &Item| Attributes::of(item).text("claimed_by") == Some(owner.as_str());
        self.write(write).await?.or_applied_before(is_own).read(|item| stored(item, now))
    }

    /// Stores the outcome of a request that `owner` has claimed. Returns false if another sender has claimed it since, or if
    /// it was settled as unknown.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn end_call(
        &self,
        id: &CallId,
        owner: &LeaseOwner,
        outcome: &CallOutcome,
        kept_until: Millis,
        now: Millis,
    ) -> Result<bool, StoreError> {
        let mut write = Update::of(&id.0);
        write.when_equal("claimed_by", s(owner.as_str())).when("attribute_not_exists(settled)");
        set_outcome(&mut write, outcome, kept_until, now);
        Ok(self.write(write).await?.is_applied())
    }

    /// Stores the outcome of an unknown request, as somebody found it out. `seen` is the record that they saw. Returns
    /// false if the record has changed since, or if its request is not unknown.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn resolve_call(
        &self,
        id: &CallId,
        seen: &StoredCall,
        outcome: &CallOutcome,
        now: Millis,
    ) -> Result<bool, StoreError> {
        let mut write = Update::of(&id.0);
        write.when_equal("claimed_at", n(seen.claimed_at)).when_equal("fingerprint", s(&seen.request.fingerprint));
        write.when("outcome = :unknown OR (attribute_not_exists(outcome) AND claim_ends_at <= :now)");
        write.value(":unknown", s(UNKNOWN)).value(":now", n(now));
        if !seen.is_settled {
            write.when("attribute_not_exists(settled)");
        }
        set_outcome(&mut write, outcome, seen.kept_until, now);
        Ok(self.write(write).await?.is_applied())
    }

    /// Settles an unknown outcome, because a message of the queue ends with it. From then on no delivery of the message looks
    /// for another end, and its sender cannot store one. Returns false if somebody has found the outcome out meanwhile.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn settle_call(&self, id: &CallId, seen: &StoredCall, now: Millis) -> Result<bool, StoreError> {
        let mut write = Update::of(&id.0);
        write.when_equal("claimed_at", n(seen.claimed_at)).when_equal("fingerprint", s(&seen.request.fingerprint));
        write.when("outcome = :unknown OR attribute_not_exists(outcome)").value(":unknown", s(UNKNOWN));
        // A released record has ended, and keeps its outcome.
        write.when("expires_at > :second").value(":second", n(now.seconds()));
        write.set("settled", AttributeValue::Bool(true));
        Ok(self.write(write).await?.is_applied())
    }
}

const ANSWERED: &str = "answered";
const UNKNOWN: &str = "unknown";

/// A write that makes `owner` the sender of a request, if there is no other.
fn claim(id: &CallId, owner: &LeaseOwner, intent: &Intent<'_>, now: Millis) -> Update {
    let RecordedRequest { caller, resource, method, path, fingerprint } = intent.request;
    let mut write = Update::of(&id.0);
    write.when(
        "attribute_not_exists(pk) OR expires_at <= :second \
         OR (key_holds_until <= :second AND message <> :message) \
         OR (attribute_not_exists(outcome) AND claim_ends_at <= :now AND repeatable = :true)",
    );
    write.remove(["settled"]);
    // A request without a message has the message "", which no record has.
    let message = intent.message.map_or("", |message| message.id);
    write.value(":message", s(message));
    if message.is_empty() {
        write.remove(["message"]);
    } else {
        write.set("message", s(message));
    }
    write.value(":second", n(now.seconds())).value(":now", n(now)).value(":true", AttributeValue::Bool(true));
    write.set("claimed_by", s(owner.as_str())).set("claim_ends_at", n(intent.lease_ends_at)).set("claimed_at", n(now));
    write.set("#caller", s(caller)).set("#resource", s(resource)).set("#method", s(method)).set("#path", s(path));
    write.set("fingerprint", s(fingerprint)).set("repeatable", AttributeValue::Bool(intent.is_repeatable));
    write
}

fn set_outcome(write: &mut Update, outcome: &CallOutcome, kept_until: Millis, now: Millis) {
    write.set("ended_at", n(now));
    let (name, answer) = match outcome {
        CallOutcome::Answered(answer) => (ANSWERED, Some(answer)),
        CallOutcome::Unknown(answer) => (UNKNOWN, answer.as_ref()),
        CallOutcome::Released => {
            write.set("expires_at", n((now - RELEASED).seconds()));
            return;
        }
        CallOutcome::OfMessage { answer, is_unknown } => {
            write.set("key_holds_until", n((now - RELEASED).seconds()));
            (if *is_unknown { UNKNOWN } else { ANSWERED }, Some(answer))
        }
    };
    write.set("outcome", s(name)).set("expires_at", n(kept_until.seconds()));
    match answer {
        Some((status, _)) => write.set("#status", n(status)),
        None => write.remove(["#status"]),
    };
    match answer {
        Some((_, Some(sealed))) => write.set("answer", AttributeValue::B(Blob::new(sealed.clone()))),
        _ => write.remove(["answer"]),
    };
}

fn stored(item: &Item, now: Millis) -> Result<StoredCall, StoreError> {
    let attributes = Attributes::of(item);
    let text = |name| attributes.text(name).map(str::to_owned).ok_or_else(|| attributes.malformed(name));
    let instant = |name| attributes.number(name).map(Millis).ok_or_else(|| attributes.malformed(name));
    let lease_ends_at = instant("claim_ends_at")?;
    let status: Option<u16> = attributes.number("status");
    let answer = status.map(|status| (status, attributes.bytes("answer").map(<[u8]>::to_vec)));
    let progress = match attributes.text("outcome") {
        Some(ANSWERED) => CallProgress::Answered(answer.ok_or_else(|| attributes.malformed("status"))?),
        Some(_) => CallProgress::Unknown { since: attributes.number("ended_at").map_or(lease_ends_at, Millis), answer },
        // A repeatable request whose lease is over can be claimed by the next try.
        None if now < lease_ends_at || attributes.flag("repeatable") => CallProgress::InFlight(lease_ends_at),
        None => CallProgress::Unknown { since: lease_ends_at, answer: None },
    };
    let kept_until: i64 = attributes.number("expires_at").ok_or_else(|| attributes.malformed("expires_at"))?;
    Ok(StoredCall {
        request: RecordedRequest {
            caller: text("caller")?,
            resource: text("resource")?,
            method: text("method")?,
            path: text("path")?,
            fingerprint: text("fingerprint")?,
        },
        progress,
        claimed_at: instant("claimed_at")?,
        message: attributes.text("message").map(str::to_owned),
        key_holds_until: attributes.number("key_holds_until").map(|seconds: i64| Millis(seconds.saturating_mul(1_000))),
        kept_until: Millis(kept_until.saturating_mul(1_000)),
        is_settled: attributes.flag("settled"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_different_callers_resources_and_keys_are_different() {
        let (l1, l2) = (Resource::location("L1").expect("an id"), Resource::location("L2").expect("an id"));
        let c1 = Resource::company("L1").expect("an id");
        let ids = [
            CallId::of_key("a", &l1, "k"),
            CallId::of_key("b", &l1, "k"),
            CallId::of_key("a", &l2, "k"),
            CallId::of_key("a", &c1, "k"),
            CallId::of_key("a", &l1, "k2"),
            CallId::of_message("k"),
        ];
        let different: std::collections::HashSet<_> = ids.iter().collect();
        assert_eq!(different.len(), ids.len());
        assert!(ids.iter().all(|id| CallId::parse(id.as_str()).as_ref() == Some(id)));
        assert_eq!(CallId::parse("installation#location#L1"), None);
        assert!(!CallId::of_key("a", &l1, "order-1").as_str().contains("order"), "the key is not in the clear");
    }
}
