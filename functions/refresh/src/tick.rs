//! Everything that is due, until shortly before the invocation's end.

use std::collections::{HashSet, VecDeque};
use std::pin::pin;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use serde::Serialize;
use shared::app::App;
use shared::domain::clock::Millis;
use shared::domain::installation::Installation;
use shared::domain::resource::{Kind, Resource};
use shared::table::company::Note;
use shared::table::installation::{DUE_SHARDS, Due, DueKey, DuePage, LEASE};
use shared::table::{StoreError, Write};
use shared::token::TokenError;
use shared::token::outcome::{Failure, Refreshed, Why};
use shared::token::schedule;

use crate::companies;
use crate::event::Shards;

/// How many refreshes are under way at once.
const CONCURRENCY: usize = 16;
/// How many entries of the index are read at once.
const PAGE: i32 = 200;
/// No refresh is begun with less than a lease and this left.
const MARGIN: Duration = Duration::from_secs(1);

/// What an invocation did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Installations that were due.
    pub due: u64,
    /// Renewed by their refresh token.
    pub refreshed: u64,
    /// Minted from their company's token.
    pub minted: u64,
    /// Put off: not used of late, or in another's hands.
    pub deferred: u64,
    /// Tried without success, or not triable.
    pub failed: u64,
    /// Still due when the time was up.
    pub left: u64,
}

impl Summary {
    fn count(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Refreshed => self.refreshed += 1,
            Outcome::Minted => self.minted += 1,
            Outcome::Deferred => self.deferred += 1,
            Outcome::Failed => self.failed += 1,
            Outcome::NoTime => self.left += 1,
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Outcome {
    Refreshed,
    Minted,
    Deferred,
    Failed,
    NoTime,
}

/// Refreshes what is due in some shards, in an invocation that ends at `deadline`. Beside it, one of the parts sees to
/// the companies.
///
/// # Errors
/// [`StoreError`] if what is due cannot be read.
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
            // When the table does not answer, pairs come to the rescue queue: its depth is told all the same.
            tracing::error!(
                %error,
                BreakerOpen = gauges.breaker_open.map(u8::from),
                RescueDepth = gauges.rescue_depth,
                "what is due cannot be read"
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
        "tick"
    );
    Ok(summary)
}

/// What is measured once a tick, by one of its parts.
#[derive(Clone, Copy, Debug, Default)]
struct Gauges {
    breaker_open: Option<bool>,
    rescue_depth: Option<u64>,
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
        let (breaker, rescue_depth) = tokio::join!(app.table.breaker(), depth);
        let now = app.clock.now();
        let breaker_open = breaker.ok().map(|breaker| breaker.is_some_and(|open| now < open.until));
        Self { breaker_open, rescue_depth }
    }
}

/// Refreshes what is due. Also since when the oldest of it was, when the tick began.
///
/// The next shard of the index is read while what was found before is refreshed, so that as much is under way as may be.
/// Shards that had more than a page are read on once that is done: from where they were left, so that what stays due
/// hides nothing behind it.
async fn refresh(app: &App, shards: Shards, deadline: Millis) -> Result<(Summary, Duration), StoreError> {
    let began = app.clock.now();
    let mut index = Index::new(app, shards, deadline);
    let mut summary = Summary::default();
    while index.begin_round() {
        let pages = stream::unfold(&mut index, async |index| Some((index.page().await?, index)));
        let refreshes = pages.flat_map(stream::iter).map(|found| one(app, found, deadline));
        let mut outcomes = pin!(refreshes.buffer_unordered(CONCURRENCY));
        while let Some(outcome) = outcomes.next().await {
            summary.count(outcome);
        }
    }
    let Index { found, mut oldest, unread, stop, .. } = index;
    summary.due = found;
    match stop {
        Some(Stop::Failed(error)) => return Err(error),
        Some(Stop::NoTime) => count_left(app, shards, &mut summary).await?,
        None => {}
    }
    for (shard, after) in unread {
        let first = app.table.due(shard, began, after, 1).await?.entries;
        oldest = first.first().map_or(oldest, |first| oldest.min(first.due_at));
    }
    Ok((summary, began.since(oldest)))
}

