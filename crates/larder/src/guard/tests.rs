//! The guard from outside: a backend that fails, hangs, is slow or comes back, on a clock that is moved by hand.

use super::breaker::Breaker;
use super::*;
use crate::clock::ManualClock;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn read() -> Call {
    Call {
        operation: "get",
        side: Side::Read,
        priority: Priority::Read,
        deadline: SECOND,
        repeat: Repeat::Safe,
    }
}

fn guard(options: &GuardOptions) -> (Arc<Guard>, ManualClock) {
    let clock = ManualClock::new();
    (Arc::new(Guard::new(options, Clock::from(clock.clone()))), clock)
}

fn down() -> Error {
    Error::new(ErrorKind::Unavailable, "get")
}

async fn answer(guard: &Guard, answer: Result<u32>) -> Result<u32, Stopped> {
    guard.call(read(), || std::future::ready(answer.clone())).await
}

async fn fail_until_open(guard: &Guard) {
    for _ in 0..20 {
        assert!(matches!(answer(guard, Err(down())).await, Err(Stopped::Failed(_))));
    }
    assert!(matches!(answer(guard, Ok(1)).await, Err(Stopped::Refused(_))));
}

#[tokio::test]
async fn it_opens_at_the_rate_probes_after_the_wait_and_closes() {
    let (guard, clock) = guard(&GuardOptions::default());
    fail_until_open(&guard).await;
    assert_eq!(guard.stats().read_breaker, Some(BreakerState::Open));
    assert_eq!(guard.stats().write_breaker, Some(BreakerState::Closed), "writes have their own");
    clock.advance(3 * SECOND);
    for _ in 0..3 {
        assert_eq!(guard.stats().read_breaker, Some(BreakerState::HalfOpen));
        assert_eq!(answer(&guard, Ok(1)).await.unwrap(), 1);
    }
    assert_eq!(guard.stats().read_breaker, Some(BreakerState::Closed));
    // What failed before is forgotten: one more failure opens nothing.
    assert!(answer(&guard, Err(down())).await.is_err());
    assert_eq!(guard.stats().read_breaker, Some(BreakerState::Closed));
}

#[tokio::test]
async fn a_failed_probe_opens_it_again() {
    let (guard, clock) = guard(&GuardOptions::default());
    fail_until_open(&guard).await;
    clock.advance(3 * SECOND);
    assert!(matches!(answer(&guard, Err(down())).await, Err(Stopped::Failed(_))));
    assert!(matches!(answer(&guard, Ok(1)).await, Err(Stopped::Refused(_))));
    assert_eq!(guard.stats().breakers_opened, 2);
}

#[tokio::test]
async fn misses_and_the_callers_own_errors_never_open_it() {
    let (guard, _clock) = guard(&GuardOptions::default());
    for kind in [ErrorKind::TooLarge, ErrorKind::Key, ErrorKind::Full, ErrorKind::Unsupported] {
        for _ in 0..50 {
            assert!(answer(&guard, Err(Error::new(kind, "get"))).await.is_err());
        }
    }
    assert_eq!(guard.stats().read_breaker, Some(BreakerState::Closed));
    // Nor do they thin out the real failures.
    fail_until_open(&guard).await;
}

#[tokio::test]
async fn few_failures_prove_nothing_and_old_ones_are_forgotten() {
    let (guard, clock) = guard(&GuardOptions::default());
    for _ in 0..30 {
        for _ in 0..19 {
            assert!(matches!(answer(&guard, Err(down())).await, Err(Stopped::Failed(_))));
        }
        clock.advance(11 * SECOND);
    }
    assert_eq!(guard.stats().breakers_opened, 0);
}

#[tokio::test]
async fn cancelled_probes_give_their_places_back() {
    let (guard, clock) = guard(&GuardOptions::default());
    fail_until_open(&guard).await;
    clock.advance(3 * SECOND);
    for _ in 0..1000 {
        let mut call = Box::pin(guard.call(read(), std::future::pending::<Result<u32>>));
        assert!(poll_once(&mut call).await.is_none());
    }
    for _ in 0..3 {
        assert_eq!(answer(&guard, Ok(1)).await.unwrap(), 1);
    }
    assert_eq!(guard.stats().read_breaker, Some(BreakerState::Closed));
}

