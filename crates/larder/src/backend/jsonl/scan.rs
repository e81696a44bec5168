//! Walks over the lines of a file, and finds its way again after damage.
//!
//! What a killed process leaves is a line without its end: the tail, which nobody was told of. Everything
//! else that is not a line is damage, and may have been a removal: the caller decides what that costs.

use super::disk::{Disk, Guard};
use super::line::{LINE_BYTES_MAX, Line, START, length};
use std::fs::File;
use std::io;

const CHUNK_BYTES: usize = 64 << 10;

/// What stands at a place of the file.
#[expect(clippy::large_enum_variant, reason = "it lives on the stack for one call")]
pub(super) enum Found<'a> {
    Line(Line<'a>),
    Damage(&'a [u8]),
}

/// How the file ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    /// Behind the last whole line.
    pub(super) offset: u64,
    /// The last line has all of its bytes and yet is none: it was not cut short, it was changed.
    pub(super) is_damaged: bool,
}

/// Visits all from `offset` on. The visitor gets offset, bytes and what was found; `false` ends the walk.
pub(super) fn walk(
    disk: &Disk,
    file: &File,
    offset: u64,
    visit: &mut dyn FnMut(u64, usize, Found<'_>) -> bool,
) -> io::Result<End> {
    let mut window = Window { disk, file, bytes: Vec::new(), start: 0, offset, is_end: false };
    loop {
        let here = window.offset;
        let known = length(window.peek(START.len() + 8)?);
        if let Some(length) = known {
            let bytes = window.peek(length)?;
            if bytes.len() >= length
                && let Some(line) = read(disk, &bytes[..length])
            {
                if !visit(here, length, Found::Line(line)) {
                    return Ok(End { offset: here, is_damaged: false });
                }
                window.skip(length);
                continue;
            }
        }
        // No line. If the next one begins where this one should end, only this one is damaged.
        if let Some(length) = known {
            let bytes = window.peek(length + START.len())?;
            if bytes.len() > length && bytes[length..].starts_with(START)
                || bytes.len() == length && bytes.last() == Some(&b'\n')
            {
                if !visit(here, length, Found::Damage(&bytes[..length])) {
                    return Ok(End { offset: here, is_damaged: false });
                }
                window.skip(length);
                continue;
            }
        }
        let Some(length) = window.line_end()? else {
            let left = window.rest().len();
            return Ok(End { offset: here, is_damaged: known == Some(left) });
        };
        let bytes = window.peek(length)?;
        if !visit(here, length, Found::Damage(&bytes[..length])) {
            return Ok(End { offset: here, is_damaged: false });
        }
        window.skip(length);
    }
}

fn read<'l>(disk: &Disk, bytes: &'l [u8]) -> Option<Line<'l>> {
    if disk.holds(Guard::Sum) { Line::read(bytes) } else { Line::read_unsummed(bytes) }
}

/// A part of the file in memory: at most a line and a chunk.
struct Window<'f> {
    disk: &'f Disk,
    file: &'f File,
    bytes: Vec<u8>,
    start: usize,
    /// Where in the file `start` is.
    offset: u64,
    is_end: bool,
}

impl Window<'_> {
    fn rest(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// At least `wanted` bytes, or all that there are.
    fn peek(&mut self, wanted: usize) -> io::Result<&[u8]> {
        while self.rest().len() < wanted && !self.is_end {
            self.bytes.drain(..self.start);
            self.start = 0;
            let had = self.bytes.len();
            let more = (wanted - had).max(CHUNK_BYTES);
            self.bytes.resize(had + more, 0);
            let read = self.disk.read_at(self.file, &mut self.bytes[had..], self.offset + had as u64)?;
            self.bytes.truncate(had + read);
            self.is_end = read < more;
        }
        Ok(&self.bytes[self.start..])
    }

    fn skip(&mut self, bytes: usize) {
        self.start += bytes;
        self.offset += bytes as u64;
    }

    /// How many bytes up to the next newline, it included; `None` if there is none up to the end. A piece of
    /// the longest length without a newline counts as a line.
    fn line_end(&mut self) -> io::Result<Option<usize>> {
        let mut searched = 0;
        loop {
            let bytes = self.peek(searched + 1)?;
            if let Some(at) = bytes[searched..].iter().position(|byte| *byte == b'\n') {
                return Ok(Some(searched + at + 1));
            }
            searched = bytes.len();
            if searched >= LINE_BYTES_MAX {
                return Ok(Some(LINE_BYTES_MAX));
            }
            if self.is_end {
                return Ok(None);
            }
        }
    }
}
