//! Errors as RFC 9457 problem documents. Every answer of 400 or more is one.

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Response, StatusCode, header};
use larder::ErrorKind;
use serde_json::{Map, Value, json};

/// What is told about a request that failed.
#[derive(Debug)]
pub(crate) struct Problem {
    kind: Kind,
    detail: String,
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// The kinds of problems. The name is the stable end of the `type`: `urn:larder:problem:<name>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    BadRequest,
    Unauthorized,
    Miss,
    NoSuchRoute,
    MethodNotAllowed,
    RequestTimeout,
    PreconditionFailed,
    TooLarge,
    UnsupportedMediaType,
    Misdirected,
    Internal,
    Unsupported,
    Overloaded,
    Unavailable,
    Timeout,
}

impl Kind {
    fn facts(self) -> (&'static str, StatusCode, &'static str) {
        match self {
            Kind::BadRequest => ("bad-request", StatusCode::BAD_REQUEST, "The request can't be understood"),
            Kind::Unauthorized => ("unauthorized", StatusCode::UNAUTHORIZED, "A valid token is needed"),
            Kind::Miss => ("miss", StatusCode::NOT_FOUND, "There is no valid entry under this key"),
            Kind::NoSuchRoute => ("no-such-route", StatusCode::NOT_FOUND, "There is nothing at this path"),
            Kind::MethodNotAllowed => {
                ("method-not-allowed", StatusCode::METHOD_NOT_ALLOWED, "The path doesn't take this method")
            }
            Kind::RequestTimeout => {
                ("request-timeout", StatusCode::REQUEST_TIMEOUT, "The body did not arrive in time")
            }
            Kind::PreconditionFailed => {
                ("precondition-failed", StatusCode::PRECONDITION_FAILED, "The entry is not what was expected")
            }
            Kind::TooLarge => ("too-large", StatusCode::PAYLOAD_TOO_LARGE, "Something is over its limit"),
            Kind::UnsupportedMediaType => (
                "unsupported-media-type",
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "The body is of a type or encoding that is not accepted",
            ),
            Kind::Misdirected => {
                ("misdirected", StatusCode::MISDIRECTED_REQUEST, "The request is addressed to another host")
            }
            Kind::Internal => ("internal", StatusCode::INTERNAL_SERVER_ERROR, "The server failed"),
            Kind::Unsupported => {
                ("unsupported", StatusCode::NOT_IMPLEMENTED, "The configured storage can't do this")
            }
            Kind::Overloaded => {
                ("overloaded", StatusCode::SERVICE_UNAVAILABLE, "Too much is under way at the moment")
            }
            Kind::Unavailable => {
                ("unavailable", StatusCode::SERVICE_UNAVAILABLE, "The storage can't do this at the moment")
            }
            Kind::Timeout => (
                "timeout",
                StatusCode::SERVICE_UNAVAILABLE,
                "The request took too long; it may have had an effect",
            ),
        }
    }

    fn status(self) -> StatusCode {
        self.facts().1
    }
}

impl Problem {
    pub(crate) fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Problem { kind, detail: detail.into(), headers: Vec::new() }
    }

    pub(crate) fn bad_request(detail: impl Into<String>) -> Self {
        Problem::new(Kind::BadRequest, detail)
    }

    #[must_use]
    pub(crate) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.kind.status()
    }

    pub(crate) fn detail(&self) -> &str {
        &self.detail
    }

    /// The document.
    pub(crate) fn to_json(&self) -> Value {
        let (name, status, title) = self.kind.facts();
        let mut document = Map::new();
        document.insert("type".to_owned(), json!(format!("urn:larder:problem:{name}")));
        document.insert("title".to_owned(), json!(title));
        document.insert("status".to_owned(), json!(status.as_u16()));
        document.insert("kind".to_owned(), json!(name));
        document.insert("detail".to_owned(), json!(self.detail));
        Value::Object(document)
    }

    pub(crate) fn into_response(self, request_id: &str) -> Response<Body> {
        let mut document = self.to_json();
        document["request_id"] = json!(request_id);
        let mut response = Response::new(Body::from(format!("{document}\n")));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        match self.kind {
            Kind::Overloaded | Kind::Unavailable | Kind::Timeout => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            Kind::Unauthorized => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"larder\""));
            }
            // What is left of the body is not read, so nothing else can follow on this connection.
            Kind::TooLarge | Kind::RequestTimeout => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        for (name, value) in self.headers {
            headers.insert(name, value);
        }
        response
    }
}

impl From<larder::Error> for Problem {
    fn from(error: larder::Error) -> Self {
        let kind = match error.kind() {
            ErrorKind::Key | ErrorKind::Config | ErrorKind::Tenant => Kind::BadRequest,
            ErrorKind::TooLarge => Kind::TooLarge,
            ErrorKind::Overloaded => Kind::Overloaded,
            ErrorKind::Timeout => Kind::Timeout,
            ErrorKind::Unavailable | ErrorKind::Full | ErrorKind::ReadOnly | ErrorKind::Closed => {
                Kind::Unavailable
            }
            ErrorKind::Unsupported => Kind::Unsupported,
            _ => Kind::Internal,
        };
        Problem::new(kind, error.to_string())
    }
}
