//! The command line of `larder replay`: parsed and checked once, here.

use super::error::ReplayError;
use super::layout::Format;
use super::stack::Tiers;
use super::trace::{ACCESSES_MAX, ReadOptions};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// Replay access traces and show hit ratios beside LRU's and the best possible
///
/// Each trace is replayed through larder's cache once per capacity. Beside the result stand LRU's hit ratio
/// at the same capacity and the best that any policy could have reached: Belady's optimum, or with --by
/// bytes an upper bound of it (PFOO-L), because the optimum itself can't be computed. Both are exact and know
/// no TTL. A miss is the look-up and the set that follows it. Latencies are those of one thread that does
/// nothing else, from one access in 16, without the cost of the clock. Keys are hashed differently in each
/// run, as in service, so that hit ratios differ from run to run: by some hundredths of a percent on most
/// traces, by up to 1% on some.
///
/// With --tiers l1,sqlite, what L1 misses is looked for in a SQLite file, and set in both when it is not there
/// either. Every set waits for its commit (Durability::Process: not synced to the disk each time), which is
/// some thousand sets per second. The file lies in a new folder below TMPDIR and is removed at the end. LRU
/// and the best possible remain those of L1's capacity.
///
/// A trace may be plain, gzip or zstd; its content tells, not its name. Blank lines and lines that begin with
/// # say nothing. Keys are bytes in any encoding. A CSV header may name the columns: timestamp, time or ts;
/// key, id, object, object_id or obj_id; size, bytes, value_size, object_size or obj_size.
///
/// Memory: 8 bytes per access and up to 80 per distinct key, 4 more per access with sizes, 8 more with --ttl,
/// 16 more with --by bytes; and about 150 per entry that L1 holds.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ReplayArgs {
    /// The traces, each replayed by itself; - is standard input
    #[arg(required = true, value_name = "TRACE")]
    pub(super) traces: Vec<PathBuf>,

    /// What L1 may hold, several by commas: entries, bytes with --by bytes (K, M, G for KiB, MiB, GiB), or a
    /// percentage of the distinct keys or their bytes
    #[arg(long, value_delimiter = ',', default_value = "1%,2%,5%,10%,20%", value_name = "CAPACITY")]
    pub(super) capacity: Vec<Capacity>,

    /// What capacities count
    #[arg(long, value_enum, default_value = "entries")]
    pub(super) by: By,

    /// The tiers of the stack
    #[arg(long, value_enum, default_value = "l1")]
    pub(super) tiers: Tiers,

    /// What SQLite may hold below L1: a multiple of L1's capacity (10x), a capacity as above, or unlimited; in
    /// bytes, its rows count with their keys [default: 10x, as a disk costs about a tenth of memory]
    #[arg(long, value_name = "CAPACITY")]
    pub(super) sqlite_capacity: Option<SqliteCapacity>,

    /// How long entries live, by the trace's timestamps: 500ms, 30s, 5m, 2h, 1d
    #[arg(long, value_parser = parse_ttl, value_name = "DURATION")]
    pub(super) ttl: Option<Duration>,

    /// The unit of the trace's timestamps
    #[arg(long, value_enum, default_value = "s")]
    pub(super) time_unit: TimeUnit,

    /// The size of every value when the trace has no sizes
    #[arg(long, value_parser = parse_value_bytes, default_value = "1K", value_name = "BYTES")]
    pub(super) value_bytes: u32,

    /// Replay only so many accesses of each trace [default: 100000000, or 200000 with SQLite]
    #[arg(long, value_name = "ACCESSES", value_parser = clap::value_parser!(u64).range(1..=ACCESSES_MAX))]
    pub(super) limit: Option<u64>,

    /// How to read the traces
    #[arg(long, value_enum, default_value = "auto")]
    pub(super) format: Format,

    /// Stop at the first malformed line instead of skipping it
    #[arg(long)]
    pub(super) strict: bool,

    /// One JSON object per line: the trace, then each capacity
    #[arg(long)]
    pub(super) json: bool,

    /// Leave out the plot
    #[arg(long)]
    pub(super) no_plot: bool,
}

/// What capacities count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum By {
    Entries,
    Bytes,
}

/// The unit of timestamps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum TimeUnit {
    S,
    Ms,
    Us,
    Ns,
}

/// One capacity as written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Capacity {
    Number(u64),
    /// With a suffix, for bytes only.
    Bytes {
        bytes: u64,
        written: String,
    },
    Percent(f64),
}

