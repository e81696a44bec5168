//! What a request's path and query name: a namespace and a key of any bytes.

use super::problem::Problem;
use crate::value::Key;
use axum::http::Uri;
use larder::key::Namespace;

/// Longest key of a request, in bytes.
const KEY_BYTES_MAX: usize = 1 << 20;

/// The part of a raw path after `/v1/{word}/`, at its first slash.
fn parts(uri: &Uri) -> (&str, Option<&str>) {
    let rest = uri.path().splitn(4, '/').nth(3).unwrap_or_default();
    match rest.split_once('/') {
        Some((namespace, key)) => (namespace, Some(key)),
        None => (rest, None),
    }
}

/// The namespace of a path like `/v1/keys/{namespace}`.
pub(crate) fn namespace(uri: &Uri) -> Result<Namespace, Problem> {
    let decoded = percent_decode(parts(uri).0, Plus::Literal)?;
    let text =
        std::str::from_utf8(&decoded).map_err(|_| Problem::bad_request("the namespace is no UTF-8"))?;
    Ok(Namespace::new(text)?)
}

/// The key of a path like `/v1/cache/{namespace}/{key}`, or of `?key=` or `?key64=` after the namespace.
pub(crate) fn key(uri: &Uri) -> Result<Key, Problem> {
    if let Some(raw) = parts(uri).1 {
        return checked(Key::from(percent_decode(raw, Plus::Literal)?));
    }
    let query = Query::parse(uri, &["key", "key64", "format"])?;
    match (query.bytes("key"), query.text("key64")?) {
        (Some(bytes), None) => checked(Key::from(bytes.to_vec())),
        (None, Some(text)) => {
            let allowed = "key64 is no base64url without padding";
            checked(Key::from_base64url(text).ok_or_else(|| Problem::bad_request(allowed))?)
        }
        _ => Err(Problem::bad_request("the key belongs in the path, or in exactly one of ?key= and ?key64=")),
    }
}

fn checked(key: Key) -> Result<Key, Problem> {
    if key.len() > KEY_BYTES_MAX {
        let detail = format!("the key has {} bytes; at most {KEY_BYTES_MAX} are allowed", key.len());
        return Err(Problem::new(super::problem::Kind::TooLarge, detail));
    }
    Ok(key)
}

/// The parameters of a query, of which each may stand once.
#[derive(Debug)]
pub(crate) struct Query(Vec<(String, Vec<u8>)>);

impl Query {
    /// Refuses parameters that are not `allowed`: a mistyped filter would widen a request silently.
    pub(crate) fn parse(uri: &Uri, allowed: &[&str]) -> Result<Self, Problem> {
        let mut parameters: Vec<(String, Vec<u8>)> = Vec::new();
        for pair in uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = String::from_utf8_lossy(&percent_decode(name, Plus::Space)?).into_owned();
            if !allowed.contains(&name.as_str()) {
                let allowed = if allowed.is_empty() { "none".to_owned() } else { allowed.join(", ") };
                return Err(Problem::bad_request(format!(
                    "there is no parameter {name:?}; allowed: {allowed}"
                )));
            }
            if parameters.iter().any(|(other, _)| *other == name) {
                return Err(Problem::bad_request(format!("the parameter {name} stands twice")));
            }
            parameters.push((name, percent_decode(value, Plus::Space)?));
        }
        Ok(Query(parameters))
    }

    pub(crate) fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.0.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_slice())
    }

    pub(crate) fn text(&self, name: &str) -> Result<Option<&str>, Problem> {
        let text = self.bytes(name).map(std::str::from_utf8).transpose();
        text.map_err(|_| Problem::bad_request(format!("the parameter {name} is no UTF-8")))
    }

    pub(crate) fn number(&self, name: &str) -> Result<Option<usize>, Problem> {
        let number = self.text(name)?.map(str::parse).transpose();
        number.map_err(|_| Problem::bad_request(format!("the parameter {name} is no whole number")))
    }
}

/// What a plus sign means: itself in paths and headers, a blank in queries.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plus {
    Literal,
    Space,
}

/// Decodes percent-encoding once; refuses what is malformed instead of passing it through.
pub(crate) fn percent_decode(text: &str, plus: Plus) -> Result<Vec<u8>, Problem> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let mut digit = || bytes.next().and_then(|byte| char::from(byte).to_digit(16));
                match (digit(), digit()) {
                    (Some(high), Some(low)) => (high * 16 + low) as u8,
                    _ => return Err(Problem::bad_request("a % is not followed by two hexadecimal digits")),
                }
            }
            b'+' if plus == Plus::Space => b' ',
            byte => byte,
        });
    }
    Ok(decoded)
}

/// Encodes what can't stand in one item of a comma-separated header, or of a path.
pub(crate) fn percent_encode(bytes: &[u8]) -> String {
    let mut encoded = String::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b'a'..=b'z'
            | b'A'..=b'Z'
            | b'0'..=b'9'
            | b'-'
            | b'_'
            | b'.'
            | b'~'
            | b':'
            | b'/'
            | b'@'
            | b'=' => {
                encoded.push(char::from(byte));
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_key_however_it_is_written() {
        let key = |uri: &str| key(&uri.parse().unwrap());
        let same = [
            "/v1/cache/ns/a/b%20c",
            "/v1/cache/ns/a%2Fb%20c",
            "/v1/cache/ns?key=a/b+c",
            "/v1/cache/ns?key=a%2Fb%20c",
            "/v1/cache/ns?key64=YS9iIGM",
        ];
        for uri in same {
            assert!(key(uri).unwrap() == Key::from("a/b c"), "{uri}");
        }
        assert!(key("/v1/cache/ns/a+b").unwrap() == Key::from("a+b"));
        assert!(key("/v1/cache/ns?key=").unwrap() == Key::from(""));
        assert!(key("/v1/cache/ns/%ff%00").unwrap() == Key::from(vec![0xff, 0]));
        for wrong in
            ["ns/%", "ns/%2", "ns/%zz", "ns", "ns?key64=*", "ns?key=a&key64=YQ", "ns?key=a&key=b", "ns?kye=a"]
        {
            assert!(key(&format!("/v1/cache/{wrong}")).is_err(), "{wrong}");
        }
    }
}
