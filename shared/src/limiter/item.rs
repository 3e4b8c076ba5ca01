//! The item of one resource, or of a share of it, and the conditional writes on it.
//!
//! Takes, returned permits and limit updates change the item under conditions. A rewrite replaces it by
//! compare-and-swap (optimistic concurrency) on its [`Version`].
//!
//! | attribute | |
//! |---|---|
//! | `revision` | grows with every write that changes more than permits and `proposed`, so takes need no condition on each attribute |
//! | `slot_ms`, `newest` | length of a slot, newest slot |
//! | `slots`, `counted` | map *slot → permits* and their sum; both include expired permits until a rewrite drops them |
//! | `background` | map *slot → background permits*, those of the queue, if there are any |
//! | `day_used`, `day_ends`, `day_told` | requests of the day, its end (ms), true if the platform named that end |
//! | `observed` | the observed limits, see [`ObservedLimits::to_text`]; absent if all limits are the default |
//! | `proposed` | higher limits that one endpoint has stated, see [`Proposal::to_text`] |
//! | `lowered_at` | the last answer that has lowered a limit (ms); absent if there was none |
//! | `closed_until`, `closed_by` | nothing may be sent before (ms), after a 429 |
//! | `closed_endpoints` | map *endpoint → end of its closure* (ms), after a 429 that was about this endpoint only |
//! | `expires_at` | TTL (s), a week after the day; until then the item shows that its resource is in use |
//!
//! An item with a full map of slots is below 1 KB, one write unit, unless it has a proposal or closed endpoints.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::Duration;

use aws_sdk_dynamodb::types::{AttributeValue, KeysAndAttributes, ReturnValue};

use super::counters::{Closed, ClosedEndpoints, Counters, Day, LimitKind, Version};
use super::decision::{Basis, Rewrite, Take};
use super::update::{DayChange, LimitUpdate, ProposalChange};
use super::window::{MOST_SLOTS, Slot, slot_key, slot_of_key};
use crate::domain::clock::Millis;
use crate::domain::limits::{FURTHEST_DAY, Limits, ObservedLimits, Proposal};
use crate::table::{Attributes, Item, StoreError, Table, Update, Write, n, s};

/// The time for which an item is kept after its last day.
const KEPT: Duration = Duration::from_hours(24 * 7);

/// Decodes an item.
pub(crate) fn decode(item: &Item) -> Result<Counters, StoreError> {
    let attributes = Attributes::of(item);
    let number = |name: &'static str| attributes.number::<i64>(name).ok_or_else(|| attributes.malformed(name));
    let count = |name: &'static str| attributes.number::<u32>(name).ok_or_else(|| attributes.malformed(name));
    let newest = number("newest")?;
    let map = attributes.map("slots").ok_or_else(|| attributes.malformed("slots"))?;
    let by_slot = |map: &Item| {
        let entry = |(key, value): (&String, &AttributeValue)| {
            Some((slot_of_key(key, newest)?, value.as_n().ok()?.parse().ok()?))
        };
        let mut slots = map.iter().map(entry).collect::<Option<Vec<(Slot, u32)>>>()?;
        slots.sort_unstable();
        Some(slots)
    };
    let slots = by_slot(map).ok_or_else(|| attributes.malformed("slots"))?;
    let background = attributes.map("background").map(by_slot);
    let background = background.map(|slots| slots.ok_or_else(|| attributes.malformed("background"))).transpose()?;
    let observed = attributes
        .text("observed")
        .map(|text| ObservedLimits::from_text(text).ok_or_else(|| attributes.malformed("observed")));
    let proposal = attributes
        .text("proposed")
        .map(|text| Proposal::from_text(text).ok_or_else(|| attributes.malformed("proposed")));
    let closed_until = attributes.number("closed_until").map(Millis);
    let closed_by = attributes.text("closed_by").and_then(LimitKind::from_text);
    let endpoints = attributes.map("closed_endpoints").into_iter().flatten();
    let closed_endpoints = endpoints
        .map(|(name, until)| Some((name.clone(), Millis(until.as_n().ok()?.parse().ok()?))))
        .collect::<Option<_>>()
        .ok_or_else(|| attributes.malformed("closed_endpoints"))?;
    Ok(Counters {
        revision: number("revision")?,
        slot_ms: number("slot_ms")?.max(1),
        newest,
        slots,
        counted: count("counted")?,
        background,
        day: Day {
            used: count("day_used")?,
            ends: Millis(number("day_ends")?),
            end_confirmed: item.contains_key("day_told"),
        },
        observed: observed.transpose()?,
        proposal: proposal.transpose()?,
        lowered_at: attributes.number("lowered_at").map(Millis),
        closed: closed_until.map(|until| Closed { until, by: closed_by.unwrap_or(LimitKind::Burst) }),
        closed_endpoints,
    })
}

