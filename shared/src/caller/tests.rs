//! Authentication by key, principal and alias, and authorization by path, method, resource and tool.

use http::Method;

use super::*;
use crate::request::path::Path;

const KEY: &str = "a-caller-key";
// printf %s a-caller-key | sha256sum
const KEY_SHA256: &str = "54a36547385eeb6bbb9b6d494306732da043fedd0270f19c4d8f364d4bb770b4";

fn callers() -> Callers {
    Callers::parse(&format!(
        r#"{{"callers":[{{"id":"free","principals":["arn:aws:sts::1:assumed-role/free/*"]}},
        {{"id":"billing","keys_sha256":["{}","{KEY_SHA256}"],"aliases":["billing"],"principals":["arn:aws:sts::1:assumed-role/billing/*"],
          "resources":["location:L1","company:*"],"methods":["GET"],"paths":["/contacts/*/notes","/contacts/"]}}]}}"#,
        "00".repeat(32)
    ))
    .expect("well formed")
}

fn request(resource: &str, method: Method, path: &str) -> Request {
    let resource = serde_json::from_str(resource).expect("a resource");
    Request::new(resource, method, Path::parse(path).expect("a safe path"))
}

#[test]
fn callers_are_known_by_key_principal_or_alias() {
    let arn = |suffix: &str| format!("arn:aws:lambda:us-east-1:1:function:relay{suffix}");
    let (with_alias, latest, version, other, plain) =
        (arn(":billing"), arn(":$LATEST"), arn(":7"), arn(":other"), arn(""));
    let (upper, longer) = (arn(":Billing"), arn(":billing:x"));
    let key = format!("bearer  {KEY} ");
    let cases = [
        ("a key", Identity::Bearer(Some(&key)), Some("billing")),
        ("no key", Identity::Bearer(None), None),
        ("an empty key", Identity::Bearer(Some("Bearer ")), None),
        ("another scheme", Identity::Bearer(Some("Basic a-caller-key")), None),
        ("the bare key", Identity::Bearer(Some(KEY)), None),
        ("a wrong key", Identity::Bearer(Some("Bearer a-caller-keY")), None),
        ("a principal", Identity::Principal(Some("arn:aws:sts::1:assumed-role/billing/s")), Some("billing")),
        ("another principal", Identity::Principal(Some("arn:aws:iam::1:user/x")), None),
        ("no principal", Identity::Principal(None), None),
        ("an empty principal", Identity::Principal(Some("")), None),
        ("an alias", Identity::Invocation(&with_alias), Some("billing")),
        ("another alias", Identity::Invocation(&other), None),
        ("the alias in another case", Identity::Invocation(&upper), None),
        ("the alias and more", Identity::Invocation(&longer), None),
        ("$LATEST", Identity::Invocation(&latest), None),
        ("a version", Identity::Invocation(&version), None),
        ("no qualifier", Identity::Invocation(&plain), None),
        ("no ARN at all", Identity::Invocation("nonsense"), None),
    ];
    for (name, identity, expected) in cases {
        let caller = callers().authenticate(identity).ok();
        assert_eq!(caller.as_ref().map(Caller::id), expected, "{name}");
        let by_key = (name == "a key").then_some(&KEY_SHA256[..KEY_NAME_DIGITS]);
        assert_eq!(caller.as_ref().and_then(Caller::key), by_key, "{name}");
    }
}

