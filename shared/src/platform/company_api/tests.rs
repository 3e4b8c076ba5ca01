//! Tests of the company API: requests, the meaning of responses, and the reading of lists.

use super::*;
use serde_json::json;

#[test]
fn requests_name_the_product_and_the_version_of_the_api() {
    let access = Access {
        token: crate::domain::bearer::Bearer::from(&crate::domain::redacted::Redacted::from("t")),
        issued_at: Millis(0),
        expires_at: Millis(1),
        epoch: 1,
        generation: 1,
        doubted: false,
    };
    for (version, header) in [(ApiVersion::V2, USUAL), (ApiVersion::V3, V3)] {
        let url = Url::parse(&format!("https://example.com{}", path_of_minting(version))).expect("a URL");
        let (method, content) = (Method::POST, Some(Content { kind: FORM, text: "a=b".into() }));
        let request = request(Call { own: OwnCall::Mint, version, method, url, content }, &access).expect("a request");
        let name = concat!("hoopai-relay/", env!("CARGO_PKG_VERSION"));
        assert_eq!(
            (&request.headers()[USER_AGENT], &request.headers()["version"]),
            (&HeaderValue::from_static(name), &HeaderValue::from_static(header))
        );
        assert_eq!(request.headers()[AUTHORIZATION], "Bearer t");
        assert_eq!(request.headers()[CONTENT_TYPE], FORM);
    }
}

