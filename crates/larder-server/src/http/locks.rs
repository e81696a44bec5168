//! Makes conditional writes atomic among the clients of this server.
//!
//! An unconditional write shares the lock of its key's shard with others; a conditional one has it alone
//! between its check and its write. Other processes on the same data folder are not held off.

use crate::value::Key;
use larder::key::Namespace;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

/// Enough that conditional writes of different keys seldom meet.
const SHARDS: usize = 64;

#[derive(Debug)]
pub(crate) struct Locks {
    shards: Vec<Arc<RwLock<()>>>,
    hasher: RandomState,
}

/// Held while a write is under way.
#[derive(Debug)]
#[expect(dead_code, reason = "held for its drop")]
pub(crate) enum Locked {
    Shared(Vec<OwnedRwLockReadGuard<()>>),
    Alone(OwnedRwLockWriteGuard<()>),
}

impl Locks {
    pub(crate) fn new() -> Self {
        Locks { shards: (0..SHARDS).map(|_| Arc::default()).collect(), hasher: RandomState::new() }
    }

    fn shard(&self, namespace: &Namespace, key: &Key) -> usize {
        (self.hasher.hash_one((namespace.as_str(), key)) % SHARDS as u64) as usize
    }

    /// For a conditional write of one key.
    pub(crate) async fn alone(&self, namespace: &Namespace, key: &Key) -> Locked {
        Locked::Alone(Arc::clone(&self.shards[self.shard(namespace, key)]).write_owned().await)
    }

    /// For unconditional writes of keys.
    pub(crate) async fn shared<'k>(
        &self,
        namespace: &Namespace,
        keys: impl Iterator<Item = &'k Key>,
    ) -> Locked {
        let mut shards: Vec<usize> = keys.map(|key| self.shard(namespace, key)).collect();
        shards.sort_unstable();
        shards.dedup();
        self.take(&shards).await
    }

    /// For a removal of many keys at once.
    pub(crate) async fn all_shared(&self) -> Locked {
        self.take(&(0..SHARDS).collect::<Vec<_>>()).await
    }

    /// In ascending order, so that nobody waits in a circle.
    async fn take(&self, shards: &[usize]) -> Locked {
        let mut guards = Vec::with_capacity(shards.len());
        for &shard in shards {
            guards.push(Arc::clone(&self.shards[shard]).read_owned().await);
        }
        Locked::Shared(guards)
    }
}
