//! Runs a world, event by event. Batchers and callers act as in [`queue`](crate::limiter::queue) and
//! [`share`](crate::limiter::share).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use super::START;
use super::store::Store;
use super::world::{Arrival, Record, Sent, World};
use crate::domain::clock::Millis;
use crate::domain::limits::StatedLimits;
use crate::limiter::ahead::{Demand, can_wait};
use crate::limiter::counters::Counters;
use crate::limiter::decision::{Permits, Plan, exchange, plan};
use crate::limiter::memory::Memory;
use crate::limiter::snapshot::Snapshot;
use crate::limiter::update::{Answer, LimitUpdate, update};
use crate::limiter::window::Window;
use crate::platform::rate_limits::RateLimitHeaders;
use crate::table::Write;

/// The two items of which a request may need permits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Item {
    Resource,
    Share,
}

/// The waiter queue of one process for one item.
#[derive(Debug)]
struct Queue {
    memory: Memory,
    waiters: VecDeque<usize>,
    /// Permits that no waiter wants yet, oldest first.
    spare: VecDeque<Permits>,
    demand: Demand,
    /// The write on its way, and the permits in it that are taken ahead of need.
    writing: Option<(Plan, u32)>,
    answer: Option<Write<Counters>>,
}

/// The permits of a request.
#[derive(Debug, Default)]
struct Request {
    of_share: Option<Permits>,
    /// The resource's permit, while the share's permit is exchanged.
    of_resource: Option<Permits>,
    exchange: Option<(Plan, Option<Write<Counters>>)>,
    /// The instant at which the request left, by its process's clock, and the burst limit that the platform's answer
    /// states.
    stated: Option<(Millis, u32)>,
    /// The item that was seen, and the limit update that is on its way.
    update: Option<(Counters, LimitUpdate, Option<Write<Counters>>)>,
}

/// The number is that of a request, or of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrival(usize),
    WriteReceived(usize, Item),
    WriteAnswered(usize, Item),
    PermitAvailable(usize, Item),
    ExchangeReceived(usize),
    ExchangeAnswered(usize),
    /// A permit of the share, by its slot.
    GivenBack(i64),
    /// The platform's answer to a request.
    Answered(usize),
    UpdateReceived(usize),
    UpdateAnswered(usize),
    /// A request of the process has left. It is the last event of its instant.
    RequestLeft(usize),
}

/// A world that runs.
struct Run<'a> {
    world: &'a World,
    random: fastrand::Rng,
    stores: BTreeMap<Item, Store>,
    queues: BTreeMap<(usize, Item), Queue>,
    requests: Vec<Request>,
    events: BinaryHeap<Reverse<(i64, Event)>>,
    /// True time.
    at: i64,
    record: Record,
}

impl World {
    /// Runs until nothing is left to happen.
    pub(super) fn run(&self) -> Record {
        let arrivals = self.arrivals.iter().enumerate();
        let items = [(Item::Resource, self.policy()), (Item::Share, self.share_limits().into())];
        let queue = |policy| Queue {
            memory: Memory::new(policy),
            waiters: VecDeque::new(),
            spare: VecDeque::new(),
            demand: Demand::default(),
            writing: None,
            answer: None,
        };
        let queues = |process| items.map(|(item, policy)| ((process, item), queue(policy)));
        let mut run = Run {
            world: self,
            random: fastrand::Rng::with_seed(self.seed),
            stores: items.map(|(item, _)| (item, Store::default())).into(),
            queues: (0..self.clocks.len()).flat_map(queues).collect(),
            requests: arrivals.clone().map(|_| Request::default()).collect(),
            events: arrivals.map(|(request, it)| Reverse((START + it.at, Event::Arrival(request)))).collect(),
            at: START,
            record: Record { limits: vec![(START, self.limits.burst)], ..Record::default() },
        };
        while let Some(Reverse((at, event))) = run.events.pop() {
            let calls: usize = run.stores.values().map(|store| store.calls).sum();
            assert!(at < START + 3_600_000 && calls < 100_000, "it never ends");
            run.at = at;
            run.handle(event);
        }
        run.record.sent.sort_unstable();
        run.record.calls = run.stores.values().map(|store| store.calls).sum();
        run.record.counted = run.stores[&Item::Resource].item.as_ref().map_or(0, |item| item.day.used);
        run.record
    }
}