#[test]
fn each_refusal_has_its_meaning() {
    let of = |status: u16, body: &str| {
        company_api_error(&ErrorResponse::read(StatusCode::from_u16(status).expect("a status"), body.as_bytes()), None)
    };
    let unclassified = |status: u16, said: &str| CompanyApiError::Unclassified {
        status: StatusCode::from_u16(status).expect("a status"),
        said: said.into(),
    };
    for (status, body, meaning) in [
        (401, r#"{"message":"Invalid JWT"}"#, CompanyApiError::TokenRefused),
        (401, r#"{"error":{"message":"Invalid token: access token is invalid"}}"#, CompanyApiError::TokenRefused),
        (401, r#"{"message":"Something new"}"#, CompanyApiError::TokenDoubted("Something new".into())),
        (403, r#"{"message":"The token does not have access to this location."}"#, CompanyApiError::Absent),
        (404, r#"{"message":"Location not found"}"#, CompanyApiError::Absent),
        (400, r#"{"message":"App is not installed"}"#, CompanyApiError::Absent),
        (400, r#"{"message":"Location is not active"}"#, CompanyApiError::Suspended),
        (400, r#"{"message":"Something new"}"#, unclassified(400, "Something new")),
        (403, r#"{"message":"Forbidden"}"#, unclassified(403, "Forbidden")),
        (404, r#"{"message":"Company not found"}"#, unclassified(404, "Company not found")),
        (422, r#"{"message":["companyId must be a string"]}"#, unclassified(422, "companyId must be a string")),
        (404, "Not Found", unclassified(404, "Not Found")),
        (429, "", CompanyApiError::Throttled { retry_after: None }),
        (500, "{}", CompanyApiError::Unanswered("a status without a verdict")),
        (302, "", CompanyApiError::Unanswered("a status without a verdict")),
        (403, "<html>", CompanyApiError::NotReached),
        (403, "error code: 1020", CompanyApiError::NotReached),
        (
            400,
            r#"{"message":"Request Timeout after 30000ms"}"#,
            CompanyApiError::Unanswered("the platform's own time-out"),
        ),
    ] {
        assert_eq!(of(status, body), meaning, "{status} {body}");
    }
    assert_eq!(read_object(b"<html>"), Err(CompanyApiError::Unanswered("an answer that cannot be read")));
    let scope = of(401, r#"{"error":{"message":"The token is not authorized for this scope."}}"#);
    assert!(matches!(scope, CompanyApiError::NotAllowed(_)), "{scope:?}");
}

#[test]
fn a_refusal_of_the_token_itself_means_that_the_app_is_gone() {
    let of = |status: u16, body: &str| {
        let status = StatusCode::from_u16(status).expect("a status");
        let error = (!status.is_success()).then(|| ErrorResponse::read(status, body.as_bytes()));
        let head = ResponseHead { sent_at: Millis(0), status, headers: HeaderMap::new() };
        presence_of(&ResponseMeta { head: Some(head), error })
    };
    for (status, body, expected) in [
        (200, r#"{"installations":[]}"#, Presence::Installed),
        (200, "[]", Presence::Installed),
        (401, r#"{"message":"Invalid JWT"}"#, Presence::Gone),
        (401, r#"{"error":{"message":"Invalid token: access token is invalid"}}"#, Presence::Gone),
        (401, "", Presence::Gone),
        (403, r#"{"message":"The token does not have access to this location."}"#, Presence::Gone),
        (404, r#"{"message":"App is not installed"}"#, Presence::Gone),
        (404, "{}", Presence::Gone),
        (404, "", Presence::Gone),
    ] {
        assert_eq!(of(status, body), expected, "{status} {body}");
    }
    for (status, body) in [
        (401, r#"{"message":"The access token has expired"}"#),
        (401, r#"{"message":"The token is not authorized for this scope."}"#),
        (401, r#"{"message":"version header is invalid"}"#),
        (403, "<html>Just a moment...</html>"),
        (403, "error code: 1010"),
        (400, r#"{"message":"Location is not active"}"#),
        (400, r#"{"message":"something new"}"#),
        (422, r#"{"message":["something new"]}"#),
        (429, ""),
        (302, ""),
        (500, "{}"),
        (503, "<html>"),
    ] {
        assert!(matches!(of(status, body), Presence::Unclear(_)), "{status} {body}");
    }
    assert_eq!(presence_of(&ResponseMeta::default()), Presence::Unclear("no answer"));
}

#[test]
fn a_page_holds_what_can_be_read_and_says_how_long_it_was() {
    let page = json!({"locations": [{"_id": "L1", "isInstalled": true}, {"_id": "L2", "isInstalled": false},
            {"_id": "../x"}, {"id": "L3"}, {"_id": "L4"}], "count": 900});
    let Value::Object(body) = page else { panic!("an object") };
    let ids = |page: &LocationsPage| page.installed.iter().map(|l| l.id().to_owned()).collect::<Vec<_>>();
    let page = read_page(body, &ListPosition::START).expect("a page");
    assert_eq!((ids(&page), page.entries), (vec!["L1".to_owned(), "L4".to_owned()], 5));
    assert_eq!(read_page(Map::new(), &ListPosition::START), None);
}

#[test]
fn a_page_says_where_the_next_one_begins() {
    let next = |body: Value, position: &ListPosition| {
        let Value::Object(body) = body else { panic!("an object") };
        read_page(body, position).expect("a page").next
    };
    let entries = |number: usize| vec![json!({"_id": "L1"}); number];
    let (start, after) = (ListPosition::START, |token: &str| ListPosition::After(token.to_owned()));
    for (name, body, position, expected) in [
        ("v2, a full page", json!({"locations": entries(100)}), start.clone(), Some(ListPosition::Skip(100))),
        ("v2, the next", json!({"locations": entries(100)}), ListPosition::Skip(100), Some(ListPosition::Skip(200))),
        ("v2, a short page", json!({"locations": entries(99), "count": 900}), start.clone(), None),
        ("v2 after v3", json!({"locations": entries(100)}), after("a"), Some(ListPosition::Skip(100))),
        (
            "v3",
            json!({"items": entries(3), "pagination": {"hasNextPage": true, "nextPageToken": "b"}}),
            start.clone(),
            Some(after("b")),
        ),
        (
            "v3 without hasNextPage",
            json!({"items": [], "pagination": {"nextPageToken": "b"}}),
            after("a"),
            Some(after("b")),
        ),
        (
            "v3, the last page",
            json!({"items": entries(100), "pagination": {"hasNextPage": false, "nextPageToken": "b"}}),
            after("a"),
            None,
        ),
        ("v3, an empty token", json!({"items": [], "pagination": {"nextPageToken": ""}}), after("a"), None),
        ("v3, null", json!({"items": [], "pagination": {"hasNextPage": true, "nextPageToken": null}}), start, None),
        (
            "v3, the same token",
            json!({"items": [], "pagination": {"hasNextPage": true, "nextPageToken": "a"}}),
            after("a"),
            None,
        ),
        ("v3 without pagination", json!({"items": entries(100)}), after("a"), None),
    ] {
        assert_eq!(next(body, &position), expected, "{name}");
    }
}

#[test]
fn only_an_answer_about_the_version_changes_the_version() {
    for (status, body, expected) in [
        (400, r#"{"message":"Endpoint /oauth/locationToken not available in API version v3"}"#, true),
        (400, r#"{"error":{"code":"X","message":"Endpoint not available in API version 2021-07-28"}}"#, true),
        (401, r#"{"message":"version header is invalid"}"#, true),
        (404, r#"{"message":"Cannot POST /oauth/locationToken","error":"Not Found"}"#, true),
        (404, "", true),
        (404, r#"{"message":"Not Found"}"#, true),
        (404, r#"{"message":"Location not found"}"#, false),
        (400, r#"{"message":"App is not installed"}"#, false),
        (403, r#"{"message":"The token does not have access to this location."}"#, false),
        (403, "<html>", false),
        (401, r#"{"message":"Invalid JWT"}"#, false),
        (401, r#"{"message":"something new"}"#, false),
        (422, r#"{"message":["companyId must be a string"]}"#, false),
        (500, "", false),
    ] {
        let status = StatusCode::from_u16(status).expect("a status");
        let error = ErrorResponse::read(status, body.as_bytes());
        assert_eq!(is_about_the_version(OwnCall::Mint, &error), expected, "{status} {body}");
        let is_word = expected && error.meaning == Meaning::WrongVersion;
        assert_eq!(is_about_the_version(OwnCall::Presence, &error), is_word, "{status} {body}");
    }
}
