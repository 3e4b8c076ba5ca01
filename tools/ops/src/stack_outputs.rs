//! The option `--stack`: reads the stack's outputs and starts this program again with the environment that they hold.
//!
//! The AWS CLI reads the outputs. It is there, because a deployment needs it, and it finds credentials in every way that
//! AWS has, such as IAM Identity Center. The SDK in this program does not.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::error::CommandError;

/// Starts the program again without `--stack`, with the environment of this stack. Returns only if that fails.
pub(crate) fn start_again_with(stack: &str) -> CommandError {
    let environment = match environment(stack) {
        Ok(environment) => environment,
        Err(why) => return CommandError::Environment(format!("the stack {stack} cannot be read: {why}")),
    };
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return CommandError::NotDone(error.to_string()),
    };
    CommandError::NotDone(Command::new(program).args(without_stack()).envs(environment).exec().to_string())
}

/// The arguments of this program without `--stack NAME` and `--stack=NAME`.
fn without_stack() -> Vec<std::ffi::OsString> {
    let mut arguments = Vec::new();
    let mut all = std::env::args_os().skip(1);
    while let Some(argument) = all.next() {
        match argument.to_str() {
            Some("--stack") => drop(all.next()),
            Some(text) if text.starts_with("--stack=") => {}
            _ => arguments.push(argument),
        }
    }
    arguments
}

fn environment(stack: &str) -> Result<BTreeMap<String, String>, String> {
    let described = aws(&["cloudformation", "describe-stacks", "--stack-name", stack, "--output", "json"])?;
    let described: Value = serde_json::from_str(&described).map_err(|_| "the AWS CLI printed no JSON")?;
    let outputs = described["Stacks"][0]["Outputs"].as_array().map(Vec::as_slice).unwrap_or_default();
    let text = outputs.iter().find(|output| output["OutputKey"] == "OperatorEnvironment");
    let text = text.and_then(|output| output["OutputValue"].as_str()).ok_or("it has no output OperatorEnvironment")?;
    let mut environment = pairs(text.split_whitespace());
    // Credentials that only the CLI can find. Without them the SDK looks for its own.
    if let Ok(credentials) = aws(&["configure", "export-credentials", "--format", "env-no-export"]) {
        environment.extend(pairs(credentials.lines()));
    }
    Ok(environment)
}

fn pairs<'a>(texts: impl Iterator<Item = &'a str>) -> BTreeMap<String, String> {
    texts.filter_map(|text| text.split_once('=')).map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Runs the AWS CLI and returns its output.
pub(crate) fn aws(arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new("aws");
    let done = command.args(arguments).stdin(Stdio::null()).output();
    let done = done.map_err(|error| format!("the AWS CLI (aws) does not run: {error}"))?;
    if !done.status.success() {
        return Err(String::from_utf8_lossy(&done.stderr).trim().to_owned());
    }
    String::from_utf8(done.stdout).map_err(|_| "the AWS CLI printed no text".to_owned())
}
