//! The commands `sealing`: rotate the keys that seal the tokens. A rotation can be interrupted at any point: a key is
//! added before any token is sealed under it, and removed after no token is.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use serde_json::json;
use shared::domain::clock::Millis;
use shared::domain::installation::Installation;
use shared::seal::DataKeys;
use shared::secrets::edit::{EditedSecret, Replaced, Version};
use shared::table::Item;
use shared::token::reseal::{Resealed, keys_of, reseal};

use crate::arguments::Sealing;
use crate::error::CommandError;
use crate::print::{Out, note};
use crate::progress;
use crate::stack::Stack;

/// The number of installations that are written at once.
const CONCURRENCY: usize = 16;
/// The time after which no process seals under the previous current key: a process caches the secret for 45 s, and an
/// invocation that began then ends within 85 s.
const SETTLED: Duration = Duration::from_secs(135);

/// Runs one of the commands.
pub(crate) async fn run(stack: &Stack, out: Out, command: Sealing) -> Result<(), CommandError> {
    let secret = stack.sealing();
    match command {
        Sealing::List => list(stack, &secret, out).await,
        Sealing::Rotate => rotate(stack, &secret, out).await,
        Sealing::Reseal => {
            let (_, keys) = read(&secret).await?;
            seal_all(stack, out, keys).await
        }
        Sealing::Retire { id, wait } => retire(stack, &secret, out, &id, wait).await,
    }
}

async fn read(secret: &EditedSecret) -> Result<(Version, DataKeys), CommandError> {
    let version = secret.read().await?;
    let keys = DataKeys::parse(version.text.expose()).map_err(|error| CommandError::NotDone(error.to_string()))?;
    Ok((version, keys))
}

/// Reads all installations with their sealed tokens, and calls `each` with every page.
pub(crate) async fn for_each_page(
    stack: &Stack,
    what: &'static str,
    mut each: impl AsyncFnMut(Vec<Installation>) -> Result<(), CommandError>,
) -> Result<(), CommandError> {
    let bar = progress::bar(what, stack.estimate().await);
    let mut from: Option<Item> = None;
    let mut unreadable = Vec::new();
    loop {
        let part = stack.app.table.sealed(from).await?;
        let read = part.items.len() as u64;
        let page =
            part.items.into_iter().filter_map(|item| item.map_err(|error| unreadable.push(error)).ok()).collect();
        each(page).await?;
        progress::advance(&bar, read);
        from = part.next;
        if from.is_none() {
            break;
        }
    }
    bar.finish_and_clear();
    match unreadable.first() {
        None => Ok(()),
        Some(first) => {
            Err(CommandError::NotDone(format!("{} items cannot be read, such as: {first}", unreadable.len())))
        }
    }
}

async fn counts(stack: &Stack) -> Result<BTreeMap<String, u64>, CommandError> {
    let mut counts = BTreeMap::new();
    for_each_page(stack, "read", async |page| {
        for installation in &page {
            keys_of(installation, &mut counts);
        }
        Ok(())
    })
    .await?;
    Ok(counts)
}

async fn list(stack: &Stack, secret: &EditedSecret, out: Out) -> Result<(), CommandError> {
    let (version, keys) = read(secret).await?;
    let counts = counts(stack).await?;
    let mut ids: Vec<&str> = keys.ids().chain(counts.keys().map(String::as_str)).collect();
    ids.sort_unstable();
    ids.dedup();
    let state = |id: &str| match id {
        id if id == keys.current() => "current",
        id if keys.ids().any(|known| known == id) => "old",
        _ => "missing",
    };
    let sealed = |id: &str| counts.get(id).copied().unwrap_or(0);
    let values: Vec<_> = ids.iter().map(|id| json!({ "id": id, "state": state(id), "values": sealed(id) })).collect();
    let rows = ids.iter().map(|id| vec![(*id).to_owned(), state(id).to_owned(), sealed(id).to_string()]).collect();
    out.list("keys", &values, &["key", "state", "values"], rows);
    if let Some(at) = version.made_at {
        note(&format!("last change: {}", at.rfc3339()));
    }
    Ok(())
}

async fn rotate(stack: &Stack, secret: &EditedSecret, out: Out) -> Result<(), CommandError> {
    let (seen, keys) = read(secret).await?;
    if let Some(old) = keys.ids().find(|id| *id != keys.current()) {
        return Err(CommandError::Refused(format!(
            "the last rotation is not finished: the key {old} still exists. Run `ops sealing reseal` and `ops sealing \
             retire {old}`, then rotate again"
        )));
    }
    let keys = keys.with_new();
    if secret.replace(&seen, &keys.to_json()).await? == Replaced::Conflict {
        return Err(CommandError::overtaken());
    }
    note(&format!("{} is the current key", keys.current()));
    seal_all(stack, out, keys).await
}

