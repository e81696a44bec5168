//! The scripts, each one atomic step of the protocol, called by their SHA-1.

use redis::Cmd;
use std::sync::LazyLock;

/// A step of the protocol: rules A2 to A6 and the log record of D1 at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Script {
    /// Begins the store if it has to, and gives a ticket.
    Ticket,
    Put,
    Remove,
    Mark,
    Discard,
    Drop,
    /// Several of [`Put`](Script::Put), all of loads of one store.
    Loads,
}

/// Where a script wants the shared functions. Lua makes them anew at each call, so none has them that needs none.
const FUNCTIONS: &str = "--:functions\n";

struct Loaded {
    code: String,
    sha: String,
}

static LOADED: LazyLock<[Loaded; 7]> = LazyLock::new(|| {
    // In the order of `Script`.
    const BODIES: [&str; 7] = [
        include_str!("scripts/ticket.lua"),
        include_str!("scripts/put.lua"),
        include_str!("scripts/remove.lua"),
        include_str!("scripts/mark.lua"),
        include_str!("scripts/discard.lua"),
        include_str!("scripts/drop.lua"),
        include_str!("scripts/loads.lua"),
    ];
    BODIES.map(|body| {
        let body = body.replace(FUNCTIONS, include_str!("scripts/functions.lua"));
        let code = format!("{}{body}", include_str!("scripts/begin.lua"));
        let sha = redis::Script::new(&code).get_hash().to_owned();
        Loaded { code, sha }
    })
});

impl Script {
    /// Its SHA-1 in hex.
    pub(super) fn sha(self) -> &'static str {
        &LOADED[self as usize].sha
    }
}

/// The commands that load all scripts into a server.
pub(super) fn load_all() -> impl ExactSizeIterator<Item = Cmd> {
    LOADED.iter().map(|script| {
        let mut load = redis::cmd("SCRIPT");
        load.arg("LOAD").arg(&script.code);
        load
    })
}
