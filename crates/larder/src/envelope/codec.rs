//! Values to plain bytes and back.

use super::Refused;
use super::nesting::Limited;
use crate::error::{BoxError, Error, ErrorKind, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;

/// How values become bytes. Every codec has its id, compiled in or not, so that a reader without it can
/// say what is missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// [postcard](https://postcard.jamesmunns.com): fields by position, numbers as varints. Smallest and
    /// fastest; a reader must have the very type that was written.
    #[default]
    Postcard,
    /// MessagePack with field names (feature `msgpack`): self-describing, half the size of JSON.
    #[serde(rename = "msgpack")]
    MessagePack,
    /// JSON (feature `json`): readable in the store. NaN and infinities are not kept, and map keys must be
    /// strings or numbers.
    Json,
}

impl Codec {
    /// Its name in settings.
    pub fn name(self) -> &'static str {
        match self {
            Codec::Postcard => "postcard",
            Codec::MessagePack => "msgpack",
            Codec::Json => "json",
        }
    }

    /// Whether it is compiled in.
    pub fn is_built(self) -> bool {
        match self {
            Codec::Postcard => true,
            Codec::MessagePack => cfg!(feature = "msgpack"),
            Codec::Json => cfg!(feature = "json"),
        }
    }

    pub(super) fn id(self) -> u8 {
        match self {
            Codec::Postcard => 1,
            Codec::MessagePack => 2,
            Codec::Json => 3,
        }
    }

    pub(super) fn from_id(id: u8) -> Option<Self> {
        [Codec::Postcard, Codec::MessagePack, Codec::Json].into_iter().find(|codec| codec.id() == id)
    }

    pub(super) fn encode<V: Serialize>(self, value: &V, out: &mut Bounded<'_>) -> Result<()> {
        let encoded: Result<(), BoxError> = match self {
            Codec::Postcard => postcard::serialize_with_flavor(value, Flavor(out)).map_err(BoxError::from),
            #[cfg(feature = "msgpack")]
            Codec::MessagePack => rmp_serde::encode::write_named(out, value).map_err(BoxError::from),
            #[cfg(feature = "json")]
            Codec::Json => serde_json::to_writer(&mut *out, value).map_err(BoxError::from),
            #[cfg(not(all(feature = "msgpack", feature = "json")))]
            codec => Err(format!("the codec {codec} is not compiled in").into()),
        };
        if out.is_over {
            return Err(Error::new(ErrorKind::TooLarge, "seal")
                .message(format!("the value takes more than value_bytes_max = {} bytes", out.bytes_max)));
        }
        encoded.map_err(|why| Error::new(ErrorKind::Codec, "seal").message(self.name()).source(why))
    }

    /// Decodes the one value that `plain` is. What the codec has to say is dropped: it may quote values.
    pub(super) fn decode<V: DeserializeOwned>(self, plain: &[u8]) -> Result<V, Refused> {
        match self {
            Codec::Postcard => {
                let mut decoder = postcard::Deserializer::from_bytes(plain);
                let value = V::deserialize(Limited::new(&mut decoder, plain.len())).ok();
                let rest = decoder.finalize().ok();
                value.filter(|_| rest.is_some_and(<[u8]>::is_empty))
            }
            #[cfg(feature = "msgpack")]
            Codec::MessagePack => {
                let mut decoder = rmp_serde::Deserializer::new(io::Cursor::new(plain));
                let value = V::deserialize(Limited::new(&mut decoder, plain.len())).ok();
                value.filter(|_| decoder.position() == plain.len() as u64)
            }
            #[cfg(feature = "json")]
            Codec::Json => {
                let mut decoder = serde_json::Deserializer::from_slice(plain);
                let value = V::deserialize(Limited::new(&mut decoder, plain.len())).ok();
                value.filter(|_| decoder.end().is_ok())
            }
            #[cfg(not(all(feature = "msgpack", feature = "json")))]
            _ => return Err(Refused::CodecNotBuilt),
        }
        .ok_or(Refused::Decode)
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Appends to a buffer up to a limit.
pub(super) struct Bounded<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
    bytes_max: u32,
    is_over: bool,
}

impl<'a> Bounded<'a> {
    pub(super) fn new(out: &'a mut Vec<u8>, bytes_max: u32) -> Self {
        Bounded { start: out.len(), out, bytes_max, is_over: false }
    }

    pub(super) fn written(&self) -> u32 {
        u32::try_from(self.out.len() - self.start).expect("bounded by a u32")
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), ()> {
        if bytes.len() > self.bytes_max as usize - (self.out.len() - self.start) {
            self.is_over = true;
            return Err(());
        }
        self.out.extend_from_slice(bytes);
        Ok(())
    }
}

impl io::Write for Bounded<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.append(bytes).map_err(|()| io::ErrorKind::FileTooLarge)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Flavor<'a, 'b>(&'a mut Bounded<'b>);

impl postcard::ser_flavors::Flavor for Flavor<'_, '_> {
    type Output = ();

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.append(bytes).map_err(|()| postcard::Error::SerializeBufferFull)
    }

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.try_extend(&[byte])
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}
