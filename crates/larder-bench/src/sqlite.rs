//! `sqlite`: the SQLite tier beside raw prepared `rusqlite`, `redb`, `fjall` and `foyer`'s disk engine, at
//! three sizes of values, durable and not, with what each lost after a kill.

use crate::kill;
use crate::report::Report;
use crate::stores::cases::{Filled, Scale, group_commit, put};
use crate::stores::larder::{self, Values::Plain};
use crate::stores::peers::{Fjall, Foyer, Redb, Rusqlite};
use crate::stores::{Durability, Maker, Result};
use Durability::{Synced, Unsynced};
use std::path::Path;

/// Raw `rusqlite` first: the ratios are to it.
pub fn makers() -> Vec<Maker> {
    vec![
        Maker::new("rusqlite synced", Synced, |folder| Rusqlite::open(folder, Synced)),
        Maker::new("larder-sqlite synced", Synced, |folder| larder::sqlite(folder, Synced, Plain)),
        Maker::new("redb synced", Synced, |folder| Redb::open(folder, Synced)),
        Maker::new("fjall synced", Synced, |folder| Fjall::open(folder, Synced)),
        Maker::new("rusqlite", Unsynced, |folder| Rusqlite::open(folder, Unsynced)),
        Maker::new("larder-sqlite", Unsynced, |folder| larder::sqlite(folder, Unsynced, Plain)),
        Maker::new("redb", Unsynced, |folder| Redb::open(folder, Unsynced)),
        Maker::new("fjall", Unsynced, |folder| Fjall::open(folder, Unsynced)),
        Maker::new("foyer", Unsynced, Foyer::open),
    ]
}

pub fn run(is_quick: bool, folder: &Path, report: &mut Report) -> Result<()> {
    let makers = makers();
    // Reads don't depend on how a put is synced.
    let unsynced: Vec<Maker> = makers.iter().filter(|maker| maker.durability == Unsynced).copied().collect();
    for scale in Scale::all(is_quick) {
        let size = scale.name();
        let folder = tempfile::tempdir_in(folder)?;
        let below = |name: &str| folder.path().join(name);
        let filled = Filled::new(&unsynced, &below("filled"), scale)?;
        filled.get(&format!("sqlite get {size}"), scale, report)?;
        filled.get_batches(&format!("sqlite get by 100 {size}"), scale, report)?;
        let (open, space) = (format!("sqlite cold open {size}"), format!("sqlite space {size}"));
        filled.reopen(&open, &space, scale, report)?;
        put(&format!("sqlite put {size}"), &makers, Unsynced, &below("put"), scale, report)?;
        put(&format!("sqlite put synced {size}"), &makers, Synced, &below("synced"), scale, report)?;
        group_commit(&format!("sqlite 64 callers synced {size}"), &makers, &below("group"), scale, report)?;
    }
    kill::run("sqlite", &makers, is_quick, folder, report)
}
