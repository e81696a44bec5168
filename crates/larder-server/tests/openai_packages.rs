//! Failure: what the official clients make of the gateway's replies is not what they make of the upstream's.
//!
//! The packages are installed by `.ci/test`: for Python into `target/openai/python`, for Node into
//! `target/openai/node`.

#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod gateway_support;
mod support;

use gateway_support::Gateway;
use std::path::{Path, PathBuf};
use std::process::Command;

const TESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/openai");

fn installed() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/openai")
}

/// What a client got, step by step.
fn run(command: &mut Command, base_url: &str) -> Vec<String> {
    let output =
        command.args([&format!("{base_url}/v1"), "key-of-the-client"]).output().unwrap_or_else(|error| {
            panic!("{error}: {command:?}; .ci/test installs the packages");
        });
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{error}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// The same steps without the gateway, through it, and through it again: always the same.
fn compare(client: impl Fn() -> Command) {
    let gateway = Gateway::start(0, 0, &[]);
    let direct = run(&mut client(), &gateway.upstream.url);
    let after_direct = gateway.upstream.calls();
    let missed = run(&mut client(), &gateway.server.url());
    support::eventually("the cancelled ones have ended", || gateway.upstream.calls() >= after_direct * 2 - 1);
    let after_misses = gateway.upstream.calls();
    let hit = run(&mut client(), &gateway.server.url());
    for (step, direct) in direct.iter().enumerate() {
        assert_eq!(direct, &missed[step], "on a miss");
        assert_eq!(direct, &hit[step], "on a hit");
    }
    assert_eq!((direct.len(), missed.len()), (hit.len(), hit.len()));
    assert!(direct.len() > 15 && !direct.iter().any(|line| line.contains("no error")), "{direct:#?}");
    // What fails is asked again: five errors, one that hangs, one that is cut.
    assert_eq!(gateway.upstream.calls() - after_misses, 7);
}

#[test]
fn the_package_for_python_sees_no_difference() {
    compare(|| {
        let mut command = Command::new(installed().join("python/bin/python"));
        command.arg(format!("{TESTS}/client.py"));
        command
    });
}

#[test]
fn the_package_for_node_sees_no_difference() {
    // Modules are looked for beside the script.
    let script = installed().join("node/client.mjs");
    std::fs::copy(format!("{TESTS}/client.mjs"), &script).unwrap();
    compare(|| {
        let mut command = Command::new("node");
        command.arg(&script);
        command
    });
}
