//! How a command fails: exit code, stable word, message, and what to try next.

use std::process::ExitCode;

use super::output::{cell, tell};
use client::{ClientError, ReadError};
use serde_json::json;
use wire::ErrorCode;

/// The exit code of a wait that has reached its limit.
pub const TIMED_OUT: u8 = 124;
/// The exit code of what Ctrl-C has ended, as a shell would tell it.
pub const INTERRUPTED: u8 = 128 + libc::SIGINT as u8;

/// Why a command failed.
#[derive(Debug)]
pub struct Failure {
    exit: u8,
    code: &'static str,
    message: String,
    /// The next command to try; empty = none.
    hint: String,
}

impl Failure {
    /// The cluster or the command failed: exit 1.
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { exit: 1, code, message: message.into(), hint: String::new() }
    }

    /// The command line is wrong: exit 2.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { exit: 2, ..Self::new("usage", message) }
    }

    /// What was named is not there: exit 3.
    pub fn not_found(code: &'static str, message: impl Into<String>) -> Self {
        Self { exit: 3, ..Self::new(code, message) }
    }

    /// A command that passes an exit code on.
    pub fn exit(self, exit: u8) -> Self {
        Self { exit, ..self }
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// Tells it on standard error and gives the exit code.
    pub fn print(&self, json: bool) -> ExitCode {
        if json {
            let mut error = json!({ "code": self.code, "message": self.message });
            if !self.hint.is_empty() {
                error["hint"] = self.hint.clone().into();
            }
            tell(&format!("{}\n", json!({ "error": error })));
        } else {
            let next = if self.hint.is_empty() { String::new() } else { format!(". {}", self.hint) };
            let text = format!("error: {}{next}", self.message.trim_end_matches('.'));
            // Names of files may have line ends; those of our own stand before two spaces.
            let lines: Vec<String> = text.split("\n  ").map(|line| cell(line.as_bytes())).collect();
            tell(&format!("{}\n", lines.join("\n  ")));
        }
        ExitCode::from(self.exit)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let (exit, hint) = match &error {
            ClientError::NoCluster => (1, "Start one: zg dev --phase 1 --workers 2; or set ZG_CLUSTER"),
            ClientError::Cluster { path, .. } if path.exists() => {
                (1, &*format!("See: ls -la {}; or name another with --cluster or ZG_CLUSTER", path.display()))
            }
            ClientError::Cluster { .. } => (1, "Start one: zg dev --phase 1 --workers 2; or set ZG_CLUSTER to another"),
            ClientError::NoMaster { dir, .. } => {
                let dir = dir.display();
                (1, &*format!("Is the cluster running? Its logs may be in {dir}; start it with zg dev --dir {dir}"))
            }
            ClientError::NoStorage { .. } => (1, "See: zg node list"),
            ClientError::Request(_) => (2, "See: zg submit --help"),
            ClientError::OutOfRange { address, .. } => (2, &*format!("See: zg file stat {}", address.file)),
            ClientError::NotFound(_) => (3, "See: zg job list --all"),
            ClientError::Refused { code, .. } => of_refusal(*code),
            ClientError::NotStorable { path, .. } => (1, &*format!("See: ls -la {}", path.display())),
            ClientError::TimedOut { .. } => (TIMED_OUT, ""),
            ClientError::Interrupted => (INTERRUPTED, ""),
            ClientError::Local { .. } | ClientError::Protocol(_) => (1, ""),
        };
        Self { exit, code: error.code(), message: error.to_string(), hint: hint.to_owned() }
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Client(error) => error.into(),
            ReadError::Output(_) => Self::new("local_file", error.to_string()),
        }
    }
}

fn of_refusal(code: ErrorCode) -> (u8, &'static str) {
    match code {
        ErrorCode::UnknownJob => (3, "See: zg job list --all"),
        ErrorCode::FileUnknown => (3, "See: zg file ls"),
        ErrorCode::UnknownNode => (3, "See: zg node list"),
        ErrorCode::Impossible => (2, "See: zg node list"),
        ErrorCode::InvalidRequest | ErrorCode::TooLarge => (2, "See: zg submit --help"),
        ErrorCode::Busy | ErrorCode::NotReady | ErrorCode::NotLeader => (1, "Try again later; see: zg status"),
        ErrorCode::DiskFull => (1, "Make room on it and try again; zg node list tells where it runs"),
        ErrorCode::Malformed
        | ErrorCode::UnknownType
        | ErrorCode::NotAllowed
        | ErrorCode::ExistsDifferent
        | ErrorCode::HashMismatch
        | ErrorCode::UploadUnknown
        | ErrorCode::StaleEpoch
        | ErrorCode::ReceiptInvalid => (1, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_done_next_is_told() {
        let hint_of = |error: ClientError| Failure::from(error).hint;
        let full = ClientError::Refused { code: ErrorCode::DiskFull, detail: "full".into() };
        assert!(hint_of(full).contains("zg node list"));
        let here = tempfile::tempdir().unwrap();
        let broken = |path: std::path::PathBuf| hint_of(ClientError::Cluster { path, why: "why".into() });
        assert!(broken(here.path().to_owned()).contains("ls -la"));
        assert!(broken(here.path().join("none")).contains("zg dev"));
    }

    #[test]
    fn exit_codes_are_those_of_the_specification() {
        let exit_of = |error: ClientError| Failure::from(error).exit;
        let refused = |code| ClientError::Refused { code, detail: "why".into() };
        assert_eq!(exit_of(ClientError::NoCluster), 1);
        assert_eq!(exit_of(ClientError::Request("x".into())), 2);
        assert_eq!(exit_of(refused(ErrorCode::Impossible)), 2);
        assert_eq!(exit_of(refused(ErrorCode::UnknownJob)), 3);
        assert_eq!(exit_of(ClientError::TimedOut { what: "x".into(), waited: wire::Duration::ZERO }), 124);
    }
}
