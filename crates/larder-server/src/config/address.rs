//! What the settings of a backend say of where it is: whether others can listen in, and who is let in.
//!
//! Backends are known by name only, so this looks at the settings' texts: whatever is written as a URL, or
//! under a name that is one of a host. A scheme that isn't known is taken for one without TLS.

use std::net::IpAddr;

/// A server across a socket.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Address {
    /// Host, port and path, in lower case and without user and password; the same for the same server.
    pub(super) place: String,
    /// Whether only this host reaches it: a loopback address, or a socket in the file system.
    pub(super) is_local: bool,
    pub(super) has_tls: bool,
    pub(super) has_password: bool,
}

/// Schemes without which nothing is protected.
const TLS_SCHEMES: [&str; 6] = ["rediss", "valkeys", "memcacheds", "memcached+tls", "https", "tls"];
/// What PostgreSQL's URLs say when the server has to prove itself or at least encrypt.
const TLS_MODES: [&str; 3] = ["require", "verify-ca", "verify-full"];

impl Address {
    /// Reads a text that a setting of this name has; `None` if it is no address.
    pub(super) fn of(setting: &str, text: &str) -> Option<Self> {
        if !text.contains("://") && text.contains("host=") {
            return Some(Address::of_words(text));
        }
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (scheme.to_ascii_lowercase(), rest),
            None if is_host(setting) => (String::new(), text),
            None => return None,
        };
        let (rest, query) = rest.split_once(['?', '#']).unwrap_or((rest, ""));
        let is_socket = scheme.contains("unix");
        let (user, location) = match rest.rsplit_once('@') {
            Some((user, location)) if !is_socket => (user, location),
            _ => ("", rest),
        };
        let pairs: Vec<(&str, &str)> = query.split('&').filter_map(|pair| pair.split_once('=')).collect();
        let (authority, path) = location.split_once('/').unwrap_or((location, ""));
        let place = if is_socket { location } else { authority };
        let has_password = user.split_once(':').is_some_and(|(_, password)| !password.is_empty());
        let mut address = Address::of_pairs(place, path, &pairs);
        address.is_local |= is_socket;
        address.has_password |= has_password;
        address.has_tls |= TLS_SCHEMES.contains(&&*scheme);
        Some(address)
    }

    /// `host=h user=u ...`, as PostgreSQL's clients write it.
    fn of_words(text: &str) -> Self {
        let pairs: Vec<(&str, &str)> =
            text.split_whitespace().filter_map(|pair| pair.split_once('=')).collect();
        Address::of_pairs("", "", &pairs)
    }

    /// Hosts may stand in front, among the pairs, or both.
    fn of_pairs(authority: &str, path: &str, pairs: &[(&str, &str)]) -> Self {
        let values = |names: &'static [&'static str]| {
            let of = pairs.iter().filter(|(name, value)| names.contains(name) && !value.is_empty());
            of.map(|(_, value)| value.trim_matches('\'')).collect::<Vec<_>>()
        };
        let mut hosts: Vec<String> =
            values(&["host", "hostaddr"]).iter().map(|host| (*host).to_owned()).collect();
        if hosts.is_empty() || !authority.is_empty() {
            hosts.push(authority.to_owned());
        }
        let is_local = hosts.iter().flat_map(|hosts| hosts.split(',')).all(|host| is_local(&host_of(host)));
        let database = values(&["db", "dbname"]).first().map_or(path, |database| database);
        let ports: String = values(&["port"]).iter().map(|port| format!(":{port}")).collect();
        let place = format!("{}{ports}/{}", hosts.join(","), database.trim_matches('/'));
        Address {
            place: place.trim_matches('/').to_ascii_lowercase(),
            is_local,
            has_tls: values(&["sslmode"]).iter().any(|mode| TLS_MODES.contains(mode)),
            has_password: !values(&["pass", "password"]).is_empty(),
        }
    }
}

/// Whether a setting of this name has hosts without a scheme before them.
fn is_host(setting: &str) -> bool {
    setting.ends_with("url")
        || setting.ends_with("urls")
        || ["server", "servers", "host", "hosts", "node", "nodes", "address", "addresses"].contains(&setting)
}

