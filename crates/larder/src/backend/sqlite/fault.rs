//! What SQLite's and the file system's errors mean to a cache.

use crate::error::{Error, ErrorKind};
use rusqlite::Connection;
use rusqlite::ffi::{self, ErrorCode};
use std::io;
use std::path::Path;

/// The backend's name in errors and metrics.
pub(super) const NAME: &str = "sqlite";

/// An error of larder's own reading of the file: bytes that it never wrote.
pub(super) fn corrupt(message: impl Into<String>) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_CORRUPT), Some(message.into()))
}

/// Whether the file is damaged, or holds what larder never writes.
pub(super) fn is_corrupt(error: &rusqlite::Error) -> bool {
    kind(error) == ErrorKind::Corrupt
}

pub(super) fn kind(error: &rusqlite::Error) -> ErrorKind {
    use rusqlite::Error as E;
    let failure = match error {
        E::SqliteFailure(failure, _) => failure,
        // A column of another type, a missing row or table: SQLite can read the page, but larder didn't write
        // it. Larder's own statements are constants, and fit the schema that it made.
        E::SqlInputError { .. }
        | E::FromSqlConversionFailure(..)
        | E::IntegralValueOutOfRange(..)
        | E::Utf8Error(..)
        | E::InvalidColumnType(..)
        | E::QueryReturnedNoRows => return ErrorKind::Corrupt,
        _ => return ErrorKind::Unknown,
    };
    match failure.code {
        ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => ErrorKind::Corrupt,
        // No write of larder's violates a constraint of a sound file.
        ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch => ErrorKind::Corrupt,
        ErrorCode::DiskFull => ErrorKind::Full,
        ErrorCode::ReadOnly => ErrorKind::ReadOnly,
        ErrorCode::PermissionDenied | ErrorCode::AuthorizationForStatementDenied => ErrorKind::Authentication,
        ErrorCode::TooBig => ErrorKind::TooLarge,
        // The shared-memory index could not grow.
        _ if failure.extended_code == ffi::SQLITE_IOERR_SHMSIZE => ErrorKind::Full,
        ErrorCode::DatabaseBusy
        | ErrorCode::DatabaseLocked
        | ErrorCode::FileLockingProtocolFailed
        | ErrorCode::OperationInterrupted
        | ErrorCode::OutOfMemory
        | ErrorCode::SystemIoFailure
        | ErrorCode::CannotOpen => ErrorKind::Unavailable,
        _ => ErrorKind::Unknown,
    }
}

/// As [`kind`], of an error that `db` has just had: a file system that turned read-only under an open file is
/// any failed write to SQLite, and only the system's own number tells it.
pub(super) fn kind_on(db: &Connection, error: &rusqlite::Error) -> ErrorKind {
    let kind = kind(error);
    if error.sqlite_error_code() != Some(ErrorCode::SystemIoFailure) {
        return kind;
    }
    // SAFETY: the handle is open as long as `db` is borrowed, and this only reads a number from it.
    let number = unsafe { ffi::sqlite3_system_errno(db.handle()) };
    let is_read_only = io::Error::from_raw_os_error(number).kind() == io::ErrorKind::ReadOnlyFilesystem;
    if is_read_only { ErrorKind::ReadOnly } else { kind }
}

/// Larder's error for SQLite's.
pub(super) fn to_error(operation: &'static str, error: rusqlite::Error) -> Error {
    Error::new(kind(&error), operation).backend(NAME).source(error)
}

/// Larder's error for a file operation on `path`.
pub(super) fn io_error(operation: &'static str, path: &Path, error: io::Error) -> Error {
    use io::ErrorKind as Io;
    let kind = match error.kind() {
        Io::PermissionDenied => ErrorKind::Authentication,
        Io::ReadOnlyFilesystem => ErrorKind::ReadOnly,
        Io::StorageFull | Io::QuotaExceeded => ErrorKind::Full,
        // A file where a folder should be.
        Io::AlreadyExists | Io::NotADirectory | Io::IsADirectory | Io::InvalidFilename | Io::InvalidInput => {
            ErrorKind::Config
        }
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, operation).backend(NAME).message(path.display().to_string()).source(error)
}
