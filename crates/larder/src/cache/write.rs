//! Sets and removals: from the lowest tier up to L1, then acknowledged.
//!
//! In a cache with tiers each runs in a task of its own, so that a caller who gives up half-way leaves no
//! tier behind.

use super::promise::{Duty, Promise, Wait};
use super::{Cache, Key, Shared, Value};
use crate::backend::{Change, Mark, Put, PutOutcome, Ticket};
use crate::entry::{EntryKind, check_tag};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{EntryKey, Pattern};
use crate::l1::{EvictReason, Now, Published, Space};
use crate::options::EntryOptions;
use crate::rules::{Rule, holds};
use crate::stats::Count;
use crate::tier::{self, Delivered};
use std::borrow::Borrow;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

/// What became of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Written {
    /// It is in every tier, as durable as the tiers are.
    Stored,
    /// A tier could not take it: it is in memory, and in the tiers that work. The tier that failed has
    /// dropped the key, or will before it is read again.
    Local,
    /// Another set of the same key ran at the same time and is the later one.
    Superseded,
    /// L1 has no room for it, because it is too heavy or the rest is pinned, and there is no tier that has it
    /// for certain. What was there before is removed.
    Refused,
    /// The TTL is 0: nothing is stored, and what was there is removed.
    NotStored,
}

/// What became of a removal. It holds on this node from the moment it is returned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Removal {
    /// Whether a value was there. For tags and clears, which look at no entry, `false`.
    pub existed: bool,
    /// A tier could not be told yet. It is not read until it was. Other nodes hear of a removal when the tier that they
    /// share does.
    pub is_queued: bool,
    /// What is queued survives the end of the process: the tier that could not be told is the shared one, and
    /// [`BusOptions::journal`](crate::BusOptions#structfield.journal) has it. Otherwise the memory of it ends with the
    /// process.
    pub is_journaled: bool,
}

/// Tries of a set that a removal of a neighbouring key fences. Each begins later than that removal, so one
/// repetition is nearly always enough.
const SET_TRIES: usize = 4;

/// One value of a set.
struct SetItem<K, V> {
    key: K,
    value: V,
}

impl<K: Key, V: Value> Cache<K, V> {
    /// Sets a value with the default options. See [`set_with`](Self::set_with).
    ///
    /// # Errors
    /// As there.
    pub async fn set(&self, key: K, value: V) -> Result<Written> {
        self.set_checked(key, value, &self.defaults).await
    }

    /// Sets a value in all tiers, the lowest first.
    ///
    /// A tier that can't take it does not fail the set: see [`Written::Local`].
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for invalid options; [`Key`](ErrorKind::Key), [`Codec`](ErrorKind::Codec) or
    /// [`TooLarge`](ErrorKind::TooLarge) when key or value can't be encoded for the tiers: nothing is set
    /// then; [`Closed`](ErrorKind::Closed) after [`close`](Self::close).
    ///
    /// # Cancellation
    /// With tiers, a set that was polled once goes on to its end. Without, it never waits.
    pub async fn set_with(&self, key: K, value: V, options: &EntryOptions) -> Result<Written> {
        options.validate()?;
        self.set_checked(key, value, options).await
    }

    async fn set_checked(&self, key: K, value: V, options: &EntryOptions) -> Result<Written> {
        let this = &*self.view()?;
        this.open()?;
        if options.ttl.is_zero() {
            this.remove(&key).await?;
            return Ok(Written::NotStored);
        }
        let shared = &this.shared;
        if shared.tiers.is_empty() {
            return Ok(shared.set_in_l1(&this.space, SetItem { key, value }, None, options));
        }
        let (shared, space, options) = (Arc::clone(shared), Arc::clone(&this.space), options.clone());
        this.run_to_end(async move { shared.set(&space, SetItem { key, value }, &options).await }).await?
    }

    /// Sets many values, each as [`set_with`](Self::set_with) does; tiers with batches take them together.
    ///
    /// # Errors
    /// For each on its own, in the order of `entries`.
    pub async fn set_many(&self, entries: Vec<(K, V)>, options: &EntryOptions) -> Vec<Result<Written>> {
        let view = self.open().and_then(|()| options.validate()).and_then(|()| self.view());
        let this = match &view {
            Ok(view) => &**view,
            Err(error) => return entries.iter().map(|_| Err(error.clone())).collect(),
        };
        if options.ttl.is_zero() {
            let keys: Vec<K> = entries.into_iter().map(|(key, _)| key).collect();
            let removed = this.remove_many(&keys).await;
            return removed.into_iter().map(|removal| removal.map(|_| Written::NotStored)).collect();
        }
        let (shared, space, options) = (Arc::clone(&this.shared), Arc::clone(&this.space), options.clone());
        let items: Vec<_> = entries.into_iter().map(|(key, value)| SetItem { key, value }).collect();
        let count = items.len();
        if shared.tiers.is_empty() {
            return items
                .into_iter()
                .map(|item| Ok(shared.set_in_l1(&space, item, None, &options)))
                .collect();
        }
        let written = this.run_to_end(async move { shared.set_many(&space, items, &options).await }).await;
        written.unwrap_or_else(|error| vec![Err(error); count])
    }

