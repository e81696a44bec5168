//! An HTTP client for one request at a time, to a server of larder.

use crate::commands::Failure;
use crate::config::Secret;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper::{Request, Uri, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::time::Duration;
use tokio::net::TcpStream;

/// Longest time of one request; more than the server's own default.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Largest answer that is read.
const ANSWER_BYTES_MAX: usize = 1 << 30;

/// A server and how to be let in.
#[derive(Debug)]
pub(crate) struct Client {
    authority: String,
    token: Option<Secret>,
}

/// What a server answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Whether it said that a removed value existed.
    pub(crate) existed: bool,
    pub(crate) body: Bytes,
}

impl Client {
    pub(crate) fn new(url: &str, token: Option<Secret>) -> Result<Self, Failure> {
        let wrong = |why: &str| Failure::new(format!("{url:?} is no URL of a server: {why}"));
        let uri: Uri = url.parse().map_err(|_| wrong("http://HOST:PORT is allowed"))?;
        if uri.scheme_str() != Some("http") {
            return Err(wrong("http://HOST:PORT is allowed; TLS is not supported"));
        }
        let host = uri.host().ok_or_else(|| wrong("it has no host"))?;
        Ok(Client { authority: format!("{host}:{}", uri.port_u16().unwrap_or(80)), token })
    }

    pub(crate) async fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, String)],
        body: Bytes,
    ) -> Result<Answer, Failure> {
        let exchange = tokio::time::timeout(TIMEOUT, self.exchange(method, path, headers, body));
        let answer = exchange.await.map_err(|_| self.failure("no answer within a minute"))?;
        answer.map_err(|error| self.failure(&error.to_string()))
    }

    fn failure(&self, why: &str) -> Failure {
        Failure::new(format!("the server at http://{}: {why}", self.authority))
    }

    async fn exchange(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, String)],
        body: Bytes,
    ) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
        let stream = TcpStream::connect(&self.authority).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, &self.authority);
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.reveal()));
        }
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let response = sender.send_request(request.body(Full::new(body))?).await?;
        let status = response.status().as_u16();
        let existed = response.headers().get("larder-existed").is_some_and(|value| value == "true");
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await?.to_bytes();
        driver.abort();
        Ok(Answer { status, existed, body })
    }
}

impl Answer {
    /// The answer, or what the server said was wrong.
    pub(crate) fn accepted(self) -> Result<Self, Failure> {
        if self.status < 400 {
            return Ok(self);
        }
        let problem = self.json().unwrap_or_default();
        Err(match (problem["title"].as_str(), problem["detail"].as_str()) {
            (Some(title), Some(detail)) => Failure::new(format!("{title}: {detail}")),
            _ => Failure::new(format!("the server answered with status {}", self.status)),
        })
    }

    pub(crate) fn json(&self) -> Result<Value, Failure> {
        serde_json::from_slice(&self.body)
            .map_err(|error| Failure::new(format!("the server's answer is no JSON: {error}")))
    }
}
