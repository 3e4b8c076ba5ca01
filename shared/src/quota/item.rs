//! The item of one resource and the conditional writes on it.
//!
//! | attribute | |
//! |---|---|
//! | `revision` | grows with every write |
//! | `slot_ms`, `newest` | length of a slot, newest slot |
//! | `slots`, `held` | map *slot → permits*, their sum |
//! | `day_used`, `day_ends`, `day_told` | requests of the day, its end (ms), whether the platform named that end |
//! | `learnt` | the platform's own limits where they differ, see [`Learnt::to_text`] |
//! | `closed_until`, `closed_by` | nothing may be sent before (ms), after a 429 |
//! | `packed` | instead of all of the above but `revision`, see [`packed`] |
//! | `expires_at` | TTL (s), a week after the day: an item tells for so long that its resource is in use |
//!
//! A full map makes an item below 1 KB: one write unit. So does a full text.

use std::collections::HashMap;
use std::time::Duration;

use aws_sdk_dynamodb::config::Builder;
use aws_sdk_dynamodb::config::retry::RetryConfig;
use aws_sdk_dynamodb::operation::update_item::builders::UpdateItemFluentBuilder;
use aws_sdk_dynamodb::types::{AttributeValue, KeysAndAttributes, ReturnValue, ReturnValuesOnConditionCheckFailure};

use super::counters::{Closed, Counters, Day, FURTHEST_DAY, LimitKind};
use super::decision::{MOST_SLOTS, Rewrite, Room, Take};
use super::learn::{Correction, DayChange};
use super::limits::Learnt;
use super::packed;
use super::window::{Slot, slot_key, slot_of_key};
use crate::clock::Millis;
use crate::table::{Attributes, Item, StoreError, Table, Written, n, s, written};

/// How long an item is kept after its last day.
const KEPT: Duration = Duration::from_hours(24 * 7);

/// What a write came to.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Done; the item as it is now.
    Applied(Counters),
    /// The item was not as assumed; as it is, if there is one.
    Refused(Option<Counters>),
}

/// Reads an item.
pub(crate) fn decode(item: &Item) -> Result<Counters, StoreError> {
    let attributes = Attributes::of(item);
    let revision = attributes.number("revision").unwrap_or_default();
    if let Some(text) = attributes.text("packed") {
        return packed::from_text(text, revision).ok_or_else(|| attributes.malformed("packed"));
    }
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
    let learnt =
        attributes.text("learnt").map(|text| Learnt::from_text(text).ok_or_else(|| attributes.malformed("learnt")));
    let closed_until = attributes.number("closed_until").map(Millis);
    let closed_by = attributes.text("closed_by").and_then(LimitKind::from_text);
    Ok(Counters {
        revision,
        slot_ms: number("slot_ms")?.max(1),
        newest,
        slots,
        total: count("held")?,
        day: Day { used: count("day_used")?, ends: Millis(number("day_ends")?), told: item.contains_key("day_told") },
        learnt: learnt.transpose()?,
        closed: closed_until.map(|until| Closed { until, by: closed_by.unwrap_or(LimitKind::Burst) }),
        packed: false,
    })
}

/// Reads the item of `key`, with everything written before.
pub(crate) async fn read(table: &Table, key: &str) -> Result<Option<Counters>, StoreError> {
    let get = table.client.get_item().table_name(&*table.name).key("pk", s(key)).consistent_read(true);
    get.send().await?.item.as_ref().map(decode).transpose()
}

/// How many items are read at once (`BatchGetItem`'s own bound).
pub(crate) const MOST_READ: usize = 100;

/// Which of at most [`MOST_READ`] items are there and not past their time. What DynamoDB leaves out of its answer under
/// load counts as there: whoever asks wants to know what is surely unused.
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

