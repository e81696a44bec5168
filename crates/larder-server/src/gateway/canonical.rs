//! The canonical bytes of a JSON document: two documents have the same bytes exactly if they say the same.
//!
//! Members are sorted by name, white space is gone, and a number is written in one way (`1`, `1.0` and `1e0` are
//! one number). What different readers may understand differently has no canonical bytes: a name that stands
//! twice in an object, and a number that a double doesn't hold exactly enough.

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use std::fmt;

/// Integers beyond this may be rounded by a reader that keeps numbers as doubles.
const EXACT_MAX: f64 = 9_007_199_254_740_992.0;

/// The canonical bytes of a value, with the members of an object apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Canonical {
    /// By name, sorted.
    Object(Vec<(String, Canonical)>),
    Array(Vec<Canonical>),
    Text(String),
    /// null, true, false, or a number.
    Plain(String),
}

impl Canonical {
    /// Reads a document.
    ///
    /// # Errors
    /// What is no JSON, and what has no canonical bytes.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(json)
    }

    /// Takes a member out of an object.
    pub(crate) fn take(&mut self, name: &str) -> Option<Canonical> {
        let Canonical::Object(members) = self else { return None };
        let at = members.binary_search_by(|(other, _)| other.as_str().cmp(name)).ok()?;
        Some(members.remove(at).1)
    }

    /// A member of an object.
    pub(crate) fn get(&self, name: &str) -> Option<&Canonical> {
        let Canonical::Object(members) = self else { return None };
        let at = members.binary_search_by(|(other, _)| other.as_str().cmp(name)).ok()?;
        Some(&members[at].1)
    }

    pub(crate) fn get_mut(&mut self, name: &str) -> Option<&mut Canonical> {
        let Canonical::Object(members) = self else { return None };
        let at = members.binary_search_by(|(other, _)| other.as_str().cmp(name)).ok()?;
        Some(&mut members[at].1)
    }

    pub(crate) fn as_text(&self) -> Option<&str> {
        match self {
            Canonical::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(crate) fn as_count(&self) -> Option<u64> {
        match self {
            Canonical::Plain(text) => text.parse().ok(),
            _ => None,
        }
    }

    pub(crate) fn is(&self, plain: &str) -> bool {
        matches!(self, Canonical::Plain(own) if own == plain)
    }

    /// Hands its bytes to a hash. Every part has its length or an end before it, so that no two documents share
    /// them.
    pub(crate) fn feed(&self, sink: &mut impl FnMut(&[u8])) {
        let length = |sink: &mut dyn FnMut(&[u8]), length: usize| sink(&(length as u64).to_le_bytes());
        match self {
            Canonical::Object(members) => {
                sink(b"o");
                length(sink, members.len());
                for (name, value) in members {
                    length(sink, name.len());
                    sink(name.as_bytes());
                    value.feed(sink);
                }
            }
            Canonical::Array(items) => {
                sink(b"a");
                length(sink, items.len());
                for item in items {
                    item.feed(sink);
                }
            }
            Canonical::Text(text) => {
                sink(b"t");
                length(sink, text.len());
                sink(text.as_bytes());
            }
            Canonical::Plain(text) => {
                sink(b"p");
                length(sink, text.len());
                sink(text.as_bytes());
            }
        }
    }
}

impl<'de> Deserialize<'de> for Canonical {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Canonical;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Canonical, E> {
        Ok(Canonical::Plain("null".to_owned()))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Canonical, E> {
        Ok(Canonical::Plain(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Canonical, E> {
        Ok(Canonical::Plain(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Canonical, E> {
        Ok(Canonical::Plain(value.to_string()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Canonical, E> {
        if !value.is_finite() || value.abs() >= EXACT_MAX {
            return Err(E::custom("a number that a double doesn't hold exactly"));
        }
        // An integer that is written as a fraction; -0.0 is 0, as it is to an upstream that computes with it.
        Ok(Canonical::Plain(match value.fract() == 0.0 {
            true => (value as i64).to_string(),
            false => value.to_string(),
        }))
    }

    fn visit_str<E>(self, value: &str) -> Result<Canonical, E> {
        Ok(Canonical::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Canonical, E> {
        Ok(Canonical::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Canonical, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Canonical::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Canonical, A::Error> {
        let mut members: Vec<(String, Canonical)> = Vec::new();
        while let Some(member) = access.next_entry()? {
            members.push(member);
        }
        members.sort_by(|(a, _), (b, _)| a.cmp(b));
        if members.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            return Err(A::Error::custom("a name stands twice in an object"));
        }
        Ok(Canonical::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(json: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        Canonical::parse(json.as_bytes()).unwrap().feed(&mut |part| bytes.extend_from_slice(part));
        bytes
    }

    #[test]
    fn equal_documents_have_equal_bytes() {
        for (a, b) in [
            (r#"{"a":1,"b":[1.0,2]}"#, r#" { "b" : [1, 2.00], "a" : 1e0 } "#),
            (r#""é""#, r#""\u00e9""#),
            ("-0.0", "0"),
            ("0.1", "1e-1"),
            ("1E2", "100"),
        ] {
            assert_eq!(bytes(a), bytes(b), "{a} {b}");
        }
    }

    #[test]
    fn different_documents_have_different_bytes() {
        let all = [
            "1",
            "\"1\"",
            "[1]",
            "[[1]]",
            "null",
            "\"null\"",
            "true",
            "{}",
            "[]",
            "\"\"",
            "0.1",
            "-1",
            r#"{"a":"b"}"#,
            r#"{"a":["b"]}"#,
            r#"["a","b"]"#,
            r#"{"a":1,"b":2}"#,
            r#"{"a":2,"b":1}"#,
            r#"{"a":{"b":1}}"#,
            r#"[["a"],"b"]"#,
            r#"[["a","b"]]"#,
            r#""a\u0000""#,
            "\"a\"",
            "9007199254740993",
            "9007199254740992",
            "18446744073709551615",
            r#"{"":1}"#,
            r#"[1,2]"#,
            "[12]",
        ];
        for (i, a) in all.iter().enumerate() {
            for b in &all[i + 1..] {
                assert_ne!(bytes(a), bytes(b), "{a} {b}");
            }
        }
    }

    #[test]
    fn what_is_ambiguous_has_none() {
        for json in [
            r#"{"a":1,"a":2}"#,
            r#"{"x":{"a":1,"\u0061":1}}"#,
            "18446744073709551616",
            "1e16",
            "1e999",
            "",
            "{",
            "[1,]",
            "nul",
            "1 2",
            "\"\\ud800\"",
        ] {
            assert!(Canonical::parse(json.as_bytes()).is_err(), "{json}");
        }
        let deep = "[".repeat(100_000);
        assert!(Canonical::parse(deep.as_bytes()).is_err());
    }
}
