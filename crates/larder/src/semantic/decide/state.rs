//! The bytes of a policy's state: a line that names policy and version, then JSON. Versions are never reused.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt;

/// Largest state that is read, in bytes: twice what a policy that is full writes.
const STATE_BYTES_MAX: usize = 64 << 20;

/// Why a policy's state was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StateError {
    /// It was written by another policy.
    OtherPolicy {
        /// What the state names.
        found: String,
        /// What it should.
        expected: &'static str,
    },
    /// It was written by a version that this one does not know.
    OtherVersion(u32),
    /// It is not a state, or cut, or impossible.
    Damaged(String),
}

impl fmt::Display for StateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StateError::OtherPolicy { found, expected } => {
                write!(
                    f,
                    "the state is of policy {found:?}, not {expected:?}: begin without it, or choose that policy"
                )
            }
            StateError::OtherVersion(version) => {
                write!(f, "the state has version {version}, which this version of larder does not know")
            }
            StateError::Damaged(what) => write!(f, "the state is damaged: {what}"),
        }
    }
}

impl std::error::Error for StateError {}

pub(super) fn write(policy: &str, version: u32, state: &impl Serialize) -> Vec<u8> {
    let mut bytes = format!("larder-policy {policy} {version}\n").into_bytes();
    serde_json::to_writer(&mut bytes, state)
        .expect("a state has no map with other keys than numbers, and memory takes all");
    bytes
}

pub(super) fn read<T: DeserializeOwned>(
    policy: &'static str,
    version: u32,
    bytes: &[u8],
) -> Result<T, StateError> {
    let damaged = |what: &str| StateError::Damaged(what.to_owned());
    if bytes.len() > STATE_BYTES_MAX {
        return Err(damaged("it is larger than any state"));
    }
    let end = bytes
        .iter()
        .take(256)
        .position(|byte| *byte == b'\n')
        .ok_or_else(|| damaged("it has no first line"))?;
    let head = std::str::from_utf8(&bytes[..end]).map_err(|_| damaged("its first line is no text"))?;
    let mut words = head.split(' ');
    if words.next() != Some("larder-policy") {
        return Err(damaged("it does not begin as a state does"));
    }
    match (words.next(), words.next().and_then(|version| version.parse::<u32>().ok())) {
        (Some(found), _) if found != policy => {
            Err(StateError::OtherPolicy { found: found.chars().take(64).collect(), expected: policy })
        }
        (Some(_), Some(found)) if found == version => {
            serde_json::from_slice(&bytes[end + 1..]).map_err(|error| damaged(&error.to_string()))
        }
        (Some(_), Some(other)) => Err(StateError::OtherVersion(other)),
        _ => Err(damaged("its first line names no version")),
    }
}
