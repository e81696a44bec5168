//! What commands work on: a running server, or a data folder that no server has.

use crate::client::{Answer, Client};
use crate::commands::Failure;
use crate::config::{Secret, Settings};
use crate::data::{DataFolder, Occupied};
use crate::http::{key_json, past_json, percent_encode, standing_json};
use crate::store::{self, OnFault, Store};
use crate::value::{Key, StoredValue};
use bytes::Bytes;
use larder::backend::Quarantined;
use larder::entry::Tags;
use larder::envelope::Keyring;
use larder::key::{Namespace, Pattern};
use larder::report::{Query, Report, Verdict};
use larder::{Cache, HealthLevel, KeysRequest, Removal, Written};
use serde_json::{Value, json};
use std::time::Duration;

/// Keys of one page of a listing.
const PAGE_KEYS: usize = 1000;

#[derive(Debug)]
pub(crate) struct Backing {
    namespace: Namespace,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Server(Client),
    /// The folder is held as long as its cache is open.
    Folder(
        Cache<Key, StoredValue>,
        Store,
        #[expect(dead_code, reason = "held for its drop")] DataFolder,
        Option<Keyring>,
    ),
}

/// A page of keys, each as the HTTP interface describes it.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) keys: Vec<Value>,
    pub(crate) next: Option<String>,
}

/// Which entries to remove.
#[derive(Debug)]
pub(crate) enum Selection {
    All,
    Tag(String),
    Pattern(String),
}

impl Backing {
    /// A server by its URL.
    pub(crate) fn server(url: &str, token: Option<Secret>, namespace: Namespace) -> Result<Self, Failure> {
        Ok(Backing { namespace, place: Place::Server(Client::new(url, token)?) })
    }

    /// What the settings say, or the server that has their folder.
    pub(crate) async fn folder(
        settings: &Settings,
        token: Option<Secret>,
        namespace: Namespace,
    ) -> Result<Self, Failure> {
        let path = &settings.data;
        match DataFolder::for_command(path) {
            Ok(folder) => {
                let protection = settings.encryption.protection()?;
                let keyring = protection.map(|protection| protection.keyring().clone());
                let store = store::open(settings, Some(folder.path()), OnFault::Fail).await?;
                let cache = store.cache.namespace(&namespace);
                Ok(Backing { namespace, place: Place::Folder(cache, store, folder, keyring) })
            }
            Err(Occupied::Server(Some(server))) => {
                let token = token.or_else(|| settings.tokens.first().cloned());
                Backing::server(&format!("http://{}", reachable(server.address)), token, namespace)
            }
            Err(Occupied::Server(None)) => {
                Err(Failure::new(format!("{} is in use by another process", path.display())))
            }
            Err(Occupied::Failed(error)) => {
                Err(Failure::new(format!("{} can't be opened: {error}", path.display())))
            }
        }
    }

    fn path(&self, word: &str, key: &str) -> String {
        let key = percent_encode(key.as_bytes()).replace('=', "%3D");
        format!("/v1/{word}/{}?key={key}", self.namespace.as_str())
    }

    pub(crate) async fn get(&self, key: &str) -> Result<Option<Bytes>, Failure> {
        match &self.place {
            Place::Server(client) => {
                let answer = client.request("GET", &self.path("cache", key), &[], Bytes::new()).await?;
                Ok(if answer.is_miss() { None } else { Some(answer.accepted()?.body) })
            }
            Place::Folder(cache, ..) => Ok(cache.get(&Key::from(key)).await.map(|value| value.body)),
        }
    }

    pub(crate) async fn exists(&self, key: &str) -> Result<bool, Failure> {
        match &self.place {
            Place::Server(client) => {
                let answer = client.request("HEAD", &self.path("cache", key), &[], Bytes::new()).await?;
                Ok(if answer.status == 404 { false } else { answer.accepted().map(|_| true)? })
            }
            Place::Folder(cache, ..) => Ok(cache.exists(&Key::from(key)).await),
        }
    }

    /// Sets a value; says whether it is durable.
    pub(crate) async fn set(
        &self,
        key: &str,
        value: Bytes,
        content_type: Option<&str>,
        ttl: Option<Duration>,
        tags: Tags,
    ) -> Result<bool, Failure> {
        match &self.place {
            Place::Server(client) => {
                let mut headers = Vec::new();
                headers.extend(content_type.map(|content_type| ("content-type", content_type.to_owned())));
                headers.extend(ttl.map(|ttl| match ttl {
                    Duration::MAX => ("larder-ttl", "never".to_owned()),
                    ttl => ("larder-ttl", ttl.as_secs_f64().to_string()),
                }));
                if !tags.is_empty() {
                    let list: Vec<String> = tags.iter().map(|tag| percent_encode(tag.as_bytes())).collect();
                    headers.push(("larder-tags", list.join(",")));
                }
                let answer = client.request("PUT", &self.path("cache", key), &headers, value).await?;
                Ok(answer.accepted()?.status != 202)
            }
            Place::Folder(cache, ..) => {
                let mut options = cache.options().tags(tags);
                if let Some(ttl) = ttl {
                    options.ttl = ttl;
                }
                let value = StoredValue::new(content_type, value);
                let written = cache.set_with(Key::from(key), value, &options).await?;
                Ok(!matches!(written, Written::Local))
            }
        }
    }

