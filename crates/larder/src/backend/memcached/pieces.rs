//! Envelopes that are larger than the server's items: pieces under a random id, and a list that stands for them.
//!
//! The pieces are written before the list, and the list by the same rules as any entry. A piece that was evicted,
//! or isn't what was written, makes the whole a miss. Pieces whose list is gone are nobody's; the server evicts
//! them in time.

use super::fault::Failure;
use super::layout::{Pieces, piece_key};
use super::wire::{Answer, Command, Condition, Payload};
use super::{MemcachedBackend, Place, refused};
use crate::backend::Put;
use bytes::{Bytes, BytesMut};
use xxhash_rust::xxh3::xxh3_64;

/// Pieces of one request: some MiB, so that they share a connection with others.
const PIECES_TOGETHER: u32 = 4;
/// How much longer than their list the server keeps pieces.
const OUTLIVE_MS: u64 = 60_000;

impl MemcachedBackend {
    /// Writes the pieces of an envelope, each of at most so many bytes; their list.
    pub(super) async fn write_pieces(
        &self,
        place: &Place<'_>,
        put: &Put,
        piece_bytes: usize,
    ) -> Result<Pieces, Failure> {
        let pieces = Pieces {
            id: fastrand::u128(..),
            bytes: put.sealed.len() as u64,
            piece_bytes: piece_bytes as u32,
            checksum: xxh3_64(&put.sealed),
        };
        let exptime = self.exptime(put.meta.gone_at_ms.saturating_add(OUTLIVE_MS), place.link);
        for first in (0..pieces.count()).step_by(PIECES_TOGETHER as usize) {
            let stores = (first..pieces.count().min(first + PIECES_TOGETHER)).map(|number| {
                let from = number as usize * piece_bytes;
                Command::Store {
                    key: piece_key(&self.prefix, pieces.id, number),
                    head: Bytes::new(),
                    body: put.sealed.slice(from..from + pieces.length(number)),
                    exptime,
                    only_if: Condition::Always,
                }
            });
            let written = place.link.run(stores.collect()).await.and_then(|answers| refused(&answers));
            if let Err(failure) = written {
                self.drop_pieces(place, pieces).await;
                return Err(failure);
            }
        }
        Ok(pieces)
    }

    /// The envelope that a list stands for; `None` unless all of it is there.
    pub(super) async fn read_pieces(
        &self,
        place: &Place<'_>,
        list: &Bytes,
    ) -> Result<Option<Bytes>, Failure> {
        let Some(pieces) = Pieces::parse(list, self.options.value_bytes_max) else { return Ok(None) };
        let mut all = BytesMut::new();
        for first in (0..pieces.count()).step_by(PIECES_TOGETHER as usize) {
            let last = pieces.count().min(first + PIECES_TOGETHER);
            let gets = (first..last).map(|number| Command::Get {
                key: piece_key(&self.prefix, pieces.id, number),
                value: Payload::Whole,
                vivify: None,
            });
            let answers = place.link.run(gets.collect()).await?;
            refused(&answers)?;
            for (number, answer) in (first..last).zip(answers) {
                match answer {
                    Answer::Done(piece) if piece.value.len() == pieces.length(number) => {
                        all.extend_from_slice(&piece.value);
                    }
                    _ => return Ok(None),
                }
            }
        }
        Ok((xxh3_64(&all) == pieces.checksum).then(|| all.freeze()))
    }

    /// Frees pieces that nobody will ask for. What fails here the server evicts.
    pub(super) async fn drop_pieces(&self, place: &Place<'_>, pieces: Pieces) {
        let delete = |number| Command::Delete { key: piece_key(&self.prefix, pieces.id, number) };
        drop(place.link.run((0..pieces.count()).map(delete).collect()).await);
    }
}
