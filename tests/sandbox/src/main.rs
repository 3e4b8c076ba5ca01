//! `cargo run -p sandbox`: the whole system on this machine.

use std::{
    io::Write as _,
    path::PathBuf,
    process::{ExitCode, Termination as _},
    time::Duration,
};

use clap::{Parser, Subcommand, ValueEnum};
use sandbox::{
    events::EventBus,
    marketplace::{self, ApiVersions, grants::Rotation, window::Limits},
    server::StartError,
    terminal::{self, Colours},
    whole::{Options, Programs, Sandbox},
};
use tokio::sync::broadcast::error::RecvError;

/// Runs the relay, with everything it talks to, on this machine.
#[derive(Debug, Parser)]
#[command(name = "sandbox", version)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Port of the relay; 0 takes a free one
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Port of the fake platform; 0 takes a free one
    #[arg(long, default_value_t = 8090)]
    platform_port: u16,
    /// Port of the console; 0 takes a free one (default: 8070, or a free one where that is taken)
    #[arg(long)]
    console_port: Option<u16>,
    /// Start no console
    #[arg(long, conflicts_with = "console_port")]
    no_console: bool,
    /// Keep the database, the keys and the platform's tokens in this file and beside it (default: in memory)
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Processes of the relay
    #[arg(long, default_value_t = 2, value_name = "N")]
    relays: usize,
    /// Life of access tokens in seconds
    #[arg(long, default_value_t = 86_399, value_name = "SECONDS")]
    token_life: u64,
    /// Requests in 10 seconds, for each location or company
    #[arg(long, default_value_t = 100, value_name = "N")]
    burst: usize,
    /// Requests a day, for each location or company
    #[arg(long, default_value_t = 200_000, value_name = "N")]
    daily: u64,
    /// Requests to the token endpoint in a minute, for the whole app (a HoopAI app may have 5; default: no limit)
    #[arg(long, value_name = "N")]
    token_requests: Option<usize>,
    /// Versions of the platform's API
    #[arg(long, value_enum, default_value_t = ApiArgument::Both)]
    api: ApiArgument,
    /// Treatment of a refresh token that is used again
    #[arg(long, value_enum, default_value_t = RotationArgument::Forgiving)]
    rotation: RotationArgument,
    /// Sign webhooks with a shared secret (HMAC-SHA256), as HoopAI does
    #[arg(long)]
    hmac: bool,
    /// Seconds between two scheduled refreshes; 0 for none
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    refresh_every: u64,
    /// Run the functions' built bootstraps in this directory instead of those in this binary
    #[arg(long, value_name = "DIRECTORY")]
    bootstraps: Option<PathBuf>,
    /// Environment of the functions, NAME=VALUE; may be repeated
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = assignment)]
    environment: Vec<(String, String)>,
    /// Show every line that the functions log
    #[arg(long, short)]
    verbose: bool,
}

