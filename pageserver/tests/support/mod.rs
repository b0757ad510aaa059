//! Stock Postgres for tests: unpack a base backup, give it its first WAL, start it, talk to it.

// Each test binary uses its part.
#![allow(dead_code)]

use std::{
    fs,
    io::Write,
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use treering_engine::EngineOptions;
use treering_pageserver::{
    PageserverOptions, Safekeeper,
    basebackup::{self, Contents, START_FILE, Start},
    live::LiveTimeline,
    service::Service,
};
use treering_pgfmt::{
    control::ControlFile,
    version::PgMajor,
    wal::encode::{self, Origin, SyntheticCheckpoint},
};
use treering_types::{Lsn, TenantId, TimelineId, WAL_SEGMENT_SIZE};

pub const BIN: &str = "/usr/lib/postgresql/15/bin";
const START_DEADLINE: Duration = Duration::from_secs(30);

const HBA: &str = "local all all trust\nhost all,replication all 127.0.0.1/32 trust\n";

pub const TENANT: TenantId = TenantId([7; 16]);
pub const MAIN: TimelineId = TimelineId([1; 16]);

/// A service without listeners and without a safekeeper, with a root timeline.
pub async fn service(folder: &Path) -> (Arc<Service>, Arc<LiveTimeline>) {
    let engine = EngineOptions { open_layer_bytes_max: 4 << 20, ..EngineOptions::default() };
    service_with(folder, engine).await
}

pub async fn service_with(
    folder: &Path,
    engine: EngineOptions,
) -> (Arc<Service>, Arc<LiveTimeline>) {
    let nobody = Safekeeper::alone("http://127.0.0.1:1", "127.0.0.1:1");
    let mut options = PageserverOptions::new(folder, nobody);
    // A service waits for the leases' holders before it collects: as long as the engine is to.
    options.lsn_lease_length = engine.gc_delay;
    options.engine = engine;
    options.wait_lsn_max = Duration::from_millis(100);
    let service = Service::open(options, CancellationToken::new()).expect("open");
    service.create_tenant(TENANT, PgMajor::V15).await.expect("tenant");
    let live = service.create_root(TENANT, MAIN).await.expect("root");
    (service, live)
}

/// The whole archive, and its description.
pub async fn backup(
    service: &Arc<Service>,
    live: &Arc<LiveTimeline>,
    lsn: Lsn,
) -> (Vec<u8>, Start) {
    let chunks = basebackup::begin(service, Arc::clone(live), lsn, Contents::Whole).await;
    let mut chunks = chunks.unwrap_or_else(|error| panic!("basebackup at {lsn}: {error}"));
    let mut archive = Vec::new();
    while let Some(chunk) = chunks.recv().await {
        archive.extend_from_slice(&chunk.expect("chunk"));
    }
    let start = description(&archive);
    (archive, start)
}

pub fn description(archive: &[u8]) -> Start {
    let mut entries = tar::Archive::new(archive);
    let mut found = None;
    for entry in entries.entries().expect("tar") {
        assert!(found.is_none(), "{START_FILE} is the last file");
        let entry = entry.expect("entry");
        if entry.path().expect("path").to_str() == Some(START_FILE) {
            found = Some(serde_json::from_reader(entry).expect("description"));
        }
    }
    found.expect(START_FILE)
}

/// A running server on its own data directory.
pub struct Server {
    pub data: PathBuf,
    folder: TempDir,
    child: Child,
    account: Option<(u32, u32)>,
    port: u16,
}

/// `postgres`'s uid and gid when we are root.
fn account() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let passwd = fs::read_to_string("/etc/passwd").expect("passwd");
    let line = passwd.lines().find(|line| line.starts_with("postgres:")).expect("account postgres");
    let numbers: Vec<u32> =
        line.split(':').skip(2).take(2).map(|n| n.parse().expect("id")).collect();
    Some((numbers[0], numbers[1]))
}

fn give(path: &Path, (uid, gid): (u32, u32)) {
    chown(path, Some(uid), Some(gid)).expect("chown");
    if path.is_dir() {
        for entry in fs::read_dir(path).expect("list") {
            give(&entry.expect("entry").path(), (uid, gid));
        }
    }
}

impl Server {
    /// Unpacks `archive`, installs the synthetic checkpoint, starts.
    pub fn start(archive: &[u8], start: &Start, settings: &[&str]) -> Server {
        Server::start_on(archive, start, 5432, settings)
    }

    /// The port also names the socket.
    pub fn start_on(archive: &[u8], start: &Start, port: u16, settings: &[&str]) -> Server {
        let folder = tempfile::Builder::new().prefix("treering-pg-").tempdir().expect("folder");
        let data = folder.path().join("data");
        fs::create_dir(&data).expect("data");
        tar::Archive::new(archive).unpack(&data).expect("unpack");
        install_wal(&data, start);
        fs::write(data.join("pg_hba.conf"), HBA).expect("hba");
        fs::write(data.join("pg_ident.conf"), "").expect("ident");
        let account = account();
        Command::new("chmod").args(["-R", "go-rwx"]).arg(&data).status().expect("chmod");
        Command::new("chmod").args(["755"]).arg(folder.path()).status().expect("chmod");
        if let Some(account) = account {
            give(folder.path(), account);
        }
        let log = fs::File::create(folder.path().join("log")).expect("log");
        let mut command = Command::new(format!("{BIN}/postgres"));
        command.arg("-D").arg(&data).arg("-k").arg(folder.path()).args(["-c", "listen_addresses="]);
        for setting in [
            "fsync=off",
            "full_page_writes=off",
            "max_prepared_transactions=10",
            "wal_keep_size=10GB",
        ] {
            command.args(["-c", setting]);
        }
        settings.iter().for_each(|setting| {
            command.args(["-c", setting]);
        });
        if let Some((uid, gid)) = account {
            command.uid(uid).gid(gid);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).current_dir(folder.path());
        let child = command.spawn().expect("postgres");
        let mut server = Server { data, folder, child, account, port };
        server.wait_ready();
        server
    }

