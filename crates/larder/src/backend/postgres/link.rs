//! Connections, and the tasks that own them.
//!
//! A caller puts a request into a [`Lane`] and waits for its own answer; the lane's task gathers what has come to
//! one statement ([`batch`](super::batch)) and gives it to a connection that nobody else uses meanwhile. So a
//! caller that leaves never leaves a reply behind, nor a transaction open: each statement is a transaction of its
//! own, and the answer goes to a channel that nobody reads.

use super::batch;
use super::fault::Failure;
use super::options::{PostgresOptions, Target};
use super::schema;
use super::sql::Sql;
use crate::backend::{Exchange, Put, PutOutcome, Read};
use crate::clock::Clock;
use crate::key::{EntryKey, Namespace};
use bytes::Bytes;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OnceCell, mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio_postgres::types::ToSql;
use tokio_postgres::{AsyncMessage, Client, Connection, NoTls, Notification, Row, Statement};

/// Most requests that wait to be sent; more callers wait for a place, under their own deadlines.
const QUEUE_MAX: usize = 4096;
/// Statements grow to so many bytes of envelopes; a larger envelope goes alone.
const BATCH_BYTES_MAX: usize = 4 << 20;

/// What all connections of a backend share.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) target: Target,
    pub(super) schema: String,
    pub(super) logged: bool,
    pub(super) batch_max: usize,
    pub(super) connect_timeout: Duration,
    pub(super) response_timeout: Duration,
    pub(super) clock: Clock,
    /// Names this backend in log records: random, new at each start.
    pub(super) origin: u64,
}

impl Settings {
    /// # Errors
    /// [`ErrorKind::Config`](crate::ErrorKind::Config), naming the setting and what is allowed.
    pub(super) fn of(options: &PostgresOptions) -> crate::Result<Arc<Self>> {
        Ok(Arc::new(Settings {
            target: options.parse()?,
            schema: options.schema.clone(),
            logged: options.logged,
            batch_max: options.batch_max,
            connect_timeout: options.connect_timeout,
            response_timeout: options.response_timeout,
            clock: options.clock.clone(),
            origin: fastrand::u64(..),
        }))
    }
}

/// One operation on an entry.
#[derive(Debug)]
pub(super) enum Op {
    Put(Put),
    Remove(EntryKey),
    Discard(EntryKey, Bytes),
    Exchange(Exchange),
    Quarantine(EntryKey, Bytes, &'static str),
}

/// What became of an operation.
#[derive(Clone, Copy, Debug)]
pub(super) enum Done {
    Put(PutOutcome),
    /// Whether there was an entry that was meant.
    Met(bool),
}

pub(super) type Answer<T> = oneshot::Sender<Result<T, Failure>>;
pub(crate) type Param = Box<dyn ToSql + Send + Sync>;

/// What a caller asks for.
pub(super) enum Request {
    /// A ticket, and an entry if there is a key.
    Read { namespace: Namespace, key: Option<EntryKey>, answer: Answer<Read> },
    /// Operations in one transaction, with others'. Each has its own answer.
    Write { ops: Vec<Op>, answer: Answer<Vec<Result<Done, Failure>>> },
    /// One statement by itself.
    Query { sql: Sql, params: Vec<Param>, answer: Answer<Vec<Row>> },
}

/// A queue, and so many connections as may be at work for it at once.
pub(super) struct Lane {
    settings: Arc<Settings>,
    width: usize,
    queue: Mutex<Queue>,
}

enum Queue {
    New,
    /// To the task. Closed when the task's runtime has ended.
    Open(mpsc::Sender<Request>),
    Closed,
}

impl Lane {
    pub(super) fn new(settings: Arc<Settings>, width: usize) -> Self {
        Lane { settings, width, queue: Mutex::new(Queue::New) }
    }

    pub(super) async fn read(&self, namespace: &Namespace, key: Option<&EntryKey>) -> Result<Read, Failure> {
        let (answer, answered) = oneshot::channel();
        self.send(Request::Read { namespace: namespace.clone(), key: key.cloned(), answer }).await?;
        answered.await.unwrap_or(Err(Failure::Ended))
    }

    /// As [`read`](Self::read), of many: all are queued before the first answer is awaited.
    pub(super) async fn read_all(&self, keys: &[EntryKey]) -> Vec<Result<Read, Failure>> {
        let mut queued = Vec::with_capacity(keys.len());
        for key in keys {
            let (answer, answered) = oneshot::channel();
            let request =
                Request::Read { namespace: key.namespace().clone(), key: Some(key.clone()), answer };
            queued.push(self.send(request).await.map(|()| answered));
        }
        let mut reads = Vec::with_capacity(keys.len());
        for answered in queued {
            reads.push(match answered {
                Ok(answered) => answered.await.unwrap_or(Err(Failure::Ended)),
                Err(failure) => Err(failure),
            });
        }
        reads
    }

