//! Computes that fetch their pages on first touch: whether one does, and what its files hold as Postgres reads them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use treering_pgfmt::{relpath, version::PgMajor};
use treering_types::{Fork, PAGE_SIZE, RelTag};

use crate::{
    Treering,
    blocks::{Relation, Tally, compare, relations},
};

/// `pg_default`.
const PG_DEFAULT: u32 = 1663;

/// What this node has of a branch.
pub fn branch_dir(treering: &Treering, branch: &str) -> PathBuf {
    let branch = treering.json(&["branch", "get", branch]);
    let timeline = branch["timeline_id"].as_str().expect("an id");
    treering.data_dir().join("agent/computes").join(timeline)
}

/// The directory of the start that runs.
pub fn run_dir(treering: &Treering, branch: &str) -> PathBuf {
    let entries = fs::read_dir(branch_dir(treering, branch)).expect("a compute");
    let mut runs = entries.flatten().map(|entry| entry.path());
    runs.find(|path| path.join("pgdata").is_dir()).expect("a running compute")
}

/// The log of the branch's computes.
pub fn postgres_log(treering: &Treering, branch: &str) -> String {
    fs::read_to_string(branch_dir(treering, branch).join("postgres.log")).unwrap_or_default()
}

/// The postmaster of a branch.
pub fn postmaster(treering: &Treering, branch: &str) -> i32 {
    let pid = treering.json(&["branch", "get", branch])["pid"].as_i64();
    i32::try_from(pid.expect("a running compute")).expect("a pid")
}

/// Whether the compute has the page library under it and files to fetch.
pub fn is_lazy(treering: &Treering, branch: &str) -> bool {
    let maps = format!("/proc/{}/maps", postmaster(treering, branch));
    let has_library = fs::read_to_string(maps).expect("maps").contains("libtreering_pages");
    let has_record = run_dir(treering, branch).join("pages.json").is_file();
    assert_eq!(has_library, has_record, "half a lazy start");
    has_library
}

/// Bytes on the disk below a compute's data directory: what was fetched or written.
pub fn disk_bytes(treering: &Treering, branch: &str) -> u64 {
    let base = run_dir(treering, branch).join("pgdata/base");
    let said = std::process::Command::new("du").args(["-s", "-B1"]).arg(base).output().expect("du");
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    text.split_whitespace().next().and_then(|word| word.parse().ok()).expect("a number")
}

/// Databases that can be connected to.
pub fn databases(treering: &Treering, branch: &str) -> Vec<String> {
    let names = "SELECT datname FROM pg_database WHERE datallowconn ORDER BY 1";
    treering.sql(branch, names).lines().map(str::to_owned).collect()
}

/// Every permanent relation of every database, as Postgres reads its files.
pub struct Snapshot {
    major: PgMajor,
    relations: Vec<(String, Relation)>,
    forks: BTreeMap<RelTag, Vec<u8>>,
}

impl Snapshot {
    /// Reads all files through Postgres, past its buffers: with nobody at work, after a checkpoint.
    pub async fn through_postgres(treering: &Treering, branch: &str, major: PgMajor) -> Snapshot {
        let mut snapshot = Snapshot { major, relations: Vec::new(), forks: BTreeMap::new() };
        let mut seen = BTreeSet::new();
        for database in databases(treering, branch) {
            let mut config = treering.config(branch);
            config.dbname(&database);
            let (client, connection) =
                config.connect(tokio_postgres::NoTls).await.expect("connect to a database");
            tokio::spawn(connection);
            for relation in relations(treering, branch, major, &database) {
                if !seen.insert(relation.tag) {
                    continue;
                }
                for fork in [Fork::Main, Fork::VisibilityMap] {
                    let tag = relation.tag.with_fork(fork);
                    let path = relpath::path_of(major, tag, 0);
                    let read = "SELECT pg_read_binary_file($1, 0, 1000000000, true)";
                    let row = client.query_one(read, &[&path]).await;
                    let row = row.unwrap_or_else(|error| panic!("{path}: {error:?}"));
                    if let Some(bytes) = row.get::<_, Option<Vec<u8>>>(0) {
                        snapshot.forks.insert(tag, bytes);
                    }
                }
                snapshot.relations.push((database.clone(), relation));
            }
        }
        snapshot
    }

    /// Compares with the files of a compute that fetched all of its pages before it started. Visibility maps of the
    /// databases in `made_by_wal` may differ: they are logged as empty pages.
    pub fn compare_with_files(
        &self,
        what: &str,
        treering: &Treering,
        branch: &str,
        made_by_wal: &[&str],
    ) {
        let pgdata = run_dir(treering, branch).join("pgdata");
        let mut tally = Tally::default();
        let mut wrong = Vec::new();
        for (database, relation) in &self.relations {
            for fork in [Fork::Main, Fork::VisibilityMap] {
                let tag = relation.tag.with_fork(fork);
                let Some(lazy) = self.forks.get(&tag) else { continue };
                let may_differ =
                    fork == Fork::VisibilityMap && made_by_wal.contains(&database.as_str());
                let eager = fs::read(pgdata.join(relpath::path_of(self.major, tag, 0)));
                let eager = eager.unwrap_or_default();
                if lazy.len() < eager.len() {
                    wrong.push(format!("{} {tag}: cut to {}", relation.name, lazy.len()));
                }
                for (block, lazy) in lazy.chunks(PAGE_SIZE).enumerate() {
                    let outcome = match eager.chunks_exact(PAGE_SIZE).nth(block) {
                        _ if lazy.len() != PAGE_SIZE => Err("half a block".to_owned()),
                        Some(eager) => compare(relation.rmid, fork, block as u32, lazy, eager),
                        None if lazy.iter().all(|byte| *byte == 0) => Ok("trailing zero page"),
                        None => Err("missing in the eager one".to_owned()),
                    };
                    match outcome {
                        Ok(same) => tally.count(same),
                        Err(_) if may_differ && tag.tablespace == PG_DEFAULT => {
                            tally.count("visibility map of a WAL_LOG database");
                        }
                        Err(why) => {
                            let name = &relation.name;
                            wrong.push(format!("{name} {tag} block {block}: {why}"));
                        }
                    }
                }
            }
        }
        eprintln!("{what}: {tally:?}");
        let shown = wrong[..wrong.len().min(20)].join("\n");
        assert!(wrong.is_empty(), "{what}: {} blocks differ:\n{shown}", wrong.len());
        assert!(
            tally.0.get("equal under masks").is_some_and(|count| *count > 5000),
            "{what}: too little was compared: {tally:?}"
        );
    }
}
