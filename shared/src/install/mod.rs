//! The beginning and the end of an installation: installs, install notices and uninstalls. The module
//! [`crate::token::refresh`] renews the tokens of an installation.

pub mod portable;
pub mod uninstall;

use std::sync::Arc;
use std::time::Duration;

use crate::domain::clock::{Clock, Millis};
use crate::domain::event::Name;
use crate::domain::grant::Grant;
use crate::domain::installation::{AppDetails, Installation, Source, StandbyPair};
use crate::domain::resource::{Kind, Resource};
use crate::domain::status::{LeaseOwner, Status, TokenVersion};
use crate::events::Events;
use crate::http_client::within;
use crate::seal::pair::{Pair, PairRole};
use crate::seal::vault::{Vault, VaultError};
use crate::secrets::SecretError;
use crate::table::company::Note;
use crate::table::installation::NewInstallation;
use crate::table::minted::InstallNotice;
use crate::table::{StoreError, Table, Write};
use crate::token::rescue::{LostWrite, RescueError, RescueQueue, Rescued};
use crate::token::schedule;

/// An install tries the table for this time before it sends the pair to the rescue queue. The time is well within the
/// invocation, which holds the only copy of the pair.
const PATIENCE: Duration = Duration::from_secs(8);
/// The longest time that an install waits until its company is recorded.
const RECORDING: Duration = Duration::from_secs(2);
/// The most tries to write an item that changes meanwhile.
const ROUNDS: u32 = 10;

/// A new installation, or one that is on the rescue queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// The location or company.
    pub resource: Resource,
    /// The company, if the platform's answer names the company.
    pub company: Option<String>,
    /// True if an agency installed the app for several locations.
    pub bulk: bool,
}

/// The reasons for which an installation was not stored.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// Neither the table nor the rescue queue took the installation. It is lost, and the human must install again.
    #[error(transparent)]
    Store(StoreError),
    /// The data keys cannot be read. Check with [`Installations::ready`] before the code is spent.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The table did not take the installation. It is on the rescue queue and will be stored.
    #[error("the installation is on the rescue queue")]
    Rescued,
}

/// The result of an uninstall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uninstalled {
    /// The installation is revoked and its tokens are erased.
    Done,
    /// The installation is newer than the uninstall.
    Older,
    /// There is no such installation.
    Unknown,
}

/// Installs and uninstalls.
#[derive(Clone)]
pub struct Installations {
    table: Table,
    vault: Arc<Vault>,
    rescue: Option<RescueQueue>,
    events: Events,
    clock: Clock,
}

impl Installations {
    /// The installations in `table`.
    pub fn new(table: Table, vault: Arc<Vault>, rescue: Option<RescueQueue>, events: Events, clock: Clock) -> Self {
        Self { table, vault, rescue, events, clock }
    }

    /// Checks that a grant could be sealed and stored now, before a single-use code is spent. If there is a rescue
    /// queue, the table need not answer.
    ///
    /// # Errors
    /// [`InstallError::Secret`] or [`InstallError::Store`].
    pub async fn ready(&self) -> Result<(), InstallError> {
        self.vault.sealer().await?;
        if self.rescue.is_none() {
            // Reads any item of the table, because the installation's own item is not known yet.
            self.table.breaker().await.map_err(InstallError::Store)?;
        }
        Ok(())
    }

