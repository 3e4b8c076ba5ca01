//! An installation as it moves between this system and another one, with its tokens in the clear.
//!
//! Refresh tokens are single-use, so an installation must be renewed by one system only. An import therefore never
//! replaces a pair that was granted to this system, unless the operator asks for it. It replaces only a copy: a pair that
//! was imported before and has not been renewed here. A replaced pair stays as a standby pair, so an import loses no
//! token. For the same reason an import into an installed app begins no new epoch: a renewal whose answer comes later
//! finds the epoch of its token, and its pair becomes a standby pair. An import publishes an event only if the app had
//! been reported as uninstalled or as needing reauthorization, because nothing else has changed for the customer.

use std::time::Duration;

use super::{Installations, PATIENCE, ROUNDS};
use crate::domain::clock::Millis;
use crate::domain::installation::{Installation, Installed, Source, StandbyPair};
use crate::domain::resource::{Kind, Resource};
use crate::domain::status::{LeaseOwner, TokenVersion};
use crate::seal::Sealer;
use crate::seal::pair::{Pair, PairRole};
use crate::seal::vault::{Vault, VaultError};
use crate::table::installation::{Import, NewInstallation};
use crate::table::minted::{InstallNotice, Noticed};
use crate::table::{StoreError, Write};
use crate::token::schedule;

/// An import adds no standby pair to this many: an item of `DynamoDB` has a limited size, and a renewal shows which of the
/// pairs is live.
const MOST_STANDBY: usize = 8;
/// The clock of an operator's machine may be ahead of those of the functions by this time.
const CLOCKS_APART: Duration = Duration::from_secs(30);

/// An installation outside the table.
#[derive(Clone, Debug)]
pub struct Portable {
    /// The location or company.
    pub resource: Resource,
    /// The company of a location, if known.
    pub company: Option<String>,
    /// The granted scopes, separated by spaces.
    pub scope: Option<String>,
    /// The time of the install.
    pub installed_at: Millis,
    /// The token pair. `None` for a location whose token is minted from the token of its company.
    pub pair: Option<Pair>,
}

/// The choices of an import.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rules<'a> {
    /// True to replace what is stored, even if it may be newer.
    pub replace: bool,
    /// True to write nothing and to report what would be written.
    pub dry_run: bool,
    /// The public base URL of the deployment, for links to install again.
    pub home: Option<&'a str>,
    /// The first renewals of the pairs that are due already are distributed over this time.
    pub spread: Duration,
}

/// The outcome of an import. Only [`Imported::Stored`] has written anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Imported {
    /// The installation is stored, or would be.
    Stored,
    /// The same installation is stored already, with the same refresh token.
    Same,
    /// The same refresh token was imported before. Another pair has taken its place since.
    ImportedBefore,
    /// Another pair is stored, and the imported one is not known to be newer.
    KeptStored,
    /// A process renews the stored pair now, or the platform's answer may still come.
    KeptLeased,
    /// Too many pairs of the installation wait to be tried.
    KeptFull,
    /// The app was uninstalled here.
    KeptUninstalled,
}

/// The reason for which an installation cannot be brought into the portable form.
#[derive(Debug, thiserror::Error)]
pub enum NotPortable {
    /// There is no token that works: the app was uninstalled, or the customer must install it again.
    #[error("it has no valid grant")]
    NoGrant,
    /// The token of the location is minted from the token of its company, and the company is not known.
    #[error("it has no grant of its own, and its company is not known")]
    NoCompany,
    /// A stored token cannot be opened.
    #[error(transparent)]
    Vault(#[from] VaultError),
}

/// The reason for which it is not known if an installation was imported. Another import finds out.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The table does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The data keys cannot be read, or the stored token cannot be opened and is not to be replaced. Nothing was written.
    #[error(transparent)]
    Vault(#[from] VaultError),
}

impl Portable {
    /// Opens a stored installation. The standby pairs are left out. `None` for a placeholder, which is no installation.
    ///
    /// # Errors
    /// [`NotPortable`].
    pub async fn of(vault: &Vault, stored: &Installation) -> Result<Option<Self>, NotPortable> {
        let Some(installed) = stored.installed().filter(|_| !stored.status().has_ended()) else {
            return Err(NotPortable::NoGrant);
        };
        if stored.is_placeholder() {
            return Ok(None);
        }
        let pair = match &installed.source {
            Source::Minted { .. } if stored.company.is_none() => return Err(NotPortable::NoCompany),
            Source::Minted { .. } => None,
            Source::Own { pair: Some(pair), .. } if pair.refresh.is_some() => {
                Some(vault.open_pair(&stored.key(), stored.version, PairRole::Current, pair).await?)
            }
            Source::Own { .. } => return Err(NotPortable::NoGrant),
        };
        Ok(Some(Self {
            resource: stored.resource.clone(),
            company: stored.company.clone(),
            scope: stored.scope.clone(),
            installed_at: stored.installed_at,
            pair,
        }))
    }
}

/// The stored pairs of an installation, opened. A pair that does not open is left out.
#[derive(Debug, Default)]
struct StoredPairs {
    current: Option<Pair>,
    /// The standby pairs in their order.
    standby: Vec<Option<Pair>>,
    /// True if the current pair is a copy: another system was granted the pair, and this system has not renewed it.
    is_copy: bool,
}

impl StoredPairs {
    /// The time of the latest grant.
    fn latest(&self) -> Option<Millis> {
        self.current.iter().chain(self.standby.iter().flatten()).map(|pair| pair.issued_at).max()
    }

