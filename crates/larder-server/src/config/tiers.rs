//! The list `tiers`: any backends of the registry in any order, each with its own settings.
//!
//! A backend's settings are known by name only. Types are found by trying: what the environment gives is
//! text, and the backend says whether it takes it as a number, as text or as a list.

use super::address::{Address, redacted};
use super::node::{ConfigError, Name, Node, Origin, Value, unknown};
use super::{Settings, Size};
use larder::backend::{Backend, Needs, Registry};
use larder::clock::Clock;
use larder::guard::GuardOptions;
use larder::{Error, ErrorKind, TierOptions};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value as Json};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Settings of a tier that are neither its backend's nor the library's.
const OF_SERVER: [&str; 3] = ["backend", "allow_plaintext", "allow_unauthenticated"];
/// Largest file with a secret.
const SECRET_BYTES_MAX: u64 = 64 << 10;

/// A tier as it is to be opened.
#[derive(Clone)]
pub(crate) struct TierSettings {
    pub(crate) name: String,
    pub(crate) backend: String,
    pub(super) options: TierOptions,
    /// What of the guard was set, and where: the rest is what the backend recommends.
    guard: Option<Node>,
    pub(super) settings: Map<String, Json>,
    pub(super) allows_plaintext: bool,
    pub(super) allows_unauthenticated: bool,
    pub(super) origin: Origin,
    pub(super) origins: BTreeMap<String, Origin>,
}

/// Puts a variable `LARDER_TIERS__<NAME>__<SETTING>` into the tier of that name.
pub(super) fn set(tree: &mut Node, path: &[&str], node: Node) -> Result<(), ConfigError> {
    let Origin::Environment(variable) = node.origin.clone() else { return Ok(()) };
    let refused = |message: String| ConfigError::of("tiers", Origin::Environment(variable.clone()), message);
    let tiers = match tree.find_mut("tiers").map(|node| &mut node.value) {
        Some(Value::List(tiers)) => tiers.as_mut_slice(),
        _ => &mut [],
    };
    let [wanted, setting @ ..] = path else {
        return Err(refused("tiers are listed in a file; a variable sets one setting of one of them".into()));
    };
    let names: Vec<String> = tiers.iter().map(name_of).collect();
    let Some(at) = names.iter().position(|name| variable_part(name) == *wanted) else {
        return Err(refused(format!(
            "there is no tier \"{wanted}\" in the file; {}",
            if names.is_empty() { "it has none".to_owned() } else { format!("it has {}", names.join(", ")) }
        )));
    };
    if setting.is_empty() {
        return Err(refused(format!("it has to name a setting: {variable}__READ_TIMEOUT")));
    }
    tiers[at].set(setting, node);
    Ok(())
}

fn name_of(tier: &Node) -> String {
    let text = |setting| tier.find(setting).and_then(Node::text);
    text("name").or_else(|| text("backend")).unwrap_or_default().to_owned()
}

/// A tier's name as a part of a variable's.
pub(super) fn variable_part(name: &str) -> String {
    name.to_ascii_lowercase().replace('-', "_")
}

/// Reads the list and refuses what is insecure or contradicts itself.
pub(super) fn read(tree: &Node, settings: &Settings) -> Result<Option<Vec<TierSettings>>, ConfigError> {
    let Some(node) = tree.find("tiers") else { return Ok(None) };
    let nodes = match &node.value {
        Value::Null => return Ok(None),
        Value::List(nodes) => nodes,
        _ => return Err(ConfigError::of("tiers", node.origin.clone(), "a list of tables is allowed")),
    };
    if let Some(sqlite) = tree.find("sqlite") {
        let message = "with tiers there is no database beside them; put its settings into a tier with \
                       backend = \"sqlite\"";
        return Err(ConfigError::of("sqlite", sqlite.origin.clone(), message));
    }
    let registry = Registry::with_defaults();
    let mut tiers = Vec::with_capacity(nodes.len());
    for (at, node) in nodes.iter().enumerate() {
        tiers.push(TierSettings::read(node, at, &registry, settings)?);
    }
    for at in 0..tiers.len() {
        tiers[at].check_alone(settings)?;
        tiers[at].check_among(&tiers[..at], &tiers[at + 1..], settings)?;
    }
    Ok(Some(tiers))
}

