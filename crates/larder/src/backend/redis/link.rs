//! One server: a queue, a multiplexed connection, and a task that owns both.
//!
//! Callers put requests into the queue and wait for their own answer; the task sends what has gathered as one
//! pipeline ([`batch`](super::batch)). So a caller that leaves never leaves a reply behind: its answer goes to
//! a channel that nobody reads. The task connects when there is something to send, learns each time which
//! server it is and since when it has been master, and gives a connection up that failed, fell silent or leads
//! to a replica.

use super::batch::{Connected, Requests, Sent};
use super::fault::Failure;
use super::layout::Store;
use super::script::{self, Script};
use crate::backend::Read;
use crate::clock::Clock;
use crate::key::EntryKey;
use bytes::Bytes;
use redis::aio::AsyncPushSender;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionInfo, ProtocolVersion, RedisConnectionInfo, ServerError,
    Value,
};
use std::fmt;
use std::sync::Arc;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

/// Most requests that wait to be sent; more callers wait for a place, under their own deadlines.
const QUEUE_MAX: usize = 4096;
/// Batches under way at once: one is on the wire while the server works on another. What comes meanwhile
/// gathers, so that batches grow with the load.
const BATCHES_UNDER_WAY_MAX: usize = 2;
/// How often a subscription is asked whether it still is there.
const PING_EVERY: Duration = Duration::from_secs(1);
/// As many calls under way when each is sent by itself.
const CALLS_UNDER_WAY_MAX: usize = 1024;
/// For so long after a connection could not be made, whoever asks hears why, and no other is tried: callers
/// who come back at once must not become as many connections.
const DIAL_PAUSE: Duration = Duration::from_millis(100);

/// What all links of a backend share.
#[derive(Debug)]
pub(super) struct LinkSettings {
    pub(super) prefix: String,
    pub(super) shards: u32,
    pub(super) batch_max: usize,
    pub(super) connect_timeout: Duration,
    pub(super) response_timeout: Duration,
    pub(super) clock: Clock,
    /// Names this backend in log records: random, new at each start.
    pub(super) origin: String,
}

/// Where the server is.
#[derive(Clone)]
pub(super) enum Target {
    Server(ConnectionInfo),
    /// Whatever the first sentinel that answers says, with these credentials and database.
    Sentinels {
        sentinels: Vec<ConnectionInfo>,
        master: String,
        server: RedisConnectionInfo,
    },
}

/// What a caller asks for.
pub(super) enum Request {
    /// A ticket, and an entry if there is a key.
    Read { store: Store, key: Option<EntryKey>, answer: oneshot::Sender<Result<Read, Failure>> },
    /// Steps in this order, in one pipeline. Each has its own answer.
    Steps { steps: Vec<Step>, answer: oneshot::Sender<Result<Replies, Failure>> },
}

pub(super) type Replies = Vec<Result<Value, ServerError>>;

#[derive(Clone)]
pub(super) enum Step {
    Script { script: Script, store: Store, key: Option<EntryKey>, args: Vec<Bytes> },
    Plain(Cmd),
}

/// A server, connected or not.
pub(super) struct Link {
    target: Target,
    settings: Arc<LinkSettings>,
    /// To the task; `None` before the first request. Closed when the task's runtime has ended.
    queue: Mutex<Option<mpsc::Sender<Request>>>,
}

impl Link {
    pub(super) fn new(target: Target, settings: Arc<LinkSettings>) -> Self {
        Link { target, settings, queue: Mutex::new(None) }
    }

    /// A ticket, and an entry if there is a key.
    pub(super) async fn read(&self, store: &Store, key: Option<&EntryKey>) -> Result<Read, Failure> {
        let (answer, answered) = oneshot::channel();
        self.send(Request::Read { store: store.clone(), key: key.cloned(), answer }).await?;
        answered.await.unwrap_or(Err(Failure::Ended))
    }

