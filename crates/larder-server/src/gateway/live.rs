//! A reply that is being received, for all who wait for it: each reads it from its beginning, at its own pace.
//!
//! What has come is held until the reply has ended, so that who comes late misses nothing, up to a limit. Beyond
//! it nobody can join any more, what all have read is let go, and the upstream is read no faster than the
//! slowest reader.

use axum::http::{HeaderMap, StatusCode};
use bytes::Bytes;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How a reply begins.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
}

/// What came of asking the upstream.
#[derive(Clone, Debug)]
pub(crate) enum Settled<K> {
    /// It replies; what it says can be read.
    Reply(Head),
    /// There is an answer in the cache after all.
    Kept(K),
    /// It can't be asked, or did not begin to reply.
    Failed(Failure),
}

/// Why there is no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    Unreachable,
    Timeout,
    /// Our side gave up: the time for all of it was over, or the process ends.
    Dropped,
}

/// A reply that ended before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CutOff;

#[derive(Debug)]
struct State<K> {
    settled: Option<Settled<K>>,
    pieces: VecDeque<Bytes>,
    /// Pieces that are no longer held.
    let_go: usize,
    held_bytes: usize,
    end: Option<Result<(), CutOff>>,
    /// The number of the piece that each reader wants next.
    readers: HashMap<u64, usize>,
    readers_ever: u64,
}

#[derive(Debug)]
pub(crate) struct Live<K> {
    state: Mutex<State<K>>,
    /// Changes with the state.
    changed: watch::Sender<()>,
    held_bytes_max: usize,
    began: Instant,
}

/// The side that fills a reply. Dropping it ends the reply, so that nobody waits for ever.
#[derive(Debug)]
pub(crate) struct Producer<K>(Arc<Live<K>>);

/// The side of one who waits.
#[derive(Debug)]
pub(crate) struct Reader<K> {
    live: Arc<Live<K>>,
    id: u64,
    changes: watch::Receiver<()>,
}

impl<K: Clone> Live<K> {
    pub(crate) fn start(held_bytes_max: usize) -> (Producer<K>, Arc<Self>) {
        let state = State {
            settled: None,
            pieces: VecDeque::new(),
            let_go: 0,
            held_bytes: 0,
            end: None,
            readers: HashMap::new(),
            readers_ever: 0,
        };
        let live = Arc::new(Live {
            state: Mutex::new(state),
            changed: watch::Sender::new(()),
            held_bytes_max,
            began: Instant::now(),
        });
        (Producer(Arc::clone(&live)), live)
    }

    /// How long ago it began.
    pub(crate) fn age(&self) -> Duration {
        self.began.elapsed()
    }

    /// A new reader, if all of the reply is still there and it was not cut off.
    pub(crate) fn join(self: &Arc<Self>) -> Option<Reader<K>> {
        let mut state = self.state();
        if state.let_go > 0 || matches!(state.end, Some(Err(CutOff))) {
            return None;
        }
        let id = state.readers_ever;
        state.readers_ever += 1;
        state.readers.insert(id, 0);
        drop(state);
        Some(Reader { live: Arc::clone(self), id, changes: self.changed.subscribe() })
    }

    fn state(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Clone> Producer<K> {
    /// Says what came of asking. Once; what is said later is not heard.
    pub(crate) fn settle(&self, settled: Settled<K>) {
        self.0.state().settled.get_or_insert(settled);
        self.0.changed.send_replace(());
    }

    /// Adds what came. Waits while more is held than allowed and somebody has not read it; false when nobody is
    /// left for whom it could go on.
    pub(crate) async fn push(&self, piece: Bytes) -> bool {
        let mut changes = self.0.changed.subscribe();
        loop {
            changes.borrow_and_update();
            {
                let mut state = self.0.state();
                if state.held_bytes.saturating_add(piece.len()) <= self.0.held_bytes_max {
                    state.held_bytes += piece.len();
                    state.pieces.push_back(piece);
                    break;
                }
                let Some(read) = state.readers.values().copied().min() else {
                    state.end = Some(Err(CutOff));
                    return false;
                };
                if read > state.let_go {
                    while state.let_go < read {
                        let Some(piece) = state.pieces.pop_front() else { break };
                        state.held_bytes -= piece.len();
                        state.let_go += 1;
                    }
                    continue;
                }
                if state.pieces.is_empty() {
                    // One piece above the limit: it is here already.
                    state.held_bytes += piece.len();
                    state.pieces.push_back(piece);
                    break;
                }
            }
            if changes.changed().await.is_err() {
                return false;
            }
        }
        self.0.changed.send_replace(());
        true
    }

    /// Whether all of the reply is still held.
    pub(crate) fn is_all_held(&self) -> bool {
        self.0.state().let_go == 0
    }

    /// Cuts the reply off if nobody waits any more, so that nobody joins what is given up; whether it did.
    pub(crate) fn cut_off_if_abandoned(&self) -> bool {
        let mut state = self.0.state();
        let is_abandoned = state.readers.is_empty();
        if is_abandoned {
            state.end = Some(Err(CutOff));
        }
        is_abandoned
    }

    pub(crate) fn end(self, end: Result<(), CutOff>) {
        self.0.state().end = Some(end);
    }
}

impl<K> Drop for Producer<K> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.settled.get_or_insert(Settled::Failed(Failure::Dropped));
        state.end.get_or_insert(Err(CutOff));
        drop(state);
        self.0.changed.send_replace(());
    }
}