impl TierSettings {
    fn read(node: &Node, at: usize, registry: &Registry, settings: &Settings) -> Result<Self, ConfigError> {
        let refused =
            |path: String, origin: &Origin, message: String| ConfigError::of(&path, origin.clone(), message);
        let Value::Table(entries) = &node.value else {
            let message = "a table is allowed, with backend = \"redis\" or another one".to_owned();
            return Err(refused(format!("tiers[{at}]"), &node.origin, message));
        };
        let known: Vec<&str> = registry.names().collect();
        let Some(backend) = node.find("backend") else {
            let message = format!("backend is missing; one of {} is allowed", known.join(", "));
            return Err(refused(format!("tiers[{at}]"), &node.origin, message));
        };
        let backend_name = backend.text().unwrap_or_default();
        if !known.contains(&backend_name) {
            let message = format!(
                "there is no backend \"{}\"; one of {} is allowed",
                backend_name.escape_debug(),
                known.join(", ")
            );
            return Err(refused(format!("tiers[{at}].backend"), &backend.origin, message));
        }
        let name = name_of(node);
        let is_plain = (1..=32).contains(&name.len())
            && name
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte))
            && !name.contains("__");
        if !is_plain {
            let origin = node.find("name").map_or(&node.origin, |name| &name.origin);
            let message = format!(
                "\"{}\" was given; 1 to 32 of a-z 0-9 - _ are allowed, no two _ in a row",
                name.escape_debug()
            );
            return Err(refused(format!("tiers[{at}].name"), origin, message));
        }
        let mut tier = TierSettings {
            options: TierOptions::default(),
            guard: node.find("guard").cloned(),
            settings: Map::new(),
            allows_plaintext: false,
            allows_unauthenticated: false,
            origin: node.origin.clone(),
            origins: BTreeMap::new(),
            backend: backend_name.to_owned(),
            name,
        };
        let of_backend = registry.settings(backend_name);
        let of_library = names_of_options();
        tier.check_names(entries, &of_library, of_backend)?;
        let mut own = Vec::new();
        let mut others = Vec::new();
        for (name, value) in entries {
            tier.origins.insert(name.text.clone(), value.origin.clone());
            if of_library.contains(&name.text) {
                own.push((name.clone(), value.clone()));
            } else if !OF_SERVER.contains(&&*name.text) {
                others.push((name.text.clone(), value.clone()));
            }
        }
        let own = Node::new(Value::Table(own), node.origin.clone());
        tier.options = TierOptions::deserialize(&own).map_err(|error| error.below(&tier.path("")))?;
        tier.options.name = Some(tier.name.clone());
        tier.options.validate().map_err(|error| tier.refusal_of(&error))?;
        for (setting, value) in [
            ("allow_plaintext", &mut tier.allows_plaintext),
            ("allow_unauthenticated", &mut tier.allows_unauthenticated),
        ] {
            if let Some(node) = node.find(setting) {
                *value = bool::deserialize(node)
                    .map_err(|error| error.below(&format!("tiers.{}.{setting}", tier.name)))?;
            }
        }
        let others = tier.read_files(others, of_backend.unwrap_or_default())?;
        tier.settings = tier.typed(others, registry)?;
        if of_backend.is_some_and(|names| names.contains(&"path")) && !tier.settings.contains_key("path") {
            let file = if tier.backend == "sqlite" { "larder.sqlite" } else { &*tier.backend };
            tier.settings
                .insert("path".to_owned(), Json::from(settings.data.join(file).display().to_string()));
        }
        // With everything that has a default of the server's.
        registry.check(&tier.backend, tier.json()).map_err(|error| tier.refusal_of(&error))?;
        Ok(tier)
    }

    fn check_names(
        &self,
        entries: &[(Name, Node)],
        of_library: &[String],
        of_backend: Option<&'static [&'static str]>,
    ) -> Result<(), ConfigError> {
        let Some(of_backend) = of_backend else { return Ok(()) };
        for (at, (name, _)) in entries.iter().enumerate() {
            if entries[..at].iter().any(|(other, _)| other.text == name.text) {
                return Err(self.refusal_at(&name.text, name.origin.clone(), "is set twice".to_owned()));
            }
            let own = OF_SERVER.into_iter().chain(of_library.iter().map(String::as_str));
            let known: Vec<&str> = own.chain(of_backend.iter().copied()).collect();
            let stem = name.text.strip_suffix("_file").unwrap_or(&name.text);
            if known.contains(&&*name.text) || of_backend.contains(&stem) {
                continue;
            }
            return Err(self.refusal_at(&name.text, name.origin.clone(), unknown(&name.text, &known)));
        }
        Ok(())
    }

    /// Reads the files that settings are in, so that no secret has to stand in the configuration. Of a setting
    /// and its file the one from the environment counts.
    fn read_files(
        &self,
        mut settings: Vec<(String, Node)>,
        of_backend: &[&str],
    ) -> Result<Vec<(String, Node)>, ConfigError> {
        let files: Vec<String> = settings
            .iter()
            .map(|(name, _)| name.clone())
            .filter(|name| {
                !of_backend.contains(&&**name)
                    && name.strip_suffix("_file").is_some_and(|stem| of_backend.contains(&stem))
            })
            .collect();
        for name in files {
            let stem = name.trim_end_matches("_file").to_owned();
            let at = |wanted: &str| settings.iter().position(|(name, _)| name == wanted);
            let (Some(file), direct) = (at(&name), at(&stem)) else { continue };
            let is_variable = |at: usize| matches!(settings[at].1.origin, Origin::Environment(_));
            if let Some(direct) = direct {
                match (is_variable(direct), is_variable(file)) {
                    (true, false) => {
                        settings.remove(file);
                        continue;
                    }
                    (false, true) => {
                        settings[direct].1 = settings[file].1.clone();
                        settings.remove(file);
                    }
                    _ => {
                        let message = format!("{stem} is set, too; one of them is allowed");
                        return Err(self.refusal(&name, message));
                    }
                }
            } else {
                settings[file].0.clone_from(&stem);
            }
            let (_, node) =
                settings.iter_mut().find(|(name, _)| *name == stem).expect("it was just put there");
            let path = PathBuf::from(node.text().unwrap_or_default());
            let text = secret_in(&path)
                .map_err(|why| self.refusal(&name, format!("{} can't be read: {why}", path.display())))?;
            let origin = Origin::Whole(path.display().to_string().into());
            let lines: Vec<Node> = text
                .lines()
                .map(str::trim)
                .filter(|line| !line.is_empty())
                .map(|line| Node::new(Value::Word(line.to_owned()), origin.clone()))
                .collect();
            *node = match lines.len() {
                0 => return Err(self.refusal(&name, format!("{} is empty", path.display()))),
                1 => lines.into_iter().next().expect("there is one"),
                _ => Node::new(Value::List(lines), origin),
            };
        }
        Ok(settings)
    }

    /// The settings as the backend takes them: each in the first reading that it accepts.
    fn typed(
        &self,
        settings: Vec<(String, Node)>,
        registry: &Registry,
    ) -> Result<Map<String, Json>, ConfigError> {
        // Alone, so that the complaint is about this one. That others are missing is found when all are read.
        let complaint = |name: &str, reading: &Json| {
            let alone = Json::Object(Map::from_iter([(name.to_owned(), reading.clone())]));
            let complaint = registry.check(&self.backend, alone).err()?.to_string();
            (!complaint.contains("missing field")).then_some(complaint)
        };
        let mut chosen = Map::new();
        for (name, node) in settings {
            let readings = readings(&name, &node);
            match readings.iter().find(|reading| complaint(&name, reading).is_none()) {
                Some(reading) => chosen.insert(name, reading.clone()),
                None => {
                    let complaint = complaint(&name, &readings[0]).unwrap_or_default();
                    return Err(self.refusal(&name, in_words(&complaint)));
                }
            };
        }
        Ok(chosen)
    }

    /// Whether other nodes may use it, too: whatever is behind an address.
    pub(crate) fn is_shared(&self) -> bool {
        self.texts().iter().any(|(setting, text)| Address::of(setting, text).is_some())
    }

    /// Whether it tells this node what other nodes remove.
    pub(super) fn tells_of_removals(&self) -> bool {
        matches!(self.backend.as_str(), "redis" | "postgres")
    }

    /// Every text of the backend's settings, with the setting that has it.
    pub(super) fn texts(&self) -> Vec<(&str, &str)> {
        let mut texts = Vec::new();
        for (setting, value) in &self.settings {
            match value {
                Json::String(text) => texts.push((&**setting, &**text)),
                Json::Array(items) => {
                    texts.extend(items.iter().filter_map(|item| Some((&**setting, item.as_str()?))));
                }
                _ => {}
            }
        }
        texts
    }

    pub(super) fn variable(&self, setting: &str) -> String {
        format!("LARDER_TIERS__{}__{}", variable_part(&self.name), setting).to_ascii_uppercase()
    }

    fn path(&self, setting: &str) -> String {
        format!("tiers.{}{}{setting}", self.name, if setting.is_empty() { "" } else { "." })
    }

    pub(super) fn refusal(&self, setting: &str, message: String) -> ConfigError {
        let of_file = format!("{setting}_file");
        let origin = self.origins.get(setting).or_else(|| self.origins.get(&of_file)).unwrap_or(&self.origin);
        self.refusal_at(setting, origin.clone(), message)
    }

    fn refusal_at(&self, setting: &str, origin: Origin, message: String) -> ConfigError {
        ConfigError::of(&self.path(setting), origin, message)
    }

    /// An error of the library's, at the setting that it names.
    pub(crate) fn refusal_of(&self, error: &Error) -> ConfigError {
        let text = error.to_string();
        let message = in_words(&text);
        let words = message.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let named = words.filter(|word| !word.is_empty()).find(|word| {
            self.origins.contains_key(*word) || self.origins.contains_key(&format!("{word}_file"))
        });
        match named {
            Some(setting) => self.refusal(setting, message.clone()),
            // Its parts are named, and not it.
            None if self.guard.is_some() && error.operation() == "build" => {
                self.refusal("guard", message.clone())
            }
            None => self.refusal("", message.clone()),
        }
    }

    fn json(&self) -> Json {
        Json::Object(self.settings.clone())
    }

    /// Opens the backend. Blocks, on a disk.
    ///
    /// # Errors
    /// The backend's.
    pub(crate) fn open(&self) -> Result<(Arc<dyn Backend>, TierOptions), Error> {
        let backend =
            Registry::with_defaults().open(&self.backend, self.json(), Needs::default(), &Clock::system())?;
        let mut options = self.options.clone();
        if let (Some(set), Some(guard)) = (&self.guard, &self.options.guard) {
            let config =
                |error: serde_json::Error| Error::new(ErrorKind::Config, "open").message(error.to_string());
            let mut merged = serde_json::to_value(backend.guard()).map_err(config)?;
            overlay(set, &serde_json::to_value(guard).map_err(config)?, &mut merged);
            options.guard = Some(GuardOptions::deserialize(merged).map_err(config)?);
            options.validate()?;
        }
        Ok((backend, options))
    }
}

