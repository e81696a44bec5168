//! Which server has a store: the one there is, the master that sentinels name, or the node of a cluster that
//! has the slot. Learns a cluster's slots anew when a node says that one has moved, or doesn't answer.

use super::batch::{array, number};
use super::fault::Failure;
use super::layout::{SLOTS, Store};
use super::link::{Link, LinkSettings, Replies, Step, Target, same_kind};
use crate::backend::Read;
use crate::clock::Clock;
use crate::key::EntryKey;
use crate::tier::before;
use redis::{ConnectionInfo, Value};
use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long a node may take to say which slots there are, before the next one is asked.
const ASKING_MAX: Duration = Duration::from_millis(300);
/// How often a request follows a slot that moves.
const MOVES_MAX: usize = 3;

pub(super) struct Router {
    settings: Arc<LinkSettings>,
    servers: Servers,
    is_closed: AtomicBool,
}

enum Servers {
    One(Arc<Link>),
    Cluster { seeds: Vec<ConnectionInfo>, map: Mutex<Option<Arc<SlotMap>>> },
}

/// The masters of a cluster.
struct SlotMap {
    /// For each slot the place of its master in `masters`; `u16::MAX` for none.
    by_slot: Vec<u16>,
    masters: Vec<(String, Arc<Link>)>,
}

impl Router {
    pub(super) fn new(
        servers: Vec<ConnectionInfo>,
        is_cluster: bool,
        sentinel_master: Option<String>,
        settings: LinkSettings,
    ) -> Self {
        let settings = Arc::new(settings);
        let first = servers[0].clone();
        let servers = match sentinel_master {
            _ if is_cluster => Servers::Cluster { seeds: servers, map: Mutex::new(None) },
            None => Servers::One(Arc::new(Link::new(Target::Server(first), settings.clone()))),
            Some(master) => {
                let server = first.redis_settings().clone();
                let target = Target::Sentinels { sentinels: servers, master, server };
                Servers::One(Arc::new(Link::new(target, settings.clone())))
            }
        };
        Router { settings, servers, is_closed: AtomicBool::new(false) }
    }

    /// A ticket for a store, and an entry if there is a key.
    pub(super) async fn read(&self, store: &Store, key: Option<&EntryKey>) -> Result<Read, Failure> {
        self.follow(store.slot(), |link| async move { link.read(store, key).await }).await
    }

    /// Reads many, in order.
    pub(super) async fn read_all(&self, wanted: &[(Store, &EntryKey)]) -> Vec<Result<Read, Failure>> {
        if let Servers::One(link) = &self.servers {
            if self.is_closed.load(Relaxed) {
                return wanted.iter().map(|_| Err(Failure::Closed)).collect();
            }
            return link.read_all(wanted).await;
        }
        let mut reads = Vec::with_capacity(wanted.len());
        // By node and so by round trip; a slot that moved is asked for again by itself.
        let mut by_slot: HashMap<u16, Vec<usize>> = HashMap::new();
        for (place, (store, _)) in wanted.iter().enumerate() {
            by_slot.entry(store.slot()).or_default().push(place);
        }
        reads.resize_with(wanted.len(), || Err(Failure::Nonsense("no answer")));
        for (slot, places) in by_slot {
            let of_slot: Vec<(Store, &EntryKey)> =
                places.iter().map(|place| wanted[*place].clone()).collect();
            let found = match self.link(slot).await {
                Ok(link) => link.read_all(&of_slot).await,
                Err(failure) => of_slot.iter().map(|_| Err(failure.clone())).collect(),
            };
            for (place, read) in places.into_iter().zip(found) {
                let (store, key) = &wanted[place];
                reads[place] = match read {
                    Err(failure) if failure.is_moved() => self.read(store, Some(key)).await,
                    read => read,
                };
            }
        }
        reads
    }

    /// Runs a step where its store is.
    pub(super) async fn run(&self, slot: u16, step: impl Fn() -> Step) -> Result<Value, Failure> {
        self.follow(slot, |link| {
            let steps = vec![step()];
            async move {
                let mut replies = link.run(steps).await?;
                replies.pop().ok_or(Failure::Nonsense("no answer to a step"))?.map_err(Failure::Reply)
            }
        })
        .await
    }

    /// Runs steps of one slot in order, in one round trip. A slot that moves fails them: each was refused.
    pub(super) async fn run_all(&self, slot: u16, steps: Vec<Step>) -> Result<Replies, Failure> {
        let replies = self.link(slot).await?.run(steps).await;
        let has_moved = |replies: &Replies| {
            replies.iter().any(|reply| reply.as_ref().is_err_and(|error| error.code() == "MOVED"))
        };
        if replies.as_ref().map_or_else(is_lost, has_moved) {
            self.forget();
        }
        replies
    }

    /// All masters.
    pub(super) async fn links(&self) -> Result<Vec<Arc<Link>>, Failure> {
        match &self.servers {
            Servers::One(_) => Ok(vec![self.link(0).await?]),
            Servers::Cluster { .. } if self.is_closed() => Err(Failure::Closed),
            Servers::Cluster { .. } => {
                Ok(self.slot_map().await?.masters.iter().map(|(_, link)| link.clone()).collect())
            }
        }
    }

    pub(super) fn is_cluster(&self) -> bool {
        matches!(self.servers, Servers::Cluster { .. })
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed.load(Relaxed)
    }

    pub(super) fn close(&self) {
        self.is_closed.store(true, Relaxed);
        match &self.servers {
            Servers::One(link) => link.close(),
            Servers::Cluster { map, .. } => {
                if let Some(map) = map.lock().unwrap_or_else(PoisonError::into_inner).take() {
                    map.masters.iter().for_each(|(_, link)| link.close());
                }
            }
        }
    }