    /// Removes a key from all tiers. A load or set that began before will not put it back.
    ///
    /// # Errors
    /// [`ErrorKind::Key`] when the key can't be encoded; [`Closed`](ErrorKind::Closed) after
    /// [`close`](Self::close). A tier that fails is no error: see [`Removal::is_queued`].
    ///
    /// # Cancellation
    /// With tiers, a removal that was polled once goes on to its end. Without, it never waits.
    pub async fn remove<Q>(&self, key: &Q) -> Result<Removal>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        let mut removed = self.remove_many(&[key.to_owned()]).await;
        removed.pop().expect("one key, one answer")
    }

    /// Removes many keys; the answers are in their order. A tier is told of all at once.
    ///
    /// # Errors
    /// For each key on its own, as [`remove`](Self::remove).
    pub async fn remove_many(&self, keys: &[K]) -> Vec<Result<Removal>> {
        let view = self.open().and_then(|()| self.view());
        let this = match &view {
            Ok(view) => &**view,
            Err(error) => return keys.iter().map(|_| Err(error.clone())).collect(),
        };
        let shared = &this.shared;
        if shared.tiers.is_empty() {
            let remove = |key| shared.remove_in_l1(&this.space, key, EvictReason::Removed);
            let existed = |key| Removal { existed: remove(key), ..Removal::default() };
            return keys.iter().map(|key| Ok(existed(key))).collect();
        }
        let (shared, space, count) = (Arc::clone(shared), Arc::clone(&this.space), keys.len());
        let keys = keys.to_vec();
        let removed = async move { shared.remove_many(&space, &keys, EvictReason::Removed).await };
        let removed = this.run_to_end(removed).await;
        removed.unwrap_or_else(|error| vec![Err(error); count])
    }

    /// Removes every entry of the namespace that carries a tag: one marker, however many they are.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`] for a tag that no entry can have; [`Closed`](ErrorKind::Closed).
    pub async fn remove_tag(&self, tag: &str) -> Result<Removal> {
        check_tag(tag)?;
        self.mark(Mark::Tag(tag.into())).await
    }

    /// Removes every entry of the namespace: one marker, however many they are.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`] after [`close`](Self::close).
    pub async fn clear(&self) -> Result<Removal> {
        self.mark(Mark::Clear).await
    }

    async fn mark(&self, mark: Mark) -> Result<Removal> {
        self.open()?;
        let this = &*self.view()?;
        this.shared.counters.add(Count::Removal);
        let (shared, space) = (Arc::clone(&this.shared), Arc::clone(&this.space));
        let marked = async move {
            let delivered = shared.below(tier::Removal::Mark(&space.namespace, &mark)).await;
            shared.streaks.forget_all(&space);
            shared.l1.mark(&space, &mark);
            let change = match &mark {
                Mark::Tag(tag) => Change::Tag(tag.clone()),
                Mark::Clear => Change::Cleared,
            };
            shared.tell(&space, |_| vec![change]).await;
            queued(&delivered)
        };
        if self.shared.tiers.is_empty() { Ok(marked.await) } else { self.run_to_end(marked).await }
    }

    /// Runs a write in a task of its own and waits for it.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`] when the cache was closed, or the runtime that ran it was shut down, [`Panicked`](ErrorKind::Panicked)
    /// when it panicked. What it did until then stays done.
    pub(super) async fn run_to_end<T: Clone + Send + 'static>(
        &self,
        write: impl Future<Output = T> + Send + 'static,
    ) -> Result<T> {
        let under_way = UnderWay::begin(&self.shared.writes);
        let epoch = self.shared.hub.as_ref().map(|hub| hub.begin());
        // Asked again, now that `close` waits for this write.
        self.open()?;
        let promise = Arc::new(Promise::new());
        let done = Wait::new(&promise);
        let duty = Duty::new(&promise, "write");
        crate::runtime::spawn(async move {
            let output = write.await;
            drop((under_way, epoch));
            duty.done(output);
        });
        done.await
    }

    pub(super) fn open(&self) -> Result<()> {
        if self.shared.is_closed.load(SeqCst) {
            return Err(Error::new(ErrorKind::Closed, "write").message("the cache was closed"));
        }
        Ok(())
    }
}

