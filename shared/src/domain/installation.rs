//! An installation of the app, with its token pairs as they are stored.

use std::fmt;

use super::clock::Millis;
use super::event::Event;
use super::resource::{Kind, Resource};
use super::status::{LeaseOwner, Status, TokenVersion};

/// A sealed access token and its life. `Debug` shows only the length of the token.
#[derive(Clone, PartialEq, Eq)]
pub struct SealedAccess {
    /// The sealed token.
    pub token: Vec<u8>,
    /// The time at which the platform granted the token.
    pub issued_at: Millis,
    /// The time at which the token expires.
    pub expires_at: Millis,
}

impl fmt::Debug for SealedAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealedAccess({} bytes, until {})", self.token.len(), self.expires_at)
    }
}

/// Two sealed tokens. `Debug` shows only the lengths of the tokens.
#[derive(Clone, PartialEq, Eq)]
pub struct SealedPair {
    /// The access token.
    pub access: SealedAccess,
    /// The sealed refresh token.
    pub refresh: Option<Vec<u8>>,
}

impl fmt::Debug for SealedPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealedPair({:?}, {} bytes)", self.access, self.refresh.as_ref().map_or(0, Vec::len))
    }
}

/// A granted pair that did not become the current one. The standby pair may be the live one, and is tried before the
/// customer is asked to install again. Until then the standby pair stays, even if another current pair is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StandbyPair {
    /// The owner of the lease under which the pair was granted.
    pub owner: LeaseOwner,
    /// The generation under which the pair is sealed: the generation that was current when the pair was added.
    pub generation: u64,
    /// The generation whose refresh token was presented for this pair.
    pub granted_from: u64,
    /// The pair.
    pub pair: SealedPair,
}

/// An installation as stored in the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installation {
    /// The location or company.
    pub resource: Resource,
    /// The version of the installation.
    pub version: TokenVersion,
    /// The state of the installation, with the tokens if the app is installed.
    pub life: Life,
    /// The generation whose refresh token was presented for the current pair.
    pub granted_from: u64,
    /// The lease owner that wrote the current pair.
    pub committed_by: Option<LeaseOwner>,
    /// The SHA-256 of the refresh token that the last import stored. Later renewals and installs do not change it.
    pub imported_sha256: Option<String>,
    /// The platform's findings about the current token.
    pub findings: Findings,
    /// The results of asking companies about the location.
    pub search: CompanySearch,
    /// The time at which the exchange of the authorization code began.
    pub installed_at: Millis,
    /// The company, if known.
    pub company: Option<String>,
    /// The granted scopes, separated by spaces, if known.
    pub scope: Option<String>,
    /// The public base URL of the deployment's pages, for a link to install again.
    pub home: Option<String>,
    /// The app's version, plan and installer.
    pub details: AppDetails,
    /// The last published state without a token, if no other event was published since.
    pub published: Option<Status>,
    /// Events that are not known to have been published (transactional outbox).
    pub outbox: Vec<Event>,
}

/// The app's version, plan and installer in one installation, as far as the marketplace has reported them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppDetails {
    /// The id of the app's version.
    pub version_id: Option<String>,
    /// The time of the report about the version, as stated by the platform. An older report changes nothing.
    pub version_at: Option<Millis>,
    /// The id of the app's plan.
    pub plan_id: Option<String>,
    /// The end of the trial period of the plan.
    pub trial_ends_at: Option<Millis>,
    /// The time of the report about the plan, as stated by the platform. An older report changes nothing.
    pub plan_at: Option<Millis>,
    /// The id of the user that installed the app.
    pub installed_by: Option<String>,
    /// The domain of the company's white label.
    pub white_label: Option<String>,
}

/// The state of an installation, with the data that only this state has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Life {
    /// The app is installed.
    Installed(Installed),
    /// [`Status::Revoked`]: the app was uninstalled. No token is stored, and the schedule tries nothing.
    Revoked {
        /// The time of the uninstall, as stated by the platform.
        at: Millis,
    },
}

