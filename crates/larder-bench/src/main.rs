//! Side by side with the peers: what larder costs, as ratios in one run.

#![allow(unreachable_pub, reason = "a program: `pub` says what a module offers to the others")]

mod contention;
mod hit_ratio;
mod l1;
mod measure;
mod memory;
mod miss;
mod oracles;
mod peers;
mod report;
mod trace;

use report::Report;
use std::process::ExitCode;

const USAGE: &str = "\
larder-bench hit-ratio [--json] [--capacity N]... [--engine NAME]... [--seeds N] [--shards N] TRACE...
larder-bench l1|miss|contention|memory [--json] [--quick]

TRACE: a file (one key per line, or ARC .lis; plain or .zst), or zipf:SKEW, loop:KEYS, scan, phases, churn.";

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
    if case == "memory-of" {
        let subject = arguments.next().ok_or(USAGE)?;
        let entries = arguments.next().and_then(|text| text.parse().ok()).ok_or(USAGE)?;
        return memory::child(&subject, entries);
    }
    let mut quick = false;
    let mut report = Report { json: false };
    let mut options = hit_ratio::Options {
        traces: Vec::new(),
        capacities: Vec::new(),
        engines: Vec::new(),
        seeds: 1,
        shards: None,
        trace_seed: 1,
    };
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} takes a value"));
        let number = |text: String| {
            text.parse::<usize>().map_err(|_| format!("{argument} takes a number, not {text:?}"))
        };
        match argument.as_str() {
            "--quick" => quick = true,
            "--json" => report.json = true,
            "--capacity" => options.capacities.push(number(value()?)?),
            "--engine" => options.engines.push(value()?),
            "--seeds" => options.seeds = number(value()?)?.max(1) as u64,
            "--shards" => options.shards = Some(number(value()?)?),
            "--trace-seed" => options.trace_seed = number(value()?)? as u64,
            flag if flag.starts_with("--") => return Err(format!("unknown flag {flag}\n{USAGE}")),
            trace => options.traces.push(trace.to_owned()),
        }
    }
    match case.as_str() {
        "hit-ratio" if options.traces.is_empty() => Err(format!("no trace given\n{USAGE}")),
        "hit-ratio" => hit_ratio::run(&options, &mut report),
        "l1" => {
            l1::run(quick, &mut report);
            Ok(())
        }
        "miss" => {
            miss::run(quick, &mut report);
            Ok(())
        }
        "contention" => {
            contention::run(quick, &mut report);
            Ok(())
        }
        "memory" => memory::run(quick, &mut report),
        other => Err(format!("unknown case {other:?}\n{USAGE}")),
    }
}