/// The answer of a removal that was delivered or kept, where it is not known what was there.
fn queued(delivered: &Delivered) -> Removal {
    match *delivered {
        Delivered::Now(_) => Removal::default(),
        Delivered::Later { is_durable } => {
            Removal { existed: false, is_queued: true, is_journaled: is_durable }
        }
    }
}

/// A write that `close` waits for.
struct UnderWay(Arc<AtomicUsize>);

impl UnderWay {
    fn begin(writes: &Arc<AtomicUsize>) -> Self {
        writes.fetch_add(1, SeqCst);
        UnderWay(Arc::clone(writes))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

impl<K: Key + serde::Serialize, V: Value> Cache<K, V> {
    /// Removes every key of the namespace whose [text](EntryKey::text) matches, by scanning; returns how
    /// many the tier (or L1) that had most of them removed.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] when a tier can't list its keys or has them hidden: nothing is removed then;
    /// [`Closed`](ErrorKind::Closed).
    pub async fn remove_matching(&self, pattern: &Pattern) -> Result<u64> {
        self.open()?;
        let this = &*self.view()?;
        self.shared.tiers.iter().try_for_each(|tier| tier.check_scan("remove_matching"))?;
        self.shared.counters.add(Count::Removal);
        let (shared, space, pattern) = (Arc::clone(&this.shared), Arc::clone(&this.space), pattern.clone());
        let removed = async move {
            let below = match shared.below(tier::Removal::Matching(&space.namespace, &pattern)).await {
                Delivered::Now(counts) => counts.first().copied().unwrap_or(0),
                Delivered::Later { .. } => 0,
            };
            shared.streaks.forget_all(&space);
            let in_l1 = shared.l1.remove_matching(&space, |key| {
                EntryKey::new(&space.namespace, key).is_ok_and(|key| pattern.matches(&key.text()))
            });
            shared.tell(&space, |_| vec![Change::Matching(pattern)]).await;
            below.max(in_l1)
        };
        if self.shared.tiers.is_empty() { Ok(removed.await) } else { self.run_to_end(removed).await }
    }
}

impl<K: Key, V: Value> Shared<K, V> {
    async fn set(&self, space: &Space, item: SetItem<K, V>, options: &EntryOptions) -> Result<Written> {
        let mut written = self.set_many(space, vec![item], options).await;
        written.pop().expect("one item, one answer")
    }

    async fn set_many(
        &self,
        space: &Space,
        items: Vec<SetItem<K, V>>,
        options: &EntryOptions,
    ) -> Vec<Result<Written>> {
        let mut written = Vec::with_capacity(items.len());
        // One after the other in time, so that of two values for one key the later one stays; a tier's
        // writer groups them with those of other callers.
        for item in items {
            written.push(self.set_below(space, item, options).await);
        }
        written
    }

    async fn set_below(&self, space: &Space, item: SetItem<K, V>, options: &EntryOptions) -> Result<Written> {
        let key = self.encode(space, &item.key)?.expect("a cache with tiers encodes keys");
        self.adopt_stamps().await;
        for _ in 0..SET_TRIES {
            let began = self.depart();
            let wall_ms = self.clock.wall_ms();
            let meta = self.meta(wall_ms, EntryKind::Set, options.ttl, options.tags.clone(), options);
            let mut is_local = false;
            let mut refusal = None;
            // From the lowest tier up: what a lower one refuses, a higher one must not keep.
            for tier in self.tiers.iter().rev() {
                let key = tier.key(&key);
                if refusal.is_some() {
                    tier.remove(tier::Removal::Keys(std::slice::from_ref(&key))).await;
                    continue;
                }
                let meta = tier.cap(&meta);
                let sealed = self.seal(&key, &meta, Some(&item.value))?;
                let stored = match tier.ticket(&key).await {
                    Some(ticket) => tier.set(Put { key: key.clone(), meta, sealed, ticket }).await,
                    None => {
                        tier.remove(tier::Removal::Keys(std::slice::from_ref(&key))).await;
                        None
                    }
                };
                match stored {
                    Some(PutOutcome::Stored) => {}
                    None => is_local = true,
                    Some(refused) => refusal = Some(refused),
                }
            }
            match refusal {
                None => {
                    let item = SetItem { key: item.key, value: item.value };
                    let in_l1 = self.publish_set(self.now(), space, item, meta, Some(began), options);
                    self.tell_key(space, &key).await;
                    if is_local {
                        self.counters.add(Count::SetLocal);
                    }
                    return Ok(match in_l1 {
                        Written::Stored if is_local => Written::Local,
                        // The tiers have it: a read promotes it as far as there is room.
                        Written::Refused if !is_local => Written::Stored,
                        other => other,
                    });
                }
                Some(PutOutcome::Older(later)) => {
                    self.stamps.advance(later, self.clock.wall_ms());
                    self.l1.remove(space, &item.key);
                    self.counters.add(Count::SetSuperseded);
                    return Ok(Written::Superseded);
                }
                // A removal came between ticket and write, of this key or of one that shares its fence. The
                // set has not been acknowledged, so it may as well happen after it.
                Some(_) => {
                    self.l1.remove(space, &item.key);
                    self.tell_key(space, &key).await;
                }
            }
        }
        self.counters.add(Count::SetSuperseded);
        Ok(Written::Superseded)
    }

    fn set_in_l1(
        &self,
        space: &Space,
        item: SetItem<K, V>,
        began: Option<(Ticket, u64)>,
        options: &EntryOptions,
    ) -> Written {
        let now = self.now();
        let meta = self.meta(now.wall_ms, EntryKind::Set, options.ttl, options.tags.clone(), options);
        self.publish_set(now, space, item, meta, began, options)
    }

    fn publish_set(
        &self,
        now: Now,
        space: &Space,
        item: SetItem<K, V>,
        meta: crate::entry::Meta,
        began: Option<(Ticket, u64)>,
        options: &EntryOptions,
    ) -> Written {
        self.counters.add(Count::Set);
        match self.publish_at(now, space, &item.key, (Some(item.value), meta, 0), began, options) {
            // Refused by L1's own fences, it is in the tiers all the same, and a miss here.
            Published::Stored | Published::Fenced => Written::Stored,
            Published::TooLarge => Written::Refused,
            Published::Older(_) => {
                self.counters.add(Count::SetSuperseded);
                Written::Superseded
            }
        }
    }

    pub(super) async fn remove_many(
        &self,
        space: &Space,
        keys: &[K],
        reason: EvictReason,
    ) -> Vec<Result<Removal>> {
        let encoded: Vec<Result<EntryKey>> = keys
            .iter()
            .map(|key| Ok(self.encode(space, key)?.expect("a cache with tiers encodes keys")))
            .collect();
        if !holds(Rule::BottomUp) {
            for key in keys {
                self.remove_in_l1(space, key, reason);
            }
        }
        let known: Vec<EntryKey> = encoded.iter().filter_map(|key| key.as_ref().ok().cloned()).collect();
        let delivered = self.below(tier::Removal::Keys(&known)).await;
        let removal = queued(&delivered);
        let below = match delivered {
            Delivered::Now(existed) => Some(existed),
            Delivered::Later { .. } => None,
        };
        let mut below = below.into_iter().flatten();
        let removed = keys
            .iter()
            .zip(encoded)
            .map(|(key, encoded)| {
                encoded?;
                let in_l1 = holds(Rule::BottomUp) && self.remove_in_l1(space, key, reason);
                let below = below.next().is_some_and(|existed| existed > 0);
                Ok(Removal { existed: in_l1 || below, ..removal })
            })
            .collect();
        let lowest = self.tiers.last().expect("a cache with tiers");
        let changes = |_: &Self| known.iter().map(|key| Change::Removed(lowest.key(key))).collect();
        self.tell(space, changes).await;
        removed
    }

    pub(super) fn remove_in_l1(&self, space: &Space, key: &K, reason: EvictReason) -> bool {
        self.counters.add(Count::Removal);
        self.streaks.forget(space, key);
        self.l1.remove_for(space, key, reason)
    }

    /// Carries a removal out in the tiers, the lowest first.
    async fn below(&self, removal: tier::Removal<'_>) -> Delivered {
        let mut existed = Vec::new();
        let mut later = None;
        for tier in self.tiers.iter().rev() {
            let names: Vec<EntryKey>;
            let removal = match &removal {
                tier::Removal::Keys(keys) if tier.hides_keys() => {
                    names = keys.iter().map(|key| tier.key(key)).collect();
                    tier::Removal::Keys(&names)
                }
                same => same.clone(),
            };
            match tier.remove(removal).await {
                Delivered::Now(counts) if existed.is_empty() => existed = counts,
                Delivered::Now(counts) => {
                    for (there, count) in existed.iter_mut().zip(counts) {
                        *there = (*there).max(count);
                    }
                }
                // Of several tiers all have to remember it durably.
                Delivered::Later { is_durable } => later = Some(later.unwrap_or(true) && is_durable),
            }
        }
        if let Some(is_durable) = later {
            self.counters.add(Count::RemovalQueued);
            return Delivered::Later { is_durable };
        }
        Delivered::Now(existed)
    }
}
