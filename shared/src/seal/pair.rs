//! A token pair in the clear, for the moment between the token endpoint and the table.

use crate::domain::access::Access;
use crate::domain::clock::Millis;
use crate::domain::grant::Grant;
use crate::domain::installation::SealedPair;
use crate::domain::installation::installation_key;
use crate::domain::redacted::Redacted;
use crate::domain::resource::Resource;
use crate::domain::status::TokenVersion;
use crate::seal::{Field, Place, Sealer};

/// Where in an item a pair stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// The pair in use.
    Current,
    /// A standby pair: granted, and not in use.
    Alternate,
}

impl Slot {
    /// The access token's field.
    #[must_use]
    pub fn access(self) -> Field {
        match self {
            Self::Current => Field::Access,
            Self::Alternate => Field::AlternateAccess,
        }
    }

    /// The refresh token's field.
    #[must_use]
    pub fn refresh(self) -> Field {
        match self {
            Self::Current => Field::Refresh,
            Self::Alternate => Field::AlternateRefresh,
        }
    }
}

/// Two tokens in the clear.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The access token.
    pub access: Redacted,
    /// The refresh token.
    pub refresh: Option<Redacted>,
    /// When it was granted.
    pub issued_at: Millis,
    /// When the access token ends.
    pub expires_at: Millis,
}

impl Pair {
    /// The pair of a grant that came at `now`. Where it brings no refresh token the one that was presented stays.
    #[must_use]
    pub fn granted(grant: &Grant, presented: Option<&Redacted>, now: Millis) -> Self {
        Self {
            access: grant.access.clone(),
            refresh: grant.refresh.as_ref().or(presented).cloned(),
            issued_at: now,
            expires_at: now + grant.expires_in,
        }
    }

    /// The pair sealed for its place.
    #[must_use]
    pub fn seal(&self, sealer: &Sealer, resource: &Resource, version: TokenVersion, slot: Slot) -> SealedPair {
        let item = installation_key(resource);
        let seal = |field, token: &Redacted| sealer.seal(place(&item, version, field), token.expose());
        SealedPair {
            access: seal(slot.access(), &self.access),
            refresh: self.refresh.as_ref().map(|token| seal(slot.refresh(), token)),
            access_issued_at: self.issued_at,
            access_expires_at: self.expires_at,
        }
    }

    /// What a reader gets of it once it is stored under `version`.
    #[must_use]
    pub fn to_access(&self, version: TokenVersion) -> Access {
        Access {
            token: (&self.access).into(),
            issued_at: self.issued_at,
            expires_at: self.expires_at,
            epoch: version.epoch,
            generation: version.generation,
            doubted: false,
        }
    }
}

/// The place of a field of an installation.
#[must_use]
pub fn place(item: &str, version: TokenVersion, field: Field) -> Place<'_> {
    Place { item, epoch: version.epoch, generation: version.generation, field }
}
