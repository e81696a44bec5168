//! A sentence encoder in a local folder, on threads of the runtime's that may block.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use larder_encoder::{Encoder, EncoderOptions};
use tokio::sync::Semaphore;

use super::Embedder;
use crate::error::{Error, ErrorKind, Result};
use crate::runtime;
use crate::semantic::Model;

/// How a local model is run.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LocalOptions {
    /// How the model is loaded.
    pub encoder: EncoderOptions,
    /// Batches that are encoded at the same time, each on a thread of its own. Default: the number of processors.
    pub threads: usize,
    /// Batches that may wait for a thread; more are refused (`Overloaded`). Default: 256, about a second with MiniLM.
    pub waiting_max: usize,
}

impl Default for LocalOptions {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        LocalOptions { encoder: EncoderOptions::default(), threads, waiting_max: 256 }
    }
}

/// An embedder over a BERT-class model in a folder.
#[derive(Debug)]
pub struct Local {
    model: Model,
    encoder: Arc<Encoder>,
    threads: Arc<Semaphore>,
    waiting: AtomicUsize,
    waiting_max: usize,
}

impl Local {
    /// Loads the model in `dir`; blocks for some tenths of a second.
    ///
    /// # Errors
    /// `Config` with what [`Encoder::open`] says, and for 0 threads.
    pub fn open(dir: &Path, options: &LocalOptions) -> Result<Self> {
        if options.threads == 0 {
            return Err(Error::new(ErrorKind::Config, "open").message("threads is 0; 1 and more are allowed"));
        }
        let encoder = Encoder::open_with(dir, &options.encoder).map_err(|problem| {
            Error::new(ErrorKind::Config, "open").message("semantic model").source(problem)
        })?;
        let model = Model {
            name: encoder.name().to_owned(),
            version: encoder.version().to_owned(),
            dimensions: encoder.dimensions(),
        };
        Ok(Local {
            model,
            encoder: Arc::new(encoder),
            threads: Arc::new(Semaphore::new(options.threads.min(Semaphore::MAX_PERMITS))),
            waiting: AtomicUsize::new(0),
            waiting_max: options.waiting_max,
        })
    }
}

/// Leaves the queue, also when its caller does.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[async_trait]
impl Embedder for Local {
    fn model(&self) -> &Model {
        &self.model
    }

    async fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>> {
        let permit = match Arc::clone(&self.threads).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                let waiting = Waiting(&self.waiting);
                if self.waiting.fetch_add(1, Ordering::Relaxed) >= self.waiting_max {
                    drop(waiting);
                    let message = format!("{} batches wait for the encoder", self.waiting_max);
                    return Err(Error::new(ErrorKind::Overloaded, "embed").message(message));
                }
                let threads = Arc::clone(&self.threads);
                let permit = threads.acquire_owned().await;
                drop(waiting);
                permit.expect("the semaphore is never closed")
            }
        };
        let encoder = Arc::clone(&self.encoder);
        let texts: Vec<String> = texts.iter().map(|&text| text.to_owned()).collect();
        // The permit goes with the work: a caller that leaves does not make room for more of it.
        let work = move || {
            let vectors = encoder.encode_batch(&texts);
            drop(permit);
            vectors
        };
        let vectors = runtime::current().spawn_blocking(work).await;
        let vectors = vectors.map_err(|problem| {
            let kind = if problem.is_panic() { ErrorKind::Panicked } else { ErrorKind::Closed };
            Error::new(kind, "embed").message("the encoder's thread ended")
        })?;
        vectors.map_err(|problem| Error::new(ErrorKind::Codec, "embed").source(problem))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../larder-encoder/tests/golden/tiny")
    }

    #[tokio::test]
    async fn a_batch_is_encoded_as_by_the_encoder() {
        let local = Local::open(&tiny(), &LocalOptions::default()).unwrap();
        let encoder = Encoder::open(&tiny()).unwrap();
        let texts = ["a bill", "", "another card"];
        assert_eq!(local.embed(&texts).await.unwrap(), encoder.encode_batch(&texts).unwrap());
        assert_eq!((local.model().name.as_str(), local.model().dimensions), ("tiny", 48));
        assert_eq!(local.embed(&[]).await.unwrap(), Vec::<Vec<f32>>::new());
    }

    #[tokio::test]
    async fn what_waits_is_bounded_and_leaves_when_dropped() {
        let options = LocalOptions { threads: 1, waiting_max: 1, ..LocalOptions::default() };
        let local = Local::open(&tiny(), &options).unwrap();
        let busy = Arc::clone(&local.threads).try_acquire_owned().unwrap();
        for _ in 0..3 {
            let mut first = local.embed(&["a"]);
            assert!(poll_once(&mut first).await.is_none());
            assert_eq!(local.embed(&["b"]).await.unwrap_err().kind(), ErrorKind::Overloaded);
            drop(first);
        }
        drop(busy);
        assert_eq!(local.embed(&["c"]).await.unwrap().len(), 1);
        assert_eq!(local.waiting.load(Ordering::Relaxed), 0);
    }

    async fn poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        std::future::poll_fn(|context| {
            std::task::Poll::Ready(match std::pin::Pin::new(&mut *future).poll(context) {
                std::task::Poll::Ready(output) => Some(output),
                std::task::Poll::Pending => None,
            })
        })
        .await
    }

    #[test]
    fn a_folder_without_a_model_is_a_setting_that_is_wrong() {
        let error = Local::open(Path::new("/nowhere"), &LocalOptions::default()).unwrap_err();
        assert!(error.kind() == ErrorKind::Config && error.to_string().contains("/nowhere"), "{error}");
    }
}
