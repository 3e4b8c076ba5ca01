//! How a command ends when it does not end well. The exit codes are told by `--help` and docs/operations.md.

use std::process::ExitCode;

use shared::caller::edit::EditError;
use shared::config::ConfigError;
use shared::secrets::SecretError;
use shared::table::StoreError;

/// Why a command did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// AWS or the platform.
    #[error("{0}")]
    NotDone(String),
    /// The command line or the environment.
    #[error("{0}")]
    Environment(String),
    /// No such installation, caller or key.
    #[error("{0}")]
    NotFound(String),
    /// It would not be safe.
    #[error("{0}")]
    Refused(String),
    /// The doctor found something.
    #[error("{0}")]
    Faults(String),
}

impl Failure {
    /// The number of the exit code, for JSON.
    pub(crate) fn number(&self) -> u8 {
        match self {
            Self::NotDone(_) => 1,
            Self::Environment(_) => 2,
            Self::NotFound(_) => 3,
            Self::Refused(_) => 4,
            Self::Faults(_) => 5,
        }
    }

    pub(crate) fn code(&self) -> ExitCode {
        ExitCode::from(self.number())
    }

    /// Refused because `--yes` is missing.
    pub(crate) fn without_yes(what: &str) -> Self {
        Self::Refused(format!("{what}. Add --yes if that is what you want; nothing was done"))
    }

    /// Somebody else has changed a secret meanwhile.
    pub(crate) fn overtaken() -> Self {
        Self::Refused("somebody else has changed the secret at the same moment: nothing was done, try again".into())
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::NotDone(error.to_string())
    }
}

impl From<SecretError> for Failure {
    fn from(error: SecretError) -> Self {
        Self::NotDone(error.to_string())
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Environment(format!(
            "{error}. Take the stack's output OperatorEnvironment (docs/operations.md, \"Commands\"), or --sandbox"
        ))
    }
}

impl From<EditError> for Failure {
    fn from(error: EditError) -> Self {
        let text = error.to_string();
        match error {
            EditError::Malformed(_) => Self::NotDone(text),
            EditError::NoSuchCaller(_) | EditError::NotOneKey { .. } => Self::NotFound(text),
            EditError::Exists(_) | EditError::Taken { .. } | EditError::WouldWiden(_) => Self::Refused(text),
            EditError::Invalid(_) => Self::Environment(text),
        }
    }
}
