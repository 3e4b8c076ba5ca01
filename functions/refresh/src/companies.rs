//! What is done for companies in the background: reading in which locations a new one has the app, and erasing the
//! tokens of the locations of one that no longer has it.
//!
//! Both can be broken off at any point and begun again: a list is read on from where it was left, and what is erased
//! stays erased. A task is struck only once nothing can follow it: it was noted before the write that it is about.

use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use shared::app::App;
use shared::clock::Millis;
use shared::installation::state::Status;
use shared::resource::Resource;
use shared::table::StoreError;
use shared::table::company::Task;
use shared::table::installation::{Installation, LEASE};
use shared::table::minted::Learnt;
use shared::token::company_api::{Asked, Departure, PAGE, Page};
use shared::token::{Access, TokenError};

/// How many locations are written at once.
const CONCURRENCY: usize = 16;
/// Nothing is begun with less time than this: a page, or the company's own token.
const ENOUGH: Duration = Duration::from_secs(16);
/// A task is older than this when everything that it could be about has happened: an invocation is shorter, and so is
/// the lease of a minting that was under way.
const SETTLED: Duration = Duration::from_mins(1);
/// A company that has no token, or whose list the platform does not give, is given up after this…
const HOPELESS: Duration = Duration::from_hours(24);
/// …and one whose install was announced and never stored after this.
const NEVER_STORED: Duration = Duration::from_hours(1);
/// Permits for one page that may come too late to be used.
const LATE_PERMITS: usize = 3;
/// The list may lag behind an uninstall by so much.
const LAG: Duration = Duration::from_mins(1);

/// Why a company's work is not finished.
#[derive(Debug, thiserror::Error)]
enum Unfinished {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("no token: {0}")]
    Token(#[from] TokenError),
    #[error("the platform: {0}")]
    Platform(String),
    #[error("no permit")]
    Permit,
    #[error("out of time")]
    Time,
}

/// Does what is to be done, in an invocation that ends at `deadline`. What is left is done by the next one.
pub async fn run(app: &App, deadline: Millis) {
    let mut tasks = match app.table.companies().await {
        Ok(companies) => companies.tasks,
        Err(error) => return tracing::warn!(%error, "what is to be done for companies cannot be read"),
    };
    tasks.sort_by_key(|task| task.at);
    while let Some(first) = tasks.first() {
        let (of_one, others): (Vec<Task>, Vec<Task>) =
            tasks.iter().cloned().partition(|task| task.company == first.company);
        if let Err(error) = one(app, &of_one, deadline).await {
            tracing::warn!(company = of_one[0].company, %error, "not finished for a company");
        }
        tasks = others;
    }
}

/// All tasks of one company: they are about how it stands now.
async fn one(app: &App, tasks: &[Task], deadline: Millis) -> Result<(), Unfinished> {
    let id = &tasks[0].company;
    let began = app.clock.now();
    let Ok(company) = Resource::company(id) else { return strike(app, tasks, |_| true).await };
    let stored = app.table.installation(&company).await?;
    let outcome = match &stored {
        None => Err(TokenError::NotInstalled.into()),
        Some(stored) if stored.status == Status::Revoked => erase(app, stored, deadline).await,
        Some(stored) => discover(app, stored, deadline).await,
    };
    let given_up = if stored.is_some() { HOPELESS } else { NEVER_STORED };
    let installed_at = stored.filter(|stored| stored.status != Status::Revoked).map(|stored| stored.installed_at);
    let done = outcome.is_ok();
    // An install is done once it is stored. What else there is waits until whatever was under way beside it is over.
    strike(app, tasks, |task| {
        began.since(task.at) >= given_up || done && (began.since(task.at) >= SETTLED || Some(task.at) == installed_at)
    })
    .await?;
    outcome
}

async fn strike(app: &App, tasks: &[Task], which: impl Fn(&Task) -> bool) -> Result<(), Unfinished> {
    for task in tasks.iter().filter(|task| which(task)) {
        app.table.strike_task(task).await?;
    }
    Ok(())
}