    /// Removes a key; says whether there was a value.
    pub(crate) async fn delete(&self, key: &str) -> Result<bool, Failure> {
        match &self.place {
            Place::Server(client) => {
                let answer = client.request("DELETE", &self.path("cache", key), &[], Bytes::new()).await?;
                Ok(answer.accepted()?.existed)
            }
            Place::Folder(cache, ..) => Ok(delivered(cache.remove(&Key::from(key)).await?)?.existed),
        }
    }

    /// Removes many entries; says how many where that is known.
    pub(crate) async fn flush(&self, selection: &Selection) -> Result<Option<u64>, Failure> {
        match &self.place {
            Place::Server(client) => {
                let body = match selection {
                    Selection::All => json!({ "all": true }),
                    Selection::Tag(tag) => json!({ "tags": [tag] }),
                    Selection::Pattern(glob) => json!({ "pattern": glob }),
                };
                let path = format!("/v1/invalidate/{}", self.namespace.as_str());
                let headers = [("content-type", "application/json".to_owned())];
                let answer = client.request("POST", &path, &headers, body.to_string().into()).await?;
                Ok(answer.accepted()?.json()?["removed"].as_u64())
            }
            Place::Folder(cache, ..) => match selection {
                Selection::All => delivered(cache.clear().await?).map(|_| None),
                Selection::Tag(tag) => delivered(cache.remove_tag(tag).await?).map(|_| None),
                Selection::Pattern(glob) => Ok(Some(cache.remove_matching(&Pattern::new(glob)?).await?)),
            },
        }
    }

    pub(crate) async fn keys(&self, pattern: Option<&str>, after: Option<&str>) -> Result<Page, Failure> {
        match &self.place {
            Place::Server(client) => {
                let mut path = format!("/v1/keys/{}?limit={PAGE_KEYS}", self.namespace.as_str());
                for (name, value) in [("pattern", pattern), ("after", after)] {
                    if let Some(value) = value {
                        path.push_str(&format!("&{name}={}", percent_encode(value.as_bytes())));
                    }
                }
                let page = client.request("GET", &path, &[], Bytes::new()).await?.accepted()?.json()?;
                let next = page["next"].as_str().map(str::to_owned);
                Ok(Page { keys: listed(page, "keys")?, next })
            }
            Place::Folder(cache, ..) => {
                let pattern = pattern.map(Pattern::new).transpose()?;
                let after = after.map(str::to_owned);
                let page = cache.keys(&KeysRequest { pattern, after, limit: PAGE_KEYS }).await?;
                Ok(Page { keys: page.keys.iter().map(key_json).collect(), next: page.next })
            }
        }
    }

    pub(crate) async fn stats(&self) -> Result<Value, Failure> {
        match &self.place {
            Place::Server(client) => {
                client.request("GET", "/v1/stats", &[], Bytes::new()).await?.accepted()?.json()
            }
            Place::Folder(_, store, ..) => Ok(serde_json::to_value(store.stats().await)?),
        }
    }

    /// Reports on an entry; the bad reports in a row, and whether that was one too many.
    pub(crate) async fn report(&self, key: &str, report: &Report) -> Result<(u64, bool), Failure> {
        match &self.place {
            Place::Server(client) => {
                let headers = [("content-type", "application/json".to_owned())];
                let body = json!({
                    "verdict": if report.verdict() == Verdict::Good { "good" } else { "bad" },
                    "latency": report.named_latency().map(|latency| latency.as_secs_f64()),
                    "source": report.named_source(),
                    "note": report.named_note(),
                });
                let path = self.path("reports", key);
                let answer = client.request("POST", &path, &headers, body.to_string().into()).await?;
                let answer = answer.accepted()?.json()?;
                Ok((answer["in_a_row"].as_u64().unwrap_or(0), answer["is_evicted"] == true))
            }
            Place::Folder(cache, ..) => {
                let reported = cache.report(&Key::from(key), report.clone()).await?;
                Ok((reported.in_a_row.into(), reported.is_evicted))
            }
        }
    }

    /// What was reported of an entry, the newest first, as the HTTP interface says it.
    pub(crate) async fn history(&self, key: &str) -> Result<Vec<Value>, Failure> {
        match &self.place {
            Place::Server(client) => {
                let answer = client.request("GET", &self.path("reports", key), &[], Bytes::new()).await?;
                listed(answer.accepted()?.json()?, "reports")
            }
            Place::Folder(cache, ..) => {
                Ok(cache.history(&Key::from(key)).await?.iter().map(past_json).collect())
            }
        }
    }

