//! One pipeline and its answers: reads of a store share a look at its meta record and an `MGET`.
//!
//! The meta record is read first, so that a ticket is older than the entries that follow it (rule A4). What
//! that look can't decide takes a second one: a store without a meta record, or of another run, is begun
//! anew; an entry with tags that is older than the last marker asks for its tags' markers.

use super::fault::Failure;
use super::joined::{Writes, repeat_refused};
use super::layout::{HEAD_BYTES, Head, META_FIELDS, Meta, Store, decode_tags};
use super::link::{LinkSettings, Request, Step, reign};
use super::script::Script;
use crate::backend::{Miss, Read, Ticket};
use crate::key::EntryKey;
use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, Pipeline, ServerError, Value};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How often a busy connection asks whether its server still is the master. A demoted one goes on answering
/// reads, and may lag behind removals from then on.
const ROLE_CHECKED_EVERY: Duration = Duration::from_secs(1);

pub(super) type Requests = Vec<Request>;

/// A connection to a server that was the master.
pub(super) struct Connected {
    connection: MultiplexedConnection,
    run: String,
    reign: String,
    is_broken: AtomicBool,
    since: Instant,
    /// When the role was last asked for, in milliseconds after `since`.
    role_checked_ms: AtomicU64,
}

impl Connected {
    pub(super) fn new(connection: MultiplexedConnection, run_id: &str, reign: String) -> Self {
        Connected {
            connection,
            run: run_name(run_id, &reign),
            reign,
            is_broken: AtomicBool::new(false),
            since: Instant::now(),
            role_checked_ms: AtomicU64::new(0),
        }
    }

    pub(super) fn is_usable(&self) -> bool {
        !self.is_broken.load(Relaxed)
    }

    /// Whether this batch has to ask for the role.
    fn takes_role_check(&self) -> bool {
        let now_ms = self.since.elapsed().as_millis() as u64;
        let last = self.role_checked_ms.load(Relaxed);
        now_ms.saturating_sub(last) >= ROLE_CHECKED_EVERY.as_millis() as u64
            && self.role_checked_ms.compare_exchange(last, now_ms, Relaxed, Relaxed).is_ok()
    }
}

/// Names a time in which a server can't have forgotten a removal: which process it is, and since when master. Half
/// of each id, 80 bits, is enough.
pub(super) fn run_name(run_id: &str, reign: &str) -> String {
    [run_id, reign].iter().flat_map(|id| id.chars().take(20)).collect()
}

type ReadAnswer = oneshot::Sender<Result<Read, Failure>>;

/// The reads of one store.
struct Group {
    store: Store,
    keys: Vec<EntryKey>,
    answers: Vec<ReadAnswer>,
    /// Who wants a ticket alone.
    tickets: Vec<ReadAnswer>,
}

/// A batch on its way.
pub(super) struct Sent {
    connected: Arc<Connected>,
    settings: Arc<LinkSettings>,
    groups: Vec<Group>,
    writes: Writes,
}

/// What the first look at a group's entries left open.
pub(super) struct Open {
    index: usize,
    head: Head,
    tags: Vec<Bytes>,
    sealed: Bytes,
}

impl Sent {
    pub(super) fn new(connected: Arc<Connected>, settings: Arc<LinkSettings>, requests: Requests) -> Self {
        let mut groups: Vec<Group> = Vec::new();
        let mut places: HashMap<Store, usize> = HashMap::new();
        let mut writes = Writes::default();
        for request in requests {
            let (store, key, answer) = match request {
                Request::Read { store, key, answer } => (store, key, answer),
                Request::Steps { steps, answer } => {
                    writes.add(steps, answer);
                    continue;
                }
            };
            let place = match groups.last() {
                Some(last) if last.store == store => groups.len() - 1,
                _ => *places.entry(store.clone()).or_insert_with(|| {
                    groups.push(Group { store, keys: Vec::new(), answers: Vec::new(), tickets: Vec::new() });
                    groups.len() - 1
                }),
            };
            let group = &mut groups[place];
            match key {
                None => group.tickets.push(answer),
                Some(key) => {
                    group.keys.push(key);
                    group.answers.push(answer);
                }
            }
        }
        Sent { connected, settings, groups, writes }
    }