    /// The place of the standby pair with the refresh token of `new`.
    fn place_of(&self, new: &Pair) -> Option<usize> {
        self.standby.iter().position(|pair| pair.as_ref().is_some_and(|pair| pair.has_refresh_token_of(new)))
    }

    /// The standby pairs after an import of `new` into `stored`: those that are stored, and the current pair.
    fn beside(&self, new: &Pair, stored: &Installation, sealer: &Sealer) -> Vec<StandbyPair> {
        let place = self.place_of(new);
        let others = stored.standby().iter().enumerate().filter(|(index, _)| Some(*index) != place);
        let current = self.current.as_ref().map(|pair| StandbyPair {
            owner: stored.committed_by.clone().unwrap_or_default(),
            generation: stored.version.generation,
            granted_from: stored.granted_from,
            pair: pair.seal(sealer, &stored.resource, stored.version, PairRole::Standby),
        });
        others.map(|(_, pair)| pair.clone()).chain(current).collect()
    }
}

impl Installations {
    /// Stores an installation that another system has held.
    ///
    /// # Errors
    /// [`ImportError`]. The installation may or may not have been stored; another import recognises it.
    pub async fn import(&self, new: &Portable, rules: Rules<'_>) -> Result<Imported, ImportError> {
        let owner = LeaseOwner::new();
        for _ in 0..ROUNDS {
            let stored = self.table.installation(&new.resource).await?;
            let mut pairs = StoredPairs::default();
            if let Some(stored) = &stored {
                if stored.is_committed_by(&owner) {
                    return Ok(Imported::Stored);
                }
                pairs = self.open_pairs(stored, rules.replace).await?;
                if let Some(kept) = kept(stored, &pairs, new, rules.replace, self.clock.now()) {
                    return Ok(kept);
                }
            }
            if rules.dry_run || self.write_import(new, stored.as_ref(), &pairs, &owner, rules).await? {
                return Ok(Imported::Stored);
            }
        }
        Err(StoreError::Unavailable("the item changes faster than it can be written".into()).into())
    }

    /// Opens the stored pairs. With `replace`, a current pair that does not open is left out: it is of no use.
    async fn open_pairs(&self, stored: &Installation, replace: bool) -> Result<StoredPairs, ImportError> {
        let mut pairs = StoredPairs::default();
        let Some(Installed { source: Source::Own { pair, standby }, .. }) = stored.installed() else {
            return Ok(pairs);
        };
        let key = stored.key();
        let opened = |opened: Result<Pair, VaultError>, may_be_left_out| match opened {
            Err(VaultError::Seal(error)) if may_be_left_out => {
                tracing::warn!(resource = %stored.resource, %error, "a stored pair does not open");
                Ok(None)
            }
            opened => opened.map(Some),
        };
        for standby in standby {
            let version = TokenVersion { generation: standby.generation, ..stored.version };
            let pair = self.vault.open_pair(&key, version, PairRole::Standby, &standby.pair).await;
            pairs.standby.push(opened(pair, true)?);
        }
        if let Some(pair) = pair.as_ref().filter(|pair| pair.refresh.is_some()) {
            let pair = self.vault.open_pair(&key, stored.version, PairRole::Current, pair).await;
            pairs.current = opened(pair, replace)?;
            let sha256 = pairs.current.as_ref().and_then(Pair::refresh_sha256);
            pairs.is_copy = sha256.is_some() && stored.imported_sha256 == sha256 && !stored.is_in_doubt();
        }
        Ok(pairs)
    }

