//! Plain bytes to fewer bytes and back.

use super::Refused;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::fmt;

/// How payloads are compressed. Every compression has its id, compiled in or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// An LZ4 block (feature `lz4`): costs next to nothing in both directions.
    Lz4,
    /// A zstd frame (feature `zstd`): smaller than LZ4, and slower. Each thread that seals or opens keeps
    /// its context, some 100 KiB up to a few MiB depending on level and sizes.
    Zstd,
}

impl Compression {
    /// Its name in settings.
    pub fn name(self) -> &'static str {
        match self {
            Compression::None => "none",
            Compression::Lz4 => "lz4",
            Compression::Zstd => "zstd",
        }
    }

    /// Whether it is compiled in.
    pub fn is_built(self) -> bool {
        match self {
            Compression::None => true,
            Compression::Lz4 => cfg!(feature = "lz4"),
            Compression::Zstd => cfg!(feature = "zstd"),
        }
    }

    pub(super) fn id(self) -> u8 {
        match self {
            Compression::None => 0,
            Compression::Lz4 => 1,
            Compression::Zstd => 2,
        }
    }

    pub(super) fn from_id(id: u8) -> Option<Self> {
        [Compression::None, Compression::Lz4, Compression::Zstd].into_iter().find(|known| known.id() == id)
    }

    /// Compresses; `None` when that gains nothing.
    pub(super) fn compress(self, plain: &[u8], zstd_level: i32) -> Option<Vec<u8>> {
        let packed: Option<Vec<u8>> = match self {
            Compression::None => None,
            #[cfg(feature = "lz4")]
            Compression::Lz4 => Some(lz4_flex::block::compress(plain)),
            #[cfg(feature = "zstd")]
            Compression::Zstd => zstandard::compress(plain, zstd_level),
            #[cfg(not(all(feature = "lz4", feature = "zstd")))]
            _ => None,
        };
        #[cfg(not(feature = "zstd"))]
        let _ = zstd_level;
        packed.filter(|packed| packed.len() < plain.len())
    }

    #[cfg_attr(
        not(any(feature = "lz4", feature = "zstd")),
        allow(unreachable_code, unused_variables, reason = "without either, nothing is left to restore")
    )]
    /// Restores exactly `plain_bytes` bytes, which the caller has checked against its limits.
    pub(super) fn decompress(self, payload: &[u8], plain_bytes: usize) -> Result<Cow<'_, [u8]>, Refused> {
        let plain: Result<Option<Vec<u8>>, Refused> = match self {
            Compression::None if payload.len() == plain_bytes => return Ok(Cow::Borrowed(payload)),
            Compression::None => Err(Refused::Length),
            #[cfg(feature = "lz4")]
            Compression::Lz4 => {
                let mut plain = vec![0; plain_bytes];
                let written = lz4_flex::block::decompress_into(payload, &mut plain).ok();
                Ok(written.map(|written| {
                    plain.truncate(written);
                    plain
                }))
            }
            #[cfg(feature = "zstd")]
            Compression::Zstd => Ok(zstandard::decompress(payload, plain_bytes)),
            #[cfg(not(all(feature = "lz4", feature = "zstd")))]
            _ => Err(Refused::CompressionNotBuilt),
        };
        plain?.filter(|plain| plain.len() == plain_bytes).map(Cow::Owned).ok_or(Refused::Decompress)
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// zstd with a context per thread: making one costs more than compressing a value of a few KiB.
#[cfg(feature = "zstd")]
mod zstandard {
    use std::cell::RefCell;
    use zstd::bulk::{Compressor, Decompressor};

    thread_local! {
        static COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
        static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
    }

    pub(super) fn compress(plain: &[u8], level: i32) -> Option<Vec<u8>> {
        COMPRESSOR.with_borrow_mut(|slot| {
            let compressor = match slot {
                Some(compressor) => compressor,
                None => slot.insert(Compressor::new(level).ok()?),
            };
            compressor.set_compression_level(level).ok()?;
            compressor.compress(plain).ok()
        })
    }

    pub(super) fn decompress(payload: &[u8], plain_bytes: usize) -> Option<Vec<u8>> {
        DECOMPRESSOR.with_borrow_mut(|slot| {
            let decompressor = match slot {
                Some(decompressor) => decompressor,
                None => slot.insert(Decompressor::new().ok()?),
            };
            let mut plain = Vec::with_capacity(plain_bytes);
            decompressor.decompress_to_buffer(payload, &mut plain).ok()?;
            Some(plain)
        })
    }
}
