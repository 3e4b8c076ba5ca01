//! A message of the queue: its call, and the data that travels with it when it is sent anew.

use std::collections::BTreeMap;

use aws_lambda_events::sqs::SqsMessage;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use shared::domain::clock::Millis;
use shared::domain::problem::{Code, Problem};
use shared::lambda::serve::is_object;
use shared::relay::refused::Refused;
use shared::request::Request;

use crate::direct;

/// The message attribute with the data that travels with a message.
pub(super) const CARRIED: &str = "Relay";

/// A delivery of a message.
#[derive(Clone, Debug)]
pub(super) struct Message {
    /// The id of this sending. Lambda knows the message by it.
    pub(super) sqs_id: String,
    pub(super) receipt: String,
    pub(super) body: String,
    /// The group, which SQS serves fairly.
    pub(super) group: Option<String>,
    /// The number of deliveries of this sending, with the present one.
    pub(super) receives: u32,
    /// The instant of this sending.
    pub(super) sent_at: Millis,
    pub(super) carried: Carried,
}

/// The data that travels with a message when it is sent anew.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Carried {
    /// The id of the first sending. The record of the call has it.
    pub(super) id: String,
    /// The instant of the first sending, in milliseconds.
    pub(super) first_sent: i64,
    /// The tries of the call so far.
    #[serde(default)]
    pub(super) tries: u32,
    /// The number of times that its request was sent by them.
    #[serde(default)]
    pub(super) attempts: u32,
    /// The instant of the message's turn, in milliseconds.
    #[serde(default)]
    pub(super) turn: Option<i64>,
    /// True if the call was no read, has ended in an answer or an unknown outcome, and its result was not taken. Nothing is sent
    /// for it any more, because its record may be gone. Also true for a message that is no call and was moved.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) ended: bool,
}

/// The largest message that can be sent anew, with its attribute [`CARRIED`]: 1 MiB (Amazon SQS quotas, "Message size"), less
/// the attribute.
const LARGEST_MESSAGE: usize = 1_048_576 - 1_024;
/// The longest `reference`, in bytes. It comes back in the result, which must have room for it.
const LONGEST_REFERENCE: usize = 65_536;

/// The call in a message.
#[derive(Debug)]
pub(super) struct Call {
    /// The id of the caller's entry.
    pub(super) caller: String,
    pub(super) request: Request,
}

impl Message {
    /// Reads a delivery. A member that is missing gets a harmless value.
    pub(super) fn read(message: &SqsMessage, now: Millis) -> Self {
        let number = |name: &str| message.attributes.get(name).and_then(|text| text.parse::<i64>().ok());
        let sqs_id = message.message_id.clone().unwrap_or_default();
        let sent_at = number("SentTimestamp").map_or(now, Millis);
        let carried = message.message_attributes.get(CARRIED).and_then(|carried| carried.string_value.as_deref());
        let carried = carried.and_then(|text| serde_json::from_str(text).ok());
        let first = || Carried { id: sqs_id.clone(), first_sent: sent_at.0, ..Carried::default() };
        Self {
            receipt: message.receipt_handle.clone().unwrap_or_default(),
            body: message.body.clone().unwrap_or_default(),
            group: message.attributes.get("MessageGroupId").cloned(),
            receives: number("ApproximateReceiveCount").and_then(|count| u32::try_from(count).ok()).unwrap_or(1),
            sent_at,
            carried: carried.unwrap_or_else(first),
            sqs_id,
        }
    }

    /// True if the message has had no turn yet.
    pub(super) fn is_new(&self) -> bool {
        self.receives <= 1 && self.carried.turn.is_none() && self.carried.tries == 0
    }

    /// True if the message leaves no room for attributes. It can neither be sent anew nor be moved with a reason.
    pub(super) fn is_too_large(&self) -> bool {
        self.body.len() > LARGEST_MESSAGE
    }

    /// The turn of a message that was sent anew because its turn was far ahead.
    pub(super) fn turn(&self) -> Option<Millis> {
        self.carried.turn.map(Millis)
    }

    /// The sender's `reference`, and the call. A message without a readable call is refused.
    pub(super) fn call(&self) -> (Option<String>, Result<Call, Refused>) {
        let mut members = match members(&self.body) {
            Ok(members) => members,
            Err(refused) => return (None, Err(refused)),
        };
        let reference = take(&mut members, "reference");
        let caller = take(&mut members, "caller");
        let call = || {
            if self.is_too_large() {
                let most = format!("the message has {} bytes, and may have {LARGEST_MESSAGE}", self.body.len());
                return Err(Problem::new(Code::PayloadTooLarge, most).into());
            }
            let caller = caller?.ok_or_else(|| malformed("it names no caller"))?;
            let request = to_raw_value(&members).map_err(|error| malformed(&error.to_string()))?;
            Ok(Call { caller, request: direct::read(&request)? })
        };
        match reference {
            Ok(Some(reference)) if reference.len() > LONGEST_REFERENCE => {
                (None, Err(malformed(&format!("reference has more than {LONGEST_REFERENCE} bytes"))))
            }
            Ok(reference) => (reference, call()),
            Err(refused) => (None, Err(refused)),
        }
    }
}

type Members = BTreeMap<String, Box<RawValue>>;

