//! The canonical encoding: a serde serializer that tags every type.
//!
//! A value is a tag of one byte, then:
//!
//! | tag | type | what follows |
//! | --- | --- | --- |
//! | 01 | unit | |
//! | 02, 03 | false, true | |
//! | 04 | char | 4 bytes |
//! | 05 | str | length, UTF-8; outermost: UTF-8 to the end |
//! | 06 | bytes | length, bytes; outermost: bytes to the end |
//! | 07, 08 | none, some | the value |
//! | 10 to 14 | i8, i16, i32, i64, i128 | 1, 2, 4, 8, 16 bytes |
//! | 18 to 1c | u8, u16, u32, u64, u128 | 1, 2, 4, 8, 16 bytes |
//! | 1e, 1f | f32, f64 | 4, 8 bytes of IEEE 754; one zero, one NaN |
//! | 20, 21 | sequence, tuple | values, 00 |
//! | 22 | map | pairs of values in the order of their encoded keys, 00 |
//! | 28 | unit struct | name |
//! | 29 | newtype struct | name, value |
//! | 2a | tuple struct | name, values, 00 |
//! | 2b | struct | name, pairs of field name and value, 00 |
//! | 30 | unit variant | name of enum, of variant |
//! | 31 | newtype variant | both names, value |
//! | 32 | tuple variant | both names, values, 00 |
//! | 33 | struct variant | both names, pairs of field name and value, 00 |
//! | 7f | long | outermost only, see `long` in the parent module |
//!
//! Numbers are big-endian. A length is LEB128 without superfluous bytes. A name is a str with its tag, so
//! that 00 always ends a list. Every value inside another is thus its own delimiter, and no encoding is a
//! prefix of another: that is what makes the whole collision-free. Pairs of a map with equal keys, which
//! only a hand-written `Serialize` makes, keep their order.

use super::KEY_LEVELS_MAX;
use crate::error::{Error, ErrorKind, Result};
use serde::ser::{self, Serialize};
use std::fmt::{self, Display};

/// The tags of the table above.
pub(super) mod tag {
    pub(in crate::key) const END: u8 = 0x00;
    pub(in crate::key) const UNIT: u8 = 0x01;
    pub(in crate::key) const FALSE: u8 = 0x02;
    pub(in crate::key) const TRUE: u8 = 0x03;
    pub(in crate::key) const CHAR: u8 = 0x04;
    pub(in crate::key) const STR: u8 = 0x05;
    pub(in crate::key) const BYTES: u8 = 0x06;
    pub(in crate::key) const NONE: u8 = 0x07;
    pub(in crate::key) const SOME: u8 = 0x08;
    pub(in crate::key) const I8: u8 = 0x10;
    pub(in crate::key) const I16: u8 = 0x11;
    pub(in crate::key) const I32: u8 = 0x12;
    pub(in crate::key) const I64: u8 = 0x13;
    pub(in crate::key) const I128: u8 = 0x14;
    pub(in crate::key) const U8: u8 = 0x18;
    pub(in crate::key) const U16: u8 = 0x19;
    pub(in crate::key) const U32: u8 = 0x1a;
    pub(in crate::key) const U64: u8 = 0x1b;
    pub(in crate::key) const U128: u8 = 0x1c;
    pub(in crate::key) const F32: u8 = 0x1e;
    pub(in crate::key) const F64: u8 = 0x1f;
    pub(in crate::key) const SEQ: u8 = 0x20;
    pub(in crate::key) const TUPLE: u8 = 0x21;
    pub(in crate::key) const MAP: u8 = 0x22;
    pub(in crate::key) const UNIT_STRUCT: u8 = 0x28;
    pub(in crate::key) const NEWTYPE_STRUCT: u8 = 0x29;
    pub(in crate::key) const TUPLE_STRUCT: u8 = 0x2a;
    pub(in crate::key) const STRUCT: u8 = 0x2b;
    pub(in crate::key) const UNIT_VARIANT: u8 = 0x30;
    pub(in crate::key) const NEWTYPE_VARIANT: u8 = 0x31;
    pub(in crate::key) const TUPLE_VARIANT: u8 = 0x32;
    pub(in crate::key) const STRUCT_VARIANT: u8 = 0x33;
    pub(in crate::key) const LONG: u8 = 0x7f;
}

/// Encodes a key of any length.
pub(super) fn encode<K: Serialize + ?Sized>(key: &K) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    match key.serialize(Encoder { out: &mut out, level: 0 }) {
        Ok(()) => Ok(out),
        Err(Failed(why)) => Err(Error::new(ErrorKind::Key, "encode").message(why)),
    }
}

/// The name under which an `EntryKey` is serialized. No Rust type has such a name of its own.
pub(super) const ENTRY_KEY: &str = "larder::EntryKey";

