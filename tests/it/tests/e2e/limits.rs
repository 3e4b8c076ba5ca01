//! The burst and daily limits over several processes: the fake platform's count of requests, and the refusals that
//! callers receive.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use http::Method;
use it::outside::{ClientResponse, Setup, System, location, route, send};
use sandbox::marketplace::grants::Resource;
use sandbox::marketplace::window::Limits;
use serde_json::{Value, json};

const PATH: &str = "/contacts/?limit=1";
const INTERVAL: Duration = Duration::from_secs(10);

/// The time on the machine's clock, by which the fake platform records requests.
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970")
}

/// A refusal, with the times at which the caller sent the request and received the refusal.
#[derive(Clone, Copy, Debug)]
struct Refusal {
    sent: Duration,
    received: Duration,
    after: Duration,
}

impl Refusal {
    async fn or_answer(system: &System, resource: &Resource) -> Result<ClientResponse, Self> {
        let sent = now();
        let answer = system.get(resource, PATH).await;
        let received = now();
        match answer.refusal() {
            (200, _) => {
                assert_eq!(answer.source(), "platform");
                Ok(answer)
            }
            (429, code) => {
                assert_eq!(code, "burst_limited", "{answer:?}");
                Err(Self { sent, received, after: answer.retry_after() })
            }
            _ => panic!("neither served nor refused: {answer:?}"),
        }
    }

    /// Bounds of the promised instant. The relay refused the request between `sent` and `received`.
    fn promised(self) -> (Duration, Duration) {
        (self.sent + self.after, self.received + self.after)
    }
}

/// The answers to callers that send far more requests than the limit.
#[derive(Debug, Default)]
struct Storm {
    admitted: usize,
    refusals: Vec<Refusal>,
}

impl Storm {
    /// Runs callers that send the next request directly after an answer. After a refusal a caller waits for the time
    /// that the refusal states, but every fifth caller waits for 150 ms only.
    async fn of(system: &System, resource: &Resource, callers: usize, lasting: Duration) -> Self {
        let end = Instant::now() + lasting;
        let caller = async |number: usize| {
            let mut seen = Self::default();
            while Instant::now() < end {
                match Refusal::or_answer(system, resource).await {
                    Ok(_) => seen.admitted += 1,
                    Err(refusal) => {
                        seen.refusals.push(refusal);
                        let told = if number.is_multiple_of(5) { Duration::from_millis(150) } else { refusal.after };
                        tokio::time::sleep(told.min(end.saturating_duration_since(Instant::now()))).await;
                    }
                }
            }
            seen
        };
        let mut all = Self::default();
        for seen in join_all((0..callers).map(caller)).await {
            all.admitted += seen.admitted;
            all.refusals.extend(seen.refusals);
        }
        all
    }

    /// Asserts that at most `limit` requests arrived in any interval, and that each refusal kept its promise.
    ///
    /// A busy machine loses permits that it uses too late, so the number of admitted requests is only compared with
    /// half of the ideal. The simulation of the limiter asserts the number closely, and `bench` measures it.
    fn expect(&self, name: &str, system: &System, resource: &Resource, limit: usize, lasting: Duration) {
        let windows = usize::try_from(lasting.as_secs() / INTERVAL.as_secs()).expect("small") + 1;
        let ideal = limit * windows;
        let platform = &system.sandbox.marketplace;
        let (worst, arrived) = (platform.worst_window(resource), system.arrived(resource));
        report(name, self, ideal, worst);
        assert!(worst <= limit, "{name}: {worst} requests within an interval");
        assert!(self.admitted * 2 >= ideal, "{name}: {} of the ideal {ideal} admitted", self.admitted);
        assert!(
            platform.api_requests(resource).iter().all(|seen| seen.status == Some(200)),
            "{name}: refused by the platform"
        );
        assert!(arrived >= self.admitted);
        assert!(self.refusals.len() >= 40, "{name}: not enough contention");
        for refusal in &self.refusals {
            assert!(refusal.after <= INTERVAL + Duration::from_secs(1), "{name}: longer than any window: {refusal:?}");
        }
        self.expect_none_before_its_promise(name, system, resource);
    }

