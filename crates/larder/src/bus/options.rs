//! How a cache follows the tier that it shares with other nodes: the one struct that builder and config file share.

use crate::error::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// How a cache follows the tier that it shares with other nodes.
///
/// With the defaults, what one node removed or set is not served by the others 2 seconds later while they are
/// connected to the shared tier, 5 seconds later when they are not; usually within milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct BusOptions {
    /// How often the log of the shared tier is asked for what is new. Default: 250 milliseconds, so that a poll may
    /// fail and another be late before the node becomes suspect. At least 10 milliseconds.
    #[serde(with = "crate::options::seconds")]
    pub poll_interval: Duration,
    /// For how long the last complete answer counts. Then the node is *suspect*: it may have missed removals. Default:
    /// 1.5 seconds, half a second less than the 2 that are promised, for a reader that is slow itself. At least twice
    /// the interval.
    #[serde(with = "crate::options::seconds")]
    pub suspect_after: Duration,
    /// For how long a suspect node serves a value after it was known not to be outdated. Default: 4.5 seconds, of
    /// the 5 that are promised. Longer keeps a service going through longer outages, with values as old as this.
    #[serde(with = "crate::options::seconds")]
    pub serve_suspect_max: Duration,
    /// Says that no other node uses the tier: it is not followed, and nothing is ever suspect. Default: no.
    pub is_alone: bool,
    /// The file in which removals are kept that the shared tier could not be told, until it was; synced before they
    /// are acknowledged as [queued](crate::Removal#structfield.is_queued). One for each process: a second one that
    /// opens it is refused. Default: `None`, they are kept in memory, and lost with the process.
    pub journal: Option<PathBuf>,
}

impl Default for BusOptions {
    fn default() -> Self {
        BusOptions {
            poll_interval: Duration::from_millis(250),
            suspect_after: Duration::from_millis(1500),
            serve_suspect_max: Duration::from_millis(4500),
            is_alone: false,
            journal: None,
        }
    }
}

impl BusOptions {
    pub(crate) fn check(&self) -> Result<()> {
        let refused = |message: String| Err(Error::new(ErrorKind::Config, "build").message(message));
        if self.poll_interval < Duration::from_millis(10) {
            let message =
                format!("bus.poll_interval is {:?}; at least 10 ms are allowed", self.poll_interval);
            return refused(message);
        }
        if self.suspect_after < self.poll_interval.saturating_mul(2) {
            return refused(format!(
                "bus.suspect_after is {:?}; at least twice bus.poll_interval ({:?}) is allowed",
                self.suspect_after, self.poll_interval
            ));
        }
        Ok(())
    }
}
