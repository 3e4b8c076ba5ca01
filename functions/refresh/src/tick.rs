//! One tick of the schedule: renews the tokens that are due, until shortly before the end of the invocation.

use std::collections::{HashSet, VecDeque};
use std::pin::pin;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use serde::Serialize;
use shared::app::App;
use shared::domain::clock::Millis;
use shared::domain::installation::Installation;
use shared::domain::pace::Priority;
use shared::domain::resource::{Kind, Resource};
use shared::domain::status::TokenVersion;
use shared::table::app::AppState;
use shared::table::company::Note;
use shared::table::installation::{DUE_SHARDS, Due, LEASE};
use shared::table::{Item, Page, StoreError, Write};
use shared::token::outcome::{Refreshed, Why};
use shared::token::pace::{Patience, RENEWAL_TIME, REPLAY_TIME, sleep_until_soon_before};
use shared::token::schedule;
use shared::token::{PAUSED, TokenError};

use crate::event::Shards;
use crate::{companies, paced};

/// The number of renewals that run at once.
pub(crate) const CONCURRENCY: usize = 16;
/// The number of entries in one read of the index.
const PAGE: i32 = 200;
/// A renewal starts only if the length of a lease plus this margin is left.
const MARGIN: Duration = Duration::from_secs(1);
/// During a pause, only installations that became due within this time are looked at: those whose answer was lost a moment
/// ago, and those that are minted, since the last tick.
const RECENT: Duration = Duration::from_mins(2);
/// A lost answer is not asked for in the last part of the platform's grace.
const GRACE_MARGIN: Duration = Duration::from_secs(2);

/// The counts of one invocation: the response of the function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Installations that were due.
    pub due: u64,
    /// Tokens that were renewed with their refresh token.
    pub refreshed: u64,
    /// Tokens that were minted from the company's token.
    pub minted: u64,
    /// Installations without recent calls, or whose lease another process holds. They are not renewed now.
    pub deferred: u64,
    /// Renewals that failed or could not start.
    pub failed: u64,
    /// Installations that were still due at the end of the time.
    pub left: u64,
}

impl Summary {
    pub(crate) fn count(&mut self, renewal: Renewal) {
        match renewal {
            Renewal::Refreshed => self.refreshed += 1,
            Renewal::Minted => self.minted += 1,
            Renewal::Deferred => self.deferred += 1,
            Renewal::Failed => self.failed += 1,
            Renewal::Left => self.left += 1,
        }
    }
}

/// The result for one due installation: the count of [`Summary`] that it adds to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Renewal {
    Refreshed,
    Minted,
    Deferred,
    Failed,
    /// It stays due: too little time is left, or the pace of the token endpoint has no place in time.
    Left,
}

/// Renews the tokens that are due in `shards`, in an invocation that ends at `deadline`. The part with shard 0 also runs
/// the companies' tasks, sends pending lifecycle events, and measures the gauges.
///
/// # Errors
/// [`StoreError`] if the index of due installations cannot be read.
pub async fn run(app: &App, shards: Shards, deadline: Millis) -> Result<Summary, StoreError> {
    let companies = async {
        if shards.include(0) {
            companies::run(app, deadline).await;
        }
    };
    let events = async {
        if shards.include(0) {
            app.events.publish_pending(deadline).await;
        }
    };
    // Boxed, because they are large.
    let (refreshed, (), (), gauges) = tokio::join!(
        Box::pin(refresh(app, shards, deadline)),
        Box::pin(companies),
        Box::pin(events),
        Box::pin(Gauges::read(app, shards))
    );
    let (summary, oldest) = match refreshed {
        Ok(done) => done,
        Err(error) => {
            // During an outage of the table, pairs go to the rescue queue. So its depth is logged here, too.
            tracing::error!(
                %error,
                BreakerOpen = gauges.breaker_open.map(u8::from),
                RescueDepth = gauges.rescue_depth,
                "the due installations cannot be read"
            );
            return Err(error);
        }
    };
    tracing::info!(
        refreshed = summary.refreshed,
        minted = summary.minted,
        deferred = summary.deferred,
        failed = summary.failed,
        Ticks = 1,
        Due = summary.due,
        Left = summary.left,
        OldestDueAge = oldest.as_secs(),
        BreakerOpen = gauges.breaker_open.map(u8::from),
        RescueDepth = gauges.rescue_depth,
        TokenPaceUsed = gauges.pace_used,
        "tick"
    );
    Ok(summary)
}

