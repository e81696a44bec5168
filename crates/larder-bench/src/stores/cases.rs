//! What is measured of any store: get, batches, put, concurrent puts, cold open, space.
//!
//! All in wall time: a store may wait for the disk or for threads of its own. Every subject of a case has a
//! folder of its own below one folder, and all run in turns.

use super::{Durability, Maker, Result, Store};
use crate::measure::{Clock, interleaved};
use crate::report::{Line, Report};
use std::fs;
use std::hint::black_box;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// One size of values, and how much is done with it.
#[derive(Clone, Copy)]
pub struct Scale {
    pub value_bytes: usize,
    pub entries: usize,
    /// Gets of a round.
    pub gets: usize,
    /// Unsynced puts of a round.
    pub puts: usize,
    /// Synced puts of a round.
    pub puts_synced: usize,
}

impl Scale {
    /// 100 B, 1 KiB and 64 KiB.
    pub fn all(is_quick: bool) -> [Scale; 3] {
        let scale = |value_bytes, entries, gets, puts, puts_synced| match is_quick {
            true => Scale {
                value_bytes,
                entries: entries / 10,
                gets: gets / 5,
                puts: puts / 4,
                puts_synced: puts_synced / 4,
            },
            false => Scale { value_bytes, entries, gets, puts, puts_synced },
        };
        [
            scale(100, 20_000, 5000, 400, 20),
            scale(1024, 20_000, 5000, 400, 20),
            scale(65_536, 1000, 500, 80, 12),
        ]
    }

    pub fn name(&self) -> String {
        match self.value_bytes {
            bytes if bytes >= 1024 => format!("{} KiB", bytes / 1024),
            bytes => format!("{bytes} B"),
        }
    }

    fn value(&self) -> Vec<u8> {
        value(self.value_bytes, self.value_bytes as u64)
    }
}

/// Bytes that don't compress, so that nobody's compression makes less of them.
pub fn value(bytes: usize, seed: u64) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(seed);
    (0..bytes).map(|_| rng.u8(..)).collect()
}

pub fn key(number: usize) -> String {
    format!("user-{number:08}-profile")
}

/// As a reader that looks at what it gets.
fn seen(value: &[u8]) {
    black_box(value.len());
}

/// Stores that are open and full.
pub struct Filled {
    makers: Vec<Maker>,
    folders: Vec<PathBuf>,
    stores: Vec<Box<dyn Store>>,
    keys: Vec<String>,
}

impl Filled {
    pub fn new(makers: &[Maker], folder: &Path, scale: Scale) -> Result<Self> {
        let keys: Vec<String> = (0..scale.entries).map(key).collect();
        let folders = folders(makers, folder)?;
        let mut stores = Vec::new();
        for (maker, folder) in makers.iter().zip(&folders) {
            let store = (maker.open)(folder)?;
            store.fill(&keys, &scale.value())?;
            stores.push(store);
        }
        Ok(Filled { makers: makers.to_vec(), folders, stores, keys })
    }

    fn names(&self) -> Vec<&'static str> {
        self.makers.iter().map(|maker| maker.name).collect()
    }

    /// Gets of random keys, one after another.
    pub fn get(&self, case: &str, scale: Scale, report: &mut Report) -> Result<()> {
        let mut rng = fastrand::Rng::with_seed(1);
        let order: Vec<usize> = (0..scale.gets).map(|_| rng.usize(0..self.keys.len())).collect();
        let lines = interleaved(case, "median_ns", Clock::Wall, &self.names(), |at| {
            Clock::Wall.per_operation(|| {
                for &key in &order {
                    let read = self.stores[at].get(&self.keys[key], &mut seen);
                    black_box(read.expect("a store that was written can be read"));
                }
                order.len()
            })
        });
        report.group(&self.flag_missing(lines)?, "median_ns");
        Ok(())
    }

    /// Gets by the hundred; the figure is for one key.
    pub fn get_batches(&self, case: &str, scale: Scale, report: &mut Report) -> Result<()> {
        let mut rng = fastrand::Rng::with_seed(2);
        let mut batch = || (0..100).map(|_| self.keys[rng.usize(0..self.keys.len())].clone()).collect();
        let batches: Vec<Vec<String>> = (0..(scale.gets / 100).max(1)).map(|_| batch()).collect();
        let lines = interleaved(case, "median_ns", Clock::Wall, &self.names(), |at| {
            Clock::Wall.per_operation(|| {
                for keys in &batches {
                    let read = self.stores[at].get_many(keys, &mut seen);
                    black_box(read.expect("a store that was written can be read"));
                }
                100 * batches.len()
            })
        });
        report.group(&self.flag_missing(lines)?, "median_ns");
        Ok(())
    }

    /// Opens each store again and reads one entry: `cold` for the program; the system still has the pages.
    /// Then the bytes on the disk for each entry, after all stores were closed.
    pub fn reopen(mut self, case: &str, space: &str, scale: Scale, report: &mut Report) -> Result<()> {
        for store in self.stores.drain(..) {
            store.close()?;
        }
        let lines = self.names().into_iter().zip(&self.folders).map(|(name, folder)| {
            let bytes = disk_bytes(folder)? as f64 / self.keys.len() as f64;
            Ok(Line::new(space, name).value("bytes_per_entry", bytes))
        });
        let lines = lines.collect::<Result<Vec<_>>>()?;
        let mut rng = fastrand::Rng::with_seed(3);
        let opens = interleaved(case, "median_ns", Clock::Wall, &self.names(), |at| {
            let key = &self.keys[rng.usize(0..self.keys.len())];
            let mut opened = None;
            let ns = Clock::Wall.per_operation(|| {
                let store = (self.makers[at].open)(&self.folders[at]).expect("a store that was closed opens");
                black_box(store.get(key, &mut seen)).expect("it can be read");
                opened = Some(store);
                1
            });
            opened.map(Store::close).transpose().expect("an open store closes");
            ns
        });
        report.group(&opens, "median_ns");
        let lines = lines.into_iter().map(|line| line.value("value_bytes", scale.value_bytes as f64));
        report.group(&lines.collect::<Vec<_>>(), "bytes_per_entry");
        Ok(())
    }

    fn flag_missing(&self, lines: Vec<Line>) -> Result<Vec<Line>> {
        let flagged = lines.into_iter().zip(&self.stores).map(|(line, store)| {
            let found = store.get_many(&self.keys, &mut |_| {})?;
            Ok(match self.keys.len() - found {
                0 => line,
                missing => line.flag(format!("{missing} of {} entries are not there", self.keys.len())),
            })
        });
        flagged.collect()
    }
}

