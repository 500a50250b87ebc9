//! How commands end: what a shell or a service manager can tell apart.

use std::{fmt, process::ExitCode};

use crate::admin::ClientError;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It did what it was asked to.
    Ok,
    /// It failed.
    Failure,
    /// The command line or the configuration is wrong.
    Usage,
    /// The node cannot run the agent.
    Node,
    /// The agent is not running, or does not answer.
    Unreachable,
    /// A privilege is missing. The number is `EX_NOPERM` of sysexits.h.
    Privilege,
}

/// What the help says about exit codes.
pub(super) const EXIT_CODES: &str = "\
Exit codes:
  0   it did what it was asked to; for `check`: this node can run the agent
  1   it failed
  2   the command line or the configuration is wrong
  3   this node cannot run the agent
  4   the agent is not running, or does not answer
  77  a capability or permission is missing";

impl Exit {
    /// The number.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Failure => 1,
            Self::Usage => 2,
            Self::Node => 3,
            Self::Unreachable => 4,
            Self::Privilege => 77,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// An error that knows how the command ends because of it.
///
/// [`dispatch`](super::dispatch) finds it inside the error that running the agent ends with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// How the command ends.
    pub exit: Exit,
    /// What failed, on what, why, what to do.
    pub message: String,
}

impl Failure {
    /// A failure that ends the command like this.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let exit = match &error {
            ClientError::NotRunning { .. }
            | ClientError::TimedOut { .. }
            | ClientError::Garbled { .. } => Exit::Unreachable,
            ClientError::Denied { .. } => Exit::Privilege,
            ClientError::Refused { .. } => Exit::Failure,
        };
        Self::new(exit, error.to_string())
    }
}

impl From<crate::config::ConfigErrors> for Failure {
    fn from(errors: crate::config::ConfigErrors) -> Self {
        Self::new(
            Exit::Usage,
            format!("the configuration is not valid:\n{errors}"),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_tells_every_code() {
        for exit in [
            Exit::Ok,
            Exit::Failure,
            Exit::Usage,
            Exit::Node,
            Exit::Unreachable,
            Exit::Privilege,
        ] {
            let start = format!("\n  {:<4}", exit.code());
            assert!(EXIT_CODES.contains(&start), "{exit:?}");
        }
    }
}
