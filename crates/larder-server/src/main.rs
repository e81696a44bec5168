//! The `larder` command: serves a cache over HTTP, works on one, and replays access traces.

mod backing;
mod client;
mod commands;
mod config;
mod data;
mod gateway;
mod http;
mod replay;
mod semantic;
mod store;
mod value;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    commands::run(commands::Arguments::parse())
}
