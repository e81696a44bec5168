//! One walk over a canonical encoding: checks it, and renders its text on the way. Total: any bytes give
//! an answer, with a stack of at most `KEY_LEVELS_MAX` frames and no allocation but the text.

use super::KEY_LEVELS_MAX;
use super::encode::{canonical_f32, canonical_f64, tag};
use std::fmt::{self, Write};

/// Whether `bytes` is what [`encode`](super::encode::encode) makes of some key.
pub(super) fn is_canonical(bytes: &[u8]) -> bool {
    walk(bytes, Nowhere).is_ok()
}

/// The text of a canonical encoding, cut to at most `bytes_max` bytes at a character.
pub(super) fn text(bytes: &[u8], bytes_max: usize) -> String {
    let mut text = Start { text: String::new(), room: bytes_max };
    let walked = walk(bytes, &mut text);
    debug_assert!(!matches!(walked, Err(Stop::Malformed)), "only canonical encodings are rendered");
    text.text
}

/// Why a walk ended early.
enum Stop {
    Malformed,
    /// The text has the length that was asked for.
    Full,
}

impl From<fmt::Error> for Stop {
    fn from(_: fmt::Error) -> Self {
        Stop::Full
    }
}

struct Nowhere;

impl Write for Nowhere {
    fn write_str(&mut self, _: &str) -> fmt::Result {
        Ok(())
    }
}

/// Takes the start of a text and stops the walk there.
struct Start {
    text: String,
    room: usize,
}

impl Write for &mut Start {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        let fits = (0..=self.room.min(part.len())).rev().find(|&at| part.is_char_boundary(at)).unwrap_or(0);
        self.text.push_str(&part[..fits]);
        if fits < part.len() {
            return Err(fmt::Error);
        }
        self.room -= fits;
        Ok(())
    }
}

fn walk(bytes: &[u8], out: impl Write) -> Result<(), Stop> {
    let mut walk = Walk { rest: bytes, out, separator: "" };
    walk.value(0)?;
    if walk.rest.is_empty() { Ok(()) } else { Err(Stop::Malformed) }
}

struct Walk<'a, W> {
    rest: &'a [u8],
    out: W,
    /// What stands before the next part of the text.
    separator: &'static str,
}

impl<'a, W: Write> Walk<'a, W> {
    fn value(&mut self, level: usize) -> Result<(), Stop> {
        if level > KEY_LEVELS_MAX {
            return Err(Stop::Malformed);
        }
        match self.byte()? {
            tag::UNIT => self.part("()"),
            tag::FALSE => self.part(false),
            tag::TRUE => self.part(true),
            tag::NONE => self.part("-"),
            tag::SOME => self.value(level + 1),
            tag::CHAR => {
                let char = char::from_u32(u32::from_be_bytes(self.array()?)).ok_or(Stop::Malformed)?;
                self.part(char)
            }
            tag::STR => {
                let text = self.str(level)?;
                self.part(text)
            }
            tag::BYTES => {
                let bytes = self.delimited(level)?;
                self.part(bytes.escape_ascii())
            }
            tag::I8 => self.number(i8::from_be_bytes),
            tag::I16 => self.number(i16::from_be_bytes),
            tag::I32 => self.number(i32::from_be_bytes),
            tag::I64 => self.number(i64::from_be_bytes),
            tag::I128 => self.number(i128::from_be_bytes),
            tag::U8 => self.number(u8::from_be_bytes),
            tag::U16 => self.number(u16::from_be_bytes),
            tag::U32 => self.number(u32::from_be_bytes),
            tag::U64 => self.number(u64::from_be_bytes),
            tag::U128 => self.number(u128::from_be_bytes),
            tag::F32 => {
                let value = f32::from_be_bytes(self.array()?);
                if value.to_bits() != canonical_f32(value).to_bits() {
                    return Err(Stop::Malformed);
                }
                self.part(format_args!("{value:?}"))
            }
            tag::F64 => {
                let value = f64::from_be_bytes(self.array()?);
                if value.to_bits() != canonical_f64(value).to_bits() {
                    return Err(Stop::Malformed);
                }
                self.part(format_args!("{value:?}"))
            }
            tag::SEQ | tag::TUPLE => self.values(level),
            tag::MAP => self.map(level),
            tag::UNIT_STRUCT => {
                let name = self.name()?;
                self.part(name)
            }
            tag::NEWTYPE_STRUCT => {
                self.name()?;
                self.value(level + 1)
            }
            tag::TUPLE_STRUCT => {
                self.name()?;
                self.values(level)
            }
            tag::STRUCT => {
                self.name()?;
                self.fields(level)
            }
            tag::UNIT_VARIANT => self.variant(),
            tag::NEWTYPE_VARIANT => {
                self.variant()?;
                self.value(level + 1)
            }
            tag::TUPLE_VARIANT => {
                self.variant()?;
                self.values(level)
            }
            tag::STRUCT_VARIANT => {
                self.variant()?;
                self.fields(level)
            }
            _ => Err(Stop::Malformed),
        }
    }

