//! Four processes want more permits than the limit allows, in real time. In the first case they have 25 callers each that
//! take all they can get for 25 s. In the second case requests come steadily, twice as many as the limit allows, for 100 s;
//! the clocks of the processes differ, and requests take a varying time to the platform.

use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use shared::domain::clock::{Clock, Millis};
use shared::domain::limits::Limits;
use shared::domain::resource::Resource;
use shared::limiter::{Limiter, LimiterError};
use shared::table::Table;
use tokio::process::Command;

use crate::pairs::float;
use crate::report::{Row, Target, say};
use crate::store::{self, Store};
use crate::wire::{Upstreams, Wire};

const LIMITS: Limits = Limits { burst: 100, interval: Duration::from_secs(10), daily: 200_000 };
const PROCESSES: i64 = 4;
const CALLERS: usize = 25;
/// In the steady case a process gets a request each so often: together twice the limit.
const PACE: Duration = Duration::from_millis(200);
/// In the steady case a request waits for a permit for at most so long.
const PATIENCE: Duration = Duration::from_secs(5);
/// In the steady case the clock of the last process is ahead of that of the first by so much, in milliseconds.
const CLOCKS_APART: i64 = 100;
/// In the steady case a request takes at most so long to the platform or to the table.
const JITTER: Duration = Duration::from_millis(50);

/// The arguments of one of the processes.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Caller {
    /// The URL of DynamoDB.
    #[arg(long)]
    url: String,
    /// The table.
    #[arg(long)]
    table: String,
    /// The start time, in milliseconds since 1970.
    #[arg(long)]
    begin: i64,
    /// The end time, in milliseconds since 1970.
    #[arg(long)]
    end: i64,
    /// Requests come steadily, to a process whose clock is ahead by so many milliseconds.
    #[arg(long)]
    steadily: Option<i64>,
}

/// The task of one process: takes permits, and prints the instants at which each request left and reached the platform,
/// by the machine's clock.
pub(crate) async fn call(told: Caller) {
    let table = Table { client: store::client(&told.url).await, name: told.table.into() };
    let clock = Clock::system_off_by(told.steadily.unwrap_or_default());
    let limiter = Limiter::new(table, clock.clone(), LIMITS);
    let (begin, end) = (Millis(told.begin), Millis(told.end));
    tokio::time::sleep(begin.since(Clock::system().now())).await;
    let (sent, refused) = match told.steadily {
        Some(ahead) => steady_requests(&limiter, &clock, Duration::from_millis(ahead.unsigned_abs()), end).await,
        None => greedy_callers(&limiter, &clock, end).await,
    };
    say(&json!({ "sent": sent, "refused": refused }).to_string());
}

/// Requests at a constant pace. Each waits for a permit for some time and then leaves at once.
async fn steady_requests(limiter: &Limiter, clock: &Clock, ahead: Duration, end: Millis) -> (Vec<[i64; 2]>, usize) {
    let mut ticks = tokio::time::interval(PACE);
    let mut requests = Vec::new();
    while clock.now() < end + ahead {
        ticks.tick().await;
        let (limiter, clock) = (limiter.clone(), clock.clone());
        requests.push(tokio::spawn(async move {
            let resource = Resource::location("benchLocation").expect("an id");
            let wait_until = (clock.now() + PATIENCE).min(end + ahead);
            let permit = match limiter.take(&resource, Some(wait_until)).await {
                Ok(permit) => permit,
                Err(LimiterError::Refused(_)) => return None,
                Err(error) => panic!("{error}"),
            };
            let now = clock.now();
            let left = now - ahead;
            (now <= permit.send_by).then(|| [left.0, (left + JITTER.mul_f64(fastrand::f64())).0])
        }));
    }
    let all = requests.len();
    let mut sent = Vec::new();
    for request in requests {
        sent.extend(request.await.expect("no panic"));
    }
    let refused = all - sent.len();
    (sent, refused)
}

