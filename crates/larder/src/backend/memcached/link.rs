//! One connection to one server: a queue, and a task that owns the socket.
//!
//! Callers put requests into the queue and wait for their own answer; the task writes what has gathered at once
//! and hands the replies out in order. At most [`BATCHES_UNDER_WAY_MAX`] batches are under way: what comes
//! meanwhile gathers, so that batches grow with the load. A caller that leaves leaves no reply behind: it goes to
//! a channel that nobody reads. Each reply has to repeat its command's opaque number, or the connection is
//! given up with all that is under way.

use super::dial::{Server, Stream, Tls, dial};
use super::fault::Failure;
use super::layout::Record;
use super::options::{Address, Place};
use super::wire::{Answer, Command, Payload, Refusal, parse};
use bytes::Bytes;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Sleep;

/// Most requests that wait to be sent; more callers wait for a place, under their own deadlines.
const QUEUE_MAX: usize = 4096;
/// One is on the wire while the server works on another.
const BATCHES_UNDER_WAY_MAX: usize = 2;
/// A batch takes no more requests from this size on.
const BATCH_BYTES: usize = 1 << 20;
/// The buffers of an idle connection.
const BUFFER_BYTES: usize = 64 << 10;
/// A longer response timeout, "never" included, is this one: a year, which clocks can count.
pub(super) const RESPONSE_TIMEOUT_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// Most bytes of several commands in one TLS record. Memcached waits for its socket although OpenSSL still has a part
/// of a record; so a record has to end with a command, and fit into its buffer of 16 KiB.
const RECORD_BYTES: usize = 8 << 10;
/// How long after a failure the next connection is tried, doubled with each failure up to the maximum. A second:
/// a server that is back is found within it, and until then costs a few dials.
const REDIAL_AFTER_MIN: Duration = Duration::from_millis(25);
const REDIAL_AFTER_MAX: Duration = Duration::from_secs(1);

/// What a caller asks for.
pub(super) enum Request {
    /// The record of a namespace, and after it an item. Reads of a batch share the record.
    Read { record: Bytes, item: Command, answer: oneshot::Sender<Result<ReadAnswer, Failure>> },
    /// Commands in this order. Each has its own answer.
    Steps { commands: Vec<Command>, answer: oneshot::Sender<Result<Vec<Answer>, Failure>> },
}

#[derive(Debug)]
pub(super) struct ReadAnswer {
    /// `None` where there is none, or none of larder's.
    pub(super) record: Option<Record>,
    pub(super) item: Answer,
}

/// What all links of a backend share.
pub(super) struct LinkSettings {
    pub(super) batch_max: usize,
    pub(super) connect_timeout: Duration,
    pub(super) response_timeout: Duration,
    pub(super) tls: Tls,
}

/// A connection, made when it is needed.
pub(super) struct Link {
    address: Arc<Address>,
    settings: Arc<LinkSettings>,
    state: Arc<Mutex<State>>,
    queue: Mutex<Queue>,
}

/// What is known of the server.
#[derive(Default)]
struct State {
    /// What it said of itself, last time.
    server: Option<Server>,
    /// Why there is no connection, if that is not by choice.
    trouble: Option<Failure>,
}

enum Queue {
    /// To the task; `None` before the first request. Closed when the task's runtime has ended.
    Open(Option<mpsc::Sender<Request>>),
    Closed,
}

impl Link {
    pub(super) fn new(address: Arc<Address>, settings: Arc<LinkSettings>) -> Self {
        Link { address, settings, state: Arc::default(), queue: Mutex::new(Queue::Open(None)) }
    }

    /// The record of a namespace, and an item that was read after it.
    pub(super) async fn read(&self, record: &Bytes, item: Command) -> Result<ReadAnswer, Failure> {
        let (answer, answered) = oneshot::channel();
        self.send(Request::Read { record: record.clone(), item, answer }).await?;
        answered.await.unwrap_or(Err(Failure::Ended))
    }