/// The namespace and the bytes of an `EntryKey` that was encoded by itself: `None` for any other key,
/// `Some(None)` for one that pretends to be one.
pub(super) fn entry_key(encoding: &[u8]) -> Option<Option<(&str, &[u8])>> {
    let rest = encoding.strip_prefix(&[tag::NEWTYPE_STRUCT])?;
    let (name, rest) = take_delimited(rest, tag::STR)?;
    (name == ENTRY_KEY.as_bytes()).then(|| {
        let (namespace, rest) = take_delimited(rest.strip_prefix(&[tag::TUPLE])?, tag::STR)?;
        let (bytes, end) = take_delimited(rest, tag::BYTES)?;
        (end == [tag::END]).then_some((std::str::from_utf8(namespace).ok()?, bytes))
    })
}

fn take_delimited(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let mut rest = bytes.strip_prefix(&[tag])?;
    let mut length = 0_usize;
    for shift in (0..usize::BITS).step_by(7) {
        let (&byte, after) = rest.split_first()?;
        rest = after;
        length |= usize::from(byte & 0x7f).checked_shl(shift)?;
        if byte < 0x80 {
            return rest.split_at_checked(length);
        }
    }
    None
}

/// The one bit pattern of every NaN, and of both zeros.
pub(super) fn canonical_f32(value: f32) -> f32 {
    if value.is_nan() { f32::from_bits(0x7fc0_0000) } else { value + 0.0 }
}

/// The one bit pattern of every NaN, and of both zeros.
pub(super) fn canonical_f64(value: f64) -> f64 {
    if value.is_nan() { f64::from_bits(0x7ff8_0000_0000_0000) } else { value + 0.0 }
}

/// Why a key has no encoding.
#[derive(Debug)]
struct Failed(String);

impl Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failed {}

impl ser::Error for Failed {
    fn custom<T: Display>(message: T) -> Self {
        Failed(message.to_string())
    }
}

type Done = std::result::Result<(), Failed>;

struct Encoder<'a> {
    out: &'a mut Vec<u8>,
    /// How many values surround the one to come.
    level: usize,
}

impl<'a> Encoder<'a> {
    fn scalar<const N: usize>(self, tag: u8, bytes: [u8; N]) -> Done {
        if self.level == 0 {
            self.out.reserve_exact(1 + N);
        }
        self.out.push(tag);
        self.out.extend_from_slice(&bytes);
        Ok(())
    }

    fn delimited(self, tag: u8, bytes: &[u8]) -> Done {
        if self.level == 0 {
            self.out.reserve_exact(1 + bytes.len());
            self.out.push(tag);
        } else {
            self.out.push(tag);
            put_length(self.out, bytes.len());
        }
        self.out.extend_from_slice(bytes);
        Ok(())
    }

    fn inside<T: Serialize + ?Sized>(&mut self, value: &T) -> Done {
        if self.level == KEY_LEVELS_MAX {
            return Err(Failed(format!("nested deeper than {KEY_LEVELS_MAX} levels")));
        }
        value.serialize(Encoder { out: self.out, level: self.level + 1 })
    }

    fn name(&mut self, name: &str) {
        self.out.push(tag::STR);
        put_length(self.out, name.len());
        self.out.extend_from_slice(name.as_bytes());
    }

    fn open(mut self, tag: u8, names: &[&str]) -> Self {
        self.out.push(tag);
        names.iter().for_each(|name| self.name(name));
        self
    }

    fn close(self) -> Done {
        self.out.push(tag::END);
        Ok(())
    }
}

