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

use crate::relay::named::{Names, Parts};
use crate::relay::path::Path;
use crate::relay::request::Request;
use crate::resource::{Kind, Resource};
use pattern::{PathPattern, Wildcard};
pub(crate) use secret::METHODS;

/// All callers of the secret, by [`Callers::parse`].
#[derive(Debug)]
pub struct Callers {
    entries: Vec<Entry>,
}

struct Entry {
    id: Arc<str>,
    keys: Vec<[u8; 32]>,
    aliases: Vec<String>,
    principals: Vec<Wildcard>,
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
    /// An HTTP event sent by hand to an alias that names a caller, as which it could claim to be somebody else.
    #[error("an alias that names a caller takes direct invocations only")]
    Impersonation,
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
    /// A principal or a direct invocation without an entry is allowed what IAM allowed it, which is everything: IAM
    /// has decided before this function ran.
    ///
    /// # Errors
    /// [`Unauthenticated`]: no key, an unknown one, or a route whose authorizer did not run.
    pub fn authenticate(&self, identity: Identity<'_>) -> Result<Caller, Unauthenticated> {
        match identity {
            Identity::Bearer(header) => self.by_key(bearer(header.ok_or(Unauthenticated)?).ok_or(Unauthenticated)?),
            Identity::Principal(arn) => {
                let arn = arn.filter(|arn| !arn.is_empty()).ok_or(Unauthenticated)?;
                let entry = self.entries.iter().find(|e| e.principals.iter().any(|p| p.matches(arn)));
                Ok(entry.map_or_else(|| Caller::trusted_by_iam(arn), Entry::caller))
            }
            Identity::Invocation(arn) => {
                let entry = self.by_alias(arn);
                Ok(entry.map_or_else(|| Caller::trusted_by_iam(alias(arn).unwrap_or("invocation")), Entry::caller))
            }
        }
    }

    /// Whether an HTTP event may have come from API Gateway. Who may invoke a caller's alias could otherwise write
    /// such an event with another's principal in it.
    ///
    /// # Errors
    /// [`Forbidden::Impersonation`].
    pub fn expect_gateway(&self, invoked_arn: &str) -> Result<(), Forbidden> {
        self.by_alias(invoked_arn).map_or(Ok(()), |_| Err(Forbidden::Impersonation))
    }

    fn by_alias(&self, arn: &str) -> Option<&Entry> {
        let alias = alias(arn)?;
        self.entries.iter().find(|e| e.aliases.iter().any(|a| a == alias))
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

/// The alias in `arn:aws:lambda:REGION:ACCOUNT:function:NAME:ALIAS`.
fn alias(arn: &str) -> Option<&str> {
    let qualifier = arn.split(':').nth(7)?;
    secret::names_an_alias(qualifier).then_some(qualifier)
}

impl Entry {
    fn caller(&self) -> Caller {
        Caller { id: self.id.clone(), may: self.may.clone(), requests_per_10s: self.requests_per_10s }
    }
}

impl Caller {
    fn trusted_by_iam(id: &str) -> Self {
        Self { id: id.into(), may: Permissions::default(), requests_per_10s: None }
    }

    /// The entry's id; for a caller without an entry its ARN or alias. Fit for a log.
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
        if path.readings().iter().any(|segments| is_token_endpoint(segments)) {
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
}

/// Routers differ in case and in what they make of `;parameters`, and some decode a path before they look for its end
/// at `?` or `#`: whatever could be read as `/oauth` is.
fn is_token_endpoint(segments: &[String]) -> bool {
    let Some(first) = segments.first() else { return false };
    first.split([';', '?', '#']).next().unwrap_or_default().trim().eq_ignore_ascii_case("oauth")
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
        let key = format!("bearer  {KEY} ");
        let cases = [
            ("a key", Identity::Bearer(Some(&key)), Some("billing")),
            ("no key", Identity::Bearer(None), None),
            ("an empty key", Identity::Bearer(Some("Bearer ")), None),
            ("another scheme", Identity::Bearer(Some("Basic a-caller-key")), None),
            ("the bare key", Identity::Bearer(Some(KEY)), None),
            ("a wrong key", Identity::Bearer(Some("Bearer a-caller-keY")), None),
            ("a principal", Identity::Principal(Some("arn:aws:sts::1:assumed-role/billing/s")), Some("billing")),
            ("another principal", Identity::Principal(Some("arn:aws:iam::1:user/x")), Some("arn:aws:iam::1:user/x")),
            ("no principal", Identity::Principal(None), None),
            ("an empty principal", Identity::Principal(Some("")), None),
            ("an alias", Identity::Invocation(&with_alias), Some("billing")),
            ("another alias", Identity::Invocation(&other), Some("other")),
            ("$LATEST", Identity::Invocation(&latest), Some("invocation")),
            ("a version", Identity::Invocation(&version), Some("invocation")),
            ("no qualifier", Identity::Invocation(&plain), Some("invocation")),
            ("no ARN at all", Identity::Invocation("nonsense"), Some("invocation")),
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
            let caller = callers().authenticate(Identity::Invocation("")).expect("IAM decided");
            let refused = caller.authorize(request(r#"{"location":"L1"}"#, Method::POST, path)).err();
            assert_eq!(refused, Some(Forbidden::TokenEndpoint), "{path}");
        }
        let caller = callers().authenticate(Identity::Invocation("")).expect("IAM decided");
        let path = "/social-media-posting/oauth/google/start";
        assert!(caller.authorize(request(r#"{"location":"L1"}"#, Method::GET, path)).is_ok());
    }

    #[test]
    fn a_callers_alias_takes_no_http_events() {
        let arn = "arn:aws:lambda:us-east-1:1:function:relay";
        assert_eq!(callers().expect_gateway(&format!("{arn}:billing")), Err(Forbidden::Impersonation));
        assert_eq!(callers().expect_gateway(&format!("{arn}:live")), Ok(()));
        assert_eq!(callers().expect_gateway(arn), Ok(()));
    }
}