    /// Stores the grant of a code. `exchange_started` decides the order of installs. `home` is the public base URL,
    /// which is stored for links to install again.
    pub async fn install(
        &self,
        grant: &Grant,
        exchange_started: Millis,
        home: &str,
    ) -> Result<Installed, InstallError> {
        let owner = LeaseOwner::new();
        let pair = Pair::granted(grant, None, self.clock.now());
        let new = NewInstallation {
            resource: &grant.resource,
            owner: &owner,
            installed_at: exchange_started,
            due_at: schedule::next_refresh(pair.issued_at, pair.expires_at, fastrand::f64()),
            company: grant.company.as_deref(),
            home: Some(home),
            scope: grant.scope.as_deref(),
            details: None,
            now: self.clock.now(),
        };
        let sealer = self.vault.sealer().await?;
        let details = self.record_company(&grant.resource, exchange_started).await;
        let new = NewInstallation { details: details.as_ref(), ..new };
        let storing = within(PATIENCE, Box::pin(self.store_patiently(&new, &pair))).await;
        let stored = storing.unwrap_or_else(|_| Err(StoreError::Unavailable("no answer in time".into()).into()));
        match stored {
            Ok(stored) => {
                if let Some(stored) = stored {
                    self.events.publish(&stored, self.clock.now() + PATIENCE).await;
                }
                Ok(Installed { resource: grant.resource.clone(), company: grant.company.clone(), bulk: grant.bulk })
            }
            Err(VaultOrStore::Vault(VaultError::Secret(error))) => Err(error.into()),
            Err(error) => {
                let write = LostWrite::Install {
                    installed_at: exchange_started.0,
                    company: grant.company.clone(),
                    home: home.to_owned(),
                    scope: grant.scope.clone(),
                };
                let rescued = Rescued::seal(&sealer, &grant.resource, &owner, write, &pair);
                match &self.rescue {
                    Some(queue) if queue.send(&rescued).await => Err(InstallError::Rescued),
                    _ => Err(InstallError::Store(match error {
                        VaultOrStore::Store(error) => error,
                        VaultOrStore::Vault(error) => StoreError::Unavailable(error.to_string()),
                    })),
                }
            }
        }
    }

    /// Stores an installation from the rescue queue, unless the table holds a newer one.
    ///
    /// # Errors
    /// [`RescueError`]: the message must be delivered again.
    pub async fn install_rescued(&self, rescued: &Rescued) -> Result<(), RescueError> {
        let LostWrite::Install { installed_at, company, home, scope } = &rescued.write else {
            return Err(RescueError::Unreadable);
        };
        let pair = rescued.open(&self.vault).await?;
        let owner = LeaseOwner::from(rescued.attempt.clone());
        let new = NewInstallation {
            resource: &rescued.resource,
            owner: &owner,
            installed_at: Millis(*installed_at),
            due_at: self.clock.now(),
            company: company.as_deref(),
            home: Some(home),
            scope: scope.as_deref(),
            details: None,
            now: self.clock.now(),
        };
        let details = self.record_company(&rescued.resource, Millis(*installed_at)).await;
        let new = NewInstallation { details: details.as_ref(), ..new };
        let stored = self.store(&new, &pair).await.map_err(|error| match error {
            VaultOrStore::Store(error) => RescueError::Store(error),
            VaultOrStore::Vault(error) => RescueError::Vault(error),
        })?;
        if let Some(stored) = stored {
            self.events.publish(&stored, self.clock.now() + PATIENCE).await;
        }
        Ok(())
    }

    /// Records a notice that the app was installed at `at`. The notice carries no grant; the grant comes by the
    /// redirect. The notice adds a location whose token can be minted from its company's, or says that a company's
    /// locations have changed. Returns true if the notice was news.
    pub async fn on_install_notice(
        &self,
        resource: &Resource,
        company: Option<&str>,
        at: Millis,
    ) -> Result<bool, StoreError> {
        if resource.kind() == Kind::Location {
            return self
                .record_install_notice(resource, InstallNotice { company, at, event: None, now: self.clock.now() })
                .await;
        }
        let now = self.clock.now();
        self.table.note_task(resource.id(), Note::Reported, now).await?;
        self.table.list_company(resource.id(), now).await?;
        Ok(true)
    }

    /// Records details that the marketplace has reported at `at`. With `news`, an event of this name is published if the
    /// details were changed. A conflict means that a newer report is stored.
    pub async fn record_details(
        &self,
        resource: &Resource,
        details: &AppDetails,
        news: Option<(Name, Millis)>,
    ) -> Result<Write<()>, StoreError> {
        for _ in 0..ROUNDS {
            // The event names the epoch, so the present epoch must be known.
            let Some(stored) = self.table.installation(resource).await? else { break };
            let epoch = stored.version.epoch;
            let event = news.and_then(|(name, at)| self.events.reported(name, epoch, at));
            match self.table.record_details(resource, details, event, self.clock.now()).await? {
                Write::Applied(stored) => {
                    self.events.publish(&stored, self.clock.now() + PATIENCE).await;
                    return Ok(Write::Applied(()));
                }
                Write::Conflict(stored) if stored.version.epoch != epoch => {}
                Write::Conflict(_) => return Ok(Write::Conflict(())),
                Write::NotFound => break,
            }
        }
        if resource.kind() == Kind::Company && news.is_none() {
            // The report of an install may come before the redirect, which stores the installation.
            self.table.note_details(resource.id(), details).await?;
        }
        Ok(Write::NotFound)
    }

