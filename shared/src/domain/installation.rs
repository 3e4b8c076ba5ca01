//! An installation of the app, with its token pairs as they are stored.

use std::fmt;

use super::clock::Millis;
use super::event::Event;
use super::resource::{Kind, Resource};
use super::status::{LeaseOwner, Status, TokenVersion};

/// Two sealed tokens and the life of the access token. `Debug` shows their lengths only.
#[derive(Clone, PartialEq, Eq)]
pub struct SealedPair {
    /// The sealed access token.
    pub access: Vec<u8>,
    /// The sealed refresh token.
    pub refresh: Option<Vec<u8>>,
    /// When the platform granted the access token.
    pub access_issued_at: Millis,
    /// When the access token ends.
    pub access_expires_at: Millis,
}

impl fmt::Debug for SealedPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (access, refresh) = (self.access.len(), self.refresh.as_ref().map_or(0, Vec::len));
        write!(f, "SealedPair({access} and {refresh} bytes, until {})", self.access_expires_at)
    }
}

/// A pair that was granted and did not become the current one. It may be the live one, and is tried before the customer is
/// asked to install again. It stays until then, also when another current pair is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StandbyPair {
    /// The attempt that was granted it.
    pub owner: LeaseOwner,
    /// The generation under which it is sealed: that of the pair which was current when this one came.
    pub generation: u64,
    /// The generation whose token was presented for it.
    pub granted_from: u64,
    /// The pair.
    pub pair: SealedPair,
}

/// An installation as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installation {
    /// The location or company.
    pub resource: Resource,
    /// Its version.
    pub version: TokenVersion,
    /// Its state.
    pub state: State,
    /// Where its access token comes from.
    pub source: Source,
    /// The current pair; a revoked installation has none, and the pair of a minted one has no refresh token.
    pub pair: Option<SealedPair>,
    /// The generation whose token was presented for the current pair.
    pub granted_from: u64,
    /// The attempt that wrote the current pair.
    pub committed_by: Option<LeaseOwner>,
    /// When its refresh token is tried.
    pub schedule: Schedule,
    /// What the platform has said about the current token.
    pub findings: Findings,
    /// When the exchange of its code began.
    pub installed_at: Millis,
    /// The company, where it is known.
    pub company: Option<String>,
    /// The public base URL of the deployment's pages, for a link to install again.
    pub home: Option<String>,
    /// The state without a token that was published last, if no other event was published since.
    pub published: Option<Status>,
    /// Events that are not known to have been published (transactional outbox).
    pub outbox: Vec<Event>,
}

/// A state with its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// [`Status::Active`].
    Active,
    /// [`Status::Refreshing`]: a lease is held, or was held by a process that died.
    Refreshing(Lease),
    /// [`Status::Uncertain`].
    Uncertain,
    /// [`Status::Suspended`].
    Suspended,
    /// [`Status::Blocked`].
    Blocked,
    /// [`Status::NeedsReauthorization`].
    NeedsReauthorization,
    /// [`Status::Revoked`].
    Revoked {
        /// When it was uninstalled, as the platform says.
        at: Millis,
    },
}

impl State {
    /// Its name.
    #[must_use]
    pub fn status(&self) -> Status {
        match self {
            Self::Active => Status::Active,
            Self::Refreshing(_) => Status::Refreshing,
            Self::Uncertain => Status::Uncertain,
            Self::Suspended => Status::Suspended,
            Self::Blocked => Status::Blocked,
            Self::NeedsReauthorization => Status::NeedsReauthorization,
            Self::Revoked { .. } => Status::Revoked,
        }
    }
}

/// The lease of an installation: its owner alone may present the refresh token, or mint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The attempt that holds it.
    pub owner: LeaseOwner,
    /// When it ends.
    pub ends_at: Millis,
    /// The state that the claim has found.
    pub claimed_from: Status,
}

/// Where an access token comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// From a grant of the installation's own, which is renewed by a refresh token.
    Own {
        /// Other pairs that may be the live one, in the order in which they came.
        standby: Vec<StandbyPair>,
    },
    /// It is minted from the token of the location's company.
    Minted(Minted),
}

