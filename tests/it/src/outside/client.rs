//! Requests of callers and browsers, direct invocations, and their answers.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method};
use sandbox::marketplace::grants::Resource;
use sandbox::runtime_api::{FunctionError, Invocation};
use sandbox::whole::CALLER_ALIAS;
use serde_json::Value;

use super::{PATIENCE, System, route};

/// A whole answer.
#[derive(Clone, Debug)]
pub struct ClientResponse {
    /// HTTP status.
    pub status: u16,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
}

impl System {
    /// A request to the gateway without a key.
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.client.request(method, format!("{}{path}", self.sandbox.gateway.url()))
    }

    /// A request to the gateway with the key of the caller that is allowed everything.
    pub fn relay(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.request(method, path).bearer_auth(&self.sandbox.caller_key)
    }

    /// Sends a GET request for a resource to the gateway, with the key of the caller that is allowed everything.
    pub async fn get(&self, resource: &Resource, path: &str) -> ClientResponse {
        send(self.relay(Method::GET, &route(resource, path))).await
    }

    /// Follows an absolute URL, with a cookie.
    pub async fn browse(&self, url: &str, cookie: Option<&str>) -> ClientResponse {
        let request = self.client.get(url);
        let request = match cookie {
            Some(cookie) => request.header("cookie", cookie),
            None => request,
        };
        browsed(request).await
    }

    /// Posts a form, as a browser does.
    pub async fn post_form(&self, url: &str, fields: &[(String, String)]) -> ClientResponse {
        let form = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
        let request = self.client.post(url).header("content-type", "application/x-www-form-urlencoded");
        browsed(request.body(form)).await
    }

    /// Invokes `relay` directly, by the given alias, or else by the alias of the caller that is allowed everything.
    ///
    /// # Panics
    /// If the function answers with a function error.
    pub async fn invoke(&self, payload: impl Into<Bytes>, alias: Option<&str>) -> Value {
        self.invoke_as("relay", payload, alias).await
    }

    /// Invokes `relay` without a qualifier, as API Gateway does where there is no gateway alias.
    ///
    /// # Panics
    /// If the function answers with a function error.
    pub async fn invoke_unqualified(&self, payload: impl Into<Bytes>) -> Value {
        self.invoke_by("relay", payload, None).await
    }

    /// Invokes a function of this name by the given alias, or by the alias of the caller that is allowed everything.
    ///
    /// # Panics
    /// If the function answers with a function error.
    pub async fn invoke_as(&self, function: &str, payload: impl Into<Bytes>, alias: Option<&str>) -> Value {
        self.invoke_by(function, payload, Some(alias.unwrap_or(CALLER_ALIAS))).await
    }

    async fn invoke_by(&self, function: &str, payload: impl Into<Bytes>, alias: Option<&str>) -> Value {
        let invocation = Invocation { qualifier: alias.map(str::to_owned), ..Invocation::default() };
        let answer = self.sandbox.runtime.invoke(function, payload, invocation).await;
        let answer = answer.unwrap_or_else(|error| panic!("{function} answers {error}: {:?}", self.last_lines()));
        serde_json::from_slice(&answer).expect("JSON")
    }

    /// Invokes `refresh` as the schedule and the queue do.
    ///
    /// # Errors
    /// The function error of `refresh`.
    pub async fn refresh(&self, event: &Value) -> Result<Value, FunctionError> {
        let qualifier = self.sandbox.environment().get("GATEWAY_ALIAS").cloned();
        let invocation = Invocation { qualifier, timeout: Duration::from_secs(85), trace_id: None };
        self.sandbox.runtime.invoke_json("refresh", event, invocation).await
    }
}

/// Sends a request to the relay, and checks the headers that every answer of the relay has.
///
/// # Panics
/// If there is no answer, or if an answer does not name its source.
pub async fn send(request: reqwest::RequestBuilder) -> ClientResponse {
    let answer = browsed(request).await;
    assert!(answer.headers.contains_key("relay-request-id"), "{answer:?}");
    let content_type = answer.header("content-type");
    match answer.source() {
        "platform" => {}
        "relay" if answer.status < 400 => assert_eq!(content_type, "application/json", "{answer:?}"),
        "relay" => {
            assert_eq!(content_type, "application/problem+json", "{answer:?}");
            assert_eq!(answer.json()["status"], answer.status, "{answer:?}");
        }
        other => panic!("source {other:?} of {answer:?}"),
    }
    answer
}

async fn browsed(request: reqwest::RequestBuilder) -> ClientResponse {
    let response = request.timeout(PATIENCE * 2).send().await.expect("an answer");
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    ClientResponse { status, headers, body: response.bytes().await.expect("a whole body") }
}

impl ClientResponse {
    /// The value of a header; empty if the answer has no such header.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The source of the answer, `platform` or `relay`, from the header `relay-source`.
    pub fn source(&self) -> &str {
        self.header("relay-source")
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// If the body is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {:?}", self.body))
    }

    /// The status and code of a refusal. The code is empty if the answer is not a refusal of the relay.
    pub fn refusal(&self) -> (u16, String) {
        let code = match self.source() {
            "relay" if self.status >= 400 => self.json()["code"].as_str().unwrap_or_default().to_owned(),
            _ => String::new(),
        };
        (self.status, code)
    }

    /// The time after which the caller may retry, from the relay's two headers, which must agree.
    ///
    /// # Panics
    /// If the two headers disagree, or if one is missing.
    pub fn retry_after(&self) -> Duration {
        let number = |name| self.header(name).parse::<u64>().unwrap_or_else(|_| panic!("{name} of {self:?}"));
        let (seconds, milliseconds) = (number("retry-after"), number("relay-retry-after-ms"));
        assert_eq!(seconds, milliseconds.div_ceil(1000).max(1), "{self:?}");
        Duration::from_millis(milliseconds)
    }
}
