//! Figures of the JSONL tier beside raw appends, in one run on one machine: synced puts of 1 and 64 callers
//! beside one synced append each, unsynced puts beside unsynced appends, and reads beside raw `pread`.
//! `cargo run --release --example jsonl_figures --features jsonl`

#![allow(clippy::print_stdout, reason = "it prints figures")]

#[cfg(not(unix))]
fn main() {}

#[cfg(unix)]
#[tokio::main]
async fn main() -> Result<(), unix::Failed> {
    unix::run().await
}

#[cfg(unix)]
mod unix {
    use bytes::Bytes;
    use larder::backend::{Backend, Durability, JsonlBackend, JsonlOptions, Put};
    use larder::clock::NEVER_MS;
    use larder::entry::{EntryKind, Meta, Tags};
    use larder::key::{EntryKey, Namespace};
    use larder::stamp::Stamp;
    use std::fs::OpenOptions;
    use std::hint::black_box;
    use std::io::Write;
    use std::os::unix::fs::FileExt;
    use std::path::Path;
    use std::sync::Arc;
    use std::time::Instant;

    pub(crate) type Failed = Box<dyn std::error::Error + Send + Sync>;

    const BODY_BYTES: usize = 1024;
    /// What a line of such an entry takes.
    const LINE_BYTES: usize = 1600;
    const SYNCED: usize = 300;
    const UNSYNCED: usize = 10_000;

    pub(crate) async fn run() -> Result<(), Failed> {
        let folder = tempfile::tempdir_in(std::env::args().nth(1).unwrap_or_else(|| ".".to_owned()))?;
        raw(folder.path())?;
        let namespace = Namespace::new("bench")?;
        let keys: Arc<Vec<EntryKey>> = Arc::new(
            (0..UNSYNCED)
                .map(|i| EntryKey::new(&namespace, &format!("user:{i}")))
                .collect::<Result<_, _>>()?,
        );
        for (durability, callers, count) in [
            (Durability::Power, 1, SYNCED),
            (Durability::Power, 64, 10 * SYNCED),
            (Durability::Process, 1, UNSYNCED),
            (Durability::Process, 64, UNSYNCED),
        ] {
            let path = folder.path().join(format!("{durability:?}-{callers}"));
            let options = JsonlOptions { durability, ..JsonlOptions::new(path) };
            let backend = Arc::new(JsonlBackend::open(options).await?);
            let rate = puts(&backend, &keys, callers, count).await?;
            println!("larder put, {durability:?}, {callers:2} callers: {rate:9.0}/s");
            if durability == Durability::Process {
                let rate = gets(&backend, &keys, callers).await?;
                println!("larder get, {callers:2} callers:          {rate:9.0}/s");
            }
            backend.close().await?;
        }
        Ok(())
    }

    fn raw(folder: &Path) -> Result<(), Failed> {
        let path = folder.join("raw");
        let mut file = OpenOptions::new().create(true).append(true).read(true).open(path)?;
        let line = [b'x'; LINE_BYTES];
        let began = Instant::now();
        for _ in 0..SYNCED {
            file.write_all(&line)?;
            file.sync_data()?;
        }
        println!("raw append, synced:             {:9.0}/s", SYNCED as f64 / began.elapsed().as_secs_f64());
        let began = Instant::now();
        for _ in 0..UNSYNCED {
            file.write_all(&line)?;
        }
        println!("raw append:                     {:9.0}/s", UNSYNCED as f64 / began.elapsed().as_secs_f64());
        let mut bytes = [0; LINE_BYTES];
        let began = Instant::now();
        for i in 0..UNSYNCED {
            file.read_exact_at(&mut bytes, (i * 7919 % UNSYNCED * LINE_BYTES) as u64)?;
            black_box(&bytes);
        }
        println!("raw pread:                      {:9.0}/s", UNSYNCED as f64 / began.elapsed().as_secs_f64());
        Ok(())
    }

    async fn puts(
        backend: &Arc<JsonlBackend>,
        keys: &Arc<Vec<EntryKey>>,
        callers: usize,
        count: usize,
    ) -> Result<f64, Failed> {
        let began = Instant::now();
        let tasks: Vec<_> = (0..callers)
            .map(|caller| {
                let (backend, keys) = (backend.clone(), keys.clone());
                tokio::spawn(async move {
                    for key in keys[..count].iter().skip(caller).step_by(callers) {
                        let ticket = backend.ticket(key).await?;
                        let meta = Meta {
                            kind: EntryKind::Load,
                            stamp: Stamp::MIN,
                            created_ms: 0,
                            fresh_until_ms: NEVER_MS,
                            revalidate_until_ms: NEVER_MS,
                            gone_at_ms: NEVER_MS,
                            load_ms: 0,
                            is_negative: false,
                            tags: Tags::NONE,
                        };
                        let sealed = Bytes::from(vec![7; BODY_BYTES]);
                        backend.put(Put { key: key.clone(), meta, sealed, ticket }).await?;
                    }
                    Ok::<(), Failed>(())
                })
            })
            .collect();
        for task in tasks {
            task.await??;
        }
        Ok(count as f64 / began.elapsed().as_secs_f64())
    }

    async fn gets(
        backend: &Arc<JsonlBackend>,
        keys: &Arc<Vec<EntryKey>>,
        callers: usize,
    ) -> Result<f64, Failed> {
        let began = Instant::now();
        let tasks: Vec<_> = (0..callers)
            .map(|caller| {
                let (backend, keys) = (backend.clone(), keys.clone());
                tokio::spawn(async move {
                    for i in (caller..UNSYNCED).step_by(callers) {
                        black_box(backend.get(&keys[i * 7919 % UNSYNCED]).await?.found.is_ok());
                    }
                    Ok::<(), Failed>(())
                })
            })
            .collect();
        for task in tasks {
            task.await??;
        }
        Ok(UNSYNCED as f64 / began.elapsed().as_secs_f64())
    }
}
