//! What an acknowledged write survives, for every backend on a local disk.

use serde::{Deserialize, Serialize};
use std::fs;

/// What an acknowledged write survives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// A power loss: each commit is synced before it is acknowledged. The default, because "durable" must
    /// not need a footnote; group commit makes it cheap for all but a lone writer.
    #[default]
    Power,
    /// A crash or kill of the process, but not of the machine. After a power loss the store starts empty,
    /// with a new incarnation: what was lost may have been a removal. So it does for processes with
    /// [`Power`](Self::Power) that share the store with one that runs with this.
    Process,
}

/// What tells this boot of the machine from the one before. `None`, where it can't be known, means that
/// unsynced commits are distrusted after every unclean end.
pub(super) fn boot_id() -> Option<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned()).filter(|id| !id.is_empty())
}
