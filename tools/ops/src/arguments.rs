//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use shared::domain::clock::Millis;
use shared::domain::resource::{Kind, Resource};
use shared::domain::status::Status;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  AWS or the platform failed
  2  the command line, the environment or the imported file is wrong
  3  there is no such installation, caller, key or rule
  4  refused: not safe now, another change was faster, or --yes is missing
  5  the doctor found a fault

Environment: the variables of the functions (TABLE_NAME, APP_SECRET_ID, SEALING_SECRET_ID, CALLERS_SECRET_ID,
RESCUE_QUEUE_URL, API_URL, GATEWAY_ALIAS, WEBHOOK_SECRET_ID, EVENTS_OVERFLOW_QUEUE_URL), and REFRESH_FUNCTION,
RELAY_FUNCTION, RESCUE_FAILURES_URL, EVENTS_OVERFLOW_FAILURES_URL, EVENT_ARCHIVE_ARN, CALLS_QUEUE_URL, RESULTS_QUEUE_URL,
CALLS_FAILURES_URL, LOG_GROUPS.
The stack's output OperatorEnvironment contains them all; --stack NAME reads it.";

/// Operates a Hoopai Relay
#[derive(Debug, Parser)]
#[command(name = "ops", version, after_help = EXIT_CODES)]
pub(crate) struct Arguments {
    /// Print JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Use the sandbox that runs on this machine; URL is the address of its platform
    #[arg(
        long,
        global = true,
        value_name = "URL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "http://127.0.0.1:8090"
    )]
    pub(crate) sandbox: Option<String>,
    /// Use the stack of this name: the AWS CLI reads its outputs
    #[arg(long, global = true, value_name = "NAME", conflicts_with = "sandbox")]
    pub(crate) stack: Option<String>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List installations; reads the whole table
    List(Which),
    /// Show one installation, without its tokens
    Show {
        /// location:ID or company:ID
        #[arg(value_parser = resource)]
        resource: Resource,
    },
    /// Show the limits of a location or company and their use; takes no permit
    Quota {
        /// location:ID or company:ID. Without it: all that have other limits than the default; reads the whole table
        #[arg(value_parser = resource)]
        resource: Option<Resource>,
    },
    /// Make the function `refresh` renew one token now, even one that was given up
    Refresh {
        /// location:ID or company:ID
        #[arg(value_parser = resource)]
        resource: Resource,
        /// Only if it is due
        #[arg(long)]
        if_due: bool,
    },
    /// Show what all functions have logged about one location or company
    Logs {
        /// location:ID or company:ID
        #[arg(value_parser = resource)]
        resource: Resource,
        /// The time span that ends now
        #[arg(long, value_name = "N", default_value_t = 24)]
        hours: u32,
    },
    /// Run the schedule once, now: renew what is due
    Tick,
    /// Move the messages of the dead-letter queues back to their queues, after the cause was repaired
    Redrive,
    /// Pause all refreshing, and wait until no renewal is under way. Calls go on with the access tokens that are valid
    Pause,
    /// End a pause or, without one, close the circuit breaker (after a mass refusal or a refusal of the app itself)
    Resume {
        /// Stop counting the refusals so far, because they were true. Otherwise the next refusal opens the breaker again,
        /// and marks nothing, as long as the answers since the last mark look like a fault of the platform
        #[arg(long)]
        forget: bool,
        /// Confirm the end of a pause: no other system renews the installations
        #[arg(long)]
        yes: bool,
    },
    /// Erase the tokens of a location or company, as an uninstall does. The platform gets no notice
    Revoke {
        /// location:ID or company:ID
        #[arg(value_parser = resource)]
        resource: Resource,
        /// Confirm
        #[arg(long)]
        yes: bool,
    },
    /// Make the platform uninstall the app from a location, or from a company and all its locations, and then erase the
    /// tokens
    Uninstall {
        /// location:ID or company:ID
        #[arg(value_parser = resource)]
        resource: Resource,
        /// The reason, for the platform's records
        #[arg(long, value_name = "TEXT", default_value = "Uninstalled by the developer of the app")]
        reason: String,
        /// Uninstall although refreshing is paused: no other system has the installation
        #[arg(long)]
        while_paused: bool,
        /// Confirm
        #[arg(long)]
        yes: bool,
    },
    /// Store installations of another system, with their tokens. Checks all of them before it stores the first
    Import(Import),
    /// Write all installations with their tokens to standard output, encrypted
    Export(Export),
    /// Put the archived events of a time span on the bus again, for all rules or for some
    Replay(Replay),
    /// Manage the callers of the relay
    #[command(subcommand)]
    Callers(CallersCommand),
    /// Look at recorded calls: those with an idempotency key, and those of the queue
    #[command(subcommand)]
    Calls(Calls),
    /// Manage the keys that seal the tokens
    #[command(subcommand)]
    Sealing(Sealing),
    /// Check secrets, callers, table, queues and renewals, and report the faults; changes nothing
    Doctor {
        /// Leave out the checks that read the whole table
        #[arg(long)]
        quick: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Import {
    /// The file. Default: standard input
    #[arg(value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// The format of the file. Default: JSON lines or CSV, as the first character says
    #[arg(long, value_enum)]
    pub(crate) format: Option<Format>,
    /// Replace what is stored, even a newer pair or an uninstalled app. A pair that was granted to this system stays as a
    /// standby pair. Needs --yes
    #[arg(long)]
    pub(crate) replace: bool,
    /// Confirm --replace
    #[arg(long, requires = "replace")]
    pub(crate) yes: bool,
    /// Check the file, compare it with the table, and store nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Make the function `refresh` renew the imported tokens now, at most N a minute. Default: the schedule renews them
    /// when they are due
    #[arg(long, value_name = "N", conflicts_with = "dry_run", value_parser = clap::value_parser!(u32).range(1..=6_000))]
    pub(crate) renew: Option<u32>,
}

/// The format of installations of another system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// One JSON object a line
    Json,
    /// A table with a row of names
    Csv,
    /// The documents of the official SDK's collection of sessions, as mongoexport writes them
    Sdk,
}

