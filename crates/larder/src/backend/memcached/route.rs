//! Which server has a key: rendezvous hashing (Thaler and Ravishankar, 1998), the highest of a hash of server and key.
//!
//! One more server takes its share evenly from all others and moves nothing else, as with ketama's ring, but without
//! a ring of thousands of points and with even shares. A server that is down keeps its keys: if they went
//! elsewhere, they would come back old.

use super::link::{Link, LinkSettings};
use super::options::Address;
use std::sync::Arc;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

pub(super) struct Router {
    servers: Vec<Server>,
}

struct Server {
    name: String,
    hash: u64,
    links: Vec<Link>,
}

impl Router {
    pub(super) fn new(addresses: Vec<Address>, connections: usize, settings: LinkSettings) -> Self {
        let settings = Arc::new(settings);
        let server = |address: Address| {
            let (name, address) = (address.to_string(), Arc::new(address));
            let links = (0..connections).map(|_| Link::new(address.clone(), settings.clone())).collect();
            Server { hash: xxh3_64(name.as_bytes()), name, links }
        };
        Router { servers: addresses.into_iter().map(server).collect() }
    }

    /// The connection for a key, by its hash, and its server's name. A key has one, so that its calls keep their order.
    pub(super) fn of_key(&self, hash: u64) -> (&Link, &str) {
        let server = match &self.servers[..] {
            [only] => only,
            many => {
                let score = |server: &&Server| xxh3_64_with_seed(&hash.to_le_bytes(), server.hash);
                many.iter().max_by_key(score).expect("there is a server")
            }
        };
        (&server.links[(hash >> 48) as usize % server.links.len()], &server.name)
    }

    /// A connection to each server, and its name.
    pub(super) fn servers(&self) -> impl Iterator<Item = (&Link, &str)> {
        self.servers.iter().map(|server| (&server.links[0], &*server.name))
    }

    /// What is wrong with whom.
    pub(super) fn notes(&self) -> Vec<String> {
        let notes = self.servers.iter().filter_map(|server| {
            let failure = server.links.iter().find_map(Link::trouble)?;
            Some(failure.into_error("connect", &server.name).to_string())
        });
        notes.collect()
    }

    pub(super) fn close(&self) {
        self.servers.iter().flat_map(|server| &server.links).for_each(Link::close);
    }
}

#[cfg(all(test, not(larder_shuttle)))]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::super::dial::Tls;
    use super::super::options::MemcachedOptions;
    use super::*;
    use std::time::Duration;

    fn router(hosts: &[&str]) -> Router {
        let urls = hosts.iter().map(|host| format!("memcached://{host}"));
        let settings = LinkSettings {
            batch_max: 1,
            connect_timeout: Duration::from_secs(1),
            response_timeout: Duration::from_secs(1),
            tls: Tls {
                #[cfg(feature = "memcached-tls")]
                connector: None,
            },
        };
        Router::new(MemcachedOptions::new(urls).parse().unwrap(), 2, settings)
    }

    #[test]
    fn shares_are_even_and_a_new_server_takes_only_its_own() {
        let hashes: Vec<u64> = (0..30_000_u64).map(|i| xxh3_64(&i.to_le_bytes())).collect();
        let (three, again, four) =
            (router(&["a", "b", "c"]), router(&["c", "a", "b"]), router(&["a", "b", "c", "d"]));
        let (mut moved, mut of_a) = (0, 0);
        for &hash in &hashes {
            let before = three.of_key(hash).1;
            assert_eq!(before, again.of_key(hash).1, "the order of the list doesn't matter");
            let after = four.of_key(hash).1;
            assert!(after == before || after == "d:11211");
            moved += usize::from(after != before);
            of_a += usize::from(before == "a:11211");
        }
        assert!((7_000..8_000).contains(&moved) && (9_500..10_500).contains(&of_a), "{moved} {of_a}");
    }
}
