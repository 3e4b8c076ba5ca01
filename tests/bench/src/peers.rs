//! Other rate limiters on DynamoDB, on the same engine and in the same run, each against a raw `UpdateItem` of its own
//! client library.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use shared::domain::clock::Clock;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::Command;

use crate::pairs::{Ratio, float};
use crate::pressure::most_in_any;
use crate::report::{Report, Row, Target};
use crate::store::Store;
use crate::wire::{Upstreams, Wire};

const PROCESSES: usize = 4;
/// The number of permits that are taken one after the other before the limit is reached.
const ADMITTED: usize = 80;
/// The number of refusals that are measured right after the limit was reached.
const REFUSED: usize = 100;

/// Another rate limiter, and the commands that install and run it.
struct Peer {
    name: &'static str,
    /// Names of its rows: calls, refusals, most, one caller, many callers.
    rows: [&'static str; 5],
    /// The files of the peer's program.
    files: &'static [&'static str],
    /// The command that installs the peer in the current folder.
    install: &'static str,
    /// The command that runs the peer in the current folder. Arguments follow.
    run: &'static str,
}

const PEERS: [Peer; 2] = [
    Peer {
        name: "rate-limiter-flexible",
        rows: [
            "peers.flexible.calls",
            "peers.flexible.refusal",
            "peers.flexible.most",
            "peers.flexible.latency",
            "peers.flexible.throughput",
        ],
        files: &["flexible.mjs", "package.json", "package-lock.json"],
        install: "npm ci --silent --no-audit --no-fund",
        run: "NODE_NO_WARNINGS=1 exec node flexible.mjs",
    },
    Peer {
        name: "zae-limiter",
        rows: ["peers.zae.calls", "peers.zae.refusal", "peers.zae.most", "peers.zae.latency", "peers.zae.throughput"],
        files: &["zae.py", "requirements.txt"],
        install: "python3 -m venv venv && venv/bin/pip install --quiet --requirement requirements.txt",
        run: "exec venv/bin/python zae.py",
    },
];

#[derive(Deserialize)]
struct Measured {
    one: Vec<(f64, f64)>,
    many: Vec<(f64, f64)>,
}

/// Measures all peers. A peer that cannot be installed is reported as missing, with the reason.
pub(crate) async fn measure(store: &Store, folder: &Path, report: &mut Report) {
    for peer in &PEERS {
        match peer.measure(store, folder).await {
            Ok(rows) => report.add(rows),
            Err(why) => report.missing(peer.name, &why),
        }
    }
}

impl Peer {
    async fn measure(&self, store: &Store, folder: &Path) -> Result<Vec<Row>, String> {
        let folder = self.installed_in(folder).await?;
        let wire = Wire::to(Upstreams { dynamodb: store.url(), ..Upstreams::default() }).await;
        self.ask(&folder, &["prepare", &store.url()]).await?;
        let (admitted, refused) = self.counts(&folder, &wire).await?;
        let (most, sent, calls) = self.pressure(&folder, &wire).await?;
        let measured: Measured = serde_json::from_value(self.ask(&folder, &["measure", &store.url()]).await?)
            .map_err(|error| format!("it answers {error}"))?;
        let [of_calls, of_refusals, of_most, of_one, of_many] = self.rows;
        let what = |what: &str| format!("{}: {what}", self.name);
        let count = |name, text: &str, figure| Row::count(name, store.name, &what(text), Target::Told, figure);
        let ratio = |name, text: &str, pairs: &[(f64, f64)]| {
            Row::ratio(name, store.name, &what(text), Target::Told, &Ratio::of(pairs), "/s")
        };
        Ok(vec![
            count(of_calls, "calls for each admitted request, both limits", float(admitted) / float(ADMITTED)),
            count(of_refusals, "calls for each refusal", float(refused) / float(REFUSED)),
            count(of_most, "most in any 10 s, 4 processes with 25 callers each for 25 s", float(most))
                .with_remark(format!("{sent} of 300 admitted, {calls} calls")),
            ratio(of_one, "decisions a second against its raw UpdateItem, 1 caller", &measured.one),
            ratio(of_many, "the same, 32 callers on 32 keys", &measured.many),
        ])
    }

    async fn installed_in(&self, folder: &Path) -> Result<PathBuf, String> {
        let folder = folder.join(self.name);
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers");
        std::fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
        for file in self.files {
            std::fs::copy(source.join(file), folder.join(file)).map_err(|error| format!("{file}: {error}"))?;
        }
        let installed = folder.join("installed");
        if !installed.exists() {
            let output = command(&folder, self.install).output().await.map_err(|error| error.to_string())?;
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stderr);
                return Err(format!("`{}` fails: {}", self.install, said.lines().last().unwrap_or_default()));
            }
            std::fs::write(&installed, "").map_err(|error| error.to_string())?;
        }
        Ok(folder)
    }

    fn running(&self, folder: &Path, arguments: &[&str]) -> Command {
        command(folder, &format!("{} {}", self.run, arguments.join(" ")))
    }

    /// Runs the peer to its end. The answer of the peer is one line of JSON.
    async fn ask(&self, folder: &Path, arguments: &[&str]) -> Result<Value, String> {
        let output = self.running(folder, arguments).output().await.map_err(|error| error.to_string())?;
        serde_json::from_slice(&output.stdout).map_err(|_| {
            let said = String::from_utf8_lossy(&output.stderr);
            format!("{arguments:?}: {}", said.lines().last().unwrap_or_default())
        })
    }

    /// The number of calls for [`ADMITTED`] permits, and for [`REFUSED`] refusals, in one process.
    async fn counts(&self, folder: &Path, wire: &Wire) -> Result<(usize, usize), String> {
        let failed = |error: std::io::Error| error.to_string();
        let mut process = self.running(folder, &["spend", &wire.url()]).spawn().map_err(failed)?;
        let (mut stdin, stdout) = (process.stdin.take().expect("piped"), process.stdout.take().expect("piped"));
        let mut lines = BufReader::new(stdout).lines();
        let mut counted = Vec::new();
        for phase in 0..4 {
            let line = lines.next_line().await.map_err(failed)?.ok_or("it ends early")?;
            counted.push((wire.count(), line));
            if phase < 3 {
                stdin.write_all(b"\n").await.map_err(failed)?;
            }
        }
        let calls = |phase: usize| counted[phase].0 - counted[phase - 1].0;
        if counted[1].1 != ADMITTED.to_string() {
            return Err(format!("{} of {ADMITTED} admitted", counted[1].1));
        }
        Ok((calls(1), calls(3)))
    }

    /// The most permits in any 10 s, the number of all permits, and the number of calls.
    async fn pressure(&self, folder: &Path, wire: &Wire) -> Result<(usize, usize, usize), String> {
        let before = wire.count();
        let begin = Clock::system().now() + Duration::from_secs(4);
        let (from, to) = (begin.0.to_string(), (begin + Duration::from_secs(25)).0.to_string());
        let arguments = ["caller", &wire.url(), &from, &to];
        let answers = futures_util::future::join_all((0..PROCESSES).map(|_| self.ask(folder, &arguments))).await;
        let mut sent = Vec::new();
        for answer in answers {
            sent.extend(answer?["sent"].as_array().into_iter().flatten().filter_map(Value::as_i64));
        }
        sent.sort_unstable();
        Ok((most_in_any(&sent, 10_000), sent.len(), wire.count() - before))
    }
}

fn command(folder: &Path, script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]).current_dir(folder).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}
