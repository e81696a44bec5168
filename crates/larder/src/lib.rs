//! larder: a cache toolkit.

pub mod backend;
pub mod clock;
pub mod entry;
pub mod envelope;
pub mod error;
pub mod key;
mod l1;
pub mod options;
mod runtime;
pub mod stamp;
mod sync;

pub use error::{BoxError, Error, ErrorClass, ErrorKind, Result};
pub use options::EntryOptions;
