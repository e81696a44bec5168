//! `larder keys`.

use super::{At, Failure, Outcome, keyring};
use clap::Args;
use std::io::{ErrorKind, Write};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Keys {
    /// Instead: the keys that encrypt
    #[command(subcommand)]
    action: Option<keyring::Action>,
    /// Only keys that match this glob
    #[arg(long, value_name = "GLOB")]
    pattern: Option<String>,
    /// One JSON object per line, with size and time left
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    at: At,
}

impl Keys {
    pub(crate) async fn run(self) -> Result<Outcome, Failure> {
        if let Some(action) = self.action {
            return action.run().await;
        }
        let backing = self.at.open().await?;
        let mut output = std::io::stdout().lock();
        let mut after = None;
        loop {
            let page = backing.keys(self.pattern.as_deref(), after.as_deref()).await?;
            for key in &page.keys {
                let written = match (self.json, key["key"].as_str()) {
                    (false, Some(text)) => writeln!(output, "{text}"),
                    _ => writeln!(output, "{key}"),
                };
                match written {
                    // The reader has seen enough, as `head` has.
                    Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(Outcome::Done),
                    written => written?,
                }
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        output.flush()?;
        backing.close().await?;
        Ok(Outcome::Done)
    }
}
