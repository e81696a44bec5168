//! The listening socket and its connections, until a signal says stop.

use super::App;
use super::connection::{Phase, TimedStream};
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// How the serving ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Every request under way was answered.
    Drained,
    /// Some were cut off when their time was over.
    CutOff,
}

/// Serves connections until `stop` is ready, then finishes what is under way.
pub(crate) async fn serve(
    app: &Arc<App>,
    router: Router,
    listener: TcpListener,
    stop: impl Future<Output = ()>,
) -> Ended {
    let limits = &app.settings.http;
    let places = Arc::new(Semaphore::new(limits.connections_max.min(Semaphore::MAX_PERMITS)));
    let graceful = GracefulShutdown::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        let accept = async {
            // The semaphore is never closed.
            let place = Arc::clone(&places).acquire_owned().await.ok()?;
            Some((place, listener.accept().await))
        };
        let accepted = tokio::select! {
            () = &mut stop => break,
            accepted = accept => accepted,
        };
        let Some((place, accepted)) = accepted else { break };
        match accepted {
            Ok((stream, _)) => {
                let served = connection(app, router.clone(), stream, &graceful);
                tokio::spawn(async move {
                    served.await;
                    drop(place);
                });
            }
            Err(error) => {
                // Out of file descriptors, mostly: the connection stays queued, so trying again at once
                // would only spin.
                tracing::warn!(%error, "a connection can't be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    app.is_stopping.store(true, Relaxed);
    drop(listener);
    tracing::info!(connections = graceful.count(), "stopping; finishing what is under way");
    match tokio::time::timeout(limits.shutdown_timeout, graceful.shutdown()).await {
        Ok(()) => Ended::Drained,
        Err(_) => Ended::CutOff,
    }
}

fn connection(
    app: &Arc<App>,
    router: Router,
    stream: TcpStream,
    graceful: &GracefulShutdown,
) -> impl Future<Output = ()> + Send + 'static {
    let limits = &app.settings.http;
    // Small answers must not wait for acknowledgements.
    let _ = stream.set_nodelay(true);
    let phase = Phase::default();
    let timed = TimedStream::new(stream, phase.clone(), limits.header_timeout, limits.idle_timeout);
    let service = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let guard = phase.request();
        let answer = tower_call(router.clone(), request);
        async move {
            let response = answer.await;
            drop(guard);
            response
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        // From the end of one request to the head of the next; the head itself has its own, shorter limit.
        .header_read_timeout(limits.idle_timeout)
        .max_headers(100)
        .serve_connection(TokioIo::new(timed), service);
    let served = graceful.watch(served);
    let app = Arc::clone(app);
    async move {
        app.metrics.connections.fetch_add(1, Relaxed);
        if let Err(error) = served.await {
            tracing::debug!(%error, "connection ended");
        }
        app.metrics.connections.fetch_sub(1, Relaxed);
    }
}

fn tower_call(
    router: Router,
    request: hyper::Request<hyper::body::Incoming>,
) -> impl Future<Output = Result<axum::response::Response, std::convert::Infallible>> + Send {
    use tower_service::Service;
    let mut router = router;
    router.call(request.map(axum::body::Body::new))
}
