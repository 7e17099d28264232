//! Why a file cannot be used, and what an operator can do about it.

use std::path::Path;

use rusqlite::ErrorCode;

use crate::error::{Code, Error};

/// Why a file cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    #[error("it is a database of another program")]
    Foreign,
    #[error(
        "it was written by a newer version of the relay (schema {found}, this one knows {known})"
    )]
    Newer { found: i64, known: usize },
    #[error(
        "it was written by another version of the relay, which brings it up to date when it is started"
    )]
    Other,
    #[error("another relay is using it")]
    Held,
    #[error("it is damaged ({0})")]
    Damaged(String),
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Sqlite(#[from] rusqlite::Error),
}

const ELSEWHERE: &str = "Set RELAY_DATA (or RELAY_DATABASE_URL) to a place that this relay alone can write; RELAY_DATA=memory keeps nothing.";

const DISK: &str = "Check that its disk has room and is well, and start the relay again: it goes on from what the disk has.";

const DAMAGE: &str = "Keep it, with the files beside it, for what can be read of it (`.recover` of the sqlite3 shell), and put a backup in its place, or nothing to begin anew.";

impl Unusable {
    /// What an operator is told who wanted the file at `path` to be opened.
    pub(super) fn told(&self, path: &Path) -> Error {
        if let Some(folder) = path.parent().filter(|folder| folder.is_file()) {
            return Error::new(
                Code::StoreUnavailable,
                format!(
                    "{} is a file, and must be a folder. Set RELAY_DATA (or RELAY_DATABASE_URL) to another place, or move that file away.",
                    folder.display()
                ),
            );
        }
        let advice = match self {
            Self::Newer { .. } => "Start that version, or a newer one.",
            Self::Other => "Start this version of the relay on it first.",
            Self::Damaged(_) => DAMAGE,
            Self::Io(error) if error.kind() == std::io::ErrorKind::StorageFull => DISK,
            Self::Sqlite(error) => advice(error).unwrap_or(ELSEWHERE),
            Self::Foreign | Self::Held | Self::Io(_) => ELSEWHERE,
        };
        Error::new(
            Code::StoreUnavailable,
            format!("cannot open the database {}: {self}. {advice}", path.display()),
        )
    }
}

/// What to do about a fault of the disk, or of what is on it.
fn advice(error: &rusqlite::Error) -> Option<&'static str> {
    match error.sqlite_error_code()? {
        ErrorCode::DiskFull | ErrorCode::SystemIoFailure => Some(DISK),
        ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => Some(DAMAGE),
        _ => None,
    }
}

/// Names the file to the operator, if it is the file that `error` is about.
pub(super) fn named(error: Error, path: &Path) -> Error {
    let told = match (error.code(), error.detail()) {
        (Code::StoreUnavailable, Some(detail)) => {
            format!("{} cannot be used: {detail}", path.display())
        }
        (Code::Internal, Some(detail)) => format!("{}: {detail}", path.display()),
        _ => return error,
    };
    error.with_detail(told)
}

/// Says that what was asked was not done, and may be if it is asked again.
pub(super) fn not_done(error: &rusqlite::Error) -> Error {
    let advice = advice(error).map(|advice| format!(". {advice}"));
    Error::store_unavailable(format!("{error}{}", advice.unwrap_or_default()))
}

/// Whether SQLite has looked at what was asked and refuses it, as it would again: a constraint or a trigger, a value that
/// does not fit, a table that is not as it was. Everything else is about the file, its disk or who else uses it.
fn is_answer(error: &rusqlite::Error) -> bool {
    match error.sqlite_error_code() {
        Some(code) => matches!(
            code,
            ErrorCode::ConstraintViolation
                | ErrorCode::TypeMismatch
                | ErrorCode::TooBig
                | ErrorCode::ParameterOutOfRange
                | ErrorCode::AuthorizationForStatementDenied
                | ErrorCode::ApiMisuse
                // `SQLITE_ERROR`: what was asked has no meaning with the schema that there is.
                | ErrorCode::Unknown
        ),
        // What was read is not what the relay writes.
        None => true,
    }
}

impl From<rusqlite::Error> for Error {
    /// Of a statement of some work; those about the transaction around it are `not_done`.
    fn from(error: rusqlite::Error) -> Self {
        if !is_answer(&error) {
            return not_done(&error);
        }
        // Its number is that of SQLite's list of extended result codes.
        match error.sqlite_error() {
            Some(code) => Self::internal(format!("SQLite {}: {error}", code.extended_code)),
            None => Self::internal(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;

    #[test]
    fn a_refusal_is_told_apart_from_a_file_that_cannot_be_used() {
        let connection = Connection::open_in_memory().unwrap();
        let tables =
            "create table short (text text constraint is_short check (length(text) < 9)) strict;
             create trigger no_w before insert on short when new.text like '%w%'
             begin select raise(abort, 'no w here'); end;";
        connection.execute_batch(tables).unwrap();
        for (sql, code, told) in [
            ("insert into short values ('how')", Code::Internal, "SQLite 1811: no w here"),
            ("insert into short values ('a longer one')", Code::Internal, "is_short"),
            ("insert into short values (x'00')", Code::Internal, "cannot store BLOB"),
            ("insert into short values (zeroblob(2000000000))", Code::Internal, "too big"),
            ("insert into tall values (1)", Code::Internal, "no such table: tall"),
            ("attach '/nowhere/there.db' as there", Code::StoreUnavailable, "unable to open"),
            ("pragma max_page_count = 1; create table more (text)", Code::StoreUnavailable, "full"),
        ] {
            let error = Error::from(connection.execute_batch(sql).unwrap_err());
            assert_eq!(error.code(), code, "{sql}: {error}");
            assert!(error.detail().unwrap().contains(told), "{sql}: {error}");
        }
    }
}