    /// Sends, and answers everybody.
    pub(super) async fn run(self) {
        let Sent { connected, settings, groups, writes } = self;
        let wire = Wire { connected: &connected, settings: &settings };
        let mut pipeline = Pipeline::new();
        for group in &groups {
            pipeline.add_command(read_meta(&group.store));
            if !group.keys.is_empty() {
                pipeline.add_command(read_entries(group));
            }
        }
        for command in writes.commands(&wire) {
            pipeline.add_command(command);
        }
        let checks_role = connected.takes_role_check();
        if checks_role {
            pipeline.cmd("INFO").arg("replication");
        }
        let mut replies = match wire.send(&pipeline).await {
            Ok(replies) => replies,
            Err(failure) => {
                groups.into_iter().for_each(|group| group.fail(&failure));
                writes.fail(&failure);
                return;
            }
        };
        let now = replies.pop_if(|_| checks_role).and_then(|reply| reign(&reply).ok());
        let changed = match now {
            Some(None) => Some(Failure::Replica),
            Some(Some(now)) if now != connected.reign => Some(Failure::Renewed),
            _ => None,
        };
        if let Some(failure) = changed {
            connected.is_broken.store(true, Relaxed);
            groups.into_iter().for_each(|group| group.fail(&failure));
            // Writes were refused by the server itself, or done while it was the master.
            writes.answer(&wire, replies).await;
            return;
        }
        let mut replies = replies.into_iter();
        let mut read = Vec::with_capacity(groups.len());
        for group in groups {
            let meta = replies.next().unwrap_or(Value::Nil);
            let entries = if group.keys.is_empty() { None } else { replies.next() };
            read.push((group, meta, entries));
        }
        writes.answer(&wire, replies.collect()).await;
        for (group, meta, entries) in read {
            wire.answer_group(group, meta, entries).await;
        }
    }
}

pub(super) fn read_meta(store: &Store) -> Cmd {
    let mut command = Cmd::with_capacity(8, 96);
    command.arg("HMGET").arg(store.meta()).arg(&META_FIELDS);
    command
}

fn read_entries(group: &Group) -> Cmd {
    let bytes: usize = group.keys.iter().map(|key| key.as_bytes().len() + group.store.tag().len() + 2).sum();
    let mut command = Cmd::with_capacity(group.keys.len() + 1, bytes + 4);
    command.arg("MGET");
    let mut name = group.store.entry_prefix();
    let prefix = name.len();
    for key in &group.keys {
        name.truncate(prefix);
        name.extend_from_slice(key.as_bytes());
        command.arg(&name[..]);
    }
    command
}

impl Group {
    fn fail(self, failure: &Failure) {
        for answer in self.answers.into_iter().chain(self.tickets) {
            drop(answer.send(Err(failure.clone())));
        }
    }
}

/// A connection for the time of a batch.
pub(super) struct Wire<'a> {
    connected: &'a Connected,
    settings: &'a LinkSettings,
}