impl<K: Clone> Reader<K> {
    /// Waits for what came of asking.
    pub(crate) async fn settled(&mut self) -> Settled<K> {
        loop {
            self.changes.borrow_and_update();
            if let Some(settled) = self.live.state().settled.clone() {
                return settled;
            }
            if self.changes.changed().await.is_err() {
                return Settled::Failed(Failure::Dropped);
            }
        }
    }

    /// The next piece; `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<Result<Bytes, CutOff>> {
        loop {
            self.changes.borrow_and_update();
            {
                let mut state = self.live.state();
                let wanted = state.readers.get(&self.id).copied().unwrap_or(0);
                if let Some(piece) = state.pieces.get(wanted.saturating_sub(state.let_go)) {
                    let piece = piece.clone();
                    state.readers.insert(self.id, wanted + 1);
                    drop(state);
                    self.live.changed.send_replace(());
                    return Some(Ok(piece));
                }
                match state.end {
                    Some(Ok(())) => return None,
                    Some(Err(cut_off)) => return Some(Err(cut_off)),
                    None => {}
                }
            }
            if self.changes.changed().await.is_err() {
                return Some(Err(CutOff));
            }
        }
    }
}

impl<K> Drop for Reader<K> {
    fn drop(&mut self) {
        self.live.state.lock().unwrap_or_else(PoisonError::into_inner).readers.remove(&self.id);
        self.live.changed.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Settled<()> {
        Settled::Reply(Head { status: StatusCode::OK, headers: HeaderMap::new() })
    }

    async fn all(mut reader: Reader<()>) -> Result<Vec<u8>, CutOff> {
        let mut all = Vec::new();
        while let Some(piece) = reader.next().await {
            all.extend_from_slice(&piece?);
        }
        Ok(all)
    }

    #[tokio::test]
    async fn everybody_reads_all_of_it() {
        let (producer, live) = Live::start(100);
        let early = tokio::spawn(all(live.join().unwrap()));
        producer.settle(head());
        assert!(producer.push("ab".into()).await);
        let late = tokio::spawn(all(live.join().unwrap()));
        assert!(producer.push("cd".into()).await);
        producer.end(Ok(()));
        let after = all(live.join().unwrap()).await;
        for read in [early.await.unwrap(), late.await.unwrap(), after] {
            assert_eq!(read, Ok(b"abcd".to_vec()));
        }
    }

    #[tokio::test]
    async fn whoever_waits_hears_of_a_producer_that_is_gone() {
        let (producer, live) = Live::<()>::start(100);
        let mut reader = live.join().unwrap();
        let waits = tokio::spawn(async move { (reader.settled().await, reader.next().await) });
        tokio::task::yield_now().await;
        drop(producer);
        let (settled, piece) = waits.await.unwrap();
        assert!(matches!(settled, Settled::Failed(Failure::Dropped)));
        assert_eq!(piece, Some(Err(CutOff)));
    }

    #[tokio::test]
    async fn beyond_the_limit_the_slowest_reader_sets_the_pace() {
        let (producer, live) = Live::start(10);
        let (fast, mut slow) = (live.join().unwrap(), live.join().unwrap());
        producer.settle(head());
        let fast = tokio::spawn(all(fast));
        for _ in 0..2 {
            assert!(producer.push(Bytes::from_static(b"12345")).await);
        }
        assert!(producer.is_all_held());
        let third = tokio::time::timeout(Duration::from_millis(20), producer.push("x".into())).await;
        assert!(third.is_err(), "nothing was read by the slow one");
        assert_eq!(slow.next().await, Some(Ok("12345".into())));
        assert!(producer.push("x".into()).await);
        assert!(!producer.is_all_held() && live.join().is_none());
        drop(slow);
        assert!(producer.push(Bytes::from(vec![b'y'; 50])).await);
        producer.end(Ok(()));
        let read = fast.await.unwrap().unwrap();
        assert_eq!(read.len(), 10 + 1 + 50);
    }

    #[tokio::test]
    async fn nobody_is_waited_for_who_is_gone() {
        let (producer, live) = Live::start(3);
        let reader = live.join().unwrap();
        producer.settle(head());
        assert!(producer.push("abc".into()).await && !producer.cut_off_if_abandoned());
        let pushing =
            tokio::spawn(async move { (producer.push("def".into()).await, producer.cut_off_if_abandoned()) });
        tokio::task::yield_now().await;
        drop(reader);
        assert_eq!(pushing.await.unwrap(), (false, true));
    }

    #[tokio::test]
    async fn nobody_joins_what_was_cut_off_or_given_up() {
        let (producer, live) = Live::start(100);
        let slow = live.join().unwrap();
        producer.settle(head());
        producer.end(Err(CutOff));
        assert!(live.join().is_none(), "who comes now would be cut off, too");
        drop(slow);
        let (producer, live) = Live::<()>::start(100);
        drop(live.join());
        assert!(producer.cut_off_if_abandoned());
        assert!(live.join().is_none(), "it ends without an end");
        let (producer, live) = Live::<()>::start(3);
        drop(live.join());
        assert!(!producer.push("abcd".into()).await);
        assert!(live.join().is_none(), "it ends without an end");
    }
}
