//! The markers of a folder: a log that all processes append to, and each process's copy in memory.
//!
//! The file `marks-<inc>-<generation>`, both in hex, is a sequence of records:
//! ```text
//! offset  bytes
//!      0      2  bytes of the namespace; 0 is all
//!      2      2  bytes of the tag
//!      4      1  kind: 0 clear, 1 floor, 2 tag
//!      5      1  1 in a rewritten log: restores what was, and prunes nothing
//!      6      2  0
//!      8      8  position
//!     16      8  XXH3-64 of the rest of the record, seeded with inc and generation
//!     24         namespace, tag
//! ```
//! The header of `fences` says which generation counts and where it ends: what was appended but not published
//! is overwritten. A reader applies what is new to its copy. A log that has grown to twice its size is rewritten
//! as the next generation, so that it is bounded as the markers are.

use super::fault::damaged;
use super::fence::Header;
use super::folder::Folder;
use crate::backend::Mark;
use crate::entry::TAG_BYTES_MAX;
use crate::key::{NAMESPACE_BYTES_MAX, Namespace};
use crate::l1::fence::{Marker, Markers};
use std::io;
use xxhash_rust::xxh3::Xxh3;

const RECORD_BYTES: usize = 24;
/// A log is not rewritten before it has this size.
const REWRITTEN_FROM_BYTES: u64 = 1 << 20;
/// Longest log that is believed: far above what 65,536 namespaces and as many tags take, twice.
const LOG_BYTES_MAX: u64 = 1 << 28;

/// What moves a marker.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change<'a> {
    Mark(&'a Namespace, &'a Mark),
    Floor(&'a Namespace),
}

/// The markers up to some place in some log.
#[derive(Debug, Default)]
pub(super) struct Replica {
    inc: u64,
    generation: u64,
    end: u64,
    markers: Markers,
    /// A log that was rewritten, to be deleted once the header has said so.
    replaced: Option<String>,
}

pub(super) fn name(inc: u64, generation: u64) -> String {
    format!("marks-{inc:016x}-{generation:016x}")
}

impl Replica {
    pub(super) fn markers(&self) -> &Markers {
        &self.markers
    }

    /// Whether it knows all that the header knows.
    pub(super) fn covers(&self, header: &Header) -> bool {
        self.inc == header.inc
            && (self.generation > header.marks_gen
                || (self.generation == header.marks_gen && self.end >= header.marks_end))
    }

    /// Whether it knows just what the header knows: the header under the lock is the truth, and what was
    /// appended but not published never happened.
    pub(super) fn matches(&self, header: &Header) -> bool {
        (self.inc, self.generation, self.end) == (header.inc, header.marks_gen, header.marks_end)
    }

