//! Several processes on one store, and whether any of them saw a value after another had removed it. Any test
//! binary that uses it has a test `child_reads_and_writes`, which is one of those processes.

use super::{Open, child, key, namespace, put, report};
use larder::backend::{Durability, Mark, PutOutcome};
use larder::entry::{EntryKind, Tags};
use larder::key::Pattern;
use larder::stamp::StampClock;
use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};

const CHILD: &str = "LARDER_TEST_PROCESS_CHILD";
const LONG: &str = "LARDER_TEST_PROCESS_SECONDS";
const PROCESSES: u64 = 4;
/// How long each process works, unless [`LONG`] says otherwise.
const SECONDS: u64 = 3;
const KEYS: u64 = 3;

/// Nanoseconds of a clock that all processes of the machine share.
fn now() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid timespec that outlives the call.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// One of the processes.
pub(crate) fn read_and_write(open: Open) {
    let Ok(job) = std::env::var(CHILD) else { return };
    let (process, path) = job.split_once(' ').unwrap();
    let process: u64 = process.parse().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(work(process, open, path.into()));
}

/// Fewest calls of a process.
const CALLS_MIN: u64 = 300;

async fn work(process: u64, open: Open, path: PathBuf) {
    let durability = if process.is_multiple_of(2) { Durability::Power } else { Durability::Process };
    let backend = open(path, durability).await;
    let mut random = fastrand::Rng::with_seed(process);
    let stamps = StampClock::new(process as u32);
    let began = std::time::Instant::now();
    let seconds = std::env::var(LONG).map_or(SECONDS, |seconds| seconds.parse().unwrap());
    for n in 0.. {
        // On a busy machine it takes longer until enough was done to be worth a look.
        let past = began.elapsed().as_secs();
        if (past >= seconds && n >= CALLS_MIN) || past >= seconds + 120 {
            break;
        }
        let k = random.u64(..KEYS);
        let name = format!("k{k}");
        match random.u32(..100) {
            0..40 => {
                let began = now();
                if let Ok(body) = backend.get(&key(&name)).await.unwrap().found {
                    report(&format!("read {k} {began} {}", std::str::from_utf8(&body).unwrap()));
                }
            }
            choice @ 40..80 => {
                let kind = if choice < 60 { EntryKind::Load } else { EntryKind::Set };
                let ticket = backend.get(&key(&name)).await.unwrap().ticket;
                let ticket_at = now();
                let wall_ms = larder::clock::Clock::system().wall_ms();
                let stamp = stamps.tick(wall_ms);
                let id = process << 32 | n;
                report(&format!("write {k} {ticket_at} {id}"));
                // A loader takes its time; removals by the others come in between.
                for _ in 0..random.u32(..30) {
                    backend.ping().await.unwrap();
                }
                let mut write = put(kind, &name, id.to_string(), ticket, stamp);
                write.meta.tags = Tags::new((n % 2 == 0).then_some("red")).unwrap();
                let outcome = backend.put(write).await.unwrap();
                assert!(!matches!(outcome, PutOutcome::Older(_)) || kind == EntryKind::Set);
            }
            choice => {
                let began = now();
                match choice {
                    80..92 => drop(backend.remove(&key(&name)).await.unwrap()),
                    92..96 => backend.mark(&namespace(), &Mark::Clear).await.unwrap(),
                    96..98 => drop(
                        backend.remove_matching(&namespace(), &Pattern::new(&name).unwrap()).await.unwrap(),
                    ),
                    _ => drop(backend.sweep(10).await.unwrap()),
                }
                match choice {
                    92..96 => (0..KEYS).for_each(|k| report(&format!("removed {k} {began} {}", now()))),
                    98.. => {}
                    _ => report(&format!("removed {k} {began} {}", now())),
                }
            }
        }
    }
    assert!(backend.notes().is_empty(), "{:?}", backend.notes());
    backend.close().await.unwrap();
}

/// Runs them all at once on a path that none of them finds, and looks at what each of them saw.
pub(crate) fn outlive_no_removal(path: &Path) {
    let children: Vec<_> = (0..PROCESSES)
        .map(|process| child("child_reads_and_writes", CHILD, &format!("{process} {}", path.display())))
        .map(|mut child| {
            let mut pipe = child.stderr.take().unwrap();
            std::thread::spawn(move || {
                let mut text = String::new();
                pipe.read_to_string(&mut text).unwrap();
                assert!(child.wait().unwrap().success(), "a child failed:\n{text}");
                text
            })
        })
        .collect();
    let reports: String = children.into_iter().map(|child| child.join().unwrap()).collect();
    let mut tickets = HashMap::new();
    let (mut reads, mut removals) = (Vec::new(), Vec::new());
    for line in reports.lines() {
        let (word, numbers) = line.split_once(' ').unwrap();
        let numbers: Vec<u64> = numbers.split(' ').map(|number| number.parse().unwrap()).collect();
        let [k, at, last] = numbers[..] else { panic!("{line}") };
        match word {
            "read" => reads.push((k, at, last)),
            "write" => drop(tickets.insert(last, (k, at))),
            "removed" => removals.push((k, at, last)),
            _ => panic!("{line}"),
        }
    }
    assert!(reads.len() > 50 && removals.len() > 50, "{} reads, {} removals", reads.len(), removals.len());
    // By key, in the order of their ends, each with the latest beginning so far: a value is outlived if any of
    // those that ended before the read began after the value's ticket.
    let mut ended: HashMap<u64, Vec<(u64, u64)>> = HashMap::new();
    removals.sort_unstable_by_key(|(_, _, done)| *done);
    for (k, began, done) in removals {
        let of_key = ended.entry(k).or_default();
        let latest = of_key.last().map_or(began, |(_, latest): &(u64, u64)| (*latest).max(began));
        of_key.push((done, latest));
    }
    for (k, read_at, id) in reads {
        let (written_to, ticket_at) = tickets[&id];
        assert_eq!(k, written_to, "a value of another key");
        let of_key = ended.get(&k).map_or(&[][..], Vec::as_slice);
        let before = of_key.partition_point(|(done, _)| *done < read_at);
        let latest = before.checked_sub(1).map(|last| of_key[last].1);
        assert!(
            latest.is_none_or(|began| began <= ticket_at),
            "key {k}: a value whose ticket is of {ticket_at} was read at {read_at}, after a removal of {latest:?}"
        );
    }
}
