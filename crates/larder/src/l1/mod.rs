//! Typed values of this process.

pub(crate) mod fence;
