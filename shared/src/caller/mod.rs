//! Authentication and authorization of callers, in two steps. Pure.
//!
//! [`Callers::authenticate`] gives a [`Caller`]. [`Caller::authorize`] takes a request and gives it back inside an
//! [`Authorized`]. Nothing else can make these types, and the relay accepts an [`Authorized`] only. So every request that
//! is sent was compared with its caller's entry.

pub mod edit;
mod pattern;
mod permissions;
mod secret;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};

pub use self::permissions::Forbidden;

use self::pattern::ArnPattern;
use self::permissions::Permissions;
use crate::domain::qualifier::Qualifier;
use crate::domain::resource::Resource;
use crate::request::Request;
use crate::request::target_ids::{RequestParts, TargetIds};

/// All callers of the secret, made by [`Callers::parse`].
#[derive(Debug)]
pub struct Callers {
    entries: Vec<Entry>,
    unlisted: Unlisted,
}

/// The rule for an alias, a principal or an unqualified invocation without an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unlisted {
    /// It is refused.
    Refuse,
    /// It may do everything, because the secret says so.
    Allow,
}

/// The number of hex digits of a key's SHA-256 that name the key in logs and lists.
pub const KEY_NAME_DIGITS: usize = 12;

struct Entry {
    id: Arc<str>,
    keys: Vec<Key>,
    aliases: Vec<String>,
    principals: Vec<ArnPattern>,
    may: Permissions,
    requests_per_10s: Option<u32>,
    queue: bool,
}

struct Key {
    sha256: [u8; 32],
    /// The first [`KEY_NAME_DIGITS`] digits.
    name: Arc<str>,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry").field("id", &self.id).field("may", &self.may).finish_non_exhaustive()
    }
}

