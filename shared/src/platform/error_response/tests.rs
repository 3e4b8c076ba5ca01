//! Tables of the platform's texts and their meanings.

use super::Meaning::*;
use super::*;

fn of(status: u16, body: &str) -> Meaning {
    Meaning::of(StatusCode::from_u16(status).expect("a status"), body.as_bytes())
}

/// The same text in every shape in which the platform or its servers give texts.
fn shapes(text: &str) -> Vec<String> {
    use serde_json::json;
    vec![
        json!({ "statusCode": 400, "message": text }).to_string(),
        json!({ "statusCode": 400, "message": [text], "error": "Bad Request" }).to_string(),
        json!({ "statusCode": 400, "message": [[text], 7] }).to_string(),
        json!({ "message": { "statusCode": 400, "message": text } }).to_string(),
        json!({ "error": "UnAuthorized!", "error_description": text }).to_string(),
        json!({ "error": text }).to_string(),
        json!({ "error": { "code": "E_1", "message": text, "details": {}, "resolution": "refresh token is invalid" } })
            .to_string(),
        json!([{ "message": text }]).to_string(),
        json!(text).to_string(),
        format!("\u{feff}{}", json!({ "message": text })),
        text.to_owned(),
        format!("  {}\n", text.to_uppercase()),
    ]
}

/// Texts of the platform and its relatives.
const TEXTS: &[(Meaning, &[&str])] = &[
    (
        RefreshTokenInvalid,
        &[
            "Invalid grant: refresh token is invalid",
            "Invalid grant: refresh token has expired",
            "refresh token not found",
            "Refresh token has been revoked.",
            "The refresh token you provided is invalid, expired or revoked",
            "The refresh token, which was already used, is no longer valid",
            "Refresh token does not exist",
            "Refresh token doesn't exist!",
            "refresh_token is invalid",
            "refreshToken is not valid",
            "REFRESH_TOKEN_EXPIRED",
            "invalid refresh token",
            "Expired refresh token: install the app again",
            "Unknown refresh token",
            "refresh token reuse detected",
            "Refresh token for this location not found",
            "The refresh token could not be found",
        ],
    ),
    (GrantInvalid, &["invalid_grant", "Invalid grant", "INVALID_GRANT", "invalid grant."]),
    (
        CodeInvalid,
        &[
            "Authorization code not found",
            "Invalid grant: authorization code is invalid",
            "Invalid grant: authorization code has expired",
            "invalid authorization code",
            "This authorization code has already been used",
        ],
    ),
    (NotInstalled, &["App is not installed", "The app was uninstalled.", "App is no longer installed"]),
    (ClientInvalid, &["Invalid client credentials!", "Invalid client: client is invalid", "invalid_client"]),
    (
        ParameterInvalid,
        &[
            "Invalid parameter: grantType",
            "Missing parameter: clientId",
            "Missing parameter: `refresh_token`",
            "Unsupported grant type: `grant_type` is invalid",
            "Invalid grant: `redirect_uri` is not a valid URI",
        ],
    ),
    (
        Inactive,
        &["Location is not active", "location is inactive", "Company is not active", "The account is suspended"],
    ),
    (
        LocationNotFound,
        &[
            "Location not found",
            "Location does not exist",
            "The location has been deleted.",
            "Location with id HLlocation000000001 not found",
            "Sub-account not found",
        ],
    ),
    (CompanyNotFound, &["Company not found", "The agency does not exist"]),
    (
        NoAccessToLocation,
        &["The token does not have access to this location.", "This location is not accessible from this token!"],
    ),
    (
        NotAllowed,
        &[
            "The token is not authorized for this scope.",
            "This authClass type is not allowed to access this scope. Please verify your IAM configuration if this is not the case.",
            "Token's user type mismatch!",
            "The token does not have access to this company.",
            "Insufficient scope: authorized scope is insufficient",
        ],
    ),
    (
        WrongVersion,
        &[
            "version header was not found.",
            "version header is invalid",
            "Endpoint GET /contacts/ is not available in API version v3. Use 2021-07-28.",
        ],
    ),
    (AboutTheRequest, &["No conversation provider found for this message"]),
    (TimedOut, &["Request Timeout after 30000ms"]),
    (
        AccessTokenInvalid,
        &[
            "Invalid JWT",
            "jwt expired",
            "Invalid token: access token is invalid",
            "Invalid token: access token has expired",
            "The access token has expired.",
            "The access token provided is expired, revoked, malformed, or invalid for other reasons",
            "invalid_token",
            "Unauthorized: token expired",
            "Your token has been revoked",
        ],
    ),
    (
        Unknown,
        &[
            "Something new",
            "Unauthorized",
            "Forbidden resource",
            "the trial has expired",
            "The refresh token is valid",
            "Missing refresh token",
            "Refresh token is required: this grant type is not valid",
            "The access token is fine. Refresh token quota exceeded: 7 tokens expired",
            "access token is invalid for this phone number",
            "This is not an expired refresh token",
            "Your Facebook token expired, please connect it again",
            "Contact not found",
            "Location id is required",
            "Invalid grant: something new",
            "The refresh token request was invalidated",
        ],
    ),
];

