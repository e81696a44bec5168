//! The schema: its tables and functions, their versions, and on which cluster they were written.
//!
//! Knows what a connection needs before its first statement; never touches an entry.

use super::fault::Failure;
use super::link::Settings;
use tokio_postgres::{Client, SimpleQueryMessage};
use xxhash_rust::xxh3::xxh3_64;

/// What brings version `i` to `i + 1`, each in one transaction. A step that was released is never edited.
const STEPS: &[&str] = &[include_str!("schema/v1.sql")];
/// The oldest server: `gen_random_uuid` came with it.
const SERVER_MIN: u64 = 130_000;

/// Sets the session up, and the schema if nobody has; refuses what larder can't work with.
pub(super) async fn settle(client: &Client, settings: &Settings) -> Result<(), Failure> {
    let schema = &settings.schema;
    let response_ms = settings.response_timeout.as_millis().min(i32::MAX as u128);
    let session = format!(
        "SET default_transaction_isolation = 'read committed'; SET statement_timeout = {response_ms};
         SET lock_timeout = {}; SET idle_in_transaction_session_timeout = {response_ms};
         SET client_min_messages = 'error'; SET jit = off; SET plan_cache_mode = force_generic_plan;
         SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_hashjoin = off;
         SET enable_mergejoin = off;
         SELECT pg_is_in_recovery(), current_setting('server_version_num'),
                coalesce(to_regclass('{schema}.meta')::oid, 0)",
        response_ms / 2
    );
    let hello = first_row(client.simple_query(&session).await?)?;
    if hello[0] == "t" {
        return Err(Failure::Replica);
    }
    if hello[1].parse::<u64>().is_ok_and(|version| version < SERVER_MIN) {
        return Err(Failure::Refused(crate::ErrorKind::Config, "the server is older than PostgreSQL 13"));
    }
    if hello[2] == "0" || version(client, schema).await? < STEPS.len() {
        migrate(client, settings).await?;
    }
    let who = format!(
        "SELECT m.version, m.identity, s.system, s.system || '.' || '{schema}.ns'::regclass::oid,
                (SELECT relpersistence FROM pg_class WHERE oid = '{schema}.ns'::regclass)
         FROM {schema}.meta m, (SELECT concat_ws('.', (pg_control_system()).system_identifier,
             left(pg_walfile_name(pg_current_wal_lsn()), 8),
             (SELECT oid FROM pg_database WHERE datname = current_database())) AS system) s"
    );
    let who = first_row(client.simple_query(&who).await?)?;
    let there: i32 = who[0].parse().map_err(|_| Failure::Nonsense("the schema has no version"))?;
    if there as usize > STEPS.len() {
        return Err(Failure::Newer { there, known: STEPS.len() });
    }
    let is_logged = who[4] == "p";
    if is_logged != settings.logged {
        return Err(Failure::Persistence { is_logged });
    }
    if who[1] != who[3] {
        // The timeline and the system's name are digits and dots.
        let begun = format!("SELECT {schema}.settle_1('{}')", who[2]);
        if first_row(client.simple_query(&begun).await?)?[0] == "t" {
            tracing::warn!(
                backend = super::fault::NAME,
                schema,
                "the tables came from another cluster or timeline; they were emptied"
            );
        }
    }
    if is_logged {
        // What is acknowledged has to survive a crash, whatever the server's default is.
        let wait = "SELECT set_config('synchronous_commit', 'local', false)
                    WHERE current_setting('synchronous_commit') = 'off'";
        client.simple_query(wait).await?;
    }
    Ok(())
}

async fn version(client: &Client, schema: &str) -> Result<usize, Failure> {
    let row = first_row(client.simple_query(&format!("SELECT version FROM {schema}.meta")).await?)?;
    Ok(row[0].parse::<i64>().map_or(0, |version| version.max(0) as usize))
}

/// Brings the schema to the version after the last step. Several nodes may do so at once: whoever waits for the
/// lock looks again. A connection that fails in between takes its transaction with it.
async fn migrate(client: &Client, settings: &Settings) -> Result<(), Failure> {
    let schema = &settings.schema;
    let lock = xxh3_64(format!("larder schema {schema}").as_bytes()) as i64;
    client.batch_execute("BEGIN").await?;
    // A statement of its own: the next ones see what was committed while this one waited.
    client.batch_execute(&format!("SELECT pg_advisory_xact_lock({lock})")).await?;
    let look = format!(
        "SELECT coalesce(to_regnamespace('{schema}')::oid, 0), coalesce(to_regclass('{schema}.meta')::oid, 0)"
    );
    let found = first_row(client.simple_query(&look).await?)?;
    if found[0] == "0" {
        client.batch_execute(&format!("CREATE SCHEMA {schema}")).await?;
    }
    let mut version = if found[1] == "0" { 0 } else { version(client, schema).await? };
    while let Some(step) = STEPS.get(version) {
        let persistence = if settings.logged { "" } else { "UNLOGGED" };
        let step = step.replace("'@'", &format!("'{schema}'")).replace("@.", &format!("{schema}."));
        client.batch_execute(&step.replace("$persistence", persistence)).await?;
        version += 1;
        client.batch_execute(&format!("UPDATE {schema}.meta SET version = {version}")).await?;
    }
    client.batch_execute("COMMIT").await?;
    Ok(())
}

/// The columns of the first row; a missing or empty one is empty.
fn first_row(messages: Vec<SimpleQueryMessage>) -> Result<Vec<String>, Failure> {
    let row = messages.into_iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    let row = row.ok_or(Failure::Nonsense("a question about the server was not answered"))?;
    Ok((0..row.len()).map(|column| row.get(column).unwrap_or_default().to_owned()).collect())
}
