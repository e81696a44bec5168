//! What can be wrong with a model: an error names the file, and the tensor or setting in it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// The result of loading, installing or running a model.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, as far as a caller may want to act on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A file can't be read or written.
    Io,
    /// A file is not what its format says: truncated, or changed.
    Corrupt,
    /// The model is valid and of a kind that this crate does not run.
    Unsupported,
    /// A file, a tensor or a batch is over its limit.
    TooLarge,
    /// A checksum is not the expected one.
    Checksum,
    /// An option is invalid, or not to be had on this processor.
    Config,
    /// The model yielded no finite vector for a text.
    NotFinite,
}

/// An error of this crate. Texts that were to be encoded never reach it.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    path: Option<PathBuf>,
    tensor: Option<String>,
    message: String,
    source: Option<io::Error>,
}

impl Error {
    /// What kind of error it is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The file that is to blame, if one is.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The tensor that is to blame, if one is.
    pub fn tensor(&self) -> Option<&str> {
        self.tensor.as_deref()
    }

    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error { kind, path: None, tensor: None, message: message.into(), source: None }
    }

    pub(crate) fn io(path: &Path, doing: &str, source: io::Error) -> Self {
        let message = format!("can't {doing}");
        Error { kind: ErrorKind::Io, path: Some(path.into()), tensor: None, message, source: Some(source) }
    }

    /// Says which file it was, unless that is known.
    pub(crate) fn at(mut self, path: &Path) -> Self {
        self.path.get_or_insert_with(|| path.into());
        self
    }

    pub(crate) fn in_tensor(mut self, name: &str) -> Self {
        self.tensor = Some(name.into());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(path) = &self.path {
            write!(f, "{}: ", path.display())?;
        }
        if let Some(tensor) = &self.tensor {
            write!(f, "tensor {tensor:?}: ")?;
        }
        f.write_str(&self.message)?;
        match &self.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| source as _)
    }
}