    /// Carries out commands in their order; as many answers.
    pub(super) async fn run(&self, commands: Vec<Command>) -> Result<Vec<Answer>, Failure> {
        let (answer, answered) = oneshot::channel();
        self.send(Request::Steps { commands, answer }).await?;
        answered.await.unwrap_or(Err(Failure::Ended))
    }

    /// What the server said of itself; `None` before the first connection.
    pub(super) fn server(&self) -> Option<Server> {
        lock(&self.state).server
    }

    /// Why there is no connection, if that is not by choice.
    pub(super) fn trouble(&self) -> Option<Failure> {
        lock(&self.state).trouble.clone()
    }

    /// Takes nothing more; the task ends when what is queued is done.
    pub(super) fn close(&self) {
        *lock(&self.queue) = Queue::Closed;
    }

    async fn send(&self, request: Request) -> Result<(), Failure> {
        let queue = self.queue()?;
        queue.send(request).await.map_err(|_| Failure::Ended)
    }

    /// The way to the task, which is started if it doesn't run.
    fn queue(&self) -> Result<mpsc::Sender<Request>, Failure> {
        let mut queue = lock(&self.queue);
        let Queue::Open(open) = &mut *queue else { return Err(Failure::Closed) };
        if let Some(queue) = open.as_ref().filter(|queue| !queue.is_closed()) {
            return Ok(queue.clone());
        }
        let (sender, requests) = mpsc::channel(QUEUE_MAX);
        *open = Some(sender.clone());
        let worker = Worker {
            address: self.address.clone(),
            settings: self.settings.clone(),
            state: self.state.clone(),
            requests,
            failures: 0,
        };
        crate::runtime::spawn(worker.run());
        Ok(sender)
    }
}

/// The task. Ends when the last sender is gone.
struct Worker {
    address: Arc<Address>,
    settings: Arc<LinkSettings>,
    state: Arc<Mutex<State>>,
    requests: mpsc::Receiver<Request>,
    /// Connections in a row that failed before they answered anything.
    failures: u32,
}

impl Worker {
    async fn run(mut self) {
        let mut not_before: Option<(Instant, Failure)> = None;
        while let Some(first) = self.requests.recv().await {
            if !first.is_wanted() {
                continue;
            }
            if let Some((until, failure)) = &not_before
                && Instant::now() < *until
            {
                first.fail(failure);
                continue;
            }
            let limit = self.settings.connect_timeout;
            let dialled = tokio::time::timeout(limit, dial(&self.address, &self.settings.tls)).await;
            let failure = match dialled.unwrap_or(Err(Failure::TimedOut(limit))) {
                Err(failure) => {
                    lock(&self.state).trouble = Some(failure.clone());
                    first.fail(&failure);
                    failure
                }
                Ok((stream, server)) => {
                    *lock(&self.state) = State { server: Some(server), trouble: None };
                    let mut session = Session::new(stream, &self.settings, &mut self.requests, server);
                    session.has_records = matches!(self.address.place, Place::Tcp { is_tls: true, .. });
                    session.taken.push_back(first);
                    let failure = std::future::poll_fn(|cx| session.poll(cx)).await;
                    if session.has_answered {
                        self.failures = 0;
                    }
                    let Some(failure) = failure else { return };
                    if session.is_idle() {
                        // The server closes what nobody uses (`-o idle_timeout`); the next call dials.
                        continue;
                    }
                    // Before anybody hears of it.
                    lock(&self.state).trouble = Some(failure.clone());
                    session.fail(&failure);
                    failure
                }
            };
            // Whoever waits has waited for this connection.
            while let Ok(request) = self.requests.try_recv() {
                request.fail(&failure);
            }
            // The first time at once: a server that was restarted is there already.
            let wait = match self.failures {
                0 => Duration::ZERO,
                more => REDIAL_AFTER_MIN.saturating_mul(1 << (more - 1).min(10)).min(REDIAL_AFTER_MAX),
            };
            self.failures = self.failures.saturating_add(1);
            // Not all clients of a server in the same moment.
            let wait = wait.mul_f64(0.5 + fastrand::f64() / 2.0);
            not_before = Some((Instant::now() + wait, failure));
        }
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

    fn bytes(&self) -> usize {
        match self {
            Request::Read { item, .. } => item.bytes(),
            Request::Steps { commands, .. } => commands.iter().map(Command::bytes).sum(),
        }
    }
}

/// What the next reply is for.
enum Slot {
    /// The record at this place of the batch.
    Record(usize),
    Read(usize, oneshot::Sender<Result<ReadAnswer, Failure>>),
    Steps {
        left: usize,
        answers: Vec<Answer>,
        answer: oneshot::Sender<Result<Vec<Answer>, Failure>>,
    },
}

struct Batch {
    slots: VecDeque<Slot>,
    records: Vec<(Bytes, Option<Record>)>,
    /// When its answers have to be there.
    due: Instant,
}

/// A connection while it lives.
struct Session<'w> {
    stream: Box<dyn Stream>,
    settings: &'w LinkSettings,
    requests: &'w mut mpsc::Receiver<Request>,
    /// Taken from the queue, and not yet in a batch.
    taken: VecDeque<Request>,
    /// Whether those who were woken together with the first had their chance to join it.
    has_yielded: bool,
    is_queue_closed: bool,
    under_way: VecDeque<Batch>,
    output: Vec<u8>,
    /// Where writes have to end, with TLS.
    record_ends: VecDeque<usize>,
    has_records: bool,
    written: usize,
    is_flushed: bool,
    input: Vec<u8>,
    /// The received bytes that are not yet parsed: from, to.
    unread: (usize, usize),
    value_bytes_max: usize,
    next_opaque: u32,
    awaited_opaque: u32,
    timer: Pin<Box<Sleep>>,
    is_timer_set: bool,
    has_answered: bool,
}

