//! What nodes tell each other of their breakers: that one opened, as a hint.
//!
//! A node that hears it takes its own next failed call for proof, where it would have waited for a window full of
//! them; one call that succeeds refutes the hint. So a lie opens no breaker of what works, and when a breaker
//! closes is each node's own business. Nothing waits for what is told or heard: it happens in the background, and
//! while it fails, breakers are each node's own as before.

use super::{BreakerState, Guard};
use crate::clock::Clock;
use crate::error::Result;
use crate::sync::{Mutex, Unscheduled};
use crate::tier::before;
use async_trait::async_trait;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// How long telling and hearing may take, each.
const CALL_MAX: Duration = Duration::from_secs(1);
/// How long a hint lasts at least: nodes listen every second.
const HINT_MIN: Duration = Duration::from_secs(5);

/// Carries hints between nodes. Openings are random numbers: who meets one again has heard of it already.
#[async_trait]
pub trait BreakerShare: fmt::Debug + Send + Sync + 'static {
    /// Tells that a breaker opened; forgotten after `lasting`.
    async fn tell(&self, breaker: &str, opening: u64, lasting: Duration) -> Result<()>;

    /// For each breaker the latest opening that was told.
    async fn heard(&self, breakers: &[String]) -> Result<Vec<Option<u64>>>;
}

/// Hints within one process. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct MemoryBreakers(Arc<Mutex<HashMap<String, (u64, u64)>>>, Clock);

impl MemoryBreakers {
    /// On the system's clock.
    pub fn new() -> Self {
        Self::default()
    }

    /// On another clock.
    pub fn with_clock(clock: Clock) -> Self {
        MemoryBreakers(Arc::default(), clock)
    }
}

#[async_trait]
impl BreakerShare for MemoryBreakers {
    async fn tell(&self, breaker: &str, opening: u64, lasting: Duration) -> Result<()> {
        let until_ms = self.1.mono_ms().saturating_add(crate::clock::millis(lasting));
        self.0.lock().insert(breaker.to_owned(), (opening, until_ms));
        Ok(())
    }

    async fn heard(&self, breakers: &[String]) -> Result<Vec<Option<u64>>> {
        let (told, now_ms) = (self.0.lock(), self.1.mono_ms());
        let lasts = |breaker| told.get(breaker).filter(|(_, until_ms)| now_ms < *until_ms);
        Ok(breakers.iter().map(|breaker| lasts(breaker).map(|(opening, _)| *opening)).collect())
    }
}

/// The breakers of a cache that take part.
#[derive(Debug)]
pub(crate) struct Sharing {
    share: Arc<dyn BreakerShare>,
    clock: Clock,
    names: Vec<String>,
    known: Unscheduled<Vec<Known>>,
}

/// What was said of a breaker so far.
#[derive(Clone, Debug, Default)]
struct Known {
    /// How often it had opened when that was last told.
    opened: u64,
    told: Option<u64>,
    heard: Option<u64>,
}

impl Sharing {
    /// `names`: of the guards that take part. Each has two breakers.
    pub(crate) fn new(share: Arc<dyn BreakerShare>, clock: Clock, names: &[String]) -> Self {
        let sides = |name: &String| ["read", "write"].map(|side| format!("{name}:{side}"));
        let names: Vec<String> = names.iter().flat_map(sides).collect();
        let known = Unscheduled::new(vec![Known::default(); names.len()]);
        Sharing { share, clock, names, known }
    }

    /// Tells what has opened since the last time, and hears what others' have. `guards` in the order of the names.
    pub(crate) async fn exchange(&self, guards: &[&Guard]) {
        let now_ms = self.clock.mono_ms();
        let breakers: Vec<_> = guards.iter().flat_map(|guard| &guard.breakers).collect();
        for (place, breaker) in breakers.iter().enumerate() {
            let (opened, opening) = (breaker.opened(), fastrand::u64(..));
            {
                let mut known = self.known.lock();
                let is_news = opened > known[place].opened;
                known[place].opened = opened;
                // What is closed again by now is nobody's concern.
                if !is_news || breaker.state(now_ms) == BreakerState::Closed {
                    continue;
                }
                known[place].told = Some(opening);
            }
            let told = self.share.tell(&self.names[place], opening, HINT_MIN.max(breaker.open_for()));
            if let Some(Err(error)) = before(&self.clock, CALL_MAX, told).await {
                tracing::debug!(%error, "other nodes are not told that a breaker opened");
            }
        }
        let Some(Ok(heard)) = before(&self.clock, CALL_MAX, self.share.heard(&self.names)).await else {
            return;
        };
        let mut known = self.known.lock();
        for ((breaker, known), heard) in breakers.iter().zip(known.iter_mut()).zip(heard) {
            if heard.is_some() && heard != known.told && heard != known.heard {
                breaker.suspect(now_ms, HINT_MIN);
                known.heard = heard;
            }
        }
    }
}

#[cfg(all(test, not(larder_shuttle)))]
mod tests {
    use super::super::{Call, GuardOptions, Priority, Repeat, Side, Stopped};
    use super::*;
    use crate::clock::ManualClock;
    use crate::error::{Error, ErrorKind};

    const SECOND: Duration = Duration::from_secs(1);

    /// A node, and what it tells and hears by.
    struct Node(Guard, Sharing);

    impl Node {
        fn new(clock: &ManualClock, share: &Arc<dyn BreakerShare>) -> Self {
            let clock = Clock::from(clock.clone());
            let guard = Guard::new(&GuardOptions::default(), clock.clone());
            Node(guard, Sharing::new(share.clone(), clock, &["endpoint".to_owned()]))
        }

