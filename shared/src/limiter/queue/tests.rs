use std::pin::pin;

use aws_sdk_dynamodb::config::{Credentials, Region};
use futures_util::FutureExt as _;
use http::{HeaderMap, StatusCode};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::limiter::counters::{ClosedEndpoints, Day, Meter};
use crate::platform::rate_limits::RateLimitHeaders;

const REQUEST: PermitRequest<'_> = PermitRequest { endpoint: None, wait_until: None, class: Class::Caller };

/// A queue whose store cannot be reached and whose process calls steadily. Its item has `live` permits in the window.
fn queue(live: u32) -> Arc<WaiterQueue> {
    steady(WaiterQueue::unconnected(), counters(live))
}

fn counters(live: u32) -> Counters {
    Counters {
        revision: 1,
        slot_ms: 125,
        newest: 0,
        slots: vec![(0, live)],
        counted: live,
        background: None,
        day: Day { used: live, ends: Millis(3_600_000), end_confirmed: true },
        observed: None,
        proposal: None,
        lowered_at: None,
        closed: None,
        closed_endpoints: ClosedEndpoints::new(),
    }
}

fn steady(queue: WaiterQueue, counters: Counters) -> Arc<WaiterQueue> {
    queue.saw(Some(counters));
    (0..20).for_each(|_| queue.state().demand.arrived(Millis(-1)));
    queue.state().demand.arrived(Millis(0));
    Arc::new(queue)
}

/// A store that reads requests and never answers.
struct SilentStore(TcpListener);

impl SilentStore {
    async fn new() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").await.expect("a port"))
    }

    fn config(&self) -> aws_sdk_dynamodb::config::Builder {
        let url = format!("http://{}", self.0.local_addr().expect("bound"));
        aws_sdk_dynamodb::Config::builder()
            .region(Region::new("us-east-1"))
            .credentials_provider(Credentials::new("test", "test", None, None, "test"))
            .endpoint_url(url)
            .http_client(crate::http_client::aws())
    }

    /// The connection of the next request.
    async fn request(&self) -> TcpStream {
        let (mut connection, _) = self.0.accept().await.expect("a connection");
        connection.read_u8().await.expect("a request");
        connection
    }
}

fn permit(queue: &WaiterQueue, send_by: i64) -> Permit {
    let meter = Meter { limit: 400, remaining: 1, resets_at: Millis(0) };
    let limits = queue.state().memory.policy().default;
    let usage = Usage { burst: meter, interval: limits.interval, daily: meter };
    Permit { usage, send_by: Millis(send_by), slot: 0, limits }
}

/// The permits that the queue would take ahead of need now.
fn ahead(queue: &WaiterQueue) -> u32 {
    let state = queue.state();
    state.demand.ahead(state.memory.snapshot(Millis(0)), 1, Millis(0)).count
}

#[tokio::test]
async fn spare_permits_are_handed_out_although_the_window_is_full() {
    let queue = queue(400);
    assert!(matches!(queue.take(REQUEST).await, Err(LimiterError::Refused(_))));
    for send_by in [600, 800] {
        queue.hand_on(permit(&queue, send_by));
    }
    for send_by in [600, 800] {
        let taken = queue.take(REQUEST).await.map(|permit| permit.send_by);
        assert_eq!(taken.expect("a spare permit"), Millis(send_by), "the oldest comes first");
    }
    assert!(matches!(queue.take(REQUEST).await, Err(LimiterError::Refused(_))));
}

#[tokio::test]
async fn background_requests_get_no_spare_permit() {
    let queue = queue(400);
    let background = PermitRequest { class: Class::Background { reserve: 0 }, ..REQUEST };
    let waiting = Ticket::new(&queue, &mut queue.state(), background);
    let spare = permit(&queue, 800);
    queue.state().give_to_caller(spare);
    assert_eq!(queue.state().waiters.len(), 1, "it waits for a permit of its own");
    drop(waiting);
    assert!(queue.local_refusal(background).is_some());
    assert!(queue.local_refusal(REQUEST).is_none(), "a caller gets it");
}

#[tokio::test]
async fn waiting_callers_and_the_places_that_are_kept_for_callers_are_the_same_places() {
    let queue = Arc::new(WaiterQueue::unconnected());
    let counters = |slot, of_callers, background| Counters {
        newest: slot,
        slots: vec![(slot, of_callers + background)],
        counted: of_callers + background,
        background: Some(vec![(slot, background)]),
        ..counters(of_callers + background)
    };
    // Callers used 20 places at the same time within the last interval, and use ten now. So 20 are reserved.
    queue.saw(Some(counters(0, 20, 1)));
    queue.clock.advance(Duration::from_millis(10_650));
    queue.state().memory.forget();
    queue.saw(Some(counters(85, 10, 379)));
    assert_eq!(queue.limits_and_reserved(Class::Background { reserve: 500 }).1, 20);
    let callers: Vec<_> = (0..10).map(|_| Ticket::new(&queue, &mut queue.state(), REQUEST)).collect();
    let background = PermitRequest { class: Class::Background { reserve: 500 }, ..REQUEST };
    assert_eq!(queue.local_refusal(background), None, "the callers take the ten places that are kept");
    let queued = Ticket::new(&queue, &mut queue.state(), background);
    assert!(queue.local_refusal(background).is_some(), "the last place is taken");
    drop((callers, queued));
}