impl Run<'_> {
    fn clock(&self, process: usize) -> Millis {
        Millis(self.at + self.world.clocks[process])
    }

    fn is_lost(&mut self) -> bool {
        self.random.u32(0..100) < self.world.lost
    }

    /// `event` happens after one way to or from the store.
    fn later(&mut self, event: Event) {
        let at = self.at + self.random.i64(0..=self.world.latency / 2);
        self.events.push(Reverse((at, event)));
    }

    fn queue(&mut self, process: usize, item: Item) -> &mut Queue {
        self.queues.get_mut(&(process, item)).expect("made at the start")
    }

    fn store(&mut self, item: Item) -> &mut Store {
        self.stores.get_mut(&item).expect("made at the start")
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Arrival(request) => {
                let Arrival { process, within_share, .. } = self.world.arrivals[request];
                self.wait(process, if within_share { Item::Share } else { Item::Resource }, request);
            }
            Event::PermitAvailable(process, item) => self.step(process, item, false),
            Event::WriteReceived(process, item) => {
                let (write, _) = self.queue(process, item).writing.clone().expect("a write");
                let answer = self.store(item).apply(&write);
                self.record.failed += usize::from(!answer.is_applied());
                self.queue(process, item).answer = Some(answer);
                self.later(Event::WriteAnswered(process, item));
            }
            Event::WriteAnswered(process, item) => {
                self.write_answered(process, item);
                self.step(process, item, false);
            }
            Event::ExchangeReceived(request) => {
                let (write, _) = self.requests[request].exchange.take().expect("an exchange");
                let answer = self.store(Item::Share).apply(&write);
                self.requests[request].exchange = Some((write, Some(answer)));
                self.later(Event::ExchangeAnswered(request));
            }
            Event::ExchangeAnswered(request) => self.exchange_answered(request),
            Event::GivenBack(slot) => {
                let slot_ms = Window::new(self.world.share_limits().interval).slot_ms();
                let _ = self.store(Item::Share).give_back(slot, slot_ms);
            }
            Event::Answered(request) => self.observe(request),
            Event::UpdateReceived(request) => self.update_received(request),
            Event::UpdateAnswered(request) => self.update_answered(request),
            Event::RequestLeft(process) => self.step(process, Item::Resource, true),
        }
    }

    fn wait(&mut self, process: usize, item: Item, request: usize) {
        let now = self.clock(process);
        let queue = self.queue(process, item);
        queue.demand.arrived(now);
        queue.waiters.push_back(request);
        self.step(process, item, false);
    }

    /// A step of the batcher: writes for all waiters, or naps, or refuses them. If `takes_ahead`, it also writes while nobody
    /// waits.
    fn step(&mut self, process: usize, item: Item, takes_ahead: bool) {
        let now = self.clock(process);
        let forgets = self.random.u32(0..100) < self.world.forgetful;
        let patient = self.world.patient;
        let queue = self.queue(process, item);
        let before = queue.spare.len();
        let snapshot = queue.memory.snapshot(now);
        queue.spare.retain(|permit| can_wait(permit.send_by, permit.limits, snapshot, now));
        queue.demand.lapsed(u32::try_from(before - queue.spare.len()).expect("few"));
        while !self.queue(process, item).waiters.is_empty()
            && let Some(permit) = self.queue(process, item).spare.pop_front()
        {
            self.grant(process, item, permit);
        }
        let queue = self.queue(process, item);
        let nobody_waits = queue.waiters.is_empty();
        if queue.writing.is_some() || (nobody_waits && !(takes_ahead && queue.spare.is_empty())) {
            return;
        }
        if forgets {
            queue.memory = Memory::new(queue.memory.policy());
        }
        let wanted = u32::try_from(queue.waiters.len()).expect("few");
        let known = queue.memory.snapshot(now).filter(|_| item == Item::Resource);
        let ahead = queue.demand.ahead(known, wanted, now);
        if nobody_waits && ahead.count == 0 {
            return;
        }
        let plan = plan(&queue.memory, now, ahead.lead, wanted + ahead.count);
        queue.writing = plan.map(|plan| {
            let ahead = plan.permits().count.saturating_sub(wanted);
            (plan, ahead)
        });
        if queue.writing.is_some() {
            self.later(Event::WriteReceived(process, item));
        } else if patient {
            let at = queue.memory.snapshot(now).expect("known to be full").next_available(0, now).at;
            let at = at.0 - self.world.clocks[process];
            self.events.push(Reverse((at, Event::PermitAvailable(process, item))));
        } else {
            let refused = std::mem::take(&mut queue.waiters);
            self.record.refused += refused.len();
            for request in refused {
                self.give_back(request);
            }
        }
    }

    fn write_answered(&mut self, process: usize, item: Item) {
        let (now, is_lost) = (self.clock(process), self.is_lost());
        let queue = self.queue(process, item);
        let (write, ahead) = queue.writing.take().expect("a write");
        match queue.answer.take().expect("an answer") {
            // A write that takes permits ahead of need, and that is given up, is lost, too.
            _ if is_lost => {
                queue.demand.lapsed(ahead);
                queue.waiters.clear();
            }
            conflict @ (Write::Conflict(_) | Write::NotFound) => {
                queue.memory.saw(conflict.into_item(), now);
            }
            Write::Applied(counters) => {
                queue.memory.saw(Some(counters), now);
                self.record.waited += queue.waiters.len().min(write.permits().count as usize);
                for _ in 0..write.permits().count {
                    self.grant(process, item, write.permits());
                }
            }
        }
    }

    /// Gives a permit to the first waiter.
    fn grant(&mut self, process: usize, item: Item, permit: Permits) {
        let now = self.clock(process);
        if now > permit.send_by {
            return;
        }
        let queue = self.queue(process, item);
        let Some(request) = queue.waiters.pop_front() else {
            self.record.ahead += 1;
            return self.queue(process, item).spare.push_back(permit);
        };
        queue.demand.used(permit.limits);
        match item {
            Item::Share => {
                self.requests[request].of_share = Some(permit);
                self.wait(process, Item::Resource, request);
            }
            Item::Resource if self.world.arrivals[request].within_share => {
                self.requests[request].of_resource = Some(permit);
                self.send_or_exchange(request);
            }
            Item::Resource => self.send(request, permit.send_by),
        }
    }

    /// A request with both permits is sent, or its permit of the share is exchanged if it is too old.
    fn send_or_exchange(&mut self, request: usize) {
        let process = self.world.arrivals[request].process;
        let now = self.clock(process);
        let Request { of_share: Some(of_share), of_resource: Some(of_resource), .. } = self.requests[request] else {
            panic!("a permit is missing")
        };
        if now <= of_share.send_by {
            self.send(request, of_share.send_by.min(of_resource.send_by));
        } else if let Some(write) = exchange(&self.queue(process, Item::Share).memory, now, of_share.slot) {
            self.requests[request].exchange = Some((write, None));
            self.later(Event::ExchangeReceived(request));
        } else {
            self.give_back(request);
            self.requests[request].of_resource = None;
            self.grant(process, Item::Resource, of_resource);
            if self.world.patient {
                self.wait(process, Item::Share, request);
            } else {
                self.record.refused += 1;
            }
        }
    }

    fn exchange_answered(&mut self, request: usize) {
        let process = self.world.arrivals[request].process;
        let (now, is_lost) = (self.clock(process), self.is_lost());
        let (write, answer) = self.requests[request].exchange.take().expect("an exchange");
        match answer.expect("an answer") {
            _ if is_lost => return,
            conflict @ (Write::Conflict(_) | Write::NotFound) => {
                self.queue(process, Item::Share).memory.saw(conflict.into_item(), now);
            }
            Write::Applied(counters) => {
                self.queue(process, Item::Share).memory.saw(Some(counters), now);
                self.requests[request].of_share = Some(write.permits());
                self.record.exchanged += 1;
            }
        }
        self.send_or_exchange(request);
    }

    /// Gives the permit of the share back, if the request has one.
    fn give_back(&mut self, request: usize) {
        if let Some(permit) = self.requests[request].of_share.take() {
            self.later(Event::GivenBack(permit.slot));
        }
    }

    /// The request leaves at some instant until `send_by`, or is too late.
    fn send(&mut self, request: usize, send_by: Millis) {
        let Arrival { process, within_share, .. } = self.world.arrivals[request];
        let now = self.clock(process);
        if now <= send_by {
            let at = self.random.i64(now.0..=send_by.0) - self.world.clocks[process];
            self.record.sent.push(Sent { at, within_share });
            self.events.push(Reverse((self.at, Event::RequestLeft(process))));
            let stated = self.world.stated.iter().rev().find(|(from, _)| START + from <= at);
            if let Some((_, burst)) = stated {
                let sent_at = Millis(at + self.world.clocks[process]);
                self.requests[request].stated = Some((sent_at, *burst));
                let answered = at + self.random.i64(0..200);
                self.events.push(Reverse((answered, Event::Answered(request))));
            }
        }
    }

    /// A process reads the headers of an answer. Requests go to three endpoints in turn.
    fn observe(&mut self, request: usize) {
        let process = self.world.arrivals[request].process;
        let (now, limits) = (self.clock(process), self.world.limits);
        let endpoint = ["contacts", "calendars", "opportunities"][request % 3];
        let Some((sent_at, burst)) = self.requests[request].stated else { return };
        let limits = StatedLimits { burst: Some(burst), interval: Some(limits.interval), daily: Some(limits.daily) };
        let headers = RateLimitHeaders { limits, ..RateLimitHeaders::default() };
        let answer = Answer { endpoint: Some(endpoint), sent_at, headers };
        let memory = &self.queue(process, Item::Resource).memory;
        // A process that has forgotten the item reads it first. The read is left out here.
        let Some(snapshot) = memory.of_existing(now) else { return };
        let seen = snapshot.counters().expect("it exists").clone();
        if let Some(update) = update(snapshot, &answer, now) {
            self.requests[request].update = Some((seen, update, None));
            self.later(Event::UpdateReceived(request));
        }
    }

    fn update_received(&mut self, request: usize) {
        let (seen, update, _) = self.requests[request].update.take().expect("an update");
        let answer = self.store(Item::Resource).update(&seen, &update);
        self.record.updates += 1;
        if let Write::Applied(counters) = &answer {
            let limits = Snapshot::of(Some(counters.clone()), self.world.policy(), Millis(self.at)).limits();
            self.record.limits.push((self.at, limits.burst));
        }
        self.requests[request].update = Some((seen, update, Some(answer)));
        self.later(Event::UpdateAnswered(request));
    }

    fn update_answered(&mut self, request: usize) {
        let process = self.world.arrivals[request].process;
        let (now, is_lost) = (self.clock(process), self.is_lost());
        let (_, _, answer) = self.requests[request].update.take().expect("an update");
        let memory = &mut self.queue(process, Item::Resource).memory;
        match answer.expect("an answer") {
            _ if is_lost => {}
            Write::Applied(counters) => {
                memory.saw(Some(counters), now);
                self.step(process, Item::Resource, false);
            }
            Write::Conflict(found) => {
                memory.saw(Some(found), now);
                self.observe(request);
            }
            Write::NotFound => {
                memory.saw(None, now);
            }
        }
    }
}
