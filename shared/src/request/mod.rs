//! What a caller wants to be sent.

pub mod mcp;
pub mod path;
pub mod target_ids;

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method};

use self::path::{Path, Query};
use crate::domain::limits::Endpoint;
use crate::domain::resource::Resource;

/// The methods that are relayed at all.
pub(crate) const METHODS: [Method; 7] =
    [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];

/// One request for the platform, in the caller's terms. Its parts are checked, its sender is not.
#[derive(Clone, Debug)]
pub struct Request {
    /// For whom: this decides token and quota.
    pub resource: Resource,
    /// One of those that are relayed.
    pub method: Method,
    /// Where to.
    pub path: Path,
    /// With which query.
    pub query: Query,
    /// All headers of the caller; the allow-list comes later.
    pub headers: HeaderMap,
    /// The body, untouched; nothing if it is empty.
    pub body: Bytes,
    /// How long the caller would wait for a permit.
    pub wait: Duration,
}

impl Request {
    /// A request without query, headers or body.
    #[must_use]
    pub fn new(resource: Resource, method: Method, path: Path) -> Self {
        Self {
            resource,
            method,
            path,
            query: Query::default(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
            wait: Duration::ZERO,
        }
    }

    /// The platform's endpoint that it goes to, whose limit may be its own.
    #[must_use]
    pub fn endpoint(&self) -> Endpoint<'_> {
        Endpoint::of(&self.resource, self.path.as_str())
    }
}

/// The same without saying for whom.
#[derive(Clone, Debug)]
pub struct Unaddressed {
    /// One of those that are relayed.
    pub method: Method,
    /// Where to.
    pub path: Path,
    /// With which query.
    pub query: Query,
    /// All headers of the caller.
    pub headers: HeaderMap,
    /// The body, untouched.
    pub body: Bytes,
    /// How long the caller would wait for a permit.
    pub wait: Duration,
}

impl Unaddressed {
    /// For this resource.
    #[must_use]
    pub fn to(self, resource: Resource) -> Request {
        let Self { method, path, query, headers, body, wait } = self;
        Request { resource, method, path, query, headers, body, wait }
    }
}

/// The method of this name, if it is one that is relayed.
#[must_use]
pub fn method(name: &str) -> Option<Method> {
    METHODS.into_iter().find(|method| method.as_str() == name)
}
