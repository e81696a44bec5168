//! Time, the network and its failures, what is true, and what a read may see of it.

use super::authority::Authority;
use crate::backend::{Change, Hint};
use crate::clock::ManualClock;
use crate::key::{EntryKey, Namespace};
use fastrand::Rng;
use std::collections::BTreeMap;
use std::hash::Hasher;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::mpsc;
use xxhash_rust::xxh3::Xxh3Default;

pub(super) const NODES: usize = 3;
pub(super) const KEYS: usize = 4;
/// Every node's time goes on by this much at once.
pub(super) const TICK_MS: u64 = 5;
/// What is promised, and the coarseness of the simulation.
const CONNECTED_MS: u64 = 2000 + 2 * TICK_MS;
const CUT_OFF_MS: u64 = 5000 + 2 * TICK_MS;
/// The least a node waits for a reply in a network that is well.
const WELL_MS: u64 = 60;

/// What the authority is asked; it gives what delivers the answer.
pub(super) type Message = Box<dyn FnOnce(&mut Authority) -> Answer + Send>;
type Answer = Box<dyn FnOnce() + Send>;

/// Clones are the same one.
#[derive(Clone)]
pub(super) struct World(Arc<Mutex<State>>);

#[derive(Clone, Copy)]
struct Bound {
    at_ms: u64,
    version: u64,
    origin: u64,
    /// Whose it was, and the version that this node had given the key by then.
    node: usize,
    own: u64,
}

enum Letter {
    Ask(usize, Message),
    Answer(usize, Answer),
    Hint(usize, Hint),
}

pub(super) struct State {
    pub(super) now_ms: u64,
    pub(super) rng: Rng,
    pub(super) authority: Authority,
    /// The longest between two changes of one node.
    pub(super) write_every_ms: u64,
    clock: ManualClock,
    post: BTreeMap<(u64, u64), Letter>,
    letters: u64,
    /// Asked and never answered: the asker has to give up by itself.
    lost: Vec<Letter>,
    subscribers: Vec<Option<mpsc::Sender<Hint>>>,
    /// Until when a node is cut off; and when it last was, or its network was slow.
    cut_until: [u64; NODES],
    unwell_at: [u64; NODES],
    silent_until: u64,
    slow_until: u64,
    /// The version of each key in the source.
    pub(super) truth: [u64; KEYS],
    /// When the authority made everybody drop what is older than a version, but for the process that asked for it: that
    /// one passes its own records over, also one that it had given up and that arrived late.
    bound: [Vec<Bound>; KEYS],
    /// What records of each node's process carry.
    pub(super) origins: [u64; NODES],
    nodes: BTreeMap<u64, usize>,
    /// The versions that each node has given.
    pub(super) given: [[u64; KEYS]; NODES],
    /// What was acknowledged on a node.
    acknowledged: [[u64; KEYS]; NODES],
    /// Keys that somebody is about to change: the source has one writer per key at a time.
    pub(super) locked: [bool; KEYS],
    pub(super) violation: Option<String>,
    trace: Xxh3Default,
    is_traced: bool,
    pub(super) reads: u64,
    pub(super) writes: u64,
}

/// In every other run there are few changes, so that what is missed is not soon repaired by the next one.
fn is_calm(seed: u64) -> bool {
    seed.is_multiple_of(2)
}

pub(super) fn tag_of(key: usize) -> &'static str {
    if key.is_multiple_of(2) { "even" } else { "odd" }
}

