//! The commands, one file each, and what they share: where the cache is, and how a command ends.

mod delete;
mod dev_upstream;
mod exists;
mod explain;
mod export;
mod flush;
mod get;
mod health;
mod import;
mod keyring;
mod keys;
mod lines;
mod migrate;
mod report;
mod semantic;
mod serve;
mod set;
mod stats;
mod transfer;

use crate::backing::Backing;
use crate::config::{Secret, Settings};
use clap::{Args, Parser, Subcommand};
use larder::key::Namespace;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// A cache that invalidates correctly and never takes its service down.
#[derive(Debug, Parser)]
#[command(name = "larder", version, arg_required_else_help = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the cache over HTTP, on memory and a database in a folder
    Serve(serve::Serve),
    /// Write a value to the output; ends with 1 if there is none
    Get(get::Get),
    /// Set a value from an argument, a file or the input
    Set(set::Set),
    /// Remove a key; ends with 1 if there was none
    Delete(delete::Delete),
    /// Ends with 0 if a key has a value, with 1 if not
    Exists(exists::Exists),
    /// List keys; or make, count and rotate the keys that encrypt
    Keys(keys::Keys),
    /// Remove all entries of a namespace, or those with a tag or a matching key
    Flush(flush::Flush),
    /// Show what the cache counted
    Stats(stats::Stats),
    /// Show how the cache and each tier are; ends with 2 if it should get no requests
    Health(health::Health),
    /// Say that an entry did what it is for, or not; after three bad reports in a row it is removed
    Report(report::Report),
    /// List what was reported, as JSON lines
    Reports(report::Reports),
    /// Show what each tier knows of a key
    Explain(explain::Explain),
    /// Write all entries as JSON lines, with tags and expiries
    Export(export::Export),
    /// Read what export wrote
    Import(import::Import),
    /// Copy all entries from one place to another, with stamps, tags and expiries
    Migrate(migrate::Migrate),
    /// Serve an OpenAI-compatible API of canned answers, to try the gateway with
    DevUpstream(dev_upstream::DevUpstream),
    Replay(crate::replay::ReplayArgs),
    Semantic(semantic::Semantic),
}

/// How a command ended, if it did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    /// What was asked for is not there, or not quite as it should be.
    Absent,
    /// It was found out that something is wrong.
    Unhealthy,
}

/// Why a command failed, in words for a person.
#[derive(Debug)]
pub(crate) struct Failure(String);

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Failure(message.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure(error.to_string())
    }
}

/// Which cache a command works on.
#[derive(Debug, Args)]
pub(crate) struct At {
    /// URL of a running server
    #[arg(long, value_name = "URL", conflicts_with_all = ["data", "config"])]
    server: Option<String>,
    /// Data folder; the server that has it is asked, else it is opened [default: larder-data]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Settings of serve, with the tiers [default: those that the data folder was served with]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// File with the server's token; LARDER_TOKEN works too
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Keys of an encrypted data folder [default: where its server had them]
    #[arg(long, value_name = "FILE", conflicts_with = "server")]
    key_file: Option<PathBuf>,
    /// Key space
    #[arg(long, short, value_name = "NAME", default_value = "default")]
    namespace: String,
}

impl At {
    /// The cache itself, or the server that has it.
    pub(crate) async fn open(&self) -> Result<Backing, Failure> {
        let namespace = Namespace::new(&self.namespace)?;
        let token = match &self.token_file {
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|error| Failure::new(format!("{} can't be read: {error}", path.display())))?;
                Some(Secret::new(text.lines().next().unwrap_or_default().trim().to_owned()))
            }
            None => std::env::var("LARDER_TOKEN").ok().map(Secret::new),
        };
        let server = self.server.clone().or_else(|| {
            // The folder was named, so a variable of the surroundings doesn't count.
            (self.data.is_none() && self.config.is_none())
                .then(|| std::env::var("LARDER_SERVER").ok())
                .flatten()
        });
        match server {
            Some(url) => Backing::server(&url, token, namespace),
            None => {
                let (config, data, key_file) = (&self.config, &self.data, &self.key_file);
                let settings = settings_of(config.as_deref(), data.as_deref(), key_file.as_deref())?;
                Backing::folder(&settings, token, namespace).await
            }
        }
    }
}

/// What a command on a folder goes by.
fn settings_of(
    config: Option<&Path>,
    data: Option<&Path>,
    key_file: Option<&Path>,
) -> Result<Settings, Failure> {
    Settings::for_command(config, data, key_file).map_err(Failure::new)
}

/// Runs the command of the arguments.
pub(crate) fn run(arguments: Arguments) -> ExitCode {
    let ended = match arguments.command {
        Command::Serve(serve) => serve.run(),
        Command::Get(get) => block_on(get.run()),
        Command::Set(set) => block_on(set.run()),
        Command::Delete(delete) => block_on(delete.run()),
        Command::Exists(exists) => block_on(exists.run()),
        Command::Keys(keys) => block_on(keys.run()),
        Command::Flush(flush) => block_on(flush.run()),
        Command::Stats(stats) => block_on(stats.run()),
        Command::Health(health) => block_on(health.run()),
        Command::Report(report) => block_on(report.run()),
        Command::Reports(reports) => block_on(reports.run()),
        Command::Explain(explain) => block_on(explain.run()),
        Command::Export(export) => block_on(export.run()),
        Command::Import(import) => block_on(import.run()),
        Command::Migrate(migrate) => block_on(migrate.run()),
        Command::DevUpstream(upstream) => upstream.run(),
        Command::Semantic(semantic) => semantic.run(),
        Command::Replay(arguments) => match crate::replay::run(&arguments) {
            Ok(code) => return code,
            Err(error) => Err(Failure::new(error.to_string())),
        },
    };
    match ended {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Absent) => ExitCode::from(1),
        Ok(Outcome::Unhealthy) => ExitCode::from(2),
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::from(2)
        }
    }
}

/// The end of a command that printed. A reader that has seen enough, as `head` has, is no failure.
fn printed(outcome: std::io::Result<()>) -> Result<Outcome, Failure> {
    match outcome {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(Outcome::Done),
    }
}

fn block_on(command: impl Future<Output = Result<Outcome, Failure>>) -> Result<Outcome, Failure> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(command)
}
