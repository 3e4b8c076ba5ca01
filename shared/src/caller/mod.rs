//! Who calls, and what they may do: two steps, each with a type that only it can make.
//!
//! [`Callers::authenticate`] gives a [`Caller`]; [`Caller::authorize`] takes a request and gives it back inside an
//! [`Authorized`], which is all that the relay accepts. So no request is sent that was not compared with the caller's
//! entry, and none other than the one compared.

pub mod edit;
mod pattern;
mod secret;

use std::sync::Arc;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use http::Method;

use crate::domain::qualifier::Qualifier;
use crate::domain::resource::{Kind, Resource};
use crate::request::Request;
use crate::request::mcp::{self, ToolCalls};
use crate::request::path::Path;
use crate::request::target_ids::{Names, Parts};
use pattern::{ArnPattern, PathPattern, Wildcard};

/// All callers of the secret, by [`Callers::parse`].
#[derive(Debug)]
pub struct Callers {
    entries: Vec<Entry>,
    unlisted: Unlisted,
}

/// What happens to an alias, a principal or an unqualified invocation that no entry names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unlisted {
    /// It is nobody.
    Refuse,
    /// It may do everything, because the secret says so.
    Allow,
}

struct Entry {
    id: Arc<str>,
    keys: Vec<[u8; 32]>,
    aliases: Vec<String>,
    principals: Vec<ArnPattern>,
    may: Permissions,
    requests_per_10s: Option<u32>,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry").field("id", &self.id).field("may", &self.may).finish_non_exhaustive()
    }
}

/// What an entry allows. `None` is everything, an empty list nothing.
#[derive(Clone, Debug, Default)]
struct Permissions {
    resources: Option<Vec<ResourcePattern>>,
    methods: Option<Vec<Method>>,
    paths: Option<Vec<PathPattern>>,
    tools: Option<Vec<Wildcard>>,
}

#[derive(Clone, Debug)]
enum ResourcePattern {
    Every(Kind),
    One(Resource),
}