/// The identity that a request shows.
#[derive(Clone, Copy, Debug)]
pub enum Identity<'a> {
    /// The value of the `Authorization` header, if there is one.
    Bearer(Option<&'a str>),
    /// The ARN that API Gateway's `AWS_IAM` authorizer found, if the authorizer ran.
    Principal(Option<&'a str>),
    /// The ARN of the function that was invoked directly.
    Invocation(&'a str),
}

/// The caller is unknown. The error does not say which part of the identity was wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the caller is not known")]
pub struct Unauthenticated;

/// A known caller may not do something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason} (caller {caller}, {resource})")]
pub struct Denied {
    /// The reason.
    pub reason: Forbidden,
    caller: Arc<str>,
    resource: Resource,
}

/// A caller that was authenticated.
#[derive(Clone, Debug)]
pub struct Caller {
    id: Arc<str>,
    key: Option<Arc<str>>,
    may: Permissions,
    requests_per_10s: Option<u32>,
}

/// A request that its caller may send.
#[derive(Debug)]
pub struct Authorized {
    caller: Caller,
    request: Request,
}

/// The permission to read the status of a resource.
#[derive(Debug)]
pub struct StatusAccess(Resource);

impl Callers {
    /// The number of entries.
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    /// Authenticates the sender of a request.
    ///
    /// IAM decides only if a principal or an invoker may reach the relay. Without an entry in the secret it is refused,
    /// unless the secret says `"unlisted": "allow"`.
    ///
    /// # Errors
    /// There is no key or an unknown one, there is no entry, or the route's authorizer did not run.
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

    /// The caller that a message of the queue names. The sender of a message needs the queue's permission, and then may
    /// name every entry with `"queue": true`. The secret's rule for the unlisted does not apply.
    ///
    /// # Errors
    /// There is no such entry.
    pub fn of_queue(&self, id: &str) -> Result<Caller, Unauthenticated> {
        let entry = self.entries.iter().find(|entry| entry.queue && *entry.id == *id);
        entry.map(Entry::caller).ok_or(Unauthenticated)
    }

    /// The caller of an entry. Without an entry, the secret's rule for the unlisted decides.
    fn listed(&self, entry: Option<&Entry>, known_by: &str) -> Result<Caller, Unauthenticated> {
        match (entry, self.unlisted) {
            (Some(entry), _) => Ok(entry.caller()),
            (None, Unlisted::Allow) => Ok(Caller::unlisted(known_by)),
            (None, Unlisted::Refuse) => Err(Unauthenticated),
        }
    }

    /// Compares with every key of every caller, each in constant time, so that the duration reveals nothing.
    fn by_key(&self, key: &str) -> Result<Caller, Unauthenticated> {
        let shown = digest(&SHA256, key.as_bytes());
        let mut found = None;
        for (entry, key) in self.entries.iter().flat_map(|e| e.keys.iter().map(move |key| (e, key))) {
            if verify_slices_are_equal(shown.as_ref(), &key.sha256).is_ok() {
                found = Some((entry, key));
            }
        }
        let (entry, key) = found.ok_or(Unauthenticated)?;
        Ok(Caller { key: Some(key.name.clone()), ..entry.caller() })
    }
}

/// The key of `Authorization: Bearer <key>` (RFC 6750 section 2.1; the scheme's case is ignored).
fn bearer(header: &str) -> Option<&str> {
    let (scheme, key) = header.trim().split_once(' ')?;
    let key = key.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !key.is_empty()).then_some(key)
}

impl Entry {
    fn caller(&self) -> Caller {
        Caller { id: self.id.clone(), key: None, may: self.may.clone(), requests_per_10s: self.requests_per_10s }
    }
}

impl Caller {
    /// A caller without an entry. No entry's id has parentheses, so no entry has this id.
    fn unlisted(known_by: &str) -> Self {
        let id = format!("(unlisted) {known_by}").into();
        Self { id, key: None, may: Permissions::default(), requests_per_10s: None }
    }

    /// The entry's id. For a caller without an entry, its ARN or alias after `(unlisted)`. It may be logged.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The name of the key by which the caller was authenticated: the first digits of its SHA-256. It may be logged.
    pub fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    /// The most requests in any 10 s for each resource, if the entry has such a limit.
    pub fn requests_per_10s(&self) -> Option<u32> {
        self.requests_per_10s
    }

    /// Authorizes one request.
    pub fn authorize(self, request: Request) -> Result<Authorized, Denied> {
        self.may_send(&request).map_err(|reason| self.denied(reason, &request.resource))?;
        Ok(Authorized { caller: self, request })
    }

    fn may_send(&self, request: &Request) -> Result<(), Forbidden> {
        self.may.act_for(&request.resource)?;
        self.may.send(&request.method, &request.path)?;
        self.may.call_tools(request)?;
        let ids = [TargetIds::in_headers(&request.headers), TargetIds::elsewhere(&RequestParts::from(request))];
        let conflict = ids.iter().any(|ids| ids.conflict_with(&request.resource));
        if conflict { Err(Forbidden::OtherResource) } else { Ok(()) }
    }

    /// Authorizes a look-up of a location's company. A caller that may act for no company has no use for the answer.
    pub fn authorize_company_lookup(&self, location: &Resource) -> Result<(), Denied> {
        self.may.act_for_some_company().map_err(|reason| self.denied(reason, location))
    }

    /// Authorizes the answer that a location's company is unknown. The caller must be allowed to act for the location, or
    /// for all companies.
    pub fn authorize_company_unknown(&self, location: &Resource) -> Result<(), Denied> {
        let allowed = self.may.act_for_all_companies().or_else(|_| self.may.act_for(location));
        allowed.map_err(|reason| self.denied(reason, location))
    }

    /// Authorizes a look at a resource's status. The caller must be allowed to act for the resource.
    pub fn authorize_status(&self, resource: Resource) -> Result<StatusAccess, Denied> {
        self.may.act_for(&resource).map_err(|reason| self.denied(reason, &resource))?;
        Ok(StatusAccess(resource))
    }

    fn denied(&self, reason: Forbidden, resource: &Resource) -> Denied {
        Denied { reason, caller: self.id.clone(), resource: resource.clone() }
    }
}

impl Authorized {
    /// The sender.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// The request.
    pub fn request(&self) -> &Request {
        &self.request
    }
}

impl StatusAccess {
    /// The resource whose status may be read.
    pub fn resource(&self) -> &Resource {
        &self.0
    }
}
