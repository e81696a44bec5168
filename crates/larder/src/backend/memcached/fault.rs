//! What memcached's errors mean, one by one, in kinds that a caller can act on.
//!
//! The texts are larder's own. An error reply may quote a command, which has keys in it.

use super::wire::{Nonsense, Refusal};
use crate::error::{Error, ErrorKind};
use std::time::Duration;

/// The backend's name in errors and metrics.
pub(super) const NAME: &str = "memcached";

/// Why there is no answer.
#[derive(Clone, Debug)]
pub(super) enum Failure {
    /// The server refused the command: nothing was done.
    Refused(Refusal),
    /// The connection failed, or could not be made.
    Connection(std::io::ErrorKind),
    /// Nothing came within this time; the connection is given up.
    TimedOut(Duration),
    /// The server said something that memcached doesn't say.
    Nonsense(&'static str),
    /// A reply came for another command than the one that waits.
    Astray,
    /// The server can't do what larder needs, or isn't set up for it.
    Unsuitable(String),
    /// TLS could not be agreed on.
    Tls(&'static str),
    /// What larder keeps beside the entries of a namespace doesn't stay.
    Forgetful,
    /// Others changed the entry each time before it could be written.
    Contended,
    /// The runtime that the connection lived on ended.
    Ended,
    /// The backend was closed.
    Closed,
}

impl From<Nonsense> for Failure {
    fn from(nonsense: Nonsense) -> Self {
        Failure::Nonsense(nonsense.0)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Failure::Connection(error.kind())
    }
}

impl Failure {
    /// The error of an operation, and the server that it is about.
    pub(super) fn into_error(self, operation: &'static str, server: &str) -> Error {
        let new =
            |kind, why: &str| Error::new(kind, operation).backend(NAME).message(format!("{server}: {why}"));
        match self {
            Failure::Refused(refusal) => {
                let (kind, why) = refusal_kind(refusal);
                new(kind, why)
            }
            Failure::Connection(kind) => {
                new(ErrorKind::Unavailable, &format!("the connection failed: {kind}"))
            }
            Failure::TimedOut(limit) => new(ErrorKind::Timeout, &format!("no answer within {limit:?}")),
            Failure::Nonsense(what) => new(ErrorKind::Unavailable, &format!("it answered with {what}")),
            Failure::Astray => new(ErrorKind::Unavailable, "a reply went astray; the connection is given up"),
            Failure::Unsuitable(why) => new(ErrorKind::Config, &why),
            Failure::Tls(why) => new(ErrorKind::Authentication, why),
            Failure::Forgetful => {
                new(ErrorKind::Full, "it forgets the record of a namespace at once: it has too little memory")
            }
            Failure::Contended => new(ErrorKind::Unavailable, "others change the entry all the time"),
            Failure::Ended => new(ErrorKind::Unavailable, "the runtime of the connection ended"),
            Failure::Closed => Error::new(ErrorKind::Closed, operation).backend(NAME),
        }
    }
}

fn refusal_kind(refusal: Refusal) -> (ErrorKind, &'static str) {
    match refusal {
        Refusal::OutOfMemory => (ErrorKind::Full, "it has no memory left for this item"),
        Refusal::TooLarge => (ErrorKind::TooLarge, "the item is larger than it takes (-I)"),
        Refusal::Unauthenticated => {
            (ErrorKind::Authentication, "it asks for a user and password, or refuses the ones it got")
        }
        Refusal::Busy => (ErrorKind::Unavailable, "it is busy, or has too many connections (-c)"),
        Refusal::NoServer => (ErrorKind::Unavailable, "the proxy has no server behind it"),
        Refusal::NotUnderstood => (ErrorKind::Unknown, "it didn't understand the command"),
        Refusal::Unknown => (ErrorKind::Unknown, "it refused the command"),
    }
}
