//! Texts into vectors: by hashed letters ([`Ngrams`], which needs nothing) or by a model in a local folder
//! ([`Local`], feature `semantic-local`).

#[cfg(feature = "semantic-local")]
mod local;
mod ngrams;

use async_trait::async_trait;

use super::Model;
use crate::error::Result;
#[cfg(feature = "semantic-local")]
pub use local::{Local, LocalOptions};
pub use ngrams::{NgramCounts, Ngrams};

/// Turns texts into vectors that lie near each other if the texts mean the same.
#[async_trait]
pub trait Embedder: Send + Sync + 'static {
    /// What the vectors are made by. It does not change while the embedder lives: one that learns is another one
    /// afterwards, with another version, or an index would compare what can't be compared.
    fn model(&self) -> &Model;

    /// The vectors of `texts`, in their order, each of [`Model::dimensions`] finite numbers that are not all zero.
    ///
    /// # Errors
    /// `Timeout`, `Unavailable`, `Overloaded` and others of what the embedder asks. Then there is no vector for any
    /// of the texts.
    ///
    /// # Cancellation
    /// Leaves nothing behind but work that is under way.
    async fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>>;
}
