//! An invocation, and the errors that it can end with.

use std::{fmt, time::Duration};

use serde_json::{Value, json};

use super::LARGEST_PAYLOAD;

/// The parameters of an invocation.
#[derive(Debug, Clone)]
pub struct Invocation {
    /// Alias or version, which becomes the end of the invoked ARN.
    pub qualifier: Option<String>,
    /// The function's time-out. The time-out sets the worker's deadline, at which the caller gets an error.
    pub timeout: Duration,
    /// `X-Amzn-Trace-Id`.
    pub trace_id: Option<String>,
}

impl Default for Invocation {
    fn default() -> Self {
        Self { qualifier: None, timeout: Duration::from_secs(30), trace_id: None }
    }
}

/// The error of an invocation without an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FunctionError {
    /// No worker of a function of this name has ever asked for work.
    NoSuchFunction,
    /// The payload is larger than [`LARGEST_PAYLOAD`].
    PayloadTooLarge,
    /// The function answered with an error.
    Reported(Value),
    /// The function did not answer in time.
    TimedOut(Duration),
    /// The worker's process ended before the worker answered.
    Exited(String),
}

impl FunctionError {
    /// Returns the error document with which `Invoke` answers.
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
