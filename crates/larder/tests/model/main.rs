//! The whole cache against a reference that fits on a page: random operations, configurations, faults and
//! clock moves, one after the other. The reference says which answers are allowed, and where the
//! configuration can't lose an entry, which one is due.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "../support/mod.rs"]
mod support;

mod reference;

use larder::backend::{Backend, MemoryBackend, MemoryOptions};
use larder::clock::{Clock, ManualClock};
use larder::entry::Tags;
use larder::key::{Namespace, Pattern};
use larder::{Cache, EntryOptions, ErrorKind, LoadContext, Loaded, Stale, Written};
use proptest::prelude::*;
use reference::{Reference, Version};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::{Faulty, Mood};

const KEYS: [&str; 3] = ["a", "b", "ab"];
const TAGS: [&str; 2] = ["red", "blue"];
const YEAR_MS: u64 = 365 * 86_400_000;

#[derive(Clone, Copy, Debug)]
enum Below {
    Nothing,
    Memory,
    TwoMemories,
    /// Fails when told to.
    Faulty,
    #[cfg(feature = "sqlite")]
    Sqlite,
}

#[derive(Clone, Debug)]
struct Setup {
    below: Below,
    entries_max: u64,
    is_sliding: bool,
    stale_while_revalidate: u64,
    stale_on_error: u64,
}

impl Setup {
    /// Whether nothing is lost that was not removed: then answers are due, not just allowed.
    fn is_lossless(&self) -> bool {
        self.entries_max > 100
            && !self.is_sliding
            && matches!(self.below, Below::Nothing | Below::Memory | Below::TwoMemories)
    }
}

/// A key of one of two namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Place {
    namespace: usize,
    key: usize,
}

#[derive(Clone, Copy, Debug)]
enum Found {
    Value,
    Absent,
    Error,
    NotModified,
    Declined,
}

