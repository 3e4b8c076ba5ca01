//! Requests through API Gateway, and their answers in payload 2.0.

use std::collections::BTreeMap;
use std::time::Duration;

use ::http::header::CONTENT_ENCODING;
use ::http::{HeaderMap, Method};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lambda_runtime::LambdaEvent;
use serde::Serialize;
use serde_json::value::RawValue;
use shared::caller::{Caller, Callers, Identity};
use shared::domain::problem::Problem;
use shared::domain::qualifier::InvocationKind;
use shared::domain::resource::{Kind, Resource};
use shared::relay::answer::{Answer, AnswerSource};
use shared::relay::headers::{WAIT_MS, drop_untrue_encoding};
use shared::relay::refused::Refused;
use shared::relay::{Invocation, Relay};
use shared::request::idempotency_key::IdempotencyKey;
use shared::request::path::{Path, Query};
use shared::request::{self, Request, UntargetedRequest};

use crate::direct::{header_texts, raw};
use crate::event::EventKind;
use crate::gateway::{AuthMethod, HttpEvent, Route};
use crate::size::{Room, too_large};

/// An answer in payload 2.0.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct GatewayResponse {
    status_code: u16,
    headers: BTreeMap<String, String>,
    body: String,
    is_base64_encoded: bool,
}

/// Answers an event of API Gateway.
pub async fn answer(relay: &Relay, event: &LambdaEvent<Box<RawValue>>) -> Box<RawValue> {
    let invocation = EventKind::Http.invocation(&event.context, relay.now());
    let refuse = |refused: &Refused| render(&relay.refuse(refused, &invocation));
    let arn = &event.context.invoked_function_arn;
    let work = Box::pin(relayed(relay, event.payload.get(), arn, &invocation));
    let answer = match relay.in_time(&invocation, work).await {
        Ok(answer) => answer,
        Err(refused) => return refuse(&refused),
    };
    let rendered = render(&answer);
    if Room::for_one().takes(&rendered) || answer.source == AnswerSource::Relay {
        return rendered;
    }
    refuse(&too_large(answer.status).into())
}

async fn relayed(relay: &Relay, json: &str, arn: &str, invocation: &Invocation) -> Result<Answer, Refused> {
    let event = HttpEvent::read(json)?;
    relay.check_invocation_kind(InvocationKind::Http, arn)?;
    let callers = relay.callers().await?;
    match event.route() {
        Route::Relay { auth, kind, id, path } => {
            let caller = authenticate(&callers, auth, &event)?;
            let (resource, path) = (resource(kind, id)?, Path::parse(path)?);
            let authorized = caller.authorize(untargeted(path, event)?.to(resource))?;
            Ok(relay.call(&authorized, invocation).await)
        }
        Route::Status { auth, kind, id } => {
            let caller = authenticate(&callers, auth, &event)?;
            let resource = resource(kind, id)?;
            if event.method() != Method::GET {
                return Err(Problem::invalid_request(
                    "a path of the platform is missing; without one only GET is answered",
                )
                .into());
            }
            let access = caller.authorize_status(resource)?;
            Ok(Box::pin(relay.status(&access, invocation)).await)
        }
        Route::Api { path } => {
            let (caller, path) = (authenticate(&callers, AuthMethod::Key, &event)?, Path::parse(path)?);
            let untargeted = untargeted(path, event)?;
            let resource = relay.resource_of(&untargeted, &caller).await?;
            let authorized = caller.authorize(untargeted.to(resource))?;
            Ok(relay.call(&authorized, invocation).await)
        }
        Route::Unknown => Err(Problem::invalid_request("no route of the relay").into()),
    }
}

fn authenticate(callers: &Callers, auth: AuthMethod, event: &HttpEvent) -> Result<Caller, Refused> {
    let identity = match auth {
        AuthMethod::Key => Identity::Bearer(event.authorization()),
        AuthMethod::Iam => Identity::Principal(event.principal()),
    };
    Ok(callers.authenticate(identity)?)
}