/// The index of what is due, on its way through the shards of one part.
struct Index<'a> {
    app: &'a App,
    deadline: Millis,
    /// Shards to read in this round, and from where.
    unread: VecDeque<(u32, Option<DueKey>)>,
    /// Shards to read in the next, since they had more than was read.
    more: VecDeque<(u32, Option<DueKey>)>,
    /// The index lags behind the table, and what failed may be due again: each is looked at once.
    seen: HashSet<Resource>,
    /// How many were due.
    found: u64,
    /// Since when the first of them was.
    oldest: Millis,
    stop: Option<Stop>,
}

/// Why the index is not read to its end.
enum Stop {
    NoTime,
    Failed(StoreError),
}

/// What is due, and whether it was called of late.
struct Found {
    due: Due,
    hot: bool,
}

impl<'a> Index<'a> {
    fn new(app: &'a App, shards: Shards, deadline: Millis) -> Self {
        let more = (0..DUE_SHARDS).filter(|shard| shards.include(*shard)).map(|shard| (shard, None)).collect();
        let (unread, seen, oldest) = (VecDeque::new(), HashSet::new(), app.clock.now());
        Self { app, deadline, unread, more, seen, found: 0, oldest, stop: None }
    }

    /// Whether there is a round to go.
    fn begin_round(&mut self) -> bool {
        if self.stop.is_some() {
            return false;
        }
        self.unread = std::mem::take(&mut self.more);
        !self.unread.is_empty()
    }

    /// The next that are due, if there are any in this round. Never an error, which would end what is under way.
    async fn page(&mut self) -> Option<Vec<Found>> {
        while let Some((shard, after)) = self.unread.front().filter(|_| self.stop.is_none()).cloned() {
            if !leaves_time(self.app.clock.now(), self.deadline) {
                self.stop = Some(Stop::NoTime);
                return None;
            }
            let DuePage { entries, next } = match self.app.table.due(shard, self.app.clock.now(), after, PAGE).await {
                Ok(page) => page,
                Err(error) => {
                    self.stop = Some(Stop::Failed(error));
                    return None;
                }
            };
            self.unread.pop_front();
            if next.is_some() {
                self.more.push_back((shard, next));
            }
            self.oldest = entries.first().map_or(self.oldest, |first| self.oldest.min(first.due_at));
            let due: Vec<_> = entries.into_iter().filter(|due| self.seen.insert(due.resource.clone())).collect();
            if due.is_empty() {
                continue;
            }
            self.found += due.len() as u64;
            let hot = hot(self.app, &due).await;
            let is_hot = |due: &Due| hot.as_ref().is_none_or(|hot| hot.contains(&due.resource));
            return Some(due.into_iter().map(|due| Found { hot: is_hot(&due), due }).collect());
        }
        None
    }
}

/// Counts what is still due, looked at or not.
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

/// Refreshes one installation now; without `force` only if its token is no longer fresh.
///
/// # Errors
/// [`StoreError`] if it cannot be read.
pub async fn run_one(app: &App, resource: &Resource, force: bool, deadline: Millis) -> Result<Summary, StoreError> {
    let mut summary = Summary { due: 1, ..Summary::default() };
    let Some(stored) = app.table.installation(resource).await? else {
        tracing::warn!(%resource, "there is no such installation");
        summary.failed = 1;
        return Ok(summary);
    };
    let now = app.clock.now();
    let fresh = stored.pair.as_ref().is_some_and(|pair| {
        schedule::freshness(pair.access_issued_at, pair.access_expires_at, now) == schedule::Freshness::Fresh
    });
    if fresh && !force && stored.schedule.due_at.is_none_or(|due_at| now < due_at) {
        summary.deferred = 1;
        return Ok(summary);
    }
    let done = if stored.minted().is_some() {
        mint(app, &stored, Why::Operator, deadline).await
    } else {
        outcome(resource, app.refresher.refresh(resource, stored.version, Why::Operator, deadline).await)
    };
    summary.count(done);
    Ok(summary)
}

