//! Compares the simulated store with real engines. Random items and writes, near the edges of each condition, must have
//! the same result on all of them: the simulation proves something only if its conditions are the real ones.

use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_dynamodb::types::{AttributeDefinition, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType};
use engines::{Engine, Kind};
use fastrand::Rng;

use super::START;
use super::store::Store;
use crate::domain::clock::Millis;
use crate::domain::limits::{Limits, ObservedLimits, Proposal, StatedLimits};
use crate::limiter::counters::{Closed, ClosedEndpoints, Counters, Day, LimitKind};
use crate::limiter::decision::{Basis, Permits, Plan, Rewrite, Take};
use crate::limiter::item;
use crate::limiter::update::{DayChange, LimitUpdate, ProposalChange};
use crate::limiter::window::{MOST_SLOTS, Slot};
use crate::table::{Table, Write, s};

const SLOT_MS: i64 = 200;
const NOW: Millis = Millis(START);
const NEWEST: Slot = START / SLOT_MS;
const LIMITS: Limits = Limits { burst: 9, interval: Duration::from_secs(10), daily: 50 };

/// A write of each kind.
#[derive(Debug)]
enum Operation {
    Plan(Plan),
    GiveBack { slot: Slot, slot_ms: i64 },
    Update(Box<(Counters, LimitUpdate)>),
}

impl Operation {
    fn name(&self) -> &'static str {
        match self {
            Self::Plan(Plan::Take(Take { replaces: None, .. })) => "take",
            Self::Plan(Plan::Take(_)) => "exchange",
            Self::Plan(_) => "rewrite",
            Self::GiveBack { .. } => "give back",
            Self::Update(_) => "update",
        }
    }

    fn simulate(&self, store: &mut Store) -> Write<Counters> {
        match self {
            Self::Plan(plan) => store.apply(plan),
            Self::GiveBack { slot, slot_ms } => store.give_back(*slot, *slot_ms),
            Self::Update(update) => store.update(&update.0, &update.1),
        }
    }

    async fn send(&self, table: &Table, key: &str) -> Write<Counters> {
        let written = match self {
            Self::Plan(Plan::Take(take)) => item::take(table, key, take).await,
            Self::Plan(Plan::Rewrite(rewrite)) => item::rewrite(table, key, rewrite).await,
            Self::GiveBack { slot, slot_ms } => item::give_back(table, key, *slot, *slot_ms).await,
            Self::Update(update) => item::update(table, key, &update.0, &update.1).await,
        };
        written.expect("an answer")
    }
}

/// Random choices. Most of them agree with the item, or no write would be applied.
struct Chance(Rng);

impl Chance {
    fn often(&mut self) -> bool {
        self.0.u8(0..16) > 0
    }

    fn rarely(&mut self) -> bool {
        !self.often()
    }

    fn near(&mut self, value: i64) -> i64 {
        value + self.0.i64(-1..=1)
    }

    fn until(&mut self) -> Millis {
        Millis(NOW.0 + [-1, 0, 1, 500][self.0.usize(0..4)])
    }

    fn observed(&mut self) -> Option<ObservedLimits> {
        self.rarely().then(|| ObservedLimits {
            stated: self.stated(),
            confirmed_at: self.0.bool().then(|| Millis(NOW.0 + self.0.i64(0..2) * 1_000)),
        })
    }

    fn stated(&mut self) -> StatedLimits {
        StatedLimits { burst: Some(self.0.u32(1..3)), ..StatedLimits::default() }
    }

    fn proposal(&mut self) -> Proposal {
        Proposal::new(self.stated(), ["contacts", "a.b #:c", "çontacts%20"][self.0.usize(0..3)], NOW)
    }

    fn endpoints(&mut self) -> ClosedEndpoints {
        let names: Vec<_> = ["contacts", "a.b #:c", "çontacts%20"].into_iter().filter(|_| self.0.bool()).collect();
        names.into_iter().map(|name| (name.to_owned(), self.until())).collect()
    }