/// What a request shows of its sender.
#[derive(Clone, Copy, Debug)]
pub enum Identity<'a> {
    /// The value of the `Authorization` header, if there is one.
    Bearer(Option<&'a str>),
    /// The ARN that API Gateway's `AWS_IAM` authorizer found, if it ran.
    Principal(Option<&'a str>),
    /// The ARN that a direct invocation was sent to.
    Invocation(&'a str),
}

/// Nobody that is known. It does not say which part was wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the caller is not known")]
pub struct Unauthenticated;

/// Why a known caller may not do this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Forbidden {
    /// Not for this location or company.
    #[error("this caller may not act for this location or company")]
    Resource,
    /// Not with this method.
    #[error("this caller may not use this method")]
    Method,
    /// Not on this path.
    #[error("this caller may not use this path")]
    Path,
    /// For this location or company, but it names another one.
    #[error("the request names another location or company than the one it is for")]
    OtherResource,
    /// The platform's token endpoint and its neighbours: nobody may.
    #[error("/oauth of the platform is never relayed")]
    TokenEndpoint,
    /// Not this tool of the platform's MCP endpoint.
    #[error("this caller may not call this tool")]
    Tool,
    /// A caller with a list of tools has sent a body in which the called tools cannot be found.
    #[error("the body is not one JSON-RPC message or a list of them, so the tools that it calls are not known")]
    UnreadableTool,
}

/// A caller that was recognised.
#[derive(Clone, Debug)]
pub struct Caller {
    id: Arc<str>,
    may: Permissions,
    requests_per_10s: Option<u32>,
}

/// A request that its caller may send.
#[derive(Debug)]
pub struct Authorized {
    caller: Caller,
    request: Request,
}

/// A resource whose status its caller may see.
#[derive(Debug)]
pub struct Visible {
    caller: Caller,
    resource: Resource,
}

impl Callers {
    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    /// Recognises the sender of a request.
    ///
    /// IAM decides only that a principal or an invoker may reach the relay. Without an entry of the secret it is
    /// nobody, unless the secret says `"unlisted": "allow"`.
    ///
    /// # Errors
    /// [`Unauthenticated`]: no key, an unknown one, no entry, or a route whose authorizer did not run.
    pub fn authenticate(&self, identity: Identity<'_>) -> Result<Caller, Unauthenticated> {
        match identity {
            Identity::Bearer(header) => self.by_key(bearer(header.ok_or(Unauthenticated)?).ok_or(Unauthenticated)?),
            Identity::Principal(arn) => {
                let arn = arn.filter(|arn| !arn.is_empty()).ok_or(Unauthenticated)?;
                let entry = self.entries.iter().find(|e| e.principals.iter().any(|p| p.matches(arn)));
                self.listed(entry, arn)
            }
            Identity::Invocation(arn) => {
                let alias = Qualifier::of(arn).alias();
                let entry = alias.and_then(|name| self.entries.iter().find(|e| e.aliases.iter().any(|a| a == name)));
                self.listed(entry, alias.unwrap_or("invocation"))
            }
        }
    }

    /// The caller of an entry; without one what the secret says of the unlisted.
    fn listed(&self, entry: Option<&Entry>, known_by: &str) -> Result<Caller, Unauthenticated> {
        match (entry, self.unlisted) {
            (Some(entry), _) => Ok(entry.caller()),
            (None, Unlisted::Allow) => Ok(Caller::unlisted(known_by)),
            (None, Unlisted::Refuse) => Err(Unauthenticated),
        }
    }

    /// Compares with every key of every caller, each in constant time, so that the time taken says nothing.
    fn by_key(&self, key: &str) -> Result<Caller, Unauthenticated> {
        let shown = digest(&SHA256, key.as_bytes());
        let mut found = None;
        for (entry, key) in self.entries.iter().flat_map(|e| e.keys.iter().map(move |key| (e, key))) {
            if verify_slices_are_equal(shown.as_ref(), key).is_ok() {
                found = Some(entry);
            }
        }
        found.map(Entry::caller).ok_or(Unauthenticated)
    }
}

/// The key of `Authorization: Bearer <key>` (RFC 6750 section 2.1; the scheme's case does not matter).
fn bearer(header: &str) -> Option<&str> {
    let (scheme, key) = header.trim().split_once(' ')?;
    let key = key.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !key.is_empty()).then_some(key)
}

impl Entry {
    fn caller(&self) -> Caller {
        Caller { id: self.id.clone(), may: self.may.clone(), requests_per_10s: self.requests_per_10s }
    }
}

impl Caller {
    /// No id of an entry has parentheses, so nobody else has this one.
    fn unlisted(known_by: &str) -> Self {
        Self { id: format!("(unlisted) {known_by}").into(), may: Permissions::default(), requests_per_10s: None }
    }

    /// The entry's id; for a caller without an entry its ARN or alias behind `(unlisted)`. Fit for a log.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What the entry allows of each resource in any 10 s, where it says so.
    #[must_use]
    pub fn requests_per_10s(&self) -> Option<u32> {
        self.requests_per_10s
    }

    /// Allows one request, or says why not.
    ///
    /// # Errors
    /// [`Forbidden`].
    pub fn authorize(self, request: Request) -> Result<Authorized, Forbidden> {
        self.may.act_for(&request.resource)?;
        self.may.send(&request.method, &request.path)?;
        self.may.call_tools(&request)?;
        let names = [Names::in_headers(&request.headers), Names::elsewhere(&Parts::from(&request))];
        if names.iter().any(|names| names.contradict(&request.resource)) {
            return Err(Forbidden::OtherResource);
        }
        Ok(Authorized { caller: self, request })
    }

