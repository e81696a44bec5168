//! larder: a cache toolkit.

pub mod backend;
pub mod clock;
pub mod entry;
pub mod envelope;
pub mod error;
pub mod key;
mod l1;
mod runtime;
pub mod stamp;
mod sync;

/// The L1 table by itself, for larder-bench. Not part of the API.
#[cfg(feature = "unstable-table")]
#[doc(hidden)]
pub use l1::table as unstable_table;

pub use error::{BoxError, Error, ErrorClass, ErrorKind, Result};
