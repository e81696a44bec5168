//! The clock of one connection: cuts clients that send a request's head too slowly, or don't take the
//! answer. Hyper itself cuts connections that are silent between requests.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

/// Where a connection is in its exchange; shared by its socket and the service behind it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Phase(Arc<AtomicU8>);

const BETWEEN: u8 = 0;
const HEAD: u8 = 1;
const REQUEST: u8 = 2;

impl Phase {
    /// A whole head has arrived; lasts until the guard is dropped.
    pub(crate) fn request(&self) -> RequestPhase {
        self.0.store(REQUEST, Relaxed);
        RequestPhase(self.clone())
    }
}

/// A request under way.
#[derive(Debug)]
pub(crate) struct RequestPhase(Phase);

impl Drop for RequestPhase {
    fn drop(&mut self) {
        self.0.0.store(BETWEEN, Relaxed);
    }
}

/// A socket with deadlines for a head and for a write that makes no progress.
#[derive(Debug)]
pub(crate) struct TimedStream {
    stream: TcpStream,
    phase: Phase,
    header_timeout: Duration,
    write_timeout: Duration,
    head_deadline: Option<Pin<Box<Sleep>>>,
    write_deadline: Option<Pin<Box<Sleep>>>,
}

impl TimedStream {
    pub(crate) fn new(
        stream: TcpStream,
        phase: Phase,
        header_timeout: Duration,
        write_timeout: Duration,
    ) -> Self {
        TimedStream {
            stream,
            phase,
            header_timeout,
            write_timeout,
            head_deadline: None,
            write_deadline: None,
        }
    }

    /// Counts the time of a write that waits, and forgets it when one made progress.
    fn timed_write<T>(&mut self, cx: &mut Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.write_deadline = None;
            return outcome;
        }
        let timeout = self.write_timeout;
        let deadline = self.write_deadline.get_or_insert_with(|| Box::pin(sleep(timeout)));
        match deadline.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for TimedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut this.stream).poll_read(cx, buffer);
        let has_read = buffer.filled().len() > before;
        if has_read && this.phase.0.compare_exchange(BETWEEN, HEAD, Relaxed, Relaxed).is_ok() {
            this.head_deadline = Some(Box::pin(sleep(this.header_timeout)));
        }
        if this.phase.0.load(Relaxed) != HEAD {
            this.head_deadline = None;
            return outcome;
        }
        let Some(deadline) = &mut this.head_deadline else { return outcome };
        // Asked also after a successful read: a client that sends a byte now and then is never pending.
        if deadline.deadline() > Instant::now() && deadline.as_mut().poll(cx).is_pending() {
            return outcome;
        }
        if this.write_deadline.is_none() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        // The head came early, while its client still takes the answer before it. That has its own limit.
        deadline.as_mut().reset(Instant::now() + this.header_timeout);
        let _ = deadline.as_mut().poll(cx);
        outcome
    }
}

impl AsyncWrite for TimedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.timed_write(cx, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.timed_write(cx, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_flush(cx);
        self.timed_write(cx, outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