    /// Asserts that no other request was admitted between a refusal and the instant that it promised. A request that
    /// received its permit before the refusal may arrive a little later.
    fn expect_none_before_its_promise(&self, name: &str, system: &System, resource: &Resource) {
        const ON_ITS_WAY: Duration = Duration::from_secs(2);
        let seen: Vec<Duration> =
            system.sandbox.marketplace.api_requests(resource).iter().map(|seen| seen.at).collect();
        for refusal in &self.refusals {
            let wrong = seen.iter().find(|at| **at > refusal.received + ON_ITS_WAY && **at < refusal.promised().0);
            assert_eq!(wrong, None, "{name}: a request was admitted before {refusal:?} promised");
        }
    }
}

#[expect(clippy::print_stdout, reason = "a reader of the test's output wants these numbers")]
fn report(name: &str, storm: &Storm, ideal: usize, worst: usize) {
    let percent = storm.admitted * 100 / ideal;
    let refused = storm.refusals.len();
    println!(
        "{name}: {} of the ideal {ideal} admitted ({percent} %), worst window {worst}, {refused} refused",
        storm.admitted
    );
}

/// Only one storm runs at a time. With two storms on a small machine, a request would wait for a processor after it
/// received its permit, and would arrive too late.
static ONE_STORM: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Forty callers send far more than the limit to one location, over four processes. One caller sends few requests to
/// another location.
pub(crate) async fn storm_on(name: &str, store: Option<String>) {
    const LASTING: Duration = Duration::from_secs(26);
    let _alone = ONE_STORM.lock().await;
    let system = System::start(Setup { relays: 4, store, locations: 2, ..Setup::default() }).await;
    system.install(&location(1)).await;
    system.install(&location(2)).await;
    let calm = async {
        let mut served = 0;
        for _ in 0..50 {
            let answer = system.get(&location(2), PATH).await;
            assert_eq!(
                (answer.status, answer.source()),
                (200, "platform"),
                "the other location is independent: {answer:?}"
            );
            served += 1;
            tokio::time::sleep(LASTING / 60).await;
        }
        served
    };
    let busy = location(1);
    let (storm, calm) = tokio::join!(Storm::of(&system, &busy, 40, LASTING), calm);
    storm.expect(name, &system, &busy, 100, LASTING);
    assert_eq!((calm, system.arrived(&location(2))), (50, 50));
    system.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn four_processes_keep_a_hundred_in_any_ten_seconds_on_the_embedded_engine() {
    storm_on("embedded engine", None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_observed_in_headers_apply_to_all_processes() {
    const LASTING: Duration = Duration::from_secs(13);
    let system = System::start(Setup { relays: 4, ..Setup::default() }).await;
    system.install(&location(1)).await;
    system.sandbox.marketplace.set_limits_of(location(1), Limits::sandbox_agency());
    let first = Refusal::or_answer(&system, &location(1)).await.expect("nothing was used yet");
    assert_eq!((first.header("x-ratelimit-max"), first.header("x-ratelimit-limit-daily")), ("25", "10000"));
    let mut storm = Storm::of(&system, &location(1), 20, LASTING).await;
    storm.admitted += 1;
    storm.expect("observed limits", &system, &location(1), 25, LASTING);
    let quota = system.get(&location(1), "").await.json()["quota"].clone();
    assert_eq!((&quota["burst"]["limit"], &quota["daily"]["limit"]), (&json!(25), &json!(10_000)));
    system.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raised_limit_is_used_and_a_lowered_one_is_kept() {
    let _alone = ONE_STORM.lock().await;
    let system = System::start(Setup { relays: 2, ..Setup::default() }).await;
    let resource = location(1);
    system.install(&resource).await;
    let platform = &system.sandbox.marketplace;
    platform.set_limits_of(resource.clone(), Limits { burst: 240, interval_ms: 10_000, daily: 1_000_000 });
    let limits = async || {
        let quota = system.get(&resource, "").await.json()["quota"].clone();
        (quota["burst"]["limit"].as_u64(), quota["daily"]["limit"].as_u64())
    };
    for (path, expected) in [
        (PATH, (Some(100), Some(200_000))),
        (PATH, (Some(100), Some(200_000))),
        ("/echo", (Some(240), Some(1_000_000))),
    ] {
        assert_eq!(system.get(&resource, path).await.status, 200);
        assert_eq!(limits().await, expected, "{path}");
    }
    for _ in 0..3 {
        use_up(&system, &resource, 100).await;
    }
    let worst = platform.worst_window(&resource);
    assert!((150..=240).contains(&worst), "{worst} within an interval");
    assert!(platform.api_requests(&resource).iter().all(|seen| seen.status == Some(200)), "refused by the platform");

    // A lowered limit in the answer to any request. Permits of a limit of 200 or more are counted for up to 11.3 s.
    tokio::time::sleep(INTERVAL + Duration::from_secs(2)).await;
    platform.set_limits_of(resource.clone(), Limits::sandbox_agency());
    assert_eq!(system.get(&resource, PATH).await.status, 200);
    let before = system.arrived(&resource);
    use_up(&system, &resource, 60).await;
    let arrived = system.arrived(&resource) - before;
    assert!((12..=24).contains(&arrived), "{arrived} beside the one before");
    assert!(platform.api_requests(&resource).iter().all(|seen| seen.status == Some(200)), "refused by the platform");
    system.end().await;
}

/// Uses up a location's burst in one invocation.
///
/// On a busy machine a permit that is used too late is lost, and one request of the batch is refused. The burst is used
/// up nevertheless. The suite `quota` asserts the full count, since it can move the clock.
async fn use_up(system: &System, resource: &Resource, burst: usize) {
    let request = json!({ "resource": resource, "method": "GET", "path": "/contacts/", "query": "limit=1" });
    let answer = system.invoke(json!({ "requests": vec![request; burst] }).to_string(), None).await;
    let responses = answer["responses"].as_array().expect("answers");
    let served = responses.iter().filter(|response| response["status"] == 200).count();
    let limited = responses.iter().filter(|response| response["body"]["code"] == "burst_limited").count();
    assert_eq!((served + limited, responses.len()), (burst, burst), "{responses:?}");
    assert!(served > 0, "{responses:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_caller_is_admitted_at_the_promised_instant_and_not_before() {
    const BURST: usize = 30;
    let environment = vec![("BURST_LIMIT", BURST.to_string())];
    let system = System::start(Setup { relays: 4, locations: 5, environment, ..Setup::default() }).await;
    let all: Vec<Resource> = (1..=4).map(location).collect();
    for resource in &all {
        system.install(resource).await;
    }
    let story = async |resource: &Resource| {
        use_up(&system, resource, BURST).await;
        let first = Refusal::or_answer(&system, resource).await.expect_err("the burst is used up");
        assert!(!first.after.is_zero() && first.after <= INTERVAL + Duration::from_secs(1), "{first:?}");
        let mut refusals = vec![first];
        // Every process refuses requests before that instant, and promises the same instant in each refusal.
        for early in [2_000, 1_000, 400] {
            let at = first.promised().0.saturating_sub(Duration::from_millis(early));
            tokio::time::sleep(at.saturating_sub(now())).await;
            match Refusal::or_answer(&system, resource).await {
                Err(refusal) => refusals.push(refusal),
                Ok(_) => assert!(now() >= first.promised().0, "{resource} was admitted before {first:?} promised"),
            }
        }
        let earliest = refusals.iter().map(|refusal| refusal.promised().0).max().expect("one at least");
        let latest = refusals.iter().map(|refusal| refusal.promised().1).min().expect("one at least");
        assert!(earliest <= latest + Duration::from_millis(2), "two instants were promised: {refusals:?}");
        tokio::time::sleep(latest.saturating_sub(now())).await;
        let back = Refusal::or_answer(&system, resource).await;
        assert!(back.is_ok(), "{resource}: {first:?} promised a permit, and then {back:?}");
    };
    join_all(all.iter().map(story)).await;

    // A caller that announces that it will wait is not refused.
    let waited = location(5);
    system.install(&waited).await;
    use_up(&system, &waited, BURST).await;
    let refused = Refusal::or_answer(&system, &waited).await.expect_err("the burst is used up");
    let request = system.relay(Method::GET, &route(&waited, PATH)).header("relay-wait-ms", "20000");
    assert_eq!(send(request).await.status, 200);
    assert!(now() >= refused.promised().0, "it waited until the promised instant");
    system.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daily_limit_applies_to_all_processes_together() {
    let environment = vec![("DAILY_LIMIT", "40".to_owned())];
    let system = System::start(Setup { relays: 4, environment, ..Setup::default() }).await;
    for number in 1..=3 {
        system.install(&location(number)).await;
    }
    let volley = async |resource: &Resource, calls: usize| {
        let answers = join_all((0..calls).map(|_| system.get(resource, PATH))).await;
        let (served, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| answer.status == 200);
        for answer in refused {
            assert_eq!(answer.refusal(), (429, "daily_limited".to_owned()), "{answer:?}");
            let hours = answer.retry_after().as_secs_f64() / 3600.0;
            assert!((23.9..=24.1).contains(&hours), "a day from the first request: {hours} h");
        }
        served.len()
    };
    // The configured daily limit.
    assert_eq!(volley(&location(1), 60).await, 40);
    // The daily limit in the platform's headers.
    system.sandbox.marketplace.set_limits_of(location(2), Limits { daily: 15, ..Limits::default() });
    assert_eq!(volley(&location(2), 1).await, 1);
    assert_eq!(volley(&location(2), 30).await, 14);
    // The rest of the daily limit after another program with the same app has used most of it.
    system.sandbox.marketplace.spend_today(&location(3), 199_990);
    assert_eq!(volley(&location(3), 1).await, 1);
    assert_eq!(volley(&location(3), 30).await, 9);
    for (number, arrived) in [(1, 40), (2, 15), (3, 10)] {
        assert_eq!(system.arrived(&location(number)), arrived, "the platform was not asked in vain");
        let status: Value = system.get(&location(number), "").await.json();
        assert_eq!(status["quota"]["daily"]["remaining"], 0, "{status}");
    }
    system.end().await;
}

/// The fake platform answers `/status/429` with 429 and with headers that say that the location has requests left.
#[tokio::test(flavor = "multi_thread")]
async fn a_429_for_one_endpoint_leaves_the_other_endpoints_open() {
    let system = System::start(Setup { relays: 4, ..Setup::default() }).await;
    let resource = location(1);
    system.install(&resource).await;
    let refused = system.get(&resource, "/status/429").await;
    assert_eq!((refused.status, refused.source()), (429, "platform"));
    assert!(refused.header("x-ratelimit-remaining").parse::<u32>().is_ok_and(|left| left > 90), "{refused:?}");
    let told = refused.retry_after();
    assert!(told > INTERVAL && told <= INTERVAL + Duration::from_secs(1), "{told:?}");
    for _ in 0..8 {
        let (closed, open) =
            tokio::join!(system.get(&resource, "/status/200?again=1"), system.get(&resource, "/contacts/?limit=1"));
        assert_eq!(closed.refusal(), (429, "burst_limited".to_owned()), "{closed:?}");
        assert_eq!((closed.source(), &closed.json()["limit"]), ("relay", &json!("endpoint")), "{closed:?}");
        assert!(closed.retry_after() <= told, "{closed:?}");
        assert_eq!(open.status, 200, "{open:?}");
    }
    assert_eq!(system.arrived(&resource), 9);

    // A caller that announces that it will wait is not refused.
    let request = system.relay(Method::GET, &route(&resource, "/status/200")).header("relay-wait-ms", "12000");
    assert_eq!(send(request).await.status, 200);
    system.end().await;
}