    fn wait_ready(&mut self) {
        let deadline = Instant::now() + START_DEADLINE;
        while !self.psql("postgres", "SELECT 1").0 {
            let ended = self.child.try_wait().expect("wait");
            assert!(ended.is_none() && Instant::now() < deadline, "not started:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).expect("log")
    }

    fn psql(&self, database: &str, sql: &str) -> (bool, String) {
        let mut command = Command::new(format!("{BIN}/psql"));
        command.args([
            "-X",
            "-A",
            "-t",
            "-q",
            "-v",
            "ON_ERROR_STOP=1",
            "-U",
            "postgres",
            "-d",
            database,
            "-p",
        ]);
        command.arg(self.port.to_string()).arg("-h");
        command.arg(self.folder.path()).stdin(Stdio::piped());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("psql");
        // While there is no server yet it ends before it reads; its status says so.
        let _ = child.stdin.take().expect("stdin").write_all(sql.as_bytes());
        let output = child.wait_with_output().expect("psql");
        let text = [&output.stdout[..], &output.stderr[..]].concat();
        (output.status.success(), String::from_utf8_lossy(&text).trim().to_owned())
    }

    /// Runs statements; their output, trimmed.
    pub fn sql(&self, database: &str, sql: &str) -> String {
        let (is_ok, text) = self.psql(database, sql);
        assert!(is_ok, "{sql}\n{text}\n{}", self.log());
        text
    }

    /// The server's message.
    pub fn sql_error(&self, database: &str, sql: &str) -> String {
        let (is_ok, text) = self.psql(database, sql);
        assert!(!is_ok, "{sql} should have failed: {text}");
        text
    }

    pub fn pgbench(&self, args: &[&str]) {
        let mut command = Command::new(format!("{BIN}/pgbench"));
        command
            .args(["-U", "postgres", "-p", &self.port.to_string(), "-h"])
            .arg(self.folder.path())
            .args(args)
            .arg("postgres");
        let output = command.output().expect("pgbench");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// End of all complete WAL records.
    pub fn insert_lsn(&self) -> Lsn {
        self.sql("postgres", "SELECT pg_current_wal_flush_lsn()").parse().expect("lsn")
    }

    /// Raw WAL from `from` up to `to`.
    pub fn wal(&self, tli: u32, from: Lsn, to: Lsn) -> Vec<u8> {
        let mut wal = Vec::new();
        let mut at = from;
        while at < to {
            let path = self.data.join("pg_wal").join(at.segment_file_name(tli));
            let segment =
                fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let next = (at.segment_start() + WAL_SEGMENT_SIZE).min(to);
            let first = at.segment_offset() as usize;
            wal.extend_from_slice(&segment[first..first + (next.0 - at.0) as usize]);
            at = next;
        }
        wal
    }

    /// A clean stop.
    pub fn stop(&mut self) {
        let mut command = Command::new(format!("{BIN}/pg_ctl"));
        command.arg("-D").arg(&self.data).args(["-m", "fast", "-w", "stop"]).stdout(Stdio::null());
        command.current_dir(self.folder.path());
        if let Some((uid, gid)) = self.account {
            command.uid(uid).gid(gid);
        }
        assert!(command.status().expect("pg_ctl").success(), "{}", self.log());
        self.child.wait().expect("wait");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Its children notice and end by themselves.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn install_wal(data: &Path, start: &Start) {
    let control = fs::read(data.join("global/pg_control")).expect("pg_control");
    let control = ControlFile::parse(&control).expect("pg_control");
    let major = control.major();
    let wal = encode::synthetic_checkpoint(
        major,
        &SyntheticCheckpoint {
            at: start.lsn,
            prev: start.prev_record_lsn,
            tli: start.pg_tli,
            system_id: start.system_id,
            checkpoint: control.checkpoint().encode(),
        },
    );
    assert_eq!(wal.record_start, control.checkpoint_start());
    let origin = Origin { major, tli: start.pg_tli, system_id: start.system_id };
    let mut bytes = encode::blank_segment_head(&origin, start.lsn);
    bytes.extend_from_slice(&wal.bytes);
    let mut at = start.lsn.segment_start();
    for segment in bytes.chunks(WAL_SEGMENT_SIZE as usize) {
        let mut segment = segment.to_vec();
        segment.resize(WAL_SEGMENT_SIZE as usize, 0);
        fs::write(data.join("pg_wal").join(at.segment_file_name(start.pg_tli)), segment)
            .expect("segment");
        at = at + WAL_SEGMENT_SIZE;
    }
    if !start.history.is_empty() {
        let lines = start.history.iter().map(|(tli, lsn)| format!("{tli}\t{lsn}\tbranch\n"));
        let name = format!("pg_wal/{:08X}.history", start.pg_tli);
        fs::write(data.join(name), lines.collect::<String>()).expect("history");
    }
}
