//! `larder report` and `larder reports`.

use super::set::seconds;
use super::{At, Failure, Outcome, printed};
use clap::{Args, ValueEnum};
use larder::report::{Query, Report as Said, Verdict};
use std::io::{ErrorKind, Write};
use std::time::Duration;

#[derive(Debug, Args)]
pub(crate) struct Report {
    key: String,
    #[arg(value_enum)]
    verdict: Word,
    /// Where the entry came from, to be asked by
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// What there is to say; stored in plain
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
    /// How long the use took
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    latency: Option<Duration>,
    #[command(flatten)]
    at: At,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Word {
    Good,
    Bad,
}

impl Word {
    fn verdict(self) -> Verdict {
        match self {
            Word::Good => Verdict::Good,
            Word::Bad => Verdict::Bad,
        }
    }
}

impl Report {
    pub(crate) async fn run(self) -> Result<Outcome, Failure> {
        let mut said = match self.verdict {
            Word::Good => Said::good(),
            Word::Bad => Said::bad(),
        };
        said = self.source.iter().fold(said, |said, source| said.source(source));
        said = self.note.iter().fold(said, |said, note| said.note(note));
        said = self.latency.into_iter().fold(said, Said::latency);
        let backing = self.at.open().await?;
        let (in_a_row, is_evicted) = backing.report(&self.key, &said).await?;
        backing.close().await?;
        let end = if is_evicted { "; removed" } else { "" };
        printed(writeln!(std::io::stdout(), "{in_a_row} bad in a row{end}"))
    }
}

#[derive(Debug, Args)]
pub(crate) struct Reports {
    /// Only what was said of this key, the newest first; else all entries that were reported on
    key: Option<String>,
    /// Only entries from this source
    #[arg(long, value_name = "NAME", conflicts_with = "key")]
    source: Option<String>,
    /// Only entries of which the last report said this
    #[arg(long, value_enum, conflicts_with = "key")]
    verdict: Option<Word>,
    #[command(flatten)]
    at: At,
}

impl Reports {
    /// One JSON object per line.
    pub(crate) async fn run(self) -> Result<Outcome, Failure> {
        let backing = self.at.open().await?;
        let mut query =
            Query { source: self.source, verdict: self.verdict.map(Word::verdict), ..Query::default() };
        let mut output = std::io::stdout().lock();
        loop {
            let (lines, next) = match &self.key {
                Some(key) => (backing.history(key).await?, None),
                None => backing.standings(&query).await?,
            };
            for line in &lines {
                match writeln!(output, "{line}") {
                    // The reader has seen enough, as `head` has.
                    Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(Outcome::Done),
                    written => written?,
                }
            }
            query.after = next;
            if query.after.is_none() {
                break;
            }
        }
        output.flush()?;
        backing.close().await?;
        Ok(Outcome::Done)
    }
}
