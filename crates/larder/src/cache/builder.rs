//! Settings of a cache, checked once.

use super::flight::Flights;
use super::health::Keeper;
use super::reports::Streaks;
use super::turn::LoadLock;
use super::{Cache, Format, Key, LoadLockOptions, OnDiscard, Shared, Value, Weigh};
use crate::backend::{Backend, Log};
use crate::bus::{Bus, BusOptions, Hub, Journal, Kept};
use crate::clock::Clock;
use crate::entry::check_tag;
use crate::envelope::{Envelope, EnvelopeOptions};
#[cfg(feature = "encryption")]
use crate::envelope::{Keyring, Protection};
use crate::error::{Error, ErrorKind, Result};
use crate::guard::{BreakerShare, Sharing};
use crate::health::HealthOptions;
use crate::key::{EntryKey, Namespace};
use crate::l1::{EvictReason, L1, Limits, OnEvict, Space};
use crate::lock::Locks;
use crate::options::EntryOptions;
use crate::pressure::{MemoryPressure, Watch};
use crate::stamp::StampClock;
use crate::stats::Counters;
use crate::tenant::TenantFrom;
use crate::tier::{Tier, TierOptions};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::time::Duration;

/// Makes the format once the envelope is known.
type MakeFormat<K, V> = fn(Envelope) -> Arc<dyn Format<K, V>>;

/// Builds a [`Cache`].
#[must_use]
pub struct Builder<K, V> {
    namespace: Namespace,
    entries_max: u64,
    bytes_max: Option<u64>,
    weigh: Option<Weigh<K, V>>,
    l1_ttl_max: Duration,
    defaults: EntryOptions,
    tiers: Vec<(Arc<dyn Backend>, TierOptions)>,
    make_format: Option<MakeFormat<K, V>>,
    envelope: EnvelopeOptions,
    #[cfg(feature = "encryption")]
    protection: Option<Protection>,
    clock: Clock,
    node: Option<u32>,
    flights_max: usize,
    waiters_max: usize,
    on_evict: Option<OnEvict<K, V>>,
    on_discard: Option<OnDiscard>,
    tag_ttls_max: HashMap<Box<str>, Duration>,
    tenants: Option<TenantFrom>,
    pressure: Option<MemoryPressure>,
    evict_after_bad: Option<u32>,
    health: HealthOptions,
    load_lock: Option<(Locks, LoadLockOptions)>,
    breaker_share: Option<Arc<dyn BreakerShare>>,
    bus: BusOptions,
}

impl<K: Key, V: Value> Builder<K, V> {
    pub(super) fn new() -> Self {
        Builder {
            namespace: Namespace::default(),
            entries_max: 100_000,
            bytes_max: None,
            weigh: None,
            l1_ttl_max: Duration::MAX,
            defaults: EntryOptions::default(),
            tiers: Vec::new(),
            make_format: None,
            envelope: EnvelopeOptions::default(),
            #[cfg(feature = "encryption")]
            protection: None,
            clock: Clock::system(),
            node: None,
            flights_max: 10_000,
            waiters_max: 100_000,
            on_evict: None,
            on_discard: None,
            tag_ttls_max: HashMap::new(),
            tenants: None,
            pressure: None,
            evict_after_bad: Some(3),
            health: HealthOptions::default(),
            load_lock: None,
            breaker_share: None,
            bus: BusOptions::default(),
        }
    }

    /// The namespace of the first view. Default: "default".
    pub fn namespace(mut self, namespace: Namespace) -> Self {
        self.namespace = namespace;
        self
    }

    /// Most entries in L1, over all namespaces; at least 1. Default: 100,000.
    pub fn entries_max(mut self, entries_max: u64) -> Self {
        self.entries_max = entries_max;
        self
    }

    /// Most bytes in L1 by `weigh`, which is asked once per entry. Both limits hold; for that, an entry
    /// counts for at least `bytes_max / entries_max` bytes. An entry over its share of the limit is not
    /// kept. Default: no limit beside [`entries_max`](Self::entries_max).
    pub fn bytes_max(
        mut self,
        bytes_max: u64,
        weigh: impl Fn(&K, &V) -> u64 + Send + Sync + 'static,
    ) -> Self {
        self.bytes_max = Some(bytes_max);
        self.weigh = Some(Arc::new(weigh));
        self
    }

