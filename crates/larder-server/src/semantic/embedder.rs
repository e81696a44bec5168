//! Texts embedded while the command runs, by what larder has built in or by a model in a local folder: batches side by
//! side, as many as there are processors.

use super::vectors::Embed;
use crate::commands::Failure;
use larder::semantic::Model;
use larder::semantic::embed::{Embedder, Local, LocalOptions, Ngrams};
use std::path::Path;
use std::sync::Arc;
use tokio::runtime::{self, Runtime};
use tokio::task::JoinSet;

/// Names the built-in embedder, where a folder could stand.
pub(super) const BUILT_IN: &str = "ngrams";

/// Texts that are embedded together. Larger batches are no faster, and the progress would jump.
const BATCH: usize = 32;

/// An embedder of the library's.
pub(super) struct Live {
    runtime: Runtime,
    embedder: Arc<dyn Embedder>,
}

impl Live {
    /// The built-in one, or the model in a folder.
    pub(super) fn open(name: &Path) -> Result<Live, Failure> {
        let embedder: Arc<dyn Embedder> = if name == Path::new(BUILT_IN) {
            Arc::new(Ngrams::new())
        } else if name.is_dir() {
            Arc::new(Local::open(name, &LocalOptions::default())?)
        } else {
            return Err(Failure::new(format!(
                "--embedder {} is no folder: give {BUILT_IN}, or the folder of a model, which larder semantic model \
                 add makes",
                name.display()
            )));
        };
        Ok(Live { runtime: runtime::Builder::new_current_thread().build()?, embedder })
    }
}

impl Embed for Live {
    fn model(&self) -> Model {
        self.embedder.model().clone()
    }

    fn embed(&self, texts: &[&str], embedded: &mut dyn FnMut(usize)) -> Result<Vec<Vec<f32>>, Failure> {
        let side_by_side = std::thread::available_parallelism().map_or(1, usize::from);
        self.runtime.block_on(async {
            let mut vectors = vec![Vec::new(); texts.len()];
            let mut batches = texts.chunks(BATCH).enumerate();
            let mut running = JoinSet::new();
            loop {
                while running.len() < side_by_side
                    && let Some((at, batch)) = batches.next()
                {
                    let batch: Vec<String> = batch.iter().map(|&text| text.to_owned()).collect();
                    let embedder = Arc::clone(&self.embedder);
                    running.spawn(async move {
                        let texts: Vec<&str> = batch.iter().map(String::as_str).collect();
                        (at, embedder.embed(&texts).await)
                    });
                }
                let Some(ended) = running.join_next().await else { return Ok(vectors) };
                let (at, found) = ended?;
                let found = found?;
                embedded(found.len());
                for (place, vector) in vectors[at * BATCH..].iter_mut().zip(found) {
                    *place = vector;
                }
            }
        })
    }
}
