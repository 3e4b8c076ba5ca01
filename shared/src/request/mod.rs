//! A caller's request to the platform: path, query, headers, body, and the ids in them. Pure.

pub mod idempotency_key;
pub mod mcp;
pub mod path;
pub mod target_ids;

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method};

use self::idempotency_key::IdempotencyKey;
use self::path::{Path, Query};
use crate::domain::limits::Endpoint;
use crate::domain::resource::Resource;

/// The methods that the relay offers.
pub(crate) const METHODS: [Method; 7] =
    [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];

/// A request to the platform. Its parts are well-formed; its sender is not yet authorized. `T` is the target resource,
/// or `()` as long as the target is unknown ([`UntargetedRequest`]).
#[derive(Clone, Debug)]
pub struct Request<T = Resource> {
    /// The target resource. It decides which token and which limits apply.
    pub resource: T,
    /// The method, one of those that the relay offers.
    pub method: Method,
    /// The path at the platform.
    pub path: Path,
    /// The query.
    pub query: Query,
    /// All headers of the caller. The allow-list is applied when the request is sent.
    pub headers: HeaderMap,
    /// The body as the caller sent it.
    pub body: Bytes,
    /// The longest time that the caller waits for a permit.
    pub wait: Duration,
    /// The caller's idempotency key.
    pub idempotency_key: Option<IdempotencyKey>,
}

/// A request whose target resource is still to be found in its headers, path, query and body.
pub type UntargetedRequest = Request<()>;

impl Request {
    /// The endpoint of the platform. Some endpoints have limits of their own.
    pub fn endpoint(&self) -> Endpoint<'_> {
        Endpoint::of(&self.resource, self.path.as_str())
    }
}

impl<T> Request<T> {
    /// A request without query, headers or body.
    pub fn new(resource: T, method: Method, path: Path) -> Self {
        Self {
            resource,
            method,
            path,
            query: Query::default(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
            wait: Duration::ZERO,
            idempotency_key: None,
        }
    }
}

impl UntargetedRequest {
    /// Adds the target resource.
    pub fn to(self, resource: Resource) -> Request {
        let Self { resource: (), method, path, query, headers, body, wait, idempotency_key } = self;
        Request { resource, method, path, query, headers, body, wait, idempotency_key }
    }
}

/// The method of this name. `None` if the relay does not offer it.
pub fn method(name: &str) -> Option<Method> {
    METHODS.into_iter().find(|method| method.as_str() == name)
}
