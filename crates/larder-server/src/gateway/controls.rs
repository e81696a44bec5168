//! What a request asks of the cache itself, in any of the field's conventions.
//!
//! | who | how |
//! |---|---|
//! | HTTP (RFC 9111) | `Cache-Control: no-cache, no-store, max-age, only-if-cached` |
//! | larder | `Larder-TTL`, `Larder-Tags`, `Larder-Namespace`, `Larder-Cache: off, exact, on`, `Larder-Similarity-Min` |
//! | LiteLLM | `"cache": {"ttl", "s-maxage", "no-cache", "no-store", "namespace"}` in the body |
//! | Cloudflare | `cf-aig-cache-ttl`, `cf-aig-skip-cache`, `cf-aig-cache-key` |
//! | Helicone | `Helicone-Cache-Enabled`, `-Seed`, `-Bucket-Max-Size` |
//! | Portkey | `x-portkey-cache-force-refresh`, `-namespace` |
//!
//! Where two disagree, the careful one wins: no reading beats reading, no writing beats writing, the shorter time
//! and the higher similarity count. A request can make answers fresher or rarer, never looser than the settings.

use super::canonical::Canonical;
use axum::http::HeaderMap;
use larder::entry::Tags;
use larder::key::Namespace;
use std::time::Duration;

/// Most answers that one key may have, as with Helicone.
const BUCKET_MAX: u32 = 20;
/// Longest text of a client that becomes part of a key.
const TEXT_BYTES_MAX: usize = 1024;

/// What a request asks of the cache.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Controls {
    /// An answer from the cache is welcome.
    pub(crate) read: bool,
    /// The answer may be kept.
    pub(crate) write: bool,
    /// An answer to a question that means the same is welcome.
    pub(crate) semantic: bool,
    /// Without an answer in the cache, the upstream is not to be asked.
    pub(crate) only_if_cached: bool,
    /// How long the answer may be kept, if the client says so.
    pub(crate) ttl: Option<Duration>,
    /// How old an answer from the cache may be.
    pub(crate) age_max: Option<Duration>,
    /// How similar a question has to be at least; only ever raises what the settings say.
    pub(crate) similarity_min: Option<f32>,
    pub(crate) namespace: Option<Namespace>,
    pub(crate) tags: Tags,
    /// Tells keys apart that are equal otherwise.
    pub(crate) seed: String,
    /// Takes the place of the body in the key.
    pub(crate) key: Option<String>,
    /// How many answers one key may have; which of them is served is drawn.
    pub(crate) bucket: u32,
}

impl Default for Controls {
    fn default() -> Self {
        Controls {
            read: true,
            write: true,
            semantic: true,
            only_if_cached: false,
            ttl: None,
            age_max: None,
            similarity_min: None,
            namespace: None,
            tags: Tags::default(),
            seed: String::new(),
            key: None,
            bucket: 1,
        }
    }
}

impl Controls {
    /// Reads them from a request.
    ///
    /// # Errors
    /// Names the control, what it was and what is allowed.
    pub(crate) fn of(headers: &HeaderMap, body: &Canonical) -> Result<Self, String> {
        let mut controls = Controls::default();
        controls.take_cache_control(headers);
        if let Some(own) = body.get("cache").filter(|own| !own.is("null")) {
            controls.take_litellm(own)?;
        }
        for (name, take) in HEADERS {
            let mut values = headers.get_all(*name).iter();
            let Some(value) = values.next() else { continue };
            if values.next().is_some() {
                return Err(format!("the header {name} stands twice"));
            }
            let value = value.to_str().map_err(|_| format!("the header {name} is no visible ASCII"))?.trim();
            take(&mut controls, value)
                .map_err(|allowed| format!("the header {name} is {value:?}; {allowed}"))?;
        }
        Ok(controls)
    }

    /// Unknown directives are passed over, and a broken time counts as none left, as RFC 9111 has it.
    fn take_cache_control(&mut self, headers: &HeaderMap) {
        for value in headers.get_all(axum::http::header::CACHE_CONTROL) {
            let Ok(value) = value.to_str() else { continue };
            for directive in value.split(',') {
                let (name, value) = directive.split_once('=').unwrap_or((directive, ""));
                match name.trim().to_ascii_lowercase().as_str() {
                    "no-cache" => self.read = false,
                    "no-store" => self.write = false,
                    "only-if-cached" => self.only_if_cached = true,
                    "max-age" => {
                        let seconds = value.trim().trim_matches('"').parse().unwrap_or(0);
                        self.limit_age(Duration::from_secs(seconds));
                    }
                    _ => {}
                }
            }
        }
    }

