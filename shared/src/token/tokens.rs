//! Reading access tokens. A reader gets a token that works: from memory, from the table, or renewed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use super::companies::{Agency, Roster};
use super::mint::Minter;
use super::outcome::{Failure, Refreshed, Why};
use super::reading::open;
use super::refresh::Refresher;
use super::schedule::{self, Freshness, freshness};
use super::{TokenError, lock};
use crate::domain::access::Access;
use crate::domain::clock::{Clock, Millis};
use crate::domain::installation::{Installation, SealedPair};
use crate::domain::resource::Resource;
use crate::domain::status::{Status, TokenVersion};
use crate::seal::vault::Vault;
use crate::table::Table;
use crate::table::installation::LEASE;

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
    pub(super) refresher: Arc<Refresher>,
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

/// A token that the platform has refused.
#[derive(Clone, Copy, Debug)]
struct RefusedToken {
    version: TokenVersion,
    /// The kind of refusal: [`Why::Forced`] or [`Why::Doubted`].
    why: Why,
}

/// The state of an installation, for callers that ask for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The status of the installation.
    pub status: Status,
    /// The time at which the access token expires, if there is one.
    pub token_expires_at: Option<Millis>,
}

/// The next step of a reader, decided from the item.
enum Next<'a> {
    Use(&'a SealedPair),
    /// The token must be renewed. If the renewal fails, this pair may be used, since its access token still works.
    Renew(Option<&'a SealedPair>),
    Fail(TokenError),
}

impl Tokens {
    /// Creates a reader of the tokens of the installations in `table`.
    #[must_use]
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
            tracing::warn!(%resource, %error, "it is not noted that a renewal has helped");
        }
    }

    fn worked_lately(&self, resource: &Resource, used: &Access) -> bool {
        let now = self.clock.now();
        let cache = lock(&self.cache);
        let cached = cache.get(resource).filter(|cached| version(&cached.access) == version(used));
        cached.and_then(|cached| cached.worked_at).is_some_and(|at| now.since(at) < schedule::WORKED_LATELY)
    }

    /// Returns the state of an installation. Reads the table.
    ///
    /// # Errors
    /// [`TokenError::NotInstalled`] or [`TokenError::Store`].
    pub async fn standing(&self, resource: &Resource) -> Result<Standing, TokenError> {
        let mut stored = self.table.installation(resource).await?.ok_or(TokenError::NotInstalled)?;
        if let Some(minted) = stored.minted() {
            if minted.is_placeholder {
                return Err(TokenError::NotInstalled);
            }
            match self.under_company(&mut stored).await {
                Err(TokenError::Revoked) => return Ok(Standing { status: Status::Revoked, token_expires_at: None }),
                looked => looked?,
            };
        }
        let token_expires_at = stored.pair.as_ref().map(|pair| pair.access_expires_at);
        Ok(Standing { status: stored.status(), token_expires_at })
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
                self.suppose(resource).await?;
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
            let use_it = async |pair| self.open(&stored, pair).await.map(|access| (access, as_of));
            let usable = match next(&stored, refused, now) {
                // Another company may have the app in the location, so the location's token is minted from that
                // company.
                _ if company_is_uninstalled => None,
                Next::Use(pair) => return use_it(pair).await,
                Next::Renew(usable) => usable,
                Next::Fail(error) => return Err(error),
            };
            let why = refused.filter(|token| token.version == stored.version).map_or(Why::Due, |token| token.why);
            let refreshed = match held(&stored, now) {
                Some(until) => Refreshed::Held(until),
                None if is_minted => match (self.mint(&stored, why, deadline).await, usable) {
                    (Ok(Refreshed::Failed(Failure::NotInstalled)), Some(pair)) => return use_it(pair).await,
                    (Ok(minted), _) => minted,
                    (Err(error), Some(pair)) if !matches!(error, TokenError::Revoked) => return use_it(pair).await,
                    (Err(error), _) => return Err(error),
                },
                None => self.refresher.refresh(resource, stored.version, why, deadline).await,
            };
            match refreshed {
                Refreshed::Renewed(access) => {
                    return Ok((Access { doubted: why == Why::Doubted, ..access }, as_of));
                }
                Refreshed::Moved | Refreshed::IsMinted => {}
                Refreshed::Gone | Refreshed::Failed(Failure::NotInstalled) => return Err(TokenError::NotInstalled),
                Refreshed::Held(until) => {
                    if let Some(pair) = usable {
                        return use_it(pair).await;
                    }
                    let pause = Duration::from_millis(fastrand::u64(POLL_MS));
                    if self.clock.now() + pause >= deadline {
                        return Err(TokenError::InProgress { retry_at: until.max(self.clock.now()) });
                    }
                    tokio::time::sleep(pause).await;
                }
                Refreshed::Failed(Failure::Unanswered(at)) if usable.is_none() && at + LEASE <= deadline => {
                    tokio::time::sleep(at.since(self.clock.now())).await;
                }
                Refreshed::Failed(failure) => {
                    if let Some(pair) = usable {
                        return use_it(pair).await;
                    }
                    return Err(told(failure, self.clock.now()));
                }
            }
        }
    }

    pub(super) async fn open(&self, stored: &Installation, pair: &SealedPair) -> Result<Access, TokenError> {
        open(&self.vault, stored, pair).await
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

/// Decides the next step of a reader from the item. `refused` is a token that the platform has refused.
fn next(stored: &Installation, refused: Option<RefusedToken>, now: Millis) -> Next<'_> {
    if stored.status() == Status::Revoked {
        return Next::Fail(TokenError::Revoked);
    }
    let pair = stored.pair.as_ref().filter(|_| refused.is_none_or(|token| stored.version > token.version));
    let freshness_of = |pair: &SealedPair| freshness(pair.access_issued_at, pair.access_expires_at, now);
    if let Some(pair) = pair
        && freshness_of(pair) == Freshness::Fresh
        && !is_unanswered(stored, now)
    {
        return Next::Use(pair);
    }
    let usable = pair.filter(|pair| freshness_of(pair) != Freshness::Expired);
    let tried = stored.schedule.tried_at.unwrap_or(Millis(0));
    let instead = match stored.status() {
        Status::Active if refused.is_some_and(|token| is_in_vain(stored, token, now)) => TokenError::RecentlyForced,
        Status::Active | Status::Uncertain => {
            let retry_at =
                schedule::on_demand(tried, stored.schedule.failures).max(stored.schedule.retry_at.unwrap_or(tried));
            if retry_at <= now {
                return Next::Renew(usable);
            }
            TokenError::InProgress { retry_at }
        }
        Status::Refreshing => return Next::Renew(usable),
        Status::Suspended | Status::Blocked => {
            let retry_at = tried + schedule::RETRY_ON_DEMAND;
            if retry_at <= now {
                return Next::Renew(usable);
            }
            if stored.status() == Status::Suspended {
                TokenError::Suspended { retry_at }
            } else {
                TokenError::InProgress { retry_at }
            }
        }
        Status::NeedsReauthorization | Status::Revoked => {
            TokenError::ReauthorizationRequired { reinstall_url: stored.reinstall_url() }
        }
    };
    usable.map_or(Next::Fail(instead), Next::Use)
}

