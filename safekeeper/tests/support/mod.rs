//! A real cluster's log, a safekeeper, its writers and its receivers.

// Each test file uses a part of it.
#![allow(dead_code)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use treering_consensus::{
    AcceptorMessage, Action, Configuration, Proposer, ProposerConfig, ProposerId, TimelineIdentity,
    codec::Message,
};
use treering_pgfmt::{version::PgMajor, wal::reader::WalDecoder};
use treering_safekeeper::{Listening, SafekeeperOptions, archive::ArchiveOptions, run};
use treering_types::{Lsn, NodeId, TenantId, TimelineId, WAL_SEGMENT_SIZE};

pub const BIN: &str = "/usr/lib/postgresql/15/bin";
pub const MEMBER: NodeId = NodeId(1);
pub const DEADLINE: Duration = Duration::from_secs(30);

/// A Postgres tool, as an unprivileged user when we are root.
pub fn tool(name: &str) -> Command {
    let path = format!("{BIN}/{name}");
    assert!(Path::new(&path).exists(), "{path} is missing: install postgresql-15");
    let uid = fs::metadata("/proc/self").map(|me| std::os::unix::fs::MetadataExt::uid(&me));
    if uid.unwrap() != 0 {
        return Command::new(path);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", &path]);
    command
}

pub fn run_tool(mut command: Command) -> String {
    let out = command.output().unwrap();
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{command:?}: {errors}");
    String::from_utf8(out.stdout).unwrap()
}

/// A temporary folder that the unprivileged user may write to.
pub fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    fs::set_permissions(folder.path(), mode).unwrap();
    folder
}

/// The log of a stopped cluster.
pub struct Log {
    pub wal: PathBuf,
    pub system_id: u64,
    /// After initdb, before anything else: where the timeline begins.
    pub start: Lsn,
    pub end: Lsn,
    /// A record end in between.
    pub middle: Lsn,
    /// All record ends.
    pub ends: Vec<Lsn>,
    pub bytes: Bytes,
}

impl Log {
    pub fn range(&self, from: Lsn, to: Lsn) -> Bytes {
        self.bytes.slice((from.0 - self.start.0) as usize..(to.0 - self.start.0) as usize)
    }
}

/// The ends of all records from `from` on, a record end.
pub fn record_ends(wal: &Path, from: Lsn) -> Vec<Lsn> {
    let mut decoder = WalDecoder::new(PgMajor::V15, from);
    let (mut ends, mut at) = (Vec::new(), from);
    while let Ok(segment) = fs::read(wal.join(at.segment_file_name(1))) {
        decoder.feed(&segment[at.segment_offset() as usize..]);
        at = at.segment_start() + WAL_SEGMENT_SIZE;
        while let Ok(Some(record)) = decoder.next_record() {
            ends.push(record.end);
        }
    }
    ends
}

pub fn wal_bytes(wal: &Path, from: Lsn, to: Lsn) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut at = from;
    while at < to {
        let next = (at.segment_start() + WAL_SEGMENT_SIZE).min(to);
        let segment = fs::read(wal.join(at.segment_file_name(1))).unwrap();
        let offset = at.segment_offset() as usize;
        bytes.extend_from_slice(&segment[offset..offset + (next.0 - at.0) as usize]);
        at = next;
    }
    bytes
}

