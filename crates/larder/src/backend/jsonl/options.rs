//! The settings, and what is allowed in them.

use super::disk::NAME;
use crate::backend::durability::Durability;
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use serde::Deserialize;
use std::path::PathBuf;
use std::time::Duration;

/// The settings of a [`JsonlBackend`](super::JsonlBackend).
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JsonlOptions {
    /// The folder. It is made if it is missing, for the owner only.
    pub path: PathBuf,
    /// Shards of a new folder, 1 to 99; a folder that is there keeps its number. 4 by default: each has a file,
    /// a thread and a sync of its own, so more of them spread writers and make rewriting smaller, and cost a
    /// sync each for a removal by tag.
    #[serde(default = "shards")]
    pub shards: usize,
    /// What an acknowledged write survives. [`Durability::Power`] by default.
    #[serde(default)]
    pub durability: Durability,
    /// Where the time comes from. The system by default.
    #[serde(skip)]
    pub clock: Clock,
    /// Most entries; `None`, the default, is unlimited. Split evenly over the shards.
    #[serde(default)]
    pub entries_max: Option<u64>,
    /// Most bytes of the lines of entries; the files are up to twice as large and 256 KiB a shard. `None`, the
    /// default, is unlimited. Split evenly over the shards, so an entry takes at most a share of it.
    #[serde(default)]
    pub bytes_max: Option<u64>,
    /// Threads that read, 1 to 64. 2 by default: one slow read then stops nobody.
    #[serde(default = "readers")]
    pub readers: usize,
    /// Longest wait for another process's lock, and for a place in the queue. 5 seconds by default.
    #[serde(default = "busy_timeout", with = "crate::options::seconds")]
    pub busy_timeout: Duration,
}

fn shards() -> usize {
    4
}

fn readers() -> usize {
    2
}

fn busy_timeout() -> Duration {
    Duration::from_secs(5)
}

impl JsonlOptions {
    /// The defaults, for a folder.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        JsonlOptions {
            path: path.into(),
            shards: shards(),
            durability: Durability::default(),
            clock: Clock::system(),
            entries_max: None,
            bytes_max: None,
            readers: readers(),
            busy_timeout: busy_timeout(),
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        let refuse =
            |message: String| Err(Error::new(ErrorKind::Config, "open").backend(NAME).message(message));
        if !(1..=99).contains(&self.shards) {
            return refuse(format!("shards is {}; 1 to 99 are allowed", self.shards));
        }
        if !(1..=64).contains(&self.readers) {
            return refuse(format!("readers is {}; 1 to 64 are allowed", self.readers));
        }
        Ok(())
    }
}
