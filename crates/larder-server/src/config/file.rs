//! Configuration files, in three formats chosen by their extension, as trees with positions.

use super::node::{ConfigError, Name, Node, Origin, Value};
use saphyr::{LoadableYamlNode, MarkedYaml, Scalar, YamlData};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::path::Path;
use std::sync::Arc;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Largest file that is read. A configuration of larder has a few KiB.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Reads a file by its extension: toml, yaml, yml or json.
pub(crate) fn read(path: &Path) -> Result<Node, ConfigError> {
    let name: Arc<str> = path.display().to_string().into();
    let whole = |message: String| ConfigError::of("", Origin::Whole(name.clone()), message);
    let length = std::fs::metadata(path).map_err(|error| whole(format!("can't be read: {error}")))?.len();
    if length > FILE_BYTES_MAX {
        return Err(whole(format!("has {length} bytes; at most {FILE_BYTES_MAX} are allowed")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| whole(format!("can't be read: {error}")))?;
    let source = Source { name: &name, text: &text };
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("toml") => source.toml(),
        Some("yaml" | "yml") => source.yaml(),
        Some("json") => source.json(),
        _ => Err(whole("has an unknown extension; .toml, .yaml, .yml or .json is allowed".to_owned())),
    }
}

struct Source<'t> {
    name: &'t Arc<str>,
    text: &'t str,
}

impl<'t> Source<'t> {
    /// The origin at a byte offset.
    fn at(&self, offset: usize) -> Origin {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        self.line(1 + before.matches('\n').count(), 1 + before[line_start..].chars().count())
    }

    fn line(&self, line: usize, column: usize) -> Origin {
        Origin::File { name: self.name.clone(), line, column }
    }

    fn error(&self, origin: Origin, message: impl Into<String>) -> ConfigError {
        ConfigError::of("", origin, message)
    }

    fn toml(&self) -> Result<Node, ConfigError> {
        match DeTable::parse(self.text) {
            Ok(table) => Ok(self.toml_table(table.get_ref(), self.at(0))),
            Err(error) => {
                let start = error.span().map_or(0, |span| span.start);
                Err(self.error(self.at(start), error.message()))
            }
        }
    }

    fn toml_table(&self, table: &DeTable<'_>, origin: Origin) -> Node {
        let entry = |(name, value): (&Spanned<_>, &Spanned<DeValue<'_>>)| {
            let text: &std::borrow::Cow<'_, str> = name.get_ref();
            (Name { text: text.to_string(), origin: self.at(name.span().start) }, self.toml_value(value))
        };
        Node::new(Value::Table(table.iter().map(entry).collect()), origin)
    }

    fn toml_value(&self, spanned: &Spanned<DeValue<'_>>) -> Node {
        let origin = self.at(spanned.span().start);
        let value = match spanned.get_ref() {
            DeValue::String(text) => Value::Text(text.to_string()),
            DeValue::Boolean(value) => Value::Bool(*value),
            DeValue::Integer(digits) => i64::from_str_radix(digits.as_str(), digits.radix())
                .map_or_else(|_| Value::Text(digits.as_str().to_owned()), Value::Integer),
            DeValue::Float(digits) => {
                digits.as_str().parse().map_or_else(|_| Value::Text(digits.as_str().to_owned()), Value::Float)
            }
            DeValue::Datetime(time) => Value::Text(time.to_string()),
            DeValue::Array(items) => Value::List(items.iter().map(|item| self.toml_value(item)).collect()),
            DeValue::Table(table) => return self.toml_table(table, origin),
        };
        Node::new(value, origin)
    }

    fn yaml(&self) -> Result<Node, ConfigError> {
        let documents = MarkedYaml::load_from_str(self.text).map_err(|error| {
            let mark = error.marker();
            self.error(self.line(mark.line(), mark.col() + 1), error.info())
        })?;
        match documents.as_slice() {
            [] => Ok(Node::new(Value::Table(Vec::new()), self.at(0))),
            [document] => self.yaml_node(document),
            [_, second, ..] => {
                Err(self.error(self.yaml_origin(second), "is a second document; one is allowed"))
            }
        }
    }