#[tokio::test]
async fn at_most_so_many_probes_are_under_way_and_hanging_ones_are_replaced() {
    let breaker = Breaker::new(BreakerOptions::default());
    for _ in 0..20 {
        breaker.permit(0).unwrap().settle(Verdict::Failed, false, 0);
    }
    assert!(breaker.permit(2999).is_err());
    let hanging: Vec<_> = (0..3).map(|_| breaker.permit(3000).unwrap()).collect();
    assert!(breaker.permit(3000).is_err(), "a fourth");
    assert!(breaker.permit(5999).is_err());
    let probes: Vec<_> = (0..3).map(|_| breaker.permit(6000).unwrap()).collect();
    assert!(breaker.permit(6000).is_err(), "a fourth of the second three");
    // What those that were given up find out comes too late to matter.
    hanging.into_iter().for_each(|late| late.settle(Verdict::Failed, false, 6000));
    assert_eq!(breaker.state(6000), BreakerState::HalfOpen);
    probes.into_iter().for_each(|probe| probe.settle(Verdict::Succeeded, false, 6000));
    assert_eq!(breaker.state(6000), BreakerState::Closed);
}

#[tokio::test]
async fn results_of_calls_from_before_it_opened_do_not_count_after() {
    let breaker = Breaker::new(BreakerOptions::default());
    let late: Vec<_> = (0..100).map(|_| breaker.permit(0).unwrap()).collect();
    for _ in 0..20 {
        breaker.permit(0).unwrap().settle(Verdict::Failed, false, 0);
    }
    let probe = breaker.permit(3000).unwrap();
    late.into_iter().for_each(|late| late.settle(Verdict::Failed, false, 3000));
    assert_eq!(breaker.state(3000), BreakerState::HalfOpen);
    probe.settle(Verdict::Succeeded, false, 3000);
    assert_eq!(breaker.opened(), 1);
}

#[tokio::test]
async fn slow_calls_open_it_too() {
    let (guard, clock) = guard(&GuardOptions::default());
    for _ in 0..20 {
        let call = guard.call(read(), || async {
            clock.advance(600 * MS);
            Ok::<_, Error>(1)
        });
        assert_eq!(call.await.unwrap(), 1);
    }
    // 20 calls of 600 ms: the window of 10 seconds never held 20 of them.
    assert_eq!(guard.stats().read_breaker, Some(BreakerState::Closed));
    let options = BreakerOptions { window: 60 * SECOND, ..BreakerOptions::default() };
    let breaker = Breaker::new(options);
    for _ in 0..20 {
        breaker.permit(0).unwrap().settle(Verdict::Succeeded, breaker.is_slow(600 * MS), 0);
    }
    assert_eq!(breaker.state(0), BreakerState::Open);
}

#[tokio::test]
async fn an_operator_forces_it_open_switches_it_off_and_gives_it_free() {
    let (guard, _clock) = guard(&GuardOptions::default());
    guard.set_breaker_mode(BreakerMode::ForcedOpen);
    assert!(matches!(answer(&guard, Ok(1)).await, Err(Stopped::Refused(_))));
    guard.set_breaker_mode(BreakerMode::Disabled);
    for _ in 0..100 {
        assert!(matches!(answer(&guard, Err(down())).await, Err(Stopped::Failed(_))));
    }
    guard.set_breaker_mode(BreakerMode::Automatic);
    fail_until_open(&guard).await;
}

#[tokio::test]
async fn retries_stay_within_attempts_and_budget() {
    let mut options = GuardOptions::remote();
    options.breaker.calls_min = u32::MAX;
    let (guard, clock) = guard(&options);
    let attempts = Arc::new(AtomicUsize::new(0));
    let calls = 1000;
    for _ in 0..calls {
        let task = tokio::spawn({
            let (guard, attempts) = (Arc::clone(&guard), Arc::clone(&attempts));
            async move {
                let attempt = || {
                    attempts.fetch_add(1, SeqCst);
                    std::future::ready(Err::<u32, _>(down()))
                };
                guard.call(read(), attempt).await.unwrap_err();
            }
        });
        while !task.is_finished() {
            tokio::task::yield_now().await;
            clock.advance(10 * MS);
        }
    }
    let retries = attempts.load(SeqCst) - calls;
    assert!((100..=110).contains(&retries), "{retries} retries of {calls} calls");
    assert_eq!(guard.stats().retries as usize, retries);
}

#[tokio::test]
async fn what_is_not_safe_to_repeat_or_would_fail_again_is_tried_once() {
    let (guard, _clock) = guard(&GuardOptions::remote());
    for (repeat, kind) in [
        (Repeat::Never, ErrorKind::Unavailable),
        (Repeat::Safe, ErrorKind::Authentication),
        (Repeat::Safe, ErrorKind::TooLarge),
        (Repeat::Safe, ErrorKind::Closed),
    ] {
        let attempts = AtomicUsize::new(0);
        let attempt = || {
            attempts.fetch_add(1, SeqCst);
            std::future::ready(Err::<u32, _>(Error::new(kind, "get")))
        };
        assert!(guard.call(Call { repeat, ..read() }, attempt).await.is_err());
        assert_eq!(attempts.load(SeqCst), 1, "{repeat:?} {kind:?}");
    }
}

