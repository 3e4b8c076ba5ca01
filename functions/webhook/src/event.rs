//! The one route of a webhook, and how much of a body is looked at.

use bytes::Bytes;
pub use shared::lambda::gateway::Request;

use crate::verdict::Refusal;

/// The largest body that is looked at, in bytes. The platform's own have less than a thousandth of it.
pub const LARGEST_BODY: usize = 1024 * 1024;

/// Refuses what is not `POST /webhooks/marketplace`, with or without the stage.
///
/// # Errors
/// [`Refusal::NotFound`], [`Refusal::MethodNotAllowed`].
pub fn check_route(request: &Request) -> Result<(), Refusal> {
    const PATH: &str = "/webhooks/marketplace";
    let stage = request.request_context.stage.as_deref().unwrap_or_default();
    let prefix = request.raw_path.strip_suffix(PATH).ok_or(Refusal::NotFound)?;
    if !prefix.is_empty() && prefix.strip_prefix('/') != Some(stage) {
        return Err(Refusal::NotFound);
    }
    if request.method() == "POST" { Ok(()) } else { Err(Refusal::MethodNotAllowed) }
}

/// The body's bytes exactly as they were sent; the signature covers these and no re-serialised form of them.
///
/// # Errors
/// [`Refusal::TooLarge`], or [`Refusal::Malformed`] for a body that says it is base64 and is not.
pub fn take_body(request: &mut Request) -> Result<Bytes, Refusal> {
    // Before it is decoded: what is too large costs nothing.
    if request.body_limit() > LARGEST_BODY + 2 {
        return Err(Refusal::TooLarge);
    }
    let body = request.take_body().map_err(|_| Refusal::Malformed)?;
    if body.len() > LARGEST_BODY { Err(Refusal::TooLarge) } else { Ok(body) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn request(method: &str, path: &str, stage: &str) -> Request {
        let context = json!({"stage": stage, "http": {"method": method}});
        Request::read(&json!({"rawPath": path, "requestContext": context}).to_string()).expect("a request")
    }

    #[test]
    fn one_route_is_served_with_and_without_its_stage() {
        for (method, path, stage, expected) in [
            ("POST", "/webhooks/marketplace", "$default", Ok(())),
            ("POST", "/webhooks/marketplace", "prod", Ok(())),
            ("POST", "/prod/webhooks/marketplace", "prod", Ok(())),
            ("POST", "/other/webhooks/marketplace", "prod", Err(Refusal::NotFound)),
            ("POST", "/webhooks/marketplace/", "prod", Err(Refusal::NotFound)),
            ("POST", "", "prod", Err(Refusal::NotFound)),
            ("GET", "/webhooks/marketplace", "prod", Err(Refusal::MethodNotAllowed)),
        ] {
            assert_eq!(check_route(&request(method, path, stage)), expected, "{method} {path} {stage}");
        }
    }

    #[test]
    fn a_large_body_is_not_even_decoded() {
        for (length, base64, expected) in [
            (LARGEST_BODY + 1, false, Err(Refusal::TooLarge)),
            (LARGEST_BODY, false, Ok(LARGEST_BODY)),
            (LARGEST_BODY.div_ceil(3) * 4, true, Err(Refusal::TooLarge)),
            (LARGEST_BODY / 3 * 4, true, Ok(LARGEST_BODY / 3 * 3)),
            (LARGEST_BODY * 2, true, Err(Refusal::TooLarge)),
            (5, true, Err(Refusal::Malformed)),
        ] {
            let mut request = request("POST", "/webhooks/marketplace", "$default");
            (request.body, request.is_base64_encoded) = (Some("a".repeat(length)), Some(base64));
            assert_eq!(take_body(&mut request).map(|body| body.len()), expected, "{length} {base64}");
        }
    }
}
