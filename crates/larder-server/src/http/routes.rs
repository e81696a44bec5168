//! The routes, read from the OpenAPI document: what it doesn't list does not exist, and what it lists must
//! have an operation here or the server does not start.

use super::problem::{Kind, Problem};
use super::{App, entries, gateway, handle, health, listing, many, reports};
use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, Request, Response, header};
use axum::routing::{MethodFilter, MethodRouter, on};
use serde_json::Value;
use std::sync::Arc;

/// The document that clients get at `/v1/openapi.json`.
pub(crate) const OPENAPI: &str = include_str!("openapi.json");

macro_rules! operations {
    ($($variant:ident = $name:literal),* $(,)?) => {
        /// What a request asks for; its name is the `operationId` and the metrics' label.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum Operation { $($variant),* }

        impl Operation {
            const ALL: &[Operation] = &[$(Operation::$variant),*];

            pub(crate) fn name(self) -> &'static str {
                match self { $(Operation::$variant => $name),* }
            }
        }
    };
}

operations! {
    GetEntry = "getEntry",
    HeadEntry = "headEntry",
    PutEntry = "putEntry",
    DeleteEntry = "deleteEntry",
    GetEntryByQuery = "getEntryByQuery",
    HeadEntryByQuery = "headEntryByQuery",
    PutEntryByQuery = "putEntryByQuery",
    DeleteEntryByQuery = "deleteEntryByQuery",
    ExplainEntry = "explainEntry",
    ExplainEntryByQuery = "explainEntryByQuery",
    ListKeys = "listKeys",
    RunBatch = "runBatch",
    Invalidate = "invalidate",
    ReportEntry = "reportEntry",
    GetReports = "getReports",
    ListStandings = "listStandings",
    ListNamespaces = "listNamespaces",
    GetStats = "getStats",
    GetOpenApi = "getOpenApi",
    GetHealth = "getHealth",
    GetReady = "getReady",
    GetMetrics = "getMetrics",
    // A path of the API that the gateway stands before.
    Gateway = "gateway",
    // No route of the document.
    Unknown = "unknown",
}

impl Operation {
    /// Whether it is answered to everybody: what says nothing about what is cached.
    pub(crate) fn is_public(self) -> bool {
        matches!(self, Operation::GetHealth | Operation::GetReady | Operation::GetOpenApi)
    }

    fn is_documented(self) -> bool {
        !matches!(self, Operation::Gateway | Operation::Unknown)
    }

    /// Whether something may be gone afterwards.
    pub(crate) fn removes(self) -> bool {
        use Operation::*;
        matches!(self, PutEntry | PutEntryByQuery | DeleteEntry | DeleteEntryByQuery | RunBatch | Invalidate)
    }

    pub(crate) async fn run(self, app: &App, request: Request<Body>) -> Result<Response<Body>, Problem> {
        use Operation::*;
        match self {
            GetEntry | HeadEntry | GetEntryByQuery | HeadEntryByQuery => entries::get(app, request).await,
            PutEntry | PutEntryByQuery => entries::put(app, request).await,
            DeleteEntry | DeleteEntryByQuery => entries::delete(app, request).await,
            ExplainEntry | ExplainEntryByQuery => entries::explain(app, request).await,
            ListKeys => listing::keys(app, request).await,
            RunBatch => many::batch(app, request).await,
            Invalidate => many::invalidate(app, request).await,
            ReportEntry => reports::report(app, request).await,
            GetReports => reports::history(app, request).await,
            ListStandings => reports::standings(app, request).await,
            ListNamespaces => listing::namespaces(app).await,
            GetStats => listing::stats(app).await,
            GetHealth => health::health(app, request).await,
            GetReady => health::ready(app, request).await,
            GetMetrics => Ok(app.metrics_response().await),
            GetOpenApi => {
                let mut response = Response::new(Body::from(OPENAPI));
                let json = HeaderValue::from_static("application/json");
                response.headers_mut().insert(header::CONTENT_TYPE, json);
                Ok(response)
            }
            Gateway | Unknown => Err(unknown(&request)),
        }
    }
}

fn unknown(request: &Request<Body>) -> Problem {
    let path = request.uri().path();
    let is_empty_key = path.starts_with("/v1/") && path.ends_with('/') && path.split('/').count() == 5;
    Problem::new(
        Kind::NoSuchRoute,
        if is_empty_key {
            "the path ends before the key; the empty key is written ?key="
        } else {
            "GET /v1/openapi.json lists what there is"
        },
    )
}

/// The router of the document.
///
/// # Errors
/// Names what the document and the operations don't agree on.
pub(crate) fn router(app: &Arc<App>) -> Result<Router, String> {
    let document: Value = serde_json::from_str(OPENAPI).map_err(|error| error.to_string())?;
    let paths = document["paths"].as_object().ok_or("the document has no paths")?;
    let mut missing: Vec<Operation> =
        Operation::ALL.iter().copied().filter(|operation| operation.is_documented()).collect();
    let mut router = Router::new();
    for (path, item) in paths {
        let mut methods = MethodRouter::new();
        let mut allowed = Vec::new();
        for (method, described) in item.as_object().into_iter().flatten() {
            let Some(filter) = filter(method) else { continue };
            let id = described["operationId"].as_str().unwrap_or_default();
            let at = missing.iter().position(|operation| operation.name() == id);
            let operation =
                missing.remove(at.ok_or_else(|| format!("{id:?} is no operation, or stands twice"))?);
            methods = methods.merge(on(filter, handler(app, operation, None)));
            allowed.push(method.to_ascii_uppercase());
        }
        let refusal = handler(app, Operation::Unknown, Some(allowed.join(", ")));
        // A key is the rest of the path, slashes included.
        let pattern = path.replace("{key}", "{*key}");
        router = router.route(&pattern, methods.fallback(refusal));
    }
    if let Some(operation) = missing.first() {
        return Err(format!("the document lacks {}", operation.name()));
    }
    let unknown = handler(app, Operation::Unknown, None);
    let app = Arc::clone(app);
    Ok(router.fallback(move |request: Request<Body>| -> Answer {
        match &app.gateway {
            Some(gateway) if gateway::serves(request.uri().path()) => {
                let (app, gateway) = (Arc::clone(&app), Arc::clone(gateway));
                Box::pin(async move { gateway::handle(&app, &gateway, request).await })
            }
            _ => unknown(request),
        }
    }))
}

fn filter(method: &str) -> Option<MethodFilter> {
    Some(match method {
        "get" => MethodFilter::GET,
        "head" => MethodFilter::HEAD,
        "put" => MethodFilter::PUT,
        "post" => MethodFilter::POST,
        "delete" => MethodFilter::DELETE,
        _ => return None,
    })
}

type Answer = std::pin::Pin<Box<dyn Future<Output = Response<Body>> + Send>>;

/// Answers an operation, or, with the methods that are allowed instead, refuses the method.
fn handler(
    app: &Arc<App>,
    operation: Operation,
    allowed: Option<String>,
) -> impl Fn(Request<Body>) -> Answer + Clone + Send + Sync + 'static {
    let app = Arc::clone(app);
    let allowed: Option<Arc<str>> = allowed.map(Arc::from);
    move |request| {
        let (app, allowed) = (Arc::clone(&app), allowed.clone());
        Box::pin(async move { handle(&app, operation, request, allowed.as_deref()).await })
    }
}
