//! The settings of the `relay` function.

use super::{AppConfig, Reader, ReportedProblem};

/// The configuration of the `relay` function.
#[derive(Clone, Debug)]
pub struct RelayConfig {
    /// The part that all functions have.
    pub app: AppConfig,
    /// Id of the callers' secret.
    pub callers_secret_id: String,
}

impl RelayConfig {
    /// Reads the variables of the `relay` function.
    ///
    /// # Errors
    /// A variable is missing or malformed.
    pub fn read(env: &mut Reader<'_>) -> Result<Self, ReportedProblem> {
        let (app, callers_secret_id) = (AppConfig::read(env), env.required("CALLERS_SECRET_ID"));
        Ok(Self { app: app?, callers_secret_id: callers_secret_id? })
    }
}
