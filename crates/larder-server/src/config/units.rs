//! Sizes, durations and secrets as people write them in settings.

use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::{Serialize, Serializer};
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

/// A number of bytes: a plain number, or text with a unit (KB, KiB, MB, MiB, GB, GiB).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

const SIZES: &str = "a number of bytes, or text like \"64 MiB\",";
const UNITS: [(&str, u64); 10] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
    ("", 1),
];

impl Size {
    pub(super) fn parse(text: &str) -> Option<Size> {
        let digits_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits_end);
        let (_, factor) = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit.trim()))?;
        if let Ok(whole) = number.parse::<u64>() {
            return whole.checked_mul(*factor).map(Size);
        }
        let bytes = number.parse::<f64>().ok()? * *factor as f64;
        (bytes.is_finite() && bytes < u64::MAX as f64).then_some(Size(bytes as u64))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit =
            UNITS[..4].iter().rev().find(|(_, factor)| self.0 >= *factor && self.0.is_multiple_of(*factor));
        match unit {
            Some((name, factor)) => write!(f, "{} {name}", self.0 / factor),
            None => write!(f, "{} B", self.0),
        }
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl Visitor<'_> for Read {
            type Value = Size;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(SIZES.trim_end_matches(','))
            }
            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Size, E> {
                Ok(Size(bytes))
            }
            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Size, E> {
                u64::try_from(bytes)
                    .map(Size)
                    .map_err(|_| E::custom(format!("{bytes} is no size; {SIZES} is allowed")))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                Size::parse(text)
                    .ok_or_else(|| E::custom(format!("\"{text}\" is no size; {SIZES} is allowed")))
            }
        }
        deserializer.deserialize_str(Read)
    }
}

/// Text that is never printed, logged or shown by `--check`.
#[derive(Clone)]
pub(crate) struct Secret(String);

impl Secret {
    pub(crate) fn new(text: String) -> Self {
        Secret(text)
    }

    /// The text itself, to compare or to send it.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("(secret)")
    }
}

/// Reads an address to listen on; `localhost` is 127.0.0.1.
pub(crate) fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(deserializer)?;
    let numeric = match text.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}"),
        None => text.clone(),
    };
    numeric.parse().map_err(|_| {
        de::Error::custom(format!("\"{text}\" is no address; IP:PORT, like 127.0.0.1:7070, is allowed"))
    })
}

/// Reads a list of secrets; no error shows what was given.
pub(crate) fn secrets<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Secret>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer);
    texts
        .map(|texts| texts.into_iter().map(Secret).collect())
        .map_err(|_| de::Error::custom("a list of texts is allowed"))
}

/// Durations as seconds with fractions, positive and finite: limits of the server.
pub(crate) mod seconds {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(duration.as_secs_f64())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let seconds = f64::deserialize(deserializer)?;
        match Duration::try_from_secs_f64(seconds) {
            Ok(duration) if !duration.is_zero() && seconds <= 86_400.0 => Ok(duration),
            _ => Err(de::Error::custom(format!(
                "{seconds} was given; a number of seconds above 0, at most 86400, is allowed"
            ))),
        }
    }
}

/// A duration without end, or as long as [`seconds`] allows: `"never"` or a number.
pub(crate) mod seconds_or_never {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        match *duration {
            Duration::MAX => serializer.serialize_str("never"),
            _ => seconds::serialize(duration, serializer),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        struct Read;
        impl Visitor<'_> for Read {
            type Value = Duration;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of seconds above 0, or \"never\"")
            }
            fn visit_f64<E: de::Error>(self, seconds: f64) -> Result<Duration, E> {
                let duration =
                    Duration::try_from_secs_f64(seconds).ok().filter(|duration| !duration.is_zero());
                duration.ok_or_else(|| {
                    E::custom(format!(
                        "{seconds} was given; a number of seconds above 0, or \"never\", is allowed"
                    ))
                })
            }
            fn visit_i64<E: de::Error>(self, seconds: i64) -> Result<Duration, E> {
                self.visit_f64(seconds as f64)
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
                match text {
                    "never" => Ok(Duration::MAX),
                    _ => self.visit_f64(text.parse().unwrap_or(-1.0)),
                }
            }
        }
        deserializer.deserialize_any(Read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_and_without_units() {
        for (text, bytes) in
            [("0", 0), ("1024", 1024), ("64 MiB", 64 << 20), ("1.5kib", 1536), ("2 GB", 2_000_000_000)]
        {
            assert_eq!(Size::parse(text), Some(Size(bytes)), "{text}");
        }
        for wrong in ["", "MiB", "-1", "1 parsec", "99999999999 TiB", "1e3", "nan"] {
            assert_eq!(Size::parse(wrong), None, "{wrong}");
        }
        assert_eq!(Size(64 << 20).to_string(), "64 MiB");
        assert_eq!(Size(1000).to_string(), "1000 B");
    }
}
