//! `disk`: backends that keep files, beside raw files and `cacache`, at three sizes of values.
//!
//! A backend joins the comparison by a line of [`makers`], as [`larder::sqlite`] does it.

use crate::kill;
use crate::report::Report;
use crate::stores::cases::{Filled, Scale, put};
use crate::stores::peers::{Cacache, Files};
use crate::stores::{Durability, Maker, Result, larder};
use Durability::{Synced, Unsynced};
use std::path::Path;

/// Raw files first: the ratios are to them.
pub fn makers() -> Vec<Maker> {
    vec![
        Maker::new("raw files synced", Synced, |folder| Files::open(folder, Synced)),
        Maker::new("larder-sqlite synced", Synced, |folder| larder::sqlite(folder, Synced)),
        Maker::new("raw files", Unsynced, |folder| Files::open(folder, Unsynced)),
        Maker::new("larder-sqlite", Unsynced, |folder| larder::sqlite(folder, Unsynced)),
        Maker::new("cacache", Unsynced, Cacache::open),
    ]
}

pub fn run(is_quick: bool, folder: &Path, report: &mut Report) -> Result<()> {
    let makers = makers();
    let unsynced: Vec<Maker> = makers.iter().filter(|maker| maker.durability == Unsynced).copied().collect();
    for scale in Scale::all(is_quick) {
        // A file per entry is slow to make.
        let scale = Scale { entries: scale.entries.min(2000), ..scale };
        let size = scale.name();
        let folder = tempfile::tempdir_in(folder)?;
        let below = |name: &str| folder.path().join(name);
        Filled::new(&unsynced, &below("filled"), scale)?.get(&format!("disk get {size}"), scale, report)?;
        put(&format!("disk put {size}"), &makers, Unsynced, &below("put"), scale, report)?;
        put(&format!("disk put synced {size}"), &makers, Synced, &below("synced"), scale, report)?;
    }
    kill::run("disk", &makers, is_quick, folder, report)
}
