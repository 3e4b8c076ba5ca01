//! The AWS JSON protocols (1.0 and 1.1) of our emulators. `X-Amz-Target` names the operation, and errors carry
//! `__type`.

use axum::{body::Body, response::Response};
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};

/// Largest request body that an emulator reads, in bytes. The limits of SQS and Secrets Manager are lower.
pub(crate) const LARGEST_REQUEST: usize = 1 << 20;

/// Returns the operation, such as `GetSecretValue` for `X-Amz-Target: secretsmanager.GetSecretValue`.
pub(crate) fn operation(headers: &HeaderMap) -> Option<&str> {
    headers.get("x-amz-target")?.to_str().ok()?.rsplit('.').next()
}

/// Builds an answer with a JSON body.
pub(crate) fn answer(status: StatusCode, value: &Value) -> Response {
    let mut response = Response::new(Body::from(value.to_string()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert("content-type", http::HeaderValue::from_static("application/x-amz-json-1.1"));
    if let Ok(id) = http::HeaderValue::from_str(&crate::identity::uuid()) {
        headers.insert("x-amzn-requestid", id);
    }
    response
}

/// Builds an error in the form that the SDKs parse.
pub(crate) fn error(status: StatusCode, code: &str, message: &str) -> Response {
    answer(status, &json!({"__type": code, "message": message, "Message": message}))
}