/// What SQLite may hold.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum SqliteCapacity {
    /// So many times what L1 may.
    Times(f64),
    Own(Capacity),
    Unlimited,
}

/// A replay with SQLite takes minutes at this length, and hours at the other.
const LIMIT_SQLITE: u64 = 200_000;
const LIMIT_L1: u64 = 100_000_000;

impl ReplayArgs {
    /// Checks what clap can't: settings that contradict each other.
    pub(super) fn check(&self) -> Result<(), ReplayError> {
        let of_sqlite = match &self.sqlite_capacity {
            Some(_) if self.tiers == Tiers::L1 => {
                return Err(ReplayError::Setting {
                    setting: "--sqlite-capacity",
                    value: "set".to_owned(),
                    allowed: "only with --tiers l1,sqlite".to_owned(),
                });
            }
            Some(SqliteCapacity::Own(capacity)) => Some(("--sqlite-capacity", capacity)),
            _ => None,
        };
        for (setting, capacity) in
            self.capacity.iter().map(|capacity| ("--capacity", capacity)).chain(of_sqlite)
        {
            if let (Capacity::Bytes { written, .. }, By::Entries) = (capacity, self.by) {
                return Err(ReplayError::Setting {
                    setting,
                    value: written.clone(),
                    allowed: "a suffix only with --by bytes; entries are a plain number or a percentage"
                        .to_owned(),
                });
            }
        }
        if self.traces.iter().filter(|path| path.as_os_str() == "-").count() > 1 {
            return Err(ReplayError::Setting {
                setting: "TRACE",
                value: "- -".to_owned(),
                allowed: "standard input once".to_owned(),
            });
        }
        Ok(())
    }

    pub(super) fn read_options(&self) -> ReadOptions {
        ReadOptions {
            format: self.format,
            strict: self.strict,
            limit: self.limit.unwrap_or(match self.tiers {
                Tiers::L1 => LIMIT_L1,
                Tiers::L1Sqlite => LIMIT_SQLITE,
            }),
            value_bytes: self.value_bytes,
            keep_times: self.ttl.map(|_| match self.time_unit {
                TimeUnit::S => 1e3,
                TimeUnit::Ms => 1.0,
                TimeUnit::Us => 1e-3,
                TimeUnit::Ns => 1e-6,
            }),
        }
    }

    /// The capacities in rising order, each once; percentages are of `whole`, rounded, at least 1.
    pub(super) fn capacities_of(&self, whole: u64) -> Vec<u64> {
        let mut capacities: Vec<u64> = self.capacity.iter().map(|capacity| capacity.of(whole)).collect();
        capacities.sort_unstable();
        capacities.dedup();
        capacities
    }

    /// What SQLite may hold below an L1 of capacity `l1`; `None` is unlimited.
    pub(super) fn sqlite_capacity_of(&self, l1: u64, whole: u64) -> Option<u64> {
        match self.sqlite_capacity.as_ref().unwrap_or(&SqliteCapacity::Times(10.0)) {
            // Saturates where the product passes 2^64.
            SqliteCapacity::Times(times) => Some((l1 as f64 * times).round() as u64),
            SqliteCapacity::Own(capacity) => Some(capacity.of(whole)),
            SqliteCapacity::Unlimited => None,
        }
    }
}

impl Capacity {
    fn of(&self, whole: u64) -> u64 {
        match self {
            Self::Number(number) => *number,
            Self::Bytes { bytes, .. } => *bytes,
            Self::Percent(percent) => ((whole as f64 * percent / 100.0).round() as u64).max(1),
        }
    }
}

impl FromStr for Capacity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let allowed =
            || "allowed are a number from 1, 1K, 1M, 1G, or a percentage above 0% up to 100%".to_owned();
        if let Some(percent) = text.strip_suffix('%') {
            let percent = percent.parse::<f64>().ok().filter(|percent| *percent > 0.0 && *percent <= 100.0);
            return percent.map(Self::Percent).ok_or_else(allowed);
        }
        let bytes = parse_bytes(text).filter(|bytes| *bytes > 0).ok_or_else(allowed)?;
        Ok(match text.parse() {
            Ok(number) => Self::Number(number),
            Err(_) => Self::Bytes { bytes, written: text.to_owned() },
        })
    }
}

