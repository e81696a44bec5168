//! The writes of a batch. Loads of one store share a script: to call one takes the server longer than all that it
//! does for a load. What a shared script can't decide is repeated by itself, as is what the server refused because
//! it had forgotten the script.

use super::batch::Wire;
use super::fault::Failure;
use super::layout::Store;
use super::link::{Replies, Step};
use super::script::{self, Script};
use bytes::Bytes;
use redis::{Cmd, Pipeline, Value};
use tokio::sync::oneshot;

/// Most loads that share a script: it holds the server up for some tens of microseconds.
const JOINED_MAX: usize = 64;
/// Larger entries, in bytes, go by themselves: copying them is what takes time.
const JOINED_BYTES_MAX: usize = 16 << 10;

type Answer = oneshot::Sender<Result<Replies, Failure>>;

#[derive(Default)]
pub(super) struct Writes {
    steps: Vec<Step>,
    /// Who asked for how many of them, in order.
    callers: Vec<(usize, Answer)>,
    /// The commands to send, each with its steps' places.
    commands: Vec<Vec<usize>>,
    /// By store, the place in `commands` of a script that others may still join.
    open: Vec<(Store, usize)>,
}

impl Writes {
    /// Steps in this order. Only a caller's loads are joined with others: between different kinds of writes of one
    /// key the order matters.
    pub(super) fn add(&mut self, steps: Vec<Step>, answer: Answer) {
        let can_join = steps.iter().all(|step| joinable(step).is_some());
        self.callers.push((steps.len(), answer));
        for step in steps {
            let place = self.steps.len();
            match joinable(&step).filter(|_| can_join) {
                Some(store) => self.join(store, place),
                None => self.commands.push(vec![place]),
            }
            self.steps.push(step);
        }
    }

    fn join(&mut self, store: &Store, place: usize) {
        let Some((_, at)) = self.open.iter_mut().find(|(open, _)| open == store) else {
            self.open.push((store.clone(), self.commands.len()));
            return self.commands.push(vec![place]);
        };
        if self.commands[*at].len() == JOINED_MAX {
            *at = self.commands.len();
            return self.commands.push(vec![place]);
        }
        self.commands[*at].push(place);
    }

    pub(super) fn commands(&self, wire: &Wire<'_>) -> impl Iterator<Item = Cmd> {
        self.commands.iter().map(|places| match &places[..] {
            [place] => wire.pack(&self.steps[*place]),
            places => pack_joined(wire, places.iter().map(|place| &self.steps[*place])),
        })
    }

    pub(super) fn fail(self, failure: &Failure) {
        self.callers.into_iter().for_each(|(_, answer)| drop(answer.send(Err(failure.clone()))));
    }

    /// Gives each caller its replies; there is one for each command.
    pub(super) async fn answer(self, wire: &Wire<'_>, replies: Vec<Value>) {
        let mut each = vec![Value::Nil; self.steps.len()];
        for (places, reply) in self.commands.iter().zip(replies) {
            match (&places[..], reply) {
                ([place], reply) => each[*place] = reply,
                (places, Value::BulkString(letters)) => {
                    for (place, letter) in places.iter().zip(letters) {
                        each[*place] =
                            if letter == b'?' { Value::Nil } else { Value::BulkString(vec![letter]) };
                    }
                }
                // Keys that are apart while their slot moves: some may be here by themselves.
                (_, Value::ServerError(error)) if matches!(error.code(), "ASK" | "TRYAGAIN") => {}
                (places, reply) => places.iter().for_each(|place| each[*place] = reply.clone()),
            }
        }
        if let Err(failure) = repeat_refused(wire, &self.steps, &mut each).await {
            return self.fail(&failure);
        }
        let mut each = each.into_iter();
        for (count, answer) in self.callers {
            drop(answer.send(Ok(each.by_ref().take(count).map(wire.judge()).collect())));
        }
    }
}

/// The store of a step that may share a script.
fn joinable(step: &Step) -> Option<&Store> {
    match step {
        Step::Script { script: Script::Put, store, key: Some(_), args } => {
            let entry = args.last().filter(|entry| entry.first() == Some(&b'l'))?;
            (entry.len() <= JOINED_BYTES_MAX).then_some(store)
        }
        _ => None,
    }
}

fn pack_joined<'a>(wire: &Wire<'_>, steps: impl Iterator<Item = &'a Step>) -> Cmd {
    let parts: Vec<_> = steps
        .filter_map(|step| match step {
            Step::Script { store, key: Some(key), args, .. } => Some((store, key, args)),
            _ => None,
        })
        .collect();
    let bytes: usize = parts.iter().map(|(.., args)| 128 + args.iter().map(Bytes::len).sum::<usize>()).sum();
    let mut command = Cmd::with_capacity(10 + 5 * parts.len(), bytes + 256);
    command.arg("EVALSHA").arg(Script::Loads.sha()).arg(3 + parts.len());
    for (at, (store, key, _)) in parts.iter().enumerate() {
        if at == 0 {
            command.arg(store.meta()).arg(store.meta()).arg(store.log());
        }
        command.arg(store.entry(key));
    }
    wire.pack_beginning(&mut command);
    for (.., args) in parts {
        let [began, stripe, keep, _stamp, entry] = &args[..] else {
            unreachable!("a put has five arguments")
        };
        for arg in [began, stripe, keep, entry] {
            command.arg(&arg[..]);
        }
    }
    command
}

/// Repeats the steps that have no reply yet, and those whose script the server had forgotten: neither was executed.
pub(super) async fn repeat_refused(
    wire: &Wire<'_>,
    steps: &[Step],
    replies: &mut [Value],
) -> Result<(), Failure> {
    let is_forgotten =
        |reply: &Value| matches!(reply, Value::ServerError(error) if error.code() == "NOSCRIPT");
    let is_open = |step: &Step, reply: &Value| *reply == Value::Nil && joinable(step).is_some();
    let places: Vec<usize> = (0..replies.len())
        .filter(|place| is_forgotten(&replies[*place]) || is_open(&steps[*place], &replies[*place]))
        .collect();
    if places.is_empty() {
        return Ok(());
    }
    let mut pipeline = Pipeline::new();
    if replies.iter().any(is_forgotten) {
        for load in script::load_all() {
            pipeline.add_command(load);
        }
    }
    let loads = pipeline.len();
    for place in &places {
        pipeline.add_command(wire.pack(&steps[*place]));
    }
    let again = wire.send(&pipeline).await?;
    for (place, reply) in places.into_iter().zip(again.into_iter().skip(loads)) {
        replies[place] = reply;
    }
    Ok(())
}
