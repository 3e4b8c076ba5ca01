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
    marketplace::{self, grants::Rotation, window::Limits},
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
    /// Port of the platform's double; 0 takes a free one
    #[arg(long, default_value_t = 8090)]
    platform_port: u16,
    /// Port of the console; 0 takes a free one (default: 8070, or a free one where that is taken)
    #[arg(long)]
    console_port: Option<u16>,
    /// No console
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
    /// What using a refresh token does to it
    #[arg(long, value_enum, default_value_t = RotationArgument::Forgiving)]
    rotation: RotationArgument,
    /// Seconds between two scheduled refreshes; 0 for none
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    refresh_every: u64,
    /// Run the functions' built bootstraps in this directory instead of those in this binary
    #[arg(long, value_name = "DIRECTORY")]
    bootstraps: Option<PathBuf>,
    /// Environment of the functions, NAME=VALUE; may be repeated
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = assignment)]
    environment: Vec<(String, String)>,
    /// Show every line the functions write
    #[arg(long, short)]
    verbose: bool,
}

/// The alias that the gateway invokes, as `template.yaml` has it.
const GATEWAY_ALIAS: &str = "live";
/// Where a browser looks for the console again after the sandbox was started again.
const CONSOLE_PORT: u16 = 8070;

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RotationArgument {
    /// Dead at once
    Strict,
    /// The same new token for 30 seconds, as the platform documents
    Forgiving,
    /// Using a dead token kills its successors too
    FamilyRevoking,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Be one function; the sandbox starts itself so
    #[command(hide = true)]
    Function {
        /// Which one
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
    fn into_options(self) -> Options {
        let rotation = match self.rotation {
            RotationArgument::Strict => Rotation::Strict,
            RotationArgument::Forgiving => Rotation::Forgiving,
            RotationArgument::FamilyRevoking => Rotation::FamilyRevoking,
        };
        Options {
            port: self.port,
            marketplace: marketplace::Options {
                port: self.platform_port,
                rotation,
                token_life: Duration::from_secs(self.token_life),
                limits: Limits { burst: self.burst, daily: self.daily, ..Limits::default() },
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
            say_error(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

/// Runs one function in this process, until the sandbox that started it is gone.
async fn be(function: Function) -> ExitCode {
    std::thread::spawn(|| {
        // Our end of the pipe closes whenever the sandbox ends, a crash included.
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
    let colours = Colours::of_stdout();
    let verbose = arguments.verbose;
    let bus = EventBus::default();
    let mut events = bus.subscribe();
    let sandbox = tokio::select! {
        started = Sandbox::start(arguments.into_options(), bus) => started?,
        _ = tokio::signal::ctrl_c() => return Ok(()),
    };
    say(&terminal::welcome(&sandbox, colours));
    // One future for the whole loop: a signal between two of them would be lost.
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

/// Ctrl-C, or a polite request to end.
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

/// A line on standard output; a reader that has gone is no reason to panic.
fn say(text: &str) {
    let _reader_gone = writeln!(std::io::stdout(), "{text}");
}

fn say_error(text: &str) {
    let _reader_gone = writeln!(std::io::stderr(), "{text}");
}