/// Puts of new keys, one after another, into stores that begin empty.
pub fn put(
    case: &str,
    makers: &[Maker],
    durability: Durability,
    folder: &Path,
    scale: Scale,
    report: &mut Report,
) -> Result<()> {
    let makers: Vec<Maker> = makers.iter().filter(|maker| maker.durability == durability).copied().collect();
    let stores = open(&makers, folder)?;
    let (value, mut next) = (scale.value(), vec![0; stores.len()]);
    let puts = if durability == Durability::Synced { scale.puts_synced } else { scale.puts };
    let names: Vec<_> = makers.iter().map(|maker| maker.name).collect();
    let lines = interleaved(case, "median_ns", Clock::Wall, &names, |at| {
        let keys: Vec<String> = (next[at]..next[at] + puts).map(key).collect();
        next[at] += puts;
        Clock::Wall.per_operation(|| {
            for key in &keys {
                stores[at].put(key, &value).expect("an open store takes a put");
            }
            puts
        })
    });
    report.group(&lines, "median_ns");
    stores.into_iter().try_for_each(Store::close)
}

/// Synced puts of 64 callers at once, in puts per second.
pub fn group_commit(
    case: &str,
    makers: &[Maker],
    folder: &Path,
    scale: Scale,
    report: &mut Report,
) -> Result<()> {
    const CALLERS: usize = 64;
    let synced = makers.iter().filter(|maker| maker.durability == Durability::Synced);
    let makers: Vec<Maker> = synced.copied().collect();
    let stores = open(&makers, folder)?;
    let each = (scale.puts_synced / 6).max(1);
    let (value, mut next) = (scale.value(), vec![0; stores.len()]);
    let names: Vec<_> = makers.iter().map(|maker| maker.name).collect();
    let lines = interleaved(case, "ops_per_s", Clock::Wall, &names, |at| {
        let first = next[at];
        next[at] += CALLERS * each;
        let keys = |caller: usize| (0..each).map(|i| key(first + caller * each + i)).collect();
        let callers: Vec<Vec<String>> = (0..CALLERS).map(keys).collect();
        let ns = Clock::Wall.per_operation(|| {
            stores[at].put_from(&callers, &value).expect("an open store takes puts");
            CALLERS * each
        });
        1e9 / ns
    });
    report.group(&lines, "ops_per_s");
    stores.into_iter().try_for_each(Store::close)
}

fn open(makers: &[Maker], folder: &Path) -> Result<Vec<Box<dyn Store>>> {
    let folders = folders(makers, folder)?;
    makers.iter().zip(folders).map(|(maker, folder)| (maker.open)(&folder)).collect()
}

fn folders(makers: &[Maker], folder: &Path) -> Result<Vec<PathBuf>> {
    let folders: Vec<_> = (0..makers.len()).map(|at| folder.join(at.to_string())).collect();
    for folder in &folders {
        fs::create_dir_all(folder)?;
    }
    Ok(folders)
}

/// What the files take on the disk, holes not counted.
fn disk_bytes(path: &Path) -> Result<u64> {
    let metadata = fs::symlink_metadata(path)?;
    let mut bytes = metadata.blocks() * 512;
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            bytes += disk_bytes(&entry?.path())?;
        }
    }
    Ok(bytes)
}