    fn item(&mut self) -> Counters {
        let most = i64::try_from(MOST_SLOTS).expect("few");
        let many = if self.rarely() { most - 2..most + 3 } else { 0..6 };
        let slots: Vec<_> = (0..self.0.i64(many)).rev().map(|back| (NEWEST - back, self.0.u32(0..3))).collect();
        let sum: u32 = slots.iter().map(|(_, count)| count).sum();
        let ends = if self.rarely() { self.near(NOW.0) } else { NOW.0 + 3_600_000 };
        let ends = if self.rarely() { self.near(NOW.0 + 48 * 3_600_000) } else { ends };
        let background = slots.iter().filter(|_| self.0.bool()).map(|(slot, count)| (*slot, count / 2)).collect();
        Counters {
            revision: self.0.i64(1..4),
            slot_ms: SLOT_MS,
            newest: NEWEST,
            slots,
            counted: sum,
            background: self.0.bool().then_some(background),
            day: Day {
                used: self.0.u32(0..3) * 24 + self.0.u32(0..4),
                ends: Millis(ends),
                end_confirmed: self.0.bool(),
            },
            observed: self.observed(),
            proposal: self.0.bool().then(|| self.proposal()),
            lowered_at: self.0.bool().then(|| self.until()),
            closed: self.rarely().then(|| Closed {
                until: self.until(),
                by: if self.0.bool() { LimitKind::Daily } else { LimitKind::Burst },
            }),
            closed_endpoints: if self.rarely() { self.endpoints() } else { ClosedEndpoints::new() },
        }
    }

    fn operation(&mut self, item: &Counters) -> Operation {
        match self.0.u8(0..5) {
            0 | 1 => Operation::Plan(Plan::Take(self.take(item))),
            2 => Operation::Plan(Plan::Rewrite(Box::new(self.rewrite(item)))),
            3 => Operation::GiveBack { slot: self.a_slot(item), slot_ms: if self.often() { SLOT_MS } else { 100 } },
            _ => self.update(item),
        }
    }

    fn a_slot(&mut self, item: &Counters) -> Slot {
        let slots = &item.slots;
        if slots.is_empty() || self.rarely() { NEWEST - 70 } else { slots[self.0.usize(..slots.len())].0 }
    }

    fn permits(&mut self) -> Permits {
        let slot = if self.rarely() { NEWEST - 1 } else { NEWEST + self.0.i64(0..3) };
        let count = self.0.u32(1..4);
        let background = if self.0.bool() { self.0.u32(..=count) } else { 0 };
        Permits { count, background, slot, send_by: NOW, limits: LIMITS }
    }

    fn take(&mut self, item: &Counters) -> Take {
        let mut permits = self.permits();
        let replaces = (self.0.u8(0..3) == 0).then(|| self.a_slot(item)).filter(|slot| *slot != permits.slot);
        if replaces.is_some() {
            permits.count = 1;
            permits.background = permits.background.min(1);
        }
        // Limits and bounds that are just reached, or almost.
        let counted = i64::from(item.counted + permits.count) - i64::from(replaces.is_some());
        let room = |near: i64| u32::try_from(near).unwrap_or(0);
        let limits = Limits { burst: room(self.near(counted)), ..LIMITS };
        let basis = if self.0.bool() {
            let revision = if self.often() { item.revision } else { self.near(item.revision) };
            let used_at_most = room(self.near(item.day.used.into()));
            Basis::Snapshot {
                revision,
                used_at_most,
                slots_fit: self.0.bool(),
                old_limits: self.0.bool().then_some(limits),
            }
        } else {
            Basis::Assumption { slot_ms: if self.often() { SLOT_MS } else { 100 }, limits, now: NOW }
        };
        Take { permits, basis, replaces }
    }

    fn rewrite(&mut self, item: &Counters) -> Rewrite {
        let mut seen = item.version();
        if self.rarely() {
            seen.revision = self.near(seen.revision);
        }
        if self.rarely() {
            seen.day_used += 1;
        }
        if self.rarely() {
            seen.counted.0 += 1;
        }
        let next = Counters { revision: seen.revision + 1, ..self.item() };
        Rewrite { permits: self.permits(), seen: self.often().then_some(seen), next }
    }

