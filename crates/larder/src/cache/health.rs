//! Asks the tiers how they are: at most once at a time for each level, and not again while the last answer is
//! new. Whoever asks in between gets that one, so that no number of probes is load for a tier.

use super::{Cache, Key, Shared, Value, catch_panic};
use crate::entry::{EntryKind, Meta, Tags};
use crate::error::{Error, ErrorKind, Result};
use crate::health::{Asked, Health, HealthLevel, HealthOptions, TierHealth};
use crate::key::{EntryKey, Namespace};
use crate::pressure::{Cgroup, MemorySource, share_used};
use crate::sync::Mutex;
use crate::tier::Tier;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::task::Poll;
use std::time::Duration;
use tokio::sync::watch;

/// Where entries of a check are, under random keys; not listed. Nobody else's entry is ever touched.
const NAMESPACE: &str = "larder:health";
/// How long an entry of a check stays where its removal fails.
const LEFT_BEHIND: Duration = Duration::from_secs(60);

/// What is judged by, and the last answers.
pub(super) struct Keeper {
    options: HealthOptions,
    memory: Option<Arc<dyn MemorySource>>,
    /// One for each level.
    answers: Mutex<[Answer; 3]>,
}

#[derive(Default)]
struct Answer {
    /// And when it was complete.
    last: Option<(u64, Health)>,
    under_way: Option<watch::Receiver<Option<Health>>>,
}

impl Keeper {
    /// Without a source, memory is that of the cgroup.
    pub(super) fn new(options: HealthOptions, memory: Option<Arc<dyn MemorySource>>) -> Self {
        let cgroup = || Cgroup::of_this_process().map(|cgroup| Arc::new(cgroup) as Arc<dyn MemorySource>);
        Keeper { options, memory: memory.or_else(cgroup), answers: Mutex::default() }
    }
}

/// Whether a namespace is for checks.
pub(super) fn is_reserved(namespace: &Namespace) -> bool {
    namespace.as_str() == NAMESPACE
}

impl<K: Key, V: Value> Cache<K, V> {
    /// Asks every tier for a sign of life: [`health_at`](Self::health_at) with [`HealthLevel::Basic`].
    pub async fn health(&self) -> Health {
        self.health_at(HealthLevel::Basic).await
    }

    /// How the cache and its tiers are. [`HealthLevel::Ping`] answers at once. The others ask all tiers at the
    /// same time, each step under [`HealthOptions::timeout`]; who asks while somebody else does, or within
    /// [`HealthOptions::cached_for`] after, gets the same answer.
    ///
    /// At [`HealthLevel::Full`] an entry is written to every tier, read and removed, under a random key in the
    /// namespace `larder:health`. Where tiers share their fences between namespaces, this may fence one write
    /// in 4096 that is under way: a load is not written back, a set is tried again.
    ///
    /// # Cancellation
    /// The tiers are asked by a task of its own, for the next caller.
    pub async fn health_at(&self, level: HealthLevel) -> Health {
        let shared = &self.shared;
        if level == HealthLevel::Ping {
            return shared.known_health();
        }
        // The second time where the runtime that the check ran on was shut down: then on this caller's.
        for _ in 0..2 {
            let mut answer = match shared.join_check(level) {
                Ok(health) => return health,
                Err(answer) => answer,
            };
            if let Ok(health) = answer.wait_for(Option::is_some).await
                && let Some(health) = &*health
            {
                return health.clone();
            }
        }
        shared.known_health()
    }
}

impl<K: Key, V: Value> Shared<K, V> {
    fn known_health(&self) -> Health {
        let options = &self.health.options;
        let tiers = self.tiers.iter().map(|tier| options.judge(tier.known(), Asked::default()));
        self.sum_up(HealthLevel::Ping, tiers.collect())
    }

    fn sum_up(&self, level: HealthLevel, tiers: Vec<TierHealth>) -> Health {
        let memory = self.health.memory.as_ref().and_then(|source| source.read()).map(share_used);
        let is_closed = self.is_closed.load(SeqCst);
        self.health.options.sum_up(level, is_closed, self.is_suspect(), memory, tiers)
    }