    async fn follow<T, F>(&self, slot: u16, ask: impl Fn(Arc<Link>) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let mut moves = 0;
        loop {
            let answer = ask(self.link(slot).await?).await;
            let Err(failure) = &answer else { return answer };
            if failure.is_moved() || is_lost(failure) {
                self.forget();
            }
            moves += 1;
            // Only what was refused is repeated here; what was lost may have been done.
            if !failure.is_moved() || moves > MOVES_MAX || matches!(self.servers, Servers::One(_)) {
                return answer;
            }
        }
    }

    async fn link(&self, slot: u16) -> Result<Arc<Link>, Failure> {
        if self.is_closed.load(Relaxed) {
            return Err(Failure::Closed);
        }
        if let Servers::One(link) = &self.servers {
            return Ok(link.clone());
        }
        let map = self.slot_map().await?;
        let place = map.by_slot[usize::from(slot)];
        map.masters
            .get(usize::from(place))
            .map(|(_, link)| link.clone())
            .ok_or(Failure::Nonsense("no node of the cluster has the slot"))
    }

    /// The slots have to be learned anew. The connections stay: what is under way on them goes on.
    fn forget(&self) {
        if let Servers::Cluster { map, .. } = &self.servers {
            let mut map = map.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(known) = map.take() {
                let stale = SlotMap { by_slot: Vec::new(), masters: known.masters.clone() };
                *map = Some(Arc::new(stale));
            }
        }
    }

    async fn slot_map(&self) -> Result<Arc<SlotMap>, Failure> {
        let Servers::Cluster { seeds, map } = &self.servers else {
            return Err(Failure::Nonsense("a single server has no slots"));
        };
        let known = map.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(known) = known.as_ref().filter(|known| !known.by_slot.is_empty()) {
            return Ok(known.clone());
        }
        let masters = known.map(|known| known.masters.clone()).unwrap_or_default();
        let mut last = Failure::Nonsense("no node of the cluster answers");
        let known_links = masters.iter().map(|(_, link)| link.clone());
        let seed_links =
            seeds.iter().map(|seed| Arc::new(Link::new(Target::Server(seed.clone()), self.settings.clone())));
        for link in known_links.chain(seed_links) {
            let mut ask = redis::cmd("CLUSTER");
            ask.arg("SLOTS");
            // A node that is frozen must not keep the others from being asked.
            let answer = before(&Clock::system(), ASKING_MAX, link.command(ask)).await;
            let learned = answer
                .unwrap_or(Err(Failure::TimedOut(ASKING_MAX)))
                .and_then(|slots| self.parse_slots(slots, &seeds[0], &masters));
            match learned {
                Ok(learned) => {
                    let learned = Arc::new(learned);
                    *map.lock().unwrap_or_else(PoisonError::into_inner) = Some(learned.clone());
                    return Ok(learned);
                }
                Err(failure) => last = failure,
            }
        }
        Err(last)
    }

    /// The answer of `CLUSTER SLOTS`. Known nodes keep their connections.
    fn parse_slots(
        &self,
        slots: Value,
        like: &ConnectionInfo,
        known: &[(String, Arc<Link>)],
    ) -> Result<SlotMap, Failure> {
        let mut learned = SlotMap { by_slot: vec![u16::MAX; usize::from(SLOTS)], masters: Vec::new() };
        for range in array(slots)? {
            let range = array(range)?;
            let [from, to, master, ..] = &range[..] else { continue };
            let (Some(from), Some(to), Value::Array(master)) = (number(from), number(to), master) else {
                continue;
            };
            let [Value::BulkString(host), port, ..] = &master[..] else { continue };
            let Some(port) = number(port).and_then(|port| u16::try_from(port).ok()) else { continue };
            let host = match &String::from_utf8_lossy(host)[..] {
                // A node that doesn't know its own address yet: the one that was asked.
                "" => match like.addr() {
                    redis::ConnectionAddr::Tcp(host, _) | redis::ConnectionAddr::TcpTls { host, .. } => {
                        host.clone()
                    }
                    _ => continue,
                },
                host => host.to_owned(),
            };
            let address = format!("{host}:{port}");
            let place = learned.masters.iter().position(|(name, _)| *name == address).unwrap_or_else(|| {
                let link = known.iter().find(|(name, _)| *name == address).map(|(_, link)| link.clone());
                let link = link.unwrap_or_else(|| {
                    let info = like.clone().set_addr(same_kind(like.addr(), host, port));
                    Arc::new(Link::new(Target::Server(info), self.settings.clone()))
                });
                learned.masters.push((address, link));
                learned.masters.len() - 1
            });
            for slot in from..=to.min(u64::from(SLOTS) - 1) {
                learned.by_slot[slot as usize] = place as u16;
            }
        }
        if learned.masters.is_empty() {
            return Err(Failure::Nonsense("the server is no cluster, or one without slots"));
        }
        Ok(learned)
    }
}

/// The server doesn't answer, or no longer as a master: another may have taken its place.
fn is_lost(failure: &Failure) -> bool {
    matches!(failure, Failure::Connection(_) | Failure::TimedOut(_) | Failure::Replica)
        || matches!(failure, Failure::Reply(reply) if reply.code() == "READONLY")
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.servers {
            Servers::One(link) => link.fmt(f),
            Servers::Cluster { seeds, .. } => write!(f, "Cluster({})", seeds[0].addr()),
        }
    }
}
