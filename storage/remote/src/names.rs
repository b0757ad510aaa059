//! Names of objects. Each is created once and never changed; `docs/formats/object-store.md` has the list.

use treering_types::{TenantId, TimelineId};

use crate::generation::Generation;

/// Which life of a timeline id: Postgres's timeline numbers are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimelineLife {
    pub timeline: TimelineId,
    pub pg_tli: u32,
}

pub fn tenant_folder(tenant: TenantId) -> String {
    format!("{tenant}/")
}

pub fn claims_folder(tenant: TenantId) -> String {
    format!("{tenant}/claims/")
}

pub fn claim(tenant: TenantId, generation: Generation) -> String {
    format!("{tenant}/claims/{generation}")
}

pub fn indexes_folder(tenant: TenantId) -> String {
    format!("{tenant}/indexes/")
}

pub fn index(tenant: TenantId, generation: Generation, version: u64) -> String {
    format!("{tenant}/indexes/{}", index_file(generation, version))
}

pub fn index_file(generation: Generation, version: u64) -> String {
    format!("{generation}-{version:016x}")
}

pub fn timeline_folder(tenant: TenantId, life: TimelineLife) -> String {
    format!("{tenant}/{}", life_folder(life))
}

fn life_folder(TimelineLife { timeline, pg_tli }: TimelineLife) -> String {
    format!("{timeline}-{pg_tli:08x}/")
}

pub fn layer(tenant: TenantId, life: TimelineLife, generation: Generation, number: u64) -> String {
    format!("{}{generation}-{number:016x}.layer", timeline_folder(tenant, life))
}

pub fn manifest(
    tenant: TenantId,
    life: TimelineLife,
    generation: Generation,
    sequence: u64,
) -> String {
    format!("{}{generation}-{sequence:016x}.manifest", timeline_folder(tenant, life))
}

/// The log of all timelines of a tenant: the safekeepers' affair, `docs/formats/wal-archive.md`.
pub fn logs_folder(tenant: TenantId) -> String {
    format!("{tenant}/wal/")
}

pub fn log_folder(tenant: TenantId, life: TimelineLife) -> String {
    format!("{}{}", logs_folder(tenant), life_folder(life))
}

/// Generation and number of an object's file name: of an index, a layer or a manifest.
pub fn parse_numbered(file: &str) -> Option<(Generation, u64)> {
    let stem = file.strip_suffix(".layer").or_else(|| file.strip_suffix(".manifest"));
    let (generation, number) = stem.unwrap_or(file).split_once('-')?;
    Some((Generation(hex(generation)?), hex(number)?))
}

pub fn parse_claim(file: &str) -> Option<Generation> {
    hex(file).map(Generation)
}

/// The timeline of a folder directly below the tenant's; `None` for the others.
pub fn parse_life(folder: &str) -> Option<TimelineLife> {
    let (timeline, pg_tli) = folder.strip_suffix('/')?.split_once('-')?;
    let timeline = timeline.parse().ok()?;
    let pg_tli = u32::from_str_radix(pg_tli, 16).ok()?;
    let life = TimelineLife { timeline, pg_tli };
    (life_folder(life) == folder).then_some(life)
}

/// 16 lower-case hexadecimal digits.
fn hex(text: &str) -> Option<u64> {
    let number = u64::from_str_radix(text, 16).ok()?;
    (format!("{number:016x}") == text).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        let tenant = TenantId([1; 16]);
        let life = TimelineLife { timeline: TimelineId([2; 16]), pg_tli: 0x1a };
        let file = |name: String| name.rsplit('/').next().map(str::to_owned).unwrap_or_default();
        let layer = file(layer(tenant, life, Generation(3), 17));
        assert_eq!(layer, "0000000000000003-0000000000000011.layer");
        assert_eq!(parse_numbered(&layer), Some((Generation(3), 17)));
        let manifest = file(manifest(tenant, life, Generation(3), 18));
        assert_eq!(parse_numbered(&manifest), Some((Generation(3), 18)));
        assert_eq!(parse_numbered(&index_file(Generation(4), 1)), Some((Generation(4), 1)));
        assert_eq!(parse_claim(&file(claim(tenant, Generation(9)))), Some(Generation(9)));
        let folder = timeline_folder(tenant, life);
        assert_eq!(parse_life(folder.strip_prefix(&tenant_folder(tenant)).unwrap()), Some(life));
        assert_eq!(parse_numbered("3-11.layer"), None, "one spelling only");
        assert_eq!((parse_life("claims/"), parse_life("indexes/")), (None, None));
        let log = log_folder(tenant, life);
        assert_eq!(parse_life(log.strip_prefix(&logs_folder(tenant)).unwrap()), Some(life));
        assert_eq!(parse_life("wal/"), None);
    }
}
