//! The permissions of a caller, as its entry in the secret lists them.

use http::Method;

use super::pattern::{PathPattern, Wildcard};
use crate::domain::resource::{Kind, Resource};
use crate::request::Request;
use crate::request::mcp::{self, ToolCalls};
use crate::request::path::Path;

/// The reason why a known caller may not send a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Forbidden {
    /// The entry does not allow the location or company.
    #[error("this caller may not act for this location or company")]
    Resource,
    /// The entry does not allow the method.
    #[error("this caller may not use this method")]
    Method,
    /// The entry does not allow the path.
    #[error("this caller may not use this path")]
    Path,
    /// The request names another location or company than its target.
    #[error("the request names another location or company than the one it is for")]
    OtherResource,
    /// The path is the platform's token endpoint or below the same first segment. No caller may use it.
    #[error("/oauth of the platform is never relayed")]
    TokenEndpoint,
    /// The entry does not allow this tool of the platform's MCP endpoint.
    #[error("this caller may not call this tool")]
    Tool,
    /// The entry limits the tools, and the called tools cannot be found in the body.
    #[error("the body is not one JSON-RPC message or a list of them, so the tools that it calls are not known")]
    UnreadableTool,
}

/// The lists of an entry. `None` allows everything, an empty list allows nothing.
#[derive(Clone, Debug, Default)]
pub(super) struct Permissions {
    pub(super) resources: Option<Vec<ResourcePattern>>,
    pub(super) methods: Option<Vec<Method>>,
    pub(super) paths: Option<Vec<PathPattern>>,
    pub(super) tools: Option<Vec<Wildcard>>,
}

#[derive(Clone, Debug)]
pub(super) enum ResourcePattern {
    /// All resources of a kind.
    Every(Kind),
    One(Resource),
}

impl ResourcePattern {
    fn matches(&self, resource: &Resource) -> bool {
        match self {
            Self::Every(kind) => resource.kind() == *kind,
            Self::One(one) => one == resource,
        }
    }

    fn is_of_companies(&self) -> bool {
        match self {
            Self::Every(kind) => *kind == Kind::Company,
            Self::One(one) => one.kind() == Kind::Company,
        }
    }
}

impl Permissions {
    /// True if some pattern of a resource passes, or if the entry does not limit resources.
    fn some_resource(&self, passes: impl Fn(&ResourcePattern) -> bool) -> Result<(), Forbidden> {
        let allowed = self.resources.as_ref().is_none_or(|patterns| patterns.iter().any(passes));
        if allowed { Ok(()) } else { Err(Forbidden::Resource) }
    }

    pub(super) fn act_for(&self, resource: &Resource) -> Result<(), Forbidden> {
        self.some_resource(|pattern| pattern.matches(resource))
    }

    pub(super) fn act_for_some_company(&self) -> Result<(), Forbidden> {
        self.some_resource(ResourcePattern::is_of_companies)
    }

    pub(super) fn act_for_all_companies(&self) -> Result<(), Forbidden> {
        self.some_resource(|pattern| matches!(pattern, ResourcePattern::Every(Kind::Company)))
    }

    pub(super) fn send(&self, method: &Method, path: &Path) -> Result<(), Forbidden> {
        if path.may_begin_with("oauth") {
            return Err(Forbidden::TokenEndpoint);
        }
        if self.methods.as_ref().is_some_and(|methods| !methods.contains(method)) {
            return Err(Forbidden::Method);
        }
        let Some(patterns) = &self.paths else { return Ok(()) };
        // The path must be allowed in both ways in which the platform could read it.
        let allowed = path.readings().iter().all(|segments| patterns.iter().any(|p| p.matches(segments)));
        if allowed { Ok(()) } else { Err(Forbidden::Path) }
    }

    /// Checks the tools that a request to the MCP endpoint calls, if the entry limits tools.
    pub(super) fn call_tools(&self, request: &Request) -> Result<(), Forbidden> {
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
