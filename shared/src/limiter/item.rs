//! The item of one resource, or of a share of it, and the conditional writes on it.
//!
//! Takes, returned permits and limit updates add to the item under conditions. A rewrite replaces it by
//! compare-and-swap (optimistic concurrency) on `revision`.
//!
//! | attribute | |
//! |---|---|
//! | `revision` | grows with every write |
//! | `slot_ms`, `newest` | length of a slot, newest slot |
//! | `slots`, `counted` | map *slot → permits* and their sum; both include expired permits until a rewrite drops them |
//! | `day_used`, `day_ends`, `day_told` | requests of the day, its end (ms), true if the platform named that end |
//! | `observed` | the observed limits, see [`ObservedLimits::to_text`] |
//! | `closed_until`, `closed_by` | nothing may be sent before (ms), after a 429 |
//! | `closed_endpoints` | map *endpoint → end of its closure* (ms), after a 429 that was about this endpoint only |
//! | `expires_at` | TTL (s), a week after the day; until then the item shows that its resource is in use |
//!
//! A full map of slots makes an item below 1 KB: one write unit.

use std::collections::HashMap;
use std::time::Duration;

use aws_sdk_dynamodb::config::Builder;
use aws_sdk_dynamodb::config::retry::RetryConfig;
use aws_sdk_dynamodb::operation::update_item::builders::UpdateItemFluentBuilder;
use aws_sdk_dynamodb::types::{AttributeValue, KeysAndAttributes, ReturnValue, ReturnValuesOnConditionCheckFailure};

use super::counters::{Closed, ClosedEndpoints, Counters, Day, LimitKind};
use super::decision::{Rewrite, Take};
use super::update::{DayChange, LimitUpdate};
use super::window::{MOST_SLOTS, Slot, slot_key, slot_of_key};
use crate::domain::clock::Millis;
use crate::domain::limits::FURTHEST_DAY;
use crate::domain::limits::ObservedLimits;
use crate::table::{Attributes, Item, StoreError, Table, Written, n, s, written};

/// The time for which an item is kept after its last day.
const KEPT: Duration = Duration::from_hours(24 * 7);

/// The result of a conditional write.
#[derive(Debug)]
pub(crate) enum Write {
    /// The condition held. This is the item after the write.
    Applied(Counters),
    /// The condition failed. This is the item as it is, if there is one.
    Conflict(Option<Counters>),
}

