//! `larder semantic`: what belongs to answers found by meaning.

use super::{Failure, Outcome};
use clap::{Args, Subcommand};

/// Answers found by meaning: how a policy would do on labelled questions
#[derive(Debug, Args)]
pub(crate) struct Semantic {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Eval(crate::semantic::EvalArgs),
}

impl Semantic {
    pub(crate) fn run(&self) -> Result<Outcome, Failure> {
        match &self.command {
            Command::Eval(arguments) => crate::semantic::run(arguments).and_then(super::printed),
        }
    }
}
