//! A resource: the location or company that a token, a quota or a permission belongs to.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The kind of a [`Resource`], which is `userType` at the platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A sub-account.
    Location,
    /// An agency.
    Company,
}

impl Kind {
    /// `location` or `company`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Location => "location",
            Self::Company => "company",
        }
    }
}

/// A location or a company, by its id at the platform. Written `location:ID`, in JSON `{"location":"ID"}`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "Wire", into = "Wire")]
pub struct Resource {
    kind: Kind,
    id: Arc<str>,
}

/// The error for an id that is empty, is too long, or has a character that no id of the platform has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a resource id is 1 to 64 characters of A-Z a-z 0-9 _ -")]
pub struct InvalidId;

impl Resource {
    /// # Errors
    /// [`InvalidId`].
    pub fn new(kind: Kind, id: &str) -> Result<Self, InvalidId> {
        let good =
            (1..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        if good { Ok(Self { kind, id: id.into() }) } else { Err(InvalidId) }
    }

    /// # Errors
    /// [`InvalidId`].
    pub fn location(id: &str) -> Result<Self, InvalidId> {
        Self::new(Kind::Location, id)
    }

    /// # Errors
    /// [`InvalidId`].
    pub fn company(id: &str) -> Result<Self, InvalidId> {
        Self::new(Kind::Company, id)
    }

    /// Location or company.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The id at the platform.
    pub fn id(&self) -> &str {
        &self.id
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind.as_str(), self.id)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
enum Wire {
    Location(String),
    Company(String),
}

impl TryFrom<Wire> for Resource {
    type Error = InvalidId;
    fn try_from(wire: Wire) -> Result<Self, InvalidId> {
        match wire {
            Wire::Location(id) => Self::location(&id),
            Wire::Company(id) => Self::company(&id),
        }
    }
}

impl From<Resource> for Wire {
    fn from(resource: Resource) -> Self {
        let id = resource.id.to_string();
        match resource.kind {
            Kind::Location => Self::Location(id),
            Kind::Company => Self::Company(id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_names_the_kind_and_refuses_what_is_no_id() -> Result<(), Box<dyn std::error::Error>> {
        let one = Resource::location("ve9EPM428h8vShlRW1KT")?;
        assert_eq!(serde_json::to_string(&one)?, r#"{"location":"ve9EPM428h8vShlRW1KT"}"#);
        assert_eq!(serde_json::from_str::<Resource>(r#"{"location":"ve9EPM428h8vShlRW1KT"}"#)?, one);
        for bad in
            [r#"{"location":""}"#, r#"{"location":"a/b"}"#, r#"{"location":"a#b"}"#, r#"{"team":"a"}"#, r#""a""#, "{}"]
        {
            assert!(serde_json::from_str::<Resource>(bad).is_err(), "{bad}");
        }
        Ok(())
    }
}
