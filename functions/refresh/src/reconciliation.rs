//! Compares a company's list of locations with the stored locations, when the list was read completely.
//!
//! The differences are counted, stored and shown to operators. They change no installation: lists of the platform have
//! been wrong, so a location that is not listed keeps its tokens until the platform refuses them
//! (docs/decisions/reconciliation.md).

use std::collections::HashSet;
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use shared::app::App;
use shared::domain::clock::Millis;
use shared::domain::installation::Installation;
use shared::domain::resource::Resource;
use shared::table::StoreError;
use shared::table::company::ListReading;
use shared::table::reconciliation::{Comparison, Difference, ListedPage};

/// The longest time for which the platform's list may still contain an uninstalled location, or lack an installed one.
pub(crate) const LIST_LAG: Duration = Duration::from_mins(1);
/// The number of items that are read at once.
const CONCURRENCY: usize = 16;

/// Compares a list, whose earlier pages are kept in the table, with the stored locations, and stores the result. Returns
/// false if there is no time before `stop_at`: then the last page is read again, and compared.
pub(crate) async fn compare(
    app: &App,
    company: &Installation,
    reading: &ListReading,
    last: ListedPage,
    stop_at: Millis,
) -> Result<bool, StoreError> {
    let id = company.resource.id();
    let pages = stream::iter(0..reading.pages).map(|number| app.table.listed_page(id, number));
    let pages: Option<Vec<_>> = pages.buffered(CONCURRENCY).try_collect::<Vec<_>>().await?.into_iter().collect();
    let Some(pages) = pages else {
        tracing::warn!(company = id, "a page of a company's list was not kept; the list is not compared this time");
        return Ok(true);
    };
    let (mut listed, mut new) = (HashSet::new(), Vec::new());
    for page in pages.into_iter().chain([last]) {
        listed.extend(page.installed);
        new.extend(page.new);
    }
    let Some(not_listed) = not_listed(app, company, &listed, reading.since, stop_at).await? else { return Ok(false) };
    // The first list of an installation stores most locations, which is no difference.
    let earlier = app.table.comparison(id).await?;
    if earlier.is_none_or(|earlier| earlier.at < company.installed_at) {
        new.clear();
    }
    let comparison = Comparison {
        at: app.clock.now(),
        listed: listed.len() as u64,
        not_stored: Difference::of(&new),
        not_listed: Difference::of(&not_listed),
    };
    app.table.record_comparison(id, &comparison).await?;
    tracing::info!(
        company = id,
        listed = comparison.listed,
        LocationsNotStored = comparison.not_stored.count,
        LocationsNotListed = comparison.not_listed.count,
        "the list of a company's locations was compared with the stored locations"
    );
    Ok(true)
}

/// The locations that are stored as installed and as the company's, and that are not listed. `None` if there is no time
/// before `stop_at`.
async fn not_listed(
    app: &App,
    company: &Installation,
    listed: &HashSet<Resource>,
    since: Millis,
    stop_at: Millis,
) -> Result<Option<Vec<Resource>>, StoreError> {
    let id = company.resource.id();
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        if app.clock.now() > stop_at {
            return Ok(None);
        }
        let page = app.table.locations_of(id, after.as_ref()).await?;
        let Some(last) = page.last().cloned() else { return Ok(Some(found)) };
        let unlisted = page.into_iter().filter(|location| !listed.contains(location));
        let looked = stream::iter(unlisted).map(async |location| app.table.overview(&location).await);
        let looked: Vec<_> = looked.buffered(CONCURRENCY).try_collect().await?;
        let counts = looked.into_iter().flatten().filter(|stored| {
            // The index may lag behind the table, and the list behind an install.
            stored.company.as_deref() == Some(id)
                && !stored.status.has_ended()
                && stored.installed_at < since - LIST_LAG
        });
        found.extend(counts.map(|stored| stored.resource));
        after = Some(last);
    }
}
