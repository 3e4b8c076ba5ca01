//! Parses a function's answer as API Gateway does, with payload 2.0.

use axum::{body::Body, response::Response};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde_json::Value;

/// The reason for which an answer cannot be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// The answer is not JSON.
    #[error("the answer is not JSON")]
    Json,
    /// `statusCode` is not a status between 100 and 599.
    #[error("statusCode is not a status")]
    Status,
    /// A header that HTTP does not allow.
    #[error("a header is malformed")]
    Header,
    /// `isBase64Encoded` is true, but the body is not base64.
    #[error("the body is not base64")]
    Body,
}

/// Turns an answer into a response. An answer without `statusCode` becomes a 200 whose body is the whole answer.
///
/// # Errors
/// The answer cannot be sent. API Gateway then answers with 500.
pub fn of(answer: &[u8]) -> Result<Response, Unusable> {
    let answer: Value = serde_json::from_slice(answer).map_err(|_| Unusable::Json)?;
    if answer.get("statusCode").is_none() {
        let body = match answer {
            Value::String(text) => text,
            other => other.to_string(),
        };
        return Ok(with_default_type(Response::new(Body::from(body))));
    }
    let status = status(&answer["statusCode"]).ok_or(Unusable::Status)?;
    let body = body(&answer)?;
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    for (name, value) in answer["headers"].as_object().into_iter().flatten() {
        let name: HeaderName = name.parse().map_err(|_| Unusable::Header)?;
        // The gateway sets the headers of its connection to the client itself.
        if matches!(name, header::CONTENT_LENGTH | header::TRANSFER_ENCODING | header::CONNECTION) {
            continue;
        }
        let value = match value {
            Value::String(text) => text.clone(),
            Value::Null => continue,
            other => other.to_string(),
        };
        headers.insert(name, HeaderValue::from_str(&value).map_err(|_| Unusable::Header)?);
    }
    for cookie in answer["cookies"].as_array().into_iter().flatten() {
        let cookie = cookie.as_str().ok_or(Unusable::Header)?;
        headers.append(header::SET_COOKIE, HeaderValue::from_str(cookie).map_err(|_| Unusable::Header)?);
    }
    Ok(with_default_type(response))
}

fn status(value: &Value) -> Option<StatusCode> {
    let number = value.as_u64().or_else(|| value.as_str()?.parse().ok())?;
    let number = u16::try_from(number).ok().filter(|number| (100..600).contains(number))?;
    StatusCode::from_u16(number).ok()
}

fn body(answer: &Value) -> Result<Vec<u8>, Unusable> {
    let text = match &answer["body"] {
        Value::Null => return Ok(Vec::new()),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    if answer["isBase64Encoded"] == true {
        return STANDARD.decode(text).map_err(|_| Unusable::Body);
    }
    Ok(text.into_bytes())
}

fn with_default_type(mut response: Response) -> Response {
    response.headers_mut().entry(header::CONTENT_TYPE).or_insert(HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_answer_becomes_a_response() {
        let answer = json!({
            "statusCode": 303,
            "headers": { "location": "/oauth/done", "content-length": "7", "x-count": 3 },
            "cookies": ["a=1; HttpOnly", "b=; Max-Age=0"],
            "body": STANDARD.encode([0xff, 0x00]),
            "isBase64Encoded": true,
        });
        let response = of(answer.to_string().as_bytes()).expect("usable");
        assert_eq!(response.status(), 303);
        assert_eq!(response.headers()["location"], "/oauth/done");
        assert_eq!(response.headers()["x-count"], "3");
        assert_eq!(response.headers().get_all("set-cookie").iter().count(), 2);
        assert_eq!(response.headers().get("content-length"), None);
    }

    #[test]
    fn unusable_answers_are_told_apart() {
        for (answer, expected) in [
            (json!({ "statusCode": 42 }), Unusable::Status),
            (json!({ "statusCode": 200, "headers": { "a b": "" } }), Unusable::Header),
            (json!({ "statusCode": 200, "headers": { "location": "/\n" } }), Unusable::Header),
            (json!({ "statusCode": 200, "body": "%", "isBase64Encoded": true }), Unusable::Body),
        ] {
            assert_eq!(of(answer.to_string().as_bytes()).err(), Some(expected), "{answer}");
        }
        assert_eq!(of(b"{").err(), Some(Unusable::Json));
    }
}