/// Seals all tokens that are sealed under another key again, under the current key.
async fn seal_all(stack: &Stack, out: Out, keys: DataKeys) -> Result<(), CommandError> {
    let current = keys.current().to_owned();
    let olds: Vec<String> = keys.ids().filter(|id| *id != current).map(str::to_owned).collect();
    let sealer = stack.app.vault.sealer_with(keys);
    let (mut done, mut already, mut left) = (0_u64, 0_u64, 0_u64);
    for_each_page(stack, "sealed", async |page| {
        let all = stream::iter(page).map(async |installation| {
            let resource = installation.resource.clone();
            (resource, reseal(&stack.app.table, &sealer, &current, installation).await)
        });
        let mut all = std::pin::pin!(all.buffer_unordered(CONCURRENCY));
        while let Some((resource, resealed)) = all.next().await {
            match resealed? {
                Resealed::Done => done += 1,
                Resealed::Already => already += 1,
                Resealed::Busy => {
                    left += 1;
                    note(&format!("{resource} was not sealed again, because it changed at the same time"));
                }
                Resealed::DoesNotOpen(error) => {
                    left += 1;
                    note(&format!("{resource}: {error}"));
                }
            }
        }
        Ok(())
    })
    .await?;
    if left > 0 {
        return Err(CommandError::NotDone(format!(
            "{left} installations are not sealed under {current} yet; {done} were sealed now"
        )));
    }
    let next: Vec<_> = olds.iter().map(|id| format!("ops sealing retire {id}")).collect();
    let hint = if next.is_empty() { String::new() } else { format!("; next, after 2 minutes: {}", next.join(", ")) };
    let value = json!({ "current": current, "sealed": done, "were_already": already, "to_retire": olds });
    out.value(&value, &format!("{done} installations were sealed under {current} now, {already} were already{hint}"));
    Ok(())
}

async fn retire(stack: &Stack, secret: &EditedSecret, out: Out, id: &str, wait: bool) -> Result<(), CommandError> {
    let (mut seen, keys) = read(secret).await?;
    if keys.current() == id {
        return Err(CommandError::Refused(format!("{id} is the current key: rotate first")));
    }
    let Some(fewer) = keys.without(id) else {
        return Err(CommandError::NotFound(format!("there is no key {id}")));
    };
    settle(stack, &mut seen, wait).await?;
    stack.expect_empty_queues(&format!("and their pairs may be sealed under {id}")).await?;
    if let Some(count) = counts(stack).await?.get(id) {
        return Err(CommandError::Refused(format!(
            "{count} values are sealed under {id}: run `ops sealing reseal` first"
        )));
    }
    if secret.replace(&seen, &fewer.to_json()).await? == Replaced::Conflict {
        return Err(CommandError::overtaken());
    }
    let value = json!({ "retired": id, "current": fewer.current() });
    out.value(&value, &format!("{id} is retired. The previous version of the secret still contains it"));
    Ok(())
}

/// Refuses, or waits, until no process seals under an old key any more.
async fn settle(stack: &Stack, seen: &mut Version, wait: bool) -> Result<(), CommandError> {
    let made_at = seen.made_at.unwrap_or(Millis(i64::MAX));
    let settled_at = made_at + SETTLED;
    let left = settled_at.since(stack.app.clock.now());
    if left.is_zero() {
        return Ok(());
    }
    if !wait {
        return Err(CommandError::Refused(format!(
            "a process may seal under the old key until {}: try again then, or use --wait",
            settled_at.rfc3339()
        )));
    }
    let bar = progress::bar("waiting (s)", Some(left.as_secs()));
    while !settled_at.since(stack.app.clock.now()).is_zero() {
        tokio::time::sleep(Duration::from_secs(1)).await;
        bar.set_position(left.saturating_sub(settled_at.since(stack.app.clock.now())).as_secs());
    }
    bar.finish_and_clear();
    Ok(())
}

impl Stack {
    /// The approximate number of items, for a progress bar. `DynamoDB` updates it every six hours.
    async fn estimate(&self) -> Option<u64> {
        let table = &self.app.table;
        let described = table.client.describe_table().table_name(&*table.name).send().await.ok()?;
        u64::try_from(described.table()?.item_count()?).ok().filter(|count| *count > 0)
    }
}