/// Copies what was set.
fn overlay(set: &Node, from: &Json, into: &mut Json) {
    let Value::Table(entries) = &set.value else {
        *into = from.clone();
        return;
    };
    entries.iter().for_each(|(name, node)| overlay(node, &from[&name.text], &mut into[&name.text]));
}

/// The settings that every tier has, as the library names them.
fn names_of_options() -> Vec<String> {
    let options = serde_json::to_value(TierOptions::default()).unwrap_or_default();
    options.as_object().into_iter().flat_map(Map::keys).cloned().collect()
}

/// What a setting may mean, the likeliest first.
fn readings(name: &str, node: &Node) -> Vec<Json> {
    match &node.value {
        Value::Null => vec![Json::Null],
        Value::Bool(value) => vec![Json::from(*value)],
        Value::Integer(value) => vec![Json::from(*value)],
        Value::Float(value) => vec![Json::from(*value)],
        Value::Text(text) => {
            // Sizes are written with units wherever there are sizes.
            let size = name.contains("bytes").then(|| Size::parse(text)).flatten();
            size.map(|size| Json::from(size.0)).into_iter().chain([Json::from(text.as_str())]).collect()
        }
        Value::Word(word) => {
            let size = name.contains("bytes").then(|| Size::parse(word)).flatten();
            let list: Vec<&str> = word.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
            let typed = serde_json::from_str::<Json>(word).ok().filter(|value| !value.is_string());
            let size = size.map(|size| Json::from(size.0));
            size.into_iter().chain(typed).chain([Json::from(word.as_str()), Json::from(list)]).collect()
        }
        Value::List(nodes) => {
            let whole = nodes.iter().map(|node| readings(name, node).swap_remove(0)).collect();
            let texts = nodes.iter().map(|node| node.text().map(Json::from)).collect::<Option<Vec<_>>>();
            std::iter::once(Json::Array(whole)).chain(texts.map(Json::Array)).collect()
        }
        Value::Table(entries) => {
            let member =
                |(name, node): &(Name, Node)| (name.text.clone(), readings(&name.text, node).swap_remove(0));
            vec![Json::Object(entries.iter().map(member).collect())]
        }
    }
}