/// The data of an installation whose app is installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// The state.
    pub state: State,
    /// The tokens, by their source.
    pub source: Source,
    /// The schedule of the next try.
    pub schedule: Schedule,
}

/// A state in which the app is installed, with its data.
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
}

impl State {
    /// The state without its data.
    pub fn status(&self) -> Status {
        match self {
            Self::Active => Status::Active,
            Self::Refreshing(_) => Status::Refreshing,
            Self::Uncertain => Status::Uncertain,
            Self::Suspended => Status::Suspended,
            Self::Blocked => Status::Blocked,
            Self::NeedsReauthorization => Status::NeedsReauthorization,
        }
    }
}

/// The lease of an installation. Only its owner may present the refresh token, or mint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The owner of the lease.
    pub owner: LeaseOwner,
    /// The end of the lease.
    pub ends_at: Millis,
    /// The state before the claim.
    pub claimed_from: Status,
}

/// The source of an access token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A grant of the installation itself, which is renewed by a refresh token.
    Own {
        /// The current pair.
        pair: Option<SealedPair>,
        /// Other pairs that may be the live one, oldest first.
        standby: Vec<StandbyPair>,
    },
    /// The access token is minted from the token of the location's company. There is no refresh token.
    Minted {
        /// The current access token.
        access: Option<SealedAccess>,
        /// The origin of the token.
        minted: Minted,
    },
}

/// The data of a location whose token is minted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Minted {
    /// The epoch of the company's installation from which the stored token was minted.
    pub company_epoch: u64,
    /// True for a placeholder: only a caller has named this location, and the item exists so that the location can be
    /// claimed.
    pub is_placeholder: bool,
}

/// The results of asking companies about a location whose company is not known or does not have the app there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompanySearch {
    /// Set if no company has the app in this location, as stated by the platform. The companies are asked again after
    /// this time.
    pub absent_until: Option<Millis>,
    /// The listing time of the newest company that was asked then. A company that was listed later may have the app in
    /// the location.
    pub absent_newest: Option<Millis>,
    /// The start of the schedule's search for this location's company.
    pub search_since: Option<Millis>,
    /// Set if the other companies were asked, or were to be asked, because the location's own company has ended or does
    /// not have the app there. The other companies are asked again after this time.
    pub others_again_at: Option<Millis>,
}

/// The times that decide when the token of an installation is tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Schedule {
    /// The time at which the schedule tries the installation next.
    pub due_at: Option<Millis>,
    /// The earliest time of the next try, because the platform asked for a pause.
    pub retry_at: Option<Millis>,
    /// The time of the last try.
    pub tried_at: Option<Millis>,
    /// The number of failures in a row.
    pub failures: u32,
    /// The time of the last refresh that was forced by a refused access token.
    pub forced_at: Option<Millis>,
}

/// The platform's answers about the current token. Answers about an older token do not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// True if the token comes from a renewal because of an unclassified 401.
    pub is_doubted: bool,
    /// True if the refresh token was refused, and the installation could not be marked.
    pub was_refused: bool,
    /// True if the last presentation of the refresh token was answered, by a refusal from which nothing is concluded yet.
    pub is_answered: bool,
    /// The platform knows no such location or company.
    pub gone: Option<Gone>,
}

/// The platform's answer that the location or company does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone {
    /// The time of the first such answer.
    pub since: Millis,
    /// The number of such answers.
    pub tries: u32,
}

impl Installation {
    /// The key of the item.
    pub fn key(&self) -> String {
        installation_key(&self.resource)
    }

    /// The data of an installed app. `None` after an uninstall.
    pub fn installed(&self) -> Option<&Installed> {
        match &self.life {
            Life::Installed(installed) => Some(installed),
            Life::Revoked { .. } => None,
        }
    }

    /// The time of the uninstall. `None` if the app is installed.
    pub fn revoked_at(&self) -> Option<Millis> {
        match self.life {
            Life::Installed(_) => None,
            Life::Revoked { at } => Some(at),
        }
    }