#[tokio::test]
async fn nobody_waits_past_the_deadline_for_an_answer_or_a_place() {
    let mut options = GuardOptions::remote();
    (options.admission.concurrency_initial, options.admission.concurrency_min) = (1, 1);
    let (guard, clock) = guard(&options);
    let hang = |guard: &Arc<Guard>| {
        let guard = Arc::clone(guard);
        tokio::spawn(async move { guard.call(read(), std::future::pending::<Result<u32>>).await })
    };
    let calls = [hang(&guard), hang(&guard), hang(&guard)];
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    assert_eq!((guard.stats().under_way, guard.stats().queued), (1, 2));
    clock.advance(SECOND);
    let mut kinds = Vec::new();
    for call in calls {
        kinds.push(call.await.unwrap().unwrap_err().into_error().kind());
    }
    assert_eq!(kinds, [ErrorKind::Timeout, ErrorKind::Overloaded, ErrorKind::Overloaded]);
    assert_eq!((guard.stats().under_way, guard.stats().queued), (0, 0));
}

#[tokio::test]
async fn an_attempt_is_given_up_at_what_the_others_took_and_tried_again() {
    let (guard, clock) = guard(&GuardOptions::remote());
    for _ in 0..100 {
        assert!(answer(&guard, Ok(1)).await.is_ok());
    }
    let attempts = Arc::new(AtomicUsize::new(0));
    let call = tokio::spawn({
        let (guard, attempts) = (Arc::clone(&guard), Arc::clone(&attempts));
        async move {
            let attempt = || {
                let is_first = attempts.fetch_add(1, SeqCst) == 0;
                async move { if is_first { std::future::pending().await } else { Ok(7) } }
            };
            guard.call(read(), attempt).await
        }
    });
    let mut waited = Duration::ZERO;
    while !call.is_finished() {
        tokio::task::yield_now().await;
        clock.advance(10 * MS);
        waited += 10 * MS;
        assert!(waited < 400 * MS, "the floor is 100 ms");
    }
    assert_eq!(call.await.unwrap().unwrap(), 7);
}

#[test]
fn the_attempts_limit_counts_those_that_were_given_up() {
    let timeout = AttemptTimeout::new(AttemptTimeoutOptions::default());
    assert_eq!(timeout.limit(SECOND), SECOND, "nothing is known yet");
    (0..1000).for_each(|_| timeout.took(50 * MS));
    let limit = timeout.limit(SECOND);
    assert!((150 * MS..190 * MS).contains(&limit), "{limit:?}");
    // The backend slows down to 300 ms: all attempts are given up, and the limit rises until they pass.
    let mut given_up = 0;
    while timeout.limit(SECOND) < 300 * MS {
        timeout.gave_up(timeout.limit(SECOND));
        given_up += 1;
        assert!(given_up < 100, "it stays below what the backend needs");
    }
}

#[tokio::test]
async fn invalidations_go_first_and_a_full_queue_refuses_the_least_urgent() {
    let mut options = GuardOptions::default();
    (options.admission.concurrency_initial, options.admission.concurrency_min) = (1, 1);
    (options.admission.concurrency_max, options.admission.queue_max) = (1, 3);
    let (guard, _clock) = guard(&options);
    let order: Arc<Mutex<Vec<&str>>> = Arc::default();
    let (open, gate) = tokio::sync::watch::channel(false);
    let start = |name: &'static str, priority| {
        let (guard, order, gate) = (Arc::clone(&guard), Arc::clone(&order), gate.clone());
        tokio::spawn(async move {
            let attempt = || {
                let (order, mut gate) = (Arc::clone(&order), gate.clone());
                async move {
                    gate.wait_for(|is_open| *is_open).await.expect("the test holds it");
                    order.lock().unwrap().push(name);
                    Ok(())
                }
            };
            guard
                .call(Call { priority, ..read() }, attempt)
                .await
                .map_err(|stopped| stopped.into_error().kind())
        })
    };
    let mut calls = Vec::new();
    for (name, priority) in [
        ("first", Priority::Warm),
        ("warm", Priority::Warm),
        ("set", Priority::Set),
        ("read", Priority::Read),
        ("invalidate", Priority::Invalidate),
        ("late warm", Priority::Warm),
    ] {
        calls.push(start(name, priority));
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }
    open.send(true).unwrap();
    let mut refused = Vec::new();
    for (number, call) in calls.into_iter().enumerate() {
        if call.await.unwrap() == Err(ErrorKind::Overloaded) {
            refused.push(number);
        }
    }
    assert_eq!(*order.lock().unwrap(), ["first", "invalidate", "read", "set"]);
    assert_eq!(refused, [1, 5], "warm gave way to the invalidation, late warm found the queue full");
}

