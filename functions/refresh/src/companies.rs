//! Background tasks for companies. A task lists the locations in which an installed company has the app, or erases the
//! tokens of an uninstalled company's locations.
//!
//! A task can be interrupted at any point and resumed: the position in the list is stored, and erasing is idempotent. The
//! task is a write-ahead intent: it is stored before the write to the installation that causes it, and finished after that
//! write. A failed task is tried again with exponential backoff, so it does not delay the others.

use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use shared::app::App;
use shared::domain::access::Access;
use shared::domain::clock::Millis;
use shared::domain::installation::Installation;
use shared::domain::limits::Endpoint;
use shared::domain::resource::Resource;
use shared::platform::company_api::{CompanyApiError, CompanyApiResult, Departure, ListPosition, LocationsPage};
use shared::table::StoreError;
use shared::table::company::{ListReading, Task};
use shared::table::installation::LEASE;
use shared::table::minted::{InstallNotice, Noticed};
use shared::table::reconciliation::ListedPage;
use shared::token::TokenError;

use crate::reconciliation::{self, LIST_LAG};

/// The number of locations that are written at once.
const CONCURRENCY: usize = 16;
/// The least time that must be left to start a step: the request of a page, or the renewal of the company's token.
const MIN_TIME_LEFT: Duration = Duration::from_secs(16);
/// The number of tasks in one read of the index.
const TASKS_PAGE: i32 = 100;
/// The number of companies whose tasks run at once.
const COMPANIES_AT_ONCE: usize = 8;
/// The pause after the first failure of a task. Each further failure doubles the pause.
const RETRY: Duration = Duration::from_mins(1);
/// The longest pause after a failure.
const LONGEST_RETRY: Duration = Duration::from_mins(30);
/// The time after which a failing task is given up.
const GIVE_UP_AFTER: Duration = Duration::from_hours(24);
/// The time after which a task is given up if the installation that it waits for is never stored.
const GIVE_UP_PENDING_AFTER: Duration = Duration::from_hours(1);
/// The number of tries to get a permit that has not expired, for one page.
const PERMIT_TRIES: usize = 3;

