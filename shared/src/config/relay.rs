//! The settings of the `relay` function.

use std::time::Duration;

use super::{AppConfig, Reader, ReportedProblem};

/// The configuration of the queue door.
#[derive(Clone, Debug)]
pub struct QueueConfig {
    /// The URL of the queue of calls.
    pub calls_url: String,
    /// The URL of the queue of results. Without one, results are events.
    pub results_url: Option<String>,
    /// The part of a limit that is reserved for waiting callers at most, in thousandths.
    pub reserve: u32,
}

/// The part of a limit that is reserved for waiting callers at most, unless the environment says otherwise.
const RESERVE: u32 = 500;

/// The configuration of the `relay` function.
#[derive(Clone, Debug)]
pub struct RelayConfig {
    /// The part that all functions have.
    pub app: AppConfig,
    /// Id of the callers' secret.
    pub callers_secret_id: String,
    /// The queue of calls, if there is one.
    pub queue: Option<QueueConfig>,
}

impl RelayConfig {
    /// Reads the variables of the `relay` function.
    ///
    /// # Errors
    /// A variable is missing or malformed.
    pub fn read(env: &mut Reader<'_>) -> Result<Self, ReportedProblem> {
        let (app, callers_secret_id) = (AppConfig::read(env), env.required("CALLERS_SECRET_ID"));
        let (calls, results) = (env.optional_url("CALLS_QUEUE_URL"), env.optional_url("RESULTS_QUEUE_URL"));
        let part = |text: &str| {
            let part = text.parse::<f64>().ok().filter(|part| (0.0..=1.0).contains(part))?;
            u32::try_from(Duration::from_secs_f64(part).as_millis()).ok()
        };
        let reserve = env.parsed("QUEUE_RESERVE", "must be a number from 0 to 1", part)?.unwrap_or(RESERVE);
        let results_url = results?.map(String::from);
        let queue = calls?.map(|calls| QueueConfig { calls_url: calls.into(), results_url, reserve });
        Ok(Self { app: app?, callers_secret_id: callers_secret_id?, queue })
    }
}
