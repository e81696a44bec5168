//! Which server has a store: the one there is, the master that sentinels name, or the node of a cluster that
//! has the slot. Learns a cluster's slots anew when a node says that one has moved, or doesn't answer; while a
//! slot is on its way, follows it key by key ([`moving`](super::moving)).

use super::RedisOptions;
use super::batch::{array, number};
use super::fault::Failure;
use super::layout::{SLOTS, Store};
use super::link::{Link, LinkSettings, Replies, Step, Target, same_kind};
use crate::backend::Read;
use crate::clock::Clock;
use crate::key::EntryKey;
use crate::tier::before;
use redis::{ConnectionAddr, ConnectionInfo, Value};
use std::collections::HashMap;
use std::fmt;
use std::future::{Future, poll_fn};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// How long a node may take to say which slots there are, before the next one is asked.
const ASKING_MAX: Duration = Duration::from_millis(300);
/// For so long after nobody could say it, nobody is asked.
const ASKING_PAUSE: Duration = Duration::from_millis(100);
/// How often a request follows a slot that moves.
const MOVES_MAX: usize = 3;
/// Most nodes kept a connection to; a cluster has at most a thousand.
const NODES_MAX: usize = 4096;

pub(super) struct Router {
    pub(super) settings: Arc<LinkSettings>,
    servers: Servers,
    origin: u64,
    is_closed: AtomicBool,
}

enum Servers {
    One(Arc<Link>),
    Cluster(Box<Cluster>),
}

struct Cluster {
    like: ConnectionInfo,
    seeds: Vec<Arc<Link>>,
    /// Nodes by their addresses: masters, and whom a node said to ask.
    nodes: Mutex<HashMap<String, Arc<Link>>>,
    /// `None` when it has to be learned.
    map: Mutex<Option<Arc<SlotMap>>>,
    /// Why it could not be learned, and when.
    failed: Mutex<Option<(Instant, Failure)>>,
    /// One learns, the others wait for that.
    turns: Semaphore,
}

/// The masters of a cluster.
struct SlotMap {
    /// For each slot the place of its master in `masters`; `u16::MAX` for none.
    by_slot: Vec<u16>,
    masters: Vec<Arc<Link>>,
}

impl Router {
    /// # Errors
    /// [`ErrorKind::Config`](crate::ErrorKind::Config), naming the setting and what is allowed.
    pub(super) fn of(options: &RedisOptions) -> crate::Result<Self> {
        let servers = options.parse()?;
        let origin = fastrand::u64(1..);
        let settings = Arc::new(LinkSettings {
            prefix: options.prefix.clone(),
            shards: options.shards,
            batch_max: options.batch_max,
            connect_timeout: options.connect_timeout,
            response_timeout: options.response_timeout,
            clock: options.clock.clone(),
            origin: format!("{origin:016x}"),
        });
        let link = |target| Arc::new(Link::new(target, settings.clone()));
        let first = servers[0].clone();
        let servers = match options.sentinel_master.clone() {
            _ if options.cluster => Servers::Cluster(Box::new(Cluster {
                like: first,
                seeds: servers.into_iter().map(|seed| link(Target::Server(seed))).collect(),
                nodes: Mutex::default(),
                map: Mutex::default(),
                failed: Mutex::default(),
                turns: Semaphore::new(1),
            })),
            None => Servers::One(link(Target::Server(first))),
            Some(master) => {
                let server = first.redis_settings().clone();
                Servers::One(link(Target::Sentinels { sentinels: servers, master, server }))
            }
        };
        Ok(Router { settings, servers, origin, is_closed: AtomicBool::new(false) })
    }

    /// What its records in the log are known by.
    pub(super) fn origin(&self) -> u64 {
        self.origin
    }

    /// A ticket for a store, and an entry if there is a key.
    pub(super) async fn read(&self, store: &Store, key: Option<&EntryKey>) -> Result<Read, Failure> {
        let mut moves = 0;
        loop {
            let answer = self.link(store.slot()).await?.read(store, key).await;
            let Err(failure) = &answer else { return answer };
            if failure.is_moving() {
                return self.read_moving(store, key).await;
            }
            self.learn_from(failure);
            moves += 1;
            if !failure.is_moved() || moves > MOVES_MAX {
                return answer;
            }
        }
    }

