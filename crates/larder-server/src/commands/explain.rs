//! `larder explain`.

use super::{At, Failure, Outcome, printed};
use clap::Args;
use std::io::Write;

#[derive(Debug, Args)]
pub(crate) struct Explain {
    key: String,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    at: At,
}

impl Explain {
    pub(crate) async fn run(self) -> Result<Outcome, Failure> {
        let backing = self.at.open().await?;
        let text = backing.explain(&self.key, self.json).await?;
        backing.close().await?;
        printed(writeln!(std::io::stdout(), "{}", text.trim_end()))
    }
}
