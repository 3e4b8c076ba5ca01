//! Tests of the token endpoint: the classification of responses, and the reading of grants.

use super::*;
use serde_json::json;

fn answer(status: u16, body: &str) -> TokenResponse {
    classify(StatusCode::from_u16(status).expect("a status"), Some(7), body.as_bytes().to_vec())
}

#[test]
fn an_answer_that_may_come_after_the_work_is_unknown() {
    for (status, body, cause) in [
        (400, r#"{"message":"Request Timeout after 30000ms"}"#, Cause::TimedOut),
        (500, r#"{"message":"refresh token is invalid"}"#, Cause::ServerError(500)),
        (408, "", Cause::ServerError(408)),
        (502, "<html>", Cause::NotReached),
        (503, "<html>Just a moment...</html>", Cause::NotReached),
        (400, "<html><h1>400 Bad Request</h1></html>", Cause::NotReached),
        (302, "", Cause::Redirected),
        (200, "<html>", Cause::Unreadable),
        (200, r#"{"access_token":"#, Cause::Unreadable),
        (200, "", Cause::Unreadable),
    ] {
        assert_eq!(answer(status, body), TokenResponse::Unknown(cause), "{status} {body}");
    }
}

#[test]
fn an_answer_shows_if_the_version_of_the_request_was_understood() {
    for (status, body, understood, not_understood) in [
        (200, r#"{"access_token":"a"}"#, true, false),
        (400, r#"{"message":"Invalid grant: refresh token is invalid"}"#, true, false),
        (401, r#"{"error_description":"Invalid client credentials!"}"#, true, false),
        (400, r#"{"message":"Invalid parameter: redirectUri"}"#, true, false),
        (400, r#"{"message":"Missing parameter: clientId"}"#, false, true),
        (422, r#"{"message":["clientId should not be empty"]}"#, false, true),
        (400, r#"{"error":{"message":"Endpoint /oauth/token not available in API version v3"}}"#, false, true),
        (401, r#"{"message":"version header was not found."}"#, false, true),
        (404, r#"{"message":"Cannot POST /oauth/token"}"#, false, false),
        (400, r#"{"message":"Something new"}"#, false, false),
        (429, "", false, false),
        (403, "<html>", false, false),
        (500, "", false, false),
    ] {
        let answer = answer(status, body);
        assert_eq!((answer.is_understood(), answer.is_not_understood()), (understood, not_understood), "{body}");
    }
}

#[test]
fn a_refusal_keeps_its_meaning() {
    for (status, body, meaning) in [
        (400, r#"{"message":"Invalid grant: refresh token is invalid"}"#, Meaning::RefreshTokenInvalid),
        (429, "<html>", Meaning::Throttled),
        (403, "<html>refresh token is invalid</html>", Meaning::NotReached),
        (403, "error code: 1010", Meaning::NotReached),
        (404, r#"{"message":"Something new"}"#, Meaning::Unknown),
    ] {
        let TokenResponse::Refused(refusal, retry_after) = answer(status, body) else { panic!("{status} {body}") };
        assert_eq!((refusal.meaning, retry_after), (meaning, Some(Duration::from_secs(7))), "{status} {body}");
    }
}

#[test]
fn a_grant_is_read_in_spite_of_a_byte_order_mark() {
    assert!(matches!(answer(200, "\u{feff}{\"access_token\":\"a\"}"), TokenResponse::Granted(_)));
}

#[test]
fn the_human_who_installs_reads_what_helps() {
    for (status, body, error) in [
        (
            401,
            r#"{"error":"UnAuthorized!","error_description":"Authorization code not found"}"#,
            "the code is used, too old or garbage",
        ),
        (400, r#"{"error":"invalid_grant"}"#, "the code is used, too old or garbage"),
        (400, r#"{"message":"Location not found"}"#, "the code is used, too old or garbage"),
        (
            401,
            r#"{"error_description":"Invalid client credentials!"}"#,
            "the platform does not accept the app's client id and secret",
        ),
        (
            400,
            r#"{"message":"Invalid parameter: redirectUri"}"#,
            "the platform does not accept the request: Invalid parameter: redirectUri",
        ),
        (400, r#"{"message":"Location is not active"}"#, "the location is not active"),
        (403, "<html>", "the platform is unavailable: NotReached, 403 Forbidden: a page of HTML"),
        (400, r#"{"message":"Something new"}"#, "the platform is unavailable: Unknown, 400 Bad Request: Something new"),
    ] {
        let TokenResponse::Refused(refusal, _) = answer(status, body) else { panic!("{status} {body}") };
        assert_eq!(ExchangeError::from(refusal).to_string(), error, "{status} {body}");
    }
}

fn grant(body: Value, expected: Option<&Resource>) -> Result<Grant, BadGrant> {
    let Value::Object(body) = body else { panic!("an object") };
    read_grant(&body, expected)
}

#[test]
fn grants_are_read_in_both_spellings_and_belong_to_whom_they_say() {
    let location = Resource::location("L1").expect("valid");
    let v2 = json!({"access_token":"a","refresh_token":"r","expires_in":86399,"userType":"Location",
        "locationId":"L1","companyId":"C1"});
    let read = grant(v2.clone(), None).expect("readable");
    assert_eq!((read.resource, read.company.as_deref()), (location.clone(), Some("C1")));
    let v3 = json!({"accessToken":"a","refreshToken":"r","expiresIn":86399,"userType":"Company",
        "companyId":"C1","isBulkInstallation":true});
    let read = grant(v3, None).expect("readable");
    assert_eq!((read.resource.to_string().as_str(), read.bulk), ("company:C1", true));
    let other = Resource::location("L2").expect("valid");
    assert_eq!(grant(v2, Some(&other)).err(), Some(BadGrant::WrongTenant));
    let bare = json!({"access_token":"a"});
    assert_eq!(grant(bare.clone(), Some(&location)).expect("ours").resource, location);
    assert_eq!(grant(bare, None).err(), Some(BadGrant::Unreadable));
    assert_eq!(grant(json!({"access_token":""}), Some(&location)).err(), Some(BadGrant::Unreadable));
}

#[test]
fn lives_are_clamped() {
    for (said, seconds) in [
        (json!(86399), 86_399),
        (json!("86399"), 86_399),
        (json!(0), 60),
        (json!(-1), 60),
        (json!(1e12), 86_400),
        (json!("soon"), 3_600),
        (json!("NaN"), 3_600),
        (Value::Null, 3_600),
    ] {
        assert_eq!(life(Some(&said)), Duration::from_secs(seconds), "{said}");
    }
}

#[test]
fn form_values_survive() {
    assert_eq!(encode_form([("a", "x+y z&=%é")].iter()), "a=x%2By%20z%26%3D%25%C3%A9");
}
