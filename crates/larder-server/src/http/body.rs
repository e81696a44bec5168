//! Request bodies: received whole, each under a limit, all of them together under another.

use super::problem::{Kind, Problem};
use axum::body::Body;
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// How much of a refused body is read and thrown away, and how long, so that a client that sends before
/// it reads gets the answer instead of a reset connection.
const DRAIN_BYTES_MAX: usize = 16 << 20;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Bytes of bodies that are being received.
#[derive(Debug)]
pub(crate) struct Bodies {
    bytes_max: u64,
    body_bytes_max: u64,
    held: Arc<AtomicU64>,
}

/// A body's share of the bytes that may be held; given back when it is dropped.
#[derive(Debug)]
struct Share {
    held: Arc<AtomicU64>,
    bytes: u64,
}

impl Share {
    /// Takes more, unless all shares would then be over the limit.
    fn grow(&mut self, bytes: u64, bytes_max: u64) -> bool {
        let before = self.held.fetch_add(bytes, Relaxed);
        self.bytes += bytes;
        before + bytes <= bytes_max
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.held.fetch_sub(self.bytes, Relaxed);
    }
}

/// A body and its share, which is held as long as the request works with it.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) bytes: Bytes,
    _share: Share,
}

impl Bodies {
    pub(crate) fn new(bytes_max: u64, body_bytes_max: u64) -> Self {
        Bodies { bytes_max, body_bytes_max, held: Arc::default() }
    }

    /// Bytes of bodies that are held now.
    pub(crate) fn held(&self) -> u64 {
        self.held.load(Relaxed)
    }

    /// Receives a body.
    pub(crate) async fn receive(&self, headers: &HeaderMap, mut body: Body) -> Result<Received, Problem> {
        let announced =
            headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        if announced.is_some_and(|length: u64| length > self.body_bytes_max) {
            // Reading it would tell a client that waits for leave to send that it may.
            let waits = headers.contains_key(header::EXPECT);
            return Err(if waits { self.too_large() } else { self.refuse(body, self.too_large()).await });
        }
        let mut share = Share { held: Arc::clone(&self.held), bytes: 0 };
        let mut received = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| {
                Problem::bad_request(format!("the body broke off or is malformed: {error}"))
            })?;
            let Ok(data) = frame.into_data() else { continue };
            if (received.len() + data.len()) as u64 > self.body_bytes_max {
                return Err(self.refuse(body, self.too_large()).await);
            }
            if !share.grow(data.len() as u64, self.bytes_max) {
                let detail = format!("bodies of {} bytes are being received already", self.bytes_max);
                drop(share);
                return Err(self.refuse(body, Problem::new(Kind::Overloaded, detail)).await);
            }
            // A body in one piece, which most are, is not copied.
            if received.is_empty() {
                received = BytesMut::from(data);
                if let Some(length) = announced {
                    received.reserve((length as usize).saturating_sub(received.len()));
                }
            } else {
                received.extend_from_slice(&data);
            }
        }
        Ok(Received { bytes: received.freeze(), _share: share })
    }

    fn too_large(&self) -> Problem {
        let detail = format!("the body is larger than http.body_bytes_max, {} bytes", self.body_bytes_max);
        Problem::new(Kind::TooLarge, detail)
    }

    async fn refuse(&self, mut body: Body, problem: Problem) -> Problem {
        let mut drained = 0;
        let drain = async {
            while let Some(Ok(frame)) = body.frame().await {
                drained += frame.data_ref().map_or(0, Bytes::len);
                if drained > DRAIN_BYTES_MAX {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(DRAIN_TIMEOUT, drain).await;
        problem
    }
}
