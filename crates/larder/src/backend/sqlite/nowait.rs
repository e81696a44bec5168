//! Lets one thread read through SQLite without waiting for the disk.
//!
//! Three things of SQLite's unix layer can be replaced through its table of system calls: here `pread`,
//! which answers "would block" instead of waiting while [`reading`] runs on this thread, and `open`, which
//! leaves out the access times while [`opening`] runs, because writing one waits for the journal. All other
//! threads, and other users of the same SQLite, get what the system gives.
//!
//! A page counts as cached if `cachestat` says so (Linux 6.5): `RWF_NOWAIT` alone starts a read-ahead for
//! a page that is not, and that may wait for a full device queue.

use rusqlite::ffi;
use std::cell::Cell;
use std::ffi::{c_char, c_int, c_void};
use std::sync::OnceLock;

/// Most bytes that one inline read takes from the page cache of the system.
const BYTES_MAX: usize = 256 * 1024;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Plain,
    Opening,
    /// So many bytes may still be read.
    Cached {
        left: usize,
    },
}

thread_local! {
    static MODE: Cell<Mode> = const { Cell::new(Mode::Plain) };
    /// The system, or the file system, can't say what is cached.
    static IS_UNSUPPORTED: Cell<bool> = const { Cell::new(false) };
    #[cfg(test)]
    static IS_UNCACHED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `read`; whatever it asks of the disk that is not in memory fails.
///
/// The second part is whether the system has no means to tell.
pub(super) fn reading<T>(read: impl FnOnce() -> T) -> (T, bool) {
    IS_UNSUPPORTED.set(false);
    let _plain = Restore::enter(Mode::Cached { left: BYTES_MAX });
    let result = read();
    (result, IS_UNSUPPORTED.get())
}

/// Runs `open`; the files that it opens keep no access time.
pub(super) fn opening<T>(open: impl FnOnce() -> T) -> T {
    let _plain = Restore::enter(Mode::Opening);
    open()
}

/// On this thread, from now on nothing counts as cached, or everything as it is.
#[cfg(test)]
pub(super) fn pretend_uncached(is_uncached: bool) {
    IS_UNCACHED.set(is_uncached);
}

struct Restore(Mode);

impl Restore {
    fn enter(mode: Mode) -> Self {
        Restore(MODE.replace(mode))
    }
}

impl Drop for Restore {
    fn drop(&mut self) {
        MODE.set(self.0);
    }
}

type Open = unsafe extern "C" fn(*const c_char, c_int, c_int) -> c_int;
type Pread = unsafe extern "C" fn(c_int, *mut c_void, usize, i64) -> isize;

/// What was in SQLite's table before.
#[derive(Clone, Copy)]
struct Replaced {
    open: Open,
    pread: Pread,
}

static REPLACED: OnceLock<Option<Replaced>> = OnceLock::new();

/// Puts the two calls into SQLite's table, once per process. Whether they are there.
pub(super) fn install() -> bool {
    REPLACED.get_or_init(replace).is_some()
}

fn replace() -> Option<Replaced> {
    // SAFETY: the name is a C string; SQLite initialises itself, and its own file systems are static.
    let vfs = unsafe { ffi::sqlite3_vfs_find(c"unix".as_ptr()) };
    if vfs.is_null() {
        return None;
    }
    // SAFETY: not null, and nothing writes to the fields of a registered file system.
    let (version, get, set) = unsafe { ((*vfs).iVersion, (*vfs).xGetSystemCall, (*vfs).xSetSystemCall) };
    let (Some(get), Some(set)) = (get, set) else { return None };
    // The two pointers exist since version 3.
    if version < 3 {
        return None;
    }
    // Which of the two a build uses depends on the C library; on 64 bits they have the same type.
    // SAFETY: `vfs` is the file system that `get` belongs to, and the names are C strings.
    let found = unsafe {
        let pread =
            [c"pread64", c"pread"].into_iter().find_map(|name| Some((name, get(vfs, name.as_ptr())?)));
        pread.zip(get(vfs, c"open".as_ptr()))
    };
    let ((name, pread), open) = found?;
    // SAFETY: SQLite's documentation of the table gives these entries exactly these types (os_unix.c calls
    // them as such), and `off_t` has 64 bits here.
    let replaced = unsafe {
        Replaced {
            open: std::mem::transmute::<unsafe extern "C" fn(), Open>(open),
            pread: std::mem::transmute::<unsafe extern "C" fn(), Pread>(pread),
        }
    };
    // SAFETY: as above, the other way round. The replacements live as long as the process. They do what the
    // replaced calls do unless this module's own functions run on the same thread, so that it doesn't
    // matter to another thread which of the two it finds: the table's entries are pointers, written whole.
    let are_set = unsafe {
        set(vfs, name.as_ptr(), Some(std::mem::transmute::<Pread, unsafe extern "C" fn()>(pread_cached)))
            == ffi::SQLITE_OK
            && set(
                vfs,
                c"open".as_ptr(),
                Some(std::mem::transmute::<Open, unsafe extern "C" fn()>(open_quietly)),
            ) == ffi::SQLITE_OK
    };
    are_set.then_some(replaced)
}

/// What was replaced, and what stands in for it while [`replace`] has not returned: libc's own.
fn replaced() -> Replaced {
    unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: c_int) -> c_int {
        // SAFETY: the caller's arguments, passed on.
        unsafe { libc::open(path, flags, mode) }
    }
    unsafe extern "C" fn pread(file: c_int, into: *mut c_void, bytes: usize, offset: i64) -> isize {
        // SAFETY: the caller's arguments, passed on.
        unsafe { libc::pread(file, into, bytes, offset) }
    }
    REPLACED.get().copied().flatten().unwrap_or(Replaced { open, pread })
}

