//! The suite that every [`LockBackend`] must pass.
//!
//! A [`Subject`] makes fresh backends and lets time pass; [`check_all`] runs every case and names what failed.
//! Cases need a Tokio runtime with several threads.
//!
//! ```
//! # #[tokio::main] async fn main() {
//! use larder::clock::{Clock, ManualClock};
//! use larder::lock::conformance::{Subject, check_all};
//! use larder::lock::{LockBackend, MemoryLocks};
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! struct Memory(ManualClock);
//!
//! #[async_trait::async_trait]
//! impl Subject for Memory {
//!     async fn fresh(&self) -> Arc<dyn LockBackend> {
//!         Arc::new(MemoryLocks::with_clock(self.clock()))
//!     }
//!     fn clock(&self) -> Clock {
//!         self.0.clone().into()
//!     }
//!     async fn pass(&self, time: Duration) {
//!         // Whoever is about to sleep gets the chance to.
//!         let began = std::time::Instant::now();
//!         while self.0.sleepers() == 0 && began.elapsed() < Duration::from_millis(20) {
//!             tokio::task::yield_now().await;
//!         }
//!         self.0.advance(time);
//!     }
//! }
//!
//! check_all(&Memory(ManualClock::new())).await;
//! # }
//! ```

use super::{Acquired, Claim, Lease, LockBackend, LockOptions, Locks, NAME_BYTES_MAX};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind};
use async_trait::async_trait;
use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

/// What is tested: a way to make backends, and the time that they live in.
#[async_trait]
pub trait Subject: Send + Sync {
    /// A backend without leases.
    async fn fresh(&self) -> Arc<dyn LockBackend>;

    /// The clock that moves with that of the store.
    fn clock(&self) -> Clock;

    /// Lets time pass, for the store and by [`clock`](Self::clock), after whoever is about to sleep does. For a
    /// store with a clock of its own: a real sleep.
    async fn pass(&self, time: Duration);
}

/// Long enough not to end by itself, however slow the machine.
const LONG: Duration = Duration::from_secs(600);
/// Of a lease that is to end.
const SHORT: Duration = Duration::from_millis(300);
/// Of a lease that is to be renewed in time, also on a busy machine.
const RENEWED: Duration = Duration::from_secs(3);
/// How long to wait for what has to come.
const PATIENCE: Duration = Duration::from_secs(30);

/// What was expected, and what came instead.
struct Failure(String);

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure(format!("failed with \"{error}\""))
    }
}

type Verdict = Result<(), Failure>;
type Running<'a> = Pin<Box<dyn Future<Output = Verdict> + Send + 'a>>;

struct Bench<'s> {
    subject: &'s dyn Subject,
    backend: Arc<dyn LockBackend>,
}

macro_rules! cases {
    ($($case:ident),* $(,)?) => {
        [$((stringify!($case), (|bench| Box::pin($case(bench))) as for<'a> fn(&'a Bench<'_>) -> Running<'a>)),*]
    };
}

/// Runs every case.
///
/// # Panics
/// When one fails, after all have run; the message lists all failures.
pub async fn check_all(subject: &dyn Subject) {
    let mut failures = Vec::new();
    for (name, case) in cases![
        one_claim_has_it,
        a_claim_that_asks_again_keeps_its_token,
        only_its_claim_releases,
        only_its_claim_extends,
        tokens_grow,
        tokens_follow_the_order_of_holders,
        a_lease_ends_by_itself,
        a_late_release_does_not_free_the_next_holder,
        info_tells_owner_token_and_time,
        all_of_an_owner_are_released_and_no_others,
        any_name_is_a_lock_of_its_own,
        waiting_ends_when_it_is_released,
        waiting_ends_at_its_deadline,
        waiting_ends_with_the_lease_of_a_dead_holder,
        a_dropped_lease_is_released,
        a_dropped_attempt_leaves_nothing,
        a_lease_is_renewed_until_it_is_dropped,
        a_lease_that_was_shortened_is_renewed_in_time,
        a_loss_is_told,
        a_holder_that_stood_still_is_fenced,
        what_is_not_allowed_is_refused,
    ] {
        let bench = Bench { subject, backend: subject.fresh().await };
        if let Err(Failure(why)) = case(&bench).await {
            failures.push(format!("  {name}: {why}"));
        }
    }
    assert!(failures.is_empty(), "{} cases failed:\n{}", failures.len(), failures.join("\n"));
}

