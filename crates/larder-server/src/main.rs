//! The `larder` command.

mod replay;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// A cache that invalidates correctly and never takes its service down.
#[derive(Debug, Parser)]
#[command(name = "larder", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Replay(replay::ReplayArgs),
}

fn main() -> ExitCode {
    let Command::Replay(args) = Cli::parse().command;
    match replay::run(&args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}
