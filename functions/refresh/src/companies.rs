//! What is done for companies in the background: reading in which locations a new one has the app, and erasing the
//! tokens of the locations of one that no longer has it.
//!
//! Both can be broken off at any point and begun again: a list is read on from where it was left, and what is erased
//! stays erased. A task is noted before the write that it is about, and finished only once that write is over. A task
//! that fails is tried again after a growing pause, so that it does not hold up the others.

use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use shared::app::App;
use shared::domain::access::Access;
use shared::domain::clock::Millis;
use shared::domain::installation::Installation;
use shared::domain::limits::Endpoint;
use shared::domain::resource::Resource;
use shared::domain::status::Status;
use shared::platform::company_api::{CompanyApiError, CompanyApiResult, Departure, LocationsPage, PAGE};
use shared::table::StoreError;
use shared::table::company::Task;
use shared::table::installation::LEASE;
use shared::table::minted::InstallNotice;
use shared::token::TokenError;

/// How many locations are written at once.
const CONCURRENCY: usize = 16;
/// Nothing is begun with less time than this: a page, or the company's own token.
const ENOUGH: Duration = Duration::from_secs(16);
/// Tasks that are read from the index at once.
const TASKS_PAGE: i32 = 100;
/// Companies whose tasks run at once.
const COMPANIES_AT_ONCE: usize = 8;
/// Pause after a failed run. It doubles with each further failure…
const RETRY: Duration = Duration::from_mins(1);
/// …up to this.
const LONGEST_RETRY: Duration = Duration::from_mins(30);
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

/// Runs the tasks that are due and goes on with the searches for locations' companies, in an invocation that ends at
/// `deadline`. The next tick does what is left.
pub async fn run(app: &App, deadline: Millis) {
    tokio::join!(Box::pin(run_tasks(app, deadline)), Box::pin(app.tokens.search(deadline)));
}

async fn run_tasks(app: &App, deadline: Millis) {
    let began = app.clock.now();
    let mut after = None;
    loop {
        let page = match app.table.due_tasks(began, after, TASKS_PAGE).await {
            Ok(page) => page,
            Err(error) => return tracing::warn!(%error, "the companies' tasks cannot be read"),
        };
        let runs = stream::iter(page.entries).map(|company| run_task(app, company, deadline));
        runs.buffer_unordered(COMPANIES_AT_ONCE).collect::<()>().await;
        after = page.next;
        if after.is_none() || expect_time(app, deadline).is_err() {
            return;
        }
    }
}

async fn run_task(app: &App, company: String, deadline: Millis) {
    let outcome = match app.table.task(&company, app.clock.now()).await {
        // Another tick has finished it, or the index lags behind the table.
        Ok(None) => return,
        Ok(Some(task)) => one(app, &task, deadline).await,
        Err(error) => Err(error.into()),
    };
    if let Err(error) = outcome {
        tracing::warn!(company, %error, "a company's task is not finished");
    }
}

/// Does what the stored state of a company asks for, and then finishes or postpones its task.
async fn one(app: &App, task: &Task, deadline: Millis) -> Result<(), Unfinished> {
    expect_time(app, deadline)?;
    let began = app.clock.now();
    let Ok(company) = Resource::company(&task.company) else { return finish(app, task).await };
    let stored = app.table.installation(&company).await?;
    let is_installed = stored.as_ref().is_some_and(|stored| stored.status() != Status::Revoked);
    // An install is over once it is stored, or was dropped because of a later uninstall.
    let is_over = |stored: &Installation, started: Millis| {
        stored.installed_at >= started || stored.revoked_at().is_some_and(|at| at > started)
    };
    let install_is_pending =
        task.installing.is_some_and(|started| !stored.as_ref().is_some_and(|stored| is_over(stored, started)));
    let given_up =
        began.since(task.noted_at) >= if install_is_pending || stored.is_none() { NEVER_STORED } else { HOPELESS };
    let outcome = match &stored {
        None => Err(TokenError::NotInstalled.into()),
        Some(stored) if stored.status() == Status::Revoked => erase(app, stored, deadline).await,
        Some(stored) => discover(app, stored, task, deadline).await,
    };
    if !is_installed && (given_up || outcome.is_ok() && !install_is_pending) {
        app.table.unlist_company(&task.company, task.noted_at, began).await?;
    }
    let unsettled = task.settles_at.filter(|at| began < *at);
    if given_up || outcome.is_ok() && !install_is_pending && unsettled.is_none() {
        finish(app, task).await?;
        return outcome;
    }
    match (&outcome, unsettled) {
        // The company's limit is used up, or this invocation is over: the next tick goes on.
        (Err(Unfinished::Permit | Unfinished::Time), _) => {}
        (Ok(()), Some(at)) => app.table.postpone_task(task, at, 0).await?,
        (Ok(()), None) | (Err(_), _) => {
            let failures = task.failures + 1;
            let pause = (RETRY * 2_u32.saturating_pow(failures - 1)).min(LONGEST_RETRY);
            app.table.postpone_task(task, app.clock.now() + pause, failures).await?;
        }
    }
    outcome
}

