//! What tiers are refused for: what others could read or change, and what must not be put together.

use super::Settings;
use super::address::{Address, is_secret};
use super::node::{ConfigError, Origin};
use super::tiers::{TierSettings, variable_part};
use serde_json::Value as Json;
use std::path::Path;
use std::time::Duration;

impl TierSettings {
    /// Who else can read or reach it.
    pub(super) fn check_alone(&self, settings: &Settings) -> Result<(), ConfigError> {
        if self.options.ttl_max.is_zero() {
            let message = "0 was given, with which it keeps nothing; leave the tier out".to_owned();
            return Err(self.refusal("ttl_max", message));
        }
        if self.options.hide_keys && !settings.encryption.is_on() {
            let message = "true was given, which needs keys; set encryption.key_file".to_owned();
            return Err(self.refusal("hide_keys", message));
        }
        let has_tls_setting = self.settings.get("tls").is_some_and(|tls| *tls == Json::Bool(true))
            || ["ssl_mode", "sslmode", "tls_mode"].iter().any(|name| {
                self.settings
                    .get(*name)
                    .and_then(Json::as_str)
                    .is_some_and(|mode| mode.starts_with("verify") || mode == "require")
            });
        let has_password_setting =
            self.settings.iter().any(|(name, value)| is_secret(name) && !value.is_null());
        for (setting, text) in self.texts() {
            let address = Address::of(setting, text);
            let has_password =
                is_secret(setting) || address.as_ref().is_some_and(|address| address.has_password);
            if has_password && let Some(file) = self.world_readable(setting) {
                return Err(self.refusal(
                    setting,
                    format!(
                        "it holds a password, and everybody can read {file}; run chmod o-r {file}, or name a file \
                         with it in {setting}_file, or set {}",
                        self.variable(setting)
                    ),
                ));
            }
            let Some(address) = address.filter(|address| !address.is_local) else { continue };
            if !address.has_tls && !has_tls_setting && !self.allows_plaintext {
                let cure = match self.backend.as_str() {
                    "redis" => "rediss:// encrypts",
                    "postgres" => "sslmode=verify-full encrypts",
                    _ => "use TLS",
                };
                let message = format!(
                    "it goes to another host in plain text, password and values for everybody on the way to read \
                     and change; {cure}, or set allow_plaintext = true if the network is yours alone"
                );
                return Err(self.refusal(setting, message));
            }
            if !address.has_password && !has_password_setting && !self.allows_unauthenticated {
                let message =
                    "it has no password, so that whoever reaches the server reads, changes and removes \
                               entries; put one into the URL, by url_file or the environment, or set \
                               allow_unauthenticated = true"
                        .to_owned();
                return Err(self.refusal(setting, message));
            }
        }
        Ok(())
    }

    /// What does not go together.
    pub(super) fn check_among(
        &self,
        above: &[TierSettings],
        below: &[TierSettings],
        settings: &Settings,
    ) -> Result<(), ConfigError> {
        if let Some(other) =
            above.iter().find(|other| variable_part(&other.name) == variable_part(&self.name))
        {
            let message = format!(
                "another tier, at {}, is called {}, too; give each a name of its own",
                other.origin, other.name
            );
            return Err(self.refusal("name", message));
        }
        for other in above {
            if let Some(setting) = self.shares_place_with(other) {
                let message = format!(
                    "the tier {} is at the same place; what one writes the other takes for its own. Give one of \
                     them another {setting}",
                    other.name
                );
                return Err(self.refusal(&setting, message));
            }
        }
        if self.backend == "memory"
            && let Some(other) = above.first()
        {
            let message = format!(
                "memory stands below {}, which is slower and forgets later, so that it would never be asked for \
                 anything it has; put it first",
                other.name
            );
            return Err(self.refusal("backend", message));
        }
        if !self.is_shared()
            && let Some(other) = above.iter().find(|other| other.is_shared())
        {
            let message = format!(
                "this node's own tier stands below {}, which nodes share: what another node removes there would \
                 come back from here, for all of them. Put it above",
                other.name
            );
            return Err(self.refusal("backend", message));
        }
        // The lowest one is followed, if it can be.
        let lowest = below.last().unwrap_or(self);
        if settings.single_node || lowest.tells_of_removals() {
            return Ok(());
        }
        if let Some(shared) = below.iter().chain([self]).find(|tier| tier.is_shared()) {
            let cure = "nobody tells this node what another one removes, so that it is served from here until then; \
                        set it to the seconds that this may last, put redis or postgres at the bottom, which tell, \
                        or set single_node = true";
            if settings.l1.ttl_max == Duration::MAX {
                let message = format!(
                    "memory keeps entries for as long as they live, and {} is shared: {cure}",
                    shared.name
                );
                return Err(ConfigError::of("l1.ttl_max", shared.origin.clone(), message));
            }
            if !self.is_shared() && self.options.ttl_max == Duration::MAX {
                let message = format!(
                    "it keeps entries for as long as they live, and {} below is shared: {cure}",
                    shared.name
                );
                return Err(self.refusal("ttl_max", message));
            }
        }
        Ok(())
    }

    /// The setting that makes two tiers one.
    fn shares_place_with(&self, other: &TierSettings) -> Option<String> {
        let path = |tier: &TierSettings| {
            let path = Path::new(tier.settings.get("path")?.as_str()?).to_owned();
            let path = std::path::absolute(&path).unwrap_or(path);
            Some(std::fs::canonicalize(&path).unwrap_or(path))
        };
        if let (Some(mine), Some(others)) = (path(self), path(other)) {
            // A folder in another one's is swept with it.
            return (mine.starts_with(&others) || others.starts_with(&mine)).then(|| "path".to_owned());
        }
        if self.backend != other.backend {
            return None;
        }
        const PARTS: [&str; 5] = ["prefix", "table", "schema", "database", "namespace"];
        if PARTS.iter().any(|part| self.settings.get(*part) != other.settings.get(*part)) {
            return None;
        }
        let places = |tier: &TierSettings| -> Vec<(String, String)> {
            let addresses = tier.texts().into_iter();
            addresses
                .filter_map(|(setting, text)| Some((setting.to_owned(), Address::of(setting, text)?.place)))
                .collect()
        };
        let others = places(other);
        let shared = places(self).into_iter().find(|(_, mine)| others.iter().any(|(_, place)| place == mine));
        shared.map(|(setting, _)| setting)
    }

    /// The configuration file that a setting stands in, if everybody can read it.
    fn world_readable(&self, setting: &str) -> Option<String> {
        use std::os::unix::fs::PermissionsExt;
        let Some(Origin::File { name, .. }) = self.origins.get(setting) else { return None };
        let mode = std::fs::metadata(&**name).ok()?.permissions().mode();
        (mode & 0o004 != 0).then(|| name.to_string())
    }
}
