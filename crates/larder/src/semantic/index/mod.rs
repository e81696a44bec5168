//! The nearest vectors to a given one, within a partition: what one scope (tenant, model, system prompt, parameters)
//! stored. Partitions lie apart, so that nothing of one is ever looked at for another.

mod kernels;
mod rows;
mod scan;
mod snapshot;

use super::Model;
use crate::error::{Error, ErrorKind, Result};
pub use scan::{Scan, ScanOptions};

/// Whose entries these are: a hash of the scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Partition(pub [u8; 16]);

/// An entry that was found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Near {
    /// The entry.
    pub id: u64,
    /// The cosine of the two vectors, in [-1, 1].
    pub similarity: f32,
}

/// Vectors by partition and id, searched while they change. Vectors need not have length 1: directions are compared.
///
/// Every call is synchronous and short (a search of 100,000 entries takes some hundred microseconds); a vector that is
/// refused leaves the index as it was.
pub trait VectorIndex: Send + Sync + 'static {
    /// What the vectors are made by. The caller gives none of another model, which only their length could show.
    fn model(&self) -> &Model;

    /// Stores `vector` for `id`, in place of one that was there.
    ///
    /// # Errors
    /// `Config` if its length is not the model's; `Codec` if a number is not finite, or all are zero; `Full` if the
    /// index is: remove what is worth least, then try again.
    fn insert(&self, partition: Partition, id: u64, vector: &[f32]) -> Result<()>;

    /// Removes `id`; whether it was there.
    fn remove(&self, partition: Partition, id: u64) -> bool;

    /// Removes all of a partition; how many there were.
    fn remove_partition(&self, partition: Partition) -> usize;

    /// The nearest at most `count` entries that are no less similar than `similarity_min`, the nearest first; of equal
    /// ones the lower id first.
    ///
    /// # Errors
    /// `Config` and `Codec` as for [`insert`](Self::insert); `Config` for a `count` of 0 or above 1,000, or a
    /// `similarity_min` that is not a number.
    fn search(
        &self,
        partition: Partition,
        query: &[f32],
        count: usize,
        similarity_min: f32,
    ) -> Result<Vec<Near>>;

    /// Entries in a partition.
    fn partition_len(&self, partition: Partition) -> usize;

    /// Entries in all partitions.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Vectors longer than any model's.
const DIMENSIONS_MAX: usize = 8192;
/// Of a model's name and of its version.
const NAME_BYTES_MAX: usize = 4096;
const COUNT_MAX: usize = 1000;

/// `vector`, scaled to length 1.
fn unit(vector: &[f32], model: &Model, operation: &'static str) -> Result<Vec<f32>> {
    if vector.len() != model.dimensions {
        let message = format!("a vector of {} numbers in an index of {model}", vector.len());
        return Err(Error::new(ErrorKind::Config, operation).message(message));
    }
    if let Some(at) = vector.iter().position(|x| !x.is_finite()) {
        let message = format!("number {at} of the vector is not finite");
        return Err(Error::new(ErrorKind::Codec, operation).message(message));
    }
    // Squares of large or tiny numbers leave the range of f32.
    let length = vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    if length == 0.0 {
        return Err(Error::new(ErrorKind::Codec, operation)
            .message("the vector is all zeros, which has no direction"));
    }
    Ok(vector.iter().map(|&x| (f64::from(x) / length) as f32).collect())
}