/// Callers that take all they can get.
async fn greedy_callers(limiter: &Limiter, clock: &Clock, end: Millis) -> (Vec<[i64; 2]>, usize) {
    let resource = Resource::location("benchLocation").expect("an id");
    let mut callers = Vec::new();
    for number in 0..CALLERS {
        let (limiter, clock, resource) = (limiter.clone(), clock.clone(), resource.clone());
        callers.push(tokio::spawn(async move {
            let (mut sent, mut refused) = (Vec::new(), 0);
            while clock.now() < end {
                // Half of the callers wait in the waiter queue. The other half try again at the instant that a refusal
                // states.
                match limiter.take(&resource, (number % 2 == 0).then_some(end)).await {
                    Ok(permit) if clock.now() <= permit.send_by => sent.push([clock.now().0; 2]),
                    Ok(_) => {}
                    Err(LimiterError::Refused(refusal)) => {
                        refused += 1;
                        tokio::time::sleep(refusal.retry_at.min(end).since(clock.now())).await;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            (sent, refused)
        }));
    }
    let (mut sent, mut refused) = (Vec::new(), 0);
    for caller in callers {
        let (theirs, refusals) = caller.await.expect("no panic");
        sent.extend(theirs);
        refused += refusals;
    }
    (sent, refused)
}

/// The sums of all processes.
struct Run {
    /// The instants at which requests left, ascending.
    left: Vec<i64>,
    /// The instants at which requests reached the platform, ascending.
    arrived: Vec<i64>,
    refused: u64,
    /// Calls to DynamoDB, counted by the proxy.
    calls: usize,
}

/// Starts the processes and adds up their results. Calls to the table take up to `jitter` more. `arguments` are further
/// arguments of a process.
async fn run(store: &Store, lasts: Duration, jitter: Duration, arguments: impl Fn(i64) -> Vec<String>) -> Run {
    let upstreams = Upstreams { dynamodb: store.url(), dynamodb_jitter: jitter, ..Upstreams::default() };
    let wire = Wire::to(upstreams).await;
    let table = store.table().await;
    let begin = Clock::system().now() + Duration::from_millis(500);
    let (from, to) = (begin.0.to_string(), (begin + lasts).0.to_string());
    let itself = std::env::current_exe().expect("this program");
    let mut processes = Vec::new();
    for number in 0..PROCESSES {
        let mut command = Command::new(&itself);
        command.args(["caller", "--url", &wire.url(), "--table", &table.name, "--begin", &from, "--end", &to]);
        command.args(arguments(number)).stdout(Stdio::piped()).kill_on_drop(true);
        processes.push(command.spawn().expect("a process"));
    }
    let mut run = Run { left: Vec::new(), arrived: Vec::new(), refused: 0, calls: 0 };
    for process in processes {
        let output = process.wait_with_output().await.expect("it ends");
        let told: Value = serde_json::from_slice(&output.stdout).expect("what it prints");
        let instants =
            |which: usize| told["sent"].as_array().into_iter().flatten().filter_map(move |sent| sent[which].as_i64());
        run.left.extend(instants(0));
        run.arrived.extend(instants(1));
        run.refused += told["refused"].as_u64().unwrap_or_default();
    }
    run.left.sort_unstable();
    run.arrived.sort_unstable();
    Run { calls: wire.count(), ..run }
}

/// Callers that take all they can get.
pub(crate) async fn pressure(store: &Store, quick: bool) -> Vec<Row> {
    let lasts = Duration::from_secs(if quick { 13 } else { 25 });
    let Run { left: sent, refused, calls, .. } = run(store, lasts, Duration::ZERO, |_| vec![]).await;
    let most = most_in_any(&sent, 10_000);
    let intervals = usize::try_from(lasts.as_secs() / 10 + 1).expect("few");
    let ideal = intervals * 100;
    vec![
        Row::time(
            "pressure.admitted",
            store.name,
            "admitted of the ideal, 4 processes with 25 callers each",
            Target::AtLeast(0.97),
            float(sent.len()) / float(ideal),
        )
        .with_remark(format!(
            "{} of {ideal} in {} s, {calls} calls, {refused} refusals",
            sent.len(),
            lasts.as_secs()
        )),
        Row::count("pressure.most", store.name, "the same: most in any 10 s", Target::AtMost(100.0), float(most)),
    ]
}

/// Steady requests to processes whose clocks differ.
pub(crate) async fn overload(store: &Store, quick: bool) -> Vec<Row> {
    // Whole intervals.
    let lasts = Duration::from_secs(if quick { 30 } else { 100 });
    let clock = |process: i64| process * CLOCKS_APART / (PROCESSES - 1);
    let steadily = |process| vec!["--steadily".to_owned(), clock(process).to_string()];
    let Run { left, arrived, refused, calls } = run(store, lasts, JITTER, steadily).await;
    let allowed = lasts.as_secs_f64() / LIMITS.interval.as_secs_f64() * f64::from(LIMITS.burst);
    let what = format!(
        "steady overload from 4 processes, clocks up to {CLOCKS_APART} ms apart, up to {JITTER:?} on each way: \
         admitted of the limit"
    );
    let share = float(left.len()) / allowed;
    let [most_left, most_arrived] = [&left, &arrived].map(|instants| most_in_any(instants, 10_000));
    let what_most = "the same: most that leave in any 10 s";
    vec![
        Row::time("overload.admitted", store.name, &what, Target::AtLeast(0.95), share).with_remark(format!(
            "{} of {allowed} in {} s, {calls} calls, {refused} refused",
            left.len(),
            lasts.as_secs()
        )),
        Row::count("overload.most", store.name, what_most, Target::AtMost(100.0), float(most_left))
            .with_remark(format!("{most_arrived} reach the platform")),
    ]
}

/// The highest number of instants in any `interval` milliseconds. The instants are sorted.
pub(crate) fn most_in_any(sent: &[i64], interval: i64) -> usize {
    (0..sent.len()).map(|i| i + 1 - sent.partition_point(|at| *at <= sent[i] - interval)).max().unwrap_or(0)
}
