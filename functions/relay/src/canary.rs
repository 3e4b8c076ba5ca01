//! A canary: the reasons why the relay does not use the crate `lambda_http` (docs/decisions/lambda-http.md).
//!
//! Each test here passes as long as `lambda_http` loses something that the relay must keep, or panics. A test that fails
//! after an upgrade says that one of the reasons is gone. When all are gone, the relay can use `lambda_http`, too.

use std::convert::Infallible;
use std::future::ready;
use std::panic::catch_unwind;

use lambda_http::request::LambdaRequest;
use lambda_http::tower::{Service as _, service_fn};
use lambda_http::{Adapter, Body, Context, LambdaEvent, Request, Response};
use serde_json::{Value, json};

fn event(members: &Value) -> LambdaRequest {
    let mut event = json!({
        "rawPath": "/api/contacts/",
        "requestContext": { "stage": "$default", "domainName": "x.example", "http": { "method": "GET" } },
    });
    for (name, value) in members.as_object().expect("an object") {
        event[name] = value.clone();
    }
    LambdaRequest::ApiGatewayV2(serde_json::from_value(event).expect("an event of API Gateway"))
}

async fn answer(response: http::Result<Response<Body>>) -> Value {
    let mut response = Some(response.expect("a response"));
    let page = service_fn(move |_: Request| ready(Ok::<_, Infallible>(response.take().expect("one request"))));
    let answer = Adapter::from(page).call(LambdaEvent::new(event(&json!({})), Context::default())).await;
    serde_json::to_value(answer.expect("an answer")).expect("JSON")
}

#[test]
fn the_path_of_a_request_is_folded() {
    let request = Request::from(event(&json!({ "rawPath": "/api/a/../b\\c d" })));
    assert_eq!(request.uri().path(), "/api/b/c%20d", "the relay refuses such a path and must see it");
}

#[tokio::test]
async fn text_is_transcoded() {
    let latin = "text/plain; charset=iso-8859-1";
    let answered = answer(Response::builder().header("content-type", latin).body(Body::Binary(vec![0xe9]))).await;
    assert_eq!(answered["body"], "é", "the byte 0xE9 becomes two bytes of UTF-8");
    assert_eq!(answered["headers"]["content-type"], latin, "the header says otherwise");
}

#[tokio::test]
async fn only_the_first_of_repeated_headers_is_kept() {
    let answered = answer(Response::builder().header("link", "<a>").header("link", "<b>").body(Body::Empty)).await;
    assert_eq!(answered["headers"]["link"], "<a>");
}

#[test]
fn a_hostile_host_panics() {
    for host in ["a b", "x:99999", "[::1"] {
        let event = event(&json!({ "headers": { "host": host } }));
        assert!(catch_unwind(|| Request::from(event)).is_err(), "{host}");
    }
}

#[test]
fn a_hostile_query_panics() {
    for query in ["a=\"", "a=<", "a=>"] {
        let event = event(&json!({ "rawQueryString": query }));
        assert!(catch_unwind(|| Request::from(event)).is_err(), "{query}");
    }
}
