//! Reading requests: bodies, queries and paths, with errors that name the field.

use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Path, Query, Request},
    http::request::Parts,
};
use serde::de::DeserializeOwned;
use treering_types::{TenantId, TimelineId};

use super::problem::Problem;

/// A JSON body; an empty one is `{}`. Unknown fields are refused by the type (`deny_unknown_fields`).
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let bytes = Bytes::from_request(request, state).await;
        let bytes = bytes.map_err(|error| Problem::invalid(None, error.to_string()))?;
        let text = if bytes.trim_ascii().is_empty() { b"{}" } else { bytes.trim_ascii() };
        serde_json::from_slice(text).map(Body).map_err(|error| {
            let message = error.to_string();
            Problem::invalid(field_in(&message).as_deref(), message)
        })
    }
}

/// A query string.
pub(super) struct Asked<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Asked<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Query::from_request_parts(parts, state).await {
            Ok(Query(query)) => Ok(Asked(query)),
            Err(error) => {
                let message = error.body_text();
                Err(Problem::invalid(field_in(&message).as_deref(), message))
            }
        }
    }
}

/// `/v1/tenant/{tenant}`
pub(super) struct TenantPath(pub(super) TenantId);

impl<S: Send + Sync> FromRequestParts<S> for TenantPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(tenant) = path::<String, S>(parts, state).await?;
        Ok(TenantPath(id("tenant_id", &tenant)?))
    }
}

/// `/v1/tenant/{tenant}/timeline/{timeline}`
pub(super) struct TimelinePath(pub(super) TenantId, pub(super) TimelineId);

impl<S: Send + Sync> FromRequestParts<S> for TimelinePath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path((tenant, timeline)) = path::<(String, String), S>(parts, state).await?;
        Ok(TimelinePath(id("tenant_id", &tenant)?, id("timeline_id", &timeline)?))
    }
}

async fn path<T, S>(parts: &mut Parts, state: &S) -> Result<Path<T>, Problem>
where
    T: DeserializeOwned + Send,
    S: Send + Sync,
{
    let path = Path::<T>::from_request_parts(parts, state).await;
    path.map_err(|error| Problem::invalid(None, error.body_text()))
}

fn id<T: std::str::FromStr<Err: ToString>>(field: &str, text: &str) -> Result<T, Problem> {
    text.parse().map_err(|error: T::Err| Problem::invalid(Some(field), error.to_string()))
}

/// The field that serde's message names first, between backticks.
fn field_in(message: &str) -> Option<String> {
    let (kind, rest) = message.split_once("field `")?;
    let is_about_field =
        kind.ends_with("unknown ") || kind.ends_with("missing ") || kind.ends_with("duplicate ");
    is_about_field.then(|| rest.split('`').next().map(str::to_owned)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_named() {
        let unknown = "unknown field `foo`, expected `bar` at line 1 column 5";
        assert_eq!(field_in(unknown).as_deref(), Some("foo"));
        assert_eq!(field_in("missing field `lsn`").as_deref(), Some("lsn"));
        assert_eq!(field_in("expected value at line 1 column 1"), None);
    }
}
