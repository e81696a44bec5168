//! Many tasks on few keys, judged by a checker that knows only what was acknowledged, and when.

use super::{Bench, Case, Failure, Needs, Verdict, load, set};
use crate::backend::{Backend, Mark, PutOutcome};
use crate::entry::Tags;
use crate::key::{EntryKey, Namespace, Pattern};
use crate::stamp::{Stamp, StampClock};
use bytes::Bytes;
use fastrand::Rng;
use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

const TASKS: u64 = 8;
const OPERATIONS: usize = 300;
const KEYS: u64 = 4;
const TAGS: [&str; 2] = ["red", "blue"];

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case { name: "no_value_outlives_its_removal", needs: Needs::Nothing, run: |b| Box::pin(model(b)) },
        Case { name: "dropped_futures_mix_no_answers", needs: Needs::Nothing, run: |b| Box::pin(dropped(b)) },
    ]
}

/// A value that a task tried to write.
struct Written {
    key: u64,
    tag: Option<&'static str>,
    /// Its ticket was in hand at this moment, at the latest.
    ticket_at: u64,
    /// The stamp of a set.
    stamp: Option<Stamp>,
}

/// What is known. Moments are counted by `now`; what lies between two of them happened in between.
#[derive(Default)]
struct Model {
    now: AtomicU64,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    written: HashMap<u64, Written>,
    /// When the last acknowledged removal of a key, a tag or everything began.
    removed: HashMap<Target, u64>,
    /// The greatest stamp of the acknowledged sets of a key.
    stamps: HashMap<u64, Stamp>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Target {
    Key(u64),
    Tag(&'static str),
    All,
}

/// What a reader may rely on, taken before the read began.
struct Before {
    removed: HashMap<Target, u64>,
    stamp: Option<Stamp>,
}

impl Model {
    fn tick(&self) -> u64 {
        self.now.fetch_add(1, SeqCst)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn before_read(&self, key: u64) -> Before {
        let known = self.known();
        Before { removed: known.removed.clone(), stamp: known.stamps.get(&key).copied() }
    }

    fn acknowledge(&self, target: Target, began: u64) {
        let mut known = self.known();
        let last = known.removed.entry(target).or_default();
        *last = (*last).max(began);
    }

    fn judge(&self, key: u64, body: &Bytes, before: &Before) -> Verdict {
        let known = self.known();
        let id = std::str::from_utf8(body).ok().and_then(|id| id.parse().ok());
        let Some(written) = id.and_then(|id: u64| known.written.get(&id)) else {
            return Err(Failure(format!("a read of key {key}: got bytes that nobody wrote: {body:?}")));
        };
        if written.key != key {
            return Err(Failure(format!("a read of key {key}: got a value of key {}", written.key)));
        }
        for target in
            [Some(Target::Key(key)), Some(Target::All), written.tag.map(Target::Tag)].into_iter().flatten()
        {
            if before.removed.get(&target).is_some_and(|began| *began > written.ticket_at) {
                return Err(Failure(format!(
                    "a read of key {key}: expected nothing from before a removal that was acknowledged before \
                     the read, got such a value"
                )));
            }
        }
        if written.stamp.is_some_and(|stamp| before.stamp.is_some_and(|newer| newer > stamp)) {
            return Err(Failure(format!(
                "a read of key {key}: expected a set's value to be the latest set's"
            )));
        }
        Ok(())
    }
}

struct Task {
    backend: Arc<dyn Backend>,
    model: Arc<Model>,
    namespace: Namespace,
    stamps: Arc<StampClock>,
    wall_ms: u64,
    random: Rng,
    ids: u64,
}

impl Task {
    async fn run(mut self) -> Verdict {
        for _ in 0..OPERATIONS {
            let key = self.random.u64(..KEYS);
            match self.random.u32(..100) {
                0..40 => self.read(key).await?,
                40..60 => self.write(key, false).await?,
                60..80 => self.write(key, true).await?,
                80..92 => self.remove(Target::Key(key)).await?,
                92..97 => {
                    let tag = TAGS[self.random.usize(..TAGS.len())];
                    self.remove(Target::Tag(tag)).await?;
                }
                97..99 => self.remove(Target::All).await?,
                _ => drop(self.backend.sweep(8).await?),
            }
            // A backend in memory never waits by itself, and would run one task after the other.
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    fn key(&self, key: u64) -> Result<EntryKey, Failure> {
        Ok(EntryKey::new(&self.namespace, &format!("k{key}"))?)
    }

    async fn read(&mut self, key: u64) -> Verdict {
        let before = self.model.before_read(key);
        let read = self.backend.get(&self.key(key)?).await?;
        read.found.map_or(Ok(()), |body| self.model.judge(key, &body, &before))
    }

    async fn write(&mut self, key: u64, is_set: bool) -> Verdict {
        let name = self.key(key)?;
        let ticket =
            if is_set { self.backend.ticket(&name).await? } else { self.backend.get(&name).await?.ticket };
        let ticket_at = self.model.tick();
        let stamp = self.stamps.tick(self.wall_ms);
        let tag = (self.random.bool()).then(|| TAGS[self.random.usize(..TAGS.len())]);
        self.ids += 1;
        let id = self.ids;
        let written = Written { key, tag, ticket_at, stamp: is_set.then_some(stamp) };
        self.model.known().written.insert(id, written);
        // A loader takes its time; removals come in between.
        for _ in 0..self.random.u32(..8) {
            tokio::task::yield_now().await;
        }
        let make = if is_set { set } else { load };
        let mut put = make(&name, &id.to_string(), ticket, stamp);
        put.meta.tags = Tags::new(tag)?;
        let outcome = self.backend.put(put).await?;
        if is_set && outcome == PutOutcome::Stored {
            let mut known = self.model.known();
            let latest = known.stamps.entry(key).or_default();
            *latest = (*latest).max(stamp);
        }
        Ok(())
    }

    async fn remove(&mut self, target: Target) -> Verdict {
        let began = self.model.tick();
        match target {
            Target::Key(key) if self.random.u32(..8) == 0 && self.backend.capabilities().scan => {
                self.backend.remove_matching(&self.namespace, &Pattern::new(&format!("k{key}"))?).await?;
            }
            Target::Key(key) => drop(self.backend.remove(&self.key(key)?).await?),
            Target::Tag(tag) => self.backend.mark(&self.namespace, &Mark::Tag(tag.into())).await?,
            Target::All => self.backend.mark(&self.namespace, &Mark::Clear).await?,
        }
        self.model.acknowledge(target, began);
        Ok(())
    }
}

async fn model(b: &Bench<'_>) -> Verdict {
    let model = Arc::new(Model::default());
    let stamps = Arc::new(StampClock::new(1));
    let tasks: Vec<_> = (0..TASKS)
        .map(|i| Task {
            backend: b.backend.clone(),
            model: model.clone(),
            namespace: b.namespace.clone(),
            stamps: stamps.clone(),
            wall_ms: b.now_ms(),
            random: Rng::with_seed(i),
            ids: i << 32,
        })
        .map(|task| tokio::spawn(task.run()))
        .collect();
    for task in tasks {
        task.await.map_err(|error| Failure(format!("a task ended: {error}")))??;
    }
    Ok(())
}

/// Polls a future a few times, then drops it. `None` if it had no answer by then.
async fn abandon<T>(future: impl Future<Output = T>, polls: u32) -> Option<T> {
    let mut future = pin!(future);
    let mut left = polls;
    std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(value) => Poll::Ready(Some(value)),
        Poll::Pending if left == 0 => Poll::Ready(None),
        Poll::Pending => {
            left -= 1;
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    })
    .await
}

/// Callers leave at random; whoever stays gets the answer to its own question.
async fn dropped(b: &Bench<'_>) -> Verdict {
    let tasks: Vec<_> = (0..TASKS)
        .map(|i| {
            let (backend, namespace, wall_ms) = (b.backend.clone(), b.namespace.clone(), b.now_ms());
            tokio::spawn(async move {
                let mut random = Rng::with_seed(100 + i);
                for n in 0..OPERATIONS as u64 {
                    let name = format!("k{}", random.u64(..16));
                    let key = EntryKey::new(&namespace, &name)?;
                    let polls = random.u32(..4);
                    if random.bool() {
                        let Some(ticket) = abandon(backend.ticket(&key), polls + 4).await else { continue };
                        let stamp = Stamp::new(wall_ms + n, 0, i as u32);
                        let put = set(&key, &format!("{name} {i} {n}"), ticket?, stamp);
                        abandon(backend.put(put), polls).await.transpose()?;
                        continue;
                    }
                    abandon(backend.get(&key), polls).await.transpose()?;
                    if let Ok(body) = backend.get(&key).await?.found
                        && !body.starts_with(format!("{name} ").as_bytes())
                    {
                        return Err(Failure(format!("a read of {name}: got {body:?}")));
                    }
                }
                Ok::<(), Failure>(())
            })
        })
        .collect();
    for task in tasks {
        task.await.map_err(|error| Failure(format!("a task ended: {error}")))??;
    }
    Ok(())
}