/// Which of them were called of late; nothing, if the counters do not say.
async fn hot(app: &App, due: &[Due]) -> Option<HashSet<Resource>> {
    // A company's token is what its locations' tokens are minted from, whether it is called itself or not.
    let (locations, companies): (Vec<_>, Vec<_>) =
        due.iter().map(|due| &due.resource).partition(|resource| resource.kind() == Kind::Location);
    match app.limiter.in_use(&locations).await {
        Ok(mut hot) => {
            hot.extend(companies.into_iter().cloned());
            Some(hot)
        }
        Err(error) => {
            tracing::warn!(%error, "the counters do not say what is in use: all is refreshed");
            None
        }
    }
}

/// Whether a refresh may still be begun.
fn leaves_time(now: Millis, deadline: Millis) -> bool {
    now + LEASE + MARGIN <= deadline
}

async fn one(app: &App, Found { due, hot }: Found, deadline: Millis) -> Outcome {
    let now = app.clock.now();
    if !leaves_time(now, deadline) {
        return Outcome::NoTime;
    }
    let due = &due;
    if !hot {
        let until = schedule::next_cold(now, fastrand::f64());
        let deferred = app.table.defer(due, until, now - schedule::HOT, now - schedule::OLDEST_COLD).await;
        // New, long not renewed, or not as the index says: then it is refreshed after all.
        if matches!(deferred, Ok(Write::Applied(_))) {
            return Outcome::Deferred;
        }
    }
    let grace_ends = now + schedule::GRACE - LEASE;
    loop {
        let refreshed = app.refresher.refresh(&due.resource, due.version, Why::Due, deadline).await;
        if matches!(refreshed, Refreshed::IsMinted) {
            return remint(app, due, deadline).await;
        }
        if due.resource.kind() == Kind::Company && matches!(refreshed, Refreshed::Renewed(_)) {
            read_again(app, &due.resource).await;
        }
        // The next tick would come too late for an answer that the platform gives again for a short time.
        let Refreshed::Failed(Failure::Unanswered(at)) = refreshed else { return outcome(&due.resource, refreshed) };
        if at > grace_ends || at + LEASE + MARGIN > deadline {
            return outcome(&due.resource, refreshed);
        }
        tokio::time::sleep(at.since(app.clock.now())).await;
    }
}

/// Mints the token of a location that has none of its own; lets it rest if there is nothing to mint from.
async fn remint(app: &App, due: &Due, deadline: Millis) -> Outcome {
    let stored = match app.table.installation(&due.resource).await {
        Ok(Some(stored)) => stored,
        Ok(None) => return Outcome::Deferred,
        Err(error) => {
            tracing::warn!(resource = %due.resource, %error, "not minted");
            return Outcome::Failed;
        }
    };
    if stored.version != due.version {
        return Outcome::Deferred;
    }
    mint(app, &stored, Why::Due, deadline).await
}

async fn mint(app: &App, stored: &Installation, why: Why, deadline: Millis) -> Outcome {
    let resource = &stored.resource;
    match app.tokens.mint(stored, why, deadline).await {
        Ok(Refreshed::Renewed(_)) => Outcome::Minted,
        Ok(otherwise) => outcome(resource, otherwise),
        // Whoever calls it finds out by himself whether that has changed.
        Err(TokenError::Revoked | TokenError::NotInstalled) => {
            match app.table.unschedule(resource, stored.version).await {
                Ok(_) => Outcome::Deferred,
                Err(error) => {
                    tracing::warn!(%resource, %error, "it stays due");
                    Outcome::Failed
                }
            }
        }
        Err(error) => {
            tracing::warn!(%resource, %error, "not minted");
            Outcome::Failed
        }
    }
}

/// With each renewal of a company's token, about once a day, its list of locations is read again.
async fn read_again(app: &App, company: &Resource) {
    if let Err(error) = app.table.note_task(company.id(), Note::Renewed, app.clock.now()).await {
        tracing::warn!(%company, %error, "its locations are not read again today");
    }
}

fn outcome(resource: &Resource, refreshed: Refreshed) -> Outcome {
    match refreshed {
        Refreshed::Renewed(_) => Outcome::Refreshed,
        Refreshed::Held(_) | Refreshed::Moved | Refreshed::IsMinted | Refreshed::Gone => Outcome::Deferred,
        Refreshed::Failed(Failure::NoTime) => Outcome::NoTime,
        Refreshed::Failed(failure) => {
            tracing::warn!(%resource, ?failure, "not refreshed");
            Outcome::Failed
        }
    }
}