    pub(super) async fn write(&self, op: Op) -> Result<Done, Failure> {
        self.write_all(vec![op]).await.pop().unwrap_or(Err(Failure::Nonsense("no answer to a write")))
    }

    /// Writes many, in as few transactions as the limits allow, one after the other: of two writes of one key the
    /// later one stays.
    pub(super) async fn write_all(&self, ops: Vec<Op>) -> Vec<Result<Done, Failure>> {
        let batch_max = self.settings.batch_max;
        let mut done = Vec::with_capacity(ops.len());
        let mut ops = ops.into_iter().peekable();
        while ops.peek().is_some() {
            let (mut chunk, mut bytes) = (Vec::new(), 0);
            while let Some(op) = ops.next_if(|op| {
                chunk.is_empty() || (chunk.len() < batch_max && bytes + op.bytes() <= BATCH_BYTES_MAX)
            }) {
                bytes += op.bytes();
                chunk.push(op);
            }
            let (length, (answer, answered)) = (chunk.len(), oneshot::channel());
            let answer = match self.send(Request::Write { ops: chunk, answer }).await {
                Ok(()) => answered.await.unwrap_or(Err(Failure::Ended)),
                Err(failure) => Err(failure),
            };
            match answer {
                Ok(answers) => done.extend(answers),
                Err(failure) => done.extend((0..length).map(|_| Err(failure.clone()))),
            }
        }
        done
    }

    pub(super) async fn query(&self, sql: Sql, params: Vec<Param>) -> Result<Vec<Row>, Failure> {
        let (answer, answered) = oneshot::channel();
        self.send(Request::Query { sql, params, answer }).await?;
        answered.await.unwrap_or(Err(Failure::Ended))
    }

    /// Ends the task when what is queued is done.
    pub(super) fn close(&self) {
        *self.queue.lock().unwrap_or_else(PoisonError::into_inner) = Queue::Closed;
    }

    async fn send(&self, request: Request) -> Result<(), Failure> {
        let queue = self.queue()?;
        queue.send(request).await.map_err(|_| Failure::Ended)
    }

    /// The way to the task, which is started if it doesn't run.
    fn queue(&self) -> Result<mpsc::Sender<Request>, Failure> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        match &*queue {
            Queue::Closed => return Err(Failure::Closed),
            Queue::Open(open) if !open.is_closed() => return Ok(open.clone()),
            _ => {}
        }
        let (sender, requests) = mpsc::channel(QUEUE_MAX);
        *queue = Queue::Open(sender.clone());
        let worker = Worker { settings: self.settings.clone(), width: self.width, requests };
        crate::runtime::spawn(worker.run());
        Ok(sender)
    }
}

/// The task of a lane. Ends when the last sender is gone.
struct Worker {
    settings: Arc<Settings>,
    width: usize,
    requests: mpsc::Receiver<Request>,
}

impl Worker {
    async fn run(mut self) {
        let batch_max = self.settings.batch_max;
        let mut idle: Vec<Connected> = Vec::new();
        let mut under_way: JoinSet<Option<Connected>> = JoinSet::new();
        let mut taken = Vec::with_capacity(batch_max);
        let mut waiting: VecDeque<Request> = VecDeque::new();
        loop {
            while under_way.len() >= self.width
                && let Some(done) = under_way.join_next().await
            {
                take_back(&mut idle, done.ok().flatten());
            }
            if waiting.is_empty() {
                if self.requests.recv_many(&mut taken, batch_max).await == 0 {
                    break;
                }
                waiting.extend(taken.drain(..));
                if batch_max > 1 {
                    // Whoever was woken together with the first gets a chance to join it.
                    tokio::task::yield_now().await;
                }
            }
            while waiting.len() < batch_max
                && let Ok(request) = self.requests.try_recv()
            {
                waiting.push_back(request);
            }
            while let Some(done) = under_way.try_join_next() {
                take_back(&mut idle, done.ok().flatten());
            }
            let batch = next_batch(&mut waiting, batch_max);
            if !batch.is_empty() {
                idle.retain(|connected| !connected.client.is_closed());
                under_way.spawn(serve(self.settings.clone(), idle.pop(), batch));
            }
        }
        while under_way.join_next().await.is_some() {}
    }
}

/// A connection that comes back, or none: what broke it may have broken the others.
fn take_back(idle: &mut Vec<Connected>, connected: Option<Connected>) {
    match connected {
        Some(connected) => idle.push(connected),
        None => idle.clear(),
    }
}

/// Requests of one kind that share a statement, without those whose caller has left.
fn next_batch(waiting: &mut VecDeque<Request>, batch_max: usize) -> Vec<Request> {
    let mut batch: Vec<Request> = Vec::new();
    let (mut count, mut bytes) = (0, 0);
    while let Some(request) = waiting.front() {
        if request.is_wanted() {
            let is_alike = matches!(
                (batch.first(), request),
                (None, _)
                    | (Some(Request::Read { .. }), Request::Read { .. })
                    | (Some(Request::Write { .. }), Request::Write { .. })
            );
            let (more, larger) = request.weight();
            let fits = batch.is_empty() || (count + more <= batch_max && bytes + larger <= BATCH_BYTES_MAX);
            if !is_alike || !fits {
                break;
            }
            count += more;
            bytes += larger;
            batch.extend(waiting.pop_front());
        } else {
            waiting.pop_front();
        }
    }
    batch
}