    /// Revokes an installation that was installed before `at`, and erases its tokens. If a company is revoked, the
    /// tokens of its locations are useless from then on, and the schedule erases them.
    pub async fn uninstall(&self, resource: &Resource, at: Millis) -> Result<Uninstalled, StoreError> {
        self.end(resource, None, at).await
    }

    /// Revokes an installation like [`Installations::uninstall`], but only if the installation still has the epoch and
    /// generation of `seen`. Returns [`Uninstalled::Older`] if it does not.
    async fn uninstall_exactly(&self, seen: &Installation, at: Millis) -> Result<Uninstalled, StoreError> {
        self.end(&seen.resource, Some(seen.version), at).await
    }

    async fn end(
        &self,
        resource: &Resource,
        seen: Option<TokenVersion>,
        at: Millis,
    ) -> Result<Uninstalled, StoreError> {
        if resource.kind() == Kind::Company {
            self.table.note_task(resource.id(), Note::Reported, self.clock.now()).await?;
        }
        let outcome = match self.revoke(resource, seen, at).await? {
            Write::Applied(stored) => {
                self.events.publish(&stored, self.clock.now() + PATIENCE).await;
                Uninstalled::Done
            }
            Write::Conflict(_) => Uninstalled::Older,
            Write::NotFound => Uninstalled::Unknown,
        };
        tracing::info!(%resource, ?outcome, "an uninstall was processed");
        Ok(outcome)
    }

    /// Records an install notice of one location. If the notice begins an installation, an event is published.
    async fn record_install_notice(&self, location: &Resource, notice: InstallNotice<'_>) -> Result<bool, StoreError> {
        if !self.events.are_published() {
            return Ok(self.table.record_install_notice(location, notice).await?.is_applied());
        }
        let mut before = None;
        for _ in 0..ROUNDS {
            let seen = self.table.installation(location).await?.map(|seen| (seen.version, starting_epoch(Some(&seen))));
            if before.is_some() && before == Some(seen) {
                return Ok(false);
            }
            before = Some(seen);
            let epoch = seen.map_or_else(|| starting_epoch(None), |(_, epoch)| epoch);
            let event = epoch.and_then(|epoch| self.events.installed(epoch, notice.at));
            if self.table.record_install_notice(location, InstallNotice { event, ..notice }).await?.is_applied() {
                self.events.publish_of(location, self.clock.now() + PATIENCE).await?;
                return Ok(true);
            }
            if event.is_none() {
                return Ok(false);
            }
        }
        Err(StoreError::Unavailable("the item changes faster than it can be written".into()))
    }

    async fn revoke(
        &self,
        resource: &Resource,
        seen: Option<TokenVersion>,
        at: Millis,
    ) -> Result<Write<Box<Installation>>, StoreError> {
        if !self.events.are_published() {
            return self.table.uninstall(resource, at, seen, None, self.clock.now()).await;
        }
        // The event names the next epoch, so the present epoch must be known.
        for _ in 0..ROUNDS {
            let Some(stored) = self.table.installation(resource).await? else { return Ok(Write::NotFound) };
            let epoch = seen.unwrap_or(stored.version).epoch;
            let event = self.events.uninstalled(epoch + 1, at);
            match self.table.uninstall(resource, at, seen, event, self.clock.now()).await? {
                Write::Conflict(stored) if seen.is_none() && stored.version.epoch != epoch => {}
                changed => return Ok(changed),
            }
        }
        Err(StoreError::Unavailable("the item changes faster than it can be written".into()))
    }

    /// Records a company before its installation is stored. So tokens of its locations can be minted at once, and the
    /// schedule reads the list of its locations. If the record fails, the locations are found at the daily renewal of
    /// the company's token. Returns the details that the marketplace has reported before.
    async fn record_company(&self, resource: &Resource, at: Millis) -> Option<AppDetails> {
        if resource.kind() == Kind::Location {
            return None;
        }
        let (id, now) = (resource.id(), self.clock.now());
        let noting = async {
            tokio::try_join!(self.table.note_task(id, Note::Installing(at), now), self.table.list_company(id, now))
        };
        // The future is boxed, because the futures of two SDK calls at once are large.
        if let Ok(Ok(((), details))) = tokio::time::timeout(RECORDING, Box::pin(noting)).await {
            return Some(details);
        }
        tracing::warn!(%resource, "a company could not be listed; its locations are found when its token is renewed");
        None
    }