    /// The last answer if it is new, else one that is being made.
    fn join_check(self: &Arc<Self>, level: HealthLevel) -> Result<Health, watch::Receiver<Option<Health>>> {
        let now_ms = self.clock.mono_ms();
        let mut answers = self.health.answers.lock();
        let answer = &mut answers[level as usize];
        if let Some((made_ms, health)) = &answer.last {
            let age = Duration::from_millis(now_ms.saturating_sub(*made_ms));
            if age < self.health.options.cached_for {
                return Ok(Health { age_ms: crate::clock::millis(age), ..health.clone() });
            }
        }
        // Without its sender a check has ended, or was dropped.
        if let Some(under_way) = answer.under_way.as_ref().filter(|answer| answer.has_changed().is_ok()) {
            return Err(under_way.clone());
        }
        let (sender, receiver) = watch::channel(None);
        answer.under_way = Some(receiver.clone());
        drop(answers);
        let shared = Arc::clone(self);
        crate::runtime::spawn(async move {
            let health = shared.check(level).await;
            let mut answers = shared.health.answers.lock();
            answers[level as usize].last = Some((shared.clock.mono_ms(), health.clone()));
            drop(answers);
            sender.send_replace(Some(health));
        });
        Err(receiver)
    }

    async fn check(&self, level: HealthLevel) -> Health {
        let asked = self.tiers.iter().map(|tier| async move {
            let panicked = |message| {
                let error = Error::new(ErrorKind::Panicked, "check").backend(tier.name().to_owned());
                Asked { ping: Some(Err(error.message(message))), ..Asked::default() }
            };
            catch_panic(self.check_tier(tier, level)).await.unwrap_or_else(panicked)
        });
        let asked = together(asked.collect()).await;
        let judged = self.tiers.iter().zip(asked);
        // What is known is looked at last: an answer may have changed it.
        let tiers = judged.map(|(tier, asked)| self.health.options.judge(tier.known(), asked)).collect();
        self.sum_up(level, tiers)
    }

    async fn check_tier(&self, tier: &Tier, level: HealthLevel) -> Asked {
        let timeout = self.health.options.timeout;
        let ping = tier.sign_of_life(timeout).await;
        // What is set aside is not read and does not hear of removals: a round trip would prove nothing.
        if level < HealthLevel::Full || ping.is_err() || tier.is_aside() {
            return Asked { ping: Some(ping), ..Asked::default() };
        }
        let round_trip = match self.entry_to_send_round(tier) {
            Ok((key, meta, sealed)) => tier.round_trip(&key, meta, sealed, timeout).await,
            Err(error) => Err(error),
        };
        Asked { ping: Some(ping), round_trip: Some(round_trip), usage: tier.usage(timeout).await }
    }

    /// A remembered absence, which any type of value can be sealed as, under a key that nobody has.
    fn entry_to_send_round(&self, tier: &Tier) -> Result<(EntryKey, Meta, bytes::Bytes)> {
        let namespace = Namespace::new(NAMESPACE)?;
        let key = tier.key(&EntryKey::new(&namespace, &(fastrand::u64(..), fastrand::u64(..)))?);
        let now_ms = self.clock.wall_ms();
        let gone_at_ms = now_ms.saturating_add(crate::clock::millis(LEFT_BEHIND));
        let meta = Meta {
            // A set would move the store's last stamp.
            kind: EntryKind::Load,
            stamp: self.stamps.tick(now_ms),
            created_ms: now_ms,
            fresh_until_ms: gone_at_ms,
            revalidate_until_ms: gone_at_ms,
            gone_at_ms,
            load_ms: 0,
            is_negative: true,
            tags: Tags::default(),
        };
        let sealed = self.seal(&key, &meta, None)?;
        Ok((key, meta, sealed))
    }
}

/// Polls all futures until each is ready.
async fn together<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut futures: Vec<Pin<Box<F>>> = futures.into_iter().map(Box::pin).collect();
    let mut outputs: Vec<Option<F::Output>> = futures.iter().map(|_| None).collect();
    poll_fn(|cx| {
        for (future, output) in futures.iter_mut().zip(&mut outputs).filter(|(_, output)| output.is_none()) {
            if let Poll::Ready(ready) = future.as_mut().poll(cx) {
                *output = Some(ready);
            }
        }
        if outputs.iter().all(Option::is_some) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    outputs.into_iter().map(|output| output.expect("each is ready")).collect()
}
