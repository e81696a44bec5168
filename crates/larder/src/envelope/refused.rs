//! Why stored bytes are not a value.

use std::fmt;

/// Why an envelope was not opened: a miss with a name. Metrics and `explain` show [`name`](Self::name).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Refused {
    /// It ends before its lengths say so.
    Truncated,
    /// It doesn't begin like an envelope.
    Magic,
    /// It has a version that this program doesn't know.
    Version,
    /// Its lengths contradict each other.
    Length,
    /// It was damaged, or, if it is not protected, belongs to another key.
    Checksum,
    /// It is encrypted or signed with a key that isn't at hand.
    KeyId,
    /// It is not encrypted, and this cache takes only what is.
    Plaintext,
    /// It is not signed, and this cache takes only what is.
    Unsigned,
    /// It is encrypted, and was changed, moved to another key, or made by somebody without the key.
    Tampered,
    /// The same where it is signed.
    Signature,
    /// A field has a value that its version doesn't define.
    Header,
    /// Its tags are not in order, not UTF-8, or over the limits.
    Tags,
    /// Its codec is unknown.
    Codec,
    /// Its codec is not compiled in.
    CodecNotBuilt,
    /// Its compression is unknown.
    Compression,
    /// Its compression is not compiled in.
    CompressionNotBuilt,
    /// It holds a value of another type or schema.
    Type,
    /// Its value is larger than `value_bytes_max`.
    TooLarge,
    /// Its value is more than `ratio_max` times as large as its payload.
    Bomb,
    /// Its payload can't be decompressed to the length that it says.
    Decompress,
    /// Its codec finds no value of the type, or more than one.
    Decode,
}

impl Refused {
    /// Every reason, for metrics that are to exist before they count.
    pub const ALL: [Refused; 21] = {
        use Refused::*;
        [
            Truncated,
            Magic,
            Version,
            Length,
            Checksum,
            KeyId,
            Plaintext,
            Unsigned,
            Tampered,
            Signature,
            Header,
            Tags,
            Codec,
            CodecNotBuilt,
            Compression,
            CompressionNotBuilt,
            Type,
            TooLarge,
            Bomb,
            Decompress,
            Decode,
        ]
    };

    /// The reason in snake case, as metrics and `explain` name it.
    pub fn name(self) -> &'static str {
        use Refused::*;
        match self {
            Truncated => "truncated",
            Magic => "magic",
            Version => "version",
            Length => "length",
            Checksum => "checksum",
            KeyId => "key_id",
            Plaintext => "plaintext",
            Unsigned => "unsigned",
            Tampered => "tampered",
            Signature => "signature",
            Header => "header",
            Tags => "tags",
            Codec => "codec",
            CodecNotBuilt => "codec_not_built",
            Compression => "compression",
            CompressionNotBuilt => "compression_not_built",
            Type => "type",
            TooLarge => "too_large",
            Bomb => "bomb",
            Decompress => "decompress",
            Decode => "decode",
        }
    }
}

impl Refused {
    /// What becomes of the entry.
    pub fn fate(self) -> Fate {
        match self {
            // Another process may have the key, or this one after its next start.
            Refused::KeyId => Fate::Keep,
            Refused::Tampered | Refused::Signature => Fate::Quarantine,
            _ => Fate::Discard,
        }
    }
}

/// What becomes of an entry that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fate {
    /// It is dropped: nobody will ever open it.
    Discard,
    /// It stays, until it expires or is written anew.
    Keep,
    /// It is kept out of the way for an operator to look at, and counted as tampered with.
    Quarantine,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "envelope refused: {}", self.name())
    }
}

impl std::error::Error for Refused {}
