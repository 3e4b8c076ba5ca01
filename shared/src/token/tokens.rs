//! Reading access tokens. A reader gets a token that works: from memory, from the table, or renewed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use super::companies::{Agency, Roster};
use super::decision::{Next, RefusedToken, held, next};
use super::mint::Minter;
use super::outcome::{Refreshed, Why};
use super::pace::{Patience, RENEWAL_TIME, REPLAY_TIME, sleep_until_soon_before};
use super::reading::open;
use super::refresh::Refresher;
use super::schedule::{self, Freshness, freshness};
use super::{TokenError, lock};
use crate::domain::access::Access;
use crate::domain::clock::{Clock, Millis};
use crate::domain::installation::{Installation, SealedAccess};
use crate::domain::pace::Priority;
use crate::domain::resource::Resource;
use crate::domain::status::{Status, TokenVersion};
use crate::seal::vault::Vault;
use crate::table::Table;

/// A token is used from memory for this time. The contract promises that an uninstall is noticed within 10 s.
pub(super) const CACHED: Duration = Duration::from_secs(8);
/// The most tokens that a process keeps in memory. Each takes 2 KB.
pub(super) const MOST_CACHED: usize = 2_000;
/// The pause between two reads of the table while another attempt holds the lease, in milliseconds.
const POLL_MS: std::ops::Range<u64> = 100..400;

/// Provides access tokens for readers.
pub struct Tokens {
    pub(super) table: Table,
    vault: Arc<Vault>,
    refresher: Arc<Refresher>,
    pub(super) minter: Arc<Minter>,
    pub(super) clock: Clock,
    /// Snapshots of companies, for the readers of their minted locations.
    pub(super) agencies: Mutex<HashMap<Resource, Agency>>,
    /// Snapshot of the companies to ask about an unknown location.
    pub(super) listed: Mutex<Option<Roster>>,
    cache: Mutex<HashMap<Resource, Cached>>,
    /// One lock per resource (single flight): this process's other readers of the resource wait here and do not read
    /// the table.
    flights: Mutex<HashMap<Resource, Weak<tokio::sync::Mutex<()>>>>,
}

#[derive(Clone)]
struct Cached {
    access: Access,
    read_at: Millis,
    /// The time at which the platform last accepted the token, as far as this process knows.
    worked_at: Option<Millis>,
}

/// The status of an installation, for callers that ask for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstallationStatus {
    /// The status of the installation.
    pub status: Status,
    /// The time at which the access token expires, if there is one.
    pub token_expires_at: Option<Millis>,
}

impl Tokens {
    /// Creates a reader of the tokens of the installations in `table`.
    pub fn new(table: Table, vault: Arc<Vault>, refresher: Arc<Refresher>, minter: Arc<Minter>, clock: Clock) -> Self {
        Self {
            table,
            vault,
            refresher,
            minter,
            clock,
            agencies: Mutex::default(),
            listed: Mutex::default(),
            cache: Mutex::default(),
            flights: Mutex::default(),
        }
    }

    /// Returns a token that works at this instant, as far as this process knows. A stale token is renewed first, in an
    /// invocation that ends at `deadline`.
    ///
    /// # Errors
    /// [`TokenError`].
    pub async fn access(&self, resource: &Resource, deadline: Millis) -> Result<Access, TokenError> {
        if let Some(access) = self.cached(resource) {
            return Ok(access);
        }
        let flight = self.flight(resource);
        let _one_at_a_time = flight.lock().await;
        if let Some(access) = self.cached(resource) {
            return Ok(access);
        }
        let (access, as_of) = Box::pin(self.find(resource, None, deadline)).await?;
        self.remember(resource, &access, as_of);
        Ok(access)
    }

    /// Returns a token other than `used`, which the platform refused although `used` should work. Returns a newer token
    /// that is stored already, or forces a refresh. A refresh is forced at most once a minute.
    ///
    /// # Errors
    /// [`TokenError`]; [`TokenError::RecentlyForced`] if a refresh would not help.
    pub async fn renew(&self, resource: &Resource, used: &Access, deadline: Millis) -> Result<Access, TokenError> {
        self.renew_because(resource, used, Why::Forced, deadline).await
    }

    /// Renews a token like [`Tokens::renew`], but for a token that may be good: the platform answered 401 with an
    /// unclassified text. All processes together make one such renewal of a token. A token that comes from such a
    /// renewal, or that has worked a moment ago, is not renewed in this way.
    ///
    /// # Errors
    /// [`TokenError`]; [`TokenError::RecentlyForced`] if the platform's answer must be passed on to the caller.
    pub async fn renew_doubted(
        &self,
        resource: &Resource,
        used: &Access,
        deadline: Millis,
    ) -> Result<Access, TokenError> {
        self.renew_because(resource, used, Why::Doubted, deadline).await
    }