    fn take_litellm(&mut self, own: &Canonical) -> Result<(), String> {
        let Canonical::Object(members) = own else {
            return Err("the field cache is no object".to_owned());
        };
        for (name, value) in members {
            let wrong =
                |allowed: &str| format!("the field cache.{name} has another value than allowed: {allowed}");
            let flag = || match value {
                _ if value.is("true") => Ok(true),
                _ if value.is("false") || value.is("null") => Ok(false),
                _ => Err(wrong("true or false")),
            };
            let time = || match value {
                Canonical::Plain(text) if text == "null" => Ok(None),
                Canonical::Plain(text) | Canonical::Text(text) => {
                    seconds(text).map(Some).map_err(|allowed| wrong(&allowed))
                }
                _ => Err(wrong("seconds")),
            };
            match name.as_str() {
                "no-cache" => self.read &= !flag()?,
                "no-store" => self.write &= !flag()?,
                "use-cache" => {
                    let is_wanted = flag()?;
                    self.read &= is_wanted;
                    self.write &= is_wanted;
                }
                "ttl" => {
                    if let Some(ttl) = time()? {
                        self.limit_ttl(ttl);
                    }
                }
                "s-maxage" | "s-max-age" => {
                    if let Some(age) = time()? {
                        self.limit_age(age);
                    }
                }
                "namespace" => {
                    let text = value.as_text().ok_or_else(|| wrong("a name"))?;
                    self.namespace = Some(namespace(text).map_err(|allowed| wrong(&allowed))?);
                }
                // LiteLLM's own that name a backend or a key of its side.
                _ => {}
            }
        }
        Ok(())
    }

    fn limit_age(&mut self, age: Duration) {
        self.age_max = Some(self.age_max.map_or(age, |other| other.min(age)));
        // Nothing is younger than this.
        self.read &= !age.is_zero();
    }

    fn limit_ttl(&mut self, ttl: Duration) {
        self.ttl = Some(self.ttl.map_or(ttl, |other| other.min(ttl)));
        self.write &= !ttl.is_zero();
    }
}

type Take = fn(&mut Controls, &str) -> Result<(), String>;

/// Names of the headers that larder understands beside `Cache-Control`, and none of which is passed on.
pub(crate) const HEADERS: &[(&str, Take)] = &[
    ("larder-ttl", |controls, value| {
        controls.limit_ttl(seconds(value)?);
        Ok(())
    }),
    ("larder-tags", |controls, value| {
        let tags = value.split(',').map(str::trim).filter(|tag| !tag.is_empty());
        controls.tags = Tags::new(tags).map_err(|error| error.to_string())?;
        Ok(())
    }),
    ("larder-namespace", |controls, value| {
        controls.namespace = Some(namespace(value)?);
        Ok(())
    }),
    ("larder-cache", |controls, value| {
        match value.to_ascii_lowercase().as_str() {
            "on" => {}
            "exact" => controls.semantic = false,
            "off" => {
                controls.read = false;
                controls.write = false;
            }
            _ => return Err("off, exact or on is allowed".to_owned()),
        }
        Ok(())
    }),
    ("larder-similarity-min", |controls, value| {
        let similarity: Option<f32> = value.parse().ok().filter(|least| (0.0..=1.0).contains(least));
        controls.similarity_min = Some(similarity.ok_or("a number from 0 to 1 is allowed")?);
        Ok(())
    }),
    ("cf-aig-cache-ttl", |controls, value| {
        controls.limit_ttl(seconds(value)?);
        Ok(())
    }),
    ("cf-aig-skip-cache", |controls, value| {
        if flag(value)? {
            controls.read = false;
            controls.write = false;
        }
        Ok(())
    }),
    ("cf-aig-cache-key", |controls, value| {
        controls.key = Some(bounded(value)?);
        Ok(())
    }),
    ("helicone-cache-enabled", |controls, value| {
        if !flag(value)? {
            controls.read = false;
            controls.write = false;
        }
        Ok(())
    }),
    ("helicone-cache-seed", |controls, value| {
        controls.seed = bounded(value)?;
        Ok(())
    }),
    ("helicone-cache-bucket-max-size", |controls, value| {
        let bucket = value.parse().ok().filter(|bucket| (1..=BUCKET_MAX).contains(bucket));
        controls.bucket = bucket.ok_or_else(|| format!("1 to {BUCKET_MAX} is allowed"))?;
        Ok(())
    }),
    ("x-portkey-cache-force-refresh", |controls, value| {
        controls.read &= !flag(value)?;
        Ok(())
    }),
    ("x-portkey-cache-namespace", |controls, value| {
        controls.namespace = Some(namespace(value)?);
        Ok(())
    }),
];

fn flag(value: &str) -> Result<bool, String> {
    match value.to_ascii_lowercase().as_str() {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err("true or false is allowed".to_owned()),
    }
}

