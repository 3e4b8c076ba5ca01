//! An installation of the app: what is known of it, and its token pairs as they are stored.

use std::fmt;

use super::clock::Millis;
use super::event::Event;
use super::resource::{Kind, Resource};
use super::status::{LeaseOwner, Status, TokenVersion};

/// Two sealed tokens and the life of the access token. `Debug` tells their lengths only.
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

/// A pair that was granted and did not become the current one. It may be the live one, and is tried before anybody is
/// asked to install again. It stays until then, whatever is stored as the current pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StandbyPair {
    /// The attempt that was granted it.
    pub attempt: String,
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
    /// Whose it is.
    pub resource: Resource,
    /// Its state.
    pub status: Status,
    /// Its version.
    pub version: TokenVersion,
    /// The current pair; a revoked installation has none.
    pub pair: Option<SealedPair>,
    /// The generation whose token was presented for the current pair.
    pub granted_from: u64,
    /// Other pairs that may be the live one, in the order in which they came.
    pub standby: Vec<StandbyPair>,
    /// Who holds or held the lease.
    pub attempt: Option<String>,
    /// When the lease ends.
    pub lease_ends_at: Option<Millis>,
    /// The attempt that wrote the current pair.
    pub committed_by: Option<String>,
    /// When the exchange of its code was begun.
    pub installed_at: Millis,
    /// When it was uninstalled, as the platform says.
    pub revoked_at: Option<Millis>,
    /// When the schedule looks at it next.
    pub due_at: Option<Millis>,
    /// When a refresh was last forced by a refused access token.
    pub forced_at: Option<Millis>,
    /// The generation that came of a renewal whose reason was a 401 that nobody has classified.
    pub doubted_generation: Option<u64>,
    /// That the platform knows no such location or company, as it said of the current generation.
    pub gone: Option<Gone>,
    /// When the refresh token was last tried.
    pub tried_at: Option<Millis>,
    /// The state that the last claim found.
    pub claimed_from: Option<Status>,
    /// Before this nobody tries again, since the platform has asked for it.
    pub retry_at: Option<Millis>,
    /// How many tries in a row have failed.
    pub failures: u32,
    /// The generation whose token the platform refused while no mark could be made.
    pub refused_generation: Option<u64>,
    /// The company, where it is known.
    pub company: Option<String>,
    /// The public base URL of the deployment's pages, for a link to install again.
    pub home: Option<String>,
    /// A location without a grant of its own: its token is minted from its company's.
    pub minted: Option<Minted>,
    /// The state without a token that the world was told of last, and since when nothing else was told.
    pub told: Option<Status>,
    /// Events that are not known to have been sent.
    pub outbox: Vec<Event>,
}

/// The platform knows no such location or company, as it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone {
    /// Since when.
    pub since: Millis,
    /// How often it has said so.
    pub tries: u32,
}

/// What is known of a location whose token is minted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Minted {
    /// The epoch of the company's installation that the stored token comes from.
    pub company_epoch: u64,
    /// No company has the app there, as the platform said; nobody asks again before this.
    pub absent_until: Option<Millis>,
    /// When the newest company was listed that was asked then. A newer one may have the app there after all.
    pub absent_newest: Option<Millis>,
    /// Since when the schedule asks the companies about this location.
    pub search_since: Option<Millis>,
    /// Nobody but a caller has ever named this location.
    pub supposed: bool,
}

impl Installation {
    /// The key of the item.
    #[must_use]
    pub fn key(&self) -> String {
        installation_key(&self.resource)
    }

    /// Whether `owner` has written the current pair.
    #[must_use]
    pub fn is_committed_by(&self, owner: &LeaseOwner) -> bool {
        self.committed_by.as_deref() == Some(owner.as_str())
    }

    /// Whether the current token came of a renewal whose reason was a 401 that nobody has classified.
    #[must_use]
    pub fn is_doubted(&self) -> bool {
        self.doubted_generation == Some(self.version.generation)
    }

    /// Whether the platform has refused the current token before, without a mark.
    #[must_use]
    pub fn was_refused(&self) -> bool {
        self.refused_generation == Some(self.version.generation)
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