    /// A page of what was reported on, and where it goes on.
    pub(crate) async fn standings(&self, query: &Query) -> Result<(Vec<Value>, Option<String>), Failure> {
        match &self.place {
            Place::Server(client) => {
                let mut path = format!("/v1/standings/{}?limit={}", self.namespace.as_str(), query.limit);
                let verdict =
                    query.verdict.map(|verdict| if verdict == Verdict::Good { "good" } else { "bad" });
                for (name, value) in [
                    ("source", query.source.as_deref()),
                    ("after", query.after.as_deref()),
                    ("verdict", verdict),
                ] {
                    if let Some(value) = value {
                        path.push_str(&format!("&{name}={}", percent_encode(value.as_bytes())));
                    }
                }
                let page = client.request("GET", &path, &[], Bytes::new()).await?.accepted()?.json()?;
                let next = page["next"].as_str().map(str::to_owned);
                Ok((listed(page, "entries")?, next))
            }
            Place::Folder(cache, ..) => {
                let page = cache.by_health(query).await?;
                Ok((page.entries.iter().map(standing_json).collect(), page.next))
            }
        }
    }

    /// How it is, as the HTTP interface says it.
    pub(crate) async fn health(&self, level: HealthLevel) -> Result<Value, Failure> {
        match &self.place {
            Place::Server(client) => {
                let level = serde_json::to_value(level)?;
                let path = format!("/healthz?level={}", level.as_str().unwrap_or_default());
                client.request("GET", &path, &[], Bytes::new()).await?.accepted()?.json()
            }
            Place::Folder(cache, ..) => Ok(serde_json::to_value(cache.health_at(level).await)?),
        }
    }

    pub(crate) async fn explain(&self, key: &str, as_json: bool) -> Result<String, Failure> {
        match &self.place {
            Place::Server(client) => {
                let format = if as_json { "json" } else { "text" };
                let path = format!("{}&format={format}", self.path("explain", key));
                let answer = client.request("GET", &path, &[], Bytes::new()).await?.accepted()?;
                Ok(String::from_utf8_lossy(&answer.body).into_owned())
            }
            Place::Folder(cache, ..) => {
                let explanation = cache.explain(&Key::from(key)).await;
                Ok(if as_json { serde_json::to_string(&explanation)? } else { explanation.to_string() })
            }
        }
    }

    /// The cache of a folder, and the keys that protect it.
    pub(crate) fn protected(&self) -> Result<(&Cache<Key, StoredValue>, Keyring), Failure> {
        match &self.place {
            Place::Server(_) => Err(needs_folder()),
            Place::Folder(.., None) => Err(Failure::new(
                "the folder is not encrypted, as far as it says itself; --key-file names its keys",
            )),
            Place::Folder(cache, .., Some(keyring)) => Ok((cache, keyring.clone())),
        }
    }

    /// The entries that failed authentication.
    pub(crate) async fn quarantined(&self) -> Result<Vec<Quarantined>, Failure> {
        match &self.place {
            Place::Server(_) => Err(needs_folder()),
            Place::Folder(_, store, ..) => Ok(store.quarantined().await?),
        }
    }

    /// Forgets them.
    pub(crate) async fn forget_quarantined(&self) -> Result<(), Failure> {
        match &self.place {
            Place::Server(_) => Err(needs_folder()),
            Place::Folder(_, store, ..) => Ok(store.forget_quarantined().await?),
        }
    }

    /// Finishes what was begun.
    pub(crate) async fn close(self) -> Result<(), Failure> {
        match self.place {
            Place::Server(_) => Ok(()),
            Place::Folder(cache, ..) => Ok(cache.close().await?),
        }
    }
}

/// The list of an answer.
fn listed(mut answer: Value, member: &str) -> Result<Vec<Value>, Failure> {
    match answer[member].take() {
        Value::Array(items) => Ok(items),
        _ => Err(Failure::new(format!("the server's answer holds no {member}"))),
    }
}

fn needs_folder() -> Failure {
    Failure::new("this works on a folder that no server has: stop it, or set encryption.reseal_on_read there")
}

/// A removal that only this process knows of would be forgotten at its end.
fn delivered(removal: Removal) -> Result<Removal, Failure> {
    if removal.is_queued {
        return Err(Failure::new("the database could not be told; nothing is removed"));
    }
    Ok(removal)
}

/// Where a server that listens on every address is reached from this host.
fn reachable(mut address: std::net::SocketAddr) -> std::net::SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            std::net::SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            std::net::SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

impl Answer {
    /// Whether the key has no value; another 404 means that the address is not larder's.
    fn is_miss(&self) -> bool {
        self.status == 404 && self.json().is_ok_and(|problem| problem["kind"] == "miss")
    }
}