/// The alias that the gateway invokes, as in `template.yaml`.
const GATEWAY_ALIAS: &str = "live";
/// Default port of the console. The port is fixed so that an open page finds a restarted sandbox.
const CONSOLE_PORT: u16 = 8070;

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ApiArgument {
    /// v2 and v3
    Both,
    /// v2 only
    V2,
    /// The token endpoint, minting and the list of locations exist in v3 only
    V3,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RotationArgument {
    /// It is refused
    Strict,
    /// It gets the same new token for 30 seconds, as the platform documents
    Forgiving,
    /// It is refused, and its successors are revoked
    FamilyRevoking,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one function. The sandbox starts itself with this command
    #[command(hide = true)]
    Function {
        /// The function
        function: Function,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Function {
    Callback,
    Refresh,
    Relay,
    Webhook,
}

fn assignment(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE".to_owned()),
    }
}

impl Arguments {
    /// Checks the numbers, before anything starts.
    fn check(&self) -> Result<(), StartError> {
        let numbers = [
            ("--relays", self.relays as u64),
            ("--token-life", self.token_life),
            ("--burst", self.burst as u64),
            ("--daily", self.daily),
            ("--token-requests", self.token_requests.unwrap_or(1) as u64),
        ];
        match numbers.into_iter().find(|(_, number)| *number == 0) {
            Some((option, _)) => Err(StartError::Option(format!("{option} must be 1 or more"))),
            None => Ok(()),
        }
    }

    fn into_options(self) -> Options {
        let rotation = match self.rotation {
            RotationArgument::Strict => Rotation::Strict,
            RotationArgument::Forgiving => Rotation::Forgiving,
            RotationArgument::FamilyRevoking => Rotation::FamilyRevoking,
        };
        let api = match self.api {
            ApiArgument::Both => ApiVersions::Both,
            ApiArgument::V2 => ApiVersions::V2,
            ApiArgument::V3 => ApiVersions::V3,
        };
        Options {
            port: self.port,
            marketplace: marketplace::Options {
                port: self.platform_port,
                rotation,
                api,
                token_requests_per_minute: self.token_requests,
                token_life: Duration::from_secs(self.token_life),
                limits: Limits { burst: self.burst, daily: self.daily, ..Limits::default() },
                webhook_secret: self.hmac.then(|| format!("sandbox-hooks-{}", shared::domain::random::hex::<12>())),
                ..marketplace::Options::default()
            },
            data: self.data,
            relays: self.relays,
            refresh_every: (self.refresh_every > 0).then(|| Duration::from_secs(self.refresh_every)),
            programs: self.bootstraps.map_or(Programs::Itself, Programs::Directory),
            environment: std::iter::once(("GATEWAY_ALIAS".to_owned(), GATEWAY_ALIAS.to_owned()))
                .chain(self.environment)
                .collect(),
            webhooks: true,
            console: match (self.no_console, self.console_port) {
                (true, _) => Vec::new(),
                (false, Some(port)) => vec![port],
                (false, None) => vec![CONSOLE_PORT, 0],
            },
            ..Options::default()
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(Command::Function { function }) = arguments.command {
        return be(function).await;
    }
    match show(arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say_error(&format!("sandbox: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Runs one function in this process, until the sandbox that started the process has ended.
async fn be(function: Function) -> ExitCode {
    std::thread::spawn(|| {
        // The pipe closes when the sandbox ends, even if it crashes.
        let _closed = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
    match function {
        Function::Callback => callback::run().await.report(),
        Function::Refresh => refresh::run().await.report(),
        Function::Relay => relay::run().await.report(),
        Function::Webhook => webhook::run().await.report(),
    }
}

async fn show(arguments: Arguments) -> Result<(), StartError> {
    arguments.check()?;
    let colours = Colours::of_stdout();
    let verbose = arguments.verbose;
    let bus = EventBus::default();
    let mut events = bus.subscribe();
    let sandbox = tokio::select! {
        started = Sandbox::start(arguments.into_options(), bus) => started?,
        _ = tokio::signal::ctrl_c() => return Ok(()),
    };
    if let Some((function, problem)) = sandbox.start_failure() {
        sandbox.end().await;
        return Err(StartError::Function { function, problem });
    }
    say(&terminal::welcome(&sandbox, colours));
    // One future for the whole loop: with one future per turn, a signal between two turns would be lost.
    let mut ended = std::pin::pin!(ended());
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            () = &mut ended => break,
        };
        match event {
            Ok(event) => {
                if let Some(line) = terminal::line(&event, verbose, colours) {
                    say(&line);
                }
            }
            Err(RecvError::Lagged(missed)) => say(&format!("({missed} lines left out)")),
            Err(RecvError::Closed) => break,
        }
    }
    sandbox.end().await;
    Ok(())
}

/// Waits for Ctrl-C or SIGTERM.
async fn ended() {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).ok();
    let terminated = async {
        match &mut terminate {
            Some(signal) => signal.recv().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminated => {}
    }
}

/// Writes a line to standard output. A closed pipe does not cause a panic.
fn say(text: &str) {
    let _reader_gone = writeln!(std::io::stdout(), "{text}");
}

fn say_error(text: &str) {
    let _reader_gone = writeln!(std::io::stderr(), "{text}");
}