/// Decodes an item.
pub(crate) fn decode(item: &Item) -> Result<Counters, StoreError> {
    let attributes = Attributes::of(item);
    let number = |name: &'static str| attributes.number::<i64>(name).ok_or_else(|| attributes.malformed(name));
    let count = |name: &'static str| attributes.number::<u32>(name).ok_or_else(|| attributes.malformed(name));
    let newest = number("newest")?;
    let map = attributes.map("slots").ok_or_else(|| attributes.malformed("slots"))?;
    let mut slots = map
        .iter()
        .map(|(key, value)| Some((slot_of_key(key, newest)?, value.as_n().ok()?.parse().ok()?)))
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| attributes.malformed("slots"))?;
    slots.sort_unstable();
    let observed = attributes
        .text("observed")
        .map(|text| ObservedLimits::from_text(text).ok_or_else(|| attributes.malformed("observed")));
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
        day: Day {
            used: count("day_used")?,
            ends: Millis(number("day_ends")?),
            end_confirmed: item.contains_key("day_told"),
        },
        observed: observed.transpose()?,
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
    if counters.day.end_confirmed {
        also("day_told", AttributeValue::Bool(true));
    }
    if let Some(observed) = counters.observed {
        also("observed", s(observed.to_text()));
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
const OPTIONAL: [&str; 5] = ["day_told", "observed", "closed_until", "closed_by", "closed_endpoints"];

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
pub(crate) async fn take(table: &Table, key: &str, take: &Take) -> Result<Write, StoreError> {
    let mut write = Expression::default();
    let (permits, replaced) = (i64::from(take.permits.count), i64::from(take.replaces.is_some()));
    write.name("#slot", slot_key(take.permits.slot));
    write.value(":slot", n(take.permits.slot));
    write.value(":slot_ms", n(take.slot_ms));
    write.value(":permits", n(permits));
    write.value(":change", n(permits - replaced));
    write.value(":zero", n(0));
    write.value(":room", n(i64::from(take.limits.burst) - permits + replaced));
    write.value(":day_room", n(i64::from(take.limits.daily) - permits));
    write.value(":most", n(MOST_SLOTS));
    write.value(":now", n(take.now));
    write.value(":tomorrow", n(take.now + FURTHEST_DAY));
    write.update.push_str(
        "SET slots.#slot = if_not_exists(slots.#slot, :zero) + :permits, counted = counted + :change, \
                    day_used = day_used + :permits, newest = :slot",
    );
    write.holds("newest <= :slot AND slot_ms = :slot_ms AND size(slots) <= :most");
    if let Some(known) = take.headroom {
        write.value(":known", n(known.used_at_most));
        write.value(":known_end", n(known.day_ends));
        write.holds("(counted <= :room OR (day_used <= :known AND day_ends = :known_end))");
    } else {
        write.holds("counted <= :room");
    }
    write.holds("day_used <= :day_room AND day_ends > :now AND day_ends <= :tomorrow");
    write.value(":daily", s(LimitKind::Daily.to_text()));
    write.holds("(attribute_not_exists(closed_until) OR (closed_until <= :now AND closed_by <> :daily))");
    write.observed_is(take.observed);
    write.closed_endpoints_are(&take.closed_endpoints);
    if let Some(replaced) = take.replaces {
        write.name("#replaced", slot_key(replaced));
        write.value(":one", n(1));
        write.holds("slots.#replaced >= :one");
        write.update.push_str(", slots.#replaced = slots.#replaced - :one");
    }
    write.count_revision();
    result(write.send(table, key).await?)
}

/// With the item that DynamoDB answered.
fn result(written: Written) -> Result<Write, StoreError> {
    Ok(match written {
        Written::Applied(item) => Write::Applied(decode(&item)?),
        Written::Refused(item) => Write::Conflict(item.as_ref().map(decode).transpose()?),
    })
}

/// Writes a [`Rewrite`]. The new item is known already, so DynamoDB need not return it.
pub(crate) async fn rewrite(table: &Table, key: &str, rewrite: &Rewrite) -> Result<Write, StoreError> {
    let mut write = Expression { answer: ReturnValue::None, ..Expression::default() };
    let next = encode(&rewrite.next);
    let removed: Vec<_> = OPTIONAL.into_iter().filter(|name| !next.contains_key(*name)).collect();
    let mut sets = Vec::with_capacity(next.len());
    for (name, value) in next {
        sets.push(format!("{name} = :{name}"));
        write.value(&format!(":{name}"), value);
    }
    write.update = format!("SET {}", sets.join(", "));
    if !removed.is_empty() {
        write.update.push_str(" REMOVE ");
        write.update.push_str(&removed.join(", "));
    }
    match rewrite.seen {
        None => write.holds("attribute_not_exists(pk)"),
        Some(revision) => {
            write.value(":seen", n(revision));
            write.holds("revision = :seen");
        }
    }
    Ok(match write.send(table, key).await? {
        Written::Applied(_) => Write::Applied(rewrite.next.clone()),
        Written::Refused(found) => Write::Conflict(found.as_ref().map(decode).transpose()?),
    })
}

/// Gives back one permit of `slot`, which is `slot_ms` long. The day's count stays, because
/// [`Headroom`](super::decision::Headroom) relies on it. A conflict means that there is nothing to give back: the slot
/// has expired and was dropped.
///
/// The write is never retried: after a lost answer, a retry would give back two permits and allow one request too many.
pub(crate) async fn give_back(table: &Table, key: &str, slot: Slot, slot_ms: i64) -> Result<Write, StoreError> {
    let mut write = Expression { once: true, ..Expression::default() };
    write.name("#slot", slot_key(slot));
    write.value(":one", n(1));
    write.value(":slot_ms", n(slot_ms));
    write.update.push_str("SET slots.#slot = slots.#slot - :one, counted = counted - :one");
    write.holds("slots.#slot >= :one AND counted >= :one AND slot_ms = :slot_ms");
    write.count_revision();
    result(write.send(table, key).await?)
}

/// Writes a [`LimitUpdate`] of the item that was `seen`. Its condition covers only the attributes that it changes, so
/// takes of other processes in between do not make it fail.
pub(crate) async fn update(
    table: &Table,
    key: &str,
    seen: &Counters,
    update: &LimitUpdate,
) -> Result<Write, StoreError> {
    let mut write = Expression::default();
    let mut sets = Vec::new();
    write.observed_is(seen.observed);
    write.value(":was_end", n(seen.day.ends));
    write.holds("day_ends = :was_end");
    if let Some(observed) = update.observed {
        write.value(":new_observed", s(observed.to_text()));
        sets.push("observed = :new_observed");
    }
    match update.day {
        None => {}
        Some(DayChange::Used(used)) => {
            write.value(":used", n(used));
            write.holds("day_used < :used");
            sets.push("day_used = :used");
        }
        Some(DayChange::Replaced(day)) => {
            write.value(":was_used", n(seen.day.used));
            write.holds("day_used = :was_used");
            write.value(":used", n(day.used));
            write.value(":end", n(day.ends));
            write.value(":yes", AttributeValue::Bool(true));
            write.value(":expires_at", n((day.ends + KEPT).seconds()));
            sets.extend(["day_used = :used", "day_ends = :end", "day_told = :yes", "expires_at = :expires_at"]);
        }
    }
    if let Some(closed) = update.closed {
        write.value(":until", n(closed.until));
        write.value(":by", s(closed.by.to_text()));
        match seen.closed {
            Some(was) => {
                write.value(":was_closed", n(was.until));
                write.holds("closed_until = :was_closed");
            }
            None => write.holds("attribute_not_exists(closed_until)"),
        }
        sets.extend(["closed_until = :until", "closed_by = :by"]);
    }
    if let Some(closed) = &update.closed_endpoints {
        write.closed_endpoints_are(&seen.closed_endpoints);
        write.value(":new_endpoints", endpoints(closed));
        sets.push("closed_endpoints = :new_endpoints");
    }
    write.update = format!("SET {}", sets.join(", "));
    write.count_revision();
    result(write.send(table, key).await?)
}

/// An update in the making.
struct Expression {
    update: String,
    condition: String,
    names: HashMap<String, String>,
    values: Item,
    /// True if a lost answer must not lead to another try.
    once: bool,
    /// DynamoDB's answer if the condition holds.
    answer: ReturnValue,
}

impl Default for Expression {
    fn default() -> Self {
        Self {
            update: String::new(),
            condition: String::new(),
            names: HashMap::new(),
            values: Item::new(),
            once: false,
            answer: ReturnValue::AllNew,
        }
    }
}

impl Expression {
    fn name(&mut self, placeholder: &str, name: String) {
        self.names.insert(placeholder.to_owned(), name);
    }

    fn value(&mut self, placeholder: &str, value: AttributeValue) {
        self.values.insert(placeholder.to_owned(), value);
    }

    fn holds(&mut self, condition: &str) {
        if !self.condition.is_empty() {
            self.condition.push_str(" AND ");
        }
        self.condition.push_str(condition);
    }

    /// Every write that does not replace the item.
    fn count_revision(&mut self) {
        self.value(":one", n(1));
        self.update.push_str(" ADD revision :one");
    }

    /// The limits that were assumed are those that are stored, or this process would not be bound by what another
    /// has observed.
    fn observed_is(&mut self, observed: Option<ObservedLimits>) {
        if let Some(observed) = observed {
            self.value(":observed", s(observed.to_text()));
            self.holds("observed = :observed");
        } else {
            self.holds("attribute_not_exists(observed)");
        }
    }

    /// The endpoints that were assumed to be closed are those that are stored. So a process hears of a closure by its
    /// first write after it, and a resource without one costs nothing extra.
    fn closed_endpoints_are(&mut self, closed: &ClosedEndpoints) {
        if closed.is_empty() {
            self.holds("attribute_not_exists(closed_endpoints)");
        } else {
            self.value(":closed_endpoints", endpoints(closed));
            self.holds("closed_endpoints = :closed_endpoints");
        }
    }

    async fn send(self, table: &Table, key: &str) -> Result<Written, StoreError> {
        let update: UpdateItemFluentBuilder = table
            .client
            .update_item()
            .table_name(&*table.name)
            .key("pk", s(key))
            .update_expression(self.update)
            .condition_expression(self.condition)
            .set_expression_attribute_names((!self.names.is_empty()).then_some(self.names))
            .set_expression_attribute_values(Some(self.values))
            .return_values(self.answer)
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        // An override costs each call a configuration of its own, even where it changes nothing.
        let sent = if self.once {
            let once = Builder::new().retry_config(RetryConfig::disabled());
            update.customize().config_override(once).send().await
        } else {
            update.send().await
        };
        written(sent)
    }
}