    pub(super) async fn renew_because(
        &self,
        resource: &Resource,
        used: &Access,
        why: Why,
        deadline: Millis,
    ) -> Result<Access, TokenError> {
        if why == Why::Doubted && (used.doubted || self.worked_lately(resource, used)) {
            return Err(TokenError::RecentlyForced);
        }
        self.forget(resource, used);
        let flight = self.flight(resource);
        let _one_at_a_time = flight.lock().await;
        if let Some(access) = self.cached(resource).filter(|access| version(access) > version(used)) {
            return Ok(access);
        }
        let refused = RefusedToken { version: version(used), why };
        let (access, as_of) = Box::pin(self.find(resource, Some(refused), deadline)).await?;
        self.remember(resource, &access, as_of);
        Ok(access)
    }

    /// Notes that the platform has accepted a token just now.
    pub fn worked(&self, resource: &Resource, access: &Access) {
        let now = self.clock.now();
        if let Some(cached) = lock(&self.cache).get_mut(resource)
            && version(&cached.access) == version(access)
        {
            cached.worked_at = Some(now);
        }
    }

    /// Notes that a renewal in doubt ([`Tokens::renew_doubted`]) has helped, so that another one is allowed. If the
    /// note cannot be stored, no such renewal is made before the schedule has renewed the token.
    pub async fn renewal_helped(&self, resource: &Resource, access: &Access) {
        if let Err(error) = self.table.clear_doubt(resource, version(access)).await {
            tracing::warn!(%resource, %error, "the table does not take the note that a renewal has helped: no further renewal after an unclassified 401 until the token is due");
        }
    }

    fn worked_lately(&self, resource: &Resource, used: &Access) -> bool {
        let now = self.clock.now();
        let cache = lock(&self.cache);
        let cached = cache.get(resource).filter(|cached| version(&cached.access) == version(used));
        cached.and_then(|cached| cached.worked_at).is_some_and(|at| now.since(at) < schedule::WORKED_LATELY)
    }

    /// Returns the status of an installation. Reads the table.
    ///
    /// # Errors
    /// [`TokenError::NotInstalled`] or [`TokenError::Store`].
    pub async fn status(&self, resource: &Resource) -> Result<InstallationStatus, TokenError> {
        let mut stored = self.table.installation(resource).await?.ok_or(TokenError::NotInstalled)?;
        if let Some(minted) = stored.minted() {
            if minted.is_placeholder {
                return Err(TokenError::NotInstalled);
            }
            match self.under_company(&mut stored).await {
                Err(TokenError::Revoked) => {
                    return Ok(InstallationStatus { status: Status::Revoked, token_expires_at: None });
                }
                looked => looked?,
            };
        }
        let token_expires_at = stored.access().map(|access| access.expires_at);
        Ok(InstallationStatus { status: stored.status(), token_expires_at })
    }

