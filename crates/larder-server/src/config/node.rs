//! Settings as a tree that remembers where each one came from, and the typed settings read from it.
//!
//! Every source (three file formats, the environment, flags) becomes the same tree, so that an error has
//! one shape wherever the setting was written: where, which setting, what it was, what is allowed.

use serde::de::{self, DeserializeSeed, Deserializer, IntoDeserializer, Unexpected, Visitor};
use std::fmt;
use std::sync::Arc;

/// A value and where it was written.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) value: Value,
    pub(crate) origin: Origin,
}

#[derive(Clone, Debug)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Integer(i64),
    Float(f64),
    Text(String),
    /// Text from the environment or a flag, which has no types: read as whatever the setting is.
    Word(String),
    List(Vec<Node>),
    Table(Vec<(Name, Node)>),
}

/// The name of a setting and where it was written.
#[derive(Clone, Debug)]
pub(crate) struct Name {
    pub(crate) text: String,
    pub(crate) origin: Origin,
}

/// Where a setting was written.
#[derive(Clone, Debug)]
pub(crate) enum Origin {
    File {
        name: Arc<str>,
        line: usize,
        column: usize,
    },
    /// A file as a whole.
    Whole(Arc<str>),
    Environment(String),
    Flag(&'static str),
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File { name, line, column } => write!(f, "{name}:{line}:{column}"),
            Origin::Whole(name) => write!(f, "{name}"),
            Origin::Environment(name) => write!(f, "environment variable {name}"),
            Origin::Flag(name) => write!(f, "{name}"),
            Origin::Default => write!(f, "default"),
        }
    }
}

impl Node {
    pub(crate) fn new(value: Value, origin: Origin) -> Self {
        Node { value, origin }
    }

    /// Puts `node` at `path`, replacing what is there, and makes the tables on the way.
    pub(crate) fn set(&mut self, path: &[&str], node: Node) {
        let Some((first, rest)) = path.split_first() else {
            *self = node;
            return;
        };
        if !matches!(self.value, Value::Table(_)) {
            self.value = Value::Table(Vec::new());
        }
        let Value::Table(entries) = &mut self.value else { return };
        if let Some((_, child)) = entries.iter_mut().find(|(name, _)| name.text == *first) {
            return child.set(rest, node);
        }
        let origin = node.origin.clone();
        let mut child = Node::new(Value::Null, origin.clone());
        child.set(rest, node);
        entries.push((Name { text: (*first).to_owned(), origin }, child));
    }

    /// What is written, where that is text.
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) | Value::Word(text) => Some(text),
            _ => None,
        }
    }

    /// A member of this table.
    pub(crate) fn find_mut(&mut self, name: &str) -> Option<&mut Node> {
        match &mut self.value {
            Value::Table(entries) => {
                entries.iter_mut().find(|(other, _)| other.text == name).map(|(_, child)| child)
            }
            _ => None,
        }
    }

    /// The node at a dotted path.
    pub(crate) fn find(&self, path: &str) -> Option<&Node> {
        path.split('.').try_fold(self, |node, part| match &node.value {
            Value::Table(entries) => {
                entries.iter().find(|(name, _)| name.text == part).map(|(_, child)| child)
            }
            _ => None,
        })
    }
}

/// A setting that can't be used.
#[derive(Debug)]
pub(crate) struct ConfigError {
    origin: Option<Origin>,
    /// From the leaf to the root.
    path: Vec<String>,
    message: String,
}

impl ConfigError {
    /// An error of the setting at a dotted path.
    pub(crate) fn of(path: &str, origin: Origin, message: impl Into<String>) -> Self {
        let path = path.rsplit('.').filter(|part| !part.is_empty()).map(str::to_owned).collect();
        ConfigError { origin: Some(origin), path, message: message.into() }
    }

    /// The same error of what is below a dotted path.
    pub(crate) fn below(mut self, path: &str) -> Self {
        self.path.extend(path.rsplit('.').filter(|part| !part.is_empty()).map(str::to_owned));
        self
    }

    fn within(mut self, name: &str, origin: &Origin) -> Self {
        self.path.push(name.to_owned());
        self.origin.get_or_insert_with(|| origin.clone());
        self
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Some(Origin::Default) | None => {}
            Some(origin) => write!(f, "{origin}: ")?,
        }
        for (at, part) in self.path.iter().rev().enumerate() {
            write!(f, "{}{part}", if at > 0 && !part.starts_with('[') { "." } else { "" })?;
        }
        write!(f, "{}{}", if self.path.is_empty() { "" } else { ": " }, self.message)
    }
}

impl std::error::Error for ConfigError {}

