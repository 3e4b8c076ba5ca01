//! The command `import`.

use std::collections::BTreeSet;
use std::io::{IsTerminal as _, Read as _};
use std::path::Path;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use serde_json::json;
use shared::domain::redacted::Redacted;
use shared::domain::resource::{Kind, Resource};
use shared::install::portable::{Imported, Portable, Rules};
use tokio::time::MissedTickBehavior;

use super::form::{self, Read};
use crate::arguments::Import;
use crate::error::CommandError;
use crate::installations::invoke_refresh;
use crate::print::{Out, note};
use crate::progress;
use crate::stack::Stack;

/// The number of installations that are stored at once.
const CONCURRENCY: usize = 16;
/// At most this many wrong lines are printed.
const SHOWN_ERRORS: usize = 20;
/// After this many failures in a row, no further token is renewed: the cause is the same for all.
const MOST_FAILURES: usize = 5;

/// The first renewals of pairs that are due already are distributed over a second for each line, and over this time at the
/// most. Callers renew on demand meanwhile.
const LONGEST_SPREAD: Duration = Duration::from_hours(6);

/// The number of installations by outcome.
#[derive(Debug, Default)]
struct Counts {
    stored: usize,
    same: usize,
    imported_before: usize,
    uninstalled: usize,
    kept: usize,
    failed: usize,
    /// The stored ones and the same ones that have no token of their own.
    without_token: usize,
}

/// Checks the whole file, then stores the installations. An import can be repeated: it continues after an interruption.
pub(crate) async fn run(stack: &Stack, out: Out, import: &Import) -> Result<(), CommandError> {
    let text = input(import.file.as_deref())?;
    let client_id = stack.app.app_secret.get().await?.client_id.clone();
    let read = form::read(text.expose(), import.format, &client_id, stack.app.clock.now()).map_err(wrong_lines)?;
    if import.replace && !import.yes && !import.dry_run {
        let effect = "this would replace the stored pair of every line, whatever its age";
        return Err(CommandError::without_yes(effect));
    }
    stack.expect_empty_queues("whose pairs are newer than the stored ones").await?;
    if import.renew.is_some() {
        expect_renewals(stack).await?;
    }
    note_agencies(stack, &read).await?;
    let home = stack.authorization.public_url.as_ref().map(url::Url::as_str);
    let spread = LONGEST_SPREAD.min(Duration::from_secs(read.len() as u64));
    let rules = Rules { replace: import.replace, dry_run: import.dry_run, home, spread };
    let (counts, to_renew) = store(stack, read, rules).await;
    let Counts { stored, same, imported_before, uninstalled, kept, failed, without_token } = counts;
    let verb = if import.dry_run { "would be stored" } else { "were stored" };
    let mut text = format!(
        "{stored} installations {verb}, {same} were already, {imported_before} were imported before and renewed since, \
         {uninstalled} were uninstalled here, {kept} others are kept as they are; {without_token} of the first two have \
         no token of their own"
    );
    let mut value = json!({
        "dry_run": import.dry_run,
        "stored": stored,
        "same": same,
        "imported_before": imported_before,
        "uninstalled": uninstalled,
        "kept": kept,
        "failed": failed,
        "without_token": without_token,
    });
    let mut not_renewed = 0;
    if let Some(per_minute) = import.renew {
        let of = to_renew.len();
        let renewed = renew(stack, to_renew, per_minute).await;
        not_renewed = of - renewed;
        value["renewed"] = json!(renewed);
        value["not_renewed"] = json!(not_renewed);
        text = format!("{text}; {renewed} of the first two were renewed");
    }
    out.value(&value, &text);
    if failed > 0 {
        return Err(CommandError::NotDone(format!("{failed} lines failed: run the command again")));
    }
    if kept > 0 {
        return Err(CommandError::Refused(format!(
            "{kept} lines differ from what is stored and were not stored (see above). Find out which token of each is the \
             valid one before you delete the lines"
        )));
    }
    if not_renewed > 0 {
        return Err(CommandError::NotDone(format!(
            "{not_renewed} were not renewed: see above, and run the command again"
        )));
    }
    Ok(())
}

/// Names the companies on whose token locations of the file depend, and which are neither in the file nor usable here.
async fn note_agencies(stack: &Stack, read: &[Read]) -> Result<(), CommandError> {
    let all = || read.iter().map(|read| &read.installation);
    let in_file: BTreeSet<_> = all().filter(|one| one.pair.is_some()).map(|one| one.resource.to_string()).collect();
    let needed = all().filter(|one| one.pair.is_none()).filter_map(|one| one.company.as_deref());
    for company in needed.collect::<BTreeSet<_>>() {
        let Ok(company) = Resource::company(company) else { continue };
        let stored = async || stack.app.table.overview(&company).await;
        if !in_file.contains(&company.to_string()) && stored().await?.is_none_or(|stored| stored.status.has_ended()) {
            note(&format!(
                "{company} is not in the file and has no valid grant here: its locations without a token of their own \
                 cannot be used"
            ));
        }
    }
    Ok(())
}

