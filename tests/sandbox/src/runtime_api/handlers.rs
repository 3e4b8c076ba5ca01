//! The routes of the Runtime API and of `Invoke`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    body::{Body, to_bytes},
    extract::{Path, State as Shared},
    response::Response,
};
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use serde_json::{Value, json};

use crate::{events::Event, server::hang_up};

use super::{
    FunctionError, InFlight, Inner, Invocation, InvocationResult, LARGEST_PAYLOAD, TheInner, empty, function_arn,
    status, trace_id,
};

pub(super) async fn next(Shared(inner): TheInner, Path((function, worker)): Path<(String, String)>) -> Response {
    let waiting = {
        let mut state = inner.state();
        *state.polls.entry(function.clone()).or_default() += 1;
        state.initialized.insert((function.clone(), worker.clone()));
        Arc::clone(&state.register(&function).waiting)
    };
    let job = loop {
        // This wait is cancelled when the worker's connection ends, so a dead worker takes no job from the queue.
        let Some(job) = waiting.lock().await.recv().await else { return hang_up() };
        if !job.answer.is_closed() {
            break job;
        }
    };
    let arn = function_arn(&function, job.invocation.qualifier.as_deref());
    let trace = job.invocation.trace_id.unwrap_or_else(trace_id);
    inner.state().in_flight.insert(job.id.clone(), InFlight { function, worker, answer: job.answer });
    Response::builder()
        .header("content-type", "application/json")
        .header("lambda-runtime-aws-request-id", job.id)
        .header("lambda-runtime-deadline-ms", job.deadline_ms.to_string())
        .header("lambda-runtime-invoked-function-arn", arn)
        .header("lambda-runtime-trace-id", trace)
        .body(Body::from(job.payload))
        .unwrap_or_else(|_| hang_up())
}

pub(super) async fn respond(
    Shared(inner): TheInner,
    Path((_function, _worker, id)): Path<(String, String, String)>,
    request: Request<Body>,
) -> Response {
    let Ok(body) = to_bytes(request.into_body(), LARGEST_PAYLOAD).await else {
        if let Some(job) = inner.take(&id) {
            let document = json!({ "errorType": "Function.ResponseSizeTooLarge",
                "errorMessage": "Response payload size exceeded maximum allowed payload size (6291556 bytes)." });
            let _caller_left = job.answer.send(Err(FunctionError::Reported(document)));
        }
        return status(StatusCode::PAYLOAD_TOO_LARGE, &json!({ "errorType": "RequestEntityTooLarge" }));
    };
    settle(&inner, &id, Ok(body))
}

pub(super) async fn report(
    Shared(inner): TheInner,
    Path((_function, _worker, id)): Path<(String, String, String)>,
    request: Request<Body>,
) -> Response {
    let document = error_document(request).await;
    settle(&inner, &id, Err(FunctionError::Reported(document)))
}

fn settle(inner: &Inner, id: &str, answer: InvocationResult) -> Response {
    match inner.take(id) {
        Some(job) => {
            let _caller_left = job.answer.send(answer);
            status(StatusCode::ACCEPTED, &json!({ "status": "OK" }))
        }
        None => status(StatusCode::BAD_REQUEST, &json!({ "errorType": "InvalidRequestID" })),
    }
}

async fn error_document(request: Request<Body>) -> Value {
    let body = to_bytes(request.into_body(), LARGEST_PAYLOAD).await.unwrap_or_default();
    serde_json::from_slice(&body).unwrap_or_else(|_| json!({ "errorType": "Unknown", "errorMessage": "unreadable" }))
}

pub(super) async fn init_failed(
    Shared(inner): TheInner,
    Path((function, worker)): Path<(String, String)>,
    request: Request<Body>,
) -> Response {
    let document = error_document(request).await;
    let what = format!("did not start: {}", document["errorMessage"].as_str().unwrap_or("no reason given"));
    inner.bus.publish(Event::Worker { function: function.clone(), worker, what });
    inner.state().init_errors.push((function.clone(), document.clone()));
    inner.fail_waiting(&function, &FunctionError::Reported(document));
    status(StatusCode::ACCEPTED, &json!({ "status": "OK" }))
}

