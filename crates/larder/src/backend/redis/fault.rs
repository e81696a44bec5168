//! What Redis' errors mean to a cache. A server's text never goes any further than its first word: it may
//! quote a command's arguments, which are keys and values.

use crate::error::{Error, ErrorKind};
use redis::{RedisError, ServerError};
use std::time::Duration;

/// The backend's name in errors and metrics.
pub(super) const NAME: &str = "redis";

/// The kind for an error reply, by its code, and what it means.
fn reply_kind(code: &str) -> (ErrorKind, &'static str) {
    match code {
        "LOADING" => (ErrorKind::Unavailable, "the server is still loading its data"),
        "BUSY" | "UNKILLABLE" => (ErrorKind::Unavailable, "the server is busy with a script"),
        "TRYAGAIN" => (ErrorKind::Unavailable, "the slot is on its way to another node"),
        "CLUSTERDOWN" => (ErrorKind::Unavailable, "the cluster is down"),
        "MASTERDOWN" => (ErrorKind::Unavailable, "the replica has lost its master"),
        "NOREPLICAS" => (ErrorKind::Unavailable, "the master has too few replicas to accept writes"),
        "MOVED" | "ASK" => (ErrorKind::Unavailable, "the slot is on another node"),
        "NOSCRIPT" => (ErrorKind::Unavailable, "the server forgets the scripts that were just loaded"),
        "READONLY" => (ErrorKind::ReadOnly, "the server is a replica"),
        "MISCONF" => (ErrorKind::ReadOnly, "the server refuses writes because it can't persist them"),
        "OOM" => (ErrorKind::Full, "the server has no memory left (maxmemory)"),
        "WRONGTYPE" => (ErrorKind::Corrupt, "somebody else wrote to a key of larder's"),
        "NOAUTH" => (ErrorKind::Authentication, "the server asks for a password"),
        "WRONGPASS" => (ErrorKind::Authentication, "the server refuses the user or password"),
        "NOPERM" => (ErrorKind::Authentication, "the user may not run a command, key or channel of larder's"),
        "CROSSSLOT" => (ErrorKind::Config, "a proxy splits keys that share a hash tag"),
        _ => (ErrorKind::Unknown, "the server refused the command"),
    }
}

/// Why there is no answer.
#[derive(Clone, Debug)]
pub(super) enum Failure {
    /// The server answered with an error: nothing was done.
    Reply(ServerError),
    /// The connection failed, or could not be made.
    Connection(RedisError),
    /// Nothing came within this time; the connection is given up.
    TimedOut(Duration),
    /// The server is a replica: what it has may lag behind a removal.
    Replica,
    /// The server is the master, and may have been none meanwhile.
    Renewed,
    /// The server holds keys that were spread over another number of shards.
    Shards { here: u32, there: u32 },
    /// The server said something that Redis doesn't say.
    Nonsense(&'static str),
    /// The runtime that the connection lived on ended.
    Ended,
    /// The backend was closed.
    Closed,
}

impl Failure {
    /// The slot has another node now; nothing was done here.
    pub(super) fn is_moved(&self) -> bool {
        matches!(self, Failure::Reply(reply) if reply.code() == "MOVED")
    }

    /// The slot is on its way, and some of the keys are no longer here. Nothing was done.
    pub(super) fn is_moving(&self) -> bool {
        matches!(self, Failure::Reply(reply) if matches!(reply.code(), "ASK" | "TRYAGAIN"))
    }

    /// Whom to ask instead, this once: host and port.
    pub(super) fn asks(&self) -> Option<(&str, u16)> {
        let Failure::Reply(reply) = self else { return None };
        let (host, port) =
            reply.details().filter(|_| reply.code() == "ASK")?.split(' ').nth(1)?.rsplit_once(':')?;
        Some((host, port.parse().ok()?))
    }

    pub(super) fn into_error(self, operation: &'static str) -> Error {
        let new = |kind| Error::new(kind, operation).backend(NAME);
        match self {
            Failure::Reply(reply) => {
                let (kind, why) = reply_kind(reply.code());
                new(kind).message(format!("{}: {why}", code_shown(reply.code())))
            }
            Failure::Connection(error) => connection_error(operation, &error),
            Failure::TimedOut(limit) => {
                new(ErrorKind::Timeout).message(format!("no answer within {limit:?}"))
            }
            Failure::Replica => new(ErrorKind::ReadOnly).message("the server is a replica"),
            Failure::Renewed => new(ErrorKind::Unavailable).message("the server became the master anew"),
            Failure::Shards { here, there } => new(ErrorKind::Config).message(format!(
                "shards is {here}, but the server's keys of this prefix are spread over {there}"
            )),
            Failure::Nonsense(what) => new(ErrorKind::Unavailable).message(what),
            Failure::Ended => new(ErrorKind::Unavailable).message("the runtime of the connection ended"),
            Failure::Closed => new(ErrorKind::Closed),
        }
    }
}

/// An error of the connection, or of connecting.
fn connection_error(operation: &'static str, error: &RedisError) -> Error {
    use redis::ErrorKind as Redis;
    let new = |kind| Error::new(kind, operation).backend(NAME);
    if let Some(code) = error.code() {
        let (kind, why) = reply_kind(code);
        if kind != ErrorKind::Unknown {
            return new(kind).message(format!("{}: {why}", code_shown(code)));
        }
    }
    match error.kind() {
        Redis::AuthenticationFailed => {
            new(ErrorKind::Authentication).message("the server refuses the user or password")
        }
        Redis::InvalidClientConfig => new(ErrorKind::Config).message("the connection's settings are invalid"),
        _ if error.is_timeout() => new(ErrorKind::Timeout).message("no answer in time"),
        // The category, not the text: that may quote.
        _ => new(ErrorKind::Unavailable).message(format!("the connection failed: {}", error.category())),
    }
}

/// The first word of an error reply, as far as it looks like a code.
fn code_shown(code: &str) -> &str {
    let is_code = code.len() <= 20 && code.bytes().all(|byte| byte.is_ascii_uppercase());
    if is_code { code } else { "an error" }
}