#[test]
fn a_caller_may_do_what_its_entry_says_and_no_more() {
    const L1: &str = r#"{"location":"L1"}"#;
    let cases = [
        ("as allowed", L1, Method::GET, "/contacts/1/notes", None),
        ("with a slash at the end", L1, Method::GET, "/contacts/1/notes/", None),
        ("any company", r#"{"company":"C9"}"#, Method::GET, "/contacts/", None),
        ("another location", r#"{"location":"L2"}"#, Method::GET, "/contacts/", Some(Forbidden::Resource)),
        ("a company's id as location", r#"{"location":"C9"}"#, Method::GET, "/contacts/", Some(Forbidden::Resource)),
        ("another method", L1, Method::DELETE, "/contacts/", Some(Forbidden::Method)),
        ("another path", L1, Method::GET, "/opportunities/", Some(Forbidden::Path)),
        ("deeper", L1, Method::GET, "/contacts/1/notes/2", Some(Forbidden::Path)),
        ("an encoded letter is that letter", L1, Method::GET, "/c%6fntacts/1/notes", None),
        ("allowed only when decoded", L1, Method::GET, "/contacts/1%2Fnotes", Some(Forbidden::Path)),
        ("allowed only as sent", L1, Method::GET, "/contacts/1%2f2/notes", Some(Forbidden::Path)),
        ("the token endpoint", L1, Method::GET, "/oauth/token", Some(Forbidden::TokenEndpoint)),
    ];
    for (name, resource, method, path, expected) in cases {
        let caller = callers().authenticate(Identity::Bearer(Some("Bearer a-caller-key"))).expect("known");
        let refused = caller.authorize(request(resource, method, path)).err().map(|denied| denied.reason);
        assert_eq!(refused, expected, "{name}");
    }
}

#[test]
fn a_denial_names_caller_and_resource() {
    let caller = callers().authenticate(Identity::Bearer(Some("Bearer a-caller-key"))).expect("known");
    let denied = caller.authorize(request(r#"{"location":"L1"}"#, Method::DELETE, "/contacts/")).expect_err("denied");
    assert_eq!(denied.to_string(), "this caller may not use this method (caller billing, location:L1)");
}

#[test]
fn no_caller_reaches_the_token_endpoint() {
    for path in [
        "/oauth",
        "/oauth/token",
        "/oauth/locationToken",
        "/OAuth/token",
        "/%6Fauth/token",
        "/%256fauth/token",
        "/oauth%2Ftoken",
        "/oauth;v=1/token",
        "/oauth%20/token",
        "/oauth%3Fx/token",
        "/oauth%2523",
    ] {
        let caller = Caller::unlisted("anybody");
        let refused =
            caller.authorize(request(r#"{"location":"L1"}"#, Method::POST, path)).err().map(|denied| denied.reason);
        assert_eq!(refused, Some(Forbidden::TokenEndpoint), "{path}");
    }
    let caller = Caller::unlisted("anybody");
    let path = "/social-media-posting/oauth/google/start";
    assert!(caller.authorize(request(r#"{"location":"L1"}"#, Method::GET, path)).is_ok());
}

#[test]
fn the_unlisted_are_allowed_only_where_the_secret_says_so() {
    let open = |callers: &str| {
        Callers::parse(&format!(r#"{{"callers":[{callers}],"unlisted":"allow"}}"#)).expect("well formed")
    };
    let listed = r#"{"id":"billing","aliases":["billing"],"methods":["GET"]}"#;
    let arn = |suffix: &str| format!("arn:aws:lambda:us-east-1:1:function:relay{suffix}");
    let (billing, other, plain) = (arn(":billing"), arn(":other"), arn(""));
    let principal = "arn:aws:iam::1:user/x";
    for (identity, expected) in [
        (Identity::Invocation(&billing), Some("billing")),
        (Identity::Invocation(&other), Some("(unlisted) other")),
        (Identity::Invocation(&plain), Some("(unlisted) invocation")),
        (Identity::Principal(Some(principal)), Some("(unlisted) arn:aws:iam::1:user/x")),
        (Identity::Principal(None), None),
        (Identity::Principal(Some("")), None),
        (Identity::Bearer(None), None),
        (Identity::Bearer(Some("Bearer a-caller-key")), None),
    ] {
        let caller = open(listed).authenticate(identity).ok();
        assert_eq!(caller.as_ref().map(Caller::id), expected, "{identity:?}");
    }
    // A removed entry takes rights away where nothing says "allow".
    let closed = |callers: &str| Callers::parse(&format!(r#"{{"callers":[{callers}]}}"#)).expect("well formed");
    assert!(closed(listed).authenticate(Identity::Invocation(&billing)).is_ok());
    assert_eq!(closed("").authenticate(Identity::Invocation(&billing)).err(), Some(Unauthenticated));
}

#[test]
fn a_list_of_tools_limits_what_is_called_at_the_mcp_endpoint() {
    let callers = Callers::parse(
        r#"{"callers":[{"id":"agent","aliases":["agent"],"tools":["contacts_get-contact","*_get-*"]},
        {"id":"none","aliases":["none"],"tools":[]},{"id":"all","aliases":["all"]}]}"#,
    )
    .expect("well formed");
    let refused = |alias: &str, method: Method, path: &str, body: &'static str| {
        let arn = format!("arn:aws:lambda:us-east-1:1:function:relay:{alias}");
        let caller = callers.authenticate(Identity::Invocation(&arn)).expect("listed");
        let request = request(r#"{"location":"L1"}"#, method, path);
        caller.authorize(Request { body: body.into(), ..request }).err().map(|denied| denied.reason)
    };
    let call = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"contacts_get-contact"}}"#;
    let other = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"contacts_delete-contact"}}"#;
    let list = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;
    for (alias, path, body, expected) in [
        ("agent", "/mcp/", call, None),
        ("agent", "/mcp", call, None),
        ("agent", "/mcp/", list, None),
        ("agent", "/mcp/", other, Some(Forbidden::Tool)),
        ("agent", "/mcp", other, Some(Forbidden::Tool)),
        ("agent", "/MCP/", other, Some(Forbidden::Tool)),
        ("agent", "/mcp;v=1/", other, Some(Forbidden::Tool)),
        ("agent", "/%6dcp/", other, Some(Forbidden::Tool)),
        ("agent", "/mcp/x", other, Some(Forbidden::Tool)),
        ("agent", "/mcp%2Fx", other, Some(Forbidden::Tool)),
        ("agent", "/mcp/", "", Some(Forbidden::UnreadableTool)),
        ("agent", "/mcp/", "{broken", Some(Forbidden::UnreadableTool)),
        ("agent", "/contacts/", other, None),
        ("none", "/mcp/", call, Some(Forbidden::Tool)),
        ("none", "/mcp/", list, None),
        ("all", "/mcp/", other, None),
        ("all", "/mcp/", "{broken", None),
    ] {
        assert_eq!(refused(alias, Method::POST, path, body), expected, "{alias} {path} {body}");
    }
    assert_eq!(refused("agent", Method::DELETE, "/mcp/", ""), None, "the end of a session calls no tool");
    assert_eq!(refused("agent", Method::DELETE, "/mcp/", other), Some(Forbidden::Tool));
    assert_eq!(refused("agent", Method::PUT, "/mcp/", "x"), Some(Forbidden::UnreadableTool));
}
