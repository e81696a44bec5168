//! `larder delete`.

use super::{At, Failure, Outcome};
use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct Delete {
    key: String,
    #[command(flatten)]
    at: At,
}

impl Delete {
    pub(crate) async fn run(self) -> Result<Outcome, Failure> {
        let backing = self.at.open().await?;
        let existed = backing.delete(&self.key).await?;
        backing.close().await?;
        Ok(if existed { Outcome::Done } else { Outcome::Absent })
    }
}
