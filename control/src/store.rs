//! The embedded metadata store: projects and branches as JSON values in one redb file.
//!
//! Every write is one durable transaction. Keys: project id; `<project>/<branch>`; `<node>/<tenant>/<timeline>`.

use std::path::Path;

use anyhow::Context;
use redb::{Database, ReadableTable, StorageBackend, TableDefinition, backends::InMemoryBackend};
use serde::{Serialize, de::DeserializeOwned};

use crate::model::{Branch, LeftLog, Project};

const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const PROJECTS: TableDefinition<&str, &[u8]> = TableDefinition::new("projects");
const BRANCHES: TableDefinition<&str, &[u8]> = TableDefinition::new("branches");
/// Logs of deleted timelines that a safekeeper has still to delete.
const LEFT_LOGS: TableDefinition<&str, &[u8]> = TableDefinition::new("left_logs");
/// The layout of this file. A higher number than ours is refused.
const FORMAT: u64 = 1;

/// The store. Calls block for one fsync at most.
pub struct Store {
    db: Database,
}

impl Store {
    /// Opens or creates the file at `path`.
    ///
    /// # Errors
    /// A file of a newer format, a file another process holds, corruption.
    pub fn open(path: &Path) -> anyhow::Result<Store> {
        let db = Database::create(path).with_context(|| format!("open {}", path.display()))?;
        Store::with(db, path)
    }

    fn with(db: Database, path: &Path) -> anyhow::Result<Store> {
        let write = db.begin_write()?;
        {
            let mut meta = write.open_table(META)?;
            let found = meta.get("format")?.map(|v| v.value());
            match found {
                Some(format) if format > FORMAT => anyhow::bail!(
                    "{} is of format {format}, newer than this version knows ({FORMAT})",
                    path.display()
                ),
                Some(_) => {}
                None => drop(meta.insert("format", FORMAT)?),
            }
            write.open_table(PROJECTS)?;
            write.open_table(BRANCHES)?;
            write.open_table(LEFT_LOGS)?;
        }
        write.commit()?;
        Ok(Store { db })
    }

    /// The store at `path` as it was when it was last written, read into memory: the file is not touched. Nothing may have it open.
    ///
    /// # Errors
    /// A file that cannot be read, of a newer format, corruption.
    pub fn read_only(path: &Path) -> anyhow::Result<Store> {
        let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
        let backend = InMemoryBackend::new();
        backend.set_len(bytes.len() as u64)?;
        backend.write(0, &bytes)?;
        let db = Database::builder()
            .create_with_backend(backend)
            .with_context(|| format!("open {}", path.display()))?;
        Store::with(db, path)
    }

    pub fn project(&self, id: &str) -> anyhow::Result<Option<Project>> {
        self.get(PROJECTS, id)
    }

    pub fn projects(&self) -> anyhow::Result<Vec<Project>> {
        self.list(PROJECTS, "")
    }

    pub fn put_project(&self, project: &Project) -> anyhow::Result<()> {
        self.put(PROJECTS, &project.id, project)
    }

    pub fn branch(&self, project: &str, name: &str) -> anyhow::Result<Option<Branch>> {
        self.get(BRANCHES, &format!("{project}/{name}"))
    }

    /// All branches of a project, in name order, those being deleted too.
    pub fn branches(&self, project: &str) -> anyhow::Result<Vec<Branch>> {
        self.list(BRANCHES, &format!("{project}/"))
    }

    pub fn put_branch(&self, project: &str, branch: &Branch) -> anyhow::Result<()> {
        self.put(BRANCHES, &format!("{project}/{}", branch.name), branch)
    }

    pub fn remove_branch(&self, project: &str, name: &str) -> anyhow::Result<()> {
        let write = self.db.begin_write()?;
        write.open_table(BRANCHES)?.remove(format!("{project}/{name}").as_str())?;
        Ok(write.commit()?)
    }

    pub fn left_logs(&self) -> anyhow::Result<Vec<LeftLog>> {
        self.list(LEFT_LOGS, "")
    }

    pub fn put_left_log(&self, left: &LeftLog) -> anyhow::Result<()> {
        self.put(LEFT_LOGS, &left.key(), left)
    }

    pub fn remove_left_log(&self, left: &LeftLog) -> anyhow::Result<()> {
        let write = self.db.begin_write()?;
        write.open_table(LEFT_LOGS)?.remove(left.key().as_str())?;
        Ok(write.commit()?)
    }

    fn get<T: DeserializeOwned>(
        &self,
        table: TableDefinition<&str, &[u8]>,
        key: &str,
    ) -> anyhow::Result<Option<T>> {
        let table = self.db.begin_read()?.open_table(table)?;
        let value = table.get(key)?;
        Ok(value.map(|v| serde_json::from_slice(v.value())).transpose()?)
    }

    fn list<T: DeserializeOwned>(
        &self,
        table: TableDefinition<&str, &[u8]>,
        prefix: &str,
    ) -> anyhow::Result<Vec<T>> {
        let table = self.db.begin_read()?.open_table(table)?;
        let mut found = Vec::new();
        for entry in table.range(prefix..)? {
            let (key, value) = entry?;
            if !key.value().starts_with(prefix) {
                break;
            }
            found.push(serde_json::from_slice(value.value())?);
        }
        Ok(found)
    }

    fn put<T: Serialize>(
        &self,
        table: TableDefinition<&str, &[u8]>,
        key: &str,
        value: &T,
    ) -> anyhow::Result<()> {
        let write = self.db.begin_write()?;
        write.open_table(table)?.insert(key, serde_json::to_vec(value)?.as_slice())?;
        Ok(write.commit()?)
    }
}
