//! Errors over HTTP: the one place where an [`ErrorKind`] becomes a status.
//!
//! The body is `{code, message, field, hint}`: `code` is a stable word for programs, `message` a sentence for people,
//! `field` names the part of the request that is wrong, if it is one. Media type `application/problem+json`.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use treering_engine::EngineError;
use treering_types::ErrorKind;

use super::views;
use crate::error::ServiceError;

/// An error as it is sent.
#[derive(Debug, Serialize)]
pub struct Problem {
    #[serde(skip)]
    status: StatusCode,
    code: &'static str,
    message: String,
    field: Option<String>,
    hint: Option<String>,
}

impl Problem {
    /// A request that is wrong in `field`.
    pub fn invalid(field: Option<&str>, message: impl Into<String>) -> Problem {
        let (status, code) = status_of(ErrorKind::Invalid);
        let field = field.map(str::to_owned);
        Problem { status, code, message: message.into(), field, hint: None }
    }

    pub fn not_found(message: &str) -> Problem {
        let (status, code) = status_of(ErrorKind::NotFound);
        Problem { status, code, message: message.to_owned(), field: None, hint: None }
    }

    pub fn method_not_allowed() -> Problem {
        let status = StatusCode::METHOD_NOT_ALLOWED;
        let message = "this path does not know the method".to_owned();
        Problem { status, code: "method_not_allowed", message, field: None, hint: None }
    }
}

/// Status and code of each kind.
fn status_of(kind: ErrorKind) -> (StatusCode, &'static str) {
    match kind {
        ErrorKind::NotFound => (StatusCode::NOT_FOUND, "not_found"),
        ErrorKind::Gone => (StatusCode::GONE, "gone"),
        ErrorKind::NotYet => (StatusCode::TOO_EARLY, "not_yet"),
        ErrorKind::Conflict => (StatusCode::CONFLICT, "conflict"),
        ErrorKind::Fenced => (StatusCode::PRECONDITION_FAILED, "fenced"),
        ErrorKind::Busy => (StatusCode::TOO_MANY_REQUESTS, "busy"),
        ErrorKind::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
        ErrorKind::Shutdown => (StatusCode::SERVICE_UNAVAILABLE, "shutdown"),
        ErrorKind::Corrupt => (StatusCode::INTERNAL_SERVER_ERROR, "corrupt"),
        ErrorKind::Io => (StatusCode::INTERNAL_SERVER_ERROR, "io"),
        ErrorKind::Invalid => (StatusCode::BAD_REQUEST, "invalid"),
    }
}

impl From<ServiceError> for Problem {
    fn from(error: ServiceError) -> Problem {
        let (status, code) = status_of(error.kind());
        if status.is_server_error() {
            tracing::warn!(%error, code, "request failed");
        }
        let message = error.to_string();
        let (field, hint) = match error {
            ServiceError::Invalid { field, hint, message: _ } => (field, hint),
            ServiceError::Engine(EngineError::BelowCutOff { earliest, earliest_time, .. }) => {
                let time = earliest_time.and_then(views::timestamp);
                let time = time.map(|time| format!(", {time}")).unwrap_or_default();
                (None, Some(format!("the earliest is {earliest}{time}")))
            }
            _ => (None, None),
        };
        Problem { status, code, message, field, hint }
    }
}

impl From<EngineError> for Problem {
    fn from(error: EngineError) -> Problem {
        ServiceError::from(error).into()
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let media_type = HeaderValue::from_static("application/problem+json");
        let mut response = (self.status, Json(self)).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, media_type);
        response
    }
}