/// The library's message without what the place says already.
fn in_words(text: &str) -> String {
    let message = text.split_once("config: ").map_or(text, |(_, message)| message);
    // Serde's own words, which name Rust's types.
    message
        .replace("invalid type: ", "")
        .replace("invalid value: ", "")
        .replace(", expected ", " was given; ")
        .replace("missing field `", "it needs the setting `")
        + if message.contains(", expected ") { " is allowed" } else { "" }
}

fn secret_in(path: &Path) -> Result<String, String> {
    let length = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
    if length > SECRET_BYTES_MAX {
        return Err(format!("it has {length} bytes; at most {SECRET_BYTES_MAX} are allowed"));
    }
    std::fs::read_to_string(path).map_err(|error| error.to_string())
}

/// Without secrets.
impl Serialize for TierSettings {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let shown = |(setting, value): (&String, &Json)| {
            let text = |value: &Json| value.as_str().map(|text| Json::from(redacted(setting, text)));
            let value = match value {
                Json::Array(items) => {
                    items.iter().map(|item| text(item).unwrap_or_else(|| item.clone())).collect()
                }
                Json::Object(_) => Json::from("(table)"),
                other => text(other).unwrap_or_else(|| other.clone()),
            };
            (setting.clone(), value)
        };
        let mut table = Map::new();
        table.insert("backend".to_owned(), Json::from(&*self.backend));
        if let Ok(Json::Object(options)) = serde_json::to_value(&self.options) {
            table.extend(options);
        }
        table.insert("allow_plaintext".to_owned(), Json::from(self.allows_plaintext));
        table.insert("allow_unauthenticated".to_owned(), Json::from(self.allows_unauthenticated));
        table.extend(self.settings.iter().map(shown));
        table.serialize(serializer)
    }
}

impl fmt::Debug for TierSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TierSettings")
            .field("name", &self.name)
            .field("backend", &self.backend)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tier's own settings would hide a backend's of the same name.
    #[test]
    fn own_settings_are_no_backends() {
        let own = names_of_options();
        assert!(own.len() >= 6 && own.iter().all(|name| !OF_SERVER.contains(&&**name)), "{own:?}");
        let registry = Registry::with_defaults();
        for backend in registry.names() {
            for setting in registry.settings(backend).unwrap() {
                assert!(
                    !own.iter().any(|own| own == setting) && !OF_SERVER.contains(setting),
                    "{backend}.{setting}"
                );
            }
        }
    }
}