/// Checks what `--renew` needs, before anything is stored.
async fn expect_renewals(stack: &Stack) -> Result<(), CommandError> {
    if stack.refresh_function.is_none() {
        return Err(CommandError::Environment(
            "--renew needs REFRESH_FUNCTION, the name or ARN of the function".into(),
        ));
    }
    if stack.app.table.app_state().await?.paused_at.is_some() {
        return Err(CommandError::Refused(
            "refreshing is paused: import without --renew, or run ops resume first".into(),
        ));
    }
    Ok(())
}

fn input(file: Option<&Path>) -> Result<Redacted, CommandError> {
    let read = match file {
        Some(file) if file != Path::new("-") => std::fs::read_to_string(file),
        _ if std::io::stdin().is_terminal() => {
            return Err(CommandError::Environment("give a FILE, or the installations on standard input".into()));
        }
        _ => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map(|_| text)
        }
    };
    read.map(Redacted::from).map_err(|error| CommandError::Environment(format!("the file cannot be read: {error}")))
}

fn wrong_lines(errors: Vec<String>) -> CommandError {
    let count = errors.len();
    let mut shown: Vec<_> = errors.into_iter().take(SHOWN_ERRORS).collect();
    if count > SHOWN_ERRORS {
        shown.push(format!("and {} more", count - SHOWN_ERRORS));
    }
    CommandError::Environment(format!("nothing was stored, because the file is wrong:\n{}", shown.join("\n")))
}

/// Stores the installations. Returns those whose stored pair is the imported one, companies first: the tokens of their
/// locations depend on theirs.
async fn store(stack: &Stack, read: Vec<Read>, rules: Rules<'_>) -> (Counts, Vec<Resource>) {
    let bar = progress::bar("imported", Some(read.len() as u64));
    let (mut counts, mut to_renew) = (Counts::default(), Vec::new());
    let all = stream::iter(read).map(async |Read { line, installation }| {
        let imported = stack.app.installations.import(&installation, rules).await;
        (line, installation, imported)
    });
    let mut all = std::pin::pin!(all.buffer_unordered(CONCURRENCY));
    while let Some((line, Portable { resource, pair, .. }, imported)) = all.next().await {
        bar.inc(1);
        let say = |text: &str| bar.suspend(|| note(&format!("line {line}: {resource} {text}")));
        match &imported {
            Ok(Imported::Stored) => counts.stored += 1,
            Ok(Imported::Same) => counts.same += 1,
            Ok(Imported::ImportedBefore) => counts.imported_before += 1,
            Ok(Imported::KeptUninstalled) => {
                counts.uninstalled += 1;
                say("was not stored, because the app was uninstalled here");
            }
            Ok(Imported::KeptStored) => {
                counts.kept += 1;
                say("was not stored: a token is stored that was granted to this system or may be newer");
            }
            Ok(Imported::KeptLeased) => {
                counts.kept += 1;
                say("was not stored, because its token is being renewed: run the command again in a minute");
            }
            Ok(Imported::KeptFull) => {
                counts.kept += 1;
                say(
                    "was not stored, because several pairs are stored already: run ops refresh, which finds the valid one",
                );
            }
            Err(error) => {
                counts.failed += 1;
                say(&format!("was not stored: {error}"));
            }
        }
        if matches!(imported, Ok(Imported::Stored | Imported::Same)) {
            match pair {
                Some(_) => to_renew.push(resource),
                None => counts.without_token += 1,
            }
        }
    }
    bar.finish_and_clear();
    to_renew.sort_by_key(|resource| resource.kind() != Kind::Company);
    (counts, to_renew)
}

/// Makes the function `refresh` renew the tokens, one after another, at most `per_minute`, until [`MOST_FAILURES`] fail in
/// a row. Returns the number of those that are renewed.
async fn renew(stack: &Stack, resources: Vec<Resource>, per_minute: u32) -> usize {
    let bar = progress::bar("renewed", Some(resources.len() as u64));
    let mut pace = tokio::time::interval(Duration::from_mins(1) / per_minute);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut renewed, mut failures) = (0, 0);
    for resource in resources {
        if failures == MOST_FAILURES {
            bar.suspend(|| note(&format!("{MOST_FAILURES} renewals in a row have failed: no other is tried")));
            break;
        }
        pace.tick().await;
        let summary = invoke_refresh(stack, &json!({ "resource": resource, "force": true })).await;
        let is_renewed = summary.as_ref().is_ok_and(|summary| summary["refreshed"] == 1 || summary["minted"] == 1);
        if is_renewed {
            (renewed, failures) = (renewed + 1, 0);
        } else {
            failures += 1;
            let why = summary
                .err()
                .map_or("ops show and the log of refresh have the reason".to_owned(), |error| error.to_string());
            bar.suspend(|| note(&format!("{resource} was not renewed: {why}")));
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    renewed
}