/// Connects if need be, and answers everybody. Gives the connection back if it is as good as before.
async fn serve(
    settings: Arc<Settings>,
    connected: Option<Connected>,
    batch: Vec<Request>,
) -> Option<Connected> {
    let connected = match connected {
        Some(connected) => connected,
        None => match connect(&settings, None).await {
            Ok(connected) => connected,
            Err(failure) => {
                batch.into_iter().for_each(|request| request.fail(&failure));
                return None;
            }
        },
    };
    let broken = batch::run(&settings, &connected, batch).await;
    if broken {
        // It may be in the middle of an answer, and never end by itself.
        connected.driver.abort();
        return None;
    }
    Some(connected)
}

impl Request {
    /// Whether its caller still waits.
    fn is_wanted(&self) -> bool {
        match self {
            Request::Read { answer, .. } => !answer.is_closed(),
            Request::Write { answer, .. } => !answer.is_closed(),
            Request::Query { answer, .. } => !answer.is_closed(),
        }
    }

    pub(super) fn fail(self, failure: &Failure) {
        match self {
            Request::Read { answer, .. } => drop(answer.send(Err(failure.clone()))),
            Request::Write { answer, .. } => drop(answer.send(Err(failure.clone()))),
            Request::Query { answer, .. } => drop(answer.send(Err(failure.clone()))),
        }
    }

    /// How many keys, and bytes of envelopes.
    fn weight(&self) -> (usize, usize) {
        match self {
            Request::Read { .. } | Request::Query { .. } => (1, 0),
            Request::Write { ops, .. } => (ops.len(), ops.iter().map(Op::bytes).sum()),
        }
    }
}

impl Op {
    pub(super) fn key(&self) -> &EntryKey {
        match self {
            Op::Put(Put { key, .. })
            | Op::Remove(key)
            | Op::Discard(key, _)
            | Op::Exchange(Exchange { key, .. })
            | Op::Quarantine(key, ..) => key,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Op::Put(put) => put.sealed.len(),
            Op::Remove(_) => 0,
            Op::Discard(_, sealed) | Op::Quarantine(_, sealed, _) => sealed.len(),
            Op::Exchange(exchange) => exchange.old.len() + exchange.new.len(),
        }
    }
}

/// A connection that is set up, and what was prepared on it.
pub(super) struct Connected {
    pub(super) client: Client,
    prepared: [OnceCell<Statement>; Sql::COUNT],
    /// Moves the bytes; ends with the client or the connection.
    pub(super) driver: JoinHandle<()>,
}

impl Connected {
    /// A statement, prepared at its first use.
    pub(super) async fn statement(&self, settings: &Settings, sql: Sql) -> Result<&Statement, Failure> {
        let text = sql.text(&settings.schema);
        let prepare = || self.client.prepare(&text);
        self.prepared[sql as usize].get_or_try_init(prepare).await.map_err(Failure::from)
    }
}

/// Connects, refuses what larder can't work with, and brings the schema up.
pub(super) async fn connect(settings: &Settings, heard: Option<Heard>) -> Result<Connected, Failure> {
    let limit = settings.connect_timeout;
    let attempt = async {
        let (client, driver) = dial(&settings.target, heard).await?;
        let connected = Connected { client, prepared: std::array::from_fn(|_| OnceCell::new()), driver };
        schema::settle(&connected.client, settings).await?;
        Ok(connected)
    };
    tokio::time::timeout(limit, attempt).await.unwrap_or(Err(Failure::TimedOut(limit)))
}

/// What is told of each notification.
pub(super) type Heard = Box<dyn FnMut(Notification) + Send>;

async fn dial(target: &Target, heard: Option<Heard>) -> Result<(Client, JoinHandle<()>), Failure> {
    match &target.tls {
        None => {
            let (client, connection) = target.config.connect(NoTls).await?;
            Ok((client, tokio::spawn(drive(connection, heard))))
        }
        #[cfg(feature = "postgres-tls")]
        Some(tls) => {
            let (client, connection) = target.config.connect(tls.0.clone()).await?;
            Ok((client, tokio::spawn(drive(connection, heard))))
        }
        #[cfg(not(feature = "postgres-tls"))]
        Some(tls) => match *tls {},
    }
}

async fn drive<S, T>(mut connection: Connection<S, T>, mut heard: Option<Heard>)
where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
        if let (AsyncMessage::Notification(notification), Some(heard)) = (message, &mut heard) {
            heard(notification);
        }
    }
}