pub(super) fn entry_key(key: usize) -> EntryKey {
    EntryKey::new(&Namespace::default(), &(key as u64)).unwrap()
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let clock = ManualClock::new();
        World(Arc::new(Mutex::new(State {
            now_ms: 0,
            rng: Rng::with_seed(seed),
            authority: Authority::new(clock.clone(), if is_calm(seed) { 3 } else { 12 }),
            write_every_ms: if is_calm(seed) { 4000 } else { 900 },
            clock,
            post: BTreeMap::new(),
            letters: 0,
            lost: Vec::new(),
            subscribers: (0..NODES).map(|_| None).collect(),
            cut_until: [0; NODES],
            unwell_at: [0; NODES],
            silent_until: 0,
            slow_until: 0,
            truth: [1; KEYS],
            bound: Default::default(),
            origins: [0; NODES],
            nodes: BTreeMap::new(),
            given: [[0; KEYS]; NODES],
            acknowledged: [[0; KEYS]; NODES],
            locked: [false; KEYS],
            violation: None,
            trace: Xxh3Default::new(),
            is_traced: std::env::var_os("LARDER_TEST_TRACE").is_some(),
            reads: 0,
            writes: 0,
        })))
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(super) fn send(&self, node: usize, message: Message) {
        let mut state = self.state();
        let delay = state.delay(node);
        state.post(delay, Letter::Ask(node, message));
    }

    pub(super) fn subscribe(&self, node: usize) -> mpsc::Receiver<Hint> {
        let (sender, hints) = mpsc::channel(64);
        self.state().subscribers[node] = Some(sender);
        hints
    }

    /// What was sent long enough ago arrives.
    pub(super) fn tick(&self) {
        self.state().advance();
        loop {
            let answer = {
                let mut state = self.state();
                let Some((&(at, number), _)) = state.post.first_key_value() else { return };
                if at > state.now_ms {
                    return;
                }
                let letter = state.post.remove(&(at, number)).unwrap();
                state.deliver(letter)
            };
            // Wakes a task, which may send something itself.
            if let Some(answer) = answer {
                answer();
            }
        }
    }

    /// A read of `node` that began at `began_ms` saw a version.
    pub(super) fn saw(&self, node: usize, key: usize, began: (u64, u64), version: u64, how: &str) {
        let mut state = self.state();
        state.reads += 1;
        state.record(&[1, node as u64, key as u64, version]);
        let (began_ms, own) = began;
        let own = own.min(state.acknowledged[node][key]);
        let others = state.least(node, key, began_ms);
        state.say(|| format!("node {node} key {key} saw {version} by {how} since {began_ms}"));
        let now_ms = state.now_ms;
        if version < own.max(others.1) && state.violation.is_none() {
            state.violation = Some(format!(
                "{how} on node {node} of key {key}, {began_ms} to {now_ms}: version {version}; {own} was acknowledged there, \
                 and the authority was told of {} at {}",
                others.1, others.0
            ));
        }
    }

    /// What a read that begins now has to be measured by.
    pub(super) fn begin(&self, node: usize, key: usize) -> (u64, u64) {
        let state = self.state();
        (state.now_ms, state.acknowledged[node][key])
    }

    pub(super) fn acknowledge(&self, node: usize, key: usize, version: u64) {
        let mut state = self.state();
        state.writes += 1;
        state.record(&[2, node as u64, key as u64, version]);
        state.say(|| format!("node {node} key {key} acknowledges {version}"));
        let known = &mut state.acknowledged[node][key];
        *known = (*known).max(version);
    }

    /// Tells of what happens, where `LARDER_TEST_TRACE` asks for it.
    pub(super) fn say(&self, what: impl FnOnce() -> String) {
        self.state().say(what);
    }

    pub(super) fn fail(&self, what: String) {
        self.state().violation.get_or_insert(what);
    }

    pub(super) fn trace(&self) -> u64 {
        self.state().trace.digest()
    }
}

impl State {
    fn record(&mut self, words: &[u64]) {
        let now_ms = self.now_ms;
        words.iter().chain([&now_ms]).for_each(|word| self.trace.write_u64(*word));
    }

    pub(super) fn say(&self, what: impl FnOnce() -> String) {
        if self.is_traced {
            println!("{:6} {}", self.now_ms, what());
        }
    }

    fn advance(&mut self) {
        self.now_ms += TICK_MS;
        self.clock.advance(std::time::Duration::from_millis(TICK_MS));
        for node in 0..NODES {
            if self.now_ms < self.cut_until[node].max(self.silent_until).max(self.slow_until) {
                self.unwell_at[node] = self.now_ms;
            }
        }
        // Per tick of 5 ms, so that each comes about every few seconds.
        let chance = |rng: &mut Rng, one_in: u32| rng.u32(..one_in) == 0;
        if chance(&mut self.rng, 500) {
            let node = self.rng.usize(..NODES);
            self.cut_until[node] = self.now_ms + self.rng.u64(300..7000);
            self.say(|| format!("node {node} is cut off until {}", self.cut_until[node]));
        }
        if chance(&mut self.rng, 2000) {
            self.silent_until = self.now_ms + self.rng.u64(300..4000);
        }
        if chance(&mut self.rng, 2000) {
            self.slow_until = self.now_ms + self.rng.u64(300..3000);
        }
        if chance(&mut self.rng, 1200) {
            self.say(|| "the authority restarts empty".to_owned());
            self.authority.restart();
        }
        if chance(&mut self.rng, 150) {
            let key = self.rng.usize(..KEYS);
            self.authority.evict(&entry_key(key));
        }
    }