impl FromStr for SqliteCapacity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "unlimited" {
            return Ok(Self::Unlimited);
        }
        if let Some(times) = text.strip_suffix('x') {
            let times = times.parse::<f64>().ok().filter(|times| times.is_finite() && *times >= 1.0);
            return times
                .map(Self::Times)
                .ok_or_else(|| "a multiple of L1's capacity is 1x or more".to_owned());
        }
        text.parse().map(Self::Own).map_err(|error| format!("{error}, 10x, or unlimited"))
    }
}

/// Bytes with an optional K, M or G, which are powers of 1024.
fn parse_bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

fn parse_value_bytes(text: &str) -> Result<u32, String> {
    let bytes = parse_bytes(text).and_then(|bytes| u32::try_from(bytes).ok()).filter(|bytes| *bytes > 0);
    bytes.ok_or_else(|| "allowed are 1 to 4294967295 bytes, also as 1K, 1M, 1G".to_owned())
}

fn parse_ttl(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit_ms: u64 = match &text[digits.len()..] {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err("allowed are whole numbers from 1 with ms, s, m, h or d".to_owned()),
    };
    let ms = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit_ms)).filter(|ms| *ms > 0);
    ms.map(Duration::from_millis)
        .ok_or_else(|| "allowed are whole numbers from 1 with ms, s, m, h or d".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: ReplayArgs,
    }

    fn parse(words: &[&str]) -> Result<ReplayArgs, String> {
        let words = ["replay"].iter().chain(words);
        Cli::try_parse_from(words).map(|cli| cli.args).map_err(|error| error.to_string())
    }

    #[test]
    fn capacities_are_sorted_and_single() {
        let args = parse(&["t", "--capacity", "50,1%,10,100%,0.01%"]).unwrap();
        assert_eq!(args.capacities_of(1000), [1, 10, 50, 1000]);
        let args = parse(&["t", "--capacity", "2K,1m,3G,5", "--by", "bytes"]).unwrap();
        assert_eq!(args.capacities_of(1), [5, 2048, 1 << 20, 3 << 30]);
        assert!(args.check().is_ok());
    }

    #[test]
    fn sqlite_capacity_follows_l1_unless_it_is_set() {
        let of = |written: &[&str]| {
            let args = parse(&[&["t", "--tiers", "l1,sqlite"], written].concat()).unwrap();
            assert!(args.check().is_ok());
            args.sqlite_capacity_of(30, 2000)
        };
        assert_eq!(of(&[]), Some(300));
        assert_eq!(of(&["--sqlite-capacity", "2.5x"]), Some(75));
        assert_eq!(of(&["--sqlite-capacity", "50%"]), Some(1000));
        assert_eq!(of(&["--sqlite-capacity", "7"]), Some(7));
        assert_eq!(of(&["--sqlite-capacity", "unlimited"]), None);
        assert_eq!(parse(&["t", "--tiers", "l1,sqlite"]).unwrap().read_options().limit, LIMIT_SQLITE);
        assert_eq!(parse(&["t"]).unwrap().read_options().limit, LIMIT_L1);
    }

    #[test]
    fn what_is_not_allowed_is_refused_with_the_value() {
        for bad in
            ["0", "0%", "101%", "nan%", "-5", "x", "5T", "99999999999999999999", "18446744073709551615K", ""]
        {
            let error = parse(&["t", &format!("--capacity={bad}")]).unwrap_err();
            assert!(error.contains("--capacity"), "{bad}: {error}");
        }
        for bad in ["--ttl=5", "--ttl=0s", "--ttl=1w", "--value-bytes=0", "--value-bytes=4G", "--limit=0"] {
            assert!(parse(&["t", bad]).is_err(), "{bad}");
        }
        let error = parse(&["t", "--capacity", "4K"]).unwrap().check().unwrap_err().to_string();
        assert!(error.contains("`4K`") && error.contains("--by bytes"), "{error}");
        for bad in ["0", "0.5x", "x", "nanx", "infx", "none"] {
            assert!(
                parse(&["t", "--tiers=l1,sqlite", &format!("--sqlite-capacity={bad}")]).is_err(),
                "{bad}"
            );
        }
        for (args, says) in [
            (&["t", "--sqlite-capacity=9"][..], "--tiers l1,sqlite"),
            (&["t", "--tiers=l1,sqlite", "--sqlite-capacity=9K"], "`9K`"),
        ] {
            let error = parse(args).unwrap().check().unwrap_err().to_string();
            assert!(error.contains("--sqlite-capacity") && error.contains(says), "{error}");
        }
        assert!(parse(&["-", "-"]).unwrap().check().is_err());
        assert!(parse(&[]).is_err());
    }
}