/// The attributes that [`decode`] reads, but for the key.
pub(crate) fn encode(counters: &Counters) -> Item {
    let slots = counters.slots.iter().map(|&(slot, count)| (slot_key(slot), n(count)));
    let mut item = HashMap::from([
        ("revision".to_owned(), n(counters.revision)),
        ("slot_ms".to_owned(), n(counters.slot_ms)),
        ("newest".to_owned(), n(counters.newest)),
        ("slots".to_owned(), AttributeValue::M(slots.collect())),
        ("counted".to_owned(), n(counters.counted)),
        ("day_used".to_owned(), n(counters.day.used)),
        ("day_ends".to_owned(), n(counters.day.ends)),
        ("expires_at".to_owned(), n((counters.day.ends + KEPT).seconds())),
    ]);
    let mut also = |name: &str, value| item.insert(name.to_owned(), value);
    if let Some(background) = &counters.background {
        let slots = background.iter().map(|&(slot, count)| (slot_key(slot), n(count)));
        also("background", AttributeValue::M(slots.collect()));
    }
    if counters.day.end_confirmed {
        also("day_told", AttributeValue::Bool(true));
    }
    if let Some(observed) = counters.observed {
        also("observed", s(observed.to_text()));
    }
    if let Some(proposal) = &counters.proposal {
        also("proposed", s(proposal.to_text()));
    }
    if let Some(at) = counters.lowered_at {
        also("lowered_at", n(at));
    }
    if let Some(closed) = counters.closed {
        also("closed_until", n(closed.until));
        also("closed_by", s(closed.by.to_text()));
    }
    if !counters.closed_endpoints.is_empty() {
        also("closed_endpoints", endpoints(&counters.closed_endpoints));
    }
    item
}

/// Attributes that an item may be without.
const OPTIONAL: [&str; 8] =
    ["day_told", "observed", "proposed", "lowered_at", "closed_until", "closed_by", "closed_endpoints", "background"];

fn endpoints(closed: &ClosedEndpoints) -> AttributeValue {
    AttributeValue::M(closed.iter().map(|(name, until)| (name.clone(), n(until))).collect())
}

/// Reads the item of `key`, strongly consistent.
pub(crate) async fn read(table: &Table, key: &str) -> Result<Option<Counters>, StoreError> {
    let get = table.client.get_item().table_name(&*table.name).key("pk", s(key)).consistent_read(true);
    get.send().await?.item.as_ref().map(decode).transpose()
}

/// The most items that are read at once (`BatchGetItem`'s own bound).
pub(crate) const MOST_READ: usize = 100;

/// The keys of those of at most [`MOST_READ`] items that exist and have not expired. Items that DynamoDB leaves out of
/// its answer under load count as existing: callers ask for the resources that are certainly unused.
pub(crate) async fn kept<'a>(
    table: &Table,
    keys: impl Iterator<Item = &'a str>,
    now: Millis,
) -> Result<Vec<String>, StoreError> {
    let keys: Vec<Item> = keys.map(|key| HashMap::from([("pk".to_owned(), s(key))])).collect();
    let wanted = KeysAndAttributes::builder().set_keys(Some(keys)).projection_expression("pk, expires_at").build();
    let wanted = wanted.map_err(|error| StoreError::Unavailable(error.to_string()))?;
    let answer = table.client.batch_get_item().request_items(&*table.name, wanted).send().await?;
    let key = |item: &Item| Attributes::of(item).text("pk").map(str::to_owned);
    let alive = |item: &&Item| Attributes::of(item).number::<i64>("expires_at").is_none_or(|at| at > now.seconds());
    let found = answer.responses().into_iter().flat_map(HashMap::values).flatten().filter(alive).filter_map(key);
    let left = answer.unprocessed_keys().into_iter().flat_map(HashMap::values).flat_map(KeysAndAttributes::keys);
    Ok(found.chain(left.filter_map(key)).collect())
}

/// Writes a [`Take`].
pub(crate) async fn take(table: &Table, key: &str, take: &Take) -> Result<Write<Counters>, StoreError> {
    let mut write = Update::of(key);
    let (permits, replaced) = (i64::from(take.permits.count), i64::from(take.replaces.is_some()));
    write.name("#slot", slot_key(take.permits.slot)).value(":permits", n(permits)).value(":zero", n(0));
    write.set_to("slots.#slot", "if_not_exists(slots.#slot, :zero) + :permits");
    if take.permits.background > 0 {
        write.set_to("background.#slot", "if_not_exists(background.#slot, :zero) + :background");
        write.value(":background", n(take.permits.background)).when("attribute_exists(background)");
    }
    write.set_to("day_used", "day_used + :permits");
    write.set_to("newest", ":slot").value(":slot", n(take.permits.slot)).when("newest <= :slot");
    if !matches!(take.basis, Basis::Snapshot { slots_fit: true, .. }) {
        write.when("size(slots) <= :most").value(":most", n(MOST_SLOTS));
    }
    let room = |write: &mut Update, limits: Limits| {
        write.value(":room", n(i64::from(limits.burst) - permits + replaced));
        write.value(":day_room", n(i64::from(limits.daily) - permits));
    };
    match take.basis {
        Basis::Snapshot { revision, used_at_most, old_limits, .. } => {
            write.when_equal("revision", n(revision)).value(":used_at_most", n(used_at_most));
            if let Some(limits) = old_limits {
                room(&mut write, limits);
                write.when("day_used <= :used_at_most OR (counted <= :room AND day_used <= :day_room)");
            } else {
                write.when("day_used <= :used_at_most");
            }
        }
        Basis::Assumption { slot_ms, limits, now } => {
            room(&mut write, limits);
            write.when("counted <= :room AND day_used <= :day_room");
            write.when_equal("slot_ms", n(slot_ms)).when("day_ends > :now AND day_ends <= :tomorrow");
            write.value(":now", n(now)).value(":tomorrow", n(now + FURTHEST_DAY));
            write.when("attribute_not_exists(closed_until) OR (closed_until <= :now AND closed_by <> :daily)");
            write.value(":daily", s(LimitKind::Daily.to_text()));
            write.when("attribute_not_exists(observed) AND attribute_not_exists(closed_endpoints)");
        }
    }
    if let Some(replaced) = take.replaces {
        write.name("#replaced", slot_key(replaced)).value(":one", n(1));
        write.set_to("slots.#replaced", "slots.#replaced - :one").when("slots.#replaced >= :one");
        write.set_to("counted", "counted + :change").value(":change", n(permits - 1));
    } else {
        write.set_to("counted", "counted + :permits");
    }
    table.write(write).await?.read(decode)
}

