//! Removals that the shared tier could not be told, in a file that outlives the process.
//!
//! One line for each, with a checksum, synced before the removal is acknowledged as queued. What was delivered is not
//! taken out line by line: the file is emptied when nothing is left, and written anew when most of it is repetition.
//! A last line that is not whole was never acknowledged. Any other damage may have been a removal of anything, so that
//! the namespaces that the rest names are cleared.

use crate::backend::{Change, Mark};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{EntryKey, Namespace, Pattern};
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use xxhash_rust::xxh3::xxh3_64;

/// The first line, with the version of the format.
const HEAD: &str = "larder journal 1\n";
/// Lines beyond what is still to be delivered, at which the file is written anew.
const REPEATED_MAX: usize = 20_000;

/// A removal, as the journal keeps it.
#[derive(Clone, Debug)]
pub(crate) enum Note {
    Key(EntryKey),
    Mark(Namespace, Mark),
    Matching(Namespace, Pattern),
}

/// The file. Clones are the same one.
#[derive(Clone, Debug)]
pub(crate) struct Journal(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    file: File,
    lines: usize,
    /// Why the last write failed; what came since may be missing.
    failed: Option<String>,
}

impl Journal {
    /// Opens or makes the file, and keeps others out. Also returns what it holds, and what was wrong with it.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when it can't be opened, is another process', or no journal.
    pub(crate) fn open(path: &Path) -> Result<(Journal, Vec<Note>, Option<String>)> {
        let refused = |why: String| {
            let message = format!("bus.journal is {}: {why}", path.display());
            Error::new(ErrorKind::Config, "build").message(message)
        };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(path).map_err(|error| refused(error.to_string()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(refused("another process or cache has it open; each needs its own".to_owned()));
            }
            Err(TryLockError::Error(error)) => return Err(refused(error.to_string())),
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(|error| refused(error.to_string()))?;
        let Some((notes, damage)) = parse(&bytes) else {
            return Err(refused("it is no journal, or of a later version; nothing was changed".to_owned()));
        };
        let state = State { file, lines: notes.len(), failed: None };
        let journal = Journal(Arc::new(Inner { path: path.to_owned(), state: Mutex::new(state) }));
        journal.rewrite(|| notes.clone()).map_err(|error| refused(error.to_string()))?;
        Ok((journal, notes, damage))
    }

    /// Keeps removals, durably. `all` tells everything that is still to be delivered, for a file that is written anew.
    /// Blocks.
    pub(crate) fn keep(&self, notes: &[Note], all: impl FnOnce() -> Vec<Note>) -> std::io::Result<()> {
        let is_long = {
            let mut state = self.state();
            state.lines += notes.len();
            state.lines > REPEATED_MAX || state.failed.is_some()
        };
        // A line that was half written must not stand in the way of later ones.
        if is_long {
            return self.rewrite(all);
        }
        let text: String = notes.iter().map(line).collect();
        let mut state = self.state();
        let written = state
            .file
            .seek(SeekFrom::End(0))
            .and_then(|_| state.file.write_all(text.as_bytes()))
            .and_then(|()| state.file.sync_data());
        state.failed = written.as_ref().err().map(ToString::to_string);
        written
    }

    /// Keeps what `all` tells and nothing else. Who keeps something has noted it for `all` before, so that nothing is
    /// lost in between. Blocks.
    pub(crate) fn rewrite(&self, all: impl FnOnce() -> Vec<Note>) -> std::io::Result<()> {
        let mut state = self.state();
        let notes = all();
        let text: String = notes.iter().map(line).collect();
        let mut write = || {
            if !notes.is_empty() {
                let aside = self.0.path.with_extension("new");
                let mut copy = File::create(&aside)?;
                copy.write_all(HEAD.as_bytes())?;
                copy.write_all(text.as_bytes())?;
                copy.sync_all()?;
                copy.lock()?;
                std::fs::rename(&aside, &self.0.path)?;
                sync_folder(&self.0.path)?;
                copy.seek(SeekFrom::End(0))?;
                state.file = copy;
                return Ok(());
            }
            state.file.set_len(0)?;
            state.file.seek(SeekFrom::Start(0))?;
            state.file.write_all(HEAD.as_bytes())?;
            state.file.sync_all()?;
            sync_folder(&self.0.path)
        };
        let written = write();
        state.lines = notes.len();
        state.failed = written.as_ref().err().map(ToString::to_string);
        written
    }

    /// Whether it holds anything.
    pub(crate) fn is_empty(&self) -> bool {
        self.state().lines == 0
    }

    /// Why it does not hold what it should.
    pub(crate) fn failure(&self) -> Option<String> {
        self.state().failed.as_ref().map(|why| format!("the journal {}: {why}", self.0.path.display()))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn sync_folder(path: &Path) -> std::io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

/// `<checksum> <kind> <namespace> <name in hex>`
fn line(note: &Note) -> String {
    let (kind, namespace, name) = match note {
        Note::Key(key) => ('r', key.namespace(), &key.as_bytes()[..]),
        Note::Mark(namespace, Mark::Tag(tag)) => ('t', namespace, tag.as_bytes()),
        Note::Mark(namespace, Mark::Clear) => ('c', namespace, &b""[..]),
        Note::Matching(namespace, pattern) => ('p', namespace, pattern.as_str().as_bytes()),
    };
    let mut text = format!("{kind} {namespace} ");
    for byte in name {
        text.push_str(&format!("{byte:02x}"));
    }
    format!("{:016x} {text}\n", xxh3_64(text.as_bytes()))
}

fn parse_line(line: &str) -> Option<Note> {
    let (checksum, text) = line.split_once(' ')?;
    if u64::from_str_radix(checksum, 16).ok()? != xxh3_64(text.as_bytes()) {
        return None;
    }
    let mut words = text.splitn(3, ' ');
    let (kind, namespace, name) = (words.next()?, Namespace::new(words.next()?).ok()?, words.next()?);
    let digits = name.as_bytes().chunks(2).map(|pair| {
        let digit = |at: usize| (*pair.get(at)? as char).to_digit(16);
        Some((digit(0)? << 4 | digit(1)?) as u8)
    });
    let name: Vec<u8> = digits.collect::<Option<_>>()?;
    match Change::parse(&namespace, kind.as_bytes(), &name, b"") {
        Change::Removed(key) => Some(Note::Key(key)),
        Change::Tag(tag) => Some(Note::Mark(namespace, Mark::Tag(tag))),
        Change::Cleared => Some(Note::Mark(namespace, Mark::Clear)),
        Change::Matching(pattern) => Some(Note::Matching(namespace, pattern)),
        _ => None,
    }
}

/// What a file holds and what is wrong with it; `None` for what is no journal.
fn parse(bytes: &[u8]) -> Option<(Vec<Note>, Option<String>)> {
    let Some(mut rest) = bytes.strip_prefix(HEAD.as_bytes()) else {
        // A file that was made and not yet begun.
        return HEAD.as_bytes().starts_with(bytes).then(|| (Vec::new(), None));
    };
    let (mut notes, mut damaged) = (Vec::new(), 0);
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let (line, after) = rest.split_at(end);
        rest = &after[1..];
        match std::str::from_utf8(line).ok().and_then(parse_line) {
            Some(note) => notes.push(note),
            None => damaged += 1,
        }
    }
    if damaged == 0 {
        return Some((notes, None));
    }
    let named: BTreeSet<Namespace> = notes.iter().map(Note::namespace).cloned().collect();
    notes.extend(named.into_iter().map(|namespace| Note::Mark(namespace, Mark::Clear)));
    let damage = format!(
        "{damaged} lines of the journal were damaged; the namespaces that the others name are cleared, and \
         any other namespace should be"
    );
    Some((notes, Some(damage)))
}

impl Note {
    fn namespace(&self) -> &Namespace {
        match self {
            Note::Key(key) => key.namespace(),
            Note::Mark(namespace, _) | Note::Matching(namespace, _) => namespace,
        }
    }
}

#[cfg(all(test, not(larder_shuttle)))]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn notes() -> Vec<Note> {
        let namespace = Namespace::new("n@tenant").unwrap();
        vec![
            Note::Key(EntryKey::new(&namespace, &("a b\n", 7)).unwrap()),
            Note::Mark(namespace.clone(), Mark::Tag("red wine".into())),
            Note::Mark(namespace.clone(), Mark::Clear),
            Note::Matching(namespace, Pattern::new("user:*").unwrap()),
        ]
    }