    fn values(&mut self, level: usize) -> Result<(), Stop> {
        if self.ends() {
            return self.part("");
        }
        loop {
            self.value(level + 1)?;
            if self.ends() {
                return Ok(());
            }
        }
    }

    fn fields(&mut self, level: usize) -> Result<(), Stop> {
        if self.ends() {
            return self.part("");
        }
        loop {
            self.name()?;
            self.value(level + 1)?;
            if self.ends() {
                return Ok(());
            }
        }
    }

    fn map(&mut self, level: usize) -> Result<(), Stop> {
        if self.ends() {
            return self.part("");
        }
        let mut last: &[u8] = &[];
        loop {
            let from_key = self.rest;
            self.value(level + 1)?;
            let key = &from_key[..from_key.len() - self.rest.len()];
            if key < last {
                return Err(Stop::Malformed);
            }
            last = key;
            self.separator = "=";
            self.value(level + 1)?;
            if self.ends() {
                return Ok(());
            }
        }
    }

    fn variant(&mut self) -> Result<(), Stop> {
        self.name()?;
        let variant = self.name()?;
        self.part(variant)
    }

    fn part(&mut self, part: impl fmt::Display) -> Result<(), Stop> {
        write!(self.out, "{}{part}", self.separator)?;
        self.separator = ":";
        Ok(())
    }

    fn number<const N: usize, T: fmt::Display>(&mut self, parse: fn([u8; N]) -> T) -> Result<(), Stop> {
        let number = parse(self.array()?);
        self.part(number)
    }

    /// Whether the list ends here; if so, steps over its end.
    fn ends(&mut self) -> bool {
        match self.rest.strip_prefix(&[tag::END]) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn name(&mut self) -> Result<&'a str, Stop> {
        // A name is never outermost, wherever the value that it belongs to stands.
        const INSIDE: usize = 1;
        if self.byte()? == tag::STR { self.str(INSIDE) } else { Err(Stop::Malformed) }
    }

    fn str(&mut self, level: usize) -> Result<&'a str, Stop> {
        std::str::from_utf8(self.delimited(level)?).map_err(|_| Stop::Malformed)
    }

    fn delimited(&mut self, level: usize) -> Result<&'a [u8], Stop> {
        let length = if level == 0 { self.rest.len() } else { self.length()? };
        let (bytes, rest) = self.rest.split_at_checked(length).ok_or(Stop::Malformed)?;
        self.rest = rest;
        Ok(bytes)
    }

    fn length(&mut self) -> Result<usize, Stop> {
        let mut length: usize = 0;
        for shift in (0..usize::BITS).step_by(7) {
            let byte = self.byte()?;
            let bits = usize::from(byte & 0x7f);
            let is_superfluous = byte == 0 && shift > 0;
            if is_superfluous || (bits << shift) >> shift != bits {
                return Err(Stop::Malformed);
            }
            length |= bits << shift;
            if byte < 0x80 {
                return Ok(length);
            }
        }
        Err(Stop::Malformed)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Stop> {
        let (array, rest) = self.rest.split_first_chunk().ok_or(Stop::Malformed)?;
        self.rest = rest;
        Ok(*array)
    }

    fn byte(&mut self) -> Result<u8, Stop> {
        self.array().map(|[byte]| byte)
    }
}
