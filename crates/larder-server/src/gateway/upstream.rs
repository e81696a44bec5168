//! The API that answers what the cache can't. Its address comes from the settings alone: no request chooses it,
//! and no redirect is followed.

use super::live::Failure;
use crate::config::{Secret, UpstreamSettings};
use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri, header};
use bytes::Bytes;
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use std::time::Duration;

/// How often a connection is tried that could not be made. The request was not sent, so it is safe.
const CONNECTS_MAX: u32 = 2;

/// Headers that belong to one connection, and those that we set ourselves.
const NOT_PASSED_ON: [HeaderName; 13] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::HOST,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::TE,
    header::TRAILER,
    header::UPGRADE,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::EXPECT,
    // A compressed answer could not be kept.
    header::ACCEPT_ENCODING,
];

/// An upstream.
pub(crate) struct Upstream {
    client: Client<HttpsConnector<HttpConnector>, Body>,
    scheme_and_authority: String,
    /// What stands before `/v1` in its paths.
    prefix: String,
    key: Option<Secret>,
    reply_timeout: Duration,
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Upstream({})", self.scheme_and_authority)
    }
}

impl Upstream {
    /// # Errors
    /// Says what is wrong with the address, or that the system's certificates can't be read.
    pub(crate) fn new(settings: &UpstreamSettings) -> Result<Self, String> {
        let (scheme_and_authority, prefix) = parse(&settings.url)?;
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(settings.connect_timeout));
        let https = hyper_rustls::HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(rustls::crypto::aws_lc_rs::default_provider())
            .map_err(|error| format!("the system's certificates can't be read: {error}"))?
            .https_or_http()
            .enable_http1()
            .wrap_connector(http);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(settings.idle_timeout)
            .build(https);
        Ok(Upstream {
            client,
            scheme_and_authority,
            prefix,
            key: settings.read_key()?,
            reply_timeout: settings.reply_timeout,
        })
    }

    /// Whether it is asked with a key of ours, not with the client's.
    pub(crate) fn has_key(&self) -> bool {
        self.key.is_some()
    }

    /// Asks it, and waits until the reply begins.
    pub(crate) async fn ask(
        &self,
        method: &Method,
        path_and_query: &str,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Result<Response<Incoming>, Failure> {
        let asked = tokio::time::timeout(self.reply_timeout, async {
            let mut connects = 1;
            loop {
                let request = self.request(method, path_and_query, headers, Body::from(body.clone()));
                match self.client.request(request?).await {
                    Err(error) if error.is_connect() && connects < CONNECTS_MAX => connects += 1,
                    Err(error) => {
                        tracing::warn!(%error, "the upstream can't be asked");
                        return Err(Failure::Unreachable);
                    }
                    Ok(response) => return Ok(response),
                }
            }
        });
        asked.await.unwrap_or(Err(Failure::Timeout))
    }

    /// Passes a request on as it comes, body and all.
    pub(crate) async fn pass(
        &self,
        method: &Method,
        path_and_query: &str,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<Response<Incoming>, Failure> {
        let request = self.request(method, path_and_query, headers, body)?;
        match tokio::time::timeout(self.reply_timeout, self.client.request(request)).await {
            Ok(response) => response.map_err(|_| Failure::Unreachable),
            Err(_) => Err(Failure::Timeout),
        }
    }

    fn request(
        &self,
        method: &Method,
        path_and_query: &str,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<Request<Body>, Failure> {
        let path = path_and_query.strip_prefix("/v1").unwrap_or(path_and_query);
        let uri: Uri = format!("{}{}{path}", self.scheme_and_authority, self.prefix)
            .parse()
            .map_err(|_| Failure::Unreachable)?;
        let mut request = Request::new(body);
        *request.method_mut() = method.clone();
        *request.uri_mut() = uri;
        let of_connection = |name: &HeaderName| {
            let listed = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
            listed
                .flat_map(|value| value.split(','))
                .any(|other| name.as_str().eq_ignore_ascii_case(other.trim()))
        };
        for (name, value) in headers {
            let is_ours = super::controls::HEADERS.iter().any(|(control, _)| name == control);
            if !NOT_PASSED_ON.contains(name) && !is_ours && !of_connection(name) {
                request.headers_mut().append(name, value.clone());
            }
        }
        request.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some(key) = &self.key {
            let mut value = HeaderValue::try_from(format!("Bearer {}", key.reveal()))
                .map_err(|_| Failure::Unreachable)?;
            value.set_sensitive(true);
            request.headers_mut().insert(header::AUTHORIZATION, value);
        }
        Ok(request)
    }
}

/// The headers of a reply that reach the client.
pub(crate) fn passed_back(mut headers: HeaderMap) -> HeaderMap {
    let listed: Vec<String> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    for name in &listed {
        headers.remove(name.as_str());
    }
    for name in NOT_PASSED_ON {
        headers.remove(name);
    }
    headers
}

/// Those of them that reach who joined another one's request: a cookie is for the client that asked.
pub(crate) fn shared(mut headers: HeaderMap) -> HeaderMap {
    headers.remove(header::SET_COOKIE);
    headers
}

/// Scheme and authority, and the path without its `/v1`.
fn parse(url: &str) -> Result<(String, String), String> {
    let wrong = |why: &str| format!("{why}; an address like https://api.openai.com/v1 is allowed");
    let uri: Uri = url.parse().map_err(|_| wrong("it is no URL"))?;
    let scheme = uri.scheme_str().ok_or_else(|| wrong("it has no scheme"))?;
    if !matches!(scheme, "http" | "https") {
        return Err(wrong("it is neither http nor https"));
    }
    let authority = uri.authority().ok_or_else(|| wrong("it has no host"))?;
    if authority.as_str().contains('@') {
        return Err(wrong("it has credentials, which belong in key_file or key_variable"));
    }
    if uri.query().is_some() {
        return Err(wrong("it has a query"));
    }
    let path = uri.path().trim_end_matches('/');
    // Every path that is asked for begins with /v1; so does what such a base URL stands for.
    let prefix = match path {
        "" => "/v1".to_owned(),
        path => path.to_owned(),
    };
    Ok((format!("{scheme}://{authority}"), prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_connection_is_passed_on() {
        let settings = UpstreamSettings { url: "http://127.0.0.1:1".to_owned(), ..Default::default() };
        let upstream = Upstream::new(&settings).unwrap();
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "x-of-this-hop"),
            ("x-of-this-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("x-kept", "1"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        let asked = upstream.request(&Method::POST, "/v1/x", &headers, Body::empty()).unwrap();
        let names: Vec<&str> = asked.headers().keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["x-kept", "accept-encoding"]);
        let back = passed_back(headers);
        assert_eq!(back.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-kept"]);
    }

    #[test]
    fn a_cookie_is_for_the_client_that_asked() {
        let mut headers = HeaderMap::new();
        headers.append(header::SET_COOKIE, HeaderValue::from_static("session=a"));
        headers.append(header::SET_COOKIE, HeaderValue::from_static("balancer=b"));
        headers.append("x-kept", HeaderValue::from_static("1"));
        let back = passed_back(headers);
        assert_eq!(back.get_all(header::SET_COOKIE).iter().count(), 2);
        assert_eq!(shared(back).keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-kept"]);
    }

    #[test]
    fn an_address_is_what_openai_clients_call_a_base_url() {
        for (url, expected) in [
            ("https://api.openai.com", ("https://api.openai.com", "/v1")),
            ("https://api.openai.com/v1/", ("https://api.openai.com", "/v1")),
            ("http://127.0.0.1:11434/api/v3", ("http://127.0.0.1:11434", "/api/v3")),
        ] {
            assert_eq!(parse(url), Ok((expected.0.to_owned(), expected.1.to_owned())));
        }
        for wrong in ["api.openai.com", "ftp://x/", "https://u:p@x/v1", "https://x/v1?a=b", "", "/v1"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
