//! `larder get`.

use super::{At, Failure, Outcome, printed};
use clap::Args;
use std::io::Write;

#[derive(Debug, Args)]
pub(crate) struct Get {
    key: String,
    #[command(flatten)]
    at: At,
}

impl Get {
    pub(crate) async fn run(self) -> Result<Outcome, Failure> {
        let backing = self.at.open().await?;
        let value = backing.get(&self.key).await?;
        backing.close().await?;
        let Some(value) = value else { return Ok(Outcome::Absent) };
        let mut output = std::io::stdout().lock();
        printed(output.write_all(&value).and_then(|()| output.flush()))
    }
}
