//! An installation as it moves between this system and another one, with its tokens in the clear.
//!
//! Refresh tokens are single-use, so an installation must be renewed by one system only. An import therefore never
//! replaces a stored pair by one that is not known to be newer, unless the operator asks for it. An import publishes no
//! event: nothing has changed for the customer.

use std::time::Duration;

use super::{InstallError, Installations, ROUNDS};
use crate::domain::clock::Millis;
use crate::domain::installation::{Installation, Source};
use crate::domain::resource::{Kind, Resource};
use crate::domain::status::{LeaseOwner, TokenVersion};
use crate::seal::Field;
use crate::seal::pair::{Pair, PairRole, place};
use crate::seal::vault::{Vault, VaultError};
use crate::table::installation::NewInstallation;
use crate::table::minted::InstallNotice;
use crate::table::{StoreError, Write};
use crate::token::schedule;

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
}

/// The outcome of an import.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Imported {
    /// The installation is stored, or would be.
    Stored,
    /// The same installation is stored already, with the same refresh token.
    Same,
    /// Another pair is stored, and the imported one is not known to be newer. Nothing was written.
    KeptStored,
    /// The app was uninstalled here. Nothing was written.
    KeptUninstalled,
}

/// The reason for which an installation cannot be brought into the portable form.
#[derive(Debug, thiserror::Error)]
pub enum NotPortable {
    /// There is no token that works: the app was uninstalled, or the customer must install it again.
    #[error("it has no valid grant")]
    NoGrant,
    /// A stored token cannot be opened.
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
            Source::Minted { .. } => None,
            Source::Own { pair: None, .. } => return Err(NotPortable::NoGrant),
            Source::Own { pair: Some(pair), .. } => {
                let refresh = pair.refresh.as_deref().ok_or(NotPortable::NoGrant)?;
                let key = stored.key();
                let open = async |field, sealed| vault.open(place(&key, stored.version, field), sealed).await;
                Some(Pair {
                    access: open(Field::Access, &pair.access.token).await?,
                    refresh: Some(open(Field::Refresh, refresh).await?),
                    issued_at: pair.access.issued_at,
                    expires_at: pair.access.expires_at,
                })
            }
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

impl Installations {
    /// Stores an installation that another system has held.
    ///
    /// # Errors
    /// [`InstallError`]. The installation may or may not have been stored; another import recognises it.
    pub async fn import(&self, new: &Portable, rules: Rules<'_>) -> Result<Imported, InstallError> {
        let owner = LeaseOwner::new();
        for _ in 0..ROUNDS {
            let stored = self.table.installation(&new.resource).await.map_err(InstallError::Store)?;
            if stored.as_ref().is_some_and(|stored| stored.is_committed_by(&owner)) {
                return Ok(Imported::Stored);
            }
            if let Some(kept) = self.kept(stored.as_ref(), new, rules.replace).await? {
                return Ok(kept);
            }
            if rules.dry_run || self.write_import(new, stored.as_ref(), &owner, rules.home).await? {
                return Ok(Imported::Stored);
            }
        }
        Err(InstallError::Store(StoreError::Unavailable("the item changes faster than it can be written".into())))
    }

    /// The outcome if nothing is to be written.
    async fn kept(
        &self,
        stored: Option<&Installation>,
        new: &Portable,
        replace: bool,
    ) -> Result<Option<Imported>, InstallError> {
        let Some(stored) = stored.filter(|stored| !stored.is_placeholder()) else { return Ok(None) };
        let stored_pair = match stored.installed().map(|installed| &installed.source) {
            Some(Source::Own { pair, .. }) => pair.as_ref(),
            Some(Source::Minted { .. }) | None => None,
        };
        if let (Some(pair), Some(sealed)) = (&new.pair, stored_pair.and_then(|pair| pair.refresh.as_deref())) {
            let opened = self.vault.open(place(&stored.key(), stored.version, Field::Refresh), sealed).await;
            let is_same = match (opened, &pair.refresh) {
                (Ok(stored), Some(refresh)) => stored.expose() == refresh.expose(),
                (Err(VaultError::Secret(error)), _) => return Err(error.into()),
                (Err(VaultError::Seal(_)), _) | (Ok(_), None) => false,
            };
            if is_same {
                return Ok(Some(Imported::Same));
            }
        }
        if replace {
            return Ok(None);
        }
        let Some(installed) = stored.installed() else { return Ok(Some(Imported::KeptUninstalled)) };
        Ok(match (&installed.source, &new.pair) {
            (Source::Minted { .. }, None) if stored.company == new.company => Some(Imported::Same),
            (Source::Minted { .. } | Source::Own { .. }, None) => Some(Imported::KeptStored),
            (Source::Own { pair: Some(stored), .. }, Some(pair)) if pair.expires_at <= stored.access.expires_at => {
                Some(Imported::KeptStored)
            }
            // The pair is newer, or the location's own grant replaces a minted token.
            (Source::Minted { .. } | Source::Own { .. }, Some(_)) => None,
        })
    }

    /// Returns false if the item has changed since it was read.
    async fn write_import(
        &self,
        new: &Portable,
        stored: Option<&Installation>,
        owner: &LeaseOwner,
        home: Option<&str>,
    ) -> Result<bool, InstallError> {
        // The time of the install only grows, so that a repeated report of an earlier uninstall changes nothing.
        let after = |stored: &Installation| {
            let least = stored.installed_at.max(stored.revoked_at().unwrap_or(stored.installed_at));
            new.installed_at.max(least + Duration::from_millis(1))
        };
        let stored_before = stored.filter(|stored| !stored.is_placeholder());
        let installed_at = stored_before.map_or(new.installed_at, after);
        let now = self.clock.now();
        let Some(pair) = &new.pair else {
            let notice = InstallNotice { company: new.company.as_deref(), at: installed_at, event: None, now };
            let noticed = self.table.record_install_notice(&new.resource, notice).await.map_err(InstallError::Store)?;
            return Ok(noticed.is_applied());
        };
        let details = match new.resource.kind() {
            Kind::Company => self.record_company(&new.resource, installed_at).await,
            Kind::Location => None,
        };
        let seen = stored.map(|stored| stored.version);
        let due_at = schedule::next_refresh(pair.issued_at, pair.expires_at, fastrand::f64());
        let installation = NewInstallation {
            resource: &new.resource,
            owner,
            installed_at,
            due_at: due_at.max(now),
            company: new.company.as_deref(),
            home,
            scope: new.scope.as_deref(),
            details: details.as_ref().filter(|_| seen.is_none()),
            now,
        };
        let next = seen.unwrap_or(TokenVersion { epoch: 0, generation: 0 }).reinstalled();
        let sealer = self.vault.sealer().await?;
        let sealed = pair.seal(&sealer, &new.resource, next, PairRole::Current);
        let written = self.table.install(&installation, seen, &sealed, None).await.map_err(InstallError::Store)?;
        Ok(matches!(written, Write::Applied(_)))
    }
}
