//! `ops doctor`: looks at everything that must be right for a token to be renewed and a call to be relayed, and says of
//! each fault what it is and what to do, in a sentence. It changes nothing and spends nothing.

mod aliases;
mod secrets;
mod surroundings;
mod table;
mod work;

use serde_json::{Value, json};
use shared::app::aws_defaults;

use crate::ending::Failure;
use crate::print::Out;
use crate::stack::{OperatorConfig, Stack};

/// How something stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ok,
    /// Not as it should be, but nothing fails.
    Warn,
    Fail,
    /// Could not be looked at.
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

/// One thing that was looked at.
#[derive(Debug)]
struct Finding {
    what: &'static str,
    state: State,
    said: String,
    /// What to do, where there is something to do.
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

/// Looks at everything.
pub(crate) async fn run(out: Out) -> Result<(), Failure> {
    let findings = match stack().await {
        Ok(stack) => look(&stack).await,
        Err(findings) => findings,
    };
    let faults = findings.iter().filter(|finding| finding.state == State::Fail).count();
    let values: Vec<_> = findings.iter().map(Finding::value).collect();
    let text: Vec<_> = findings.iter().map(Finding::text).collect();
    out.value(&json!({ "faults": faults, "findings": values }), &text.join("\n"));
    match faults {
        0 => Ok(()),
        1 => Err(Failure::Faults("1 fault".into())),
        more => Err(Failure::Faults(format!("{more} faults"))),
    }
}

async fn stack() -> Result<Stack, Vec<Finding>> {
    const ADVICE: &str = "take the stack's output OperatorEnvironment (docs/operations.md, \"Commands\"), or --sandbox";
    let config = OperatorConfig::from_env().map_err(|error| {
        let finding = |problem: &String| Finding::fail("environment", problem.clone(), ADVICE);
        error.problems().iter().map(finding).collect::<Vec<_>>()
    })?;
    Stack::of(config, &aws_defaults().load().await)
        .map_err(|failure| vec![Finding::fail("environment", failure.to_string(), "name the stack's region")])
}

async fn look(stack: &Stack) -> Vec<Finding> {
    let mut findings = vec![Finding::ok("environment", format!("table {}", stack.app.config.table))];
    findings.extend(secrets::look(stack).await);
    findings.extend(table::look(stack).await);
    findings.extend(surroundings::look(stack).await);
    findings.extend(work::look(stack).await);
    findings
}