/// Writes a [`Rewrite`]. The new item is known already, so DynamoDB need not return it.
pub(crate) async fn rewrite(table: &Table, key: &str, rewrite: &Rewrite) -> Result<Write<Counters>, StoreError> {
    let mut write = Update::of(key);
    write.answer(ReturnValue::None);
    let next = encode(&rewrite.next);
    write.remove(OPTIONAL.into_iter().filter(|name| !next.contains_key(*name)));
    for (name, value) in next {
        write.set(&name, value);
    }
    match rewrite.seen {
        None => write.when("attribute_not_exists(pk)"),
        Some(Version { revision, day_used, counted: Reverse(counted) }) => {
            write.when_equal("revision", n(revision)).when_equal("day_used", n(day_used));
            write.when_equal("counted", n(counted))
        }
    };
    Ok(match table.write(write).await? {
        Write::Applied(_) => Write::Applied(rewrite.next.clone()),
        Write::Conflict(found) => Write::Conflict(decode(&found)?),
        Write::NotFound => Write::NotFound,
    })
}

/// Gives back one permit of `slot`, which is `slot_ms` long. The day's count stays, because [`Basis::Snapshot`] relies on
/// it. A conflict means that there is nothing to give back: the slot has expired and was dropped.
///
/// The write is never retried: after a lost answer, a retry would give back two permits and allow one request too many.
pub(crate) async fn give_back(
    table: &Table,
    key: &str,
    slot: Slot,
    slot_ms: i64,
) -> Result<Write<Counters>, StoreError> {
    let mut write = Update::of(key);
    write.name("#slot", slot_key(slot)).value(":one", n(1));
    write.set_to("slots.#slot", "slots.#slot - :one").set_to("counted", "counted - :one");
    write.when("slots.#slot >= :one AND counted >= :one").when_equal("slot_ms", n(slot_ms));
    write.send_once();
    table.write(write).await?.read(decode)
}

/// Writes a [`LimitUpdate`] of the item that was `seen`. Takes of other processes in between do not make it fail, unless
/// it replaces the count of the day.
pub(crate) async fn update(
    table: &Table,
    key: &str,
    seen: &Counters,
    update: &LimitUpdate,
) -> Result<Write<Counters>, StoreError> {
    let mut write = Update::of(key);
    write.when_equal("revision", n(seen.revision));
    if update.raises_revision() {
        write.add("revision", n(1));
    }
    match update.observed {
        None => {}
        Some(observed) if observed == ObservedLimits::default() => {
            write.remove(["observed"]);
        }
        Some(observed) => {
            write.set("observed", s(observed.to_text()));
        }
    }
    if let Some(change) = &update.proposal {
        match &seen.proposal {
            Some(seen) => write.when_equal("proposed", s(seen.to_text())),
            None => write.when("attribute_not_exists(proposed)"),
        };
        match change {
            ProposalChange::Made(proposal) => write.set("proposed", s(proposal.to_text())),
            ProposalChange::Ended => write.remove(["proposed"]),
        };
    }
    if let Some(at) = update.lowered_at {
        write.set("lowered_at", n(at));
    }
    match update.day {
        None => {}
        Some(DayChange::Used(used)) => {
            write.set_to("day_used", ":used").when("day_used < :used").value(":used", n(used));
        }
        Some(DayChange::Replaced(day)) => {
            write.when_equal("day_used", n(seen.day.used)).set("day_used", n(day.used)).set("day_ends", n(day.ends));
            write.set("day_told", AttributeValue::Bool(true)).set("expires_at", n((day.ends + KEPT).seconds()));
        }
    }
    if let Some(closed) = update.closed {
        write.set("closed_until", n(closed.until)).set("closed_by", s(closed.by.to_text()));
    }
    if let Some(closed) = &update.closed_endpoints {
        write.set("closed_endpoints", endpoints(closed));
    }
    table.write(write).await?.read(decode)
}
