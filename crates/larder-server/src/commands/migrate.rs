//! `larder migrate`.

use super::transfer::{self, Walk};
use super::{Failure, Outcome};
use clap::Args;
use larder::backend::Backend;
use larder::envelope::Envelope;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct Migrate {
    /// Where the entries are, as NAME:PATH: sqlite:FILE, jsonl:DIR; or tier:NAME of the settings
    from: String,
    /// Where they go, likewise; it may hold entries already, and later ones stay
    to: String,
    /// Settings of serve, with the tiers [default: those of larder-data]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Migrate {
    /// Interrupted and run again, it ends in the same state: what is there already is passed over.
    pub(crate) async fn run(self) -> Result<Outcome, Failure> {
        if self.from == self.to {
            return Err(Failure::new("both places are the same"));
        }
        let config = self.config.as_deref();
        let from = transfer::open(&self.from, true, config).await?;
        let to = transfer::open(&self.to, false, config).await?;
        let (mut stored, mut kept, mut unreadable) = (0, 0, 0);
        let bar = transfer::progress("moving", from.usage().await?.entries);
        let mut walk = Walk::over(&*from, None).await?;
        while let Some((entries, bad)) = walk.next().await? {
            bar.inc(entries.len() as u64 + bad);
            unreadable += bad;
            let delivered = transfer::deliver(&*to, entries).await?;
            stored += delivered.stored;
            kept += delivered.kept;
        }
        bar.finish_and_clear();
        let (verified, missing) = verify(&*from, &*to).await?;
        to.close().await?;
        from.close().await?;
        eprintln!("{stored} entries stored, {kept} were there already, {verified} verified");
        if unreadable > 0 {
            eprintln!("{unreadable} entries were passed over: their envelopes can't be read");
        }
        if missing > 0 {
            return Err(Failure::new(format!(
                "{missing} entries are not there; they were removed meanwhile, or didn't fit: run it again"
            )));
        }
        Ok(Outcome::Done)
    }
}

/// Looks every entry up in its new place: how many are there, the same or a later one, and how many not.
async fn verify(from: &dyn Backend, to: &dyn Backend) -> Result<(u64, u64), Failure> {
    let (mut verified, mut missing) = (0, 0);
    let bar = transfer::progress("verifying", from.usage().await?.entries);
    let mut walk = Walk::over(from, None).await?;
    while let Some((entries, _)) = walk.next().await? {
        bar.inc(entries.len() as u64);
        let keys: Vec<_> = entries.iter().map(|entry| entry.key.clone()).collect();
        for (read, entry) in to.get_many(&keys).await.into_iter().zip(entries) {
            let is_there = read?.found.is_ok_and(|sealed| {
                sealed == entry.sealed
                    || Envelope::header(&sealed).is_ok_and(|header| header.meta.stamp >= entry.meta.stamp)
            });
            // What expired since it was read is no loss.
            if is_there || entry.meta.is_gone(larder::clock::Clock::system().wall_ms()) {
                verified += 1;
            } else {
                missing += 1;
            }
        }
    }
    bar.finish_and_clear();
    Ok((verified, missing))
}