#[test]
fn each_text_means_the_same_in_every_shape_and_with_every_status() {
    for (meaning, texts) in TEXTS {
        for text in *texts {
            for body in shapes(text) {
                for status in [400, 401, 403, 404, 422] {
                    // Without JSON a 403 is a firewall's, unless it says something that only the platform says.
                    let is_json =
                        serde_json::from_str::<serde_json::Value>(body.trim_start_matches('\u{feff}')).is_ok();
                    let expected = match meaning {
                        Unknown if status == 403 && !is_json => NotReached,
                        _ => *meaning,
                    };
                    assert_eq!(of(status, &body), expected, "{status} {body}");
                }
                assert_eq!(of(503, &body), ServerError, "a 5xx says nothing: {body}");
                assert_eq!(of(429, &body), Throttled, "{body}");
            }
        }
    }
}

#[test]
fn what_says_more_counts_more() {
    for (name, status, body, meaning) in [
        (
            "the message before the code",
            400,
            r#"{"error":"invalid_grant","error_description":"Location is not active"}"#,
            Inactive,
        ),
        (
            "the code where the message says nothing",
            400,
            r#"{"error":{"code":"INVALID_GRANT","message":"Try again"}}"#,
            GrantInvalid,
        ),
        ("a code alone", 400, r#"{"error":{"code":"refresh_token_expired"}}"#, RefreshTokenInvalid),
        (
            "RFC 6749, as another vendor says it",
            400,
            r#"{"error":"invalid_grant","error_description":"Token has been expired or revoked."}"#,
            GrantInvalid,
        ),
        (
            "validation",
            422,
            r#"{"statusCode":422,"message":["locationId must be a string"],"error":"Unprocessable Entity"}"#,
            ParameterInvalid,
        ),
        (
            "a token of another app",
            400,
            r#"{"error":"invalid_grant","error_description":"Invalid grant: refresh token was issued to another client"}"#,
            Unknown,
        ),
        ("validation with another status", 400, r#"{"message":["locationId must be a string"]}"#, Unknown),
        ("422 without more", 422, r#"{"message":"Something new"}"#, Unknown),
        ("an empty object", 400, "{}", Unknown),
        ("nothing", 400, "", Unknown),
        ("nothing, and 401", 401, "", Unknown),
    ] {
        assert_eq!(of(status, body), meaning, "{name}");
    }
}

#[test]
fn what_stands_in_front_of_the_platform_is_told_from_it() {
    let challenge = "<!DOCTYPE html><html><head><title>Just a moment...</title></head></html>";
    for (name, status, body, meaning) in [
        ("a challenge", 403, challenge, NotReached),
        ("a challenge with the older status", 503, challenge, NotReached),
        ("too many, in HTML", 429, challenge, Throttled),
        ("HTML that quotes the platform", 403, "<html>refresh token is invalid</html>", NotReached),
        ("HTML with 400", 400, "<html><h1>400 Bad Request</h1><hr>nginx</html>", NotReached),
        ("HTML with 401", 401, "<html>", NotReached),
        ("a code of Cloudflare", 403, "error code: 1010", NotReached),
        ("another", 403, "error code: 1020\n", NotReached),
        ("with another status", 530, "error code: 1016", NotReached),
        ("with 400", 400, "error code: 1003", NotReached),
        ("its rate limit", 429, "error code: 1015", Throttled),
        ("its JSON", 403, r#"{"title":"Error 1010: Access denied","status":403,"cloudflare_error":true}"#, NotReached),
        ("a firewall's word", 403, "Forbidden", NotReached),
        ("a firewall's silence", 403, "", NotReached),
        ("a gateway", 502, "<html><h1>502 Bad Gateway</h1></html>", NotReached),
        ("the platform's own fault", 500, r#"{"message":"Internal server error"}"#, ServerError),
        ("a time-out", 408, "", ServerError),
        ("a redirect", 302, challenge, Redirected),
        ("JSON with 403", 403, r#"{"message":"Forbidden"}"#, Unknown),
    ] {
        assert_eq!(of(status, body), meaning, "{name}");
    }
}

#[test]
fn a_refusal_keeps_a_sample_for_the_operator() {
    let refusal =
        ErrorResponse::read(StatusCode::BAD_REQUEST, br#"{"error":{"code":"E_7","message":"Something new"}}"#);
    assert_eq!((refusal.meaning, &*refusal.sample), (Unknown, "Something new E_7"));
}