/// [`Take`]s.
pub(crate) async fn take(table: &Table, key: &str, take: &Take) -> Result<Outcome, StoreError> {
    let mut write = Expression::default();
    let (permits, dropped) = (i64::from(take.permits), i64::from(take.dropped()));
    write.name("#slot", slot_key(take.slot));
    write.value(":slot", n(take.slot));
    write.value(":permits", n(permits));
    write.value(":change", n(permits - dropped));
    write.value(":zero", n(0));
    let (mut set, mut removed) = (Clause::new("SET "), Clause::new(" REMOVE "));
    set.add(
        "slots.#slot = if_not_exists(slots.#slot, :zero) + :permits, held = held + :change, \
         day_used = day_used + :permits",
    );
    if take.is_later {
        set.add("newest = :slot");
    }
    write.value(":slot_ms", n(take.slot_ms));
    write.holds(if take.is_later { "newest <= :slot" } else { "newest = :slot" });
    write.holds("slot_ms = :slot_ms");
    if let Room::Known(known) | Room::Either(known) = take.room {
        write.value(":known", n(known.used_at_most));
        write.value(":known_end", n(known.day_ends));
    }
    if let Room::Known(_) = take.room {
        // The day and the closure are as they were seen, which was found to be good.
        write.holds("day_used <= :known AND day_ends = :known_end AND attribute_not_exists(closed_until)");
    } else {
        write.value(":room", n(i64::from(take.limits.burst) - permits + dropped));
        write.value(":day_room", n(i64::from(take.limits.daily) - permits));
        write.value(":most", n(MOST_SLOTS));
        write.value(":tomorrow", n(take.now + FURTHEST_DAY));
        write.holds(match take.room {
            Room::Sum => "held <= :room",
            _ => "(held <= :room OR (day_used <= :known AND day_ends = :known_end))",
        });
        write.holds("size(slots) <= :most AND day_used <= :day_room AND day_ends > :now AND day_ends <= :tomorrow");
        write.is_open(take.now);
    }
    write.learnt_is(take.learnt);
    for (i, (slot, count)) in take.drops.iter().enumerate() {
        write.name(&format!("#dead{i}"), slot_key(*slot));
        write.value(&format!(":dead{i}"), n(count));
        write.holds(&format!("slots.#dead{i} = :dead{i}"));
        removed.add(&format!("slots.#dead{i}"));
    }
    write.update = set.text + &removed.text;
    write.count_revision();
    outcome(write.send(table, key).await?)
}

/// With the item that DynamoDB answered.
fn outcome(written: Written) -> Result<Outcome, StoreError> {
    Ok(match written {
        Written::Applied(item) => Outcome::Applied(decode(&item)?),
        Written::Refused(item) => Outcome::Refused(item.as_ref().map(decode).transpose()?),
    })
}

/// [`Rewrite`]s.
pub(crate) async fn rewrite(table: &Table, key: &str, rewrite: &Rewrite) -> Result<Outcome, StoreError> {
    replace(table, key, rewrite.seen.as_ref(), &rewrite.next, Expression::default()).await
}

/// Makes `next` of the item, if it still is the one that was `seen`. What becomes of it is known before, so it need not
/// be answered.
async fn replace(
    table: &Table,
    key: &str,
    seen: Option<&Counters>,
    next: &Counters,
    mut write: Expression,
) -> Result<Outcome, StoreError> {
    write.foretold = true;
    let (mut set, mut removed) = (Clause::new("SET "), Clause::new(" REMOVE "));
    set.assign(&mut write, "revision", ":revision", n(next.revision));
    if seen.is_none_or(|seen| seen.day.ends != next.day.ends) {
        set.assign(&mut write, "expires_at", ":expires_at", n((next.day.ends + KEPT).seconds()));
    }
    if next.packed {
        set.assign(&mut write, "packed", ":packed", s(packed::to_text(next)));
        if seen.is_some_and(|seen| !seen.packed) {
            removed.add("slot_ms, newest, slots, held, day_used, day_ends, day_told, learnt, closed_until, closed_by");
        }
    } else {
        let slots = next.slots.iter().map(|&(slot, count)| (slot_key(slot), n(count)));
        set.assign(&mut write, "slot_ms", ":slot_ms", n(next.slot_ms));
        set.assign(&mut write, "newest", ":newest", n(next.newest));
        set.assign(&mut write, "slots", ":slots", AttributeValue::M(slots.collect()));
        set.assign(&mut write, "held", ":held", n(next.total));
        set.assign(&mut write, "day_used", ":day_used", n(next.day.used));
        set.assign(&mut write, "day_ends", ":day_ends", n(next.day.ends));
        if next.day.told {
            set.assign(&mut write, "day_told", ":yes", AttributeValue::Bool(true));
        } else {
            removed.add("day_told");
        }
        if let Some(learnt) = next.learnt {
            set.assign(&mut write, "learnt", ":learnt", s(learnt.to_text()));
        }
        removed.add("packed, closed_until, closed_by");
    }
    write.update = set.text + &removed.text;
    match seen {
        None => write.holds("attribute_not_exists(pk)"),
        Some(seen) => write.is_still(seen),
    }
    Ok(match write.send(table, key).await? {
        Written::Applied(_) => Outcome::Applied(next.clone()),
        Written::Refused(found) => Outcome::Refused(found.as_ref().map(decode).transpose()?),
    })
}

