//! What can stop a replay. Every message names the file and line, or the setting, its value and what is
//! allowed.

use std::{fmt, io};

/// Why a replay could not be done.
#[derive(Debug)]
pub(crate) enum ReplayError {
    /// A setting can't be used, alone or with this trace.
    Setting { setting: &'static str, value: String, allowed: String },
    /// The trace can't be opened.
    Open { trace: String, source: io::Error },
    /// Reading or decompressing failed at or after this line.
    Read { trace: String, line: u64, source: io::Error },
    /// A malformed line under `--strict`.
    Malformed { trace: String, line: u64, problem: String },
    /// Nothing to replay.
    NoAccesses { trace: String, lines: u64, malformed: u64, first: Option<String> },
    /// The bytes are text in an encoding whose lines can't be told apart.
    Encoding { trace: String },
    /// A tier of the stack could not be opened or failed.
    Tier { tier: &'static str, problem: String },
    /// Ctrl-C asked for the end.
    Interrupted,
    /// No async runtime could be started.
    Runtime(io::Error),
    /// The table could not be written.
    Output(io::Error),
}

impl fmt::Display for ReplayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use ReplayError::*;
        match self {
            Setting { setting, value, allowed } => write!(f, "{setting} is `{value}`, allowed is {allowed}"),
            Open { trace, source } => write!(f, "{trace}: cannot be opened: {source}"),
            Read { trace, line, source } => write!(f, "{trace}:{line}: cannot be read further: {source}"),
            Malformed { trace, line, problem } => {
                write!(f, "{trace}:{line}: {problem} (--strict stops here)")
            }
            NoAccesses { trace, lines: 0, .. } => write!(f, "{trace}: holds no accesses: it is empty"),
            NoAccesses { trace, first: Some(first), malformed, .. } => {
                write!(f, "{trace}: holds no accesses; {malformed} malformed lines, the first is {first}")
            }
            NoAccesses { trace, lines, .. } => {
                write!(f, "{trace}: holds no accesses: all {lines} lines are blank, comments or a header")
            }
            Encoding { trace } => {
                write!(
                    f,
                    "{trace}:1: is UTF-16, allowed are UTF-8 and single bytes per character; convert it first"
                )
            }
            Tier { tier, problem } => write!(f, "tier {tier}: {problem}"),
            Interrupted => write!(f, "interrupted"),
            Runtime(source) => write!(f, "no runtime could be started: {source}"),
            Output(source) => write!(f, "standard output: {source}"),
        }
    }
}

impl std::error::Error for ReplayError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Open { source, .. } | Self::Read { source, .. } => Some(source),
            Self::Runtime(source) | Self::Output(source) => Some(source),
            _ => None,
        }
    }
}