/// Erases what was minted from an installation that has ended.
async fn erase(app: &App, company: &Installation, deadline: Millis) -> Result<(), Unfinished> {
    let (id, epoch) = (company.resource.id(), company.lineage.epoch);
    let mut after = None;
    loop {
        expect_time(app, deadline)?;
        let page = app.table.locations_of(id, after.as_ref()).await?;
        let Some(last) = page.last().cloned() else { break };
        let erased = stream::iter(&page).map(|location| app.table.erase_minted(location, id, epoch));
        erased.buffer_unordered(CONCURRENCY).try_collect::<()>().await?;
        after = Some(last);
    }
    app.table.set_company(id, false).await?;
    tracing::info!(company = id, "the tokens of a company's locations are erased");
    Ok(())
}

/// Reads in which locations a company has the app.
async fn discover(app: &App, company: &Installation, deadline: Millis) -> Result<(), Unfinished> {
    let id = company.resource.id();
    app.table.set_company(id, true).await?;
    let mut skip = app.table.locations_read(id, app.clock.now()).await?;
    loop {
        let asked_at = app.clock.now();
        let page = page(app, &company.resource, skip, deadline).await?;
        let at = (asked_at - LAG).max(company.installed_at);
        let learnt = stream::iter(&page.installed)
            .map(|location| app.table.learn(location, Learnt { company: Some(id), at, event: None, now: asked_at }))
            .buffer_unordered(CONCURRENCY);
        let news: Vec<bool> = learnt.try_collect().await?;
        skip += page.entries;
        tracing::info!(
            company = id,
            entries = page.entries,
            news = news.iter().filter(|n| **n).count(),
            "locations read"
        );
        // `count` is the company's total, whatever the filter says: only a short page is the last one.
        if page.entries < PAGE {
            app.table.set_locations_read(id, 0, app.clock.now()).await?;
            return Ok(());
        }
        app.table.set_locations_read(id, skip, app.clock.now()).await?;
    }
}

async fn page(app: &App, company: &Resource, skip: usize, deadline: Millis) -> Result<Page, Unfinished> {
    expect_time(app, deadline)?;
    // A token that has to be renewed is renewed before a permit is taken.
    app.tokens.access(company, deadline).await?;
    let (mut asked, used) = ask(app, company, skip, deadline).await?;
    if matches!(asked, Asked::TokenRefused) {
        app.tokens.renew(company, &used, deadline).await?;
        (asked, _) = ask(app, company, skip, deadline).await?;
    }
    match asked {
        Asked::Got(page) => Ok(page),
        Asked::NotAllowed(text) => {
            tracing::error!(alarm = "not_allowed", %company, text,
                "a company's locations cannot be read: does the app have the scope oauth.readonly?");
            Err(Unfinished::Platform(text))
        }
        otherwise => Err(Unfinished::Platform(format!("{otherwise:?}"))),
    }
}

/// Asks for one page: a connection, a permit, the token as it is after the wait for the permit, and then the request.
async fn ask(
    app: &App,
    company: &Resource,
    skip: usize,
    deadline: Millis,
) -> Result<(Asked<Page>, Access), Unfinished> {
    for _ in 0..LATE_PERMITS {
        expect_time(app, deadline)?;
        let connection = app.endpoint.connection().await;
        let connection = connection.map_err(|failure| Unfinished::Platform(failure.to_string()))?;
        let permit = app.quota.take(company, Some(deadline - ENOUGH)).await.map_err(|_| Unfinished::Permit)?;
        let access = app.tokens.access(company, deadline).await?;
        let departure = Departure { connection, leave_by: permit.send_by };
        let asked = app.endpoint.installed_locations(company, &access, skip, departure).await;
        let Some((asked, heard)) = asked.map_err(TokenError::from)? else { continue };
        if let Some((status, headers)) = heard.limits {
            app.quota.observe(company, status, &headers).await?;
        }
        return Ok((asked, access));
    }
    Err(Unfinished::Permit)
}

fn expect_time(app: &App, deadline: Millis) -> Result<(), Unfinished> {
    if app.clock.now() + ENOUGH.max(LEASE) > deadline { Err(Unfinished::Time) } else { Ok(()) }
}
