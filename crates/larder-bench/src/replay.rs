//! The reader of `larder replay`, from its own source: a binary's modules can't be a dependency, and a
//! second reader would read some traces differently.

use crate::trace::Trace;
use std::path::Path;

#[path = "../../larder-server/src/replay/error.rs"]
mod error;
#[path = "../../larder-server/src/replay/input.rs"]
mod input;
#[path = "../../larder-server/src/replay/layout.rs"]
mod layout;
#[path = "../../larder-server/src/replay/progress.rs"]
mod progress;
#[path = "../../larder-server/src/replay/trace.rs"]
mod source;

pub fn read(path: &Path) -> Result<Trace, String> {
    let options = source::ReadOptions {
        format: layout::Format::Auto,
        strict: false,
        limit: source::ACCESSES_MAX,
        value_bytes: 1,
        keep_times: None,
    };
    let read = source::Trace::read(path, &options, &progress::Progress::reading());
    let trace = read.map_err(|error| error.to_string())?;
    let name = trace.name.split('.').next().unwrap_or_default().to_owned();
    Ok(Trace { name, keys: trace.ids, distinct: trace.distinct as usize })
}