#[tokio::test]
async fn waiters_that_leave_free_their_places() {
    let mut options = GuardOptions::default();
    (options.admission.concurrency_initial, options.admission.concurrency_min) = (1, 1);
    let (guard, _clock) = guard(&options);
    let mut first = Box::pin(guard.call(read(), std::future::pending::<Result<u32>>));
    assert!(poll_once(&mut first).await.is_none());
    for _ in 0..5000 {
        let mut waiter = Box::pin(guard.call(read(), || std::future::ready(Ok(1))));
        assert!(poll_once(&mut waiter).await.is_none());
    }
    assert_eq!(guard.stats().queued, 0);
    let mut admitted = Box::pin(guard.call(read(), || std::future::ready(Ok(1))));
    assert!(poll_once(&mut admitted).await.is_none());
    drop(first);
    // It has its place, and leaves without ever having been polled again.
    drop(admitted);
    assert_eq!(answer(&guard, Ok(1)).await.unwrap(), 1);
    assert_eq!(guard.stats().under_way, 0);
}

#[test]
fn the_limit_falls_when_latency_rises_and_recovers() {
    let admission = Admission::new(AdmissionOptions::default());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let run = |rounds: usize, took: &dyn Fn(u32) -> Duration| {
        for _ in 0..rounds {
            let enter = async || {
                let mut waiting = Box::pin(admission.enter(Priority::Read));
                poll_once(&mut waiting).await
            };
            // As many as there is room for.
            let places: Vec<_> = std::iter::from_fn(|| runtime.block_on(enter())).collect();
            let under_way = places.len() as u32;
            for place in places {
                place.expect("the queue is empty").settle(took(under_way), Verdict::Succeeded);
            }
        }
        admission.numbers().0
    };
    // A backend that serves 40 calls at once, and queues the rest.
    let served = |limit: u32| MS.mul_f64((f64::from(limit) / 40.0).max(1.0));
    let settled = run(300, &served);
    assert!((16..=400).contains(&settled), "{settled}");
    let overloaded = run(20, &|limit| 20 * served(limit));
    assert!(overloaded < settled / 2, "{overloaded} of {settled}");
    let recovered = run(300, &served);
    assert!(recovered > overloaded, "{recovered} after {overloaded}");
}

async fn poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    std::future::poll_fn(|cx| {
        std::task::Poll::Ready(match std::pin::Pin::new(&mut *future).poll(cx) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        })
    })
    .await
}

/// A local store's sync takes longer than usual now and then: to give up a write that nobody repeats would make
/// a removal of a set, and set the tier aside for a removal.
#[tokio::test]
async fn a_write_that_is_not_repeated_has_all_of_its_time() {
    for (attempts_max, side, is_given_up) in
        [(1, Side::Write, false), (2, Side::Write, true), (1, Side::Read, true)]
    {
        let retry = RetryOptions { attempts_max, ..RetryOptions::default() };
        let (guard, clock) = guard(&GuardOptions { retry, ..GuardOptions::default() });
        let call = Call { side, ..read() };
        for _ in 0..100 {
            guard.call(call, || std::future::ready(Ok(1))).await.unwrap();
        }
        let attempts = Arc::new(AtomicUsize::new(0));
        let (counted, of_guard, sleeper) = (attempts.clone(), guard.clone(), Clock::from(clock.clone()));
        let slow = tokio::spawn(async move {
            let attempt = || {
                let is_first = counted.fetch_add(1, SeqCst) == 0;
                let sleeper = sleeper.clone();
                async move {
                    if is_first {
                        sleeper.sleep(400 * MS).await;
                    }
                    Ok(is_first)
                }
            };
            of_guard.call(call, attempt).await
        });
        for _ in 0..12 {
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
            clock.advance(50 * MS);
        }
        let was_first = slow.await.unwrap().ok() == Some(true);
        assert_eq!(was_first, !is_given_up, "{attempts_max} attempts, {side:?}");
    }
}

#[test]
fn settings_that_no_duration_can_be_multiplied_by_are_refused() {
    for factor in [f64::INFINITY, f64::NAN, 1e300] {
        let attempt_timeout = AttemptTimeoutOptions { factor, ..AttemptTimeoutOptions::default() };
        let options = GuardOptions { attempt_timeout, ..GuardOptions::default() };
        assert_eq!(options.check().unwrap_err().kind(), ErrorKind::Config, "{factor}");
    }
}
