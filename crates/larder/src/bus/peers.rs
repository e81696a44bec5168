//! Caches of one process over the same store: what one of them removes, the others drop before it is acknowledged.

use crate::backend::{Backend, Change};
use crate::key::Namespace;
use crate::sync::Unscheduled;
use async_trait::async_trait;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// A cache, as its peers see it.
#[async_trait]
pub(crate) trait Peer: Send + Sync {
    /// Drops what another one changed.
    async fn hear(&self, namespace: &Namespace, changes: &[Change]);

    /// Is told before there is somebody to hear of: from now on it has to know its entries by name.
    fn expect(&self);
}

/// The caches over one store.
pub(crate) struct Hub {
    /// The address of the store, which its members keep alive.
    store: usize,
    members: Unscheduled<Vec<Weak<dyn Peer>>>,
    /// The writes that are under way hold the epoch in which they began.
    epoch: Unscheduled<Arc<()>>,
}

/// A write that is under way.
pub(crate) struct UnderWay {
    _epoch: Arc<()>,
}

static HUBS: Mutex<Vec<Weak<Hub>>> = Mutex::new(Vec::new());

impl Hub {
    /// The hub of a store.
    pub(crate) fn of(store: &Arc<dyn Backend>) -> Arc<Hub> {
        let address = Arc::as_ptr(store).cast::<()>() as usize;
        let mut hubs = HUBS.lock().unwrap_or_else(PoisonError::into_inner);
        hubs.retain(|hub| hub.strong_count() > 0);
        if let Some(hub) = hubs.iter().filter_map(Weak::upgrade).find(|hub| hub.store == address) {
            return hub;
        }
        let hub =
            Arc::new(Hub { store: address, members: Unscheduled::default(), epoch: Unscheduled::default() });
        hubs.push(Arc::downgrade(&hub));
        hub
    }

    /// Adds a cache; all that are there are told to expect each other.
    pub(crate) fn join(&self, peer: Weak<dyn Peer>) {
        let mut members = self.members.lock();
        members.retain(|member| member.strong_count() > 0);
        members.push(peer);
        if members.len() > 1 {
            members.iter().filter_map(Weak::upgrade).for_each(|member| member.expect());
        }
    }

    /// Tells all others. With nobody else there it costs a look under a lock.
    pub(crate) async fn tell(
        &self,
        from: usize,
        namespace: &Namespace,
        changes: impl FnOnce() -> Vec<Change>,
    ) {
        let others: Vec<Arc<dyn Peer>> = {
            let members = self.members.lock();
            if members.len() < 2 {
                return;
            }
            let upgraded = members.iter().filter_map(Weak::upgrade);
            upgraded.filter(|member| Arc::as_ptr(member).cast::<()>() as usize != from).collect()
        };
        if others.is_empty() {
            return;
        }
        let changes = changes();
        for other in others {
            other.hear(namespace, &changes).await;
        }
    }

    /// A write begins.
    pub(crate) fn begin(&self) -> UnderWay {
        UnderWay { _epoch: Arc::clone(&self.epoch.lock()) }
    }

    /// What began until now is told from what begins later: the epoch that ends when all of it has.
    pub(crate) fn next_epoch(&self) -> Weak<()> {
        let ended = std::mem::take(&mut *self.epoch.lock());
        Arc::downgrade(&ended)
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").field("members", &self.members.lock().len()).finish()
    }
}