/// The gauges that one part of a tick measures.
#[derive(Clone, Copy, Debug, Default)]
struct Gauges {
    breaker_open: Option<bool>,
    rescue_depth: Option<u64>,
    /// The part of the token endpoint's pace that is in use, in percent. `None` if no pace is in force.
    pace_used: Option<u64>,
}

impl Gauges {
    async fn read(app: &App, shards: Shards) -> Self {
        if !shards.include(0) {
            return Self::default();
        }
        let depth = async {
            match &app.rescue {
                Some(queue) => queue.depth().await,
                None => None,
            }
        };
        let (state, rescue_depth) = tokio::join!(app.table.app_state(), depth);
        let (now, state) = (app.clock.now(), state.ok());
        let pace_used = state.as_ref().and_then(|AppState { pace, .. }| {
            Some(pace.percent_used(pace.limit(app.config.token_requests_per_minute, now)?, now))
        });
        let breaker_open = state.map(|AppState { breaker, paused_at, .. }| {
            paused_at.is_some() || breaker.is_some_and(|open| now < open.until)
        });
        Self { breaker_open, rescue_depth, pace_used }
    }
}

/// Renews the due tokens. Returns the counts, and the age of the oldest due entry at the start of the tick.
///
/// The index is read in rounds. A round reads one page of each shard while the renewals of earlier pages run, so that up
/// to [`CONCURRENCY`] renewals run at any time. The next round continues after the last entry of each page, so that entries
/// that stay due cannot hide later entries.
///
/// If the token endpoint has a pace, the whole index is read first, and the module `paced` renews the installations in the
/// order of their urgency. A pace that is learnt during the rounds ends them, and the next tick goes on.
///
/// While an operator has paused all refreshing, only the entries that became due lately are read. The others stay due.
async fn refresh(app: &App, shards: Shards, deadline: Millis) -> Result<(Summary, Duration), StoreError> {
    let began = app.clock.now();
    let mut index = DueIndex::new(app, shards, deadline).await?;
    let mut summary = Summary::default();
    let mut waiting = Vec::new();
    while index.begin_round() {
        if index.is_paced {
            while let Some(page) = index.page().await {
                waiting.extend(page);
            }
            continue;
        }
        let pages = stream::unfold(&mut index, async |index| Some((index.page().await?, index)));
        let refreshes = pages.flat_map(stream::iter).map(|entry| renew(app, entry, deadline));
        let mut renewals = pin!(refreshes.buffer_unordered(CONCURRENCY));
        while let Some(renewal) = renewals.next().await {
            summary.count(renewal);
        }
    }
    // Boxed, because it is large.
    Box::pin(paced::renew(app, waiting, deadline, &mut summary)).await;
    let DueIndex { found, is_paused, mut oldest, mut unread, stop, .. } = index;
    summary.due = found;
    match stop {
        Some(StopReason::Failed(error)) => return Err(error),
        Some(StopReason::Early) => count_left(app, shards, &mut summary).await?,
        None if is_paused => {
            tracing::warn!(
                "an operator has paused all refreshing: only lost answers are asked for, and tokens are minted"
            );
            count_left(app, shards, &mut summary).await?;
        }
        None => {}
    }
    if is_paused {
        unread = shards_of(shards);
    }
    for (shard, after) in unread {
        let first = app.table.due(shard, Millis(0), began, after, 1).await?.items;
        oldest = first.first().map_or(oldest, |first| oldest.min(first.due_at));
    }
    Ok((summary, began.since(oldest)))
}