    /// Reads many, in order. All nodes are asked at once.
    pub(super) async fn read_all(&self, wanted: &[(Store, &EntryKey)]) -> Vec<Result<Read, Failure>> {
        let mut reads: Vec<_> = wanted.iter().map(|_| Err(Failure::Nonsense("no answer"))).collect();
        let mut by_node: HashMap<usize, (Arc<Link>, Vec<usize>)> = HashMap::new();
        for (place, (store, _)) in wanted.iter().enumerate() {
            match self.link(store.slot()).await {
                Ok(link) => {
                    let node = Arc::as_ptr(&link).addr();
                    by_node.entry(node).or_insert_with(|| (link, Vec::new())).1.push(place);
                }
                // A slot without a node takes no others with it.
                Err(failure) => reads[place] = Err(failure),
            }
        }
        let asked = at_once(by_node.into_values().map(async |(link, places)| {
            let of_node: Vec<(Store, &EntryKey)> =
                places.iter().map(|place| wanted[*place].clone()).collect();
            (places, link.read_all(&of_node).await)
        }));
        let mut refused = Vec::new();
        for (places, found) in asked.await {
            for (place, read) in places.into_iter().zip(found) {
                if let Err(failure) = &read {
                    self.learn_from(failure);
                    if failure.is_moved() || failure.is_moving() {
                        refused.push(place);
                    }
                }
                reads[place] = read;
            }
        }
        let again = at_once(refused.into_iter().map(async |place| {
            let (store, key) = &wanted[place];
            (place, self.read(store, Some(key)).await)
        }));
        for (place, read) in again.await {
            reads[place] = read;
        }
        reads
    }

    /// Runs a step where its store is.
    pub(super) async fn run(&self, slot: u16, step: impl Fn() -> Step) -> Result<Value, Failure> {
        let mut replies = self.run_together(slot, || vec![step()]).await?;
        replies.pop().ok_or(Failure::Nonsense("no answer to a step"))
    }

    /// Runs steps where the first one's store is, in one pipeline. The first one's refusal is that of all.
    pub(super) async fn run_together(
        &self,
        slot: u16,
        steps: impl Fn() -> Vec<Step>,
    ) -> Result<Vec<Value>, Failure> {
        let mut moves = 0;
        let mut other: Option<Arc<Link>> = None;
        loop {
            let replies = match other.take() {
                None => self.link(slot).await?.run(steps()).await,
                Some(other) => run_asking(&other, steps()).await,
            };
            let answer = replies
                .and_then(|replies| replies.into_iter().map(|reply| reply.map_err(Failure::Reply)).collect());
            let Err(failure) = &answer else { return answer };
            self.learn_from(failure);
            moves += 1;
            // Only what was refused is repeated here; what was lost may have been done.
            if moves > MOVES_MAX {
                return answer;
            }
            match failure.asks() {
                Some((host, port)) => other = Some(self.node(host, port)?),
                None if failure.is_moved() => {}
                None => return answer,
            }
        }
    }

    /// Runs steps of one slot in order, in one round trip; those that were refused because it moves, again.
    pub(super) async fn run_all(&self, slot: u16, steps: Vec<Step>) -> Result<Replies, Failure> {
        let again = matches!(self.servers, Servers::Cluster(_)).then(|| steps.clone());
        let replies = self.link(slot).await?.run(steps).await;
        let mut replies = replies.inspect_err(|failure| self.learn_from(failure))?;
        for (step, reply) in again.into_iter().flatten().zip(&mut replies) {
            let Err(refused) = &*reply else { continue };
            let refused = Failure::Reply(refused.clone());
            self.learn_from(&refused);
            if refused.is_moved() || refused.is_moving() {
                *reply = match self.run(slot, || step.clone()).await {
                    Ok(value) => Ok(value),
                    Err(Failure::Reply(refused)) => Err(refused),
                    Err(failure) => return Err(failure),
                };
            }
        }
        Ok(replies)
    }

    /// All masters.
    pub(super) async fn links(&self) -> Result<Vec<Arc<Link>>, Failure> {
        match &self.servers {
            Servers::One(_) => Ok(vec![self.link(0).await?]),
            Servers::Cluster(_) if self.is_closed() => Err(Failure::Closed),
            Servers::Cluster(cluster) => Ok(self.slot_map(cluster).await?.masters.clone()),
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
            Servers::Cluster(cluster) => {
                locked(&cluster.map).take();
                cluster.seeds.iter().for_each(|link| link.close());
                locked(&cluster.nodes).drain().for_each(|(_, link)| link.close());
            }
        }
    }

    async fn link(&self, slot: u16) -> Result<Arc<Link>, Failure> {
        if self.is_closed.load(Relaxed) {
            return Err(Failure::Closed);
        }
        let cluster = match &self.servers {
            Servers::One(link) => return Ok(link.clone()),
            Servers::Cluster(cluster) => cluster,
        };
        let map = self.slot_map(cluster).await?;
        let place = map.by_slot[usize::from(slot)];
        let link = map.masters.get(usize::from(place)).cloned();
        link.ok_or(Failure::Nonsense("no node of the cluster has the slot"))
    }

