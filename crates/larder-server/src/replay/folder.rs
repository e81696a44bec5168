//! The temporary folder of a replay, and Ctrl-C, which must not leave it behind.
//!
//! SQLite's threads make files in it for as long as they run, so it can only go after they have ended: Ctrl-C
//! asks the replay to stop, and the replay closes its stack. The second one doesn't wait for that.

use std::future::poll_fn;
use std::io;
use std::path::Path;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError, mpsc};
use tempfile::TempDir;

/// The exit code that shells give an interrupted program.
pub(super) const INTERRUPTED: u8 = 130;

/// How many folders there are. Whoever makes one or exits holds the lock.
static FOLDERS: Mutex<usize> = Mutex::new(0);
static IS_INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Whether Ctrl-C has asked to stop.
pub(super) fn is_interrupted() -> bool {
    IS_INTERRUPTED.load(Ordering::Relaxed)
}

/// A folder that exists as long as this does.
#[derive(Debug)]
pub(super) struct Folder {
    folder: TempDir,
    _counted: Counted,
}

#[derive(Debug)]
struct Counted;

impl Folder {
    pub(super) fn new() -> io::Result<Self> {
        static WATCH: Once = Once::new();
        WATCH.call_once(watch);
        let mut folders = folders();
        let folder = tempfile::Builder::new().prefix("larder-replay-").tempdir()?;
        *folders += 1;
        Ok(Self { folder, _counted: Counted })
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Removes it and says whether that went well, which dropping it does not.
    pub(super) fn remove(self) -> io::Result<()> {
        self.folder.close()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        *folders() -= 1;
    }
}

fn folders() -> MutexGuard<'static, usize> {
    FOLDERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for Ctrl-C in a thread of its own, because a replay that only hits never gives way to a signal.
/// Returns when the thread listens, so that there is no folder before. Where none can be had, the folder stays
/// after Ctrl-C, and no worse.
fn watch() {
    let (listens, listening) = mpsc::channel();
    let wait = move || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_io().build() else { return };
        loop {
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
            if interrupted.is_err() {
                return;
            }
            let folders = folders();
            if *folders == 0 || IS_INTERRUPTED.swap(true, Ordering::Relaxed) {
                std::process::exit(i32::from(INTERRUPTED));
            }
        }
    };
    if std::thread::Builder::new().name("larder-interrupt".to_owned()).spawn(wait).is_ok() {
        // A thread that ended without listening has dropped its end.
        let _ = listening.recv();
    }
}