    /// The state of the installation, without its data.
    pub fn status(&self) -> Status {
        self.installed().map_or(Status::Revoked, |installed| installed.state.status())
    }

    /// The schedule of the next try. Empty after an uninstall.
    pub fn schedule(&self) -> Schedule {
        self.installed().map(|installed| installed.schedule).unwrap_or_default()
    }

    /// The lease. If its holder has died, the lease ends by expiry.
    pub fn lease(&self) -> Option<&Lease> {
        match &self.installed()?.state {
            State::Refreshing(lease) => Some(lease),
            _ => None,
        }
    }

    /// The state before the claim of the current lease. Without a lease, the current state.
    pub fn claimed_from(&self) -> Status {
        self.lease().map_or_else(|| self.status(), |lease| lease.claimed_from)
    }

    /// The current access token.
    pub fn access(&self) -> Option<&SealedAccess> {
        match &self.installed()?.source {
            Source::Own { pair, .. } => pair.as_ref().map(|pair| &pair.access),
            Source::Minted { access, .. } => access.as_ref(),
        }
    }

    /// Removes the access token from this snapshot. The table does not change.
    pub fn forget_access(&mut self) {
        let Life::Installed(installed) = &mut self.life else { return };
        match &mut installed.source {
            Source::Own { pair, .. } => *pair = None,
            Source::Minted { access, .. } => *access = None,
        }
    }

    /// The current refresh token, sealed.
    pub fn refresh_token(&self) -> Option<&[u8]> {
        match &self.installed()?.source {
            Source::Own { pair, .. } => pair.as_ref()?.refresh.as_deref(),
            Source::Minted { .. } => None,
        }
    }

    /// The data of a minted location. `None` if the location has a grant of its own, or the app was uninstalled.
    pub fn minted(&self) -> Option<Minted> {
        match self.installed()?.source {
            Source::Own { .. } => None,
            Source::Minted { minted, .. } => Some(minted),
        }
    }

    /// Returns true for a placeholder: only a caller has named this location.
    pub fn is_placeholder(&self) -> bool {
        self.minted().is_some_and(|minted| minted.is_placeholder)
    }

    /// The standby pairs.
    pub fn standby(&self) -> &[StandbyPair] {
        match self.installed().map(|installed| &installed.source) {
            Some(Source::Own { standby, .. }) => standby,
            Some(Source::Minted { .. }) | None => &[],
        }
    }

    /// Returns true if a standby pair may be the only live pair: the current pair has not been granted by a renewal
    /// since the standby pairs were added. A renewal proves that the pair before it was live.
    pub fn may_need_standby(&self) -> bool {
        let TokenVersion { generation, .. } = self.version;
        let is_granted_by_renewal = self.granted_from + 1 == generation;
        self.standby().iter().any(|standby| !is_granted_by_renewal || standby.generation >= generation)
    }

    /// Returns true if the current refresh token may have been presented by a lease holder whose answer is not known.
    pub fn is_in_doubt(&self) -> bool {
        match self.status() {
            Status::Refreshing => self.minted().is_none(),
            Status::Uncertain => self.minted().is_none() && !self.findings.is_answered,
            Status::Active | Status::Suspended | Status::Blocked | Status::NeedsReauthorization | Status::Revoked => {
                false
            }
        }
    }

    /// Returns true if `owner` wrote the current pair.
    pub fn is_committed_by(&self, owner: &LeaseOwner) -> bool {
        self.committed_by.as_ref() == Some(owner)
    }

    /// The company that a location belongs to, if the company is known.
    pub fn own_company(&self) -> Option<Resource> {
        self.company.as_deref().and_then(|id| Resource::company(id).ok())
    }

    /// The URL at which a human can install the app again, if the deployment's address is known.
    pub fn reinstall_url(&self) -> Option<String> {
        self.home.as_deref().map(reinstall_url)
    }
}

/// The URL at which a human can install the app again, by the public base URL of the deployment's pages.
pub fn reinstall_url(home: &str) -> String {
    format!("{}/oauth/install", home.trim_end_matches('/'))
}

/// The key of a resource's installation.
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
