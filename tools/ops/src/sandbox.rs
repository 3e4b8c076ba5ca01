//! The option `--sandbox`: reads the sandbox's environment variables and starts this program again with them.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Duration;

use shared::domain::clock::Clock;
use shared::http_client::{self, ResponseLimits};

use crate::error::CommandError;

/// Starts the program again without `--sandbox`, with the environment of the sandbox at `address`. The AWS SDK reads its
/// endpoints from the environment. Returns only if that fails.
pub(crate) async fn start_again_in(address: &str) -> CommandError {
    let environment = match environment(address).await {
        Ok(environment) => environment,
        Err(why) => {
            let hint = "is `cargo run -p sandbox` running? If it uses another --platform-port, give its URL";
            return CommandError::Environment(format!("no sandbox at {address}: {why}; {hint}"));
        }
    };
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return CommandError::NotDone(error.to_string()),
    };
    let arguments = std::env::args_os().skip(1);
    let arguments = arguments.filter(|argument| !argument.to_string_lossy().starts_with("--sandbox"));
    CommandError::NotDone(Command::new(program).args(arguments).envs(environment).exec().to_string())
}

async fn environment(address: &str) -> Result<BTreeMap<String, String>, String> {
    let mut url = shared::config::parse_url(address)?;
    if !shared::config::is_loopback(&url) {
        return Err("a sandbox must be on this machine".to_owned());
    }
    url.set_path(&format!("{}/_sandbox/environment", url.path().trim_end_matches('/')));
    let connections = http_client::platform(Clock::system()).map_err(|error| error.to_string())?;
    let limits = ResponseLimits { time: Duration::from_secs(5), body: 1024 * 1024 };
    let answer = connections.get(&url, limits).await.map_err(|failure| failure.to_string())?;
    if !answer.status.is_success() {
        return Err(format!("it answers {}", answer.status));
    }
    serde_json::from_slice(&answer.body).map_err(|error| error.to_string())
}
