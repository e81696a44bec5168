//! What a store keeps of entries that failed authentication: a few, for an operator to look at.

use crate::key::EntryKey;
use bytes::Bytes;

/// Most entries in a quarantine; the oldest makes room. Whoever forges one can forge thousands.
pub(crate) const QUARANTINED_MAX: usize = 64;
/// Largest envelope that is kept whole, in bytes; of a larger one only its size.
pub(crate) const QUARANTINED_BYTES_MAX: usize = 256 << 10;

/// An entry that was set aside because its authentication failed under a known key.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Quarantined {
    /// Its key, as the store names it.
    pub key: EntryKey,
    /// Why: "tampered" or "signature".
    pub reason: String,
    /// When it was found, in wall clock milliseconds since 1970.
    pub wall_ms: u64,
    /// The size of its envelope.
    pub sealed_bytes: u64,
    /// The envelope, up to 256 KiB.
    pub sealed: Option<Bytes>,
}

impl Quarantined {
    pub(crate) fn new(key: &EntryKey, sealed: &Bytes, reason: &str, wall_ms: u64) -> Self {
        Quarantined {
            key: key.clone(),
            reason: reason.to_owned(),
            wall_ms,
            sealed_bytes: sealed.len() as u64,
            sealed: (sealed.len() <= QUARANTINED_BYTES_MAX).then(|| sealed.clone()),
        }
    }
}

/// What a quarantine tells of itself without reading it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Summary {
    pub(crate) entries: u64,
    pub(crate) last_ms: u64,
    pub(crate) last_reason: String,
}

impl Summary {
    pub(crate) fn note(&self) -> Option<String> {
        let Summary { entries, last_ms, last_reason } = self;
        (*entries > 0).then(|| {
            format!(
                "{entries} entries failed authentication and are in quarantine, the last one {}.{:03} s after 1970: \
                 {last_reason}",
                last_ms / 1000,
                last_ms % 1000
            )
        })
    }
}