/// A cluster with pgbench's tables, some load, and a segment switch.
pub fn make_log(folder: &Path) -> Log {
    let data = folder.join("pgdata");
    let data_text = data.to_str().unwrap();
    let mut initdb = tool("initdb");
    initdb.args(["-D", data_text, "-U", "postgres", "--no-sync", "-A", "trust", "--no-locale"]);
    run_tool(initdb);
    let wal = data.join("pg_wal");
    let start = *record_ends(&wal, Lsn(0x100_0000)).last().unwrap();
    let socket = folder.to_str().unwrap();
    let settings = format!(
        "-c fsync=off -c listen_addresses= -c unix_socket_directories={socket} -c wal_keep_size=4GB"
    );
    let control = |action: &[&str]| {
        let mut pg_ctl = tool("pg_ctl");
        let log = folder.join("log");
        pg_ctl.args(["-D", data_text, "-w", "-s", "-l", log.to_str().unwrap()]).args(action);
        assert!(pg_ctl.status().unwrap().success(), "pg_ctl {action:?}");
    };
    control(&["-o", &settings, "start"]);
    let client = |name: &str, args: &[&str]| {
        let mut command = tool(name);
        command.args(["-h", socket, "-U", "postgres"]).args(args).arg("postgres");
        run_tool(command);
    };
    client("pgbench", &["-i", "-s", "2", "-q"]);
    client("pgbench", &["-c", "4", "-t", "200", "-n"]);
    client("psql", &["-c", "select pg_switch_wal()"]);
    client("pgbench", &["-c", "2", "-t", "100", "-n"]);
    control(&["-m", "fast", "stop"]);
    let ends = record_ends(&wal, start);
    let (middle, end) = (ends[ends.len() / 2], *ends.last().unwrap());
    let mut controldata = tool("pg_controldata");
    controldata.arg(data_text).env("LC_ALL", "C");
    let facts = run_tool(controldata);
    let line = facts.lines().find(|line| line.starts_with("Database system identifier")).unwrap();
    let system_id = line.split_whitespace().last().unwrap().parse().unwrap();
    let bytes = wal_bytes(&wal, start, end).into();
    Log { wal, system_id, start, end, middle, ends, bytes }
}

/// A running safekeeper.
pub struct Safekeeper {
    pub at: Listening,
    pub stop: CancellationToken,
    pub task: JoinHandle<anyhow::Result<()>>,
}

impl Safekeeper {
    pub async fn start(data_dir: &Path) -> Safekeeper {
        Safekeeper::run(Safekeeper::options(data_dir)).await
    }

    pub async fn start_with(data_dir: &Path, archive: ArchiveOptions) -> Safekeeper {
        let archive = Some(archive);
        Safekeeper::run(SafekeeperOptions { archive, ..Safekeeper::options(data_dir) }).await
    }

    pub fn options(data_dir: &Path) -> SafekeeperOptions {
        let any = "127.0.0.1:0".parse().unwrap();
        SafekeeperOptions {
            data_dir: data_dir.to_path_buf(),
            node_id: MEMBER,
            listen_wal: any,
            listen_pg: any,
            listen_http: any,
            disk_limit: None,
            lag_limit: 0,
            archive: None,
        }
    }

    pub async fn run(options: SafekeeperOptions) -> Safekeeper {
        let stop = CancellationToken::new();
        let (ready, listening) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(run(options, stop.clone(), |at| ready.send(at).unwrap()));
        Safekeeper { at: listening.await.unwrap(), stop, task }
    }

    pub async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }

    /// A GET or DELETE; the status and the body.
    pub async fn http(&self, method: &str, path: &str) -> (u16, Vec<u8>) {
        let mut stream = TcpStream::connect(self.at.http).await.unwrap();
        let request = format!("{method} {path} HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let split = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
        let status = std::str::from_utf8(&answer[9..12]).unwrap().parse().unwrap();
        (status, answer[split + 4..].to_vec())
    }
}

pub const TENANT: TenantId = TenantId([0xaa; 16]);
pub const TIMELINE: TimelineId = TimelineId([0xbb; 16]);

pub fn timeline_path() -> String {
    format!("/v1/tenant/{TENANT}/timeline/{TIMELINE}")
}

/// A proposer with its one connection.
pub struct Writer {
    pub proposer: Proposer,
    pub stream: TcpStream,
    pub input: BytesMut,
}