#[derive(Debug, Args)]
pub(crate) struct Export {
    /// The age recipient (age1…) that can decrypt the output; may be repeated
    #[arg(long, value_name = "AGE1…", required = true)]
    pub(crate) recipient: Vec<String>,
    /// Export although some exported pairs may be useless, because an answer to a renewal is missing or a standby pair may
    /// be the valid one
    #[arg(long)]
    pub(crate) incomplete: bool,
    /// Confirm
    #[arg(long)]
    pub(crate) yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Replay {
    /// Begin of the time span, such as 2026-11-27T10:00:00Z
    #[arg(long, value_parser = instant, value_name = "TIME")]
    pub(crate) from: Millis,
    /// End of the time span
    #[arg(long, value_parser = instant, value_name = "TIME")]
    pub(crate) to: Millis,
    /// Only for this rule of the bus; may be repeated. Default: all rules
    #[arg(long, value_name = "NAME")]
    pub(crate) rule: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Which {
    /// Only those in this state; may be repeated
    #[arg(long, value_parser = status, value_name = "STATUS")]
    pub(crate) status: Vec<Status>,
    /// Only installations of this version of the app
    #[arg(long, value_name = "ID")]
    pub(crate) version: Option<String>,
    /// Only this company and its locations
    #[arg(long, value_name = "ID")]
    pub(crate) company: Option<String>,
    /// List at most N
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    pub(crate) limit: usize,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CallersCommand {
    /// List callers, with the beginnings of their keys' SHA-256
    List {
        /// Show the last call of each caller within the last N days, as the logs have it
        #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=3_653))]
        last_call: Option<u32>,
    },
    /// Add a caller with a new key, which is printed once
    Add(NewCaller),
    /// Change what a caller may do, or what identifies it. What is not named stays, as do the keys
    Set {
        #[command(flatten)]
        permissions: Permissions,
        /// Remove these values: a caller without resources, methods, paths or tools may use all of them; may be repeated
        #[arg(long, value_enum, value_name = "WHAT")]
        clear: Vec<Clear>,
    },
    /// Add a key to a caller and print it once; the other keys stay valid
    Rotate {
        /// The caller
        id: String,
        /// Revoke the other keys at once
        #[arg(long)]
        end_others: bool,
    },
    /// Revoke all keys of a caller but the newest: the second half of a rotation
    Retire {
        /// The caller
        id: String,
    },
    /// Remove a caller, or one of its keys
    Remove {
        /// The caller
        id: String,
        /// Remove only the key whose SHA-256 begins with this text, as `list` shows it
        #[arg(long, value_name = "SHA256")]
        key: Option<String>,
        /// Confirm
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct NewCaller {
    #[command(flatten)]
    pub(crate) permissions: Permissions,
    /// Make no key: an alias or a principal identifies the caller
    #[arg(long)]
    pub(crate) no_key: bool,
}

/// The values of a caller's entry that `set` removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Clear {
    /// Allow all resources
    Resources,
    /// Allow all methods
    Methods,
    /// Allow all paths
    Paths,
    /// Allow all tools
    Tools,
    /// No alias identifies the caller
    Aliases,
    /// No principal identifies the caller
    Principals,
    /// No share of the burst limit
    RequestsPer10s,
    /// Messages of the queue may not name the caller
    Queue,
}

/// The permissions of a caller, and what identifies it beside its keys.
#[derive(Debug, Args)]
pub(crate) struct Permissions {
    /// The caller's name
    pub(crate) id: String,
    /// Only for this resource: location:ID, company:ID, location:* or company:*; may be repeated
    #[arg(long = "resource", value_name = "RESOURCE")]
    pub(crate) resources: Vec<String>,
    /// Only with this method; may be repeated
    #[arg(long = "method", value_name = "METHOD")]
    pub(crate) methods: Vec<String>,
    /// Only on this path, such as '/contacts/**'; may be repeated
    #[arg(long = "path", value_name = "PATH")]
    pub(crate) paths: Vec<String>,
    /// Only this tool of the platform's MCP endpoint, such as '*_get-*'; may be repeated
    #[arg(long = "tool", value_name = "TOOL")]
    pub(crate) tools: Vec<String>,
    /// Alias of the relay function that identifies the caller; may be repeated
    #[arg(long = "alias", value_name = "ALIAS")]
    pub(crate) aliases: Vec<String>,
    /// ARN of an IAM principal that identifies the caller, such as `arn:aws:sts::123456789012:assumed-role/NAME/*`; may be repeated
    #[arg(long = "principal", value_name = "ARN")]
    pub(crate) principals: Vec<String>,
    /// The caller's share of each resource's burst limit
    #[arg(long, value_name = "N")]
    pub(crate) requests_per_10s: Option<u32>,
    /// Messages of the queue of calls may name the caller
    #[arg(long)]
    pub(crate) queue: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Calls {
    /// Show one call, without its headers and body
    Show(WhichCall),
    /// Record what you have found out about a call whose outcome is unknown
    Resolve {
        #[command(flatten)]
        which: WhichCall,
        /// The platform has executed it: repeats get --status and are not sent
        #[arg(long, required_unless_present = "not_executed", conflicts_with = "not_executed")]
        executed: bool,
        /// The platform has not executed it: the next repeat is sent
        #[arg(long)]
        not_executed: bool,
        /// The status that repeats get
        #[arg(long, value_name = "STATUS", default_value_t = 200, value_parser = clap::value_parser!(u16).range(200..500))]
        status: u16,
        /// Confirm
        #[arg(long)]
        yes: bool,
    },
}

/// Names one recorded call.
#[derive(Debug, Args)]
pub(crate) struct WhichCall {
    /// The idempotency key, or the record's name as the logs have it (call#…)
    #[arg(required_unless_present = "message", conflicts_with = "message")]
    pub(crate) key: Option<String>,
    /// The caller that sent the key
    #[arg(long, value_name = "ID")]
    pub(crate) caller: Option<String>,
    /// location:ID or company:ID
    #[arg(long, value_parser = resource)]
    pub(crate) resource: Option<Resource>,
    /// The id of a message of the queue, without an idempotency key
    #[arg(long, value_name = "MESSAGE_ID")]
    pub(crate) message: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Sealing {
    /// List the keys, with the number of values sealed under each; reads the whole table
    List,
    /// Add a key, make it the current one, and seal all tokens again under it
    Rotate,
    /// Seal all tokens again under the current key: continues an interrupted `rotate`
    Reseal,
    /// Remove an old key, if nothing is sealed under it
    Retire {
        /// The key's id
        id: String,
        /// Wait until the removal is safe, instead of refusing
        #[arg(long)]
        wait: bool,
    },
}

fn resource(text: &str) -> Result<Resource, String> {
    let form = || "expected location:ID or company:ID".to_owned();
    let (kind, id) = text.split_once(':').ok_or_else(form)?;
    let kind = [Kind::Location, Kind::Company].into_iter().find(|known| known.as_str() == kind).ok_or_else(form)?;
    Resource::new(kind, id).map_err(|error| error.to_string())
}

fn status(text: &str) -> Result<Status, String> {
    let known = Status::ALL.iter().copied().find(|status| status.as_str().eq_ignore_ascii_case(text));
    known.ok_or_else(|| {
        let names: Vec<_> = Status::ALL.iter().map(|status| status.as_str()).collect();
        format!("expected one of {}", names.join(", "))
    })
}

/// Reads a time (RFC 3339).
pub(crate) fn instant(text: &str) -> Result<Millis, String> {
    let read = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| "expected a time such as 2026-11-27T10:00:00Z")?;
    i64::try_from(read.unix_timestamp_nanos() / 1_000_000).map(Millis).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
        assert!(resource("location:L1").is_ok() && resource("company:C1").is_ok());
        assert!(["L1", "team:L1", "location:", "location:a/b"].iter().all(|bad| resource(bad).is_err()));
        assert_eq!(status("needsreauthorization"), Ok(Status::NeedsReauthorization));
    }
}
