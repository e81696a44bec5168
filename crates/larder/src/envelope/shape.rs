//! What can be told of a type without a value of it: enough to refuse an entry of another type, or of the
//! same type before a field was added.

use serde::de::{self, DeserializeOwned, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use std::fmt::{self, Display};
use xxhash_rust::xxh3::xxh3_64;

/// A type as an envelope remembers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// XXH3-64 of the schema, or of the type's name and what its `Deserialize` asks for.
    pub(super) fingerprint: u64,
    /// The type asks its format what comes next, which postcard can't tell.
    pub(super) needs_self_describing: bool,
}

impl Shape {
    /// The shape of `V`, found by running its `Deserialize` on a format that records the question and
    /// answers none: no value is ever made.
    pub(super) fn of<V: DeserializeOwned>(schema: Option<&str>) -> Self {
        let mut seen = Seen { trace: Vec::with_capacity(256), needs_self_describing: false };
        seen.record(std::any::type_name::<V>());
        let _ = V::deserialize(Probe { seen: &mut seen, levels_left: LEVELS_MAX });
        let fingerprint = match schema {
            Some(schema) => xxh3_64(schema.as_bytes()),
            None => xxh3_64(&seen.trace),
        };
        Shape { fingerprint, needs_self_describing: seen.needs_self_describing }
    }
}

/// How many wrappers (`Option`, `Vec`, newtypes) around the first struct or enum are looked through.
const LEVELS_MAX: u8 = 8;

struct Seen {
    trace: Vec<u8>,
    needs_self_describing: bool,
}

impl Seen {
    fn record(&mut self, word: &str) {
        self.trace.extend_from_slice(&(word.len() as u64).to_le_bytes());
        self.trace.extend_from_slice(word.as_bytes());
    }
}

struct Probe<'a> {
    seen: &'a mut Seen,
    levels_left: u8,
}

impl Probe<'_> {
    fn inside(self) -> Result<Self, Enough> {
        if self.levels_left == 0 {
            Err(Enough)
        } else {
            Ok(Probe { levels_left: self.levels_left - 1, ..self })
        }
    }
}

/// The answer to every question.
#[derive(Debug)]
struct Enough;

impl Display for Enough {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no value, only its type was asked for")
    }
}

impl std::error::Error for Enough {}

impl de::Error for Enough {
    fn custom<T: Display>(_: T) -> Self {
        Enough
    }
}

macro_rules! scalars {
    ($($method:ident),*) => {$(
        fn $method<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Enough> {
            self.seen.record(stringify!($method));
            Err(Enough)
        }
    )*};
}

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = Enough;

    scalars! {
        deserialize_bool, deserialize_i8, deserialize_i16, deserialize_i32, deserialize_i64,
        deserialize_i128, deserialize_u8, deserialize_u16, deserialize_u32, deserialize_u64,
        deserialize_u128, deserialize_f32, deserialize_f64, deserialize_char, deserialize_unit,
        deserialize_identifier
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Enough> {
        self.seen.record("any");
        self.seen.needs_self_describing = true;
        Err(Enough)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Enough> {
        self.deserialize_any(visitor)
    }

    // Asking for a str or a string is a choice of the implementation, not of the type.
    fn deserialize_str<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Enough> {
        self.seen.record("str");
        Err(Enough)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Enough> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Enough> {
        self.seen.record("bytes");
        Err(Enough)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Enough> {
        self.deserialize_bytes(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Enough> {
        self.seen.record("option");
        visitor.visit_some(self.inside()?)
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, name: &'static str, _: V) -> Result<V::Value, Enough> {
        self.seen.record("unit struct");
        self.seen.record(name);
        Err(Enough)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Enough> {
        self.seen.record("newtype struct");
        self.seen.record(name);
        visitor.visit_newtype_struct(self.inside()?)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Enough> {
        self.seen.record("seq");
        visitor.visit_seq(self.inside()?)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Enough> {
        self.seen.record("tuple");
        self.seen.record(&len.to_string());
        visitor.visit_seq(self.inside()?)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, Enough> {
        self.seen.record(name);
        self.deserialize_tuple(len, visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Enough> {
        self.seen.record("map");
        visitor.visit_map(self.inside()?)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Enough> {
        self.seen.record("struct");
        self.seen.record(name);
        fields.iter().for_each(|field| self.seen.record(field));
        Err(Enough)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Enough> {
        self.seen.record("enum");
        self.seen.record(name);
        variants.iter().for_each(|variant| self.seen.record(variant));
        Err(Enough)
    }

    // Unlike every codec's: one answer for all of them, so that a shape doesn't depend on the codec.
    fn is_human_readable(&self) -> bool {
        false
    }
}

impl<'de> SeqAccess<'de> for Probe<'_> {
    type Error = Enough;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Enough> {
        seed.deserialize(Probe { seen: self.seen, levels_left: self.levels_left }).map(Some)
    }
}

impl<'de> MapAccess<'de> for Probe<'_> {
    type Error = Enough;

    fn next_key_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Enough> {
        seed.deserialize(Probe { seen: self.seen, levels_left: self.levels_left }).map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Enough> {
        seed.deserialize(Probe { seen: self.seen, levels_left: self.levels_left })
    }
}
