//! How full the memory is that this process may use, and how much of L1's limit that leaves.
//!
//! Reads cgroups; decides a share of the limit, and applies nothing itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Memory in use and the most that is allowed, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryReading {
    /// In use, without what the kernel gives back by itself.
    pub used_bytes: u64,
    /// The most that may be used.
    pub max_bytes: u64,
}

/// Where memory is read.
pub trait MemorySource: Send + Sync + 'static {
    /// A reading; `None` where there is no limit or it can't be read, which leaves L1 as it is. Called every
    /// second on a thread of larder's: it must not wait.
    fn read(&self) -> Option<MemoryReading>;
}

/// Deepest nesting of cgroups that is read.
const DEPTH_MAX: usize = 16;
/// Above this, version 1 means "no limit".
const V1_UNLIMITED: u64 = 1 << 60;

/// The cgroup of this process, of version 2 or 1: of it and the groups around it the one that is fullest.
/// The page cache that was not used lately does not count as used.
#[derive(Clone, Debug)]
pub struct Cgroup {
    groups: Vec<PathBuf>,
    files: &'static Files,
}

#[derive(Debug)]
struct Files {
    used: &'static str,
    max: &'static str,
    idle: &'static str,
}

static V2: Files = Files { used: "memory.current", max: "memory.max", idle: "inactive_file" };
static V1: Files =
    Files { used: "memory.usage_in_bytes", max: "memory.limit_in_bytes", idle: "total_inactive_file" };

impl Cgroup {
    /// The cgroup of this process; `None` where there is none, as outside of Linux.
    pub fn of_this_process() -> Option<Self> {
        Cgroup::at(Path::new("/proc/self/cgroup"), Path::new("/sys/fs/cgroup"))
    }

    /// The cgroup that the file `membership` names, below the directory `mounted`.
    pub fn at(membership: &Path, mounted: &Path) -> Option<Self> {
        let membership = fs::read_to_string(membership).ok()?;
        let named = |line: &'_ str| {
            let mut parts = line.splitn(3, ':').skip(1);
            Some((parts.next()?.to_owned(), parts.next()?.to_owned()))
        };
        let groups: Vec<_> = membership.lines().filter_map(named).collect();
        let v1 = groups.iter().find(|(controllers, _)| controllers.split(',').any(|name| name == "memory"));
        let (root, path, files) = match v1 {
            Some((_, path)) => (mounted.join("memory"), path, &V1),
            None => (mounted.to_owned(), &groups.iter().find(|(names, _)| names.is_empty())?.1, &V2),
        };
        // Inside of a container the path may be the host's, which is not mounted here: then the root is what
        // is left.
        let own = root.join(path.trim_start_matches('/'));
        let groups = own.ancestors().take(DEPTH_MAX).take_while(|group| group.starts_with(&root));
        Some(Cgroup { groups: groups.map(Path::to_owned).collect(), files })
    }

    fn read_group(&self, group: &Path) -> Option<MemoryReading> {
        let number = |file: &str| fs::read_to_string(group.join(file)).ok()?.trim().parse::<u64>().ok();
        let max_bytes = number(self.files.max).filter(|&max| max > 0 && max < V1_UNLIMITED)?;
        let used = number(self.files.used)?;
        let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
        let idle = stat.lines().find_map(|line| line.strip_prefix(self.files.idle)?.trim().parse().ok());
        Some(MemoryReading { used_bytes: used.saturating_sub(idle.unwrap_or(0)), max_bytes })
    }
}

impl MemorySource for Cgroup {
    fn read(&self) -> Option<MemoryReading> {
        let readings = self.groups.iter().filter_map(|group| self.read_group(group));
        readings.max_by(|a, b| share_used(*a).total_cmp(&share_used(*b)))
    }
}

/// When L1 gives way to the rest of the process, and when it takes its room back.
///
/// Each second in which more than [`shrink_above`](Self::shrink_above) of the memory is used, L1's limit goes
/// down by a quarter, to no less than [`share_min`](Self::share_min) of what was asked for. After ten
/// seconds in a row below [`grow_below`](Self::grow_below) it goes up by a quarter.
#[derive(Clone)]
#[non_exhaustive]
pub struct MemoryPressure {
    source: Arc<dyn MemorySource>,
    /// Default: .9, which leaves a service the time to give memory back before the kernel kills it.
    pub shrink_above: f64,
    /// Default: .75, so far below that a limit which has just grown is not shrunk again at once.
    pub grow_below: f64,
    /// Default: .1. With nothing in memory a service would load everything, when it can least afford to.
    pub share_min: f64,
}

impl std::fmt::Debug for MemoryPressure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let MemoryPressure { source: _, shrink_above, grow_below, share_min } = self;
        write!(f, "MemoryPressure {{ above {shrink_above}, below {grow_below}, min {share_min} }}")
    }
}

/// Readings in a row that have to be low before the limit grows.
const CALM_READINGS: u32 = 10;
const SHRINK: f64 = 0.75;
const GROW: f64 = 1.25;

impl MemoryPressure {
    /// With the defaults, by `source`.
    pub fn new(source: impl MemorySource) -> Self {
        MemoryPressure { source: Arc::new(source), shrink_above: 0.9, grow_below: 0.75, share_min: 0.1 }
    }

    pub(crate) fn source(&self) -> Arc<dyn MemorySource> {
        Arc::clone(&self.source)
    }

    /// What is wrong with the settings, if something is.
    pub(crate) fn fault(&self) -> Option<String> {
        let MemoryPressure { source: _, shrink_above, grow_below, share_min } = self;
        let is_right = 0.0 < *grow_below && grow_below < shrink_above && *shrink_above <= 1.0;
        if !is_right {
            return Some(format!(
                "grow_below is {grow_below} and shrink_above {shrink_above}; 0 < grow_below < shrink_above <= 1 is allowed"
            ));
        }
        let is_share = 0.0 < *share_min && *share_min <= 1.0;
        (!is_share).then(|| format!("share_min is {share_min}; above 0, at most 1 is allowed"))
    }
}

/// What the readings so far have come to.
#[derive(Debug)]
pub(crate) struct Watch {
    settings: MemoryPressure,
    share: f64,
    calm: u32,
}

impl Watch {
    pub(crate) fn new(settings: MemoryPressure) -> Self {
        Watch { settings, share: 1.0, calm: 0 }
    }

    /// Takes a reading; the share of the limit that is left to L1.
    pub(crate) fn share(&mut self) -> f64 {
        let used = self.settings.source.read().map(share_used);
        match used {
            Some(used) if used > self.settings.shrink_above => {
                self.calm = 0;
                self.share = (self.share * SHRINK).max(self.settings.share_min);
            }
            Some(used) if used < self.settings.grow_below => {
                self.calm += 1;
                if self.calm >= CALM_READINGS {
                    self.calm = 0;
                    self.share = (self.share * GROW).min(1.0);
                }
            }
            _ => self.calm = 0,
        }
        self.share
    }
}

pub(crate) fn share_used(reading: MemoryReading) -> f64 {
    reading.used_bytes as f64 / reading.max_bytes.max(1) as f64
}