        async fn call(&self, answer: Result<()>) -> Result<(), Stopped> {
            let (side, priority, repeat) = (Side::Read, Priority::Read, Repeat::Safe);
            let call = Call { operation: "get", side, priority, deadline: SECOND, repeat };
            self.0.call(call, || std::future::ready(answer.clone())).await
        }

        async fn fail(&self) -> bool {
            let down = Error::new(ErrorKind::Unavailable, "get");
            matches!(self.call(Err(down)).await, Err(Stopped::Failed(_)))
        }

        async fn exchange(&self) {
            self.1.exchange(&[&self.0]).await;
        }

        fn state(&self) -> Option<BreakerState> {
            self.0.stats().read_breaker
        }
    }

    fn memory(clock: &ManualClock) -> Arc<dyn BreakerShare> {
        Arc::new(MemoryBreakers::with_clock(clock.clone().into()))
    }

    #[tokio::test]
    async fn one_failure_is_proof_enough_once_another_node_has_opened() {
        let clock = ManualClock::new();
        let share = memory(&clock);
        let (first, second) = (Node::new(&clock, &share), Node::new(&clock, &share));
        assert!(second.fail().await);
        assert_eq!(second.state(), Some(BreakerState::Closed), "without a hint one failure is chance");
        while first.state() == Some(BreakerState::Closed) {
            assert!(first.fail().await);
        }
        first.exchange().await;
        second.exchange().await;
        assert_eq!(second.state(), Some(BreakerState::Closed), "a hint alone opens nothing");
        assert_eq!(second.0.stats().breaker_hints, 1);
        assert!(second.fail().await);
        assert_eq!(second.state(), Some(BreakerState::Open));
        // The writes' was not meant, and nobody hears of its own.
        assert_eq!(second.0.stats().write_breaker, Some(BreakerState::Closed));
        first.exchange().await;
        assert_eq!(first.0.stats().breaker_hints, 0);
        // Probes close it, though what was told lasts still.
        clock.advance(3 * SECOND);
        for _ in 0..3 {
            second.exchange().await;
            assert!(second.call(Ok(())).await.is_ok());
        }
        assert_eq!(second.state(), Some(BreakerState::Closed));
        assert!(second.fail().await);
        assert_eq!(second.state(), Some(BreakerState::Closed), "the same opening is heard once");
    }

    #[tokio::test]
    async fn a_call_that_succeeds_or_time_refutes_a_hint() {
        let clock = ManualClock::new();
        let share = memory(&clock);
        let node = Node::new(&clock, &share);
        for round in 1..3 {
            share.tell("endpoint:read", round, SECOND).await.unwrap();
            node.exchange().await;
            match round {
                1 => assert!(node.call(Ok(())).await.is_ok()),
                _ => clock.advance(2 * HINT_MIN),
            }
            assert!(node.fail().await);
            assert_eq!(node.state(), Some(BreakerState::Closed));
        }
    }

    /// Tells of another opening each time it is asked.
    #[derive(Debug)]
    struct Lies;

    #[async_trait]
    impl BreakerShare for Lies {
        async fn tell(&self, _: &str, _: u64, _: Duration) -> Result<()> {
            Ok(())
        }
        async fn heard(&self, breakers: &[String]) -> Result<Vec<Option<u64>>> {
            Ok(breakers.iter().map(|_| Some(fastrand::u64(..))).collect())
        }
    }

    #[tokio::test]
    async fn a_lie_opens_nothing_that_works() {
        let clock = ManualClock::new();
        let node = Node::new(&clock, &(Arc::new(Lies) as Arc<dyn BreakerShare>));
        for _ in 0..100 {
            node.exchange().await;
            assert!(node.call(Ok(())).await.is_ok());
            clock.advance(SECOND / 2);
        }
        assert_eq!(node.0.stats().breakers_opened, 0);
        // Nor does it keep open what has opened and works again.
        node.exchange().await;
        assert!(node.fail().await);
        assert_eq!(node.state(), Some(BreakerState::Open));
        clock.advance(3 * SECOND);
        for _ in 0..3 {
            node.exchange().await;
            assert!(node.call(Ok(())).await.is_ok());
        }
        assert_eq!(node.state(), Some(BreakerState::Closed));
    }

    /// Never answers.
    #[derive(Debug)]
    struct Hangs;

    #[async_trait]
    impl BreakerShare for Hangs {
        async fn tell(&self, _: &str, _: u64, _: Duration) -> Result<()> {
            std::future::pending().await
        }
        async fn heard(&self, _: &[String]) -> Result<Vec<Option<u64>>> {
            std::future::pending().await
        }
    }

    #[tokio::test]
    async fn what_hangs_holds_nothing_up() {
        let clock = ManualClock::new();
        let node = Arc::new(Node::new(&clock, &(Arc::new(Hangs) as Arc<dyn BreakerShare>)));
        while node.state() == Some(BreakerState::Closed) {
            assert!(node.fail().await);
        }
        let exchange = tokio::spawn({
            let node = node.clone();
            async move { node.exchange().await }
        });
        // Telling, then hearing: each is given up.
        for _ in 0..2 {
            while clock.sleepers() == 0 {
                tokio::task::yield_now().await;
            }
            assert!(!exchange.is_finished());
            clock.advance(CALL_MAX);
            tokio::task::yield_now().await;
        }
        exchange.await.unwrap();
        clock.advance(3 * SECOND);
        assert!(node.call(Ok(())).await.is_ok(), "it probes by itself");
    }
}
