//! An upstream, a gateway before it, and a client that sees every header and the end of every body.
#![allow(dead_code, reason = "each test file uses a part")]

use crate::support::{DEADLINE, Server, larder};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};

/// `larder dev-upstream`, which counts its calls.
pub(crate) struct Upstream {
    pub(crate) child: Child,
    pub(crate) url: String,
}

impl Upstream {
    pub(crate) fn start(delay_ms: u64, piece_ms: u64) -> Upstream {
        Upstream::on("127.0.0.1:0", delay_ms, piece_ms)
    }

    pub(crate) fn on(address: &str, delay_ms: u64, piece_ms: u64) -> Upstream {
        let mut command = larder(&["dev-upstream", "--listen", address]);
        command.args(["--delay-ms", &delay_ms.to_string(), "--piece-ms", &piece_ms.to_string()]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut banner = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut banner).unwrap();
        let url = banner.split(' ').find(|word| word.starts_with("http://")).unwrap().to_owned();
        Upstream { child, url }
    }

    pub(crate) fn address(&self) -> &str {
        self.url.strip_prefix("http://").unwrap()
    }

    pub(crate) fn calls(&self) -> u64 {
        exchange(self.address(), "GET", "/dev/calls", &[], "").json()["calls"].as_u64().unwrap()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
    /// Whether it came to its end.
    pub(crate) is_whole: bool,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(other, _)| other == name).map_or("", |(_, value)| value)
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    #[track_caller]
    pub(crate) fn is(self, status: u16, cache: &str) -> Reply {
        assert_eq!((self.status, self.header("x-larder-cache")), (status, cache), "{self:?}");
        self
    }

    /// What a streamed chat says.
    pub(crate) fn said(&self) -> String {
        let events = self.body.split("\n\n").filter_map(|event| event.strip_prefix("data: "));
        let chunks =
            events.filter(|data| *data != "[DONE]").map(|data| serde_json::from_str::<Value>(data).unwrap());
        chunks
            .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned))
            .collect()
    }
}

/// One request on a connection of its own.
pub(crate) fn exchange(
    address: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Reply {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    write!(stream, "{head}Content-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    let mut bytes = Vec::new();
    let read = stream.read_to_end(&mut bytes);
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").expect("a head");
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers: Vec<(String, String)> = lines
        .map(|line| {
            let (name, value) = line.split_once(':').unwrap();
            (name.to_ascii_lowercase(), value.trim().to_owned())
        })
        .collect();
    let rest = &bytes[end + 4..];
    let is_chunked = headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked");
    let (body, is_whole) = if is_chunked { unchunk(rest) } else { (rest.to_vec(), read.is_ok()) };
    Reply { status, headers, body: String::from_utf8(body).unwrap(), is_whole }
}

fn unchunk(mut rest: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    loop {
        let Some(end) = rest.windows(2).position(|window| window == b"\r\n") else { return (body, false) };
        let length = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        if length == 0 {
            return (body, true);
        }
        let Some(chunk) = rest.get(end + 2..end + 2 + length) else { return (body, false) };
        body.extend_from_slice(chunk);
        rest = rest.get(end + 4 + length..).unwrap_or_default();
    }
}

pub(crate) struct Gateway {
    pub(crate) server: Server,
    pub(crate) upstream: Upstream,
    pub(crate) folder: tempfile::TempDir,
}

impl Gateway {
    pub(crate) fn start(delay_ms: u64, piece_ms: u64, variables: &[(&str, &str)]) -> Gateway {
        let upstream = Upstream::start(delay_ms, piece_ms);
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start_with(folder.path(), &["--upstream", &upstream.url], variables);
        Gateway { server, upstream, folder }
    }

    pub(crate) fn post(&self, path: &str, headers: &[(&str, &str)], body: &Value) -> Reply {
        let all: Vec<_> = [("Content-Type", "application/json"), ("Authorization", "Bearer client-a")]
            .into_iter()
            .filter(|(name, _)| !headers.iter().any(|(other, _)| other == name))
            .chain(headers.iter().copied())
            .collect();
        exchange(&self.server.address.to_string(), "POST", path, &all, &body.to_string())
    }

    pub(crate) fn chat(&self, headers: &[(&str, &str)], body: &Value) -> Reply {
        self.post("/v1/chat/completions", headers, body)
    }
}