fn put_length(out: &mut Vec<u8>, mut length: usize) {
    while length >= 0x80 {
        out.push(length as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
}

macro_rules! numbers {
    ($($method:ident $type:ty => $tag:ident),*) => {$(
        fn $method(self, value: $type) -> Done {
            self.scalar(tag::$tag, value.to_be_bytes())
        }
    )*};
}

impl<'a> ser::Serializer for Encoder<'a> {
    type Ok = ();
    type Error = Failed;
    type SerializeSeq = Self;
    type SerializeTuple = Self;
    type SerializeTupleStruct = Self;
    type SerializeTupleVariant = Self;
    type SerializeMap = Pairs<'a>;
    type SerializeStruct = Self;
    type SerializeStructVariant = Self;

    numbers! {
        serialize_i8 i8 => I8, serialize_i16 i16 => I16, serialize_i32 i32 => I32, serialize_i64 i64 => I64,
        serialize_i128 i128 => I128, serialize_u8 u8 => U8, serialize_u16 u16 => U16,
        serialize_u32 u32 => U32, serialize_u64 u64 => U64, serialize_u128 u128 => U128
    }

    fn serialize_bool(self, value: bool) -> Done {
        self.scalar(if value { tag::TRUE } else { tag::FALSE }, [])
    }

    fn serialize_f32(self, value: f32) -> Done {
        self.scalar(tag::F32, canonical_f32(value).to_be_bytes())
    }

    fn serialize_f64(self, value: f64) -> Done {
        self.scalar(tag::F64, canonical_f64(value).to_be_bytes())
    }

    fn serialize_char(self, value: char) -> Done {
        self.scalar(tag::CHAR, u32::from(value).to_be_bytes())
    }

    fn serialize_str(self, value: &str) -> Done {
        self.delimited(tag::STR, value.as_bytes())
    }

    fn serialize_bytes(self, value: &[u8]) -> Done {
        self.delimited(tag::BYTES, value)
    }

    fn serialize_none(self) -> Done {
        self.scalar(tag::NONE, [])
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Done {
        self.open(tag::SOME, &[]).inside(value)
    }

    fn serialize_unit(self) -> Done {
        self.scalar(tag::UNIT, [])
    }

    fn serialize_unit_struct(self, name: &'static str) -> Done {
        self.open(tag::UNIT_STRUCT, &[name]);
        Ok(())
    }

    fn serialize_unit_variant(self, name: &'static str, _: u32, variant: &'static str) -> Done {
        self.open(tag::UNIT_VARIANT, &[name, variant]);
        Ok(())
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, name: &'static str, value: &T) -> Done {
        self.open(tag::NEWTYPE_STRUCT, &[name]).inside(value)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Done {
        self.open(tag::NEWTYPE_VARIANT, &[name, variant]).inside(value)
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Self, Failed> {
        Ok(self.open(tag::SEQ, &[]))
    }

    fn serialize_tuple(self, _: usize) -> Result<Self, Failed> {
        Ok(self.open(tag::TUPLE, &[]))
    }

    fn serialize_tuple_struct(self, name: &'static str, _: usize) -> Result<Self, Failed> {
        Ok(self.open(tag::TUPLE_STRUCT, &[name]))
    }

    fn serialize_tuple_variant(
        self,
        name: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Self, Failed> {
        Ok(self.open(tag::TUPLE_VARIANT, &[name, variant]))
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Pairs<'a>, Failed> {
        Ok(Pairs { map: self.open(tag::MAP, &[]), keys: Vec::new(), values: Vec::new() })
    }

    fn serialize_struct(self, name: &'static str, _: usize) -> Result<Self, Failed> {
        Ok(self.open(tag::STRUCT, &[name]))
    }

    fn serialize_struct_variant(
        self,
        name: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Self, Failed> {
        Ok(self.open(tag::STRUCT_VARIANT, &[name, variant]))
    }

    fn is_human_readable(&self) -> bool {
        false
    }
}

macro_rules! elements {
    ($($trait:ident $method:ident),*) => {$(
        impl ser::$trait for Encoder<'_> {
            type Ok = ();
            type Error = Failed;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Done {
                self.inside(value)
            }

            fn end(self) -> Done {
                self.close()
            }
        }
    )*};
}

elements! {
    SerializeSeq serialize_element, SerializeTuple serialize_element,
    SerializeTupleStruct serialize_field, SerializeTupleVariant serialize_field
}

macro_rules! fields {
    ($($trait:ident),*) => {$(
        impl ser::$trait for Encoder<'_> {
            type Ok = ();
            type Error = Failed;

            fn serialize_field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Done {
                self.name(name);
                self.inside(value)
            }

            fn end(self) -> Done {
                self.close()
            }
        }
    )*};
}

fields! { SerializeStruct, SerializeStructVariant }

/// A map: its pairs are written as they come, and put in order at the end.
struct Pairs<'a> {
    map: Encoder<'a>,
    /// Where each key begins, and each value.
    keys: Vec<usize>,
    values: Vec<usize>,
}

impl ser::SerializeMap for Pairs<'_> {
    type Ok = ();
    type Error = Failed;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Done {
        if self.keys.len() != self.values.len() {
            return Err(Failed("a map has a key without a value".into()));
        }
        self.keys.push(self.map.out.len());
        self.map.inside(key)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Done {
        if self.keys.len() != self.values.len() + 1 {
            return Err(Failed("a map has a value without a key".into()));
        }
        self.values.push(self.map.out.len());
        self.map.inside(value)
    }

    fn end(self) -> Done {
        let Pairs { map, keys, values } = self;
        if keys.len() != values.len() {
            return Err(Failed("a map has a key without a value".into()));
        }
        if let Some(&start) = keys.first() {
            let ends = keys[1..].iter().copied().chain([map.out.len()]);
            let mut pairs: Vec<(&[u8], &[u8])> = (keys.iter().zip(&values).zip(ends))
                .map(|((&key, &value), end)| (&map.out[key..value], &map.out[value..end]))
                .collect();
            if !pairs.is_sorted_by_key(|pair| pair.0) {
                pairs.sort_by_key(|pair| pair.0);
                let sorted =
                    pairs.into_iter().flat_map(|(key, value)| [key, value]).collect::<Vec<_>>().concat();
                map.out[start..].copy_from_slice(&sorted);
            }
        }
        map.close()
    }
}