    /// As [`read`](Self::read), of many: all are queued before the first answer is awaited.
    pub(super) async fn read_all(&self, wanted: &[(Store, &EntryKey)]) -> Vec<Result<Read, Failure>> {
        let mut queued = Vec::with_capacity(wanted.len());
        for (store, key) in wanted {
            let (answer, answered) = oneshot::channel();
            let request = Request::Read { store: store.clone(), key: Some((*key).clone()), answer };
            queued.push(self.send(request).await.map(|()| answered));
        }
        let mut reads = Vec::with_capacity(wanted.len());
        for answered in queued {
            reads.push(match answered {
                Ok(answered) => answered.await.unwrap_or(Err(Failure::Ended)),
                Err(failure) => Err(failure),
            });
        }
        reads
    }

    /// Runs steps in order, in one pipeline.
    pub(super) async fn run(&self, steps: Vec<Step>) -> Result<Replies, Failure> {
        let (answer, answered) = oneshot::channel();
        self.send(Request::Steps { steps, answer }).await?;
        answered.await.unwrap_or(Err(Failure::Ended))
    }

    /// Runs one command.
    pub(super) async fn command(&self, command: Cmd) -> Result<Value, Failure> {
        let mut replies = self.run(vec![Step::Plain(command)]).await?;
        replies.pop().ok_or(Failure::Nonsense("no answer to a command"))?.map_err(Failure::Reply)
    }

    /// Gives `take` what is published on channels that match, on a connection of its own, until that ends or falls
    /// silent. Fails silently: what is published are hints.
    pub(super) async fn subscribe(&self, pattern: &str, take: impl AsyncPushSender) {
        let subscribed = async {
            let info = match &self.target {
                Target::Server(info) => info.clone(),
                Target::Sentinels { sentinels, master, server } => {
                    let address = ask_sentinels(sentinels, master, self.settings.connect_timeout).await?;
                    address.set_redis_settings(server.clone())
                }
            };
            // Published messages come as pushes, which there are since version 3 of the protocol.
            let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
            let client = Client::open(info.set_redis_settings(settings)).map_err(Failure::Connection)?;
            let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
            let config = config.set_push_sender(take);
            let connection = client.get_multiplexed_async_connection_with_config(&config).await;
            let mut connection = connection.map_err(Failure::Connection)?;
            connection.psubscribe(pattern).await.map_err(Failure::Connection)?;
            Ok::<_, Failure>(connection)
        };
        let Ok(Ok(mut connection)) = tokio::time::timeout(self.settings.connect_timeout, subscribed).await
        else {
            return;
        };
        loop {
            tokio::time::sleep(PING_EVERY).await;
            let ping = redis::cmd("PING");
            let answer = connection.send_packed_command(&ping);
            if !matches!(tokio::time::timeout(self.settings.connect_timeout, answer).await, Ok(Ok(_))) {
                return;
            }
        }
    }

    /// Ends the task when what is queued is done.
    pub(super) fn close(&self) {
        *self.queue.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    async fn send(&self, request: Request) -> Result<(), Failure> {
        let queue = self.queue();
        queue.send(request).await.map_err(|_| Failure::Ended)
    }

    /// The way to the task, which is started if it doesn't run.
    fn queue(&self) -> mpsc::Sender<Request> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(queue) = queue.as_ref().filter(|queue| !queue.is_closed()) {
            return queue.clone();
        }
        let (sender, requests) = mpsc::channel(QUEUE_MAX);
        *queue = Some(sender.clone());
        let worker = Worker { target: self.target.clone(), settings: self.settings.clone(), requests };
        crate::runtime::spawn(worker.run());
        sender
    }
}

/// Without credentials.
impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            Target::Server(info) => write!(f, "Link({})", info.addr()),
            Target::Sentinels { master, .. } => write!(f, "Link(sentinel:{master})"),
        }
    }
}

/// The task. Ends when the last sender is gone.
struct Worker {
    target: Target,
    settings: Arc<LinkSettings>,
    requests: mpsc::Receiver<Request>,
}