    /// Allows to find out which company a location belongs to: who may act for no company has no use for it.
    ///
    /// # Errors
    /// [`Forbidden::Resource`].
    pub fn may_ask_for_company(&self) -> Result<(), Forbidden> {
        let of_company = |pattern: &ResourcePattern| match pattern {
            ResourcePattern::Every(kind) => *kind == Kind::Company,
            ResourcePattern::One(one) => one.kind() == Kind::Company,
        };
        let allowed = self.may.resources.as_ref().is_none_or(|patterns| patterns.iter().any(of_company));
        if allowed { Ok(()) } else { Err(Forbidden::Resource) }
    }

    /// Allows to hear that nothing is known of a location: whoever may act for it, or for whatever company it has.
    ///
    /// # Errors
    /// [`Forbidden::Resource`].
    pub fn may_hear_of(&self, location: &Resource) -> Result<(), Forbidden> {
        let every = |pattern: &ResourcePattern| matches!(pattern, ResourcePattern::Every(Kind::Company));
        if self.may.resources.as_ref().is_none_or(|patterns| patterns.iter().any(every)) {
            return Ok(());
        }
        self.may.act_for(location)
    }

    /// Allows a look at a resource's status: whoever may act for it may see it.
    ///
    /// # Errors
    /// [`Forbidden::Resource`].
    pub fn authorize_status(self, resource: Resource) -> Result<Visible, Forbidden> {
        self.may.act_for(&resource)?;
        Ok(Visible { caller: self, resource })
    }
}

impl Permissions {
    fn act_for(&self, resource: &Resource) -> Result<(), Forbidden> {
        let matches = |pattern: &ResourcePattern| match pattern {
            ResourcePattern::Every(kind) => resource.kind() == *kind,
            ResourcePattern::One(one) => one == resource,
        };
        let allowed = self.resources.as_ref().is_none_or(|patterns| patterns.iter().any(matches));
        if allowed { Ok(()) } else { Err(Forbidden::Resource) }
    }

    fn send(&self, method: &Method, path: &Path) -> Result<(), Forbidden> {
        if path.may_begin_with("oauth") {
            return Err(Forbidden::TokenEndpoint);
        }
        if self.methods.as_ref().is_some_and(|methods| !methods.contains(method)) {
            return Err(Forbidden::Method);
        }
        let Some(patterns) = &self.paths else { return Ok(()) };
        // However the platform reads the path, it must be one that is allowed.
        let allowed = path.readings().iter().all(|segments| patterns.iter().any(|p| p.matches(segments)));
        if allowed { Ok(()) } else { Err(Forbidden::Path) }
    }

    /// The tools of a request to the MCP endpoint, where the entry limits them.
    fn call_tools(&self, request: &Request) -> Result<(), Forbidden> {
        let Some(patterns) = &self.tools else { return Ok(()) };
        if !mcp::is_endpoint(&request.path) {
            return Ok(());
        }
        let called = ToolCalls::of(&request.method, &request.headers, &request.body);
        let ToolCalls(names) = called.map_err(|_| Forbidden::UnreadableTool)?;
        let allowed = names.iter().all(|name| patterns.iter().any(|pattern| pattern.matches(name)));
        if allowed { Ok(()) } else { Err(Forbidden::Tool) }
    }
}

impl Authorized {
    /// Who sends it.
    #[must_use]
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// What is sent.
    #[must_use]
    pub fn request(&self) -> &Request {
        &self.request
    }
}

impl Visible {
    /// Who looks.
    #[must_use]
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// At what.
    #[must_use]
    pub fn resource(&self) -> &Resource {
        &self.resource
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            (
                "a company's id as location",
                r#"{"location":"C9"}"#,
                Method::GET,
                "/contacts/",
                Some(Forbidden::Resource),
            ),
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
            let refused = caller.authorize(request(resource, method, path)).err();
            assert_eq!(refused, expected, "{name}");
        }
    }

    #[test]
    fn nobody_reaches_the_token_endpoint() {
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
            let refused = caller.authorize(request(r#"{"location":"L1"}"#, Method::POST, path)).err();
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
            caller.authorize(Request { body: body.into(), ..request }).err()
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
}
