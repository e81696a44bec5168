//! The caches in memory that are compared, as a user would build them.

use larder::unstable_table::{Limits, Table};
use std::hash::Hash;

pub fn table<K: Hash + Eq>(capacity: usize) -> Table<K, u64> {
    Table::new(Limits { weight_max: capacity as u64, entries_hint: capacity, shards: None, seed: None })
}

/// The whole cache as a user has it: TTL and statistics on, in a namespace.
pub fn whole<K: Hash + Eq + Clone + Send + Sync + 'static>(capacity: usize) -> larder::Cache<K, u64> {
    let namespace = larder::key::Namespace::new("bench").expect("a valid name");
    let cache = larder::Cache::builder().entries_max(capacity as u64).build();
    cache.expect("the settings are right").namespace(&namespace)
}

pub fn set<K: Hash + Eq + Clone + Send + Sync + 'static>(cache: &larder::Cache<K, u64>, key: K, value: u64) {
    let set = ready(cache.set(key, value));
    set.expect("a set without tiers never waits").expect("an open cache takes a set");
}

pub fn foyer<K: foyer::Key>(capacity: usize, eviction: foyer::EvictionConfig) -> foyer::Cache<K, u64> {
    foyer::CacheBuilder::new(capacity).with_eviction_config(eviction).build()
}

/// A future that is ready at once, as a hit is.
pub fn ready<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(future).poll(&mut context) {
        std::task::Poll::Ready(value) => Some(value),
        std::task::Poll::Pending => None,
    }
}