    fn yaml_origin(&self, node: &MarkedYaml<'_>) -> Origin {
        self.line(node.span.start.line(), node.span.start.col() + 1)
    }

    fn yaml_node(&self, node: &MarkedYaml<'_>) -> Result<Node, ConfigError> {
        let origin = self.yaml_origin(node);
        let value = match &node.data {
            YamlData::Value(Scalar::Null) => Value::Null,
            YamlData::Value(Scalar::Boolean(value)) => Value::Bool(*value),
            YamlData::Value(Scalar::Integer(value)) => Value::Integer(*value),
            YamlData::Value(Scalar::FloatingPoint(value)) => Value::Float(value.into_inner()),
            YamlData::Value(Scalar::String(text)) => Value::Text(text.to_string()),
            YamlData::Sequence(items) => {
                Value::List(items.iter().map(|item| self.yaml_node(item)).collect::<Result<_, _>>()?)
            }
            YamlData::Mapping(entries) => {
                let mut table = Vec::with_capacity(entries.len());
                for (key, value) in entries {
                    let origin = self.yaml_origin(key);
                    let YamlData::Value(Scalar::String(text)) = &key.data else {
                        return Err(self.error(origin, "the name of a setting must be text"));
                    };
                    table.push((Name { text: text.to_string(), origin }, self.yaml_node(value)?));
                }
                Value::Table(table)
            }
            _ => return Err(self.error(origin, "anchors, aliases and tags are not allowed")),
        };
        Ok(Node::new(value, origin))
    }

    fn json(&self) -> Result<Node, ConfigError> {
        let raw: &RawValue = serde_json::from_str(self.text)
            .map_err(|error| self.error(self.line(error.line(), error.column()), without_position(&error)))?;
        self.json_value(raw.get())
    }

    /// `part` is a slice of the whole text, so its address tells where it stands.
    fn json_value(&self, part: &str) -> Result<Node, ConfigError> {
        let origin = self.at(part.as_ptr() as usize - self.text.as_ptr() as usize);
        let inner = |error: serde_json::Error| self.error(origin.clone(), without_position(&error));
        let value = match part.as_bytes().first() {
            Some(b'{') => {
                let Members(members) = serde_json::from_str(part).map_err(inner)?;
                let mut table = Vec::with_capacity(members.len());
                for (text, raw) in members {
                    let node = self.json_value(raw.get())?;
                    table.push((Name { text, origin: node.origin.clone() }, node));
                }
                Value::Table(table)
            }
            Some(b'[') => {
                let items: Vec<&RawValue> = serde_json::from_str(part).map_err(inner)?;
                Value::List(
                    items.into_iter().map(|raw| self.json_value(raw.get())).collect::<Result<_, _>>()?,
                )
            }
            _ => match serde_json::from_str(part).map_err(inner)? {
                serde_json::Value::Bool(value) => Value::Bool(value),
                serde_json::Value::String(text) => Value::Text(text),
                serde_json::Value::Number(number) => match number.as_i64() {
                    Some(value) => Value::Integer(value),
                    None => Value::Float(number.as_f64().unwrap_or(f64::INFINITY)),
                },
                _ => Value::Null,
            },
        };
        Ok(Node::new(value, origin))
    }
}

/// serde_json's message without " at line 1 column 2", which the origin says already.
fn without_position(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or(text.clone(), |(message, _)| message.to_owned())
}

/// The members of a JSON object in order; a name that stands twice is an error.
struct Members<'t>(Vec<(String, &'t RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members: Vec<(String, &RawValue)> = Vec::new();
                while let Some((name, raw)) = map.next_entry::<String, &RawValue>()? {
                    if members.iter().any(|(other, _)| *other == name) {
                        return Err(serde::de::Error::custom(format!("{name} is set twice")));
                    }
                    members.push((name, raw));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}
