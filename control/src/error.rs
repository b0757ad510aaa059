//! The one error object of the REST API and its mapping to HTTP.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};

/// What every failed request answers with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// A stable word.
    pub code: String,
    /// One sentence for people.
    pub message: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub field: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hint: Option<String>,
}

impl ApiError {
    pub fn new(code: &str, message: impl Into<String>) -> ApiError {
        ApiError { code: code.to_owned(), message: message.into(), field: None, hint: None }
    }

    pub fn invalid(field: &str, message: impl Into<String>) -> ApiError {
        ApiError { field: Some(field.to_owned()), ..ApiError::new("invalid", message) }
    }

    pub fn not_found(message: impl Into<String>) -> ApiError {
        ApiError::new("not_found", message)
    }

    pub fn conflict(message: impl Into<String>) -> ApiError {
        ApiError::new("conflict", message)
    }

    pub fn refused(message: impl Into<String>) -> ApiError {
        ApiError::new("refused", message)
    }

    /// A peer that cannot be asked at all, as opposed to one that answers "unavailable".
    pub fn unreachable(message: impl Into<String>) -> ApiError {
        ApiError::new("unreachable", message)
    }

    pub fn internal(error: impl std::fmt::Display) -> ApiError {
        ApiError::new("internal", error.to_string())
    }

    pub fn hint(self, hint: impl Into<String>) -> ApiError {
        ApiError { hint: Some(hint.into()), ..self }
    }

    /// True when the same call may succeed later without anybody doing anything: a peer is down, or coming up.
    pub fn is_passing(&self) -> bool {
        self.status() == StatusCode::SERVICE_UNAVAILABLE
    }

    fn status(&self) -> StatusCode {
        match self.code.as_str() {
            "invalid" => StatusCode::BAD_REQUEST,
            "not_found" => StatusCode::NOT_FOUND,
            "conflict" => StatusCode::CONFLICT,
            "refused" => StatusCode::FORBIDDEN,
            "gone" => StatusCode::GONE,
            "timeout" | "not_yet" => StatusCode::GATEWAY_TIMEOUT,
            "unreachable" | "unavailable" | "busy" | "shutdown" => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status(), Json(self)).into_response()
    }
}
