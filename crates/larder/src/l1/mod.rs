//! Typed values of this process.

pub(crate) mod fence;
#[allow(unreachable_pub, reason = "larder-bench reaches it through `unstable-table`")]
#[cfg_attr(not(feature = "unstable-table"), allow(dead_code, reason = "until the cache stands on it"))]
pub mod table;
