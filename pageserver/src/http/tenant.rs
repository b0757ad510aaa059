//! `/v1/tenant`

use axum::{Json, extract::State, http::StatusCode};
use serde::Deserialize;
use treering_engine::TimelineSize;
use treering_pgfmt::version::PgMajor;
use treering_types::TenantId;

use super::{
    Shared,
    body::{Body, TenantPath},
    problem::Problem,
    views::TenantView,
};

const PG_VERSION_DEFAULT: u32 = 15;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewTenant {
    /// Drawn at random when absent.
    tenant_id: Option<TenantId>,
    pg_version: Option<u32>,
}

pub(super) async fn create(
    State(service): Shared,
    Body(new): Body<NewTenant>,
) -> Result<(StatusCode, Json<TenantView>), Problem> {
    let id = new.tenant_id.unwrap_or_else(|| TenantId(rand::random()));
    let major = PgMajor::from_number(new.pg_version.unwrap_or(PG_VERSION_DEFAULT));
    let major = major.map_err(|error| Problem::invalid(Some("pg_version"), error.to_string()))?;
    let tenant = service.create_tenant(id, major).await?;
    Ok((StatusCode::CREATED, Json(tenant.info().into())))
}

pub(super) async fn list(State(service): Shared) -> Json<Vec<TenantView>> {
    Json(service.engine.tenants().iter().map(|tenant| tenant.info().into()).collect())
}

pub(super) async fn detail(
    State(service): Shared,
    TenantPath(id): TenantPath,
) -> Result<Json<TenantView>, Problem> {
    Ok(Json(service.engine.tenant(id)?.info().into()))
}

/// Where the bytes of each timeline go, and who pins them. Reads all layer files of the tenant, some of them several times.
pub(super) async fn size(
    State(service): Shared,
    TenantPath(id): TenantPath,
) -> Result<Json<Vec<TimelineSize>>, Problem> {
    let tenant = service.engine.tenant(id)?;
    Ok(Json(service.blocking(move || tenant.sizes()).await?))
}

pub(super) async fn delete(
    State(service): Shared,
    TenantPath(id): TenantPath,
) -> Result<StatusCode, Problem> {
    service.delete_tenant(id).await?;
    Ok(StatusCode::NO_CONTENT)
}