/// The members of the message, with their JSON as it is.
fn members(body: &str) -> Result<Members, Refused> {
    let raw: &RawValue = serde_json::from_str(body).map_err(|error| malformed(&error.to_string()))?;
    if !is_object(raw) {
        return Err(malformed("it is no object"));
    }
    serde_json::from_str(raw.get()).map_err(|error| malformed(&error.to_string()))
}

/// Takes an optional text out of the members.
fn take(members: &mut Members, name: &str) -> Result<Option<String>, Refused> {
    let Some(value) = members.remove(name) else { return Ok(None) };
    serde_json::from_str(value.get()).map_err(|_| malformed(&format!("{name} is no string")))
}

fn malformed(why: &str) -> Refused {
    Problem::invalid_request(format!("the message is malformed: {why}")).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(body: &str) -> Message {
        let mut message = SqsMessage::default();
        message.message_id = Some("m1".to_owned());
        message.body = Some(body.to_owned());
        Message::read(&message, Millis(7))
    }

    #[test]
    fn a_message_is_a_request_with_its_caller_and_a_reference() {
        let body = r#"{"caller":"job","reference":"r-1","resource":{"location":"L1"},"method":"POST","path":"/x",
            "idempotency_key":"k","body":{"b" : 1.0}}"#;
        let (reference, call) = message(body).call();
        let call = call.expect("a call");
        assert_eq!((reference.as_deref(), &*call.caller), (Some("r-1"), "job"));
        assert_eq!(call.request.body, r#"{"b" : 1.0}"#, "byte for byte");
        let least = r#"{"caller":"job","resource":{"company":"C1"},"method":"GET","path":"/x","reference":null}"#;
        let (reference, call) = message(least).call();
        assert!(reference.is_none() && call.is_ok());
    }

    #[test]
    fn a_message_that_is_no_request_is_refused() {
        let request = r#""resource":{"location":"L1"},"method":"GET","path":"/x""#;
        for (body, reference, word) in [
            (String::new(), None, "malformed"),
            ("[]".to_owned(), None, "no object"),
            ("\"x\"".to_owned(), None, "no object"),
            (format!("{{{request}}}"), None, "no caller"),
            (format!(r#"{{"caller":7,"reference":"r",{request}}}"#), Some("r"), "caller is no string"),
            (format!(r#"{{"caller":"a","reference":7,{request}}}"#), None, "reference is no string"),
            (format!(r#"{{"caller":"a","reference":"r","extra":1,{request}}}"#), Some("r"), "extra"),
            (format!(r#"{{"caller":"a","reference":"{}",{request}}}"#, "r".repeat(65_537)), None, "65536 bytes"),
            (r#"{"caller":"a","reference":"r"}"#.to_owned(), Some("r"), "resource"),
            (format!(r#"{{"caller":"a","requests":[{{{request}}}]}}"#), None, "requests"),
        ] {
            let (read, call) = message(&body).call();
            let refused = call.map(|_| ()).expect_err(&body);
            assert_eq!(read.as_deref(), reference, "{body}");
            assert!(refused.problem.detail.contains(word), "{body}: {}", refused.problem.detail);
        }
    }

    #[test]
    fn a_message_without_room_for_attributes_is_refused() {
        let of = |length: usize| {
            let head =
                r#"{"caller":"a","reference":"r","resource":{"location":"L1"},"method":"PUT","path":"/x","body":""#;
            message(&format!("{head}{}\"}}", "x".repeat(length - head.len() - 2)))
        };
        assert!(of(LARGEST_MESSAGE).call().1.is_ok());
        let (reference, call) = of(LARGEST_MESSAGE + 1).call();
        assert_eq!(reference.as_deref(), Some("r"));
        assert_eq!(call.map(|_| ()).expect_err("too large").problem.code, Code::PayloadTooLarge);
    }

    #[test]
    fn the_first_id_travels_with_a_message() {
        let mut sent = SqsMessage::default();
        sent.message_id = Some("m2".to_owned());
        sent.attributes.insert("ApproximateReceiveCount".to_owned(), "3".to_owned());
        sent.attributes.insert("SentTimestamp".to_owned(), "1800000000000".to_owned());
        sent.attributes.insert("MessageGroupId".to_owned(), "location:L1".to_owned());
        let first = Message::read(&sent, Millis(7));
        assert_eq!((&*first.carried.id, first.carried.first_sent, first.receives), ("m2", 1_800_000_000_000, 3));
        assert_eq!(first.group.as_deref(), Some("location:L1"));
        assert!(!first.is_new());
        let carried = Carried { id: "m1".to_owned(), first_sent: 5, tries: 2, attempts: 3, turn: Some(9), ended: true };
        let mut attribute = aws_lambda_events::sqs::SqsMessageAttribute::default();
        attribute.string_value = serde_json::to_string(&carried).ok();
        sent.message_attributes.insert(CARRIED.to_owned(), attribute.clone());
        assert_eq!(Message::read(&sent, Millis(7)).carried, carried);
        attribute.string_value = Some("nonsense".to_owned());
        sent.message_attributes.insert(CARRIED.to_owned(), attribute);
        assert_eq!(Message::read(&sent, Millis(7)).carried.id, "m2");
    }
}