/// A host without its port.
fn host_of(host: &str) -> String {
    match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default().to_owned(),
        None if host.starts_with('/') || host.matches(':').count() > 1 => host.to_owned(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name).to_ascii_lowercase(),
    }
}

/// Loopback, or a folder with a socket.
fn is_local(host: &str) -> bool {
    host == "localhost"
        || host.starts_with(['/', '@'])
        || host.starts_with("%2f")
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Whether a setting of this name is a secret whatever it looks like.
pub(super) fn is_secret(setting: &str) -> bool {
    ["password", "secret", "token"].iter().any(|word| setting.contains(word)) && !setting.ends_with("_file")
}

/// The text with `***` in the place of what only some may know: for URLs user, password and query.
pub(super) fn redacted(setting: &str, text: &str) -> String {
    if is_secret(setting) {
        return "(secret)".to_owned();
    }
    match (text.split_once("://"), Address::of(setting, text)) {
        (Some((scheme, _)), Some(address)) => format!("{scheme}://{}", address.place),
        (None, Some(address)) => address.place,
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_told_apart() {
        // (setting, text), (is local, has TLS, has a password)
        for ((setting, text), expected) in [
            (("url", "redis://127.0.0.1:6379/1"), (true, false, false)),
            (("url", "redis://:pw@LOCALHOST"), (true, false, true)),
            (("url", "redis://[::1]:1"), (true, false, false)),
            (("url", "redis://[2001:db8::1]:1"), (false, false, false)),
            (("url", "rediss://user:pw@cache.example:6380"), (false, true, true)),
            (("url", "rediss://user@cache.example"), (false, true, false)),
            (("url", "unix:///run/redis.sock?pass=pw&db=2"), (true, false, true)),
            (("url", "redis+unix:///run/redis.sock"), (true, false, false)),
            (("url", "postgres://u:p%40@db.example/x?sslmode=verify-full"), (false, true, true)),
            (("url", "postgres://u@db.example/x?sslmode=prefer&password=p"), (false, false, true)),
            (("url", "postgres://127.0.0.1,db.example/x"), (false, false, false)),
            (("url", "redis://127.0.0.1.evil.example"), (false, false, false)),
            (("url", "quic://10.0.0.1"), (false, false, false)),
            (("url", "postgres:///x?host=10.0.0.1"), (false, false, false)),
            (("url", "postgres://localhost/x?host=10.0.0.1"), (false, false, false)),
            (("url", "postgres://%2Frun%2Fpostgresql/x"), (true, false, false)),
            (("url", "host=/run/postgresql user=u dbname=x"), (true, false, false)),
            (("url", "host=/run/a,db.example password='p'"), (false, false, true)),
            (("url", "host=10.0.0.1 sslmode=require password=p"), (false, true, true)),
            (("url", "127.0.0.1"), (true, false, false)),
            (("url", "whatever"), (false, false, false)),
            (("servers", "127.0.0.1:11211"), (true, false, false)),
            (("servers", "10.0.0.7:11211"), (false, false, false)),
        ] {
            let Address { is_local, has_tls, has_password, .. } = Address::of(setting, text).unwrap();
            assert_eq!((is_local, has_tls, has_password), expected, "{text}");
        }
        assert_eq!(Address::of("prefix", "larder"), None);
        let place = |text| Address::of("url", text).unwrap().place;
        assert_eq!(place("redis://a:b@H:1/2"), place("rediss://h:1/2/"));
        assert_ne!(place("redis://h:1/2"), place("redis://h:1/3"));
        assert_ne!(place("unix:///a"), place("unix:///b"));
        assert_ne!(place("host=h dbname=a"), place("host=h dbname=b"));
    }

    #[test]
    fn nothing_secret_is_left() {
        for (setting, text) in [
            ("url", "redis://user:hush@h:1/2"),
            ("url", "redis://hush@h"),
            ("url", "unix:///run/s?pass=hush"),
            ("url", "redis://a:b@hush@h"),
            ("url", "host=h password=hush"),
            ("password", "hush"),
            ("auth_token", "hush"),
        ] {
            assert!(!redacted(setting, text).contains("hush"), "{text}");
        }
        assert_eq!(redacted("prefix", "larder"), "larder");
    }
}