    async fn store_patiently(&self, new: &NewInstallation<'_>, pair: &Pair) -> Result<Stored, VaultOrStore> {
        let mut stored = self.store(new, pair).await;
        for pause in [100, 300, 900] {
            if stored.is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(pause)).await;
            stored = self.store(new, pair).await;
        }
        stored
    }

    async fn store(&self, new: &NewInstallation<'_>, pair: &Pair) -> Result<Stored, VaultOrStore> {
        for _ in 0..ROUNDS {
            let stored = self.table.installation(new.resource).await?;
            let sealer = self.vault.sealer().await.map_err(VaultError::from)?;
            let seen = stored.as_ref().map(|stored| stored.version);
            if let Some(stored) = stored {
                if stored.is_committed_by(new.owner) {
                    return Ok(Some(stored.into()));
                }
                if stored.revoked_at().is_some_and(|at| at > new.installed_at) {
                    tracing::warn!(resource = %new.resource, "an install was not stored, because the app was uninstalled after it");
                    return Ok(None);
                }
                if stored.installed_at >= new.installed_at {
                    match stored.installed().map(|installed| &installed.source) {
                        // The uninstall ended a newer install, and this one with it.
                        None => return Ok(None),
                        Some(Source::Own { .. }) => {
                            if self.come_second(new, pair, &stored, &sealer).await? {
                                return Ok(None);
                            }
                            continue;
                        }
                        Some(Source::Minted { .. }) => {}
                    }
                }
            }
            // The details of an installation that is stored may be newer than those that were noted before it.
            let new = &NewInstallation { details: new.details.filter(|_| seen.is_none()), ..new.clone() };
            let next = seen.unwrap_or(TokenVersion { epoch: 0, generation: 0 }).reinstalled();
            let sealed = pair.seal(&sealer, new.resource, next, PairRole::Current);
            let event = self.events.installed(next.epoch, new.installed_at);
            if let Write::Applied(stored) = self.table.install(new, seen, &sealed, event).await? {
                return Ok(Some(stored));
            }
        }
        Err(StoreError::Unavailable("the item changes faster than it can be written".into()).into())
    }

    /// Handles an install after a newer install was stored meanwhile. Either of the two pairs may be the live one, so
    /// the pair of this install is kept as a standby pair. Returns false if the installation has changed meanwhile.
    async fn come_second(
        &self,
        new: &NewInstallation<'_>,
        pair: &Pair,
        stored: &Installation,
        sealer: &crate::seal::Sealer,
    ) -> Result<bool, StoreError> {
        let standby = StandbyPair {
            owner: new.owner.clone(),
            generation: stored.version.generation,
            // No refresh token was presented for this pair. The pair counts as being as old as the current pair.
            granted_from: stored.granted_from,
            pair: pair.seal(sealer, new.resource, stored.version, PairRole::Standby),
        };
        let known = stored.standby().iter().any(|standby| standby.owner == *new.owner);
        if !known {
            match self.table.add_standby(stored, &standby, self.clock.now()).await? {
                Write::Applied(_) => {}
                Write::Conflict(_) | Write::NotFound => return Ok(false),
            }
        }
        tracing::warn!(resource = %new.resource, "a newer install was stored first; the pair of this install is kept as a standby pair");
        Ok(true)
    }
}

/// Returns the epoch with which an install notice begins the installation of a location. Returns `None` if the app is
/// known to be installed there.
fn starting_epoch(seen: Option<&Installation>) -> Option<u64> {
    let Some(seen) = seen else { return Some(1) };
    let TokenVersion { epoch, .. } = seen.version;
    match seen.status() {
        Status::Revoked | Status::NeedsReauthorization => Some(epoch + 1),
        Status::Active | Status::Refreshing | Status::Uncertain | Status::Suspended | Status::Blocked => {
            seen.is_placeholder().then_some(epoch)
        }
    }
}

/// The installation that was stored, if its pair is the current one.
type Stored = Option<Box<Installation>>;

#[derive(Debug)]
enum VaultOrStore {
    Vault(VaultError),
    Store(StoreError),
}

impl From<VaultError> for VaultOrStore {
    fn from(error: VaultError) -> Self {
        Self::Vault(error)
    }
}

impl From<StoreError> for VaultOrStore {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}
