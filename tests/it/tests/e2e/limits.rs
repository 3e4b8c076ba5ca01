//! The promises about limits, as the platform counts and as callers live with them.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use http::Method;
use it::outside::{Answer, Setup, System, location, route, send};
use sandbox::marketplace::grants::Resource;
use sandbox::marketplace::window::Limits;
use serde_json::{Value, json};

const PATH: &str = "/contacts/?limit=1";
const INTERVAL: Duration = Duration::from_secs(10);

/// Time as the platform's ledger has it.
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970")
}

/// A refusal as its caller saw it.
#[derive(Clone, Copy, Debug)]
struct Refusal {
    sent: Duration,
    received: Duration,
    after: Duration,
}

impl Refusal {
    async fn or_answer(system: &System, resource: &Resource) -> Result<Answer, Self> {
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

    /// The promised instant lies between these two.
    fn promised(self) -> (Duration, Duration) {
        (self.sent + self.after, self.received + self.after)
    }
}

/// What callers got who never had enough.
#[derive(Debug, Default)]
struct Storm {
    admitted: usize,
    refusals: Vec<Refusal>,
}

impl Storm {
    /// Callers that come back at once after an answer; after a refusal when they are told to, or, every fifth, sooner.
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

    /// At most `limit` in any interval, nearly as many as that allows, and each refusal true.
    fn expect(&self, name: &str, system: &System, resource: &Resource, limit: usize, lasting: Duration) {
        let windows = usize::try_from(lasting.as_secs() / INTERVAL.as_secs()).expect("small") + 1;
        let ideal = limit * windows;
        let platform = &system.sandbox.marketplace;
        let (worst, arrived) = (platform.worst_window(resource), system.arrived(resource));
        report(name, self, ideal, worst);
        assert!(worst <= limit, "{name}: {worst} requests within an interval");
        assert!(self.admitted * 100 >= ideal * 95, "{name}: {} of the ideal {ideal} admitted", self.admitted);
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

    /// Between a refusal and the instant it named nobody else got anything either. (What had its permit already was
    /// still on its way.)
    fn expect_none_before_its_promise(&self, name: &str, system: &System, resource: &Resource) {
        const ON_ITS_WAY: Duration = Duration::from_millis(700);
        let seen: Vec<Duration> =
            system.sandbox.marketplace.api_requests(resource).iter().map(|seen| seen.at).collect();
        for refusal in &self.refusals {
            let wrong = seen.iter().find(|at| **at > refusal.received + ON_ITS_WAY && **at < refusal.promised().0);
            assert_eq!(wrong, None, "{name}: somebody was admitted before {refusal:?} promised");
        }
    }
}

#[expect(clippy::print_stdout, reason = "the numbers are what one wants to see of such a test")]
fn report(name: &str, storm: &Storm, ideal: usize, worst: usize) {
    let percent = storm.admitted * 100 / ideal;
    let refused = storm.refusals.len();
    println!(
        "{name}: {} of the ideal {ideal} admitted ({percent} %), worst window {worst}, {refused} refused",
        storm.admitted
    );
}

/// Two storms at once would leave too little of a small machine to either: a request that waits for a processor after
/// it was permitted arrives when it should not.
static ONE_STORM: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Callers that never have enough of one location, over four processes, and a calm one of another.
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
                "a calm location is independent: {answer:?}"
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
async fn limits_learnt_from_headers_bind_all_processes() {
    const LASTING: Duration = Duration::from_secs(13);
    let system = System::start(Setup { relays: 4, ..Setup::default() }).await;
    system.install(&location(1)).await;
    system.sandbox.marketplace.set_limits_of(location(1), Limits::sandbox_agency());
    let first = Refusal::or_answer(&system, &location(1)).await.expect("nothing was used yet");
    assert_eq!((first.header("x-ratelimit-max"), first.header("x-ratelimit-limit-daily")), ("25", "10000"));
    let mut storm = Storm::of(&system, &location(1), 20, LASTING).await;
    storm.admitted += 1;
    storm.expect("learnt limits", &system, &location(1), 25, LASTING);
    let quota = system.get(&location(1), "").await.json()["quota"].clone();
    assert_eq!((&quota["burst"]["limit"], &quota["daily"]["limit"]), (&json!(25), &json!(10_000)));
    system.end().await;
}

/// Uses up a location's burst in one invocation.
async fn use_up(system: &System, resource: &Resource) {
    let request = json!({ "resource": resource, "method": "GET", "path": "/contacts/", "query": "limit=1" });
    let answer = system.invoke(json!({ "requests": vec![request; 100] }).to_string(), None).await;
    let responses = answer["responses"].as_array().expect("answers");
    let others: Vec<_> = responses.iter().filter(|response| response["status"] != 200).collect();
    assert_eq!((responses.len(), others.len()), (100, 0), "a whole burst is free at first: {others:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_comes_back_when_promised_is_admitted_and_not_before() {
    let system = System::start(Setup { relays: 4, locations: 6, ..Setup::default() }).await;
    let all: Vec<Resource> = (1..=6).map(location).collect();
    for resource in &all {
        system.install(resource).await;
    }
    let story = async |resource: &Resource| {
        use_up(&system, resource).await;
        let first = Refusal::or_answer(&system, resource).await.expect_err("the burst is used up");
        assert!(first.after > Duration::from_secs(3) && first.after <= INTERVAL + Duration::from_secs(1), "{first:?}");
        let mut refusals = vec![first];
        // Tries before the time are refused, and hear of the same instant, whichever process they meet.
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
    for resource in &all {
        assert!(system.sandbox.marketplace.worst_window(resource) <= 100);
    }

    // Who says that it will wait is not refused: it waits until then.
    let waited = &location(1);
    let request = system.relay(Method::GET, &route(waited, PATH)).header("relay-wait-ms", "12000");
    assert_eq!(send(request).await.status, 200);
    system.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_day_ends_for_all_processes_at_once() {
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
    // As configured.
    assert_eq!(volley(&location(1), 60).await, 40);
    // As the platform's headers say.
    system.sandbox.marketplace.set_limits_of(location(2), Limits { daily: 15, ..Limits::default() });
    assert_eq!(volley(&location(2), 1).await, 1);
    assert_eq!(volley(&location(2), 30).await, 14);
    // As another program with the same app has left it.
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

/// The platform's double answers `/status/429` with 429 and with headers that say that the location has room left.
#[tokio::test(flavor = "multi_thread")]
async fn a_429_of_one_endpoint_leaves_the_others_open() {
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

    // A caller that says that it waits is not refused.
    let request = system.relay(Method::GET, &route(&resource, "/status/200")).header("relay-wait-ms", "12000");
    assert_eq!(send(request).await.status, 200);
    system.end().await;
}