impl Bench<'_> {
    fn claim(&self, owner: &str) -> Claim {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        // Ids with a high bit and low ones.
        Claim { owner: owner.into(), id: NEXT.fetch_add(1, SeqCst).wrapping_mul(0xf000_0000_0000_0001) }
    }

    fn locks(&self, owner: &str) -> Result<Locks, Failure> {
        // A busy machine is no unhealthy store.
        let options = LockOptions::default().ttl(LONG).call_timeout(PATIENCE).wait(PATIENCE);
        let locks = Locks::new(self.backend.clone()).clock(self.subject.clock());
        Ok(locks.owned_by(owner)?.defaults(options)?)
    }

    async fn granted(&self, name: &str, claim: &Claim, ttl: Duration) -> Result<u64, Failure> {
        match self.backend.acquire(name, claim, ttl).await? {
            Acquired::Granted { token } => Ok(token),
            held => Err(Failure(format!("\"{name}\" is free, but the answer was {held:?}"))),
        }
    }

    async fn held(&self, name: &str, claim: &Claim, ttl: Duration) -> Result<Duration, Failure> {
        match self.backend.acquire(name, claim, ttl).await? {
            Acquired::Held { left } => Ok(left),
            granted => Err(Failure(format!("\"{name}\" is held, but the answer was {granted:?}"))),
        }
    }

    /// Lets time pass until something is so.
    async fn until<F: Future<Output = Result<bool, Failure>>>(
        &self,
        what: &str,
        mut is_so: impl FnMut() -> F,
    ) -> Verdict {
        let began = Instant::now();
        while !is_so().await? {
            expect(began.elapsed() < PATIENCE, what)?;
            self.subject.pass(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    async fn until_free(&self, name: &str) -> Verdict {
        self.until("the lock is free", || async { Ok(self.backend.info(name).await?.is_none()) }).await
    }
}

fn expect(is_so: bool, what: &str) -> Verdict {
    if is_so { Ok(()) } else { Err(Failure(format!("expected: {what}"))) }
}

#[allow(clippy::needless_pass_by_value, reason = "what is compared is mostly made on the spot")]
fn same<T: PartialEq + fmt::Debug>(what: &str, is: T, expected: T) -> Verdict {
    match is == expected {
        true => Ok(()),
        false => Err(Failure(format!("{what}: expected {expected:?}, came {is:?}"))),
    }
}

async fn one_claim_has_it(bench: &Bench<'_>) -> Verdict {
    let (ours, theirs) = (bench.claim("a"), bench.claim("b"));
    bench.granted("x", &ours, LONG).await?;
    let left = bench.held("x", &theirs, LONG).await?;
    expect(left > LONG / 2 && left <= LONG, "what is left is told")?;
    // A lock is its claim's and not its owner's.
    bench.held("x", &bench.claim("a"), LONG).await?;
    same("release", bench.backend.release("x", &ours).await?, true)?;
    bench.granted("x", &theirs, LONG).await.map(drop)
}

async fn a_claim_that_asks_again_keeps_its_token(bench: &Bench<'_>) -> Verdict {
    let claim = bench.claim("a");
    let token = bench.granted("x", &claim, SHORT).await?;
    same("token", bench.granted("x", &claim, LONG).await?, token)?;
    let info = bench.backend.info("x").await?;
    expect(info.is_some_and(|info| info.left > SHORT), "it lasts as long as was asked for last")
}

async fn only_its_claim_releases(bench: &Bench<'_>) -> Verdict {
    let claim = bench.claim("a");
    bench.granted("x", &claim, LONG).await?;
    for other in [bench.claim("b"), bench.claim("a"), Claim { id: claim.id ^ 1 << 63, ..claim.clone() }] {
        same("release by another claim", bench.backend.release("x", &other).await?, false)?;
    }
    same("release of another lock", bench.backend.release("y", &claim).await?, false)?;
    bench.held("x", &bench.claim("b"), LONG).await?;
    same("release", bench.backend.release("x", &claim).await?, true)?;
    same("second release", bench.backend.release("x", &claim).await?, false)
}

async fn only_its_claim_extends(bench: &Bench<'_>) -> Verdict {
    let claim = bench.claim("a");
    bench.granted("x", &claim, LONG / 4).await?;
    same("extend by another", bench.backend.extend("x", &bench.claim("a"), LONG).await?, false)?;
    same("extend of another", bench.backend.extend("y", &claim, LONG).await?, false)?;
    same("extend", bench.backend.extend("x", &claim, LONG).await?, true)?;
    let left = bench.held("x", &bench.claim("b"), LONG).await?;
    expect(left > LONG / 2, "it lasts longer")?;
    same("extend", bench.backend.extend("x", &claim, LONG / 4).await?, true)?;
    let left = bench.held("x", &bench.claim("b"), LONG).await?;
    expect(left <= LONG / 4, "it lasts as long as was asked for last")
}

async fn tokens_grow(bench: &Bench<'_>) -> Verdict {
    let mut last = 0;
    for round in 0..60 {
        let claim = bench.claim("a");
        let ttl = if round == 30 { SHORT } else { LONG };
        let token = bench.granted("x", &claim, ttl).await?;
        expect(token > last, "the token is larger than the last")?;
        last = token;
        match round {
            30 => bench.until_free("x").await?,
            _ if round % 2 == 0 => drop(bench.backend.release("x", &claim).await?),
            _ => drop(bench.backend.release_all("a").await?),
        }
    }
    Ok(())
}

async fn tokens_follow_the_order_of_holders(bench: &Bench<'_>) -> Verdict {
    let (is_held, tokens) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
    let mut tasks = Vec::new();
    for worker in 0..8 {
        let (backend, is_held, tokens) = (bench.backend.clone(), is_held.clone(), tokens.clone());
        let claims: Vec<Claim> = (0..25).map(|_| bench.claim(&format!("worker {worker}"))).collect();
        tasks.push(tokio::spawn(async move {
            for claim in claims {
                let token = loop {
                    match backend.acquire("x", &claim, LONG).await? {
                        Acquired::Granted { token } => break token,
                        Acquired::Held { .. } => tokio::task::yield_now().await,
                    }
                };
                expect(!is_held.swap(true, SeqCst), "one holder at a time")?;
                tokens.lock().unwrap_or_else(PoisonError::into_inner).push(token);
                tokio::task::yield_now().await;
                is_held.store(false, SeqCst);
                same("release", backend.release("x", &claim).await?, true)?;
            }
            Ok::<(), Failure>(())
        }));
    }
    for task in tasks {
        task.await.map_err(|error| Failure(error.to_string()))??;
    }
    let tokens = tokens.lock().unwrap_or_else(PoisonError::into_inner);
    expect(tokens.is_sorted_by(|earlier, later| earlier < later), "tokens grow in the order of holders")
}

async fn a_lease_ends_by_itself(bench: &Bench<'_>) -> Verdict {
    let claim = bench.claim("a");
    bench.granted("x", &claim, SHORT).await?;
    bench.until_free("x").await?;
    same("extend of what has ended", bench.backend.extend("x", &claim, LONG).await?, false)?;
    same("release of what has ended", bench.backend.release("x", &claim).await?, false)?;
    same("all that have ended", bench.backend.release_all("a").await?, 0)?;
    bench.granted("x", &bench.claim("b"), LONG).await.map(drop)
}

async fn a_late_release_does_not_free_the_next_holder(bench: &Bench<'_>) -> Verdict {
    let (late, next) = (bench.claim("a"), bench.claim("b"));
    bench.granted("x", &late, SHORT).await?;
    bench.until_free("x").await?;
    bench.granted("x", &next, LONG).await?;
    same("extend", bench.backend.extend("x", &late, LONG).await?, false)?;
    same("release", bench.backend.release("x", &late).await?, false)?;
    same("release of all", bench.backend.release_all("a").await?, 0)?;
    same("the next holder's", bench.backend.release("x", &next).await?, true)
}

async fn info_tells_owner_token_and_time(bench: &Bench<'_>) -> Verdict {
    same("of a free lock", bench.backend.info("x").await?, None)?;
    let owner = "some owner: {1} \u{e4} 1 2";
    let token = bench.granted("x", &bench.claim(owner), LONG).await?;
    let info = bench.backend.info("x").await?.ok_or(Failure("nothing of a lock that is held".into()))?;
    same("owner", &info.owner[..], owner)?;
    same("token", info.token, token)?;
    expect(info.left > LONG / 2 && info.left <= LONG, "what is left is told")
}

async fn all_of_an_owner_are_released_and_no_others(bench: &Bench<'_>) -> Verdict {
    let names: Vec<String> = (0..40).map(|number| format!("lock {number}")).collect();
    for name in &names {
        bench.granted(name, &bench.claim("a"), LONG).await?;
    }
    // Neither "a*" nor "a 1" is "a".
    for (name, owner) in [("of b", "b"), ("of a*", "a*"), ("of a 1", "a 1")] {
        bench.granted(name, &bench.claim(owner), LONG).await?;
    }
    same("released", bench.backend.release_all("a").await?, names.len() as u64)?;
    same("released again", bench.backend.release_all("a").await?, 0)?;
    for name in &names {
        bench.granted(name, &bench.claim("c"), LONG).await?;
    }
    for name in ["of b", "of a*", "of a 1"] {
        bench.held(name, &bench.claim("c"), LONG).await?;
    }
    Ok(())
}

async fn any_name_is_a_lock_of_its_own(bench: &Bench<'_>) -> Verdict {
    let long = "x".repeat(NAME_BYTES_MAX);
    let names = [
        "x",
        "X",
        " x",
        "x ",
        "*",
        "?",
        "{",
        "}",
        "{}",
        "}{",
        "#",
        "@a",
        ":",
        "\n",
        "\u{1}",
        "\\",
        "'",
        "\"",
        "%",
        "$1",
        "e\u{301}",
        "\u{e9}",
        &long,
        &long[1..],
    ];
    for name in names {
        bench.granted(name, &bench.claim("a"), LONG).await?;
    }
    for name in names {
        bench.held(name, &bench.claim("a"), LONG).await?;
    }
    same("released", bench.backend.release_all("a").await?, names.len() as u64)
}

async fn waiting_ends_when_it_is_released(bench: &Bench<'_>) -> Verdict {
    let (ours, theirs) = (bench.locks("a")?, bench.locks("b")?);
    let lease = ours.lock("x").await?;
    let waits = tokio::spawn(async move { theirs.lock("x").await });
    for _ in 0..3 {
        bench.subject.pass(Duration::from_millis(20)).await;
    }
    expect(!waits.is_finished(), "nobody else has it")?;
    let token = lease.token();
    same("release", lease.release().await?, true)?;
    bench.until("the one who waits has it", || async { Ok(waits.is_finished()) }).await?;
    let lease: Lease = waits.await.map_err(|error| Failure(error.to_string()))??;
    expect(lease.token() > token && lease.is_held(), "it is a later lease")
}

async fn waiting_ends_at_its_deadline(bench: &Bench<'_>) -> Verdict {
    let (ours, theirs) = (bench.locks("a")?, bench.locks("b")?);
    let _lease = ours.lock("x").await?;
    expect(theirs.try_lock("x").await?.is_none(), "nobody else has it")?;
    for wait in [Duration::ZERO, SHORT] {
        let (theirs, options) = (theirs.clone(), theirs.options().wait(wait));
        let waits = tokio::spawn(async move { theirs.lock_with("x", &options).await });
        bench.until("waiting ends", || async { Ok(waits.is_finished()) }).await?;
        let waited = waits.await.map_err(|error| Failure(error.to_string()))?;
        same("kind", waited.err().map(|error| error.kind()), Some(ErrorKind::Timeout))?;
    }
    Ok(())
}

async fn waiting_ends_with_the_lease_of_a_dead_holder(bench: &Bench<'_>) -> Verdict {
    let theirs = bench.locks("b")?;
    bench.granted("x", &bench.claim("a"), SHORT).await?;
    let waits = tokio::spawn(async move { theirs.lock("x").await });
    bench.until("the one who waits has it", || async { Ok(waits.is_finished()) }).await?;
    waits.await.map_err(|error| Failure(error.to_string()))?.map(drop).map_err(Failure::from)
}

async fn a_dropped_lease_is_released(bench: &Bench<'_>) -> Verdict {
    let locks = bench.locks("a")?;
    drop(locks.lock("x").await?);
    drop(locks.lock_with("y", &locks.options().without_renewal()).await?);
    bench.until_free("x").await?;
    bench.until_free("y").await
}

async fn a_dropped_attempt_leaves_nothing(bench: &Bench<'_>) -> Verdict {
    let locks = bench.locks("a")?;
    for polls in 0..12 {
        {
            let mut attempt = pin!(locks.try_lock("x"));
            for _ in 0..polls {
                if attempt.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        bench.until_free("x").await?;
    }
    // What was sent and not yet carried out comes before what is asked now.
    drop(locks.lock("x").await?);
    bench.until_free("x").await
}

async fn a_lease_is_renewed_until_it_is_dropped(bench: &Bench<'_>) -> Verdict {
    let (ours, theirs) = (bench.locks("a")?, bench.locks("b")?);
    let lease = ours.lock_with("x", &ours.options().ttl(RENEWED)).await?;
    for _ in 0..24 {
        bench.subject.pass(RENEWED / 12).await;
        expect(theirs.try_lock("x").await?.is_none() && lease.is_held(), "it is held for twice its TTL")?;
    }
    drop(lease);
    bench.until_free("x").await
}

async fn a_lease_that_was_shortened_is_renewed_in_time(bench: &Bench<'_>) -> Verdict {
    let (ours, theirs) = (bench.locks("a")?, bench.locks("b")?);
    let lease = ours.lock("x").await?;
    same("extend", lease.extend(RENEWED).await?, true)?;
    for _ in 0..15 {
        bench.subject.pass(RENEWED / 12).await;
        expect(
            theirs.try_lock("x").await?.is_none() && lease.is_held(),
            "it is held for longer than its TTL",
        )?;
    }
    Ok(())
}

async fn a_loss_is_told(bench: &Bench<'_>) -> Verdict {
    let locks = bench.locks("a")?;
    // By the store, by an operator, and by time alone.
    for (round, options) in
        [locks.options().ttl(RENEWED), locks.options().ttl(SHORT).without_renewal()].iter().enumerate()
    {
        let lease = Arc::new(locks.lock_with("x", options).await?);
        if round == 0 {
            same("released", locks.release_all().await?, 1)?;
        }
        let told = tokio::spawn({
            let lease = lease.clone();
            async move { lease.lost().await }
        });
        bench.until("the loss is told", || async { Ok(told.is_finished()) }).await?;
        expect(!lease.is_held(), "what is lost is not held")?;
        same("extend of what is lost", lease.extend(LONG).await?, false)?;
    }
    Ok(())
}

async fn a_holder_that_stood_still_is_fenced(bench: &Bench<'_>) -> Verdict {
    /// A resource that remembers the largest token.
    struct Resource(u64, &'static str);
    impl Resource {
        fn write(&mut self, token: u64, value: &'static str) -> bool {
            let is_later = token >= self.0;
            if is_later {
                (self.0, self.1) = (token, value);
            }
            is_later
        }
    }
    let (ours, theirs) = (bench.locks("a")?, bench.locks("b")?);
    let stood_still = ours.lock_with("x", &ours.options().ttl(SHORT).without_renewal()).await?;
    for _ in 0..3 {
        bench.subject.pass(SHORT + Duration::from_millis(5)).await;
    }
    let next = theirs.lock("x").await?;
    let mut resource = Resource(0, "");
    expect(resource.write(next.token(), "new"), "the holder writes")?;
    expect(!resource.write(stood_still.token(), "old"), "who stood still is refused")?;
    same("what is there", resource.1, "new")?;
    expect(!stood_still.is_held(), "it knows by its own clock")?;
    same("release of what was lost", stood_still.release().await?, false)?;
    expect(theirs.is_locked("x").await? && next.is_held(), "the next holder has it still")
}

async fn what_is_not_allowed_is_refused(bench: &Bench<'_>) -> Verdict {
    let locks = bench.locks("a")?;
    let long = "x".repeat(NAME_BYTES_MAX + 1);
    for name in ["", &long] {
        let refused =
            [locks.try_lock(name).await.err(), locks.lock(name).await.err(), locks.info(name).await.err()];
        for error in refused {
            same("kind", error.map(|error| error.kind()), Some(ErrorKind::Config))?;
        }
    }
    for ttl in [Duration::ZERO, Duration::from_millis(9), Duration::MAX] {
        let refused = locks.try_lock_with("x", &locks.options().ttl(ttl)).await.err();
        same("kind", refused.map(|error| error.kind()), Some(ErrorKind::Config))?;
    }
    expect(locks.owned_by("").is_err(), "an owner has a name")
}
