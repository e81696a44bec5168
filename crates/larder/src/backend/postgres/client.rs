//! The same servers, connections and errors for what is no tier: locks.

use super::fault::Failure;
use super::link::{Lane, Param, Settings};
use super::sql::Sql;
use super::{PostgresOptions, batch};
use crate::error::Result;
use std::fmt;
use tokio_postgres::Row;
use tokio_postgres::types::FromSql;

/// A way to the server. Connects with the first call.
pub(crate) struct PostgresClient(Lane);

impl PostgresClient {
    /// # Errors
    /// [`ErrorKind::Config`](crate::ErrorKind::Config), naming the setting and what is allowed.
    pub(crate) fn new(options: &PostgresOptions) -> Result<Self> {
        // One connection: statements take effect in the order in which they were asked for.
        Ok(PostgresClient(Lane::new(Settings::of(options)?, 1)))
    }

    /// Runs a statement by itself.
    pub(crate) async fn query(
        &self,
        operation: &'static str,
        sql: Sql,
        params: Vec<Param>,
    ) -> Result<Vec<Row>> {
        self.0.query(sql, params).await.map_err(|failure| failure.into_error(operation))
    }
}

/// A column of an answer.
pub(crate) fn column<'r, T: FromSql<'r>>(operation: &'static str, row: &'r Row, place: usize) -> Result<T> {
    batch::get(row, place).map_err(|failure| failure.into_error(operation))
}

/// The error for an answer that the statement does not give.
pub(crate) fn nonsense(operation: &'static str) -> crate::Error {
    Failure::Nonsense("the answer was not understood").into_error(operation)
}

impl fmt::Debug for PostgresClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PostgresClient(..)")
    }
}
