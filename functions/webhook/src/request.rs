//! The route of a webhook request, and the limit on its body.

use lambda_http::{Request, RequestExt as _};
use shared::lambda::gateway;

use crate::response::Refusal;

/// The largest accepted body, in bytes. The platform's webhooks have less than a thousandth of this.
pub const LARGEST_BODY: usize = 1024 * 1024;

/// Refuses all requests but `POST /webhooks/marketplace`, with or without the stage.
///
/// # Errors
/// [`Refusal::NotFound`], [`Refusal::MethodNotAllowed`].
pub fn check_route(request: &Request) -> Result<(), Refusal> {
    let is_route = |path| (path == "/webhooks/marketplace").then_some(());
    gateway::route(request.raw_http_path(), gateway::stage(request), is_route).ok_or(Refusal::NotFound)?;
    if request.method() == http::Method::POST { Ok(()) } else { Err(Refusal::MethodNotAllowed) }
}

/// The body's bytes as they were sent. The signature covers these bytes, not their JSON value.
///
/// # Errors
/// [`Refusal::TooLarge`].
pub fn body(request: &Request) -> Result<&[u8], Refusal> {
    let body: &[u8] = request.body();
    if body.len() > LARGEST_BODY { Err(Refusal::TooLarge) } else { Ok(body) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lambda_http::{Body, Context};
    use serde_json::json;
    use serde_json::value::to_raw_value;

    fn request(method: &str, path: &str, stage: &str) -> Request {
        let context = json!({"stage": stage, "http": {"method": method}});
        let event = to_raw_value(&json!({"rawPath": path, "requestContext": context})).expect("JSON");
        gateway::read(&event, Context::default()).expect("a request")
    }

    #[test]
    fn the_route_is_found_with_and_without_its_stage() {
        for (method, path, stage, expected) in [
            ("POST", "/webhooks/marketplace", "$default", Ok(())),
            ("POST", "/webhooks/marketplace", "prod", Ok(())),
            ("POST", "/webhooks/marketplace", "webhooks", Ok(())),
            ("POST", "/prod/webhooks/marketplace", "prod", Ok(())),
            ("POST", "/other/webhooks/marketplace", "prod", Err(Refusal::NotFound)),
            ("POST", "/webhooks/marketplace/", "prod", Err(Refusal::NotFound)),
            ("POST", "/webhooks/../webhooks/marketplace", "prod", Err(Refusal::NotFound)),
            ("GET", "/webhooks/marketplace", "prod", Err(Refusal::MethodNotAllowed)),
        ] {
            assert_eq!(check_route(&request(method, path, stage)), expected, "{method} {path} {stage}");
        }
    }

    #[test]
    fn a_body_has_a_limit() {
        for (length, expected) in [(LARGEST_BODY + 1, Err(Refusal::TooLarge)), (LARGEST_BODY, Ok(LARGEST_BODY))] {
            let request = request("POST", "/webhooks/marketplace", "$default").map(|_| Body::Text("a".repeat(length)));
            assert_eq!(body(&request).map(<[u8]>::len), expected, "{length}");
        }
    }
}