#[derive(Clone, Debug)]
enum Op {
    Set {
        place: Place,
        ttl: u64,
        tag: Option<usize>,
    },
    Get(Place),
    Lookup(Place, Stale),
    Load {
        place: Place,
        found: Found,
        ttl: Option<u64>,
        tag: Option<usize>,
        negative_ttl: u64,
        refresh_after: bool,
    },
    LoadMany {
        namespace: usize,
        returned: [bool; 3],
    },
    Remove(Place),
    RemoveTag(usize, usize),
    RemoveMatching(usize, &'static str),
    Clear(usize),
    Expire(Place, u64),
    Advance(u64),
    JumpWall(i8),
    Sweep,
    Restart,
    Feel(Mood),
}

fn place() -> impl Strategy<Value = Place> {
    (0..2_usize, 0..KEYS.len()).prop_map(|(namespace, key)| Place { namespace, key })
}

/// Milliseconds that meet each other's ends exactly, and the extremes.
fn ttl() -> impl Strategy<Value = u64> {
    prop_oneof![
        1 => Just(0),
        1 => Just(1),
        6 => prop_oneof![Just(1000), Just(2000), Just(5000), Just(60_000)],
        1 => Just(u64::MAX),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let tag = || prop::option::of(0..TAGS.len());
    let found = prop_oneof![
        4 => Just(Found::Value),
        1 => Just(Found::Absent),
        2 => Just(Found::Error),
        2 => Just(Found::NotModified),
        1 => Just(Found::Declined),
    ];
    let load =
        (place(), found, prop::option::of(ttl()), tag(), prop_oneof![Just(0), Just(2000)], any::<bool>());
    prop_oneof![
        6 => (place(), ttl(), tag()).prop_map(|(place, ttl, tag)| Op::Set { place, ttl, tag }),
        6 => place().prop_map(Op::Get),
        4 => (place(), prop_oneof![Just(Stale::Allow), Just(Stale::Refuse)]).prop_map(|(p, s)| Op::Lookup(p, s)),
        10 => load.prop_map(|(place, found, ttl, tag, negative_ttl, refresh_after)| {
            Op::Load { place, found, ttl, tag, negative_ttl, refresh_after }
        }),
        3 => (0..2_usize, any::<[bool; 3]>())
            .prop_map(|(namespace, returned)| Op::LoadMany { namespace, returned }),
        4 => place().prop_map(Op::Remove),
        2 => (0..2_usize, 0..TAGS.len()).prop_map(|(namespace, tag)| Op::RemoveTag(namespace, tag)),
        1 => (0..2_usize, prop_oneof![Just("*"), Just("*b*"), Just("none")])
            .prop_map(|(namespace, pattern)| Op::RemoveMatching(namespace, pattern)),
        1 => (0..2_usize).prop_map(Op::Clear),
        2 => (place(), ttl()).prop_map(|(place, ttl)| Op::Expire(place, ttl)),
        8 => prop_oneof![Just(1), Just(999), Just(1000), Just(1001), Just(5000), 0..70_000_u64]
            .prop_map(Op::Advance),
        1 => prop_oneof![Just(-1_i8), Just(1)].prop_map(Op::JumpWall),
        1 => Just(Op::Sweep),
        2 => Just(Op::Restart),
        2 => prop_oneof![2 => Just(Mood::Well), 1 => Just(Mood::Down), 1 => Just(Mood::Mute)]
            .prop_map(Op::Feel),
    ]
}

fn setup(below: impl Strategy<Value = Below>) -> impl Strategy<Value = Setup> {
    let entries_max = prop_oneof![3 => Just(1000), 1 => 1..4_u64];
    let window = || prop_oneof![Just(0), Just(2000), Just(60_000)];
    (below, entries_max, prop::bool::weighted(0.2), window(), window()).prop_map(
        |(below, entries_max, is_sliding, stale_while_revalidate, stale_on_error)| Setup {
            below,
            entries_max,
            is_sliding,
            stale_while_revalidate,
            stale_on_error,
        },
    )
}

struct World {
    setup: Setup,
    clock: ManualClock,
    tiers: Vec<Arc<dyn Backend>>,
    faulty: Option<Arc<Faulty>>,
    /// A view of each namespace.
    caches: [Cache<String, u64>; 2],
    reference: Reference,
    next_value: u64,
    _folder: Option<tempfile::TempDir>,
}

impl World {
    async fn new(setup: Setup) -> Self {
        let clock = ManualClock::new();
        let memory = || -> Arc<dyn Backend> {
            let clock = Clock::from(clock.clone());
            Arc::new(MemoryBackend::new(MemoryOptions { clock, ..MemoryOptions::default() }))
        };
        let mut faulty = None;
        #[cfg_attr(not(feature = "sqlite"), allow(unused_mut, reason = "only SQLite has a folder"))]
        let mut folder = None;
        let tiers: Vec<Arc<dyn Backend>> = match setup.below {
            Below::Nothing => Vec::new(),
            Below::Memory => vec![memory()],
            Below::TwoMemories => vec![memory(), memory()],
            Below::Faulty => {
                let tier = Faulty::new(memory());
                faulty = Some(Arc::clone(&tier));
                vec![tier]
            }
            #[cfg(feature = "sqlite")]
            Below::Sqlite => {
                use larder::backend::{SqliteBackend, SqliteOptions};
                let dir = tempfile::tempdir().unwrap();
                let mut options = SqliteOptions::new(dir.path().join("cache.db"));
                options.clock = Clock::from(clock.clone());
                folder = Some(dir);
                vec![Arc::new(SqliteBackend::open(options).await.unwrap())]
            }
        };
        let caches = build(&setup, &clock, &tiers);
        let reference = Reference::new(setup.is_lossless(), setup.is_sliding);
        World { setup, clock, tiers, faulty, caches, reference, next_value: 1, _folder: folder }
    }

    fn cache(&self, place: Place) -> &Cache<String, u64> {
        &self.caches[place.namespace]
    }

    fn now(&self) -> u64 {
        Clock::from(self.clock.clone()).mono_ms()
    }

    fn value(&mut self) -> u64 {
        self.next_value += 1;
        self.next_value
    }

    /// The version that is stored now with these facts.
    fn version(&self, value: Option<u64>, ttl: u64, tags: Vec<usize>) -> Version {
        let (revalidate, on_error) = (self.setup.stale_while_revalidate, self.setup.stale_on_error);
        Version::new(value, self.now(), ttl, tags, revalidate, on_error)
    }

    /// Lets flights and write-backs end.
    async fn settle(&self) {
        for round in 0..100_000 {
            tokio::task::yield_now().await;
            if round >= 30 && self.caches[0].stats().flights == 0 {
                return;
            }
        }
        panic!("a flight never lands");
    }

    async fn run(&mut self, op: &Op) {
        match op.clone() {
            Op::Set { place, ttl, tag } => {
                let value = self.value();
                let options = self.cache(place).options().ttl(millis(ttl)).tags(tags(tag));
                let key = KEYS[place.key].to_owned();
                let written = self.cache(place).set_with(key, value, &options).await.unwrap();
                assert_ne!(written, Written::Superseded, "no other set ran");
                assert_eq!(written == Written::NotStored, ttl == 0);
                self.reference.remove(place);
                if ttl > 0 {
                    let version = self.version(Some(value), ttl, tag.into_iter().collect());
                    self.reference.store(place, version);
                }
            }
            Op::Get(place) => {
                let got = self.cache(place).get(KEYS[place.key]).await;
                self.reference.check_get(place, got, self.now());
            }
            Op::Lookup(place, stale) => {
                let hit = self.cache(place).lookup(KEYS[place.key], stale).await;
                let hit = hit.map(|hit| (hit.value, hit.is_stale));
                assert!(stale == Stale::Allow || !hit.is_some_and(|(_, is_stale)| is_stale));
                self.reference.check_lookup(place, hit, stale == Stale::Allow, self.now());
            }
            Op::Load { place, found, ttl, tag, negative_ttl, refresh_after } => {
                self.load(place, found, ttl, tag, negative_ttl, refresh_after).await;
            }
            Op::LoadMany { namespace, returned } => self.load_many(namespace, returned).await,
            Op::Remove(place) => {
                self.cache(place).remove(KEYS[place.key]).await.unwrap();
                self.reference.remove(place);
            }
            Op::RemoveTag(namespace, tag) => {
                self.caches[namespace].remove_tag(TAGS[tag]).await.unwrap();
                self.reference
                    .remove_if(|place, version| place.namespace == namespace && version.tags.contains(&tag));
            }
            Op::RemoveMatching(namespace, pattern) => {
                self.caches[namespace].remove_matching(&Pattern::new(pattern).unwrap()).await.unwrap();
                let is_match = |key: &str| match pattern {
                    "*" => true,
                    "*b*" => key.contains('b'),
                    _ => false,
                };
                self.reference
                    .remove_if(|place, _| place.namespace == namespace && is_match(KEYS[place.key]));
            }
            Op::Clear(namespace) => {
                self.caches[namespace].clear().await.unwrap();
                self.reference.remove_if(|place, _| place.namespace == namespace);
            }
            Op::Expire(place, ttl) => {
                let was_there = self.cache(place).expire(KEYS[place.key], millis(ttl)).await.unwrap();
                self.settle().await;
                if ttl == 0 {
                    self.reference.remove(place);
                } else {
                    let renewed = self.version(Some(0), ttl, Vec::new());
                    self.reference.check_expire(place, was_there, &renewed, self.now());
                }
            }
            Op::Advance(ms) => self.clock.advance(Duration::from_millis(ms)),
            Op::JumpWall(direction) => {
                let now = Clock::from(self.clock.clone()).wall_ms();
                let jump = YEAR_MS.wrapping_mul(direction as u64);
                self.clock.set_wall_ms(now.wrapping_add(jump));
                self.reference.jump();
            }
            Op::Sweep => drop(self.caches[0].sweep().await),
            Op::Restart => {
                self.feel(Mood::Well).await;
                // No process restarts within one tick of its clock.
                self.clock.advance(Duration::from_millis(1));
                self.caches = build(&self.setup, &self.clock, &self.tiers);
                if self.tiers.is_empty() {
                    self.reference.remove_if(|_, _| true);
                }
            }
            Op::Feel(mood) => self.feel(mood).await,
        }
        self.settle().await;
    }

    async fn feel(&mut self, mood: Mood) {
        let Some(tier) = &self.faulty else { return };
        tier.feel(mood);
        self.caches[0].recover().await;
    }

    async fn load(
        &mut self,
        place: Place,
        found: Found,
        ttl: Option<u64>,
        tag: Option<usize>,
        negative_ttl: u64,
        refresh_after: bool,
    ) {
        let value = self.value();
        let mut options = self.cache(place).options().negative_ttl(millis(negative_ttl));
        if refresh_after {
            options = options.refresh_after(0.5);
        }
        let default_ttl = options.ttl.as_millis() as u64;
        let called: Arc<Mutex<Option<Option<u64>>>> = Arc::default();
        let load = {
            let called = Arc::clone(&called);
            move |context: LoadContext<u64>| async move {
                let before = called.lock().unwrap().replace(context.previous().copied());
                assert!(before.is_none(), "the loader ran twice");
                let loaded = match found {
                    Found::Value => Loaded::new(value),
                    Found::Absent => Loaded::absent(),
                    Found::Error => return Err("the source is down"),
                    Found::NotModified => Loaded::not_modified(),
                    Found::Declined => Loaded::new(value).do_not_store(),
                };
                let loaded = tag.into_iter().fold(loaded, |loaded, tag| loaded.tag(TAGS[tag]));
                Ok(match ttl {
                    Some(ttl) => loaded.ttl(millis(ttl)),
                    None => loaded,
                })
            }
        };
        let started = self.now();
        let answer = self.cache(place).get_or_load_with(KEYS[place.key], &options, load).await;
        self.settle().await;
        let called = *called.lock().unwrap();
        // The loader's own value, or one from before it ran.
        let is_new = called.is_some() && matches!(found, Found::Value | Found::Declined);
        match &answer {
            Ok(got) if is_new && *got == value => {}
            Ok(got) => {
                let by_loader = called.is_some() && matches!(found, Found::NotModified | Found::Error);
                self.reference.check_served(place, *got, called.is_some(), by_loader, started);
            }
            Err(error) => match error.kind() {
                ErrorKind::NotFound => {
                    let is_due = called.is_some() && matches!(found, Found::Absent);
                    assert!(is_due || self.reference.knows_absence(place, started), "{place:?}: {error}");
                }
                ErrorKind::Loader => {
                    let called = called.expect("only a loader fails");
                    assert!(match found {
                        Found::Error => true,
                        Found::NotModified => called.is_none(),
                        _ => false,
                    });
                    self.reference.check_failed(place, started);
                }
                _ => panic!("{error}"),
            },
        }
        let Some(previous) = called else { return };
        if !refresh_after {
            self.reference.check_called(place, started);
        }
        if let Some(previous) = previous {
            self.reference.check_previous(place, previous);
        }
        let of_loader: Vec<usize> = tag.into_iter().collect();
        let version = match (found, previous) {
            (Found::Value, _) => self.version(Some(value), ttl.unwrap_or(default_ttl), of_loader),
            (Found::NotModified, Some(previous)) => {
                let mut tags = self.reference.tags(place, previous);
                tags.extend(of_loader);
                let renewed = self.version(Some(previous), ttl.unwrap_or(default_ttl), tags);
                if self.tiers.is_empty() { renewed } else { renewed.may_be_lost() }
            }
            (Found::Absent, _) => self.version(None, ttl.unwrap_or(negative_ttl), of_loader),
            _ => return,
        };
        self.reference.store_loaded(place, version);
    }

    async fn load_many(&mut self, namespace: usize, returned: [bool; 3]) {
        let values = [self.value(), self.value(), self.value()];
        let cache = self.caches[namespace].clone();
        let missing: Arc<Mutex<Vec<String>>> = Arc::default();
        let load = {
            let missing = Arc::clone(&missing);
            move |keys: Vec<String>| async move {
                let found: HashMap<String, u64> = keys
                    .iter()
                    .filter_map(|key| {
                        let key_index = KEYS.iter().position(|known| known == key).unwrap();
                        returned[key_index].then(|| (key.clone(), values[key_index]))
                    })
                    .collect();
                *missing.lock().unwrap() = keys;
                Ok::<_, String>(found)
            }
        };
        let started = self.now();
        let keys = KEYS.map(str::to_owned);
        let answers = cache.get_many_or_load(&keys, &cache.options(), load).await;
        self.settle().await;
        let missing = missing.lock().unwrap().clone();
        for (key, answer) in answers.into_iter().enumerate() {
            let place = Place { namespace, key };
            let is_loaded = missing.iter().any(|missing| missing == KEYS[key]);
            let answer = answer.unwrap();
            let loaded = returned[key].then_some(values[key]);
            if !(is_loaded && answer == loaded) {
                match answer {
                    Some(got) => self.reference.check_served(place, got, is_loaded, false, started),
                    None => assert!(self.reference.knows_absence(place, started), "{place:?} is not absent"),
                }
            }
            if is_loaded {
                self.reference.check_called(place, started);
                let ttl = if loaded.is_some() { cache.options().ttl } else { cache.options().negative_ttl };
                let version = self.version(loaded, ttl.as_millis() as u64, Vec::new());
                self.reference.store_loaded(place, version);
            }
        }
    }
}

fn build(setup: &Setup, clock: &ManualClock, tiers: &[Arc<dyn Backend>]) -> [Cache<String, u64>; 2] {
    let mut options = EntryOptions::default()
        .ttl(Duration::from_secs(5))
        .stale_while_revalidate(millis(setup.stale_while_revalidate))
        .stale_on_error(millis(setup.stale_on_error))
        // A throttled entry is a special case of a stale one that is left to its own test.
        .stale_on_error_throttle(Duration::ZERO);
    options.is_sliding = setup.is_sliding;
    let builder =
        Cache::builder().clock(Clock::from(clock.clone())).entries_max(setup.entries_max).defaults(options);
    let builder = match tiers {
        [] => builder,
        _ => tiers.iter().fold(builder, |builder, tier| builder.tier(Arc::clone(tier))),
    };
    let cache = builder.build().unwrap();
    let other = cache.namespace(&Namespace::new("other").unwrap());
    [cache, other]
}

fn millis(ms: u64) -> Duration {
    if ms == u64::MAX { Duration::MAX } else { Duration::from_millis(ms) }
}

fn tags(tag: Option<usize>) -> Tags {
    Tags::new(tag.map(|tag| TAGS[tag])).unwrap()
}

fn check(setup: &Setup, ops: &[Op]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let mut world = World::new(setup.clone()).await;
        for op in ops {
            world.run(op).await;
        }
    });
}

fn cases(default: u32) -> ProptestConfig {
    let cases = std::env::var("LARDER_MODEL_CASES").ok().and_then(|cases| cases.parse().ok());
    ProptestConfig { cases: cases.unwrap_or(default), failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(3000))]
    #[test]
    fn in_memory(setup in setup(Just(Below::Nothing)), ops in prop::collection::vec(op(), 1..40)) {
        check(&setup, &ops);
    }

    #[test]
    fn over_tiers(
        setup in setup(prop_oneof![Just(Below::Memory), Just(Below::TwoMemories)]),
        ops in prop::collection::vec(op(), 1..40),
    ) {
        check(&setup, &ops);
    }

    #[test]
    fn over_a_tier_that_fails(setup in setup(Just(Below::Faulty)), ops in prop::collection::vec(op(), 1..40)) {
        check(&setup, &ops);
    }
}

#[cfg(feature = "sqlite")]
proptest! {
    #![proptest_config(cases(300))]
    #[test]
    fn over_sqlite(setup in setup(Just(Below::Sqlite)), ops in prop::collection::vec(op(), 1..40)) {
        check(&setup, &ops);
    }
}