impl Wire<'_> {
    /// Replies to all commands, error replies included.
    pub(super) async fn send(&self, pipeline: &Pipeline) -> Result<Vec<Value>, Failure> {
        let limit = self.settings.response_timeout;
        let mut connection = self.connected.connection.clone();
        let replies = connection.send_packed_commands(pipeline, 0, pipeline.len());
        let failure = match tokio::time::timeout(limit, replies).await {
            Ok(Ok(replies)) if replies.len() == pipeline.len() => return Ok(replies),
            Ok(Ok(_)) => Failure::Nonsense("another number of answers than of questions"),
            Ok(Err(error)) => Failure::Connection(error),
            Err(_) => Failure::TimedOut(limit),
        };
        // Whatever comes on it from now on, nobody could say what it answers.
        self.connected.is_broken.store(true, Relaxed);
        Err(failure)
    }

    pub(super) fn pack(&self, step: &Step) -> Cmd {
        match step {
            Step::Plain(command) => command.clone(),
            Step::Script { script, store, key, args } => {
                let mut command = Cmd::new();
                command.arg("EVALSHA").arg(script.sha()).arg(3).arg(store.meta());
                match key {
                    Some(key) => command.arg(store.entry(key)),
                    None => command.arg(store.meta()),
                };
                command.arg(store.log());
                self.pack_beginning(&mut command);
                for arg in args {
                    command.arg(&arg[..]);
                }
                command
            }
        }
    }

    /// The arguments that all scripts begin with.
    pub(super) fn pack_beginning(&self, command: &mut Cmd) {
        command.arg(&self.connected.run);
        // Its incarnation, should the store have to begin anew.
        command.arg(&fastrand::u64(..).to_be_bytes()[..]).arg(&self.settings.origin);
        command.arg(&self.settings.clock.wall_ms().to_be_bytes()[..]);
    }

    /// Tells error replies from others; one of a replica ends the connection.
    pub(super) fn judge(&self) -> impl Fn(Value) -> Result<Value, ServerError> + '_ {
        |reply| match reply {
            Value::ServerError(error) => {
                if error.code() == "READONLY" {
                    self.connected.is_broken.store(true, Relaxed);
                }
                Err(error)
            }
            value => Ok(value),
        }
    }

    async fn answer_group(&self, group: Group, meta: Value, entries: Option<Value>) {
        match self.judge_group(&group, meta, entries).await {
            Err(failure) => group.fail(&failure),
            Ok((ticket, found)) => {
                for (answer, found) in group.answers.into_iter().zip(found) {
                    drop(answer.send(Ok(Read { ticket, found })));
                }
                for answer in group.tickets {
                    drop(answer.send(Ok(Read { ticket, found: Err(Miss::Absent) })));
                }
            }
        }
    }

    async fn judge_group(
        &self,
        group: &Group,
        meta: Value,
        entries: Option<Value>,
    ) -> Result<(Ticket, Vec<Result<Bytes, Miss>>), Failure> {
        let fields = array(meta)?;
        let entries = entries.map_or(Ok(Vec::new()), array)?;
        if entries.len() != group.keys.len() {
            return Err(Failure::Nonsense("another number of entries than of keys"));
        }
        let Some(meta) = parse_meta(&fields, &self.connected.run) else {
            let ticket = self.begin(&group.store).await?;
            // What was found belongs to what came before, or to a beginning that another node was quicker with.
            let missed =
                |entry| Err(if matches!(entry, Value::Nil) { Miss::Absent } else { Miss::Incarnation });
            return Ok((ticket, entries.into_iter().map(missed).collect()));
        };
        let ticket = Ticket { inc: meta.inc, pos: meta.pos };
        let now_ms = self.settings.clock.wall_ms();
        let mut found = Vec::with_capacity(entries.len());
        let mut open = Vec::new();
        for (index, entry) in entries.into_iter().enumerate() {
            found.push(judge_entry(index, entry, &meta, now_ms, &mut open));
        }
        if !open.is_empty() {
            self.judge_tags(&group.store, &fields[..2], open, &mut found).await?;
        }
        Ok((ticket, found))
    }

    /// Begins a store anew, unless another node just has.
    async fn begin(&self, store: &Store) -> Result<Ticket, Failure> {
        let steps =
            [Step::Script { script: Script::Ticket, store: store.clone(), key: None, args: Vec::new() }];
        let mut pipeline = Pipeline::new();
        pipeline.add_command(self.pack(&steps[0]));
        let mut replies = self.send(&pipeline).await?;
        repeat_refused(self, &steps, &mut replies).await?;
        let reply = replies.pop().map(self.judge()).ok_or(Failure::Nonsense("no answer to a script"))?;
        parse_ticket(&reply.map_err(Failure::Reply)?)
    }

    /// Looks up the markers of what is older than the last one.
    async fn judge_tags(
        &self,
        store: &Store,
        run_and_inc: &[Value],
        open: Vec<Open>,
        found: &mut [Result<Bytes, Miss>],
    ) -> Result<(), Failure> {
        let mut pipeline = Pipeline::new();
        pipeline.add_command(read_markers(store, &open));
        let markers = array(self.send(&pipeline).await?.pop().unwrap_or(Value::Nil))?;
        judge_by_markers(open, &markers, run_and_inc, found);
        Ok(())
    }
}