/// A reader of the index of due installations, for the shards of one part.
struct DueIndex<'a> {
    app: &'a App,
    deadline: Millis,
    /// True if the token endpoint had a pace at the start.
    is_paced: bool,
    /// True if an operator had paused all refreshing at the start.
    is_paused: bool,
    /// Entries that became due before this time are not read.
    from: Millis,
    /// The shards to read in this round, each with the key after which to start.
    unread: VecDeque<(u32, Option<Item>)>,
    /// The shards to read in the next round, because they have further pages.
    more: VecDeque<(u32, Option<Item>)>,
    /// The installations found so far. Each is handled once, although the index lags behind the table and a failed renewal
    /// may be due again.
    seen: HashSet<Resource>,
    /// The number of due installations found.
    found: u64,
    /// The earliest time at which a found installation was due.
    oldest: Millis,
    stop: Option<StopReason>,
}

/// The reason for which the index was not read to its end.
enum StopReason {
    /// Too little time is left, or a pace was learnt.
    Early,
    Failed(StoreError),
}

/// A due installation. `hot` is true if it had recent calls.
pub(crate) struct DueEntry {
    pub(crate) due: Due,
    pub(crate) hot: bool,
}

impl<'a> DueIndex<'a> {
    async fn new(app: &'a App, shards: Shards, deadline: Millis) -> Result<Self, StoreError> {
        let (is_paced, is_paused, oldest) = (is_paced(app).await?, app.refresher.is_paused().await?, app.clock.now());
        let from = if is_paused { oldest - RECENT } else { Millis(0) };
        let (unread, more, seen) = (VecDeque::new(), shards_of(shards), HashSet::new());
        Ok(Self { app, deadline, is_paced, is_paused, from, unread, more, seen, found: 0, oldest, stop: None })
    }

    /// Starts the next round. Returns false if no shard is left to read.
    fn begin_round(&mut self) -> bool {
        if self.stop.is_some() {
            return false;
        }
        self.unread = std::mem::take(&mut self.more);
        !self.unread.is_empty()
    }

    /// The next page of this round. An error ends the reading and is stored in `stop`, so that running renewals can end.
    async fn page(&mut self) -> Option<Vec<DueEntry>> {
        while let Some((shard, after)) = self.unread.front().filter(|_| self.stop.is_none()).cloned() {
            let is_learnt = !self.is_paced && is_paced(self.app).await.unwrap_or(false);
            if is_learnt || !leaves_time(self.app.clock.now(), self.deadline) {
                self.stop = Some(StopReason::Early);
                return None;
            }
            let Page { items, next } =
                match self.app.table.due(shard, self.from, self.app.clock.now(), after, PAGE).await {
                    Ok(page) => page,
                    Err(error) => {
                        self.stop = Some(StopReason::Failed(error));
                        return None;
                    }
                };
            self.unread.pop_front();
            if next.is_some() {
                self.more.push_back((shard, next));
            }
            self.oldest = items.first().map_or(self.oldest, |first| self.oldest.min(first.due_at));
            let due: Vec<_> = items.into_iter().filter(|due| self.seen.insert(due.resource.clone())).collect();
            if due.is_empty() {
                continue;
            }
            self.found += due.len() as u64;
            let hot = hot(self.app, &due).await;
            let is_hot = |due: &Due| hot.as_ref().is_none_or(|hot| hot.contains(&due.resource));
            return Some(due.into_iter().map(|due| DueEntry { hot: is_hot(&due), due }).collect());
        }
        None
    }
}

/// The shards of one part, each to be read from its start.
fn shards_of(shards: Shards) -> VecDeque<(u32, Option<Item>)> {
    (0..DUE_SHARDS).filter(|shard| shards.include(*shard)).map(|shard| (shard, None)).collect()
}

async fn is_paced(app: &App) -> Result<bool, StoreError> {
    Ok(app.pace.limit().await?.is_some())
}

