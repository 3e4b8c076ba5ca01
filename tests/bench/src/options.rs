//! The command line, and what a run is made of besides.

use std::path::PathBuf;
use std::process::Command as Process;

use clap::{Parser, Subcommand, ValueEnum};
use serde_json::{Value, json};

use crate::instructions::Taker;
use crate::pressure::Caller;
use crate::system::Functions;

/// Measures what the system costs, against raw baselines in the same run.
#[derive(Debug, Parser)]
pub(crate) struct Options {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    /// Write all figures to this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Only what begins with this name, such as `permit`; can be given more than once.
    #[arg(long, value_name = "NAME")]
    pub(crate) only: Vec<String>,
    /// Two minutes: what is counted is as good as ever, what is timed is hardly more than a sign of life; peers and
    /// instructions are left out.
    #[arg(long)]
    pub(crate) quick: bool,
    /// Which DynamoDB.
    #[arg(long, value_enum, default_value_t = Engines::Both)]
    pub(crate) engine: Engines,
    /// Folder of the built functions; without it they are built.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) functions: Option<PathBuf>,
}

/// What this program can do beside measuring.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// One of the processes that want permits.
    #[command(hide = true)]
    Caller(Caller),
    /// A process whose instructions are counted.
    #[command(hide = true)]
    Taker(Taker),
}

/// Engines to measure on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Engines {
    /// Both.
    Both,
    /// The one that is part of this program.
    Embedded,
    /// DynamoDB Local.
    Local,
}

impl Options {
    /// Whether a benchmark is to be run: its name, or the part before a dot.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| name.starts_with(only.as_str()))
    }

    /// The functions, built if need be with the profile of this program.
    pub(crate) fn functions(&self) -> Result<Functions, String> {
        if let Some(folder) = &self.functions {
            return Ok(Functions(folder.clone()));
        }
        build()?;
        Ok(Functions(own_folder()?))
    }
}

/// The function that does nothing, which is built beside this program.
pub(crate) fn bare() -> Result<PathBuf, String> {
    let path = own_folder()?.join("bare");
    if !path.is_file() {
        build()?;
    }
    Ok(path)
}

/// Where peers are installed.
pub(crate) fn peers() -> Result<PathBuf, String> {
    Ok(own_folder()?.join("peers"))
}

fn own_folder() -> Result<PathBuf, String> {
    let path = std::env::current_exe().map_err(|error| error.to_string())?;
    path.parent().map(PathBuf::from).ok_or_else(|| "this program has no folder".to_owned())
}

/// What is measured, with the features that the whole workspace has, as deployments do. Nothing is built twice by it:
/// this program has the same (see its manifest).
fn build() -> Result<(), String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Process::new(cargo);
    build.current_dir(env!("CARGO_MANIFEST_DIR")).args(["build", "--workspace", "--locked"]);
    build.args(["--bin", "relay", "--bin", "refresh", "--bin", "bare"]);
    if let Some(target) = own_folder()?.parent() {
        build.arg("--target-dir").arg(target);
    }
    if crate::report::OPTIMIZED {
        build.arg("--release");
    }
    let status = build.status().map_err(|error| format!("cargo does not start: {error}"))?;
    if status.success() { Ok(()) } else { Err("the functions cannot be built".to_owned()) }
}

/// What the figures were measured on.
pub(crate) fn machine() -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let load = read("/proc/loadavg");
    json!({
        "cpu": model.trim_start_matches([' ', '\t', ':']),
        "cores": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "load": load.split(' ').next(),
        "at": shared::domain::clock::Clock::system().now().rfc3339(),
        "optimized": crate::report::OPTIMIZED,
    })
}