impl Worker {
    async fn run(mut self) {
        let batch_max = self.settings.batch_max;
        let under_way_max = if batch_max == 1 { CALLS_UNDER_WAY_MAX } else { BATCHES_UNDER_WAY_MAX };
        let mut connected: Option<Arc<Connected>> = None;
        let mut refused: Option<(Instant, Failure)> = None;
        let mut under_way = JoinSet::new();
        let mut taken = Vec::with_capacity(batch_max);
        loop {
            while under_way.len() >= under_way_max {
                under_way.join_next().await;
            }
            while under_way.try_join_next().is_some() {}
            if self.requests.recv_many(&mut taken, batch_max).await == 0 {
                break;
            }
            if taken.len() < batch_max && batch_max > 1 {
                // Whoever was woken together with the first gets a chance to join it.
                tokio::task::yield_now().await;
                while taken.len() < batch_max
                    && let Ok(request) = self.requests.try_recv()
                {
                    taken.push(request);
                }
            }
            let requests: Requests = taken.drain(..).filter(Request::is_wanted).collect();
            if requests.is_empty() {
                continue;
            }
            let ready = match connected.take().filter(|connected| connected.is_usable()) {
                Some(ready) => ready,
                None => {
                    let known = refused.take().filter(|(at, _)| at.elapsed() < DIAL_PAUSE);
                    let made = match known {
                        Some(known) => Err(known),
                        None => connect(&self.target, &self.settings)
                            .await
                            .map_err(|failure| (Instant::now(), failure)),
                    };
                    match made {
                        Ok(ready) => Arc::new(ready),
                        Err((at, failure)) => {
                            requests.into_iter().for_each(|request| request.fail(&failure));
                            refused = Some((at, failure));
                            continue;
                        }
                    }
                }
            };
            connected = Some(ready.clone());
            let sent = Sent::new(ready, self.settings.clone(), requests);
            under_way.spawn(sent.run());
        }
        while under_way.join_next().await.is_some() {}
    }
}

impl Request {
    /// Whether its caller still waits.
    fn is_wanted(&self) -> bool {
        match self {
            Request::Read { answer, .. } => !answer.is_closed(),
            Request::Steps { answer, .. } => !answer.is_closed(),
        }
    }

    fn fail(self, failure: &Failure) {
        match self {
            Request::Read { answer, .. } => drop(answer.send(Err(failure.clone()))),
            Request::Steps { answer, .. } => drop(answer.send(Err(failure.clone()))),
        }
    }
}

async fn connect(target: &Target, settings: &LinkSettings) -> Result<Connected, Failure> {
    let limit = settings.connect_timeout;
    let attempt = async {
        match target {
            Target::Server(info) => handshake(info, settings).await,
            Target::Sentinels { sentinels, master, server } => {
                let address = ask_sentinels(sentinels, master, limit).await?;
                handshake(&address.set_redis_settings(server.clone()), settings).await
            }
        }
    };
    tokio::time::timeout(limit, attempt).await.unwrap_or(Err(Failure::TimedOut(limit)))
}

async fn open(info: &ConnectionInfo) -> Result<redis::aio::MultiplexedConnection, Failure> {
    let client = Client::open(info.clone()).map_err(Failure::Connection)?;
    // Each has a bound of larder's: `connect_timeout` around all of it, `response_timeout` around a batch.
    let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
    client.get_multiplexed_async_connection_with_config(&config).await.map_err(Failure::Connection)
}