    /// A process begins.
    pub(super) fn boot(&mut self, node: usize, origin: u64) {
        self.origins[node] = origin;
        self.nodes.insert(origin, node);
    }

    /// A node that was down is not well.
    pub(super) fn was_down(&mut self, node: usize) {
        self.unwell_at[node] = self.now_ms;
        self.subscribers[node] = None;
    }

    fn post(&mut self, delay_ms: u64, letter: Letter) {
        self.letters += 1;
        self.post.insert((self.now_ms + delay_ms, self.letters), letter);
    }

    fn delay(&mut self, node: usize) -> u64 {
        let well = self.rng.u64(0..WELL_MS / 2);
        if self.now_ms < self.slow_until || self.rng.u32(..200) == 0 {
            self.unwell_at[node] = self.now_ms;
            return well + self.rng.u64(0..4000);
        }
        well
    }

    fn is_cut(&mut self, node: usize) -> bool {
        let is_lost = self.rng.u32(..100) == 0;
        if is_lost {
            self.unwell_at[node] = self.now_ms;
        }
        self.now_ms < self.cut_until[node].max(self.silent_until) || is_lost
    }

    fn deliver(&mut self, letter: Letter) -> Option<Answer> {
        match letter {
            Letter::Ask(node, message) => {
                if self.is_cut(node) {
                    // Half of the connections are seen to break.
                    if self.rng.bool() {
                        self.lost.push(Letter::Ask(node, message));
                    }
                    return None;
                }
                let answer = message(&mut self.authority);
                self.publish();
                let delay = self.delay(node);
                self.post(delay, Letter::Answer(node, answer));
                None
            }
            Letter::Answer(node, answer) => {
                if self.is_cut(node) {
                    if self.rng.bool() {
                        self.lost.push(Letter::Answer(node, answer));
                    }
                    return None;
                }
                Some(answer)
            }
            Letter::Hint(node, hint) => {
                if !self.is_cut(node)
                    && let Some(subscriber) = &self.subscribers[node]
                {
                    drop(subscriber.try_send(hint));
                }
                None
            }
        }
    }

    fn publish(&mut self) {
        for (record, version) in std::mem::take(&mut self.authority.fresh) {
            for key in 0..KEYS {
                let is_about = match &record.change {
                    Change::Removed(removed) => *removed == entry_key(key),
                    Change::Set(set, _) => *set == entry_key(key),
                    Change::Tag(tag) => **tag == *tag_of(key),
                    _ => true,
                };
                if is_about {
                    let version = version.unwrap_or(self.truth[key]);
                    self.record(&[3, key as u64, version, record.pos]);
                    self.say(|| format!("key {key} version {version}: {record:?}"));
                    let now_ms = self.now_ms;
                    if version < self.truth[key] {
                        // A set whose node gave it up arrives after later changes: by the authority's order it is
                        // the later one.
                        self.bound[key].retain(|bound| bound.version <= version);
                        self.acknowledged.iter_mut().for_each(|of| of[key] = of[key].min(version));
                    }
                    let node = self.nodes[&record.origin];
                    let own = self.given[node][key].min(version);
                    self.bound[key].push(Bound { at_ms: now_ms, version, origin: record.origin, node, own });
                }
            }
            for node in 0..NODES {
                // Lost, doubled, late, out of order.
                for _ in 0..self.rng.u32(0..3) {
                    let delay = self.rng.u64(0..400);
                    let hint = Hint { namespace: Namespace::default(), record: record.clone() };
                    self.post(delay, Letter::Hint(node, hint));
                }
            }
        }
    }

    /// The least version that a read may see that began at `began_ms`, and since when.
    fn least(&self, node: usize, key: usize, began_ms: u64) -> (u64, u64) {
        let is_due = |bound: &&Bound| {
            let most_ms = if self.unwell_at[node] < bound.at_ms { CONNECTED_MS } else { CUT_OFF_MS };
            bound.at_ms + most_ms < began_ms && bound.origin != self.origins[node]
        };
        // A later process of the same node has to know of what it changed itself, not of what others had by then.
        let least = |bound: &Bound| if bound.node == node { bound.own } else { bound.version };
        let due = self.bound[key].iter().filter(is_due).max_by_key(|bound| least(bound));
        due.map_or((0, 0), |bound| (bound.at_ms, least(bound)))
    }
}