    /// Lets L1 shrink while the memory that the process may use runs short, and grow back afterwards. Default:
    /// off, because a cache that is emptied while its source is busy is a risk to be chosen.
    ///
    /// ```
    /// use larder::pressure::{Cgroup, MemoryPressure};
    ///
    /// let mut builder = larder::Cache::<u64, String>::builder();
    /// if let Some(cgroup) = Cgroup::of_this_process() {
    ///     builder = builder.memory_pressure(MemoryPressure::new(cgroup));
    /// }
    /// # builder.build().unwrap();
    /// ```
    pub fn memory_pressure(mut self, pressure: MemoryPressure) -> Self {
        self.pressure = Some(pressure);
        self
    }

    /// The longest that an entry stays fresh in L1, whatever its TTL. Default: no limit.
    pub fn l1_ttl_max(mut self, ttl_max: Duration) -> Self {
        self.l1_ttl_max = ttl_max;
        self
    }

    /// The options of entries that are set or loaded without their own.
    pub fn defaults(mut self, defaults: EntryOptions) -> Self {
        self.defaults = defaults;
        self
    }

    /// Where the time is read. Backends have a clock of their own: give them the same.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// The node's part of stamps. Default: random, which is right unless a tier keeps the last stamp and
    /// the node has a name that survives restarts.
    pub fn node(mut self, node: u32) -> Self {
        self.node = Some(node);
        self
    }

    /// Most loads under way at once; further ones fail with
    /// [`Overloaded`](crate::ErrorKind::Overloaded). Default: 10,000, far more than a source bears at once, and
    /// a bound on the tasks all the same.
    pub fn flights_max(mut self, flights_max: usize) -> Self {
        self.flights_max = flights_max;
        self
    }

    /// Most callers that wait for one load, to within a few that come at the same time. Default: 100,000, far more
    /// than a healthy process has.
    pub fn waiters_max(mut self, waiters_max: usize) -> Self {
        self.waiters_max = waiters_max;
        self
    }

    /// Called for each value that leaves L1, with the reason, on the thread that caused it and with no
    /// lock held. It must be quick: callers wait for it. Its panics are caught and logged.
    pub fn on_evict(mut self, listener: impl Fn(&K, &V, EvictReason) + Send + Sync + 'static) -> Self {
        self.on_evict = Some(Arc::new(listener));
        self
    }