    /// Returns a token, and the time of the snapshot by which the token may be used.
    async fn find(
        &self,
        resource: &Resource,
        refused: Option<RefusedToken>,
        deadline: Millis,
    ) -> Result<(Access, Millis), TokenError> {
        loop {
            let now = self.clock.now();
            let Some(mut stored) = self.table.installation(resource).await? else {
                self.keep_placeholder(resource).await?;
                continue;
            };
            let is_minted = stored.minted().is_some();
            let (mut as_of, mut company_is_uninstalled) = (now, false);
            if is_minted {
                match self.under_company(&mut stored).await {
                    Ok(known_at) => as_of = known_at.min(now),
                    Err(TokenError::Revoked) => company_is_uninstalled = true,
                    Err(error) => return Err(error),
                }
            }
            let use_it = async |sealed| self.open(&stored, sealed).await.map(|access| (access, as_of));
            let usable = match next(&stored, refused, now) {
                // Another company may have the app in the location, so the location's token is minted from that
                // company.
                _ if company_is_uninstalled => None,
                Next::Use(access) => return use_it(access).await,
                Next::Renew(usable) => usable,
                Next::Fail(error) => return Err(error),
            };
            let why = refused.filter(|token| token.version == stored.version).map_or(Why::Due, |token| token.why);
            let refreshed = match held(&stored, now) {
                Some(until) => Refreshed::Held(until),
                None if is_minted => match (self.mint(&stored, why, deadline).await, usable) {
                    (Ok(Refreshed::Failed(TokenError::NotInstalled)), Some(access)) => return use_it(access).await,
                    (Ok(minted), _) => minted,
                    (Err(error), Some(access)) if !matches!(error, TokenError::Revoked) => return use_it(access).await,
                    (Err(error), _) => return Err(error),
                },
                None => {
                    let patience = self.patience(&stored, usable.is_some(), deadline);
                    self.refresher.refresh_with(patience, resource, stored.version, why, deadline).await
                }
            };
            match refreshed {
                Refreshed::Renewed(access) => {
                    return Ok((Access { doubted: why == Why::Doubted, ..access }, as_of));
                }
                Refreshed::Moved | Refreshed::IsMinted => {}
                Refreshed::Gone | Refreshed::Failed(TokenError::NotInstalled) => return Err(TokenError::NotInstalled),
                Refreshed::Held(until) => {
                    if let Some(access) = usable {
                        return use_it(access).await;
                    }
                    let pause = Duration::from_millis(fastrand::u64(POLL_MS));
                    if self.clock.now() + pause >= deadline {
                        return Err(TokenError::InProgress { retry_at: until.max(self.clock.now()) });
                    }
                    tokio::time::sleep(pause).await;
                }
                // Without a pace, the token was presented twice. A reader with a usable token does not wait for more.
                Refreshed::Failed(TokenError::Unanswered { retry_at, until, .. })
                    if retry_at + REPLAY_TIME <= deadline
                        && (usable.is_none() || retry_at <= until && self.refresher.is_paced().await) =>
                {
                    sleep_until_soon_before(&self.clock, retry_at).await;
                }
                Refreshed::Failed(error) => {
                    if let Some(access) = usable {
                        return use_it(access).await;
                    }
                    return Err(error);
                }
            }
        }
    }

    /// The priority and the patience of a renewal for a reader. A reader with a usable token does not wait, unless an
    /// answer of the platform is missing.
    fn patience(&self, stored: &Installation, has_token: bool, deadline: Millis) -> Patience {
        let now = self.clock.now();
        if let Some(until) = schedule::unanswered_until(stored, now)
            && schedule::is_urgent(stored.schedule().failures)
        {
            return Patience { priority: Priority::Replay, until: until.min(deadline - REPLAY_TIME) };
        }
        let latest = deadline - RENEWAL_TIME;
        Patience { priority: Priority::Caller, until: if has_token { now } else { latest } }
    }

    pub(super) async fn open(&self, stored: &Installation, access: &SealedAccess) -> Result<Access, TokenError> {
        open(&self.vault, stored, access).await
    }

    fn cached(&self, resource: &Resource) -> Option<Access> {
        let now = self.clock.now();
        let cache = lock(&self.cache);
        let Cached { access, read_at, .. } = cache.get(resource)?;
        let fresh = freshness(access.issued_at, access.expires_at, now) == Freshness::Fresh;
        (fresh && now.since(*read_at) < CACHED).then(|| access.clone())
    }

    fn remember(&self, resource: &Resource, access: &Access, as_of: Millis) {
        let now = self.clock.now();
        let mut cache = lock(&self.cache);
        if cache.len() >= MOST_CACHED {
            cache.retain(|_, cached| now.since(cached.read_at) < CACHED);
            if cache.len() >= MOST_CACHED {
                cache.clear();
            }
        }
        let before = cache.get(resource).filter(|cached| version(&cached.access) == version(access));
        let worked_at = before.and_then(|cached| cached.worked_at);
        cache.insert(resource.clone(), Cached { access: access.clone(), read_at: as_of, worked_at });
    }

    pub(super) fn forget(&self, resource: &Resource, used: &Access) {
        let mut cache = lock(&self.cache);
        if cache.get(resource).is_some_and(|cached| version(&cached.access) <= version(used)) {
            cache.remove(resource);
        }
    }

    fn flight(&self, resource: &Resource) -> Arc<tokio::sync::Mutex<()>> {
        let mut flights = lock(&self.flights);
        if let Some(flight) = flights.get(resource).and_then(Weak::upgrade) {
            return flight;
        }
        if flights.len() >= MOST_CACHED {
            flights.retain(|_, flight| flight.strong_count() > 0);
        }
        let flight = Arc::new(tokio::sync::Mutex::new(()));
        flights.insert(resource.clone(), Arc::downgrade(&flight));
        flight
    }
}

fn version(access: &Access) -> TokenVersion {
    TokenVersion { epoch: access.epoch, generation: access.generation }
}
