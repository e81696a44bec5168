//! How a backend serves as a tier: the one struct that builder and config file share.

use crate::error::{Error, ErrorKind, Result};
use crate::guard::GuardOptions;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How a backend serves as a tier.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct TierOptions {
    /// What it is called in statistics, health and metrics, and for [`set_breakers`](crate::Cache::set_breakers).
    /// Default: `None`, the backend's name. Give names to tiers of one kind.
    pub name: Option<String>,
    /// The longest that an entry stays fresh in this tier; stale windows follow it. Default: no limit
    /// beside the entry's own TTL.
    #[serde(with = "crate::options::seconds")]
    pub ttl_max: Duration,
    /// How long a read may take before it counts as failed. Default: 1 second: a tier that needs longer
    /// is slower than most loaders.
    #[serde(with = "crate::options::seconds")]
    pub read_timeout: Duration,
    /// How long a write or removal may take. Default: 5 seconds, because a write that is given up has to
    /// be repeated as a removal.
    #[serde(with = "crate::options::seconds")]
    pub write_timeout: Duration,
    /// Whether the tier sees a keyed hash in the place of every key. For tiers that others can look into.
    /// Needs encryption or signing with a key for names; every node must have the same one, or it doesn't
    /// hear of the others' removals. Listing and removing by pattern are
    /// [`Unsupported`](crate::ErrorKind::Unsupported) then. Namespaces and tags stay as they are. Default: no.
    pub hide_keys: bool,
    /// What every call passes: admission, breaker, attempts. Default: `None`, what the
    /// [backend recommends](crate::backend::Backend::guard).
    pub guard: Option<GuardOptions>,
    /// The name under which nodes tell each other that a breaker of this tier opened, the same on all that call the
    /// same endpoint; 1 to 64 bytes. For tiers that nodes share, with
    /// [`share_breakers`](crate::Builder::share_breakers). Default: `None`, each node's breakers are its own.
    pub breaker_name: Option<String>,
}

impl Default for TierOptions {
    fn default() -> Self {
        TierOptions {
            name: None,
            ttl_max: Duration::MAX,
            read_timeout: Duration::from_secs(1),
            write_timeout: Duration::from_secs(5),
            hide_keys: false,
            guard: None,
            breaker_name: None,
        }
    }
}

impl TierOptions {
    /// Checks what can't be meant.
    ///
    /// # Errors
    /// [`ErrorKind::Config`]; the message begins with the setting's name and says what is allowed.
    pub fn validate(&self) -> Result<()> {
        for (name, timeout) in [("read_timeout", self.read_timeout), ("write_timeout", self.write_timeout)] {
            if timeout.is_zero() {
                return Err(Error::new(ErrorKind::Config, "build")
                    .message(format!("{name} is 0; with it every call fails, and more is allowed")));
            }
        }
        self.guard.as_ref().map_or(Ok(()), GuardOptions::check)
    }
}