/// Counts the installations that are still due.
async fn count_left(app: &App, shards: Shards, summary: &mut Summary) -> Result<(), StoreError> {
    let handled = summary.due - summary.left;
    let now = app.clock.now();
    summary.left = 0;
    for shard in (0..DUE_SHARDS).filter(|shard| shards.include(*shard)) {
        summary.left += app.table.count_due(shard, now).await?;
    }
    summary.due = handled + summary.left;
    Ok(())
}

/// Renews one installation's token now. Without `force`, only if the token is due or not fresh.
///
/// # Errors
/// [`StoreError`] if the installation cannot be read.
pub async fn run_one(app: &App, resource: &Resource, force: bool, deadline: Millis) -> Result<Summary, StoreError> {
    let mut summary = Summary { due: 1, ..Summary::default() };
    let Some(stored) = app.table.installation(resource).await? else {
        tracing::warn!(%resource, "no installation of this resource is stored, so nothing was renewed");
        summary.failed = 1;
        return Ok(summary);
    };
    let now = app.clock.now();
    let is_fresh = schedule::fresh_access(&stored, now).is_some();
    if is_fresh && !force && stored.schedule().due_at.is_none_or(|due_at| now < due_at) {
        summary.deferred = 1;
        return Ok(summary);
    }
    let done = if stored.minted().is_some() {
        mint(app, &stored, Why::Operator, deadline).await
    } else {
        let patience = Patience { priority: Priority::Caller, until: deadline - RENEWAL_TIME };
        let refreshed = app.refresher.refresh_with(patience, resource, stored.version, Why::Operator, deadline).await;
        renewal_of(resource, refreshed)
    };
    summary.count(done);
    Ok(summary)
}

/// The due installations with recent calls. `None` if the counters cannot be read.
async fn hot(app: &App, due: &[Due]) -> Option<HashSet<Resource>> {
    // A company always counts as called, because its locations' tokens are minted from its token.
    let (locations, companies): (Vec<_>, Vec<_>) =
        due.iter().map(|due| &due.resource).partition(|resource| resource.kind() == Kind::Location);
    match app.limiter.in_use(&locations).await {
        Ok(mut hot) => {
            hot.extend(companies.into_iter().cloned());
            Some(hot)
        }
        Err(error) => {
            tracing::warn!(%error, "the counters cannot be read: installations without recent calls are renewed, too");
            None
        }
    }
}

/// Returns true if the time left is enough for a renewal.
fn leaves_time(now: Millis, deadline: Millis) -> bool {
    now <= last_start(deadline)
}

/// Renews the token of a due installation, or defers it if it had no recent calls.
async fn renew(app: &App, DueEntry { due, hot }: DueEntry, deadline: Millis) -> Renewal {
    if !leaves_time(app.clock.now(), deadline) {
        return Renewal::Left;
    }
    if !hot && deferred(app, &due).await {
        return Renewal::Deferred;
    }
    let patience = Patience { priority: Priority::Schedule, until: app.clock.now() };
    match refreshed(app, &due.resource, due.version, patience, deadline).await {
        Some(renewal) => renewal,
        None => remint(app, &due, deadline).await,
    }
}

/// Defers an installation without recent calls. Returns false if its token must be renewed all the same: a new
/// installation, a token of great age, or a stale index entry.
pub(crate) async fn deferred(app: &App, due: &Due) -> bool {
    let now = app.clock.now();
    let until = schedule::next_cold(now, fastrand::f64());
    let deferred = app.table.defer(due, until, now - schedule::HOT, now - schedule::OLDEST_COLD).await;
    matches!(deferred, Ok(Write::Applied(_)))
}