/// The data of a location whose token is minted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Minted {
    /// The epoch of the company's installation that the stored token comes from.
    pub company_epoch: u64,
    /// No company has the app there, as the platform said. The companies are asked again after this.
    pub absent_until: Option<Millis>,
    /// When the newest company was listed that was asked then. A newer one may have the app there after all.
    pub absent_newest: Option<Millis>,
    /// Since when the schedule asks the companies about this location.
    pub search_since: Option<Millis>,
    /// Only a caller has ever named this location: the item is a placeholder, so that the location can be claimed.
    pub is_placeholder: bool,
}

/// When the token of an installation is tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Schedule {
    /// When the schedule looks at it next.
    pub due_at: Option<Millis>,
    /// The token is not tried again before this, because the platform has asked for it.
    pub retry_at: Option<Millis>,
    /// When it was last tried.
    pub tried_at: Option<Millis>,
    /// Number of failures in a row.
    pub failures: u32,
    /// When a refresh was last forced by a refused access token.
    pub forced_at: Option<Millis>,
}

/// Answers of the platform about the current token. Answers about an older one do not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// The token came of a renewal whose reason was a 401 that nobody has classified.
    pub is_doubted: bool,
    /// The refresh token was refused, and no mark could be made.
    pub was_refused: bool,
    /// The platform knows no such location or company.
    pub gone: Option<Gone>,
}

/// The platform knows no such location or company, as it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone {
    /// When it said so first.
    pub since: Millis,
    /// How often it has said so.
    pub tries: u32,
}

impl Installation {
    /// The key of the item.
    #[must_use]
    pub fn key(&self) -> String {
        installation_key(&self.resource)
    }

    /// The name of its state.
    #[must_use]
    pub fn status(&self) -> Status {
        self.state.status()
    }

    /// The lease. Its holder may have died; the lease then ends by itself.
    #[must_use]
    pub fn lease(&self) -> Option<&Lease> {
        match &self.state {
            State::Refreshing(lease) => Some(lease),
            _ => None,
        }
    }

    /// The state that the claim of this lease has found; of an installation without a lease, its state.
    #[must_use]
    pub fn claimed_from(&self) -> Status {
        self.lease().map_or_else(|| self.status(), |lease| lease.claimed_from)
    }

    /// When it was uninstalled.
    #[must_use]
    pub fn revoked_at(&self) -> Option<Millis> {
        match self.state {
            State::Revoked { at } => Some(at),
            _ => None,
        }
    }

    /// Its data as a minted location; `None` if it has a grant of its own.
    #[must_use]
    pub fn minted(&self) -> Option<Minted> {
        match self.source {
            Source::Minted(minted) => Some(minted),
            Source::Own { .. } => None,
        }
    }

    /// The standby pairs.
    #[must_use]
    pub fn standby(&self) -> &[StandbyPair] {
        match &self.source {
            Source::Own { standby } => standby,
            Source::Minted(_) => &[],
        }
    }

    /// Whether `owner` has written the current pair.
    #[must_use]
    pub fn is_committed_by(&self, owner: &LeaseOwner) -> bool {
        self.committed_by.as_ref() == Some(owner)
    }

    /// Where a human installs again, if the deployment's address is known.
    #[must_use]
    pub fn reinstall_url(&self) -> Option<String> {
        self.home.as_ref().map(|home| format!("{}/oauth/install", home.trim_end_matches('/')))
    }
}

/// The key of a resource's installation.
#[must_use]
pub fn installation_key(resource: &Resource) -> String {
    format!("installation#{}#{}", resource.kind().as_str(), resource.id())
}

/// The resource whose installation has this key.
pub(crate) fn resource_of(key: &str) -> Option<Resource> {
    let (kind, id) = key.strip_prefix("installation#")?.split_once('#')?;
    let kind = match kind {
        "location" => Kind::Location,
        "company" => Kind::Company,
        _ => return None,
    };
    Resource::new(kind, id).ok()
}