impl<'w> Session<'w> {
    fn new(
        stream: Box<dyn Stream>,
        settings: &'w LinkSettings,
        requests: &'w mut mpsc::Receiver<Request>,
        server: Server,
    ) -> Self {
        let first_opaque = fastrand::u32(..);
        Session {
            stream,
            settings,
            requests,
            taken: VecDeque::new(),
            has_yielded: false,
            is_queue_closed: false,
            under_way: VecDeque::new(),
            output: Vec::with_capacity(BUFFER_BYTES),
            record_ends: VecDeque::new(),
            has_records: false,
            written: 0,
            is_flushed: true,
            input: vec![0; BUFFER_BYTES],
            unread: (0, 0),
            value_bytes_max: server.item_bytes_max,
            next_opaque: first_opaque,
            awaited_opaque: first_opaque,
            timer: Box::pin(tokio::time::sleep(settings.response_timeout)),
            is_timer_set: false,
            has_answered: false,
        }
    }

    /// Ready when the connection is over: `None` if the backend was closed.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Failure>> {
        loop {
            let mut moved = self.take(cx);
            match self.read(cx) {
                Ok(has_read) => moved |= has_read,
                Err(failure) => return Poll::Ready(Some(failure)),
            }
            match self.write(cx) {
                Ok(has_written) => moved |= has_written,
                Err(failure) => return Poll::Ready(Some(failure)),
            }
            if self.is_queue_closed && self.is_idle() {
                return Poll::Ready(None);
            }
            if !moved {
                break;
            }
        }
        self.poll_timer(cx).map(Some)
    }

    /// Takes what has gathered, as a batch; whether there was any.
    fn take(&mut self, cx: &mut Context<'_>) -> bool {
        if self.under_way.len() >= BATCHES_UNDER_WAY_MAX {
            return false;
        }
        let mut bytes = self.taken.iter().map(Request::bytes).sum::<usize>();
        while self.taken.len() < self.settings.batch_max && bytes < BATCH_BYTES && !self.is_queue_closed {
            match self.requests.poll_recv(cx) {
                Poll::Ready(Some(request)) if request.is_wanted() => {
                    bytes += request.bytes();
                    self.taken.push_back(request);
                }
                Poll::Ready(Some(_)) => {}
                Poll::Ready(None) => self.is_queue_closed = true,
                Poll::Pending => break,
            }
        }
        if self.taken.is_empty() {
            return false;
        }
        if !self.has_yielded && self.taken.len() < self.settings.batch_max {
            self.has_yielded = true;
            cx.waker().wake_by_ref();
            return false;
        }
        self.has_yielded = false;
        let mut batch = Batch {
            slots: VecDeque::new(),
            records: Vec::new(),
            due: Instant::now() + self.settings.response_timeout,
        };
        // The records first: a ticket has to be older than the entry that it comes with.
        let taken = std::mem::take(&mut self.taken);
        for request in &taken {
            if let Request::Read { record, .. } = request
                && !batch.records.iter().any(|(known, _)| known == record)
            {
                let command = Command::Get { key: record.clone(), value: Payload::Whole, vivify: None };
                batch.slots.push_back(Slot::Record(batch.records.len()));
                batch.records.push((record.clone(), None));
                self.encode(&command);
            }
        }
        for request in taken {
            match request {
                Request::Read { record, item, answer } => {
                    let place = batch.records.iter().position(|(known, _)| *known == record);
                    batch.slots.push_back(Slot::Read(place.expect("all records are there"), answer));
                    self.encode(&item);
                }
                Request::Steps { commands, answer } if commands.is_empty() => {
                    drop(answer.send(Ok(Vec::new())));
                }
                Request::Steps { commands, answer } => {
                    let (left, answers) = (commands.len(), Vec::with_capacity(commands.len()));
                    batch.slots.push_back(Slot::Steps { left, answers, answer });
                    for command in &commands {
                        self.encode(command);
                    }
                }
            }
        }
        if !batch.slots.is_empty() {
            self.under_way.push_back(batch);
        }
        true
    }

    fn encode(&mut self, command: &Command) {
        let from = self.output.len();
        command.encode(self.next_opaque, &mut self.output);
        self.next_opaque = self.next_opaque.wrapping_add(1);
        if self.has_records {
            let begin = self.record_ends.iter().rev().nth(1).copied().unwrap_or(self.written);
            // Not one that is on its way already.
            let joins = self.record_ends.len() > 1 && self.output.len() - begin <= RECORD_BYTES;
            if joins && self.record_ends.back() == Some(&from) {
                self.record_ends.pop_back();
            }
            self.record_ends.push_back(self.output.len());
        }
    }

    /// Receives and hands out; whether there was anything.
    fn read(&mut self, cx: &mut Context<'_>) -> Result<bool, Failure> {
        let (from, to) = self.unread;
        if to == self.input.len() {
            if from > 0 {
                self.input.copy_within(from..to, 0);
                self.unread = (0, to - from);
            } else {
                // One reply is larger than the buffer; `parse` bounds how large.
                self.input.resize(self.input.len() * 2, 0);
            }
        }
        let mut room = ReadBuf::new(&mut self.input[self.unread.1..]);
        match Pin::new(&mut self.stream).poll_read(cx, &mut room) {
            Poll::Pending => return Ok(false),
            Poll::Ready(received) => received?,
        }
        match room.filled().len() {
            0 => return Err(Failure::Connection(std::io::ErrorKind::UnexpectedEof)),
            bytes => self.unread.1 += bytes,
        }
        loop {
            let (from, to) = self.unread;
            let Some((reply, taken)) = parse(&self.input[from..to], self.value_bytes_max)? else { break };
            self.unread.0 += taken;
            self.deliver(reply.answer, reply.opaque)?;
        }
        if self.unread.0 == self.unread.1 {
            self.unread = (0, 0);
            if self.input.len() > 2 * BUFFER_BYTES {
                self.input = vec![0; BUFFER_BYTES];
            }
        }
        Ok(true)
    }

    /// Hands a reply to whom it belongs.
    fn deliver(&mut self, answer: Answer, opaque: Option<u32>) -> Result<(), Failure> {
        let Some(batch) = self.under_way.front_mut() else { return Err(Failure::Astray) };
        let is_ours = match opaque {
            Some(opaque) => opaque == self.awaited_opaque,
            // These two can't repeat it in all versions; what follows shows whether they were in place.
            None => matches!(answer, Answer::Refused(_) | Answer::Absent),
        };
        if !is_ours {
            return Err(Failure::Astray);
        }
        self.awaited_opaque = self.awaited_opaque.wrapping_add(1);
        self.has_answered = true;
        let is_lost = matches!(answer, Answer::Refused(Refusal::NotUnderstood | Refusal::Unauthenticated));
        let lost = answer.clone();
        match batch.slots.pop_front() {
            None => return Err(Failure::Astray),
            Some(Slot::Record(place)) => {
                if let Answer::Done(item) = &answer {
                    batch.records[place].1 = Record::parse(&item.value, item.cas);
                }
            }
            Some(Slot::Read(place, caller)) => {
                drop(caller.send(Ok(ReadAnswer { record: batch.records[place].1, item: answer })));
            }
            Some(Slot::Steps { left: 1, mut answers, answer: caller }) => {
                answers.push(answer);
                drop(caller.send(Ok(answers)));
            }
            Some(Slot::Steps { left, mut answers, answer: caller }) => {
                answers.push(answer);
                batch.slots.push_front(Slot::Steps { left: left - 1, answers, answer: caller });
            }
        }
        if batch.slots.is_empty() {
            self.under_way.pop_front();
        }
        match lost {
            // What followed a command that was not understood may have been taken for commands.
            Answer::Refused(refusal) if is_lost => Err(Failure::Refused(refusal)),
            _ => Ok(()),
        }
    }

    /// Sends what is to be sent; whether anything moved.
    fn write(&mut self, cx: &mut Context<'_>) -> Result<bool, Failure> {
        let mut moved = false;
        while self.written < self.output.len() {
            let end = self.record_ends.front().copied().unwrap_or(self.output.len());
            match Pin::new(&mut self.stream).poll_write(cx, &self.output[self.written..end]) {
                Poll::Pending => return Ok(moved),
                Poll::Ready(written) => match written? {
                    0 => return Err(Failure::Connection(std::io::ErrorKind::WriteZero)),
                    bytes => {
                        self.written += bytes;
                        (moved, self.is_flushed) = (true, false);
                        if self.written == end {
                            self.record_ends.pop_front();
                        }
                    }
                },
            }
        }
        if self.written > 0 {
            self.written = 0;
            self.output.clear();
            if self.output.capacity() > 4 * BATCH_BYTES {
                self.output.shrink_to(BUFFER_BYTES);
            }
        }
        if !self.is_flushed
            && let Poll::Ready(flushed) = Pin::new(&mut self.stream).poll_flush(cx)
        {
            flushed?;
            self.is_flushed = true;
        }
        Ok(moved)
    }

    /// Ready when the oldest batch is overdue. The timer is moved only when it fires, not with each batch.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<Failure> {
        let Some(batch) = self.under_way.front() else { return Poll::Pending };
        if !self.is_timer_set {
            self.is_timer_set = true;
            self.timer.as_mut().reset(batch.due.into());
        }
        loop {
            ready!(self.timer.as_mut().poll(cx));
            if batch.due <= Instant::now() {
                return Poll::Ready(Failure::TimedOut(self.settings.response_timeout));
            }
            self.timer.as_mut().reset(batch.due.into());
        }
    }

    /// Whether nobody waits for it.
    fn is_idle(&self) -> bool {
        self.under_way.is_empty() && self.taken.is_empty()
    }

    /// Tells everybody who waits.
    fn fail(&mut self, failure: &Failure) {
        for slot in self.under_way.drain(..).flat_map(|batch| batch.slots) {
            match slot {
                Slot::Record(_) => {}
                Slot::Read(_, caller) => drop(caller.send(Err(failure.clone()))),
                Slot::Steps { answer, .. } => drop(answer.send(Err(failure.clone()))),
            }
        }
        self.taken.drain(..).for_each(|request| request.fail(failure));
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