/// Moves the revision of an item that is packed, whatever it is. Whoever has it for itself fails with its next write, and
/// so sees that others want it, which their own refused writes do not tell it.
pub(crate) async fn knock(table: &Table, key: &str) -> Result<Outcome, StoreError> {
    let mut write = Expression::default();
    write.holds("attribute_exists(packed)");
    write.count_revision();
    outcome(write.send(table, key).await?)
}

/// Gives back one permit of `slot`, which is `slot_ms` long, to an item that was last seen with `seen`. The day's count
/// stays: it tells that an item has changed. Nothing where `seen` tells that there is none to give back.
///
/// Never sent twice: an answer that was lost would give back two, and so allow one too many.
pub(crate) async fn give_back(
    table: &Table,
    key: &str,
    seen: Option<&Counters>,
    slot: Slot,
    slot_ms: i64,
) -> Result<Option<Outcome>, StoreError> {
    let mut write = Expression { once: true, ..Expression::default() };
    if let Some(seen) = seen.filter(|seen| seen.packed) {
        let Some(next) = seen.without_one(slot, slot_ms) else { return Ok(None) };
        return replace(table, key, Some(seen), &next, write).await.map(Some);
    }
    write.name("#slot", slot_key(slot));
    write.value(":one", n(1));
    write.value(":slot_ms", n(slot_ms));
    write.update.push_str("SET slots.#slot = slots.#slot - :one, held = held - :one");
    write.holds("slots.#slot >= :one AND held >= :one AND slot_ms = :slot_ms");
    write.count_revision();
    outcome(write.send(table, key).await?).map(Some)
}

/// Applies a [`Correction`] to the item that was `seen`.
pub(crate) async fn correct(
    table: &Table,
    key: &str,
    seen: &Counters,
    correction: &Correction,
) -> Result<Outcome, StoreError> {
    let mut write = Expression::default();
    if seen.packed {
        return replace(table, key, Some(seen), &correction.applied_to(seen), write).await;
    }
    let mut sets = Vec::new();
    write.learnt_is(seen.learnt);
    write.value(":was_end", n(seen.day.ends));
    write.holds("day_ends = :was_end");
    if let Some(learnt) = correction.learnt {
        write.value(":new_learnt", s(learnt.to_text()));
        sets.push("learnt = :new_learnt");
    }
    match correction.day {
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
    if let Some(closed) = correction.closed {
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
    write.update = format!("SET {}", sets.join(", "));
    write.count_revision();
    outcome(write.send(table, key).await?)
}

/// A part of an update: `SET` or `REMOVE` and what it is about, or nothing.
struct Clause {
    verb: &'static str,
    text: String,
}

impl Clause {
    fn new(verb: &'static str) -> Self {
        Self { verb, text: String::new() }
    }

    fn add(&mut self, what: &str) {
        self.text.push_str(if self.text.is_empty() { self.verb } else { ", " });
        self.text.push_str(what);
    }

    fn assign(&mut self, write: &mut Expression, path: &str, placeholder: &str, value: AttributeValue) {
        self.add(path);
        self.text.push_str(" = ");
        self.text.push_str(placeholder);
        write.value(placeholder, value);
    }
}

/// An update in the making.
#[derive(Default)]
struct Expression {
    update: String,
    condition: String,
    names: HashMap<String, String>,
    values: Item,
    /// Whether a lost answer must not lead to another try.
    once: bool,
    /// Whether the item that it leaves behind is known before.
    foretold: bool,
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

    /// Every write that does not say what the item becomes.
    fn count_revision(&mut self) {
        self.value(":one", n(1));
        self.update.push_str(" ADD revision :one");
    }

    /// Nobody has written since.
    fn is_still(&mut self, seen: &Counters) {
        if seen.revision == 0 {
            self.holds("attribute_exists(pk) AND attribute_not_exists(revision)");
        } else {
            self.value(":seen", n(seen.revision));
            self.holds("revision = :seen");
        }
    }

    /// No 429 forbids it.
    fn is_open(&mut self, now: Millis) {
        self.value(":now", n(now));
        self.holds("(attribute_not_exists(closed_until) OR closed_until <= :now)");
    }

    /// The limits that were assumed are those that are stored, or this process would not be bound by what another
    /// has learnt.
    fn learnt_is(&mut self, learnt: Option<Learnt>) {
        if let Some(learnt) = learnt {
            self.value(":learnt", s(learnt.to_text()));
            self.holds("learnt = :learnt");
        } else {
            self.holds("attribute_not_exists(learnt)");
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
            .return_values(if self.foretold { ReturnValue::None } else { ReturnValue::AllNew })
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
