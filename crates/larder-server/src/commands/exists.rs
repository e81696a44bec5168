//! `larder exists`.

use super::{At, Failure, Outcome};
use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct Exists {
    key: String,
    #[command(flatten)]
    at: At,
}

impl Exists {
    pub(crate) async fn run(self) -> Result<Outcome, Failure> {
        let backing = self.at.open().await?;
        let exists = backing.exists(&self.key).await?;
        backing.close().await?;
        Ok(if exists { Outcome::Done } else { Outcome::Absent })
    }
}
