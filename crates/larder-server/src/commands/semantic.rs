//! `larder semantic`: what belongs to answers found by meaning.

use super::{Failure, Outcome};
use crate::semantic::{EvalArgs, ModelArgs, evaluate};
use clap::{Args, Subcommand};

/// Answers found by meaning: how a policy would do on labelled questions, and the models to find them with
#[derive(Debug, Args)]
pub(crate) struct Semantic {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Eval(EvalArgs),
    Model(ModelArgs),
}

impl Semantic {
    pub(crate) fn run(&self) -> Result<Outcome, Failure> {
        match &self.command {
            Command::Eval(arguments) => evaluate(arguments).and_then(super::printed),
            Command::Model(arguments) => {
                let (outcome, written) = arguments.run()?;
                super::printed(written).map(|_| outcome)
            }
        }
    }
}
