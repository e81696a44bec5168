//! `larder serve`.

use super::{Failure, Outcome};
use crate::config::{LogFormat, Settings, Size, environment};
use crate::data::{DataFolder, Occupied, database_in};
use crate::gateway::Gateway;
use crate::http::{self, App, Ended};
use crate::store::{self, OnFault};
use clap::Args;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Address to listen on; port 0 takes a free one [default: 127.0.0.1:7070]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Folder of the database, made if it is missing [default: larder-data]
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
    /// Settings in TOML, YAML or JSON; LARDER_CONFIG works too
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// File with bearer tokens, one per line
    #[arg(long, value_name = "FILE")]
    tokens_file: Option<String>,
    /// Stand before this OpenAI-compatible API and keep its answers, such as `https://api.openai.com/v1`
    #[arg(long, value_name = "URL")]
    upstream: Option<String>,
    /// Refuse to start when the database can't be opened
    #[arg(long)]
    require_data: bool,
    /// Check the settings, print them without secrets, and end
    #[arg(long)]
    check: bool,
}

impl Serve {
    pub(crate) fn run(self) -> Result<Outcome, Failure> {
        let settings = self.settings()?;
        if self.check {
            check_tiers(&settings)?;
            writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(&settings)?)?;
            return Ok(Outcome::Done);
        }
        start_log(settings.log);
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let ended = runtime.block_on(serve(settings));
        // Whoever was to be waited for has been.
        runtime.shutdown_background();
        ended
    }

    fn settings(&self) -> Result<Settings, Failure> {
        let file = self.config.clone().or_else(|| std::env::var_os("LARDER_CONFIG").map(PathBuf::from));
        let flags = [
            ("--listen", "listen", self.listen.clone()),
            ("--data", "data", self.data.clone()),
            ("--tokens-file", "tokens_file", self.tokens_file.clone()),
            ("--upstream", "gateway.upstream.url", self.upstream.clone()),
            ("--require-data", "require_data", self.require_data.then(|| "true".to_owned())),
        ];
        let flags = flags.into_iter().filter_map(|(flag, setting, value)| Some((flag, setting, value?)));
        Ok(Settings::load(file.as_deref(), environment(), flags)?)
    }
}

/// Opens the tiers that are on no disk of this host, which finds values that are out of their bounds. Whether
/// their servers answer is not asked.
fn check_tiers(settings: &Settings) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let _entered = runtime.enter();
    for tier in settings.tiers.iter().flatten().filter(|tier| tier.is_shared()) {
        match tier.open() {
            Err(error) if error.kind() == larder::ErrorKind::Config => {
                return Err(tier.refusal_of(&error).into());
            }
            _ => {}
        }
    }
    Ok(())
}

/// Logs go to the error output; `LARDER_LOG` chooses what: "info", "larder=debug" ...
fn start_log(format: LogFormat) {
    let filter = EnvFilter::try_from_env("LARDER_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match format {
        LogFormat::Text => log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init(),
        LogFormat::Json => log.json().try_init(),
    };
    if let Err(error) = started {
        eprintln!("error: the log can't be started: {error}");
    }
}

async fn serve(settings: Settings) -> Result<Outcome, Failure> {
    // Before anything is opened, so that no signal finds the process with work and without a handler.
    let mut signals = Signals::new()?;
    let (folder, fault) = match DataFolder::for_server(&settings.data) {
        Ok(folder) => (Some(folder), None),
        Err(Occupied::Server(other)) => return Err(occupied(&settings, other)),
        Err(Occupied::Failed(error)) => (None, Some(format!("{}: {error}", settings.data.display()))),
    };
    if let Some(folder) = &folder {
        settings.encryption.check_folder(folder.path()).map_err(Failure::new)?;
        if settings.encryption.is_on() {
            settings.encryption.record(folder.path())?;
        }
    }
    let store = store::open(&settings, folder.as_ref().map(DataFolder::path), OnFault::GoOn).await?;
    let faults: Vec<String> = fault.into_iter().chain(store.faults.clone()).collect();
    if !faults.is_empty() {
        let fault = faults.join("; ");
        let what = if settings.tiers.is_none() { "the database" } else { "a tier" };
        if settings.require_data {
            return Err(Failure::new(format!("{what} can't be opened, and require_data is set: {fault}")));
        }
        if settings.tiers.is_none() {
            tracing::error!(
                fault,
                "THE DATABASE CAN'T BE OPENED: serving from memory alone, nothing will survive the process"
            );
        } else {
            tracing::error!(
                fault,
                "A TIER CAN'T BE OPENED: serving without it, and it won't hear of removals"
            );
        }
    }
    if let Some(folder) = &folder {
        folder.remember_config(settings.file.as_deref().filter(|_| settings.tiers.is_some()))?;
    }

    let listener = TcpListener::bind(settings.listen)
        .await
        .map_err(|error| Failure::new(format!("listen: {} can't be taken: {error}", settings.listen)))?;
    let address = listener.local_addr()?;
    let gateway = match settings.gateway.is_on() {
        true => {
            let gateway =
                Gateway::new(settings.gateway.clone(), store.cache.clone()).map_err(Failure::new)?;
            Some(Arc::new(gateway))
        }
        false => None,
    };
    let app = Arc::new(App::new(store.clone(), settings.clone(), faults.clone(), gateway));
    let router = app.router().map_err(Failure::new)?;
    if let Some(folder) = &folder
        && let Err(error) = folder.announce(address)
    {
        tracing::warn!(%error, "commands won't find this server by its data folder");
    }
    let data = match (&folder, &settings.tiers) {
        (Some(_), Some(tiers)) if tiers.is_empty() => "memory alone".to_owned(),
        (Some(_), Some(tiers)) => {
            let names: Vec<&str> = tiers.iter().map(|tier| &*tier.name).collect();
            format!("tiers {}", names.join(", "))
        }
        (Some(folder), None) if faults.is_empty() => database_in(folder.path()).display().to_string(),
        _ => "NO DATA FOLDER".to_owned(),
    };
    let access = if settings.tokens.is_empty() { "no token needed" } else { "token needed" };
    // The one line of the normal output: scripts read the address from it.
    writeln!(
        std::io::stdout(),
        "larder {} on http://{address} | data: {data} | memory: {} | body: {} | {access}",
        env!("CARGO_PKG_VERSION"),
        settings.l1.bytes_max,
        Size(settings.http.body_bytes_max.0),
    )?;

    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let signalled = async {
        signals.next().await;
        let _ = stop.send(());
        signals.next().await;
    };
    let finish = async {
        let stopped = async { stopped.await.unwrap_or_default() };
        if http::serve(&app, router, listener, stopped).await == Ended::CutOff {
            tracing::warn!("some requests were cut off at http.shutdown_timeout");
        }
        store.cache.close().await
    };
    // The first signal stops the serving, a second one everything.
    let closed = tokio::select! {
        closed = finish => closed,
        () = signalled => return Err(Failure::new("stopped at once by a second signal")),
    };
    drop(folder);
    closed?;
    tracing::info!("stopped; nothing acknowledged is lost");
    Ok(Outcome::Done)
}

/// The signals that ask a process to end.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! { _ = self.interrupt.recv() => {}, _ = self.terminate.recv() => {} }
    }
}

fn occupied(settings: &Settings, other: Option<crate::data::Announcement>) -> Failure {
    let who = match other {
        Some(other) => format!("the server at http://{} (process {})", other.address, other.pid),
        None => "another process".to_owned(),
    };
    Failure::new(format!("{} is in use by {who}; give this one another --data", settings.data.display()))
}
