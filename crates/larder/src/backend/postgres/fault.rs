//! What PostgreSQL's errors mean to a cache. Only the code of a server's error goes any further: its text, detail
//! and hint may quote parameters, which are keys and values.

use crate::error::{Error, ErrorKind};
use std::time::Duration;
use tokio_postgres::error::SqlState;

/// The backend's name in errors and metrics.
pub(super) const NAME: &str = "postgres";

/// The kind for an error's SQLSTATE, and what it means.
fn state_kind(state: &str) -> (ErrorKind, &'static str) {
    use ErrorKind::*;
    match state {
        // Rolled back, and likely to pass when repeated.
        "40001" => (Unavailable, "another transaction got in between"),
        "40P01" => (Unavailable, "transactions waited for each other"),
        "40003" => (Unavailable, "nobody knows whether the statement completed"),
        "55P03" => (Unavailable, "a lock was not free in time (lock_timeout)"),
        "57014" => (Timeout, "the server took too long and gave up (statement_timeout)"),
        "25P03" => (Unavailable, "the transaction was idle for too long"),
        // The server has no room.
        "53000" | "53400" => (Unavailable, "the server is short of something"),
        "53100" => (Full, "the server's disk is full"),
        "53200" => (Unavailable, "the server is out of memory"),
        "53300" => (Unavailable, "the server has too many connections already"),
        // The server goes or comes.
        "57P01" => (Unavailable, "an operator ended the connection, or the server shuts down"),
        "57P02" => (Unavailable, "the server crashed"),
        "57P03" => (Unavailable, "the server starts, stops or recovers"),
        "57P04" => (Config, "the database was dropped"),
        "57P05" => (Unavailable, "the connection was idle for too long"),
        "58000" | "58030" => (Unavailable, "the server's disk fails"),
        // It lets nobody write.
        "25006" => (ReadOnly, "the server or the session is read-only"),
        // It doesn't let us.
        "28000" => (Authentication, "the server refuses the user (pg_hba.conf)"),
        "28P01" => (Authentication, "the server refuses the password"),
        "42501" => (Authentication, "the user may not do this: larder needs to own its schema"),
        // It is not what was expected.
        "3D000" => (Config, "there is no such database"),
        "3F000" | "42P01" | "42883" | "42703" | "42704" => {
            (Unavailable, "larder's tables are missing; they are made anew with the next connection")
        }
        "26000" | "0A000" => (
            Unavailable,
            "the server forgot a prepared statement; a pooler in between must keep sessions apart",
        ),
        "25001" => {
            (Config, "transactions are not \"read committed\"; a pooler in between must keep sessions apart")
        }
        "42P06" | "42P07" | "42723" => {
            (Config, "another program's tables are in the schema; set another one")
        }
        "54000" | "54001" | "54023" => (TooLarge, "the server's limits are exceeded"),
        "22001" | "22P03" | "22021" | "22P05" => (Unknown, "the server can't take the bytes"),
        "XX001" | "XX002" => (Corrupt, "the server's files are damaged"),
        _ => match &state[..2.min(state.len())] {
            "08" => (Unavailable, "the connection failed"),
            "28" => (Authentication, "the server refuses the user"),
            "40" => (Unavailable, "the transaction was rolled back"),
            "53" => (Unavailable, "the server is short of something"),
            "57" => (Unavailable, "an operator intervened"),
            "58" => (Unavailable, "the server's system fails"),
            _ => (Unknown, "the server refused the statement"),
        },
    }
}