    /// A node by its address. One that isn't known yet is about to get its first slot.
    fn node(&self, host: &str, port: u16) -> Result<Arc<Link>, Failure> {
        let Servers::Cluster(cluster) = &self.servers else {
            return Err(Failure::Nonsense("a single server has no slots to move"));
        };
        let Cluster { like, nodes, .. } = &**cluster;
        let host = match (host, like.addr()) {
            // A node that doesn't know its own address yet: the one that was asked.
            ("" | "?", ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. }) => host,
            (host, _) => host,
        };
        let mut nodes = locked(nodes);
        if nodes.len() >= NODES_MAX {
            return Err(Failure::Nonsense("the cluster names more nodes than there can be"));
        }
        let link = nodes.entry(format!("{host}:{port}")).or_insert_with(|| {
            let info = like.clone().set_addr(same_kind(like.addr(), host.to_owned(), port));
            Arc::new(Link::new(Target::Server(info), self.settings.clone()))
        });
        Ok(link.clone())
    }

    /// If the slots have to be learned anew. The connections stay: what is under way on them goes on.
    fn learn_from(&self, failure: &Failure) {
        if let Servers::Cluster(cluster) = &self.servers
            && (failure.is_moved() || is_lost(failure))
        {
            locked(&cluster.map).take();
        }
    }

    async fn slot_map(&self, cluster: &Cluster) -> Result<Arc<SlotMap>, Failure> {
        let known = || locked(&cluster.map).clone();
        if let Some(map) = known() {
            return Ok(map);
        }
        let _turn = cluster.turns.acquire().await.map_err(|_| Failure::Closed)?;
        if let Some(map) = known() {
            return Ok(map);
        }
        let mut last = Failure::Nonsense("no node of the cluster answers");
        if let Some((at, failure)) = locked(&cluster.failed).clone()
            && at.elapsed() < ASKING_PAUSE
        {
            return Err(failure);
        }
        let nodes: Vec<Arc<Link>> = locked(&cluster.nodes).values().cloned().collect();
        for link in nodes.iter().chain(&cluster.seeds) {
            let mut ask = redis::cmd("CLUSTER");
            ask.arg("SLOTS");
            // A node that is frozen must not keep the others from being asked.
            let answer = before(&Clock::system(), ASKING_MAX, link.command(ask)).await;
            let learned = answer
                .unwrap_or(Err(Failure::TimedOut(ASKING_MAX)))
                .and_then(|slots| self.parse_slots(slots));
            match learned {
                Ok(learned) => {
                    locked(&cluster.nodes)
                        .retain(|_, node| learned.masters.iter().any(|master| Arc::ptr_eq(master, node)));
                    let learned = Arc::new(learned);
                    *locked(&cluster.map) = Some(learned.clone());
                    return Ok(learned);
                }
                Err(failure) => last = failure,
            }
        }
        *locked(&cluster.failed) = Some((Instant::now(), last.clone()));
        Err(last)
    }

    /// The answer of `CLUSTER SLOTS`. Known nodes keep their connections.
    fn parse_slots(&self, slots: Value) -> Result<SlotMap, Failure> {
        let mut learned = SlotMap { by_slot: vec![u16::MAX; usize::from(SLOTS)], masters: Vec::new() };
        for range in array(slots)? {
            let range = array(range)?;
            let [from, to, master, ..] = &range[..] else { continue };
            let (Some(from), Some(to), Value::Array(master)) = (number(from), number(to), master) else {
                continue;
            };
            let [Value::BulkString(host), port, ..] = &master[..] else { continue };
            let Some(port) = number(port).and_then(|port| u16::try_from(port).ok()) else { continue };
            let link = self.node(&String::from_utf8_lossy(host), port)?;
            let known = learned.masters.iter().position(|master| Arc::ptr_eq(master, &link));
            let place = known.unwrap_or_else(|| {
                learned.masters.push(link);
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

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs steps at a node that is about to get their slot.
async fn run_asking(link: &Link, steps: Vec<Step>) -> Result<Replies, Failure> {
    let asking = steps.into_iter().flat_map(|step| [Step::Plain(redis::cmd("ASKING")), step]).collect();
    let replies = link.run(asking).await?;
    Ok(replies.into_iter().skip(1).step_by(2).collect())
}

/// Runs futures at the same time, in this task; their outputs are in order.
pub(super) async fn at_once<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut futures: Vec<_> = futures.map(Box::pin).collect();
    let mut outputs: Vec<Option<F::Output>> = futures.iter().map(|_| None).collect();
    poll_fn(|cx| {
        let mut is_pending = false;
        for (future, output) in futures.iter_mut().zip(&mut outputs).filter(|(_, output)| output.is_none()) {
            match future.as_mut().poll(cx) {
                Poll::Ready(value) => *output = Some(value),
                Poll::Pending => is_pending = true,
            }
        }
        if is_pending { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
    outputs.into_iter().flatten().collect()
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
            Servers::Cluster(cluster) => write!(f, "Cluster({})", cluster.like.addr()),
        }
    }
}