    /// Returns false if the item has changed since it was read.
    async fn write_import(
        &self,
        new: &Portable,
        stored: Option<&Installation>,
        pairs: &StoredPairs,
        owner: &LeaseOwner,
        rules: Rules<'_>,
    ) -> Result<bool, ImportError> {
        // The time of the install only grows, so that a repeated report of an earlier uninstall changes nothing.
        let after = |stored: &Installation| {
            let least = stored.installed_at.max(stored.revoked_at().unwrap_or(stored.installed_at));
            new.installed_at.max(least + Duration::from_millis(1))
        };
        let stored_before = stored.filter(|stored| !stored.is_placeholder());
        let installed_at = stored_before.map_or(new.installed_at, after);
        let begins_again = stored.is_some_and(|stored| stored.status().has_ended());
        let now = self.clock.now();
        let Some(pair) = &new.pair else {
            let notice = InstallNotice { company: new.company.as_deref(), at: installed_at, event: None, now };
            let noticed = if begins_again {
                self.record_install_notice(&new.resource, notice).await
            } else {
                self.table.record_install_notice(&new.resource, notice).await.map(Noticed::is_applied)
            };
            return Ok(noticed?);
        };
        let details = match new.resource.kind() {
            Kind::Company => self.record_company(&new.resource, installed_at).await,
            Kind::Location => None,
        };
        let installation = NewInstallation {
            resource: &new.resource,
            owner,
            installed_at,
            due_at: schedule::first_refresh(pair.issued_at, pair.expires_at, now, rules.spread, fastrand::f64()),
            company: new.company.as_deref(),
            home: rules.home,
            scope: new.scope.as_deref(),
            details: details.as_ref().filter(|_| stored.is_none()),
            now,
        };
        let next = Import::version(stored);
        let sealer = self.vault.sealer().await.map_err(VaultError::from)?;
        let sealed = pair.seal(&sealer, &new.resource, next, PairRole::Current);
        // A pair that is stored already does not become a copy by an import of the same pair.
        let refresh_sha256 = pair.refresh_sha256().filter(|_| pairs.place_of(pair).is_none());
        let standby = stored.map(|stored| pairs.beside(pair, stored, &sealer)).unwrap_or_default();
        let import = Import { pair: &sealed, refresh_sha256: refresh_sha256.as_deref(), standby: &standby };
        let event = match stored {
            Some(stored) if stored.status().needs_human() => self.events.renewed(stored),
            Some(stored) if stored.status().has_ended() => self.events.installed(next.epoch, installed_at),
            _ => None,
        };
        let written = self.table.import(&installation, stored, &import, event).await?;
        if let Write::Applied(stored) = &written {
            self.events.publish(stored, self.clock.now() + PATIENCE).await;
        }
        Ok(written.is_applied())
    }
}

/// The outcome of an import if nothing is to be written. Pure code.
fn kept(stored: &Installation, pairs: &StoredPairs, new: &Portable, replace: bool, now: Millis) -> Option<Imported> {
    if stored.is_placeholder() {
        return None;
    }
    let was_imported = new.pair.as_ref().is_some_and(|pair| {
        let sha256 = pair.refresh_sha256();
        sha256.is_some() && sha256 == stored.imported_sha256
    });
    let Some(Installed { source, .. }) = stored.installed() else {
        // A grant that came after the uninstall belongs to another install.
        let granted_at = new.pair.as_ref().map(|pair| pair.issued_at);
        let is_later = !was_imported && granted_at > stored.revoked_at();
        return (!replace && !is_later).then_some(Imported::KeptUninstalled);
    };
    let has_ended = stored.status().has_ended();
    let Some(pair) = &new.pair else {
        return match source {
            Source::Minted { .. } if stored.company == new.company => Some(Imported::Same),
            Source::Own { .. } if !has_ended => Some(Imported::KeptStored),
            Source::Minted { .. } | Source::Own { .. } => (!replace).then_some(Imported::KeptStored),
        };
    };
    if pairs.current.as_ref().is_some_and(|current| current.has_refresh_token_of(pair)) {
        return Some(Imported::Same);
    }
    if is_being_renewed(stored, now) {
        return Some(Imported::KeptLeased);
    }
    let place = pairs.place_of(pair);
    if place.is_some() && !replace {
        return Some(Imported::Same);
    }
    if was_imported && place.is_none() {
        return Some(Imported::ImportedBefore);
    }
    let is_own = matches!(source, Source::Own { .. });
    // A location's own grant replaces a minted token.
    let may_be_replaced = !is_own || pairs.current.is_none() || pairs.is_copy || has_ended;
    let is_newer = pairs.latest().is_none_or(|latest| latest > Millis(0) && pair.issued_at > latest);
    let is_replaced = replace || may_be_replaced && is_newer;
    if !is_replaced {
        return Some(Imported::KeptStored);
    }
    (place.is_none() && pairs.standby.len() >= MOST_STANDBY).then_some(Imported::KeptFull)
}

/// Returns true if the refresh token of an own grant may have been presented, and its answer may still come or is still
/// repeated by the platform. A new current pair would then keep the token from being presented again. Pure code.
fn is_being_renewed(stored: &Installation, now: Millis) -> bool {
    let is_leased = stored.lease().is_some_and(|lease| now < lease.ends_at);
    let is_repeated = |at: Millis| now < at + schedule::GRACE + CLOCKS_APART;
    stored.is_in_doubt() && (is_leased || stored.schedule().tried_at.is_some_and(is_repeated))
}