/// Why there is no answer.
#[derive(Clone, Debug)]
pub(super) enum Failure {
    /// The server answered with an error: nothing was done.
    Reply(SqlState),
    /// The connection failed, or could not be made.
    Connection(&'static str),
    /// TLS, a setting of the connection, or an authentication method that is not known.
    Refused(ErrorKind, &'static str),
    /// Nothing came within this time; the connection is given up.
    TimedOut(Duration),
    /// The server is a replica: what it has may lag behind a removal.
    Replica,
    /// The schema was made by a newer larder.
    Newer { there: i32, known: usize },
    /// The tables are logged, or not, other than the settings say.
    Persistence { is_logged: bool },
    /// The server said something that PostgreSQL doesn't say.
    Nonsense(&'static str),
    /// The runtime that the connections lived on ended.
    Ended,
    /// The backend was closed.
    Closed,
}

impl Failure {
    /// Whether a connection may not be used again after it.
    pub(super) fn breaks(&self) -> bool {
        match self {
            // After a statement of a transaction of its own, a connection is as good as before, unless what was
            // prepared on it is gone.
            Failure::Reply(state) => {
                let state = state.code();
                ["08", "57P", "XX", "3F", "26", "0A"].iter().any(|class| state.starts_with(class))
                    || ["42P01", "42883", "42703", "42704", "25001", "25006"].contains(&state)
            }
            _ => true,
        }
    }

    /// Whether an operation may be at fault that shared a statement with others: they are tried one by one.
    pub(super) fn may_be_of_one(&self) -> bool {
        matches!(self, Failure::Reply(state) if ["22", "23", "54"].iter().any(|class| state.code().starts_with(class)))
    }

    pub(super) fn into_error(self, operation: &'static str) -> Error {
        let new = |kind| Error::new(kind, operation).backend(NAME);
        match self {
            Failure::Reply(state) => {
                let (kind, why) = state_kind(state.code());
                new(kind).message(format!("{}: {why}", state.code()))
            }
            Failure::Connection(why) => new(ErrorKind::Unavailable).message(why),
            Failure::Refused(kind, why) => new(kind).message(why),
            Failure::TimedOut(limit) => new(ErrorKind::Timeout).message(format!("no answer within {limit:?}")),
            Failure::Replica => new(ErrorKind::ReadOnly).message("the server is a replica"),
            Failure::Newer { there, known } => new(ErrorKind::Config).message(format!(
                "the schema has version {there}, made by a newer larder; this one knows versions up to {known}. \
                 Upgrade larder, or set another schema"
            )),
            Failure::Persistence { is_logged } => {
                let (is, not) = if is_logged { ("logged", "not") } else { ("unlogged", "") };
                new(ErrorKind::Config).message(format!(
                    "the schema's tables are {is}, and the setting logged says {not} so; change the setting, or set \
                     another schema"
                ))
            }
            Failure::Nonsense(what) => new(ErrorKind::Unavailable).message(what),
            Failure::Ended => new(ErrorKind::Unavailable).message("the runtime of the connection ended"),
            Failure::Closed => new(ErrorKind::Closed),
        }
    }
}

/// Of a statement, or of connecting.
impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        if let Some(error) = error.as_db_error() {
            return Failure::Reply(error.code().clone());
        }
        if error.is_closed() {
            return Failure::Connection("the server closed the connection");
        }
        let mut source = std::error::Error::source(&error);
        while let Some(inner) = source {
            if let Some(io) = inner.downcast_ref::<std::io::Error>() {
                return match io.kind() {
                    std::io::ErrorKind::InvalidData => Failure::Refused(
                        ErrorKind::Authentication,
                        "the server's certificate or TLS was refused",
                    ),
                    // "database does not allow writes", of the last of several hosts.
                    std::io::ErrorKind::PermissionDenied => Failure::Replica,
                    std::io::ErrorKind::TimedOut => {
                        Failure::Connection("the server can't be reached in time")
                    }
                    std::io::ErrorKind::ConnectionRefused | std::io::ErrorKind::NotFound => {
                        Failure::Connection("no server listens there")
                    }
                    _ => Failure::Connection("the connection failed"),
                };
            }
            source = inner.source();
        }
        // Fixed texts of the client's, without anything of the server's.
        match error.to_string() {
            text if text.starts_with("error performing TLS") => {
                Failure::Refused(ErrorKind::Config, "the server offers no TLS, and sslmode asks for it")
            }
            text if text.starts_with("authentication error") => Failure::Refused(
                ErrorKind::Authentication,
                "the server asks for a password, or for what larder can't do",
            ),
            text if text.starts_with("invalid configuration") => {
                Failure::Refused(ErrorKind::Config, "the connection's settings are incomplete")
            }
            text if text.starts_with("error connecting to server") => {
                Failure::Connection("no server can be reached")
            }
            _ => Failure::Connection("the connection failed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_the_kinds_that_callers_act_on() {
        use ErrorKind::*;
        let kind = |code: &str| Failure::Reply(SqlState::from_code(code)).into_error("put").kind();
        for (code, expected) in [
            ("40001", Unavailable),
            ("40P01", Unavailable),
            ("53100", Full),
            ("53200", Unavailable),
            ("53300", Unavailable),
            ("53999", Unavailable),
            ("57014", Timeout),
            ("57P01", Unavailable),
            ("57P02", Unavailable),
            ("57P03", Unavailable),
            ("08006", Unavailable),
            ("08P99", Unavailable),
            ("28000", Authentication),
            ("28P01", Authentication),
            ("28999", Authentication),
            ("42501", Authentication),
            ("25006", ReadOnly),
            ("3D000", Config),
            ("54000", TooLarge),
            ("XX001", Corrupt),
            ("99999", Unknown),
            ("", Unknown),
        ] {
            assert_eq!(kind(code), expected, "{code}");
        }
        assert!(Failure::Reply(SqlState::from_code("40001")).into_error("put").is_transient());
        assert!(!Failure::Reply(SqlState::from_code("28P01")).into_error("put").is_transient());
    }

    #[test]
    fn a_connection_is_kept_after_a_refused_statement_alone() {
        for (code, breaks) in
            [("40P01", false), ("22001", false), ("57014", false), ("57P01", true), ("26000", true)]
        {
            assert_eq!(Failure::Reply(SqlState::from_code(code)).breaks(), breaks, "{code}");
        }
        assert!(Failure::TimedOut(Duration::ZERO).breaks());
    }
}