    fn update(&mut self, item: &Counters) -> Operation {
        let mut seen = item.clone();
        if self.rarely() {
            seen.revision = self.near(seen.revision);
        }
        if self.rarely() {
            seen.proposal = Some(self.proposal());
        }
        if self.rarely() {
            seen.day.used += 1;
        }
        let used = self.near(item.day.used.into()).max(0).try_into().expect("small");
        let mut update = LimitUpdate {
            observed: self.0.bool().then(|| self.observed().unwrap_or_default()),
            proposal: match self.0.u8(0..3) {
                0 => None,
                1 => Some(ProposalChange::Made(self.proposal())),
                _ => Some(ProposalChange::Ended),
            },
            lowered_at: self.0.bool().then(|| self.until()),
            day: match self.0.u8(0..3) {
                0 => None,
                1 => Some(DayChange::Used(used)),
                _ => Some(DayChange::Replaced(Day { used, ends: self.until(), end_confirmed: true })),
            },
            closed: self.0.bool().then(|| Closed { until: self.until(), by: LimitKind::Burst }),
            closed_endpoints: self.0.bool().then(|| [("contacts".to_owned(), self.until())].into()),
        };
        if update == LimitUpdate::default() {
            update.closed = Some(Closed { until: NOW, by: LimitKind::Daily });
        }
        Operation::Update(Box::new((seen, update)))
    }
}

async fn table(engine: &Engine) -> Table {
    let config = aws_sdk_dynamodb::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .credentials_provider(Credentials::new("test", "test", None, None, "test"))
        .endpoint_url(engine.url())
        .http_client(crate::http_client::aws());
    let client = Client::from_conf(config.build());
    let key = KeySchemaElement::builder().attribute_name("pk").key_type(KeyType::Hash).build();
    let attribute = AttributeDefinition::builder().attribute_name("pk").attribute_type(ScalarAttributeType::S).build();
    let create = client.create_table().table_name("counters").billing_mode(BillingMode::PayPerRequest);
    let create = create.key_schema(key.expect("a key")).attribute_definitions(attribute.expect("an attribute"));
    create.send().await.expect("a table");
    Table { client, name: "counters".into() }
}

async fn compare(kind: Kind, test: &str, cases: u64) {
    let Some(engine) = Engine::start(kind, test).await else { return };
    let table = table(&engine).await;
    let mut seen = std::collections::BTreeMap::new();
    for case in 0..cases {
        let mut chance = Chance(Rng::with_seed(case));
        let before = chance.item();
        let operation = chance.operation(&before);
        let before = chance.often().then_some(before);
        let key = format!("quota#location#{case}");
        if let Some(before) = &before {
            let put = table.client.put_item().table_name(&*table.name).set_item(Some(item::encode(before)));
            put.item("pk", s(&key)).send().await.expect("an item");
        }
        let mut store = Store { item: before.clone(), calls: 0 };
        let simulated = operation.simulate(&mut store);
        let real = operation.send(&table, &key).await;
        assert_eq!(simulated, real, "case {case}: {operation:?} on {before:?}");
        let left = item::read(&table, &key).await.expect("a read");
        assert_eq!(store.item, left, "case {case}: {operation:?} on {before:?}");
        *seen.entry((operation.name(), real.is_applied())).or_insert(0) += 1;
    }
    let enough = cases / 100;
    for name in ["take", "exchange", "rewrite", "give back", "update"] {
        for applied in [true, false] {
            let count = seen.get(&(name, applied)).copied().unwrap_or(0);
            assert!(count >= enough, "too few cases where {name} is applied ({applied}): {seen:?}");
        }
    }
}

#[tokio::test]
async fn the_simulation_has_the_conditions_of_the_embedded_engine() {
    compare(Kind::Embedded, "the_simulation_has_the_conditions_of_the_embedded_engine", 1_500).await;
}

#[tokio::test]
async fn the_simulation_has_the_conditions_of_dynamodb_local() {
    compare(Kind::Local, "the_simulation_has_the_conditions_of_dynamodb_local", 1_000).await;
}