/// Refreshes the token of an installation. `None` if the installation has no refresh token.
pub(crate) async fn refreshed(
    app: &App,
    resource: &Resource,
    version: TokenVersion,
    mut patience: Patience,
    deadline: Millis,
) -> Option<Renewal> {
    let mut grace_ends = None;
    loop {
        let refreshed = app.refresher.refresh_with(patience, resource, version, Why::Due, deadline).await;
        if matches!(refreshed, Refreshed::IsMinted) {
            return None;
        }
        if resource.kind() == Kind::Company && matches!(refreshed, Refreshed::Renewed(_)) {
            request_list_again(app, resource).await;
        }
        // The platform repeats a lost answer for a short grace period only, and the next tick may come after it. So the
        // retry is made here.
        let Refreshed::Failed(TokenError::Unanswered { retry_at: at, until, is_urgent }) = refreshed else {
            return Some(renewal_of(resource, refreshed));
        };
        let until = *grace_ends.get_or_insert(until - GRACE_MARGIN);
        let has_no_place = !is_urgent && is_paced(app).await.unwrap_or(true);
        if has_no_place || at > until || at + REPLAY_TIME > deadline {
            return Some(renewal_of(resource, refreshed));
        }
        sleep_until_soon_before(&app.clock, at).await;
        patience = Patience { priority: Priority::Replay, until: until.min(deadline - REPLAY_TIME) };
    }
}

/// The latest time at which a renewal may start in an invocation that ends at `deadline`.
fn last_start(deadline: Millis) -> Millis {
    deadline - (LEASE + MARGIN)
}

/// Mints the token of a location without a refresh token. Unschedules the location if no company's token is available.
async fn remint(app: &App, due: &Due, deadline: Millis) -> Renewal {
    let stored = match app.table.installation(&due.resource).await {
        Ok(Some(stored)) => stored,
        Ok(None) => return Renewal::Deferred,
        Err(error) => {
            tracing::warn!(resource = %due.resource, %error, "the token was not minted");
            return Renewal::Failed;
        }
    };
    if stored.version != due.version {
        return Renewal::Deferred;
    }
    mint(app, &stored, Why::Due, deadline).await
}

pub(crate) async fn mint(app: &App, stored: &Installation, why: Why, deadline: Millis) -> Renewal {
    let resource = &stored.resource;
    match app.tokens.mint(stored, why, deadline).await {
        Ok(Refreshed::Renewed(_)) => Renewal::Minted,
        Ok(refreshed) => renewal_of(resource, refreshed),
        // The location is unscheduled. The next call of the location checks again.
        Err(TokenError::Revoked | TokenError::NotInstalled | TokenError::ReauthorizationRequired { .. }) => {
            match app.table.unschedule(resource, stored.version).await {
                Ok(_) => Renewal::Deferred,
                Err(error) => {
                    tracing::warn!(%resource, %error, "the location could not be removed from the schedule; the next tick tries again");
                    Renewal::Failed
                }
            }
        }
        Err(TokenError::Paced { .. }) => Renewal::Left,
        Err(error) => {
            tracing::warn!(%resource, %error, "the token was not minted");
            Renewal::Failed
        }
    }
}

/// Schedules a new read of a company's list of locations. Each renewal of its token does so, about once a day.
async fn request_list_again(app: &App, company: &Resource) {
    if let Err(error) = app.table.note_task(company.id(), Note::Renewed, app.clock.now()).await {
        tracing::warn!(%company, %error, "no new read of a company's list of locations could be scheduled; the company's next renewal schedules it");
    }
}

fn renewal_of(resource: &Resource, refreshed: Refreshed) -> Renewal {
    match refreshed {
        Refreshed::Renewed(_) => Renewal::Refreshed,
        Refreshed::Held(_) | Refreshed::Moved | Refreshed::IsMinted | Refreshed::Gone => Renewal::Deferred,
        Refreshed::Failed(TokenError::NoTime | TokenError::Paced { .. } | TokenError::Misconfigured(PAUSED)) => {
            Renewal::Left
        }
        Refreshed::Failed(error) => {
            tracing::warn!(%resource, %error, "the token was not renewed");
            Renewal::Failed
        }
    }
}
