//! The result of a queued call, as JSON for the queue of results or the event bus.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::value::RawValue;
use shared::domain::resource::Resource;
use shared::relay::queued::End;

use super::message::Message;
use crate::direct::{header_texts, json_body, raw};

/// The largest result, in bytes: 1 MiB (Amazon SQS quotas, "Message size"), less some room for attributes. An entry of
/// `EventBridge` has the same limit for all its parts.
pub(super) const LARGEST: usize = 1_048_576 - 4_096;

#[derive(Serialize)]
struct ResultJson<'a> {
    message_id: &'a str,
    reference: Option<&'a str>,
    resource: Option<&'a Resource>,
    status: u16,
    source: &'static str,
    headers: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
    attempts: u32,
    outcome: &'static str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    truncated: bool,
}

/// Renders the result of a call. A result that is too large has no body.
pub(super) fn render(
    message: &Message,
    reference: Option<&str>,
    resource: Option<&Resource>,
    end: &End,
) -> Box<RawValue> {
    let (body, body_base64) = json_body(&end.answer);
    let was_omitted = end.answer.headers.contains_key(shared::relay::headers::BODY_OMITTED);
    let mut result = ResultJson {
        message_id: &message.carried.id,
        reference,
        resource,
        status: end.answer.status.as_u16(),
        source: end.answer.source.as_str(),
        headers: header_texts(&end.answer.headers),
        body,
        body_base64,
        attempts: end.attempts,
        outcome: end.outcome.as_str(),
        truncated: was_omitted,
    };
    let rendered = for_sqs(raw(&result));
    if rendered.get().len() <= LARGEST {
        return rendered;
    }
    (result.body, result.body_base64, result.truncated) = (None, None, true);
    for_sqs(raw(&result))
}

/// Escapes the characters that JSON allows and SQS refuses in a message (Amazon SQS API Reference, `SendMessage`).
fn for_sqs(json: Box<RawValue>) -> Box<RawValue> {
    if !json.get().contains(['\u{fffe}', '\u{ffff}']) {
        return json;
    }
    let escaped = json.get().replace('\u{fffe}', "\\ufffe").replace('\u{ffff}', "\\uffff");
    RawValue::from_string(escaped).expect("an escape is JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_has_no_character_that_sqs_refuses() {
        let text = "a\u{fffe}b\u{ffff}c\u{fffd}";
        let escaped = for_sqs(raw(&text));
        assert_eq!(escaped.get(), "\"a\\ufffeb\\uffffc\u{fffd}\"");
        assert_eq!(serde_json::from_str::<String>(escaped.get()).expect("JSON"), text);
    }
}