fn resource(kind: Kind, id: &str) -> Result<Resource, Problem> {
    Resource::new(kind, id).map_err(|error| Problem::invalid_request(error.to_string()))
}

pub(crate) fn untargeted(path: Path, event: HttpEvent) -> Result<UntargetedRequest, Refused> {
    let method = request::method(event.method())
        .ok_or_else(|| Problem::invalid_request("the relay does not offer this method"))?;
    let query = Query::parse(event.query())?;
    let mut headers = event.headers(&path)?;
    let wait = wait(&headers)?;
    let idempotency_key = IdempotencyKey::of_headers(&headers)?;
    let body = event.into_body()?;
    drop_untrue_encoding(&mut headers, &body);
    Ok(UntargetedRequest { query, headers, body, wait, idempotency_key, ..Request::new((), method, path) })
}

fn wait(headers: &HeaderMap) -> Result<Duration, Problem> {
    let Some(value) = headers.get(WAIT_MS) else { return Ok(Duration::ZERO) };
    let milliseconds = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    milliseconds
        .map(Duration::from_millis)
        .ok_or_else(|| Problem::invalid_request("Relay-Wait-Ms is a whole number of milliseconds"))
}

/// Renders an answer in payload 2.0: text as it is, and anything else in base64.
fn render(answer: &Answer) -> Box<RawValue> {
    let text = std::str::from_utf8(&answer.body).ok().filter(|_| !answer.headers.contains_key(CONTENT_ENCODING));
    let is_base64_encoded = text.is_none();
    let body = text.map_or_else(|| STANDARD.encode(&answer.body), str::to_owned);
    let (status_code, headers) = (answer.status.as_u16(), header_texts(&answer.headers));
    raw(&GatewayResponse { status_code, headers, body, is_base64_encoded })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::http::{HeaderValue, StatusCode};
    use bytes::Bytes;

    #[test]
    fn answers_are_text_or_bytes() {
        let answer = |encoding: Option<&'static str>, body: &'static [u8]| {
            let mut headers = HeaderMap::new();
            encoding.map(|e| headers.insert(CONTENT_ENCODING, HeaderValue::from_static(e)));
            let (status, source) = (StatusCode::CREATED, AnswerSource::Platform);
            render(&Answer { status, source, headers, body: Bytes::from_static(body) }).get().to_owned()
        };
        assert_eq!(
            answer(None, b"{\"a\": 1}"),
            r#"{"statusCode":201,"headers":{},"body":"{\"a\": 1}","isBase64Encoded":false}"#
        );
        assert!(answer(None, b"\x89P").contains(r#""body":"iVA=","isBase64Encoded":true"#));
        assert!(answer(Some("br"), b"x").contains(r#""body":"eA==","isBase64Encoded":true"#));
    }

    #[test]
    fn a_body_that_the_gateway_has_decompressed_has_no_content_encoding() {
        let of = |body: &str, is_base64: bool| {
            let event = serde_json::json!({
                "rawPath": "/", "requestContext": { "http": { "method": "POST" } }, "isBase64Encoded": is_base64, "body": body,
                "headers": { "content-type": "application/json", "content-encoding": "gzip" },
            });
            let path = Path::parse("/contacts/").expect("a safe path");
            let event = HttpEvent::read(&event.to_string()).expect("an event");
            untargeted(path, event).expect("a request").headers.contains_key(CONTENT_ENCODING)
        };
        assert!(!of(r#"{"a":1}"#, false));
        assert!(!of(&STANDARD.encode(r#"{"a":1}"#), true));
        assert!(of(&STANDARD.encode(b"\x1f\x8b\x08\0"), true));
    }

    #[test]
    fn a_wait_is_milliseconds_or_refused() {
        let of = |value: &'static str| wait(&HeaderMap::from_iter([(WAIT_MS, HeaderValue::from_static(value))]));
        assert_eq!(wait(&HeaderMap::new()), Ok(Duration::ZERO));
        assert_eq!(of(" 1500 "), Ok(Duration::from_millis(1_500)));
        for bad in ["", "1.5", "-1", "soon", "99999999999999999999"] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }
}