/// Connects and learns who answers.
async fn handshake(info: &ConnectionInfo, settings: &LinkSettings) -> Result<Connected, Failure> {
    let mut connection = open(info).await?;
    let mut hello = redis::pipe();
    hello.cmd("INFO").arg("server").cmd("INFO").arg("replication");
    let replies = connection.send_packed_commands(&hello, 0, 2).await.map_err(Failure::Connection)?;
    let [server, replication] = <[Value; 2]>::try_from(replies).map_err(|_| Failure::Nonsense("INFO"))?;
    let run_id = info_field(&server, "run_id")?.ok_or(Failure::Nonsense("INFO names no run_id"))?;
    let reign = reign(&replication)?.ok_or(Failure::Replica)?;
    let name = format!("{}:shards", settings.prefix);
    let mut rest = redis::pipe();
    rest.cmd("SETNX").arg(&name).arg(settings.shards).cmd("GET").arg(&name);
    for load in script::load_all() {
        rest.add_command(load);
    }
    let mut replies =
        connection.send_packed_commands(&rest, 0, rest.len()).await.map_err(Failure::Connection)?.into_iter();
    // Without memory, or on another node of a cluster, SETNX and GET fail; the next connection asks again.
    if let Some(Value::BulkString(there)) = replies.nth(1) {
        let there = std::str::from_utf8(&there).ok().and_then(|there| there.parse().ok()).unwrap_or(0);
        if there != settings.shards {
            return Err(Failure::Shards { here: settings.shards, there });
        }
    }
    if let Some(Value::ServerError(refused)) = replies.find(|reply| matches!(reply, Value::ServerError(_))) {
        return Err(Failure::Reply(refused));
    }
    Ok(Connected::new(connection, &run_id, reign))
}

/// What changes whenever a server becomes a master; `None` for a replica. From `INFO replication`.
pub(super) fn reign(replication: &Value) -> Result<Option<String>, Failure> {
    if info_field(replication, "role")?.is_none_or(|role| role != "master") {
        return Ok(None);
    }
    info_field(replication, "master_replid")?
        .map(Some)
        .ok_or(Failure::Nonsense("INFO names no master_replid"))
}

/// A field of an `INFO` section.
pub(super) fn info_field(section: &Value, field: &str) -> Result<Option<String>, Failure> {
    let text = match section {
        Value::BulkString(text) => String::from_utf8_lossy(text),
        Value::VerbatimString { text, .. } => text.into(),
        Value::ServerError(refused) => return Err(Failure::Reply(refused.clone())),
        _ => return Err(Failure::Nonsense("INFO gave no text")),
    };
    let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    Ok(value.map(|value| value.trim().to_owned()))
}

/// The master's address, from the first sentinel that knows it.
async fn ask_sentinels(
    sentinels: &[ConnectionInfo],
    master: &str,
    limit: Duration,
) -> Result<ConnectionInfo, Failure> {
    // One that is frozen must not keep the others from being asked, nor the master from being greeted.
    let share = limit / (sentinels.len() as u32 + 1);
    let mut last = Failure::Nonsense("no sentinel knows the master");
    for sentinel in sentinels {
        let anonymous = sentinel.clone().set_redis_settings(RedisConnectionInfo::default());
        let asked = async {
            let mut connection = open(&anonymous).await?;
            let mut ask = redis::cmd("SENTINEL");
            ask.arg("get-master-addr-by-name").arg(master);
            connection.send_packed_command(&ask).await.map_err(Failure::Connection)
        };
        match tokio::time::timeout(share, asked).await.unwrap_or(Err(Failure::TimedOut(share))) {
            Ok(Value::Array(parts)) => {
                if let [Value::BulkString(host), Value::BulkString(port)] = &parts[..]
                    && let Ok(port) = String::from_utf8_lossy(port).parse()
                {
                    let host = String::from_utf8_lossy(host).into_owned();
                    return Ok(anonymous.clone().set_addr(same_kind(sentinel.addr(), host, port)));
                }
            }
            Ok(Value::ServerError(refused)) => last = Failure::Reply(refused),
            Ok(_) => {}
            Err(failure) => last = failure,
        }
    }
    Err(last)
}

/// An address with TLS if `like` has it.
pub(super) fn same_kind(like: &redis::ConnectionAddr, host: String, port: u16) -> redis::ConnectionAddr {
    match like {
        redis::ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
            redis::ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: tls_params.clone() }
        }
        _ => redis::ConnectionAddr::Tcp(host, port),
    }
}
