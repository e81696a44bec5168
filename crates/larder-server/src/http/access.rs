//! Who may talk to the server: holders of a token, or, without tokens, whoever addresses a loopback name.
//!
//! A web page in a browser on the same host can send requests to 127.0.0.1, under a name of its own that
//! it lets point there. Without a token the `Host` is all that tells such requests apart.

use super::problem::{Kind, Problem};
use crate::config::Settings;
use axum::http::{HeaderMap, Uri, header};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

#[derive(Debug)]
pub(crate) struct Access {
    /// Hashes of the tokens: all of one length, so that comparing them shows none of it.
    tokens: Vec<[u8; 32]>,
    hosts: Vec<String>,
}

impl Access {
    pub(crate) fn new(settings: &Settings) -> Self {
        Access {
            tokens: settings.tokens.iter().map(|token| Sha256::digest(token.reveal()).into()).collect(),
            hosts: settings.allowed_hosts.clone(),
        }
    }

    /// Refuses a request without a valid token, or one that is addressed to a foreign name.
    pub(crate) fn check(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
        if self.tokens.is_empty() { self.check_host(uri, headers) } else { self.check_token(headers) }
    }

    fn check_token(&self, headers: &HeaderMap) -> Result<(), Problem> {
        let refused = |detail: &str| Problem::new(Kind::Unauthorized, detail);
        let value = headers
            .get(header::AUTHORIZATION)
            .ok_or_else(|| refused("the header Authorization: Bearer <token> is missing"))?;
        let token = value.to_str().ok().and_then(|text| text.split_once(' '));
        let Some((scheme, token)) = token else {
            return Err(refused("the header Authorization is malformed"));
        };
        let given: [u8; 32] = Sha256::digest(token.trim()).into();
        let is_known = self.tokens.iter().fold(Choice::from(0), |known, token| known | token.ct_eq(&given));
        if bool::from(is_known) && scheme.eq_ignore_ascii_case("bearer") {
            return Ok(());
        }
        Err(refused("the token is not one of the server's"))
    }

    fn check_host(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
        // HTTP/1.0 has no Host; no browser speaks it.
        let host = match (uri.authority(), headers.get(header::HOST)) {
            (Some(authority), _) => authority.as_str(),
            (None, Some(value)) => value.to_str().unwrap_or("?"),
            (None, None) => return Ok(()),
        };
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            _ => host,
        };
        let is_loopback = matches!(name, "localhost" | "[::1]")
            || name.parse::<std::net::Ipv4Addr>().is_ok_and(|address| address.is_loopback());
        if is_loopback || self.hosts.iter().any(|allowed| allowed.eq_ignore_ascii_case(name)) {
            return Ok(());
        }
        let detail = format!(
            "without tokens, requests to {name:?} are refused; add the name to allowed_hosts, or set tokens"
        );
        Err(Problem::new(Kind::Misdirected, detail))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;
    use axum::http::HeaderValue;

    fn check(settings: &Settings, name: header::HeaderName, value: &str) -> Option<Kind> {
        let headers = [(name, HeaderValue::from_str(value).unwrap())].into_iter().collect();
        Access::new(settings).check(&Uri::from_static("/"), &headers).err().map(|problem| problem.kind())
    }

    #[test]
    fn foreign_hosts_and_wrong_tokens_are_refused() {
        let mut settings = Settings { allowed_hosts: vec!["larder".to_owned()], ..Settings::default() };
        for ours in ["127.0.0.1:7070", "localhost", "[::1]:80", "Larder:7070"] {
            assert_eq!(check(&settings, header::HOST, ours), None, "{ours}");
        }
        for foreign in ["evil.example", "127.0.0.1.evil.example:7070", "localhost.evil", ""] {
            assert_eq!(check(&settings, header::HOST, foreign), Some(Kind::Misdirected), "{foreign}");
        }
        settings.tokens =
            vec![Secret::new("first-token-0123".into()), Secret::new("second-token-012".into())];
        assert_eq!(check(&settings, header::AUTHORIZATION, "Bearer second-token-012"), None);
        for wrong in ["Bearer first", "Basic second-token-012", "second-token-012", "Bearer "] {
            assert_eq!(check(&settings, header::AUTHORIZATION, wrong), Some(Kind::Unauthorized), "{wrong}");
        }
        assert_eq!(check(&settings, header::HOST, "127.0.0.1"), Some(Kind::Unauthorized));
    }
}