/// Serves `POST /2015-03-31/functions/{name}/invocations?Qualifier=`, as the AWS SDKs and `curl` send it.
pub(super) async fn invoke_over_http(
    Shared(inner): TheInner,
    Path(named): Path<String>,
    request: Request<Body>,
) -> Response {
    let query = crate::form::Form::of_query(request.uri().query().unwrap_or_default());
    let headers = request.headers().clone();
    let (function, qualifier) = split_name(&named);
    let qualifier = query.get("Qualifier").map(str::to_owned).or(qualifier);
    let Ok(body) = to_bytes(request.into_body(), LARGEST_PAYLOAD).await else {
        return refused(StatusCode::PAYLOAD_TOO_LARGE, &FunctionError::PayloadTooLarge);
    };
    let body = if body.is_empty() { Bytes::from_static(b"{}") } else { body };
    if serde_json::from_slice::<&serde_json::value::RawValue>(&body).is_err() {
        let document = json!({ "Type": "User", "message": "Could not parse request body into json" });
        return with_error_type(StatusCode::BAD_REQUEST, "InvalidRequestContentException", &document);
    }
    let trace_id = text(&headers, "x-amzn-trace-id").map(str::to_owned);
    let executed = qualifier.clone().unwrap_or_else(|| "$LATEST".to_owned());
    let invocation = Invocation { qualifier, timeout: Duration::from_mins(15), trace_id };
    match text(&headers, "x-amz-invocation-type") {
        Some("DryRun") => return empty(StatusCode::NO_CONTENT),
        Some("Event") => {
            tokio::spawn(async move { inner.invoke(&function, body, invocation).await });
            return empty(StatusCode::ACCEPTED);
        }
        _ => {}
    }
    let began = Instant::now();
    let answer = inner.invoke(&function, body, invocation).await;
    inner.bus.publish(Event::Invoked {
        function,
        outcome: answer.as_ref().map_or_else(|error| error.kind().to_owned(), |_| "ok".to_owned()),
        millis: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        answer: None,
    });
    let answered =
        Response::builder().header("content-type", "application/json").header("x-amz-executed-version", executed);
    let response = match answer {
        Ok(body) => answered.body(Body::from(body)),
        Err(FunctionError::NoSuchFunction) => {
            return refused(StatusCode::NOT_FOUND, &FunctionError::NoSuchFunction);
        }
        Err(error) => {
            answered.header("x-amz-function-error", "Unhandled").body(Body::from(error.document().to_string()))
        }
    };
    response.unwrap_or_else(|_| hang_up())
}

/// Serves `GET /2015-03-31/functions/{name}/aliases`, one page per request.
pub(super) async fn list_aliases(
    Shared(inner): TheInner,
    Path(named): Path<String>,
    request: Request<Body>,
) -> Response {
    let query = crate::form::Form::of_query(request.uri().query().unwrap_or_default());
    let (function, _) = split_name(&named);
    let state = inner.state();
    if !state.functions.contains_key(&function) && !state.aliases.contains_key(&function) {
        return refused(StatusCode::NOT_FOUND, &FunctionError::NoSuchFunction);
    }
    let after = query.get("Marker").unwrap_or_default();
    let most = query.get("MaxItems").and_then(|number| number.parse().ok()).unwrap_or(50);
    let mut left = state.aliases.get(&function).into_iter().flatten().filter(|name| name.as_str() > after);
    let page: Vec<_> = left.by_ref().take(most).collect();
    let next = left.next().and(page.last());
    let aliases: Vec<_> = page
        .iter()
        .map(|name| {
            json!({ "Name": name, "AliasArn": function_arn(&function, Some(name)), "FunctionVersion": "$LATEST" })
        })
        .collect();
    status(StatusCode::OK, &json!({ "Aliases": aliases, "NextMarker": next }))
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn refused(status: StatusCode, error: &FunctionError) -> Response {
    with_error_type(status, error.kind(), &json!({ "Type": "User", "Message": error.to_string() }))
}

fn with_error_type(code: StatusCode, kind: &'static str, document: &Value) -> Response {
    let mut response = status(code, document);
    response.headers_mut().insert("x-amzn-errortype", http::HeaderValue::from_static(kind));
    response
}

/// Splits the name of a function: `name`, `name:qualifier`, or a full ARN with or without a qualifier.
fn split_name(named: &str) -> (String, Option<String>) {
    let name = named.rsplit_once(":function:").map_or(named, |(_, name)| name);
    match name.split_once(':') {
        Some((name, qualifier)) => (name.to_owned(), Some(qualifier.to_owned())),
        None => (name.to_owned(), None),
    }
}