    fn texts(notes: &[Note]) -> Vec<String> {
        notes.iter().map(line).collect()
    }

    #[test]
    fn what_was_kept_is_there_again_until_it_is_rewritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let (journal, found, damage) = Journal::open(&path).unwrap();
        assert!(found.is_empty() && damage.is_none() && journal.is_empty());
        for note in notes() {
            journal.keep(&[note], || unreachable!()).unwrap();
        }
        assert!(Journal::open(&path).unwrap_err().to_string().contains("each needs its own"));
        drop(journal);
        let (journal, found, damage) = Journal::open(&path).unwrap();
        assert_eq!((texts(&found), damage), (texts(&notes()), None));
        journal.rewrite(Vec::new).unwrap();
        drop(journal);
        assert!(Journal::open(&path).unwrap().1.is_empty());
    }

    #[test]
    fn a_cut_loses_only_what_was_not_acknowledged_and_damage_clears() {
        let whole = format!("{HEAD}{}", texts(&notes()).concat());
        let ends: Vec<usize> = whole.match_indices('\n').map(|(at, _)| at + 1).collect();
        for cut in 0..=whole.len() {
            let (found, damage) = parse(&whole.as_bytes()[..cut]).unwrap();
            let expected = ends.iter().filter(|end| **end <= cut).count().saturating_sub(1);
            assert_eq!((found.len(), damage), (expected, None), "{cut}");
        }
        for at in HEAD.len()..whole.len() {
            let mut damaged = whole.clone().into_bytes();
            damaged[at] ^= 1;
            let (found, damage) = parse(&damaged).unwrap();
            let is_last_newline = at + 1 == whole.len();
            assert!(is_last_newline || damage.is_some(), "{at}");
            let clears = found.iter().filter(|note| matches!(note, Note::Mark(_, Mark::Clear))).count();
            assert!(is_last_newline || clears >= 1, "{at}");
        }
        assert!(parse(b"something else").is_none());
        assert!(parse(b"larder journal 2\n").is_none());
    }

    #[test]
    fn a_file_of_repetitions_is_written_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let (journal, ..) = Journal::open(&path).unwrap();
        let many = vec![notes()[0].clone(); REPEATED_MAX];
        journal.keep(&many, || unreachable!()).unwrap();
        journal.keep(&notes(), notes).unwrap();
        drop(journal);
        assert_eq!(texts(&Journal::open(&path).unwrap().1), texts(&notes()));
    }
}
