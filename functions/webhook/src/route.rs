//! The route of a webhook request.

use lambda_http::{Request, RequestExt as _};
use shared::lambda::gateway;

use crate::response::Refusal;

/// Refuses all requests but `POST /webhooks/marketplace`, with or without the stage.
///
/// # Errors
/// [`Refusal::NotFound`], [`Refusal::MethodNotAllowed`].
pub fn check_route(request: &Request) -> Result<(), Refusal> {
    let is_route = |path| (path == "/webhooks/marketplace").then_some(());
    gateway::route(request.raw_http_path(), gateway::stage(request), is_route).ok_or(Refusal::NotFound)?;
    if request.method() == http::Method::POST { Ok(()) } else { Err(Refusal::MethodNotAllowed) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lambda_http::Context;
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
}
