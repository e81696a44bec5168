//! Side by side with the peers: what larder costs, as ratios in one run.

#![allow(unreachable_pub, reason = "a program: `pub` says what a module offers to the others")]

mod contention;
mod disk;
mod flights;
mod hit_ratio;
mod kill;
mod l1;
mod measure;
mod memcached;
mod memory;
mod miss;
mod oracles;
mod peers;
mod postgres;
mod redis;
mod remote;
#[allow(dead_code, reason = "the modules of another program, of which this one needs the reader")]
mod replay;
mod report;
mod sqlite;
mod stores;
mod trace;

use report::Report;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const USAGE: &str = "\
larder-bench l1|miss|hit-ratio|contention|memory|sqlite|disk|redis|memcached|postgres|all [--json] [--quick]
             [--markdown FILE] [--folder DIR]
larder-bench hit-ratio [--capacity N]... [--engine NAME]... [--seeds N] [--shards N] [--trace-seed N] TRACE...

--json      prints one object a line
--quick     less of everything, for a first look
--markdown  also writes tables to FILE, with the machine, the date and the command
--folder    where sqlite and disk write; `target` by default; not a file system in memory

TRACE: a file that `larder replay` reads, or zipf:SKEW, loop:KEYS, scan, phases, churn; all of these if none
is given.";

const CASES: [&str; 10] =
    ["l1", "miss", "hit-ratio", "contention", "memory", "sqlite", "disk", "redis", "memcached", "postgres"];

struct Settings {
    is_quick: bool,
    folder: PathBuf,
    hit_ratio: hit_ratio::Options,
}

#[allow(clippy::print_stderr, reason = "the program's errors")]
fn main() -> ExitCode {
    match run(std::env::args().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("larder-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: impl Iterator<Item = String>) -> Result<(), String> {
    let mut arguments = arguments;
    let case = arguments.next().ok_or(USAGE)?;
    // What this program starts itself.
    if case == "memory-of" {
        let subject = arguments.next().ok_or(USAGE)?;
        let entries = arguments.next().and_then(|text| text.parse().ok()).ok_or(USAGE)?;
        return memory::child(&subject, entries);
    }
    if case == "kill-of" {
        let [case, subject, folder] = [(); 3].map(|()| arguments.next().unwrap_or_default());
        return kill::child(&case, &subject, Path::new(&folder)).map_err(|error| error.to_string());
    }
    let mut settings = Settings {
        is_quick: false,
        // Where a run that was killed leaves nothing that git would see.
        folder: PathBuf::from(if Path::new("target").is_dir() { "target" } else { "." }),
        hit_ratio: hit_ratio::Options {
            traces: Vec::new(),
            capacities: Vec::new(),
            engines: Vec::new(),
            seeds: 1,
            shards: None,
            trace_seed: 1,
        },
    };
    let mut report = Report { is_json: false, markdown: None };
    let mut markdown_file = None;
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} takes a value"));
        let number = |text: String| {
            text.parse::<usize>().map_err(|_| format!("{argument} takes a number, not {text:?}"))
        };
        let options = &mut settings.hit_ratio;
        match argument.as_str() {
            "--quick" => settings.is_quick = true,
            "--json" => report.is_json = true,
            "--markdown" => markdown_file = Some(value()?),
            "--folder" => settings.folder = value()?.into(),
            "--capacity" => options.capacities.push(number(value()?)?),
            "--engine" => options.engines.push(value()?),
            "--seeds" => options.seeds = number(value()?)?.max(1) as u64,
            "--shards" => options.shards = Some(number(value()?)?),
            "--trace-seed" => options.trace_seed = number(value()?)? as u64,
            flag if flag.starts_with("--") => return Err(format!("unknown flag {flag}\n{USAGE}")),
            trace if case == "hit-ratio" => options.traces.push(trace.to_owned()),
            other => return Err(format!("{case} takes no {other:?}\n{USAGE}")),
        }
    }
    report.markdown = markdown_file.is_some().then(|| heading(&settings));
    match case.as_str() {
        "all" => CASES.iter().try_for_each(|case| run_case(case, &settings, &mut report))?,
        case => run_case(case, &settings, &mut report)?,
    }
    if let (Some(file), Some(text)) = (markdown_file, report.markdown) {
        std::fs::write(&file, text).map_err(|error| format!("{file}: {error}"))?;
    }
    Ok(())
}

fn run_case(case: &str, settings: &Settings, report: &mut Report) -> Result<(), String> {
    let Settings { is_quick, folder, hit_ratio } = settings;
    match case {
        "l1" => l1::run(*is_quick, report),
        "miss" => miss::run(*is_quick, report),
        "hit-ratio" => hit_ratio::run(*is_quick, hit_ratio, report)?,
        "contention" => contention::run(*is_quick, report),
        "memory" => memory::run(*is_quick, report)?,
        "sqlite" => sqlite::run(*is_quick, folder, report).map_err(|error| error.to_string())?,
        "disk" => disk::run(*is_quick, folder, report).map_err(|error| error.to_string())?,
        "redis" => redis::run(*is_quick, report).map_err(|error| error.to_string())?,
        "memcached" => memcached::run(*is_quick, report).map_err(|error| error.to_string())?,
        "postgres" => postgres::run(*is_quick, report).map_err(|error| error.to_string())?,
        other => return Err(format!("unknown case {other:?}\n{USAGE}")),
    }
    Ok(())
}

/// Where, when and how the figures came about.
fn heading(settings: &Settings) -> String {
    let read = |path: &str, field: &str| {
        let text = std::fs::read_to_string(path).ok()?;
        let line = text.lines().find(|line| line.starts_with(field))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let said = |program: &str, argument: &str| {
        let output = Command::new(program).arg(argument).output().ok()?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let unknown = || "unknown".to_owned();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    format!(
        "`cargo run --release -p larder-bench -- {}` on {}, {cores} cores, {} of memory, Linux {}, {}{}.\n\
         The spread is from the second lowest to the second highest round, in ratio to the median.\n",
        arguments.join(" "),
        read("/proc/cpuinfo", "model name").unwrap_or_else(unknown),
        read("/proc/meminfo", "MemTotal").unwrap_or_else(unknown),
        said("uname", "-r").unwrap_or_else(unknown),
        said("date", "-I").unwrap_or_else(unknown),
        if settings.is_quick { ", less of everything (`--quick`)" } else { "" },
    )
}