async fn finish(app: &App, task: &Task) -> Result<(), Unfinished> {
    app.table.finish_task(task, app.clock.now()).await?;
    Ok(())
}

/// Erases what was minted from an installation that has ended.
async fn erase(app: &App, company: &Installation, deadline: Millis) -> Result<(), Unfinished> {
    let (id, epoch) = (company.resource.id(), company.version.epoch);
    let mut after = None;
    loop {
        expect_time(app, deadline)?;
        let page = app.table.locations_of(id, after.as_ref()).await?;
        let Some(last) = page.last().cloned() else { break };
        let erased = stream::iter(&page).map(|location| app.table.erase_minted(location, id, epoch));
        erased.buffer_unordered(CONCURRENCY).try_collect::<()>().await?;
        after = Some(last);
    }
    tracing::info!(company = id, "the tokens of a company's locations are erased");
    Ok(())
}

/// Reads in which locations a company has the app.
async fn discover(app: &App, company: &Installation, task: &Task, deadline: Millis) -> Result<(), Unfinished> {
    let id = company.resource.id();
    app.table.keep_company_listed(id, company.installed_at).await?;
    let mut skip = task.read;
    loop {
        let asked_at = app.clock.now();
        let page = page(app, &company.resource, skip, deadline).await?;
        let at = (asked_at - LAG).max(company.installed_at);
        let learnt = stream::iter(&page.installed)
            .map(|location| {
                app.table.record_install_notice(
                    location,
                    InstallNotice { company: Some(id), at, event: None, now: asked_at },
                )
            })
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

async fn page(app: &App, company: &Resource, skip: usize, deadline: Millis) -> Result<LocationsPage, Unfinished> {
    expect_time(app, deadline)?;
    // A token that has to be renewed is renewed before a permit is taken.
    app.tokens.access(company, deadline).await?;
    let (mut asked, mut used) = ask(app, company, skip, deadline).await?;
    let (renewed, doubted) = match &asked {
        Err(CompanyApiError::TokenRefused) => {
            app.tokens.renew(company, &used, deadline).await?;
            (true, false)
        }
        Err(CompanyApiError::TokenDoubted(_)) => {
            let renewed = app.tokens.renew_doubted(company, &used, deadline).await.is_ok();
            (renewed, renewed)
        }
        _ => (false, false),
    };
    if renewed {
        (asked, used) = ask(app, company, skip, deadline).await?;
    }
    let otherwise = match asked {
        Ok(page) => {
            app.tokens.worked(company, &used);
            if doubted {
                app.tokens.renewal_helped(company, &used).await;
            }
            return Ok(page);
        }
        Err(otherwise) => otherwise,
    };
    match &otherwise {
        CompanyApiError::NotAllowed(said) => app.alarms.not_allowed(company, "oauth.readonly", said).await,
        CompanyApiError::NotReached => app.alarms.not_reached(company).await,
        _ => {}
    }
    if let Some((status, said)) = otherwise.unclassified() {
        app.alarms.unclassified(company, status, said).await;
    }
    Err(Unfinished::Platform(format!("{otherwise:?}")))
}

/// Asks for one page: a connection, a permit, the token as it is after the wait for the permit, and then the request.
async fn ask(
    app: &App,
    company: &Resource,
    skip: usize,
    deadline: Millis,
) -> Result<(CompanyApiResult<LocationsPage>, Access), Unfinished> {
    let to = Endpoint::of(company, "/oauth/installedLocations");
    for _ in 0..LATE_PERMITS {
        expect_time(app, deadline)?;
        let connection = app.endpoint.connection().await;
        let connection = connection.map_err(|failure| Unfinished::Platform(failure.to_string()))?;
        let permit = app.limiter.take(to, Some(deadline - ENOUGH)).await.map_err(|_| Unfinished::Permit)?;
        let access = app.tokens.access(company, deadline).await?;
        let departure = Departure { connection, leave_by: permit.send_by };
        let asked = app.endpoint.installed_locations(company, &access, skip, departure).await;
        let Some((asked, meta)) = asked.map_err(TokenError::from)? else { continue };
        if let Some((status, headers)) = meta.head {
            app.limiter.observe(to, status, &headers).await?;
        }
        return Ok((asked, access));
    }
    Err(Unfinished::Permit)
}

fn expect_time(app: &App, deadline: Millis) -> Result<(), Unfinished> {
    if app.clock.now() + ENOUGH.max(LEASE) > deadline { Err(Unfinished::Time) } else { Ok(()) }
}
