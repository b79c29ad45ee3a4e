//! How the program ends: exit codes, and errors that say what to do.

use std::fmt;
use std::path::Path;
use std::process::ExitCode;

/// Exit codes, as `--help` documents them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// What was asked for is not there, or the answer is no.
    No = 1,
    /// The command cannot be understood.
    Usage = 2,
    /// No node answers.
    Unreachable = 3,
    /// The node refused; nothing was written.
    Refused = 4,
    /// The time is over. A write that was waited for stands.
    TimedOut = 5,
    /// Something on this side failed: a file, a port, a command.
    Failed = 6,
}

/// What the end of `--help` says about exit codes.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  not found, or the answer is no (nothing under a key, not in the set, no leader, digests or documents differ,
     values that do not satisfy their schemas)
  2  the command is not understood
  3  no node answers at the address
  4  the node refused, and nothing was written (condition, schema, token, too large, busy)
  5  the time is over; a write that was waited for stands all the same
  6  something on this side failed (a file, a port, the command that was run)
  watch, elect, lock and render --once end with the exit code of the command that they run";

/// Why the program ends without having done what it should.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    message: String,
    hint: Option<String>,
    /// The node's code for why it refused.
    refusal: Option<String>,
}

impl Failure {
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { code: exit as u8, message: message.into(), hint: None, refusal: None }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    pub(crate) fn file(path: &Path, error: &std::io::Error) -> Self {
        Self::new(Exit::Failed, format!("{}: {error}", path.display()))
    }

    /// Ends as a command ended that was run.
    pub(crate) fn status(status: std::process::ExitStatus) -> Self {
        let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(Exit::Failed as u8);
        Self { code, message: String::new(), hint: None, refusal: None }
    }

    pub(crate) fn is(&self, exit: Exit) -> bool {
        self.code == exit as u8
    }

    /// A node refused, with this code.
    pub(crate) fn refusal(mut self, code: &str) -> Self {
        self.refusal = Some(code.to_owned());
        self
    }

    pub(crate) fn is_refusal(&self, code: &str) -> bool {
        self.refusal.as_deref() == Some(code)
    }

    /// Where it happened.
    pub(crate) fn at(mut self, place: &str) -> Self {
        self.message = format!("{place}: {}", self.message);
        self
    }

    /// What to do about it.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Says it, and how the process ends.
    pub(crate) fn report(&self) -> ExitCode {
        if !self.message.is_empty() {
            eprintln!("tidings: {self}");
        }
        ExitCode::from(self.code)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\n  {hint}"),
            None => Ok(()),
        }
    }
}

impl From<std::io::Error> for Failure {
    /// Of the standard streams; files are named by [`Failure::file`]. A reader that closes the pipe has read enough.
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Self::new(Exit::Failed, ""),
            _ => Self::new(Exit::Failed, error.to_string()),
        }
    }
}

impl From<tidings::StartError> for Failure {
    fn from(error: tidings::StartError) -> Self {
        match error {
            // The library names its own setting.
            tidings::StartError::Damaged { path, reason } => {
                let message =
                    format!("the node does not start: {path} is damaged: {reason}; it was left as it is");
                let hint = "with --rejoin-on-corruption the node moves it aside and fetches everything from the others";
                Self::new(Exit::Failed, message).hint(hint)
            }
            error => Self::new(Exit::Failed, format!("the node does not start: {error}")),
        }
    }
}

impl From<tidings::SecurityError> for Failure {
    fn from(error: tidings::SecurityError) -> Self {
        let failure = Self::usage(error.to_string());
        match error {
            tidings::SecurityError::Weak { .. } => {
                failure.hint("`tidings secret --out secret.txt` makes one; copy it to every node")
            }
            _ => failure,
        }
    }
}
