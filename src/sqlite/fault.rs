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

pub(super) fn unavailable(detail: &str) -> Error {
    Error::new(Code::StoreUnavailable, "The database does not answer. Try again in a moment.")
        .with_detail(detail)
}

/// Names the file to the operator, if it is the file that `error` is about.
pub(super) fn named(error: Error, path: &Path) -> Error {
    match error.detail() {
        Some(detail) if error.code() == Code::StoreUnavailable => {
            let detail = format!("{} cannot be used: {detail}", path.display());
            error.with_detail(detail)
        }
        _ => error,
    }
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        let advice = advice(&error).map(|advice| format!(". {advice}"));
        unavailable(&format!("{error}{}", advice.unwrap_or_default()))
    }
}
