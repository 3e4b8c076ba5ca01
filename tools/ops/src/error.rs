//! The error of a command, and its exit code. `--help` and docs/operations.md list the exit codes.

use std::process::ExitCode;

use shared::caller::edit::EditError;
use shared::config::ConfigError;
use shared::secrets::SecretError;
use shared::table::StoreError;

/// The reason for which a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    /// AWS or the platform failed.
    #[error("{0}")]
    NotDone(String),
    /// The command line, the environment or the imported file is wrong.
    #[error("{0}")]
    Environment(String),
    /// There is no such installation, caller, key or rule.
    #[error("{0}")]
    NotFound(String),
    /// The command would not be safe now.
    #[error("{0}")]
    Refused(String),
    /// The doctor found faults.
    #[error("{0}")]
    Faults(String),
}

impl CommandError {
    /// The exit code as a number, for JSON.
    pub(crate) fn exit_number(&self) -> u8 {
        match self {
            Self::NotDone(_) => 1,
            Self::Environment(_) => 2,
            Self::NotFound(_) => 3,
            Self::Refused(_) => 4,
            Self::Faults(_) => 5,
        }
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.exit_number())
    }

    /// The error of a command without `--yes`. `effect` says what the command would do.
    pub(crate) fn without_yes(effect: &str) -> Self {
        Self::Refused(format!("{effect}. Nothing was done; add --yes to confirm"))
    }

    /// The error of an edit of a secret that lost against a concurrent edit (optimistic concurrency).
    pub(crate) fn overtaken() -> Self {
        Self::Refused("another person changed the secret at the same moment: nothing was done, try again".into())
    }
}

impl From<StoreError> for CommandError {
    fn from(error: StoreError) -> Self {
        Self::NotDone(error.to_string())
    }
}

impl From<SecretError> for CommandError {
    fn from(error: SecretError) -> Self {
        Self::NotDone(error.to_string())
    }
}

impl From<ConfigError> for CommandError {
    fn from(error: ConfigError) -> Self {
        Self::Environment(format!("{error}. Use --stack NAME or --sandbox (docs/operations.md, \"Commands\")"))
    }
}

impl From<EditError> for CommandError {
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