/// Returns the end of the lease if another attempt holds the lease. A caller that waits for that end needs no time for
/// a lease of its own.
fn held(stored: &Installation, now: Millis) -> Option<Millis> {
    stored.lease().map(|lease| lease.ends_at).filter(|end| *end > now)
}

/// Returns true if the refresh token was, as far as is known, presented a moment ago and its answer is missing. The
/// platform repeats the answer for a short time only, so the token is presented again although the access token still
/// works.
fn is_unanswered(stored: &Installation, now: Millis) -> bool {
    let open =
        stored.status() == Status::Uncertain || stored.status() == Status::Refreshing && held(stored, now).is_none();
    open && stored.schedule.tried_at.is_some_and(|at| now.since(at) < schedule::GRACE)
}

/// Returns true if, by the item, a renewal of a refused token would not help.
fn is_in_vain(stored: &Installation, refused: RefusedToken, now: Millis) -> bool {
    let forced_apart = refused.why.forced_apart().unwrap_or_default();
    let forced_recently = stored.schedule.forced_at.is_some_and(|at| now.since(at) < forced_apart);
    stored.version == refused.version
        && (forced_recently || (refused.why == Why::Doubted && stored.findings.is_doubted))
}

fn told(failure: Failure, now: Millis) -> TokenError {
    match failure {
        Failure::NotInstalled => TokenError::NotInstalled,
        Failure::CompanyRefused(..) => TokenError::InProgress { retry_at: now + schedule::FORCED_APART },
        Failure::TryAgain(retry_at) | Failure::Unanswered(retry_at) => TokenError::InProgress { retry_at },
        Failure::NoTime => TokenError::InProgress { retry_at: now + Duration::from_secs(1) },
        Failure::Suspended(retry_at) => TokenError::Suspended { retry_at },
        Failure::NeedsReauthorization(reinstall_url) => TokenError::ReauthorizationRequired { reinstall_url },
        Failure::Misconfigured(why) => TokenError::Misconfigured(why),
        Failure::ForcedRecently => TokenError::RecentlyForced,
        Failure::Secret(error) => TokenError::Secret(error),
        Failure::Store(error) => TokenError::Store(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::installation::{CompanySearch, Findings, Lease, Schedule, Source, State};
    use crate::domain::status::LeaseOwner;

    fn leased(ends_at: Millis) -> State {
        State::Refreshing(Lease { owner: LeaseOwner::new(), ends_at, claimed_from: Status::Active })
    }

    fn stored(status: Status, expires: i64) -> Installation {
        let state = match status {
            Status::Active => State::Active,
            Status::Refreshing => leased(NOW),
            Status::Uncertain => State::Uncertain,
            Status::Suspended => State::Suspended,
            Status::Blocked => State::Blocked,
            Status::NeedsReauthorization => State::NeedsReauthorization,
            Status::Revoked => State::Revoked { at: Millis(0) },
        };
        Installation {
            resource: Resource::location("L1").expect("an id"),
            version: TokenVersion { epoch: 1, generation: 7 },
            state,
            source: Source::Own { standby: Vec::new() },
            pair: Some(SealedPair {
                access: Vec::new(),
                refresh: None,
                access_issued_at: Millis(0),
                access_expires_at: Millis(expires),
            }),
            granted_from: 6,
            committed_by: None,
            schedule: Schedule::default(),
            findings: Findings::default(),
            search: CompanySearch::default(),
            installed_at: Millis(0),
            company: None,
            home: None,
            published: None,
            outbox: Vec::new(),
        }
    }

    const NOW: Millis = Millis(80_000_000);
    const FRESH: i64 = 86_400_000;
    const STALE: i64 = NOW.0 + 30_000;
    const EXPIRED: i64 = NOW.0 - 1;

    fn decision(stored: &Installation, refused: Option<RefusedToken>) -> &'static str {
        match next(stored, refused, NOW) {
            Next::Use(_) => "use",
            Next::Renew(Some(_)) => "renew or use",
            Next::Renew(None) => "renew",
            Next::Fail(TokenError::Revoked) => "revoked",
            Next::Fail(TokenError::ReauthorizationRequired { .. }) => "reauthorize",
            Next::Fail(TokenError::Suspended { .. }) => "suspended",
            Next::Fail(TokenError::RecentlyForced) => "pass on",
            Next::Fail(_) => "later",
        }
    }

    #[test]
    fn none_but_revoked_stops_a_reader_from_a_token_that_works() {
        use Status::*;
        for (status, fresh, stale, expired) in [
            (Active, "use", "renew or use", "renew"),
            (Refreshing, "use", "renew or use", "renew"),
            (Uncertain, "use", "renew or use", "renew"),
            (Suspended, "use", "renew or use", "renew"),
            (Blocked, "use", "renew or use", "renew"),
            (NeedsReauthorization, "use", "use", "reauthorize"),
            (Revoked, "revoked", "revoked", "revoked"),
        ] {
            for (expires, expected) in [(FRESH, fresh), (STALE, stale), (EXPIRED, expired)] {
                assert_eq!(decision(&stored(status, expires), None), expected, "{status} until {expires}");
            }
        }
    }

    #[test]
    fn a_refused_token_is_renewed_unless_a_newer_one_is_stored_or_it_was_forced_a_moment_ago() {
        let mut item = stored(Status::Active, FRESH);
        let at = |generation| Some(RefusedToken { version: TokenVersion { epoch: 1, generation }, why: Why::Forced });
        assert_eq!(decision(&item, at(6)), "use");
        assert_eq!(decision(&item, at(7)), "renew");
        item.schedule.forced_at = Some(Millis(NOW.0 - 59_000));
        assert_eq!(decision(&item, at(7)), "pass on");
        item.schedule.forced_at = Some(Millis(NOW.0 - 60_000));
        assert_eq!(decision(&item, at(7)), "renew");
    }

    #[test]
    fn a_token_in_doubt_is_renewed_once_in_an_hour_and_not_if_it_came_of_such_a_renewal() {
        let mut item = stored(Status::Active, FRESH);
        let doubted = Some(RefusedToken { version: item.version, why: Why::Doubted });
        assert_eq!(decision(&item, doubted), "renew");
        item.schedule.forced_at = Some(Millis(NOW.0 - 3_599_000));
        assert_eq!(decision(&item, doubted), "pass on");
        item.schedule.forced_at = Some(Millis(NOW.0 - 3_600_000));
        assert_eq!(decision(&item, doubted), "renew");
        for (is_doubted, expected) in [(true, "pass on"), (false, "renew")] {
            item.findings.is_doubted = is_doubted;
            assert_eq!(decision(&item, doubted), expected, "{is_doubted}");
            let forced = doubted.map(|token| RefusedToken { why: Why::Forced, ..token });
            assert_eq!(decision(&item, forced), "renew", "a text that is known counts all the same");
        }
    }

    #[test]
    fn a_missing_answer_is_asked_for_while_the_platform_gives_it_again() {
        let ago = |ms| Some(Millis(NOW.0 - ms));
        let mut item = stored(Status::Uncertain, FRESH);
        item.schedule.failures = 1;
        for (tried, expected) in
            [(ago(999), "use"), (ago(1_000), "renew or use"), (ago(29_999), "renew or use"), (ago(30_000), "use")]
        {
            item.schedule.tried_at = tried;
            assert_eq!(decision(&item, None), expected, "{tried:?}");
        }
        (item.schedule.tried_at, item.state) = (ago(14_999), leased(Millis(NOW.0 + 1)));
        assert_eq!(decision(&item, None), "use", "its holder may live");
        (item.schedule.tried_at, item.state) = (ago(15_000), leased(NOW));
        assert_eq!(decision(&item, None), "renew or use");
    }

    #[test]
    fn what_the_platform_asked_for_is_waited_for() {
        let mut item = stored(Status::Active, EXPIRED);
        (item.schedule.failures, item.schedule.tried_at, item.schedule.retry_at) =
            (1, Some(Millis(NOW.0 - 5_000)), Some(Millis(NOW.0 + 1)));
        assert_eq!(decision(&item, None), "later");
        item.schedule.retry_at = Some(NOW);
        assert_eq!(decision(&item, None), "renew");
    }

    #[test]
    fn callers_do_not_hammer_what_has_just_failed() {
        let mut item = stored(Status::Suspended, EXPIRED);
        item.schedule.tried_at = Some(Millis(NOW.0 - 1_000));
        assert_eq!(decision(&item, None), "suspended");
        item.state = State::Uncertain;
        item.schedule.failures = 3;
        assert_eq!(decision(&item, None), "later");
        item.schedule.tried_at = Some(Millis(NOW.0 - 4_000));
        assert_eq!(decision(&item, None), "renew");
    }
}
