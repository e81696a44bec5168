//! The temporary folder of a replay: it goes when the replay ends, fails, or is interrupted by Ctrl-C.

use std::future::poll_fn;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Mutex, Once, PoisonError, mpsc};

/// What Ctrl-C has to remove.
static FOLDERS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// The exit code that shells give an interrupted program.
const INTERRUPTED: i32 = 130;

/// A folder that exists as long as this does.
#[derive(Debug)]
pub(super) struct Folder(Option<tempfile::TempDir>);

impl Folder {
    pub(super) fn new() -> io::Result<Self> {
        static WATCH: Once = Once::new();
        WATCH.call_once(watch);
        let folder = tempfile::Builder::new().prefix("larder-replay-").tempdir()?;
        folders(|folders| folders.push(folder.path().to_owned()));
        Ok(Self(Some(folder)))
    }

    pub(super) fn path(&self) -> &Path {
        self.0.as_ref().expect("only `remove` takes it, and that consumes the folder").path()
    }

    /// Removes it and says whether that went well, which dropping it does not.
    pub(super) fn remove(mut self) -> io::Result<()> {
        let folder = self.0.take().expect("only `remove` takes it, and that consumes the folder");
        folders(|folders| folders.retain(|path| path != folder.path()));
        folder.close()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Some(folder) = &self.0 {
            folders(|folders| folders.retain(|path| path != folder.path()));
        }
    }
}

fn folders<R>(with: impl FnOnce(&mut Vec<PathBuf>) -> R) -> R {
    with(&mut FOLDERS.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Waits for Ctrl-C in a thread of its own, because a replay that only hits never gives way to a signal.
/// Returns when the thread listens, so that there is no folder before. Where none can be had, the folder stays
/// after Ctrl-C, and no worse.
fn watch() {
    let (listens, listening) = mpsc::channel();
    let wait = move || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_io().build() else { return };
        let interrupted = runtime.block_on(async {
            let mut interrupt = pin!(tokio::signal::ctrl_c());
            poll_fn(|cx| {
                let polled = interrupt.as_mut().poll(cx);
                // The first poll has installed the handler.
                let _ = listens.send(());
                polled
            })
            .await
        });
        if interrupted.is_ok() {
            folders(|folders| folders.iter().for_each(|folder| drop(std::fs::remove_dir_all(folder))));
            std::process::exit(INTERRUPTED);
        }
    };
    if std::thread::Builder::new().name("larder-interrupt".to_owned()).spawn(wait).is_ok() {
        // A thread that ended without listening has dropped its end.
        let _ = listening.recv();
    }
}
