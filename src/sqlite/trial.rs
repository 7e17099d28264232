//! Whether a file could be opened, for an operator who asks before it is: a relay that has it keeps it, and nothing is left
//! behind.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};

use super::fault::Unusable;
use super::{BUSY_TIMEOUT, Database, Schema, lock_path};
use crate::error::Error;

impl Database {
    /// Fails if [`Database::open`] would, unless only because another relay has the file. Returns whether there is one.
    pub(crate) fn try_out(path: &Path, schema: &Schema) -> Result<bool, Error> {
        try_out(path, schema).map_err(|unusable| unusable.told(path))
    }
}

fn try_out(path: &Path, schema: &Schema) -> Result<bool, Unusable> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let _made = Made::folder(folder)?;
    try_file(folder)?;
    if !path.try_exists()? {
        return Ok(false);
    }
    // SQLite would open for reading alone what it may not write.
    OpenOptions::new().append(true).open(path)?;
    let lock = lock_path(path);
    if lock.try_exists()? {
        OpenOptions::new().append(true).open(lock)?;
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    schema.steps_done(&connection)?;
    Ok(true)
}

/// Folders that were made for the trial, outermost first. They go with it.
#[derive(Default)]
struct Made(Vec<PathBuf>);

impl Made {
    fn folder(folder: &Path) -> std::io::Result<Self> {
        let is_named = |folder: &&Path| !folder.as_os_str().is_empty();
        let missing = folder.ancestors().take_while(is_named).take_while(|folder| !folder.exists());
        let missing: Vec<_> = missing.collect();
        let mut made = Self::default();
        for folder in missing.into_iter().rev() {
            fs::create_dir(folder)?;
            made.0.push(folder.to_owned());
        }
        Ok(made)
    }
}

/// Writes a file there, and removes it.
fn try_file(folder: &Path) -> std::io::Result<()> {
    let path = folder.join(format!(".trial-{}", std::process::id()));
    let mut file = OpenOptions::new().write(true).create_new(true).open(&path)?;
    let written = file.write_all(b"trial").and_then(|()| file.sync_all());
    fs::remove_file(path)?;
    written
}

impl Drop for Made {
    fn drop(&mut self) {
        for folder in self.0.iter().rev() {
            // One that a relay has put something into meanwhile stays.
            let _removed = fs::remove_dir(folder);
        }
    }
}
