//! A bounded history of numbered events, and server-sent events made from it, for pages that connect, leave and
//! reconnect.
//!
//! An event's id is `<run>-<number>`. A page that reconnects names the last event that it received, and gets all later
//! events. After a restart of the sandbox the run differs, and the page gets the history from its start.

use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use axum::response::sse::{Event as Message, KeepAlive, Sse};
use futures_util::stream::{self, Stream};
use serde_json::{Value, json};
use tokio::sync::{
    broadcast::{Receiver, error::RecvError},
    watch,
};

use super::Desk;
use crate::{events::Event, lock::lock, terminal, whole::WEBHOOK_PATH};

/// The most events that are kept. One press of "150 at once" creates about 250.
const KEPT: usize = 600;

/// Durations of the chart and of one of its bars.
pub(super) const CHART: Duration = Duration::from_secs(10);
const BAR: Duration = Duration::from_millis(500);
/// Bars in the chart.
pub(super) const BARS: usize = 20;

/// One event with its number.
#[derive(Debug, Clone)]
struct Entry {
    number: u64,
    data: String,
}

/// The history.
#[derive(Debug)]
pub(super) struct Feed {
    run: String,
    entries: Mutex<VecDeque<Entry>>,
    newest: watch::Sender<u64>,
    traffic: Mutex<BTreeMap<String, VecDeque<(Instant, Fate)>>>,
    /// The latest view that was sent; see [`super::view`].
    pub(super) view: watch::Sender<String>,
}

/// The outcome of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// The call reached the platform.
    Passed,
    /// The relay refused the call because of the rate limit.
    Held,
}

/// The calls of the last ten seconds, oldest bar first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub(super) struct Chart {
    /// Calls that reached the platform.
    pub(super) passed: [u32; BARS],
    /// Calls that the relay refused.
    pub(super) held: [u32; BARS],
}

impl Default for Feed {
    fn default() -> Self {
        Self {
            run: shared::domain::random::hex::<4>(),
            entries: Mutex::default(),
            newest: watch::Sender::new(0),
            traffic: Mutex::default(),
            view: watch::Sender::new(String::new()),
        }
    }
}

impl Feed {
    /// Records every event, until the channel of events is closed.
    pub(super) async fn gather(&self, mut events: Receiver<Event>) {
        loop {
            match events.recv().await {
                Ok(event) => self.note(&event),
                Err(RecvError::Lagged(missed)) => {
                    self.note(&Event::Control { what: format!("{missed} events came too fast and are left out") });
                }
                Err(RecvError::Closed) => return,
            }
        }
    }

    fn note(&self, event: &Event) {
        if let Some((resource, fate)) = traffic(event) {
            let mut traffic = lock(&self.traffic);
            let calls = traffic.entry(resource).or_default();
            forget_old(calls);
            calls.push_back((Instant::now(), fate));
        }
        let Some(mut data) = shown(event) else { return };
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        data["at"] = json!(u64::try_from(at.as_millis()).unwrap_or(u64::MAX));
        self.newest.send_modify(|newest| {
            *newest += 1;
            let mut entries = lock(&self.entries);
            if entries.len() == KEPT {
                entries.pop_front();
            }
            entries.push_back(Entry { number: *newest, data: data.to_string() });
        });
    }

    /// Returns the number after which a page needs events; 0 if it needs all known events.
    pub(super) fn cursor(&self, last_event_id: Option<&str>) -> u64 {
        let (run, number) = last_event_id.and_then(|id| id.split_once('-')).unwrap_or_default();
        let number = number.parse().ok().filter(|_| run == self.run);
        number.filter(|number| *number <= *self.newest.borrow()).unwrap_or_default()
    }

    fn after(&self, cursor: u64) -> Vec<Entry> {
        let entries = lock(&self.entries);
        entries.iter().filter(|entry| entry.number > cursor).cloned().collect()
    }

    /// Returns a resource's calls of the last ten seconds, in bars of half a second.
    pub(super) fn chart(&self, resource: &str) -> Chart {
        let mut chart = Chart::default();
        let mut traffic = lock(&self.traffic);
        let Some(calls) = traffic.get_mut(resource) else { return chart };
        forget_old(calls);
        for (at, fate) in calls.iter() {
            let age = usize::try_from(at.elapsed().as_millis() / BAR.as_millis()).unwrap_or(BARS);
            let Some(bar) = (BARS - 1).checked_sub(age) else { continue };
            match fate {
                Fate::Passed => chart.passed[bar] += 1,
                Fate::Held => chart.held[bar] += 1,
            }
        }
        chart
    }
}

fn forget_old(calls: &mut VecDeque<(Instant, Fate)>) {
    while calls.front().is_some_and(|(at, _)| at.elapsed() >= CHART) {
        calls.pop_front();
    }
}

