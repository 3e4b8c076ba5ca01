//! The command `doctor`: checks everything that the renewal of tokens and the relaying of calls need. It reports each
//! fault with advice for the operator. It changes nothing and takes no permit.

mod agencies;
mod aliases;
mod renewals;
mod secrets;
mod services;
mod table;

use serde_json::{Value, json};

use crate::error::CommandError;
use crate::print::Out;
use crate::stack::{OperatorConfig, Stack};

/// The state of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ok,
    /// There is a defect, but nothing fails now.
    Warn,
    Fail,
    /// The check could not be made.
    Skipped,
}

impl State {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
            Self::Skipped => "skip",
        }
    }
}

/// The result of one check.
#[derive(Clone, Debug)]
struct Finding {
    what: &'static str,
    state: State,
    said: String,
    /// Advice for the operator. Empty if nothing has to be done, or if `said` says it.
    advice: &'static str,
}

impl Finding {
    fn ok(what: &'static str, said: impl Into<String>) -> Self {
        Self { what, state: State::Ok, said: said.into(), advice: "" }
    }

    fn warn(what: &'static str, said: impl Into<String>, advice: &'static str) -> Self {
        Self { what, state: State::Warn, said: said.into(), advice }
    }

    fn fail(what: &'static str, said: impl Into<String>, advice: &'static str) -> Self {
        Self { what, state: State::Fail, said: said.into(), advice }
    }

    fn skipped(what: &'static str, said: impl Into<String>) -> Self {
        Self { what, state: State::Skipped, said: said.into(), advice: "" }
    }

    fn value(&self) -> Value {
        let state = self.state.as_str().to_lowercase();
        json!({ "what": self.what, "state": state, "said": self.said, "advice": self.advice })
    }

    fn text(&self) -> String {
        let advice = if self.advice.is_empty() { String::new() } else { format!("\n      → {}", self.advice) };
        format!("{:<4}  {}: {}{advice}", self.state.as_str(), self.what, self.said)
    }
}

/// Runs all checks, or with `quick` those that do not read the whole table, and prints the findings.
pub(crate) async fn run(out: Out, quick: bool) -> Result<(), CommandError> {
    let findings = match stack().await {
        Ok(stack) => check(&stack, quick).await,
        Err(findings) => findings,
    };
    let faults = findings.iter().filter(|finding| finding.state == State::Fail).count();
    let values: Vec<_> = findings.iter().map(Finding::value).collect();
    let text: Vec<_> = findings.iter().map(Finding::text).collect();
    out.value(&json!({ "faults": faults, "findings": values }), &text.join("\n"));
    match faults {
        0 => Ok(()),
        1 => Err(CommandError::Faults("1 fault".into())),
        more => Err(CommandError::Faults(format!("{more} faults"))),
    }
}

async fn stack() -> Result<Stack, Vec<Finding>> {
    const ADVICE: &str = "use --stack NAME or --sandbox (docs/operations.md, \"Commands\")";
    let config = OperatorConfig::from_env().map_err(|error| {
        let finding = |problem: &String| Finding::fail("environment", problem.clone(), ADVICE);
        error.problems().iter().map(finding).collect::<Vec<_>>()
    })?;
    Stack::of(config).await.map_err(|failure| vec![Finding::fail("environment", failure.to_string(), "")])
}

async fn check(stack: &Stack, quick: bool) -> Vec<Finding> {
    let mut findings = vec![Finding::ok("environment", format!("table {}", stack.app.config.table))];
    findings.extend(secrets::check(stack).await);
    findings.extend(table::check(stack).await);
    findings.extend(services::check(stack).await);
    findings.extend(renewals::check(stack).await);
    if !quick {
        findings.extend(renewals::check_installations(stack).await);
        findings.push(agencies::check(stack).await);
    }
    findings
}