/// Asks for the markers of all tags, after the run and incarnation that they are of.
pub(super) fn read_markers(store: &Store, open: &[Open]) -> Cmd {
    let mut command = redis::cmd("HMGET");
    command.arg(store.meta()).arg("run").arg("inc");
    for tag in open.iter().flat_map(|open| &open.tags) {
        command.arg([b"t", &tag[..]].concat());
    }
    command
}

/// Closes what was open, by the answer to [`read_markers`].
pub(super) fn judge_by_markers(
    open: Vec<Open>,
    markers: &[Value],
    run_and_inc: &[Value],
    found: &mut [Result<Bytes, Miss>],
) {
    // Without the record that the entries were judged by, its markers are lost, too.
    let is_same = markers.get(..2) == Some(run_and_inc);
    let mut markers = markers.iter().skip(2);
    for Open { index, head, tags, sealed } in open {
        let mut mine = markers.by_ref().take(tags.len()).filter_map(number);
        let is_marked = mine.any(|marker| marker > head.seen);
        mine.for_each(drop);
        found[index] = match (is_same, is_marked) {
            (false, _) => Err(Miss::Incarnation),
            (true, true) => Err(Miss::Tag),
            (true, false) => Ok(sealed),
        };
    }
}

/// The meta record, if it is of this run of the server.
pub(super) fn parse_meta(fields: &[Value], this_run: &str) -> Option<Meta> {
    let [Value::BulkString(run), Value::BulkString(inc), pos, clear, marked] = fields else {
        return None;
    };
    if run != this_run.as_bytes() {
        return None;
    }
    Some(Meta {
        inc: u64::from_be_bytes(inc[..].try_into().ok()?),
        pos: number(pos).filter(|pos| *pos > 0)?,
        clear: number(clear).unwrap_or(0),
        marked: number(marked).unwrap_or(0),
    })
}

/// What an entry is worth; what only markers can tell is left open.
pub(super) fn judge_entry(
    index: usize,
    entry: Value,
    meta: &Meta,
    now_ms: u64,
    open: &mut Vec<Open>,
) -> Result<Bytes, Miss> {
    let Value::BulkString(entry) = entry else { return Err(Miss::Absent) };
    let entry = Bytes::from(entry);
    let Some(head) = Head::parse(&entry) else { return Err(Miss::Absent) };
    if let Some(miss) = head.why_invalid(meta, now_ms) {
        return Err(miss);
    }
    let body = HEAD_BYTES + head.tags_bytes;
    if body > entry.len() {
        return Err(Miss::Absent);
    }
    let sealed = entry.slice(body..);
    if !head.needs_markers(meta) {
        return Ok(sealed);
    }
    let tags = decode_tags(&entry[HEAD_BYTES..body]).into_iter().map(|tag| entry.slice_ref(tag)).collect();
    open.push(Open { index, head, tags, sealed });
    Err(Miss::Tag)
}

/// The answer of a script that ends with a ticket.
pub(super) fn parse_ticket(reply: &Value) -> Result<Ticket, Failure> {
    if let Value::Array(parts) = reply
        && let [Value::BulkString(inc), pos] = &parts[..]
        && let Ok(inc) = inc[..].try_into()
        && let Some(pos) = number(pos)
    {
        return Ok(Ticket { inc: u64::from_be_bytes(inc), pos });
    }
    Err(Failure::Nonsense("a script gave no ticket"))
}

/// A number, as a script or a field gives it.
pub(super) fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        Value::BulkString(text) => std::str::from_utf8(text).ok()?.parse().ok(),
        _ => None,
    }
}

pub(super) fn array(value: Value) -> Result<Vec<Value>, Failure> {
    match value {
        Value::Array(values) => Ok(values),
        Value::ServerError(error) => Err(Failure::Reply(error)),
        _ => Err(Failure::Nonsense("no list")),
    }
}
