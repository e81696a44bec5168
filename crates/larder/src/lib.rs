//! A cache that invalidates correctly and never takes its service down. Begin with [`Cache`]; modules are listed
//! in `ARCHITECTURE.md` in the order in which a request meets them.

// Its unit tests share the servers of its integration tests.
#[cfg(all(test, not(larder_shuttle)))]
extern crate self as larder;

#[cfg(feature = "macros")]
#[doc(hidden)]
pub mod __macros;
pub mod backend;
pub mod bus;
mod cache;
pub mod clock;
pub mod entry;
pub mod envelope;
pub mod error;
pub mod guard;
pub mod health;
pub mod key;
mod l1;
pub mod lock;
pub mod mirror;
pub mod options;
pub mod pressure;
pub mod report;
pub mod request;
mod rules;
mod runtime;
#[cfg(feature = "encryption")]
pub mod secrets;
#[cfg(feature = "semantic")]
pub mod semantic;
pub mod stamp;
pub mod state;
mod stats;
mod sync;
pub mod tenant;
mod tier;

pub use bus::{BusOptions, BusStats};
pub use cache::{
    Blocking, Builder, Cache, EntryState, Explanation, Hit, Key, KeyInfo, KeysPage, KeysRequest, LoadContext,
    LoadLockOptions, Loaded, Removal, Stale, TierExplanation, Value, Written,
};
/// The L1 table by itself, for larder-bench. Not part of the API.
#[cfg(feature = "unstable-table")]
#[doc(hidden)]
pub use l1::table as unstable_table;

#[cfg(feature = "encryption")]
pub use cache::{KeyUsage, Rotation, RotationProgress};
pub use error::{BoxError, Error, ErrorClass, ErrorKind, Result};
pub use guard::{BreakerMode, BreakerState, GuardOptions};
pub use health::{Health, HealthLevel, HealthOptions, HealthState, TierHealth};
pub use l1::EvictReason;
#[cfg(feature = "macros")]
#[doc = include_str!("cached.md")]
pub use larder_macros::cached;
pub use options::EntryOptions;
pub use pressure::MemoryPressure;
pub use stats::{Evicted, Stats, TierStats};
pub use tier::TierOptions;
