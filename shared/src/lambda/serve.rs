//! The event loop of every function: receives an event and returns an answer.

use std::convert::Infallible;
use std::sync::Arc;

use http::HeaderValue;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use lambda_http::aws_lambda_events::apigw::ApiGatewayV2httpResponse;
use lambda_http::{Body, Request, Response};
use lambda_runtime::layers::TracingLayer;
use lambda_runtime::tower::util::MapRequestLayer;
use lambda_runtime::{Context, Error, LambdaEvent, LambdaInvocation, Runtime, service_fn};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::domain::problem::{Code, Problem};
use crate::domain::qualifier::{GatewayAlias, InvocationKind, Qualifier};
use crate::lambda::gateway;

/// Serves events until the process is ended, several at once if Lambda allows it. An event that is not a JSON object
/// becomes `null`, so that it can be answered like any other malformed event.
///
/// # Errors
/// The Runtime API cannot be reached.
pub async fn serve<A, F, R>(answer: A) -> Result<(), Error>
where
    A: Fn(LambdaEvent<Box<RawValue>>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = R> + Send + 'static,
    R: Serialize + Send + 'static,
{
    // Boxed, because the SDK's futures are nested so deeply that the compiler cannot compute the layout of one future
    // with all of them.
    let service = service_fn(move |event| {
        let answering = answer(event);
        Box::pin(async move { Ok::<_, Infallible>(answering.await) })
    });
    let runtime = Runtime::new(service).layer(MapRequestLayer::new(readable)).layer(TracingLayer::new());
    // The runtime polls a spawned task from its run queue. To wake the future that a process blocks on, the runtime
    // would need a system call for each answer.
    tokio::spawn(runtime.run_concurrent()).await?
}

/// A function that is invoked only by API Gateway.
pub trait HttpFunction: Send + Sync + 'static {
    /// Answers a request. The request has no `Host` header, and its body is unchanged ([`gateway::read`]).
    fn answer(&self, request: Request) -> impl Future<Output = Response<Body>> + Send;

    /// Answers an event that is not a request.
    fn answer_malformed(&self, invocation: &Context) -> Response<Body>;
}

/// Serves the events of API Gateway until the process is ended, as [`serve`] does.
///
/// # Errors
/// The Runtime API cannot be reached.
pub async fn serve_http(alias: GatewayAlias, function: impl HttpFunction) -> Result<(), Error> {
    let shared = Arc::new((alias, function));
    serve(move |event| {
        let shared = shared.clone();
        async move {
            let (alias, function) = &*shared;
            answer_http(alias, function, event).await
        }
    })
    .await
}

/// Answers one event. An event that came by another qualifier than the gateway's is answered 401 and is not passed to
/// `function`. No event causes a panic or a function error, unless `function` itself panics.
pub async fn answer_http(
    alias: &GatewayAlias,
    function: &impl HttpFunction,
    event: LambdaEvent<Box<RawValue>>,
) -> ApiGatewayV2httpResponse {
    let LambdaEvent { payload, context } = event;
    let response = if !alias.admits(InvocationKind::Http, &context.invoked_function_arn) {
        refuse(alias, &context.invoked_function_arn)
    } else if let Ok(request) = gateway::read(&payload, context.clone()) {
        function.answer(request).await
    } else {
        function.answer_malformed(&context)
    };
    gateway::answer(response)
}

/// The refusal of an event that another invoker has made look like an event of API Gateway (payload 2.0, RFC 9457).
fn refuse(alias: &GatewayAlias, invoked_function_arn: &str) -> Response<Body> {
    let (came_by, gateway) = (Qualifier::of(invoked_function_arn), alias.name());
    tracing::warn!(?came_by, gateway, "an HTTP event was refused: it was not invoked by the alias in GATEWAY_ALIAS");
    let problem = Problem::new(Code::Unauthenticated, "the caller is not known");
    let mut response = Response::new(Body::Text(problem.to_json().to_string()));
    *response.status_mut() = problem.code.status();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Replaces an event that is not a JSON object by `null`, which is malformed too and gets an answer. An event that is
/// not JSON would otherwise be a function error before our code runs. A list would be read as the members of an object,
/// in their order.
fn readable(mut invocation: LambdaInvocation) -> LambdaInvocation {
    if !serde_json::from_slice(&invocation.body).is_ok_and(is_object) {
        invocation.body = "null".into();
    }
    invocation
}

/// Returns true for a JSON object. Serde would also read the members of a struct from a list.
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

    /// Answers with the method and the body of the request.
    struct Echo;

    impl HttpFunction for Echo {
        async fn answer(&self, request: Request) -> Response<Body> {
            Response::new(Body::Text(format!("{} {:?}", request.method(), request.body())))
        }

        fn answer_malformed(&self, _: &Context) -> Response<Body> {
            Response::new(Body::Text("malformed".to_owned()))
        }
    }

    #[tokio::test]
    async fn the_function_sees_requests_that_came_by_the_gateways_alias() {
        const FUNCTION: &str = "arn:aws:lambda:us-east-1:123456789012:function:callback";
        let request = r#"{"rawPath":"/","requestContext":{"http":{"method":"POST"}},"body":"x"}"#;
        let alias = GatewayAlias::new(Some("live".to_owned()));
        for (qualifier, event, status, body) in [
            (":live", request, 200, "POST Text(\"x\")"),
            (":live", "null", 200, "malformed"),
            (":live", r#"{"rawPath":"/"}"#, 200, "malformed"),
            (":billing", request, 401, "unauthenticated"),
            ("", "null", 401, "unauthenticated"),
        ] {
            let mut context = Context::default();
            context.invoked_function_arn = format!("{FUNCTION}{qualifier}");
            let payload = RawValue::from_string(event.to_owned()).expect("JSON");
            let answer = answer_http(&alias, &Echo, LambdaEvent::new(payload, context)).await;
            let text = String::from_utf8_lossy(answer.body.as_deref().unwrap_or_default()).into_owned();
            assert!(answer.status_code == status && text.contains(body), "{event} by {qualifier:?}: {answer:?}");
        }
    }
}
