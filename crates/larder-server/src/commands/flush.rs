//! `larder flush`.

use super::{At, Failure, Outcome};
use crate::backing::Selection;
use clap::Args;
use std::io::{IsTerminal, Write};

#[derive(Debug, Args)]
pub(crate) struct Flush {
    /// Only keys that match this glob
    #[arg(long, value_name = "GLOB", conflicts_with = "tag")]
    pattern: Option<String>,
    /// Only entries with this tag
    #[arg(long, value_name = "TAG")]
    tag: Option<String>,
    /// Don't ask
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    at: At,
}

impl Flush {
    pub(crate) async fn run(self) -> Result<Outcome, Failure> {
        let selection = match (self.pattern, self.tag) {
            (Some(pattern), _) => Selection::Pattern(pattern),
            (None, Some(tag)) => Selection::Tag(tag),
            (None, None) => Selection::All,
        };
        if !self.force && std::io::stdin().is_terminal() && !is_confirmed(&selection, &self.at.namespace)? {
            return Err(Failure::new("nothing was removed"));
        }
        let backing = self.at.open().await?;
        let removed = backing.flush(&selection).await?;
        backing.close().await?;
        if let Some(removed) = removed {
            eprintln!("removed {removed} entries");
        }
        Ok(Outcome::Done)
    }
}

fn is_confirmed(selection: &Selection, namespace: &str) -> std::io::Result<bool> {
    let what = match selection {
        Selection::All => "all entries".to_owned(),
        Selection::Tag(tag) => format!("all entries with the tag {tag:?}"),
        Selection::Pattern(pattern) => format!("all entries whose key matches {pattern:?}"),
    };
    eprint!("Remove {what} of the namespace {namespace}? [y/N] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
