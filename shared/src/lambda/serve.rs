//! The loop that every function of API Gateway's runs: an event in, an answer out.

use std::convert::Infallible;
use std::sync::Arc;

use lambda_runtime::layers::TracingLayer;
use lambda_runtime::tower::util::MapRequestLayer;
use lambda_runtime::{Error, LambdaEvent, LambdaInvocation, Runtime, service_fn};
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::domain::problem::{Code, Problem};
use crate::domain::qualifier::{Arrival, GatewayAlias, Qualifier};

/// Serves events until the process is ended, several at once where Lambda allows it. An event that is no JSON object
/// comes as `null`, so that it can be answered like any other that is malformed.
///
/// # Errors
/// A Runtime API that cannot be reached.
pub async fn serve<A, F, R>(answer: A) -> Result<(), Error>
where
    A: Fn(LambdaEvent<Box<RawValue>>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = R> + Send + 'static,
    R: Serialize + Send + 'static,
{
    // Boxed: the SDK's futures are nested so deeply that the compiler gives up on the layout of them all in one.
    let service = service_fn(move |event| {
        let answering = answer(event);
        Box::pin(async move { Ok::<_, Infallible>(answering.await) })
    });
    let runtime = Runtime::new(service).layer(MapRequestLayer::new(readable)).layer(TracingLayer::new());
    // A task is woken by a place in a queue; what a process blocks on, by a system call for each answer.
    tokio::spawn(runtime.run_concurrent()).await?
}

/// The same for a function that takes API Gateway's events only. An event that came by another qualifier than theirs is
/// answered 401 and goes no further.
///
/// # Errors
/// A Runtime API that cannot be reached.
pub async fn serve_http<A, F, R>(alias: GatewayAlias, answer: A) -> Result<(), Error>
where
    A: Fn(LambdaEvent<Box<RawValue>>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = R> + Send + 'static,
    R: Serialize + Send + 'static,
{
    let alias = Arc::new(alias);
    let guarded = move |event: LambdaEvent<Box<RawValue>>| {
        let (alias, arn) = (alias.clone(), event.context.invoked_function_arn.clone());
        let answering = alias.admits(Arrival::Http, &arn).then(|| answer(event));
        async move {
            match answering {
                Some(answering) => Guarded::Answered(answering.await),
                None => Guarded::Refused(refusal(&alias, &arn)),
            }
        }
    };
    serve(guarded).await
}

/// What [`serve_http`] answers.
#[derive(Serialize)]
#[serde(untagged)]
enum Guarded<R> {
    Answered(R),
    Refused(Value),
}

/// The answer to an event that its sender has made look like API Gateway's (payload 2.0, RFC 9457).
fn refusal(alias: &GatewayAlias, invoked_function_arn: &str) -> Value {
    let (came_by, gateway) = (Qualifier::of(invoked_function_arn), alias.name());
    tracing::warn!(?came_by, gateway, "an HTTP event came by another qualifier than GATEWAY_ALIAS says");
    let problem = Problem::new(Code::Unauthenticated, "the caller is not known");
    json!({
        "statusCode": problem.code.status().as_u16(),
        "headers": { "content-type": "application/problem+json", "cache-control": "no-store" },
        "body": problem.to_json().to_string(),
        "isBase64Encoded": false,
    })
}

/// An event that is no JSON would be a function error before any code of ours sees it. `null` is malformed, too, and
/// gets an answer. So is every event that is no object: a list would be read as an object's members in their order.
fn readable(mut invocation: LambdaInvocation) -> LambdaInvocation {
    if !serde_json::from_slice(&invocation.body).is_ok_and(is_object) {
        invocation.body = "null".into();
    }
    invocation
}

/// Whether JSON is an object. Serde would take a list for one, too.
#[must_use]
pub fn is_object(json: &RawValue) -> bool {
    json.get().starts_with('{')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_object_becomes_an_event_that_can_be_answered() {
        for (body, expected) in [
            (&b"{\"a\": 1}"[..], &b"{\"a\": 1}"[..]),
            (b" \n{} ", b" \n{} "),
            (b"", b"null"),
            (b"[{}]", b"null"),
            (b"{bad", b"null"),
            (b"{} {}", b"null"),
            (b"\"\xff\"", b"null"),
        ] {
            let (parts, ()) = http::Response::new(()).into_parts();
            let invocation = LambdaInvocation { parts, body: body.into(), context: lambda_runtime::Context::default() };
            assert_eq!(readable(invocation).body, expected, "{body:?}");
        }
    }
}