#[tokio::test]
async fn spare_permits_that_have_become_useless_are_no_reason_to_wait() {
    let queue = queue(400);
    queue.hand_on(permit(&queue, 800));
    queue.clock.advance(Duration::from_millis(676));
    assert!(queue.local_refusal(REQUEST).is_some());
    assert!(queue.state().spare.is_empty());
}

#[tokio::test]
async fn what_the_platform_says_ends_the_spare_permits_even_if_the_store_does_not_answer() {
    let stated = |name: &'static str, value: &str| {
        let headers = HeaderMap::from_iter([(http::HeaderName::from_static(name), value.parse().expect("a value"))]);
        RateLimitHeaders::read(StatusCode::OK, &headers)
    };
    let refused = RateLimitHeaders::read(StatusCode::TOO_MANY_REQUESTS, &HeaderMap::new());
    for (headers, left) in [
        (refused, 0),
        (stated("x-ratelimit-daily-remaining", "0"), 0),
        (stated("x-ratelimit-max", "399"), 0),
        (stated("x-ratelimit-max", "400"), 3),
    ] {
        let queue = queue(1);
        assert_eq!(ahead(&queue), 8, "a fiftieth of the limit");
        (0..3).for_each(|_| queue.hand_on(permit(&queue, 800)));
        let answer = Answer { endpoint: None, sent_at: Millis(0), headers };
        let observed = queue.observe(&answer).await;
        assert_eq!((queue.state().spare.len(), observed.is_err()), (left, left == 0), "{headers:?}");
        assert_eq!(ahead(&queue), if left == 0 { 5 } else { 8 }, "three have lapsed: {headers:?}");
    }
}

#[tokio::test]
async fn permits_that_lapse_cost_credit() {
    let queue = queue(1);
    (0..3).for_each(|_| queue.hand_on(permit(&queue, 800)));
    queue.state().drop_useless(Millis(676));
    assert_eq!(ahead(&queue), 5);
    // The write may have been applied, although its answer is lost. It would have taken five permits ahead.
    assert!(matches!(queue.take(REQUEST).await, Err(LimiterError::Store(_))));
    assert_eq!(ahead(&queue), 0);
}

#[tokio::test]
async fn a_write_ahead_of_need_that_is_given_up_costs_credit() {
    let store = SilentStore::new().await;
    let queue = steady(WaiterQueue::of_store(store.config(), LimitKind::Burst), counters(1));
    assert_eq!(ahead(&queue), 8);
    tokio::select! {
        () = queue.take_ahead() => panic!("the store never answers"),
        _connection = store.request() => {}
    }
    assert_eq!((ahead(&queue), queue.idle_since()), (0, Some(Millis(0))));
}

#[tokio::test]
async fn a_waiter_that_came_while_permits_were_taken_ahead_is_served_if_they_are_given_up() {
    let store = SilentStore::new().await;
    let queue = steady(WaiterQueue::of_store(store.config(), LimitKind::Burst), counters(1));
    let mut waiting = pin!(queue.take(REQUEST));
    {
        let mut running = pin!(queue.take_ahead());
        tokio::select! {
            () = running.as_mut() => panic!("the store never answers"),
            _connection = store.request() => {}
        }
        assert!(waiting.as_mut().now_or_never().is_none());
    }
    tokio::select! {
        answer = waiting => panic!("{answer:?}"),
        _connection = store.request() => {}
    }
}

#[tokio::test]
async fn nothing_is_taken_ahead_after_an_error_of_the_store() {
    let queue = queue(1);
    let limits = Limits { burst: 4_000, ..queue.state().memory.policy().default };
    queue.adopt(limits.into());
    (0..4_000).for_each(|_| queue.state().demand.used(limits));
    assert_eq!(ahead(&queue), 11);
    queue.take_ahead().await;
    assert_eq!(ahead(&queue), 11, "it has tried once");
    assert_eq!(queue.idle_since(), Some(Millis(0)));
}

#[tokio::test]
async fn permits_are_taken_ahead_only_if_the_next_caller_would_wait_for_a_write() {
    let share = steady(WaiterQueue::of_store(aws_sdk_dynamodb::Config::builder(), LimitKind::Caller), counters(1));
    let has_spare = queue(1);
    has_spare.hand_on(permit(&has_spare, 800));
    for (name, queue, before) in [("a share", share, 8), ("a spare permit", has_spare, 8)] {
        queue.take_ahead().await;
        assert_eq!(ahead(&queue), before, "{name}: a write has failed");
    }
    let has_late_permit = queue(1);
    has_late_permit.hand_on(permit(&has_late_permit, 124));
    has_late_permit.take_ahead().await;
    assert_eq!(ahead(&has_late_permit), 0, "its only permit has lapsed, and a write has failed");
}