    /// Reads what the header knows more. [`io::ErrorKind::InvalidData`]: the log is damaged, or gone.
    pub(super) fn refresh(&mut self, folder: &Folder, header: &Header) -> io::Result<()> {
        if header.marks_end > LOG_BYTES_MAX {
            return Err(damaged("the log of markers is impossibly long"));
        }
        if (self.inc, self.generation) != (header.inc, header.marks_gen) || self.end > header.marks_end {
            *self = Replica { inc: header.inc, generation: header.marks_gen, ..Replica::default() };
        }
        if self.end == header.marks_end {
            return Ok(());
        }
        let Some(file) = folder.open_state(&name(header.inc, header.marks_gen))? else {
            return Err(damaged("the log of markers is gone"));
        };
        let mut bytes = vec![0; (header.marks_end - self.end) as usize];
        match folder.read_at(&file, &mut bytes, self.end) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(damaged("the log of markers is too short"));
            }
            read => read?,
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            match self.apply(rest) {
                Some(length) => rest = &rest[length..],
                None => {
                    // Half of it is applied: begin again next time.
                    *self = Replica::default();
                    return Err(damaged("a record of the log of markers is damaged"));
                }
            }
        }
        self.end = header.marks_end;
        Ok(())
    }

    /// Appends a change, and moves the header; the caller publishes it.
    pub(super) fn append(
        &mut self,
        folder: &Folder,
        header: &mut Header,
        change: &Change<'_>,
        pos: u64,
    ) -> io::Result<()> {
        let (namespace, marker) = match change {
            Change::Floor(namespace) => (namespace, Marker::Floor),
            Change::Mark(namespace, Mark::Clear) => (namespace, Marker::Clear),
            Change::Mark(namespace, Mark::Tag(tag)) => (namespace, Marker::Tag(tag)),
        };
        if let Some(replaced) = self.replaced.take() {
            // A reader with the old header finds it gone, and reads the header again.
            folder.remove_state(&replaced);
        }
        let mut record = Vec::new();
        encode(&mut record, self.seed(), Some(namespace), marker, pos, false);
        let name = name(header.inc, header.marks_gen);
        let file = match folder.open_state(&name)? {
            Some(file) => file,
            None if header.marks_end == 0 => folder.replace_state(&name, |_| Vec::new())?,
            None => return Err(damaged("the log of markers is gone")),
        };
        folder.write_at(&file, &record, header.marks_end)?;
        folder.sync(&file)?;
        match change {
            Change::Mark(namespace, mark) => self.markers.mark(namespace, mark, pos),
            Change::Floor(namespace) => self.markers.raise_floor(namespace, pos),
        }
        self.end += record.len() as u64;
        header.marks_end = self.end;
        if self.end > REWRITTEN_FROM_BYTES.max(header.marks_base.saturating_mul(2)) {
            self.rewrite(folder, header)?;
        }
        Ok(())
    }

    /// Writes the markers, and nothing of how they came to be, as the next generation.
    fn rewrite(&mut self, folder: &Folder, header: &mut Header) -> io::Result<()> {
        let old = name(header.inc, header.marks_gen);
        self.generation += 1;
        let mut bytes = Vec::new();
        let seed = self.seed();
        self.markers
            .describe(|namespace, marker, pos| encode(&mut bytes, seed, namespace, marker, pos, true));
        let written =
            folder.replace_state(&name(header.inc, self.generation), |_| std::mem::take(&mut bytes));
        let length = match written.and_then(|file| file.metadata()) {
            Ok(file) => file.len(),
            Err(error) => {
                self.generation -= 1;
                return Err(error);
            }
        };
        self.end = length;
        (header.marks_gen, header.marks_base, header.marks_end) = (self.generation, length, length);
        self.replaced = Some(old);
        Ok(())
    }

    fn seed(&self) -> u64 {
        self.inc ^ self.generation.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    /// Applies the record at the start of `bytes`; its length.
    fn apply(&mut self, bytes: &[u8]) -> Option<usize> {
        let (fixed, rest) = bytes.split_first_chunk::<RECORD_BYTES>()?;
        let namespace_bytes = usize::from(u16::from_le_bytes([fixed[0], fixed[1]]));
        let tag_bytes = usize::from(u16::from_le_bytes([fixed[2], fixed[3]]));
        if namespace_bytes > NAMESPACE_BYTES_MAX || tag_bytes > TAG_BYTES_MAX {
            return None;
        }
        let names = rest.get(..namespace_bytes + tag_bytes)?;
        let pos = u64::from_le_bytes(fixed[8..16].try_into().expect("8 bytes"));
        if fixed[16..] != sum(self.seed(), &fixed[..16], names).to_le_bytes() {
            return None;
        }
        let (namespace, tag) = names.split_at(namespace_bytes);
        let namespace = match namespace {
            [] => None,
            name => Some(Namespace::new(std::str::from_utf8(name).ok()?).ok()?),
        };
        let tag = std::str::from_utf8(tag).ok()?;
        let marker = match fixed[4] {
            0 => Marker::Clear,
            1 => Marker::Floor,
            2 => Marker::Tag(tag),
            _ => return None,
        };
        match (fixed[5], namespace, marker) {
            (1, namespace, marker) => self.markers.restore(namespace, marker, pos),
            (0, Some(namespace), Marker::Floor) => self.markers.raise_floor(&namespace, pos),
            (0, Some(namespace), Marker::Clear) => self.markers.mark(&namespace, &Mark::Clear, pos),
            (0, Some(namespace), Marker::Tag(tag)) => {
                let tag = Mark::Tag(tag.into());
                self.markers.mark(&namespace, &tag, pos);
            }
            _ => return None,
        }
        Some(RECORD_BYTES + names.len())
    }
}

fn encode(
    into: &mut Vec<u8>,
    seed: u64,
    namespace: Option<&Namespace>,
    marker: Marker<'_>,
    pos: u64,
    restores: bool,
) {
    let namespace = namespace.map_or("", Namespace::as_str);
    let (kind, tag) = match marker {
        Marker::Clear => (0, ""),
        Marker::Floor => (1, ""),
        Marker::Tag(tag) => (2, tag),
    };
    let from = into.len();
    // Both are far below 64 KiB by their own limits.
    into.extend_from_slice(&(namespace.len() as u16).to_le_bytes());
    into.extend_from_slice(&(tag.len() as u16).to_le_bytes());
    into.extend_from_slice(&[kind, u8::from(restores), 0, 0]);
    into.extend_from_slice(&pos.to_le_bytes());
    let names = [namespace, tag].concat();
    let sum = sum(seed, &into[from..], names.as_bytes());
    into.extend_from_slice(&sum.to_le_bytes());
    into.extend_from_slice(names.as_bytes());
}

fn sum(seed: u64, fixed: &[u8], names: &[u8]) -> u64 {
    let mut sum = Xxh3::with_seed(seed);
    sum.update(fixed);
    sum.update(names);
    sum.digest()
}
