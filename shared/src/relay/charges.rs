//! Charges of the marketplace: each has an `eventId` of the app, by which the platform lists it. Pure.
//!
//! So the relay can find out if a charge with an unknown outcome was executed.

use std::time::Duration;

use http::Method;
use serde::Deserialize;
use serde_json::Value;

use super::headers::VERSION;
use crate::request::Request;
use crate::request::path::{Path, Query};

/// The path of the operations that make a charge (`POST`) and list charges (`GET`).
const CHARGES: &str = "/marketplace/billing/charges";
/// A charge that is not listed so long after its request ended was not executed.
pub const VISIBLE_AFTER: Duration = Duration::from_mins(1);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Charge {
    event_id: String,
}

/// The request that lists the charge of `request`, with its `eventId`. `None` if `request` makes no charge, or makes one
/// without an `eventId`.
pub fn question(request: &Request) -> Option<(String, Request)> {
    let is_charge = request.method == Method::POST && request.path.as_str().trim_end_matches('/') == CHARGES;
    let Charge { event_id } = is_charge.then(|| serde_json::from_slice(&request.body).ok()).flatten()?;
    if event_id.is_empty() {
        return None;
    }
    let mut question = Request::new(request.resource.clone(), Method::GET, Path::parse(CHARGES).ok()?);
    question.query = Query::from_pairs([("eventId", &*event_id)]).ok()?;
    question.headers.extend(request.headers.get(VERSION).map(|version| (VERSION, version.clone())));
    Some((event_id, question))
}

/// The platform's answer to the question for a charge.
#[derive(Clone, Debug, PartialEq)]
pub enum Listed {
    /// The charge is in the list.
    Charge(Value),
    /// The list does not have it.
    No,
    /// The answer has no list, like a page of something in front of the platform.
    Unclear,
}

/// Looks for the charge with this `eventId` in a list of charges. The list's place in the answer differs between the
/// versions of the API.
pub fn find(answer: &[u8], event_id: &str) -> Listed {
    let Ok(answer) = serde_json::from_slice(answer) else { return Listed::Unclear };
    match search(&answer, event_id) {
        Some(charge) => Listed::Charge(charge.clone()),
        None if has_list(&answer) => Listed::No,
        None => Listed::Unclear,
    }
}

fn has_list(value: &Value) -> bool {
    match value {
        Value::Array(_) => true,
        Value::Object(members) => members.values().any(has_list),
        _ => false,
    }
}

fn search<'a>(value: &'a Value, event_id: &str) -> Option<&'a Value> {
    match value {
        Value::Object(members) if members.get("eventId").and_then(Value::as_str) == Some(event_id) => Some(value),
        Value::Object(members) => members.values().find_map(|member| search(member, event_id)),
        Value::Array(elements) => elements.iter().find_map(|element| search(element, event_id)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::resource::Resource;

    #[test]
    fn a_charge_is_asked_for_by_its_event_id() {
        let of = |method: Method, path: &str, body: &'static str| {
            let mut request =
                Request::new(Resource::location("L1").expect("an id"), method, Path::parse(path).expect("a path"));
            request.body = body.into();
            request.headers.insert(VERSION, "v3".parse().expect("a value"));
            request.headers.insert("content-type", "application/json".parse().expect("a value"));
            question(&request)
        };
        let (event_id, asked) =
            of(Method::POST, "/marketplace/billing/charges", r#"{"eventId":"e 1","units":2}"#).expect("a charge");
        assert_eq!((&*event_id, &asked.method, asked.query.as_str()), ("e 1", &Method::GET, Some("eventId=e%201")));
        assert_eq!((asked.path.as_str(), asked.headers.len(), asked.body.len()), (CHARGES, 1, 0));
        for (method, path, body) in [
            (Method::GET, CHARGES, r#"{"eventId":"e1"}"#),
            (Method::POST, "/marketplace/billing/charges/1", r#"{"eventId":"e1"}"#),
            (Method::POST, CHARGES, r#"{"eventId":""}"#),
            (Method::POST, CHARGES, r#"{"eventId":7}"#),
            (Method::POST, CHARGES, "{}"),
            (Method::POST, CHARGES, "x"),
        ] {
            assert!(of(method.clone(), path, body).is_none(), "{method} {path} {body}");
        }
    }

    #[test]
    fn a_charge_is_found_wherever_the_list_is() {
        for list in [
            r#"{"charges":[{"eventId":"e0"},{"eventId":"e1","chargeId":"c1"}],"total":2}"#,
            r#"[{"eventId":"e1","chargeId":"c1"}]"#,
            r#"{"data":{"items":[{"chargeId":"c1","eventId":"e1"}]}}"#,
        ] {
            let Listed::Charge(charge) = find(list.as_bytes(), "e1") else { panic!("{list}") };
            assert_eq!(charge["chargeId"], "c1");
            assert_eq!(find(list.as_bytes(), "e2"), Listed::No);
        }
        assert_eq!(find(br#"{"charges":[],"total":0}"#, "e1"), Listed::No);
        for unclear in ["<html>", "{}", r#"{"message":"down for maintenance"}"#, ""] {
            assert_eq!(find(unclear.as_bytes(), "e1"), Listed::Unclear, "{unclear}");
        }
    }
}
