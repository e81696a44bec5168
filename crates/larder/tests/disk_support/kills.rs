//! A writer process that is killed at random moments, and what has to be there afterwards. Any test binary that
//! uses it has a test `child_writes_until_it_is_killed`, which is that process.

use super::{Open, child, key, put, report};
use larder::backend::{Durability, PutOutcome};
use larder::entry::EntryKind;
use larder::stamp::Stamp;
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::time::Duration;

const CHILD: &str = "LARDER_TEST_KILL_CHILD";
/// How many kills, for a long run.
const KILLS: &str = "LARDER_TEST_KILLS";
const WRITERS: u64 = 6;

/// What a key holds.
#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Absent,
    Value(u64),
}

/// A body that shows when a byte of it is another's.
fn body(writer: u64, n: u64) -> Vec<u8> {
    let length = ((writer * 7919 + n * 104_729) % 9000) as usize;
    let mut body = format!("{writer} {n} ").into_bytes();
    let mut random = fastrand::Rng::with_seed(writer << 32 | n);
    body.extend((0..length).map(|_| random.u8(..)));
    body
}

fn parse(body: &[u8]) -> Option<(u64, u64)> {
    let mut parts = body.splitn(3, |byte| *byte == b' ');
    let mut number = || std::str::from_utf8(parts.next()?).ok()?.parse().ok();
    Some((number()?, number()?))
}

fn durability(name: &str) -> Durability {
    if name == "process" { Durability::Process } else { Durability::Power }
}

/// The process that is killed: each writer sets and removes its own key, and reports before and after.
pub(crate) fn write_until_killed(open: Open) {
    let Ok(job) = std::env::var(CHILD) else { return };
    let mut parts = job.splitn(3, ' ');
    let (name, first) = (parts.next().unwrap(), parts.next().unwrap().parse::<u64>().unwrap());
    let path = Path::new(parts.next().unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let backend = open(path.to_owned(), durability(name)).await;
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let backend = backend.clone();
                tokio::spawn(async move {
                    let name = format!("k{writer}");
                    for n in first.. {
                        if n % 4 == 3 {
                            report(&format!("begin {writer} remove 0"));
                            backend.remove(&key(&name)).await.unwrap();
                            report(&format!("done {writer}"));
                        } else {
                            let ticket = backend.ticket(&key(&name)).await.unwrap();
                            let stamp = Stamp::new(n, 0, 1);
                            report(&format!("begin {writer} set {n}"));
                            let set = put(EntryKind::Set, &name, body(writer, n), ticket, stamp);
                            let outcome = backend.put(set).await.unwrap();
                            assert_eq!(outcome, PutOutcome::Stored);
                            report(&format!("done {writer}"));
                        }
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.await.unwrap();
        }
    });
}

/// Kills the child again and again, and looks each time. `after` looks at what else the backend promises.
pub(crate) fn lose_nothing(rounds: usize, folder: &Path, open: Open, after: fn(&Path)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let rounds = std::env::var(KILLS).map_or(rounds, |rounds| rounds.parse().unwrap());
    let mut acknowledged = 0;
    for name in ["power", "process"] {
        let path = folder.join(name);
        let mut held: HashMap<u64, State> = (0..WRITERS).map(|writer| (writer, State::Absent)).collect();
        for round in 0..rounds / 2 {
            let first = round as u64 * 1_000_000;
            let job = format!("{name} {first} {}", path.display());
            let (done, maybe) = run_and_kill(&job, &mut held);
            acknowledged += done;
            runtime.block_on(check(&path, name, open, &mut held, &maybe));
            after(&path);
        }
    }
    assert!(
        acknowledged > 5 * rounds,
        "the writers got {acknowledged} operations done: too few to mean anything"
    );
}

/// Runs the child for a random while after its first answer. How many operations it saw done; `held`
/// is what its reports say that the file holds, the second part what may hold instead.
fn run_and_kill(job: &str, held: &mut HashMap<u64, State>) -> (usize, HashMap<u64, State>) {
    let mut child = child("child_writes_until_it_is_killed", CHILD, job);
    let mut lines = BufReader::new(child.stderr.take().unwrap());
    let mut maybe = HashMap::new();
    let mut done = 0;
    let mut first = String::new();
    lines.read_line(&mut first).unwrap();
    assert!(first.starts_with("begin"), "the child failed: {first}");
    // The moment of the kill is the one thing that is left to chance.
    std::thread::sleep(Duration::from_micros(fastrand::u64(200..40_000)));
    child.kill().unwrap();
    child.wait().unwrap();
    let mut rest = String::new();
    lines.read_to_string(&mut rest).unwrap();
    for line in std::iter::once(first.trim()).chain(rest.lines()) {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["begin", writer, "remove", _] => {
                maybe.insert(writer.parse().unwrap(), State::Absent);
            }
            ["begin", writer, "set", n] => {
                maybe.insert(writer.parse().unwrap(), State::Value(n.parse().unwrap()));
            }
            ["done", writer] => {
                let writer: u64 = writer.parse().unwrap();
                let state = maybe.remove(&writer).expect("an operation is done after it began");
                held.insert(writer, state);
                done += 1;
            }
            _ => panic!("the child failed: {line}\n{rest}"),
        }
    }
    (done, maybe)
}

async fn check(
    path: &Path,
    name: &str,
    open: Open,
    held: &mut HashMap<u64, State>,
    maybe: &HashMap<u64, State>,
) {
    let backend = open(path.to_owned(), durability(name)).await;
    assert!(backend.notes().is_empty(), "{:?}", backend.notes());
    for (writer, state) in held.iter_mut() {
        let found = match backend.get(&key(&format!("k{writer}"))).await.unwrap().found {
            Err(_) => State::Absent,
            Ok(sealed) => {
                let (by, n) = parse(&sealed).expect("a torn value");
                assert_eq!((by, sealed == body(by, n)), (*writer, true), "a torn value");
                State::Value(n)
            }
        };
        let allowed = [Some(*state), maybe.get(writer).copied()];
        assert!(
            allowed.contains(&Some(found)),
            "{name}, key {writer}: found {found:?}, expected one of {allowed:?}"
        );
        *state = found;
    }
    // Closed now and then only, so that kills also meet files that a killed process left behind.
    if fastrand::bool() {
        backend.close().await.unwrap();
    }
}
