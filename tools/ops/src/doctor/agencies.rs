//! Checks the comparisons of the agencies' lists of locations with the stored locations.

use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use shared::domain::resource::Resource;
use shared::table::StoreError;

use super::Finding;
use crate::progress;
use crate::stack::Stack;

/// An agency's list is compared about once a day. After this time it is late.
const LATE: Duration = Duration::from_hours(24 * 8);
/// The number of agencies in one read of their list.
const PAGE: usize = 200;
/// The number of items that are read at once.
const CONCURRENCY: usize = 16;
/// The most agencies that a finding names.
const MOST_NAMES: usize = 5;

/// The sum over all agencies.
#[derive(Debug, Default)]
struct Sum {
    compared: u64,
    listed: u64,
    not_stored: u64,
    not_listed: u64,
    /// The agencies with locations that are stored and not listed.
    differ: Vec<Resource>,
    /// The agencies whose lists were not compared for a week.
    late: Vec<Resource>,
}

pub(super) async fn check(stack: &Stack) -> Finding {
    let what = "agencies' lists";
    let sum = match sum(stack).await {
        Ok(sum) => sum,
        Err(error) => return Finding::fail(what, error.to_string(), "repair the access to the table first"),
    };
    let Sum { compared, listed, not_stored, not_listed, differ, late } = sum;
    let said = format!(
        "{compared} lists were compared; {listed} locations are listed, {not_stored} of them were not stored before, and \
         {not_listed} stored locations are not listed"
    );
    if !late.is_empty() {
        return Finding::warn(
            what,
            format!("{said}; {} were not compared for a week: {}", late.len(), names(&late)),
            "search the log of refresh for the background task of the company",
        );
    }
    if !differ.is_empty() {
        return Finding::warn(
            what,
            format!("{said}: see {}", names(&differ)),
            "ops show company:ID names the locations; docs/operations.md, \"Agencies\", says what they may be",
        );
    }
    Finding::ok(what, if compared == 0 { "none was compared yet".to_owned() } else { said })
}

fn names(agencies: &[Resource]) -> String {
    let more = if agencies.len() > MOST_NAMES { ", …" } else { "" };
    let names: Vec<_> = agencies.iter().take(MOST_NAMES).map(ToString::to_string).collect();
    format!("{}{more}", names.join(", "))
}

async fn sum(stack: &Stack) -> Result<Sum, StoreError> {
    let table = &stack.app.table;
    let bar = progress::bar("read", None);
    let (mut sum, mut after) = (Sum::default(), None);
    loop {
        let page = table.companies(after.as_ref(), PAGE).await?;
        let companies = stream::iter(&page.items).map(async |listed| {
            let company = &listed.company;
            Ok::<_, StoreError>((company.clone(), table.comparison(company.id()).await?))
        });
        let companies: Vec<_> = companies.buffered(CONCURRENCY).try_collect().await?;
        for (company, comparison) in companies {
            bar.inc(1);
            let is_late = |at| stack.app.clock.now().since(at) > LATE;
            if comparison.as_ref().is_none_or(|comparison| is_late(comparison.at)) {
                // An agency without a grant has no list, and a new one may not have been listed yet.
                let stored = table.overview(&company).await?;
                let expected = stored.is_some_and(|one| !one.status.has_ended() && is_late(one.installed_at));
                if expected {
                    sum.late.push(company.clone());
                }
            }
            if let Some(comparison) = comparison {
                sum.compared += 1;
                sum.listed += comparison.listed;
                sum.not_stored += comparison.not_stored.count;
                sum.not_listed += comparison.not_listed.count;
                if comparison.not_listed.count > 0 {
                    sum.differ.push(company);
                }
            }
        }
        after = page.items.into_iter().next_back();
        if page.next.is_none() || after.is_none() {
            bar.finish_and_clear();
            return Ok(sum);
        }
    }
}
