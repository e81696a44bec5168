//! The loads of `miss`: a load, insert and eviction per operation; a thousand callers of one key; a loader
//! that fails while fifty wait.

use crate::measure::{Clock, Subject, interleaved, single};
use crate::peers;
use crate::report::{Line, Report, flag_over};
use std::convert::Infallible;
use std::future::Future;
use std::hint::black_box;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};

/// Loads that are ready at once. Each cache's own tasks run on the measured thread; larder's timers, which
/// bound a load, run on another and are not in its figure.
pub fn load_insert_evict(capacity: usize, operations: u64, report: &mut Report) {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (whole, quick) =
        (&peers::whole::<u64>(capacity), &quick_cache::sync::Cache::<u64, u64>::new(capacity));
    let moka = &moka::future::Cache::<u64, u64>::new(capacity as u64);
    let s3fifo = &peers::foyer::<u64>(capacity, foyer::S3FifoConfig::default().into());
    macro_rules! loads {
        (|$key:ident| $load:expr) => {{
            let (mut next, runtime) = (0u64, &runtime);
            let mut batch = move |operations: u64| {
                runtime.block_on(async {
                    for $key in next..next + operations {
                        let _ = black_box($load.await);
                    }
                });
                next += operations;
                operations as usize
            };
            // Full before the first round.
            batch(2 * capacity as u64);
            Box::new(move || batch(operations))
        }};
    }
    let subjects = vec![
        Subject {
            name: "quick_cache",
            batch: loads!(|key| quick.get_or_insert_async(&key, async { Ok::<_, Infallible>(key) })),
        },
        Subject {
            name: "larder",
            batch: loads!(|key| whole.get_or_load(&key, move |_| async move { Ok::<_, Infallible>(key) })),
        },
        Subject {
            name: "moka-future",
            batch: loads!(|key| moka.try_get_with(key, async move { Ok::<_, Infallible>(key) })),
        },
        Subject {
            name: "foyer-s3fifo",
            batch: loads!(|key| s3fifo.get_or_fetch(&key, move || async move { Ok::<_, Infallible>(key) })),
        },
    ];
    let lines = single(&format!("miss load, insert and evict u64 {capacity}"), subjects);
    let held = [
        ("quick_cache", quick.len()),
        ("larder", whole.stats().entries as usize),
        ("moka-future", moka.iter().count()),
        ("foyer-s3fifo", s3fifo.usage()),
    ];
    report.group(&flag_over(lines, capacity, &held), "median_ns");
}

/// The time from the first caller's start to the last one's answer, with a loader of 5 ms.
pub fn thousand_callers(report: &mut Report) {
    let lines = stampede("miss 1000 callers of one key, 5 ms", 1000, Duration::from_millis(5), Ending::Value);
    report.group(&lines, "median_ns");
}

/// As above, with a loader that fails after 20 ms. One call is right, and that all have their answer when it
/// is there.
pub fn failing_loader(report: &mut Report) {
    let lines =
        stampede("miss failing loader, 50 waiters, 20 ms", 50, Duration::from_millis(20), Ending::Error);
    report.group(&lines, "median_ns");
}

#[derive(Clone, Copy)]
enum Ending {
    Value,
    Error,
}

/// Counts its calls, takes its time, and ends as it is told.
#[derive(Clone)]
struct Loader {
    calls: Arc<AtomicU64>,
    takes: Duration,
    ending: Ending,
}

impl Loader {
    async fn load(self, key: u64) -> Result<u64, std::io::Error> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(self.takes).await;
        match self.ending {
            Ending::Value => Ok(key),
            Ending::Error => Err(std::io::Error::other("the source is down")),
        }
    }
}

type Answered = Pin<Box<dyn Future<Output = ()> + Send>>;
type Caller = Box<dyn Fn(u64, Loader) -> Answered>;

fn stampede(case: &str, callers: usize, takes: Duration, ending: Ending) -> Vec<Line> {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let subjects = subjects();
    let names: Vec<_> = subjects.iter().map(|(name, _)| *name).collect();
    let mut next = 0;
    let mut calls = vec![0.0f64; subjects.len()];
    let lines = interleaved(case, "median_ns", Clock::Wall, &names, |at| {
        next += 1;
        let loader = Loader { calls: Arc::default(), takes, ending };
        let ns = one_stampede(&runtime, callers, next, &loader, &subjects[at].1);
        calls[at] = calls[at].max(loader.calls.load(Ordering::Relaxed) as f64);
        ns
    });
    let lines = lines.into_iter().zip(calls).map(|(line, calls)| {
        let over = line.value_of("median_ns").unwrap_or_default() / takes.as_nanos() as f64;
        line.value("loader_calls", calls).value("loader_times", over)
    });
    lines.collect()
}

fn one_stampede(runtime: &Runtime, callers: usize, key: u64, loader: &Loader, caller: &Caller) -> f64 {
    let waiting: Vec<_> = (0..callers).map(|_| caller(key, loader.clone())).collect();
    Clock::Wall.per_operation(|| {
        runtime.block_on(async {
            let tasks: Vec<_> = waiting.into_iter().map(|answer| tokio::spawn(answer)).collect();
            for task in tasks {
                task.await.expect("a caller does not panic");
            }
        });
        1
    })
}

fn subjects() -> Vec<(&'static str, Caller)> {
    const CAPACITY: usize = 1000;
    let quick = Arc::new(quick_cache::sync::Cache::<u64, u64>::new(CAPACITY));
    let whole = peers::whole::<u64>(CAPACITY);
    let moka = moka::future::Cache::<u64, u64>::new(CAPACITY as u64);
    let s3fifo = peers::foyer::<u64>(CAPACITY, foyer::S3FifoConfig::default().into());
    macro_rules! caller {
        ($cache:ident, |$key:ident, $loader:ident| $load:expr) => {
            Box::new(move |$key: u64, $loader: Loader| -> Answered {
                let $cache = $cache.clone();
                Box::pin(async move {
                    let _ = black_box($load.await.is_ok());
                })
            })
        };
    }
    vec![
        ("quick_cache", caller!(quick, |key, loader| quick.get_or_insert_async(&key, loader.load(key)))),
        ("larder", caller!(whole, |key, loader| whole.get_or_load(&key, move |_| loader.load(key)))),
        ("moka-future", caller!(moka, |key, loader| moka.try_get_with(key, loader.load(key)))),
        ("foyer-s3fifo", caller!(s3fifo, |key, loader| s3fifo.get_or_fetch(&key, move || loader.load(key)))),
    ]
}