unsafe extern "C" fn open_quietly(path: *const c_char, flags: c_int, mode: c_int) -> c_int {
    let open = replaced().open;
    if MODE.get() == Mode::Opening {
        // SAFETY: the caller's arguments, with one flag more.
        let file = unsafe { open(path, flags | libc::O_NOATIME, mode) };
        // Only the owner may ask for it.
        if file >= 0 || errno() != libc::EPERM {
            return file;
        }
    }
    // SAFETY: the caller's arguments, passed on.
    unsafe { open(path, flags, mode) }
}

unsafe extern "C" fn pread_cached(file: c_int, into: *mut c_void, bytes: usize, offset: i64) -> isize {
    let Mode::Cached { left } = MODE.get() else {
        // SAFETY: the caller's arguments, passed on.
        return unsafe { (replaced().pread)(file, into, bytes, offset) };
    };
    #[cfg(test)]
    let is_cached = !IS_UNCACHED.get() && is_cached(file, offset, bytes);
    #[cfg(not(test))]
    let is_cached = is_cached(file, offset, bytes);
    if bytes > left || !is_cached {
        set_errno(libc::EAGAIN);
        return -1;
    }
    MODE.set(Mode::Cached { left: left - bytes });
    let part = libc::iovec { iov_base: into, iov_len: bytes };
    // SAFETY: `into` has room for `bytes`, as the caller of a pread promises, and `part` outlives the call.
    // On 64 bits the whole offset is in the fourth argument, and the fifth is ignored.
    let read =
        unsafe { libc::syscall(libc::SYS_preadv2, file, &raw const part, 1, offset, 0, libc::RWF_NOWAIT) };
    if read < 0 && [libc::EOPNOTSUPP, libc::ENOSYS, libc::EINVAL, libc::EPERM].contains(&errno()) {
        IS_UNSUPPORTED.set(true);
    }
    read as isize
}

/// Whether the system has every page of the range in memory.
fn is_cached(file: c_int, offset: i64, bytes: usize) -> bool {
    /// `cachestat` of Linux 6.5; the same number on all architectures that came after 2019's renumbering.
    const SYS_CACHESTAT: libc::c_long = 451;
    #[repr(C)]
    struct Range {
        offset: u64,
        bytes: u64,
    }
    #[repr(C)]
    #[derive(Default)]
    struct Counts {
        cached: u64,
        dirty: u64,
        written_back: u64,
        evicted: u64,
        recently_evicted: u64,
    }
    let range = Range { offset: offset as u64, bytes: bytes as u64 };
    let mut counts = Counts::default();
    // SAFETY: both structs have the layout of the kernel's (`linux/mman.h`) and outlive the call.
    let result = unsafe { libc::syscall(SYS_CACHESTAT, file, &raw const range, &raw mut counts, 0) };
    if result != 0 {
        IS_UNSUPPORTED.set(true);
        return false;
    }
    // SAFETY: it only asks for a constant.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) }.max(1) as u64;
    let end = range.offset + range.bytes;
    counts.cached >= end.div_ceil(page) - range.offset / page
}

fn errno() -> c_int {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

fn set_errno(error: c_int) {
    // SAFETY: the pointer to this thread's own errno, which is always valid.
    unsafe { *libc::__errno_location() = error }
}
