//! Stores on the disk behind one small trait, so that a case of [`sqlite`](crate::sqlite) or
//! [`disk`](crate::disk) is written once. To compare another store, implement [`Store`], or give
//! [`larder::Larder`] a way to open its backend, and add a [`Maker`] to the case's list.

use std::error::Error;
use std::path::Path;

pub mod cases;
pub mod larder;
pub mod peers;

pub type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// A store as the cases see it. Keys are text, values bytes.
pub trait Store: Send + Sync {
    /// Shows the value to `see`, without a copy where the store can; whether there was one.
    fn get(&self, key: &str, see: &mut dyn FnMut(&[u8])) -> Result<bool>;

    /// Writes a value, and returns when it is as durable as the store makes it.
    fn put(&self, key: &str, value: &[u8]) -> Result<()>;

    /// Reads many, the way that costs least; how many there were.
    fn get_many(&self, keys: &[String], see: &mut dyn FnMut(&[u8])) -> Result<usize> {
        keys.iter().try_fold(0, |found, key| Ok(found + usize::from(self.get(key, see)?)))
    }

    /// Writes many, the way that costs least.
    fn fill(&self, keys: &[String], value: &[u8]) -> Result<()> {
        keys.iter().try_for_each(|key| self.put(key, value))
    }

    /// Each caller puts its keys one after another, all callers at once.
    fn put_from(&self, callers: &[Vec<String>], value: &[u8]) -> Result<()> {
        std::thread::scope(|scope| {
            let put = |keys: &Vec<String>| keys.iter().try_for_each(|key| self.put(key, value));
            let threads: Vec<_> = callers.iter().map(|keys| scope.spawn(move || put(keys))).collect();
            threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a caller panicked")?)
        })
    }

    /// Writes what is pending and frees the files. Dropping is enough for most.
    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

/// What an acknowledged write is meant to survive.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// A power loss: it is synced first.
    Synced,
    /// At most the end of the process.
    Unsynced,
}

/// How a subject's store is opened in a folder of its own.
#[derive(Clone, Copy)]
pub struct Maker {
    pub name: &'static str,
    pub durability: Durability,
    pub open: fn(&Path) -> Result<Box<dyn Store>>,
}

impl Maker {
    pub fn new(
        name: &'static str,
        durability: Durability,
        open: fn(&Path) -> Result<Box<dyn Store>>,
    ) -> Self {
        Maker { name, durability, open }
    }
}