/// Returns the resource in whose window a call counts, and the outcome of the call.
fn traffic(event: &Event) -> Option<(String, Fate)> {
    match event {
        Event::Platform { resource: Some(resource), .. } => Some((resource.clone(), Fate::Passed)),
        Event::Gateway { path, status: 429, source: Some(source), .. } if source == "relay" => {
            let mut segments =
                path.trim_start_matches('/').split('/').skip_while(|segment| *segment != "relay").skip(1);
            let kind = match segments.next()? {
                "locations" => "location",
                "companies" => "company",
                _ => return None,
            };
            Some((format!("{kind}:{}", segments.next()?), Fate::Held))
        }
        _ => None,
    }
}

/// Returns the data of an event for the page. `None` if the event is of no interest to a reader.
fn shown(event: &Event) -> Option<Value> {
    match event {
        Event::Log { worker, line, .. } => {
            let line = terminal::log_line(line, false)?;
            Some(json!({ "event": "log", "worker": worker, "line": line }))
        }
        // The webhook's own event says the same.
        Event::Gateway { path, .. } if path == WEBHOOK_PATH => None,
        Event::Invoked { answer: Some(answer), .. } if terminal::nothing_was_due(answer) => None,
        other => serde_json::to_value(other).ok(),
    }
}

/// The position of a page in the history.
struct Listener {
    desk: Arc<Desk>,
    cursor: u64,
    newest: watch::Receiver<u64>,
    view: watch::Receiver<String>,
    ready: VecDeque<Message>,
}

/// Streams all events after `cursor`, then each new event.
pub(super) async fn stream(
    desk: Arc<Desk>,
    cursor: u64,
) -> Sse<impl Stream<Item = Result<Message, Infallible>> + use<>> {
    let (newest, mut view) = (desk.feed.newest.subscribe(), desk.feed.view.subscribe());
    view.mark_unchanged();
    let now = Message::default().event("view").data(desk.view().await);
    let hello = Message::default().event("hello").data(desk.hello(&desk.feed.run).to_string());
    let mut listener = Listener { desk, cursor, newest, view, ready: VecDeque::from([hello, now]) };
    listener.take_entries();
    let messages = stream::unfold(listener, |mut listener| async move {
        let message = listener.next().await?;
        Some((Ok(message), listener))
    });
    Sse::new(messages).keep_alive(KeepAlive::default())
}

impl Listener {
    async fn next(&mut self) -> Option<Message> {
        loop {
            if let Some(message) = self.ready.pop_front() {
                return Some(message);
            }
            tokio::select! {
                changed = self.newest.changed() => {
                    changed.ok()?;
                    self.take_entries();
                }
                changed = self.view.changed() => {
                    changed.ok()?;
                    let view = self.view.borrow_and_update().clone();
                    self.ready.push_back(Message::default().event("view").data(view));
                }
            }
        }
    }

    fn take_entries(&mut self) {
        let run = &self.desk.feed.run;
        for Entry { number, data } in self.desk.feed.after(self.cursor) {
            self.cursor = number;
            self.ready.push_back(Message::default().event("happened").id(format!("{run}-{number}")).data(data));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn control(what: &str) -> Event {
        Event::Control { what: what.to_owned() }
    }

    #[test]
    fn a_reconnecting_page_gets_the_missed_events_and_an_unknown_id_gets_all() {
        let feed = Feed::default();
        for number in 1..=5 {
            feed.note(&control(&format!("event {number}")));
        }
        let since = |id: &str| feed.after(feed.cursor(Some(id))).len();
        assert_eq!(since(&format!("{}-3", feed.run)), 2);
        assert_eq!(since(&format!("{}-5", feed.run)), 0);
        for odd in ["", "3", "other-3", &format!("{}-x", feed.run), &format!("{}-99", feed.run)] {
            assert_eq!(since(odd), 5, "{odd}");
        }
    }

    #[test]
    fn the_history_is_bounded_and_keeps_the_newest() {
        let feed = Feed::default();
        for _ in 0..KEPT + 7 {
            feed.note(&control("again"));
        }
        let numbers: Vec<_> = feed.after(0).iter().map(|entry| entry.number).collect();
        assert_eq!((numbers.len(), numbers.first(), numbers.last()), (KEPT, Some(&8), Some(&(KEPT as u64 + 7))));
    }

    #[test]
    fn calls_are_counted_where_they_belong() {
        let gateway = |path: &str, status, source: &str| Event::Gateway {
            method: "GET".into(),
            path: path.into(),
            status,
            source: Some(source.into()),
            millis: 1,
        };
        let held = |id: &str| Some((id.to_owned(), Fate::Held));
        assert_eq!(traffic(&gateway("/relay/locations/L1/contacts/", 429, "relay")), held("location:L1"));
        assert_eq!(traffic(&gateway("/iam/relay/companies/C1/x", 429, "relay")), held("company:C1"));
        assert_eq!(
            traffic(&gateway("/relay/locations/L1/contacts/", 429, "platform")),
            None,
            "counted at the platform"
        );
        assert_eq!(traffic(&gateway("/relay/locations/L1/contacts/", 200, "platform")), None);
        let feed = Feed::default();
        feed.note(&gateway("/relay/locations/L1/x", 429, "relay"));
        assert_eq!(feed.chart("location:L1").held.iter().sum::<u32>(), 1);
        assert_eq!(feed.chart("location:L2"), Chart::default());
    }
}