/// The reason for which a task is not finished.
#[derive(Debug, thiserror::Error)]
enum TaskError {
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

/// Runs the tasks that are due, and continues the searches for the companies of locations. Stops before `deadline`, the
/// end of the invocation; the next tick continues.
pub async fn run(app: &App, deadline: Millis) {
    tokio::join!(Box::pin(run_tasks(app, deadline)), Box::pin(app.tokens.search(deadline)));
}

async fn run_tasks(app: &App, deadline: Millis) {
    let began = app.clock.now();
    let mut after = None;
    loop {
        let page = match app.table.due_tasks(began, after, TASKS_PAGE).await {
            Ok(page) => page,
            Err(error) => {
                return tracing::warn!(%error, "the background tasks of companies cannot be read; the next tick tries again");
            }
        };
        let runs = stream::iter(page.items).map(|company| run_task(app, company, deadline));
        runs.buffer_unordered(COMPANIES_AT_ONCE).collect::<()>().await;
        after = page.next;
        if after.is_none() || check_time_left(app, deadline).is_err() {
            return;
        }
    }
}

async fn run_task(app: &App, company: String, deadline: Millis) {
    let outcome = match app.table.task(&company, app.clock.now()).await {
        // Another tick has finished the task, and the index lags behind the table.
        Ok(None) => return,
        Ok(Some(task)) => execute(app, &task, deadline).await,
        Err(error) => Err(error.into()),
    };
    if let Err(error) = outcome {
        tracing::warn!(company, %error, "the background task of a company is not finished; a later tick continues");
    }
}

/// Erases or lists, as the stored state of the company requires. Then finishes or postpones the task.
async fn execute(app: &App, task: &Task, deadline: Millis) -> Result<(), TaskError> {
    check_time_left(app, deadline)?;
    let began = app.clock.now();
    let Ok(company) = Resource::company(&task.company) else { return finish(app, task).await };
    let stored = app.table.installation(&company).await?;
    let is_installed = stored.as_ref().is_some_and(|stored| stored.installed().is_some());
    // An install has ended when it is stored, or when a later uninstall has superseded it.
    let is_over = |stored: &Installation, started: Millis| {
        stored.installed_at >= started || stored.revoked_at().is_some_and(|at| at > started)
    };
    let install_is_pending =
        task.installing.is_some_and(|started| !stored.as_ref().is_some_and(|stored| is_over(stored, started)));
    let given_up = began.since(task.noted_at)
        >= if install_is_pending || stored.is_none() { GIVE_UP_PENDING_AFTER } else { GIVE_UP_AFTER };
    let outcome = match &stored {
        None => Err(TokenError::NotInstalled.into()),
        Some(stored) if stored.installed().is_none() => erase(app, stored, deadline).await,
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
        // The company's limit is used up, or this invocation ends. The next tick continues.
        (Err(TaskError::Permit | TaskError::Time), _) => {}
        (Ok(()), Some(at)) => app.table.postpone_task(task, at, 0).await?,
        (Ok(()), None) | (Err(_), _) => {
            let failures = task.failures + 1;
            let pause = (RETRY * 2_u32.saturating_pow(failures - 1)).min(LONGEST_RETRY);
            app.table.postpone_task(task, app.clock.now() + pause, failures).await?;
        }
    }
    outcome
}

async fn finish(app: &App, task: &Task) -> Result<(), TaskError> {
    app.table.finish_task(task, app.clock.now()).await?;
    Ok(())
}

/// Erases the tokens that were minted from a company's installation, after its uninstall.
async fn erase(app: &App, company: &Installation, deadline: Millis) -> Result<(), TaskError> {
    let (id, epoch) = (company.resource.id(), company.version.epoch);
    let mut after = None;
    loop {
        check_time_left(app, deadline)?;
        let page = app.table.locations_of(id, after.as_ref()).await?;
        let Some(last) = page.last().cloned() else { break };
        let erased = stream::iter(&page).map(|location| app.table.erase_minted(location, id, epoch));
        erased.buffer_unordered(CONCURRENCY).try_collect::<()>().await?;
        after = Some(last);
    }
    tracing::info!(company = id, "the tokens of a company's locations are erased");
    Ok(())
}

/// Reads the platform's list of the locations in which a company has the app, and stores them. After the last page, the
/// list is compared with the stored locations ([`reconciliation`]).
async fn discover(app: &App, company: &Installation, task: &Task, deadline: Millis) -> Result<(), TaskError> {
    let id = company.resource.id();
    app.table.keep_company_listed(id, company.installed_at).await?;
    let mut reading = task.reading.clone().unwrap_or_else(|| ListReading::begin(app.clock.now()));
    loop {
        let requested_at = app.clock.now();
        let page = page(app, &company.resource, &reading.position, deadline).await?;
        let at = (requested_at - LIST_LAG).max(company.installed_at);
        let noticed = stream::iter(&page.installed).map(async |location| {
            let notice = InstallNotice { company: Some(id), at, event: None, now: requested_at };
            Ok::<_, StoreError>((location, app.table.record_install_notice(location, notice).await?))
        });
        let noticed: Vec<_> = noticed.buffered(CONCURRENCY).try_collect().await?;
        let new = noticed.into_iter().filter(|(_, noticed)| *noticed == Noticed::New);
        let new: Vec<Resource> = new.map(|(location, _)| location.clone()).collect();
        tracing::info!(company = id, entries = page.entries, new = new.len(), "locations of a company were listed");
        let listed = ListedPage { installed: page.installed, new };
        let Some(next) = page.next else {
            let stop_at = deadline - MIN_TIME_LEFT;
            // A list with an entry that cannot be read is not compared.
            if page.unread == 0 && !reconciliation::compare(app, company, &reading, listed, stop_at).await? {
                return Err(TaskError::Time);
            }
            app.table.set_locations_read(id, None, app.clock.now()).await?;
            return Ok(());
        };
        if page.unread == 0 {
            app.table.keep_listed_page(id, reading.pages, &listed, app.clock.now()).await?;
        }
        reading = ListReading { since: reading.since, pages: reading.pages + 1, position: next };
        app.table.set_locations_read(id, Some(&reading), app.clock.now()).await?;
    }
}

async fn page(
    app: &App,
    company: &Resource,
    position: &ListPosition,
    deadline: Millis,
) -> Result<LocationsPage, TaskError> {
    check_time_left(app, deadline)?;
    // Renews the token, if necessary, before a permit is taken.
    app.tokens.access(company, deadline).await?;
    let (mut result, mut used) = request_page(app, company, position, deadline).await?;
    let (renewed, doubted) = match &result {
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
        (result, used) = request_page(app, company, position, deadline).await?;
    }
    let error = match result {
        Ok(page) => {
            app.tokens.worked(company, &used);
            if doubted {
                app.tokens.renewal_helped(company, &used).await;
            }
            return Ok(page);
        }
        Err(error) => error,
    };
    match &error {
        CompanyApiError::NotAllowed(text) => app.alarms.not_allowed(company, "oauth.readonly", text).await,
        CompanyApiError::NotReached => app.alarms.not_reached(company).await,
        _ => {}
    }
    if let Some((status, text)) = error.unclassified() {
        app.alarms.unclassified(company, status, text).await;
    }
    Err(TaskError::Platform(format!("{error:?}")))
}

/// Requests one page: opens a connection, takes a permit, reads the token (which may change during the wait for the
/// permit), and sends the request.
async fn request_page(
    app: &App,
    company: &Resource,
    position: &ListPosition,
    deadline: Millis,
) -> Result<(CompanyApiResult<LocationsPage>, Access), TaskError> {
    let to = Endpoint::of(company, "/oauth/installedLocations");
    for _ in 0..PERMIT_TRIES {
        check_time_left(app, deadline)?;
        let connection = app.endpoint.connection().await;
        let connection = connection.map_err(|failure| TaskError::Platform(failure.to_string()))?;
        let permit = app.limiter.take(to, Some(deadline - MIN_TIME_LEFT)).await.map_err(|_| TaskError::Permit)?;
        let access = app.tokens.access(company, deadline).await?;
        let departure = Departure { connection, leave_by: permit.send_by };
        let result = app.endpoint.installed_locations(company, &access, position, departure).await;
        let Some((result, meta)) = result.map_err(TokenError::from)? else { continue };
        if let Some(head) = meta.head {
            app.limiter.observe(to, head.sent_at, head.status, &head.headers).await?;
        }
        return Ok((result, access));
    }
    Err(TaskError::Permit)
}

fn check_time_left(app: &App, deadline: Millis) -> Result<(), TaskError> {
    if app.clock.now() + MIN_TIME_LEFT.max(LEASE) > deadline { Err(TaskError::Time) } else { Ok(()) }
}
