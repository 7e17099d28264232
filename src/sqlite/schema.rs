//! What is in a file, and the steps from one version of it to the next.

use rusqlite::Connection;
use rusqlite::config::DbConfig;

use super::fault::Unusable;

/// The tables of one kind of file.
#[derive(Debug)]
pub(crate) struct Schema {
    /// What marks a file as of this kind, in its header.
    pub(crate) application_id: i64,
    /// One step a version. A step that has been released is never changed, only followed by another.
    pub(crate) steps: &'static [&'static str],
    /// What is done each time the file is opened.
    pub(crate) upkeep: &'static str,
    /// Whether all of the file is read when it is opened, to see that it is whole: for files that are small.
    pub(crate) is_checked: bool,
}

fn pragma(connection: &Connection, name: &str) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, name, |row| row.get(0))
}

impl Schema {
    /// Fails unless the file is of the present version.
    pub(super) fn check(&self, connection: &Connection) -> Result<(), Unusable> {
        if pragma(connection, "application_id")? != self.application_id {
            return Err(Unusable::Foreign);
        }
        let version = pragma(connection, "user_version")?;
        if usize::try_from(version) == Ok(self.steps.len()) { Ok(()) } else { Err(Unusable::Other) }
    }

    /// How many steps the file has behind it. Fails unless it can be brought to the present version: then nothing is
    /// written, nor is it when the connection closes.
    pub(super) fn steps_done(&self, connection: &Connection) -> Result<usize, Unusable> {
        // The last connection that closes moves the log into the file and deletes it, even one that only looked.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        let application_id = pragma(connection, "application_id")?;
        let version = pragma(connection, "user_version")?;
        let tables: i64 =
            connection.query_row("select count(*) from sqlite_schema", [], |row| row.get(0))?;
        if application_id != self.application_id && tables > 0 {
            return Err(Unusable::Foreign);
        }
        let done = usize::try_from(version)
            .ok()
            .filter(|done| *done <= self.steps.len())
            .ok_or(Unusable::Newer { found: version, known: self.steps.len() })?;
        if self.is_checked {
            let found: String =
                connection.query_row("pragma quick_check(1)", [], |row| row.get(0))?;
            if found != "ok" {
                // One line of the log for what may be several here.
                return Err(Unusable::Damaged(found.replace('\n', " ")));
            }
        }
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
        Ok(done)
    }

    /// Brings the file to the present version.
    pub(super) fn prepare(&self, connection: &mut Connection) -> Result<(), Unusable> {
        // Before anything is written: what is damaged is left as it is.
        let done = self.steps_done(connection)?;
        connection.pragma_update(None, "journal_mode", "wal")?;
        let transaction = connection.transaction()?;
        for (step, sql) in self.steps.iter().enumerate().skip(done) {
            transaction.execute_batch(sql)?;
            transaction.pragma_update(None, "user_version", step as i64 + 1)?;
        }
        transaction.pragma_update(None, "application_id", self.application_id)?;
        transaction.execute_batch(self.upkeep)?;
        transaction.commit()?;
        Ok(())
    }
}