    /// Called for each entry that a tier had and that had to be dropped because it could not be opened, with the
    /// tier's name and the reason as [`TierStats::refused`](crate::TierStats#structfield.refused) names it:
    /// "checksum", "type", ... There is no value to show. Otherwise as [`on_evict`](Self::on_evict).
    pub fn on_discard(
        mut self,
        listener: impl Fn(&EntryKey, &str, &'static str) + Send + Sync + 'static,
    ) -> Self {
        self.on_discard = Some(Arc::new(listener));
        self
    }

    /// The longest that an entry with this tag stays fresh, whatever TTL its call or loader gives; of several
    /// tags the shortest counts. For what comes from one source, tag it with the source. At least a
    /// millisecond. Default: no limit.
    pub fn tag_ttl_max(mut self, tag: &str, ttl_max: Duration) -> Self {
        self.tag_ttls_max.insert(tag.into(), ttl_max);
        self
    }

    /// Makes every call be about one tenant's entries, and says where its tenant comes from. A call without one
    /// fails with [`Tenant`](ErrorKind::Tenant); reads that answer no error find nothing, and
    /// [`Stats::tenant_refused`](crate::Stats#structfield.tenant_refused) counts them. Default: no tenants.
    pub fn tenants(mut self, from: TenantFrom) -> Self {
        self.tenants = Some(from);
        self
    }

    /// After how many bad [reports](Cache::report) in a row an entry is removed from every tier; `None`: never.
    /// At least 1. Default: 3, because one failure is chance and two may have one cause; a cache without
    /// reports never notices.
    pub fn evict_after_bad(mut self, evict_after_bad: Option<u32>) -> Self {
        self.evict_after_bad = evict_after_bad;
        self
    }

    /// When the cache or a tier counts as degraded or unhealthy, and how often tiers are asked.
    pub fn health(mut self, health: HealthOptions) -> Self {
        self.health = health;
        self
    }

    /// Lets one node load a key while the others wait for what it stores in the lowest tier, which they share.
    /// Default: off; each node then loads for itself.
    ///
    /// It saves work and no more. While the lock's store fails or hangs, each node loads by itself; whoever holds
    /// a lease and dies is waited for until the lease ends. Nodes that wait for a value that its loader declines
    /// to store each load their own then. Reloads and loads of many keys at once take no lease. Give the locks
    /// the cache's clock.
    pub fn load_lock(self, locks: Locks) -> Self {
        self.load_lock_with(locks, LoadLockOptions::default())
    }

    /// [`load_lock`](Self::load_lock) with options.
    pub fn load_lock_with(mut self, locks: Locks, options: LoadLockOptions) -> Self {
        self.load_lock = Some((locks, options));
        self
    }

    /// Tells other nodes when a breaker of a tier with a [`breaker_name`](TierOptions::breaker_name) opens, and hears
    /// of theirs: then this node's opens at the next call that fails instead of after a window of them. Once a
    /// second, in the background. Default: off.
    pub fn share_breakers(mut self, share: Arc<dyn BreakerShare>) -> Self {
        self.breaker_share = Some(share);
        self
    }

    /// How the cache follows a tier that it shares with other nodes. It does by itself where the lowest tier is one,
    /// as Redis is: what other nodes remove or set is removed from L1 and from the tiers above.
    pub fn bus(mut self, bus: BusOptions) -> Self {
        self.bus = bus;
        self
    }

    /// How values are encoded for the tiers.
    pub fn envelope(mut self, envelope: EnvelopeOptions) -> Self {
        self.envelope = envelope;
        self
    }

    /// Encrypts what is stored in tiers, and refuses what isn't encrypted there: see [`Protection`].
    #[cfg(feature = "encryption")]
    pub fn encryption(self, keyring: Keyring) -> Self {
        self.protection(Protection::encrypt(keyring))
    }

    /// Signs what is stored in tiers, and refuses what isn't: see [`Protection`].
    #[cfg(feature = "encryption")]
    pub fn signing(self, keyring: Keyring) -> Self {
        self.protection(Protection::sign(keyring))
    }

    /// Encrypts or signs, with options. Default: neither; then a checksum finds accidents, and no more.
    #[cfg(feature = "encryption")]
    pub fn protection(mut self, protection: Protection) -> Self {
        self.protection = Some(protection);
        self
    }

    pub(crate) fn has_tiers(&self) -> bool {
        !self.tiers.is_empty()
    }

    #[cfg(feature = "encryption")]
    pub(crate) fn encrypts(&self) -> bool {
        self.protection.as_ref().is_some_and(Protection::encrypts)
    }

    /// Nothing is kept in L1: every entry is too heavy for it.
    #[cfg(feature = "encryption")]
    pub(crate) fn without_memory(self) -> Self {
        self.bytes_max(1, |_, _| u64::MAX / 2)
    }

    /// Checks every setting and builds the cache.
    ///
    /// # Errors
    /// [`ErrorKind::Config`], naming the setting, its value and what is allowed.
    pub fn build(self) -> Result<Cache<K, V>> {
        self.defaults.validate()?;
        self.health.validate()?;
        for (tag, ttl_max) in &self.tag_ttls_max {
            check_tag(tag)?;
            if ttl_max.as_millis() == 0 {
                return Err(Error::new(ErrorKind::Config, "build").message(format!(
                    "tag_ttl_max of \"{tag}\" is {ttl_max:?}; at least a millisecond is allowed"
                )));
            }
        }
        for (setting, value) in [
            ("entries_max", self.entries_max),
            ("bytes_max", self.bytes_max.unwrap_or(1)),
            ("flights_max", self.flights_max as u64),
            ("waiters_max", self.waiters_max as u64),
            ("evict_after_bad", u64::from(self.evict_after_bad.unwrap_or(1))),
        ] {
            if value == 0 {
                return Err(Error::new(ErrorKind::Config, "build")
                    .message(format!("{setting} is 0; at least 1 is allowed")));
            }
        }
        if let Some(fault) = self.pressure.as_ref().and_then(MemoryPressure::fault) {
            return Err(Error::new(ErrorKind::Config, "build").message(fault));
        }
        let envelope = Envelope::new(self.envelope)?;
        #[cfg(feature = "encryption")]
        let (envelope, keyring) = match self.protection {
            None => (envelope, None),
            Some(protection) => {
                let keyring = protection.keyring().clone();
                (envelope.protect(protection), Some(keyring))
            }
        };
        let limits = Limits { entries_max: self.entries_max, bytes_max: self.bytes_max };
        for (_, options) in &self.tiers {
            options.validate()?;
        }
        let breaker_names: Vec<String> =
            self.tiers.iter().filter_map(|(_, options)| options.breaker_name.clone()).collect();
        check_breaker_names(&breaker_names, self.breaker_share.is_some())?;
        let tiers_count = self.tiers.len();
        let load_lock = self.load_lock.map(|(locks, options)| LoadLock::new(locks, &options, tiers_count));
        let load_lock = load_lock.transpose()?;
        let clock = self.clock;
        let counters = Arc::new(Counters::new());
        let mut tiers = Vec::with_capacity(self.tiers.len());
        for (backend, options) in self.tiers {
            let hides_keys = options.hide_keys;
            let tier = Tier::new(backend, options, clock.clone());
            #[cfg(feature = "encryption")]
            let tier = match keyring.as_ref().filter(|keyring| hides_keys && keyring.hides_names()) {
                Some(keyring) => tier.hiding(keyring.clone()),
                None => tier,
            };
            if hides_keys && !tier.hides_keys() {
                return Err(Error::new(ErrorKind::Config, "build").message(
                    "hide_keys is true; it needs encryption or signing with a keyring that has a key for names",
                ));
            }
            tiers.push(tier);
        }
        let sharing = |share| Sharing::new(share, clock.clone(), &breaker_names);
        let sharing = self.breaker_share.map(sharing);
        let bus = follow_which(&tiers, &self.bus, &clock)?;
        if let (Some(bus), Some(path)) = (&bus, &self.bus.journal) {
            let (journal, notes, damage) = Journal::open(path)?;
            if let Some(damage) = damage {
                tracing::error!(damage, "the journal of undelivered removals");
            }
            let authority = tiers.remove(bus.authority);
            tiers.insert(bus.authority, authority.with_journal(journal, &notes));
        }
        let hub = tiers.last().map(|tier| Hub::of(&tier.backend));
        let shared = Arc::new(Shared {
            l1: L1::new(limits, fastrand::u64(..), self.on_evict, Arc::clone(&counters)),
            flights: Arc::new(Flights::new(self.flights_max, self.waiters_max)),
            is_named: AtomicBool::new(bus.is_some()),
            bus: bus.map(Arc::new),
            hub,
            kept_cursors: crate::sync::Unscheduled::new(Kept::default()),
            tiers,
            format: self.make_format.map(|make| make(envelope)),
            weigh: self.weigh,
            l1_ttl_max: self.l1_ttl_max,
            stamps: StampClock::new(self.node.unwrap_or_else(|| fastrand::u32(..))),
            clock,
            counters,
            on_discard: self.on_discard,
            tag_ttls_max: self.tag_ttls_max,
            tenants: self.tenants,
            evict_after_bad: self.evict_after_bad,
            health: Keeper::new(self.health, self.pressure.as_ref().map(MemoryPressure::source)),
            load_lock,
            sharing,
            streaks: Streaks::default(),
            spaces: crate::sync::Mutex::new(HashMap::new()),
            next_space: AtomicU64::new(0),
            write_backs: AtomicUsize::new(0),
            writes: Arc::new(AtomicUsize::new(0)),
            is_closed: AtomicBool::new(false),
            has_adopted_stamps: AtomicBool::new(false),
        });
        // The first reading starts the coarse clock's thread, which no hit should have to do.
        shared.clock.coarse_ms();
        if let Some(bus) = &shared.bus {
            // Nothing is known of the others yet.
            shared.l1.set_trust(0, bus.serve_ms());
        }
        let space = match shared.tenants {
            Some(_) => Arc::new(Space::unbound(self.namespace)),
            None => shared.space(&self.namespace),
        };
        super::follow::start(&shared);
        super::maintain::start(&shared, self.pressure.map(Watch::new));
        Ok(Cache { shared, space, defaults: Arc::new(self.defaults) })
    }
}

fn check_breaker_names(names: &[String], is_shared: bool) -> Result<()> {
    let refuse = |message: String| Err(Error::new(ErrorKind::Config, "build").message(message));
    for (place, name) in names.iter().enumerate() {
        if !is_shared {
            return refuse(format!("breaker_name is \"{name}\"; it needs share_breakers, or nobody is told"));
        }
        if name.is_empty() || name.len() > 64 {
            return refuse(format!("breaker_name has {} bytes; 1 to 64 are allowed", name.len()));
        }
        if names[..place].contains(name) {
            return refuse(format!(
                "breaker_name \"{name}\" is that of two tiers; each endpoint has its own"
            ));
        }
    }
    if is_shared && names.is_empty() {
        return refuse("share_breakers is set, but no tier has a breaker_name".to_owned());
    }
    Ok(())
}

/// The log that the cache follows: that of the lowest tier, if it is one that nodes share.
///
/// # Errors
/// [`ErrorKind::Config`] when settings or tiers contradict each other.
fn follow_which(tiers: &[Tier], options: &BusOptions, clock: &Clock) -> Result<Option<Bus>> {
    let refused = |message: String| Err(Error::new(ErrorKind::Config, "build").message(message));
    options.check()?;
    if options.is_alone {
        return Ok(None);
    }
    let Some(authority) = tiers.iter().rposition(|tier| tier.backend.log().is_some()) else {
        if options.journal.is_some() {
            return refused(
                "bus.journal is set, and no tier is shared by nodes; a journal is for removals that a shared tier \
                 could not be told"
                    .to_owned(),
            );
        }
        return Ok(None);
    };
    let (shared, below) = (&tiers[authority], tiers.get(authority + 1));
    if let Some(below) = below {
        return refused(format!(
            "tier \"{}\" is below \"{}\", which nodes share; a tier that only some of them see would give back to \
             all what others removed: put it above",
            below.name(),
            shared.name()
        ));
    }
    if let Some(above) = tiers[..authority].iter().find(|tier| tier.hides_keys() != shared.hides_keys()) {
        return refused(format!(
            "hide_keys is {} for \"{}\" and {} for \"{}\"; it has to be the same, because the log of the shared tier \
             names keys as that tier knows them",
            above.hides_keys(),
            above.name(),
            shared.hides_keys(),
            shared.name()
        ));
    }
    let log: &dyn Log = shared.backend.log().expect("it was found by it");
    Ok(Some(Bus::new(authority, log.shards(), log.origin(), options.clone(), clock.clone())))
}

impl<K, V> Builder<K, V>
where
    K: Key + Serialize,
    V: Value + Serialize + DeserializeOwned,
{
    /// Adds a tier below those added before.
    pub fn tier(self, backend: Arc<dyn Backend>) -> Self {
        self.tier_with(backend, TierOptions::default())
    }

    /// Adds a tier with options of its own.
    pub fn tier_with(mut self, backend: Arc<dyn Backend>, options: TierOptions) -> Self {
        self.tiers.push((backend, options));
        self.make_format = Some(|envelope| Arc::new(envelope));
        self
    }
}

impl<K, V> std::fmt::Debug for Builder<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder")
            .field("namespace", &self.namespace)
            .field("entries_max", &self.entries_max)
            .field("bytes_max", &self.bytes_max)
            .field("defaults", &self.defaults)
            .field("tiers", &self.tiers)
            .finish_non_exhaustive()
    }
}
