//! An index as bytes: magic, the model, then partition by partition ids and vectors, and a checksum behind each part.
//! Signs are not stored; they are a few milliseconds' work.

use std::io::{self, Read, Write};

use xxhash_rust::xxh3::xxh3_64;

use super::scan::read;
use super::{DIMENSIONS_MAX, NAME_BYTES_MAX, Partition, Scan, ScanOptions, VectorIndex};
use crate::error::{Error, ErrorKind, Result};
use crate::semantic::Model;

const MAGIC: &[u8; 8] = b"larderV1";
/// A part has at most so many vectors, which bounds what a reader holds.
const PART: usize = 1024;

impl Scan {
    /// Writes all entries. Each partition as it is at one moment; what changes meanwhile may be in it or not. Holds up
    /// changes of a partition while it is copied.
    ///
    /// # Errors
    /// Those of `to`: `Full`, `ReadOnly`, else `Unavailable`.
    pub fn snapshot(&self, to: &mut impl Write) -> Result<()> {
        let model = self.model();
        let mut head = MAGIC.to_vec();
        for text in [&model.name, &model.version] {
            head.extend_from_slice(&(text.len() as u32).to_le_bytes());
            head.extend_from_slice(text.as_bytes());
        }
        head.extend_from_slice(&(model.dimensions as u32).to_le_bytes());
        put(to, &head)?;
        for (partition, rows) in self.partitions() {
            let copy: Vec<(u64, Vec<f32>)> =
                read(&rows).iter().map(|(id, vector)| (id, vector.to_vec())).collect();
            for part in copy.chunks(PART) {
                let mut bytes = partition.0.to_vec();
                bytes.extend_from_slice(&(part.len() as u32).to_le_bytes());
                for (id, vector) in part {
                    bytes.extend_from_slice(&id.to_le_bytes());
                    vector.iter().for_each(|x| bytes.extend_from_slice(&x.to_le_bytes()));
                }
                put(to, &bytes)?;
            }
        }
        // A part of no vectors: what ends earlier was cut off.
        put(to, &[0; 20])
    }

    /// The index that a snapshot was taken of, for vectors of `model`.
    ///
    /// # Errors
    /// `Config` if the snapshot is of another model, or of another version of it: embed the texts again; `Corrupt` if
    /// it was changed or cut off; `Full` if it has more than [`ScanOptions::entries_max`] entries.
    pub fn restore(model: Model, options: ScanOptions, from: &mut impl Read) -> Result<Self> {
        let index = Scan::new(model, options)?;
        let stored = read_head(from)?;
        if stored != index.model {
            let message = format!("the snapshot is of {stored}, the index of {}", index.model);
            return Err(Error::new(ErrorKind::Config, "restore").message(message));
        }
        let row = 8 + 4 * stored.dimensions;
        loop {
            let mut bytes = vec![0; 20];
            fill(from, &mut bytes)?;
            let (partition, count) = bytes.split_first_chunk::<16>().ok_or_else(corrupt)?;
            let partition = Partition(*partition);
            let count = u32::from_le_bytes(count.try_into().map_err(|_| corrupt())?) as usize;
            if count > PART {
                return Err(corrupt());
            }
            bytes.resize(20 + count * row, 0);
            fill(from, &mut bytes[20..])?;
            check(from, &bytes)?;
            if count == 0 {
                return Ok(index);
            }
            for row in bytes[20..].chunks_exact(row) {
                let (id, vector) = row.split_first_chunk::<8>().ok_or_else(corrupt)?;
                let (vector, _) = vector.as_chunks::<4>();
                let vector: Vec<f32> = vector.iter().map(|&x| f32::from_le_bytes(x)).collect();
                index.insert(partition, u64::from_le_bytes(*id), &vector)?;
            }
        }
    }
}

fn read_head(from: &mut impl Read) -> Result<Model> {
    let mut head = vec![0; MAGIC.len()];
    fill(from, &mut head)?;
    if head != MAGIC {
        return Err(corrupt());
    }
    let mut texts = [const { String::new() }; 2];
    for text in &mut texts {
        let bytes = number(from, &mut head)?;
        if bytes > NAME_BYTES_MAX {
            return Err(corrupt());
        }
        let begin = head.len();
        head.resize(begin + bytes, 0);
        fill(from, &mut head[begin..])?;
        *text = String::from_utf8(head[begin..].to_vec()).map_err(|_| corrupt())?;
    }
    let dimensions = number(from, &mut head)?;
    check(from, &head)?;
    if dimensions == 0 || dimensions > DIMENSIONS_MAX {
        return Err(corrupt());
    }
    let [name, version] = texts;
    Ok(Model { name, version, dimensions })
}

fn number(from: &mut impl Read, head: &mut Vec<u8>) -> Result<usize> {
    let mut bytes = [0; 4];
    fill(from, &mut bytes)?;
    head.extend_from_slice(&bytes);
    Ok(u32::from_le_bytes(bytes) as usize)
}

fn put(to: &mut impl Write, part: &[u8]) -> Result<()> {
    let written = to.write_all(part).and_then(|()| to.write_all(&xxh3_64(part).to_le_bytes()));
    written.map_err(|problem| {
        let kind = match problem.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::Full,
            io::ErrorKind::ReadOnlyFilesystem => ErrorKind::ReadOnly,
            _ => ErrorKind::Unavailable,
        };
        Error::new(kind, "snapshot").source(problem)
    })
}

fn fill(from: &mut impl Read, bytes: &mut [u8]) -> Result<()> {
    from.read_exact(bytes).map_err(|problem| {
        let cut = problem.kind() == io::ErrorKind::UnexpectedEof;
        let kind = if cut { ErrorKind::Corrupt } else { ErrorKind::Unavailable };
        Error::new(kind, "restore").source(problem)
    })
}

fn check(from: &mut impl Read, part: &[u8]) -> Result<()> {
    let mut sum = [0; 8];
    fill(from, &mut sum)?;
    if u64::from_le_bytes(sum) == xxh3_64(part) { Ok(()) } else { Err(corrupt()) }
}

fn corrupt() -> Error {
    Error::new(ErrorKind::Corrupt, "restore").message("this is not a snapshot of an index, or it was changed")
}