fn seconds(value: &str) -> Result<Duration, String> {
    let seconds = value.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.ok_or_else(|| "a number of seconds of 0 or more is allowed".to_owned())
}

fn namespace(value: &str) -> Result<Namespace, String> {
    Namespace::new(value).map_err(|error| error.to_string())
}

fn bounded(value: &str) -> Result<String, String> {
    match value.len() <= TEXT_BYTES_MAX {
        true => Ok(value.to_owned()),
        false => Err(format!("at most {TEXT_BYTES_MAX} bytes are allowed")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::{HeaderName, HeaderValue};

    fn controls(headers: &[(&str, &str)], cache: &str) -> Result<Controls, String> {
        let headers = headers.iter().map(|(name, value)| {
            (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap())
        });
        let body = format!("{{\"cache\": {cache}}}");
        Controls::of(&headers.collect(), &Canonical::parse(body.as_bytes()).unwrap())
    }

    #[test]
    fn every_convention_is_understood() {
        let all = |headers: &[(&str, &str)], cache: &str, expect: fn(&mut Controls)| {
            let mut expected = Controls::default();
            expect(&mut expected);
            assert_eq!(controls(headers, cache), Ok(expected), "{headers:?} {cache}");
        };
        all(&[], "null", |_| {});
        all(&[("cache-control", "No-Cache")], "{}", |c| c.read = false);
        all(&[("cache-control", "no-store, only-if-cached")], "{}", |c| {
            c.write = false;
            c.only_if_cached = true;
        });
        let minute = Duration::from_secs(60);
        for (headers, cache) in
            [(&[("cache-control", "max-age=60, foo")][..], "{}"), (&[], r#"{"s-maxage": 60}"#)]
        {
            all(headers, cache, |c| c.age_max = Some(Duration::from_secs(60)));
        }
        for (headers, cache) in [
            (&[("larder-ttl", "60")][..], "{}"),
            (&[("cf-aig-cache-ttl", "60")], "{}"),
            (&[], r#"{"ttl": 60}"#),
            (&[("larder-ttl", "60"), ("cf-aig-cache-ttl", "3600")], r#"{"ttl": 61}"#),
        ] {
            all(headers, cache, |c| c.ttl = Some(Duration::from_secs(60)));
        }
        for (headers, cache) in [
            (&[("cf-aig-skip-cache", "true")][..], "{}"),
            (&[("helicone-cache-enabled", "false")], "{}"),
            (&[("larder-cache", "off")], "{}"),
            (&[], r#"{"no-cache": true, "no-store": true}"#),
            (&[("cf-aig-skip-cache", "true"), ("helicone-cache-enabled", "true")], r#"{"no-cache": false}"#),
        ] {
            all(headers, cache, |c| {
                c.read = false;
                c.write = false;
            });
        }
        all(&[("x-portkey-cache-force-refresh", "true")], "{}", |c| c.read = false);
        for (headers, cache) in
            [(&[("x-portkey-cache-namespace", "n")][..], "{}"), (&[], r#"{"namespace": "n"}"#)]
        {
            all(headers, cache, |c| c.namespace = Some(Namespace::new("n").unwrap()));
        }
        all(&[("helicone-cache-seed", "s"), ("helicone-cache-bucket-max-size", "3")], "{}", |c| {
            c.seed = "s".to_owned();
            c.bucket = 3;
        });
        all(&[("cf-aig-cache-key", "k")], "{}", |c| c.key = Some("k".to_owned()));
        let never = controls(&[("larder-ttl", "0"), ("cache-control", "max-age=x")], "{}").unwrap();
        assert!(!never.read && !never.write && never.ttl.is_some_and(|ttl| ttl < minute));
    }

    #[test]
    fn a_wrong_value_is_named() {
        for (headers, cache, named) in [
            (&[("larder-ttl", "-1")][..], "{}", "larder-ttl"),
            (&[("larder-cache", "maybe")], "{}", "off, exact or on"),
            (&[("larder-similarity-min", "NaN")], "{}", "0 to 1"),
            (&[("helicone-cache-bucket-max-size", "21")], "{}", "1 to 20"),
            (&[("cf-aig-skip-cache", "yes")], "{}", "cf-aig-skip-cache"),
            (&[("larder-ttl", "1"), ("larder-ttl", "2")], "{}", "twice"),
            (&[], r#"{"ttl": "soon"}"#, "cache.ttl"),
            (&[], r#"{"no-cache": 1}"#, "cache.no-cache"),
            (&[], "[]", "no object"),
            (&[], r#"{"namespace": ""}"#, "cache.namespace"),
        ] {
            let error = controls(headers, cache).unwrap_err();
            assert!(error.contains(named), "{error}");
        }
    }
}