impl Writer {
    pub async fn elect(safekeeper: &Safekeeper, log: &Log, id: u8) -> Writer {
        let proposer = Proposer::new(ProposerConfig {
            proposer: ProposerId([id; 16]),
            configuration: Configuration::first(vec![MEMBER]).unwrap(),
            timeline: TimelineIdentity {
                tenant: TENANT,
                timeline: TIMELINE,
                system_id: log.system_id,
                pg_major: 15,
                pg_tli: 1,
                start_lsn: log.start,
            },
            window_bytes_max: 64 << 20,
        });
        let stream = TcpStream::connect(safekeeper.at.wal).await.unwrap();
        let mut writer = Writer { proposer, stream, input: BytesMut::new() };
        let actions = writer.proposer.on_connected(MEMBER);
        writer.carry_out(actions).await;
        while !writer.proposer.term_is_committed() {
            writer.receive().await;
        }
        writer
    }

    pub async fn carry_out(&mut self, actions: Vec<Action>) {
        let mut out = BytesMut::new();
        for action in actions {
            match action {
                Action::Send { message, .. } => message.encode(&mut out),
                other => panic!("{other:?}"),
            }
        }
        self.stream.write_all_buf(&mut out).await.unwrap();
    }

    pub async fn receive(&mut self) {
        loop {
            if let Some(message) = AcceptorMessage::decode(&mut self.input).unwrap() {
                let actions = self.proposer.on_message(MEMBER, message);
                return self.carry_out(actions).await;
            }
            let count = self.stream.read_buf(&mut self.input).await.unwrap();
            assert!(count > 0, "the safekeeper closed the connection");
        }
    }

    /// Appends in pieces that end anywhere, and waits until all of it is committed.
    pub async fn append(&mut self, log: &Log, to: Lsn) {
        let mut at = self.proposer.end_lsn();
        while at < to {
            let next = Lsn(at.0 + 77_777).min(to);
            let actions = self.proposer.append(at, log.range(at, next)).unwrap();
            self.carry_out(actions).await;
            at = next;
        }
        while self.proposer.commit_lsn() < to {
            self.receive().await;
        }
    }
}

pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let begin = Instant::now();
    while !holds().await {
        assert!(begin.elapsed() < DEADLINE, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub fn receivewal(safekeeper: &Safekeeper, into: &Path, args: &[&str], name: &str) -> Child {
    fs::create_dir_all(into).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    fs::set_permissions(into, mode).unwrap();
    let connection = format!(
        "host=127.0.0.1 port={} user=anyone application_name={name} \
         options='-c treering.tenant_id={TENANT} -c treering.timeline_id={TIMELINE}'",
        safekeeper.at.pg.port()
    );
    let mut command = tool("pg_receivewal");
    command.args(["--no-loop", "-D", into.to_str().unwrap(), "-d", &connection]).args(args);
    command.stderr(Stdio::piped()).spawn().unwrap()
}

pub async fn finish(mut child: Child) {
    eventually("pg_receivewal ends", async || child.try_wait().unwrap().is_some()).await;
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "pg_receivewal: {}", String::from_utf8_lossy(&out.stderr));
}

/// `pg_receivewal` stops once it is *beyond* its end position.
pub fn last_byte(log: &Log) -> String {
    Lsn(log.end.0 - 1).to_string()
}

pub fn has_partial(folder: &Path) -> bool {
    fs::read_dir(folder)
        .unwrap()
        .any(|entry| entry.unwrap().file_name().to_string_lossy().ends_with(".partial"))
}

/// What the receiver wrote, from `from` on, whether a segment is complete or not.
pub fn received_bytes(folder: &Path, from: Lsn, to: Lsn) -> Vec<u8> {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "partial") {
            fs::rename(&path, path.with_extension("")).unwrap();
        }
    }
    wal_bytes(folder, from, to)
}

pub fn waldump(wal: &Path, from: Lsn, to: Lsn) -> String {
    // As ourselves: the safekeeper's files are nobody else's to read.
    let mut command = Command::new(format!("{BIN}/pg_waldump"));
    let (from, to) = (from.to_string(), to.to_string());
    command.args(["-p", wal.to_str().unwrap(), "-s", &from, "-e", &to]);
    run_tool(command)
}
