//! The tables, and the steps from one version of them to the next.

use rusqlite::Connection;

/// What marks a SQLite file as the relay's, in its header: "Rely".
const APPLICATION_ID: i64 = 0x5265_6c79;

/// One step a version. A step that has been released is never changed, only followed by another.
const STEPS: &[&str] = &[include_str!("schema/1.sql")];

/// How long the answer to a repeated `finish` is kept for a generation whose rows are gone, in milliseconds: far longer
/// than any retry.
const TOMBSTONE_TIME_MS: i64 = 7 * 24 * 60 * 60 * 1000;

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    #[error("it is a database of another program")]
    Foreign,
    #[error("it was written by a newer version of the relay (schema {0}, this one knows {known})", known = STEPS.len())]
    Newer(i64),
    #[error("{0}")]
    Sqlite(#[from] rusqlite::Error),
}

/// Brings the database to the present version.
pub(super) fn prepare(connection: &mut Connection) -> Result<(), Unusable> {
    let pragma = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let (application_id, version) = (pragma("application_id")?, pragma("user_version")?);
    let tables: i64 =
        connection.query_row("select count(*) from sqlite_schema", [], |row| row.get(0))?;
    if application_id != APPLICATION_ID && tables > 0 {
        return Err(Unusable::Foreign);
    }
    let done = usize::try_from(version)
        .ok()
        .filter(|done| *done <= STEPS.len())
        .ok_or(Unusable::Newer(version))?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    let transaction = connection.transaction()?;
    for (step, sql) in STEPS.iter().enumerate().skip(done) {
        transaction.execute_batch(sql)?;
        transaction.pragma_update(None, "user_version", step as i64 + 1)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    let tombstones_before = crate::clock::now().as_millisecond() - TOMBSTONE_TIME_MS;
    transaction.execute(
        "delete from generations where variant_id is null and ended_at < ?1",
        [tombstones_before],
    )?;
    transaction.commit()?;
    Ok(())
}
