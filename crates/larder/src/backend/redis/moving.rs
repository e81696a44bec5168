//! Reading while a slot moves from one node of a cluster to another: its keys are moved one by one, and whoever
//! doesn't have one says who to ask.
//!
//! One key at a time, since a command for several is refused by both nodes. The meta record comes first here,
//! too (rule A4): an entry may be on the other node than its meta record, and is judged by that. Once the record
//! has arrived at another node, which is another run, the store begins anew there. Writes need nothing of their
//! own: a script names all of its keys, so that the servers refuse it while these are apart.

use super::batch::{
    array, judge_by_markers, judge_entry, parse_meta, parse_ticket, read_markers, read_meta, run_name,
};
use super::fault::Failure;
use super::layout::Store;
use super::link::{Step, info_field, reign};
use super::route::Router;
use super::script::Script;
use crate::backend::{Miss, Read, Ticket};
use crate::key::EntryKey;
use redis::Value;

impl Router {
    /// A ticket, and an entry if there is a key.
    pub(super) async fn read_moving(&self, store: &Store, key: Option<&EntryKey>) -> Result<Read, Failure> {
        let look = || {
            let info = |section: &str| {
                let mut info = redis::cmd("INFO");
                info.arg(section);
                Step::Plain(info)
            };
            vec![Step::Plain(read_meta(store)), info("server"), info("replication")]
        };
        let replies = self.run_together(store.slot(), look).await?;
        let [fields, server, replication] =
            <[Value; 3]>::try_from(replies).map_err(|_| Failure::Nonsense("no answer to a step"))?;
        let run_id = info_field(&server, "run_id")?.ok_or(Failure::Nonsense("INFO names no run_id"))?;
        let run = run_name(&run_id, &reign(&replication)?.ok_or(Failure::Replica)?);
        let fields = array(fields)?;
        let Some(meta) = parse_meta(&fields, &run) else {
            let begin =
                || Step::Script { script: Script::Ticket, store: store.clone(), key: None, args: Vec::new() };
            let ticket = parse_ticket(&self.run(store.slot(), begin).await?)?;
            return Ok(Read { ticket, found: Err(Miss::Absent) });
        };
        let ticket = Ticket { inc: meta.inc, pos: meta.pos };
        let Some(key) = key else { return Ok(Read { ticket, found: Err(Miss::Absent) }) };
        let get = || {
            let mut get = redis::cmd("GET");
            get.arg(store.entry(key));
            Step::Plain(get)
        };
        let entry = self.run(store.slot(), get).await?;
        let mut open = Vec::new();
        let mut found = [judge_entry(0, entry, &meta, self.settings.clock.wall_ms(), &mut open)];
        if !open.is_empty() {
            let markers = self.run(store.slot(), || Step::Plain(read_markers(store, &open))).await?;
            judge_by_markers(open, &array(markers)?, &fields[..2], &mut found);
        }
        let [found] = found;
        Ok(Read { ticket, found })
    }
}
