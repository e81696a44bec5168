//! The same servers, connections and errors for what is no tier: locks, and what nodes tell each other.

use super::fault::Failure;
use super::link::Step;
use super::route::Router;
use super::{RedisOptions, layout};
use crate::error::Result;
use redis::{Cmd, Value};
use std::fmt;

/// A way to the servers. Connects with the first call.
pub(crate) struct RedisClient {
    router: Router,
    prefix: String,
}

/// A script with its SHA-1.
pub(crate) struct RedisScript {
    code: &'static str,
    sha: String,
}

impl RedisScript {
    pub(crate) fn new(code: &'static str) -> Self {
        RedisScript { code, sha: redis::Script::new(code).get_hash().to_owned() }
    }
}

impl RedisClient {
    /// # Errors
    /// [`ErrorKind::Config`](crate::ErrorKind::Config), naming the setting and what is allowed.
    pub(crate) fn new(options: &RedisOptions) -> Result<Self> {
        Ok(RedisClient { router: Router::of(options)?, prefix: options.prefix.clone() })
    }

    /// What all names begin with.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Runs a command where `key` is.
    pub(crate) async fn command(&self, operation: &'static str, key: &[u8], command: &Cmd) -> Result<Value> {
        self.run(key, command).await.map_err(|failure| failure.into_error(operation))
    }

    /// Runs a script with keys of one slot.
    pub(crate) async fn eval(
        &self,
        operation: &'static str,
        script: &RedisScript,
        keys: &[Vec<u8>],
        args: &[&[u8]],
    ) -> Result<Value> {
        let call = |verb: &str, script: &str| {
            let mut command = redis::cmd(verb);
            command.arg(script).arg(keys.len()).arg(keys).arg(args);
            command
        };
        let mut reply = self.run(&keys[0], &call("EVALSHA", &script.sha)).await;
        if let Err(Failure::Reply(error)) = &reply
            && error.code() == "NOSCRIPT"
        {
            // It was not executed. The server keeps what it is sent in full.
            reply = self.run(&keys[0], &call("EVAL", script.code)).await;
        }
        reply.map_err(|failure| failure.into_error(operation))
    }

    async fn run(&self, key: &[u8], command: &Cmd) -> Result<Value, Failure> {
        self.router.run(layout::slot(key), || Step::Plain(command.clone())).await
    }
}

/// The error for an answer that Redis does not give.
pub(crate) fn nonsense(operation: &'static str) -> crate::Error {
    Failure::Nonsense("the answer was not understood").into_error(operation)
}

/// Without credentials.
impl fmt::Debug for RedisClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.router.fmt(f)
    }
}
