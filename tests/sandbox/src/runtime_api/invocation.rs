//! An invocation, and the errors that it can end with.

use std::{fmt, time::Duration};

use serde_json::{Value, json};

use super::LARGEST_PAYLOAD;

/// How a function is invoked.
#[derive(Debug, Clone)]
pub struct Invocation {
    /// Alias or version; it ends the invoked ARN.
    pub qualifier: Option<String>,
    /// The function's time-out: the deadline it is told, and when the caller is answered without it.
    pub timeout: Duration,
    /// `X-Amzn-Trace-Id`.
    pub trace_id: Option<String>,
}

impl Default for Invocation {
    fn default() -> Self {
        Self { qualifier: None, timeout: Duration::from_secs(30), trace_id: None }
    }
}

/// An invocation that has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FunctionError {
    /// Nobody ever asked for work for a function of this name.
    NoSuchFunction,
    /// The payload is above [`LARGEST_PAYLOAD`].
    PayloadTooLarge,
    /// The function answered with an error.
    Reported(Value),
    /// The function did not answer in time.
    TimedOut(Duration),
    /// Its process ended in the midst.
    Exited(String),
}

impl FunctionError {
    /// The error document that `Invoke` answers.
    #[must_use]
    pub fn document(&self) -> Value {
        match self {
            Self::Reported(document) => document.clone(),
            other => json!({ "errorType": other.kind(), "errorMessage": other.to_string() }),
        }
    }

    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::NoSuchFunction => "ResourceNotFoundException",
            Self::PayloadTooLarge => "RequestTooLargeException",
            Self::Reported(_) => "Function.Error",
            Self::TimedOut(_) => "Sandbox.Timedout",
            Self::Exited(_) => "Runtime.ExitError",
        }
    }
}

impl fmt::Display for FunctionError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchFunction => out.write_str("Function not found"),
            Self::PayloadTooLarge => write!(out, "Request must be smaller than {LARGEST_PAYLOAD} bytes"),
            Self::Reported(document) => write!(out, "{document}"),
            Self::TimedOut(after) => write!(out, "Task timed out after {:.2} seconds", after.as_secs_f64()),
            Self::Exited(how) => write!(out, "Runtime exited with error: {how}"),
        }
    }
}

impl std::error::Error for FunctionError {}
