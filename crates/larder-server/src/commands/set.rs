//! `larder set`.

use super::{At, Failure, Outcome};
use bytes::Bytes;
use clap::Args;
use larder::entry::Tags;
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Args)]
pub(crate) struct Set {
    key: String,
    /// The value; without it and without --file, the input is read
    #[arg(conflicts_with = "file")]
    value: Option<String>,
    /// Read the value from a file
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// How long it is fresh: seconds with fractions, or never
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    ttl: Option<Duration>,
    /// A tag; may be repeated
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// Media type of the value
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,
    #[command(flatten)]
    at: At,
}

pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    if text == "never" {
        return Ok(Duration::MAX);
    }
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.ok_or_else(|| "a number of seconds of 0 or more, or never, is allowed".to_owned())
}

impl Set {
    pub(crate) async fn run(self) -> Result<Outcome, Failure> {
        let value: Bytes = match (self.value, self.file) {
            (Some(value), _) => value.into(),
            (None, Some(path)) => std::fs::read(&path)
                .map_err(|error| Failure::new(format!("{} can't be read: {error}", path.display())))?
                .into(),
            (None, None) => {
                let mut value = Vec::new();
                std::io::stdin().lock().read_to_end(&mut value)?;
                value.into()
            }
        };
        let tags = Tags::new(self.tags)?;
        let backing = self.at.open().await?;
        let is_durable = backing.set(&self.key, value, self.content_type.as_deref(), self.ttl, tags).await?;
        backing.close().await?;
        if is_durable {
            return Ok(Outcome::Done);
        }
        Err(Failure::new("set in the server's memory only: its data folder could not take it"))
    }
}