impl de::Error for ConfigError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        ConfigError { origin: None, path: Vec::new(), message: message.to_string() }
    }

    fn invalid_type(given: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        let expected = expected.to_string();
        // Serde names Rust's types; a person writes settings.
        let allowed = match expected.as_str() {
            "u64" | "usize" => "a whole number of 0 or more",
            "u32" => "a whole number of 0 to 4294967295",
            "i32" | "i64" => "a whole number",
            "f64" => "a number",
            "a string" | "path string" => "text",
            "a sequence" => "a list",
            "a boolean" => "true or false",
            name if name.starts_with("struct ") => "a table",
            other => other,
        };
        let given = match given {
            Unexpected::Signed(number) => number.to_string(),
            Unexpected::Float(number) => number.to_string(),
            Unexpected::Bool(value) => value.to_string(),
            Unexpected::Str(text) => format!("\"{text}\""),
            Unexpected::Unit => "nothing".to_owned(),
            Unexpected::Seq => "a list".to_owned(),
            Unexpected::Map => "a table".to_owned(),
            other => other.to_string(),
        };
        Self::custom(format_args!("{given} was given; {allowed} is allowed"))
    }

    fn invalid_value(given: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::invalid_type(given, expected)
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::custom(format_args!("\"{variant}\" was given; {} is allowed", expected.join(" or ")))
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self::custom(unknown(field, expected))
    }
}

/// Says that a setting doesn't exist, and which one may have been meant.
pub(crate) fn unknown(name: &str, known: &[&str]) -> String {
    let nearest = known.iter().min_by_key(|other| distance(name, other));
    match nearest {
        Some(nearest)
            if distance(name, nearest) <= 1 + name.len() / 3
                || name.len() > 3 && nearest.starts_with(name) =>
        {
            format!("there is no such setting; did you mean {nearest}?")
        }
        _ => format!("there is no such setting; allowed are {}", known.join(", ")),
    }
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replace = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

// Nothing is borrowed from the tree, so that lists split from a word can be read like any other.
impl<'de> Deserializer<'de> for &Node {
    type Error = ConfigError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
        match &self.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Integer(value) => visitor.visit_i64(*value),
            Value::Float(value) => visitor.visit_f64(*value),
            Value::Text(text) => visitor.visit_str(text),
            Value::Word(word) => match (word.parse::<bool>(), word.parse::<i64>(), word.parse::<f64>()) {
                (Ok(value), ..) => visitor.visit_bool(value),
                (_, Ok(value), _) => visitor.visit_i64(value),
                (.., Ok(value)) => visitor.visit_f64(value),
                _ => visitor.visit_str(word),
            },
            Value::List(nodes) => visitor.visit_seq(Items { nodes: nodes.iter(), at: 0 }),
            Value::Table(entries) => visitor.visit_map(Entries { entries: entries.iter(), current: None }),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
        match &self.value {
            Value::Word(word) => visitor.visit_str(word),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
        match self.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ConfigError> {
        let Value::Word(words) = &self.value else { return self.deserialize_any(visitor) };
        let nodes: Vec<Node> = words
            .split(',')
            .map(str::trim)
            .filter(|word| !word.is_empty())
            .map(|word| Node::new(Value::Word(word.to_owned()), self.origin.clone()))
            .collect();
        visitor.visit_seq(Items { nodes: nodes.iter(), at: 0 })
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, ConfigError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ConfigError> {
        match &self.value {
            Value::Text(text) | Value::Word(text) => visitor.visit_enum(text.as_str().into_deserializer()),
            _ => Err(de::Error::custom(format_args!("{} is allowed", variants.join(" or ")))),
        }
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf unit unit_struct tuple
        tuple_struct map struct identifier ignored_any
    }
}

struct Items<'n> {
    nodes: std::slice::Iter<'n, Node>,
    at: usize,
}

impl<'de> de::SeqAccess<'de> for Items<'_> {
    type Error = ConfigError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, ConfigError> {
        let Some(node) = self.nodes.next() else { return Ok(None) };
        self.at += 1;
        seed.deserialize(node)
            .map(Some)
            .map_err(|error| error.within(&format!("[{}]", self.at - 1), &node.origin))
    }
}

struct Entries<'n> {
    entries: std::slice::Iter<'n, (Name, Node)>,
    current: Option<&'n (Name, Node)>,
}

impl<'de> de::MapAccess<'de> for Entries<'_> {
    type Error = ConfigError;

    fn next_key_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, ConfigError> {
        self.current = self.entries.next();
        let Some((name, _)) = self.current else { return Ok(None) };
        let key: de::value::StrDeserializer<'_, ConfigError> = name.text.as_str().into_deserializer();
        seed.deserialize(key).map(Some).map_err(|error| error.within(&name.text, &name.origin))
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, ConfigError> {
        let (name, node) = self.current.expect("serde asks for a key first");
        seed.deserialize(node).map_err(|error| error.within(&name.text, &node.origin))
    }
}
