//! A token pair in the clear, between the token endpoint and the table.

use std::time::Duration;

use crate::domain::access::Access;
use crate::domain::clock::Millis;
use crate::domain::digest::sha256;
use crate::domain::grant::Grant;
use crate::domain::installation::{SealedAccess, SealedPair, installation_key};
use crate::domain::redacted::Redacted;
use crate::domain::resource::Resource;
use crate::domain::status::TokenVersion;
use crate::seal::{Field, Place, Sealer};

/// The role of a pair in an installation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PairRole {
    /// The pair in use.
    Current,
    /// A standby pair: granted, and not in use.
    Standby,
}

impl PairRole {
    /// The field of the access token.
    pub fn access(self) -> Field {
        match self {
            Self::Current => Field::Access,
            Self::Standby => Field::StandbyAccess,
        }
    }

    /// The field of the refresh token.
    pub fn refresh(self) -> Field {
        match self {
            Self::Current => Field::Refresh,
            Self::Standby => Field::StandbyRefresh,
        }
    }
}

/// A token pair in the clear.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The access token.
    pub access: Redacted,
    /// The refresh token.
    pub refresh: Option<Redacted>,
    /// The time of the grant.
    pub issued_at: Millis,
    /// The end of the access token's life.
    pub expires_at: Millis,
}

impl Pair {
    /// The pair of a grant that arrived at `now`. If the grant has no refresh token, the presented one stays valid.
    pub fn granted(grant: &Grant, presented: Option<&Redacted>, now: Millis) -> Self {
        Self {
            access: grant.access.clone(),
            refresh: grant.refresh.as_ref().or(presented).cloned(),
            issued_at: now,
            expires_at: now + grant.expires_in,
        }
    }

    /// A pair that another system has received before `now`. Without a time of the grant, the time is the usual life of an
    /// access token before `expires_at`. Without both, the age of the pair is not known ([`Millis`] 0). Without an access
    /// token and its expiry, the access token counts as expired, and the schedule renews the pair soon.
    pub fn received(
        refresh: Redacted,
        access: Option<Redacted>,
        expires_at: Option<Millis>,
        issued_at: Option<Millis>,
        now: Millis,
    ) -> Self {
        /// The usual life of an access token.
        const LIFE: Duration = Duration::from_hours(24);
        // The other system's clock may be ahead.
        let issued_at = issued_at.or(expires_at.map(|at| at - LIFE)).map_or(Millis(0), |at| at.min(now));
        let (access, expires_at) = access.zip(expires_at).unwrap_or_else(|| (String::new().into(), issued_at));
        Self { access, refresh: Some(refresh), issued_at, expires_at }
    }

    /// The SHA-256 of the refresh token, in hexadecimal.
    pub fn refresh_sha256(&self) -> Option<String> {
        self.refresh.as_ref().map(|token| sha256(token.expose().as_bytes()))
    }

    /// Returns true if the refresh token is that of `other`.
    pub fn has_refresh_token_of(&self, other: &Self) -> bool {
        matches!((&self.refresh, &other.refresh), (Some(one), Some(other)) if one.expose() == other.expose())
    }

    /// Seals both tokens for their place.
    pub fn seal(&self, sealer: &Sealer, resource: &Resource, version: TokenVersion, slot: PairRole) -> SealedPair {
        let item = installation_key(resource);
        let seal = |field, token: &Redacted| sealer.seal(place(&item, version, field), token.expose());
        SealedPair {
            access: SealedAccess {
                token: seal(slot.access(), &self.access),
                issued_at: self.issued_at,
                expires_at: self.expires_at,
            },
            refresh: self.refresh.as_ref().map(|token| seal(slot.refresh(), token)),
        }
    }

    /// The access token for readers, once the pair is stored under `version`.
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

/// The place of one field of an installation's item.
pub fn place(item: &str, version: TokenVersion, field: Field) -> Place<'_> {
    Place { item, epoch: version.epoch, generation: version.generation, field }
}
