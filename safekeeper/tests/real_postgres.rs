//! The service between a real proposer's protocol and real Postgres 15 clients: WAL of a real cluster goes in through
//! the WAL port, comes out through the Postgres port with `pg_receivewal`, and lies on disk as segments that
//! `pg_waldump` reads. Needs Debian's `postgresql-15`; without it the test fails.

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
use treering_safekeeper::{Listening, SafekeeperOptions, run};
use treering_types::{Lsn, NodeId, TenantId, Term, TimelineId, WAL_SEGMENT_SIZE};

const BIN: &str = "/usr/lib/postgresql/15/bin";
const MEMBER: NodeId = NodeId(1);
const DEADLINE: Duration = Duration::from_secs(30);

/// A Postgres tool, as an unprivileged user when we are root.
fn tool(name: &str) -> Command {
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

fn run_tool(mut command: Command) -> String {
    let out = command.output().unwrap();
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{command:?}: {errors}");
    String::from_utf8(out.stdout).unwrap()
}

/// A temporary folder that the unprivileged user may write to.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    fs::set_permissions(folder.path(), mode).unwrap();
    folder
}

/// The log of a stopped cluster.
struct Log {
    wal: PathBuf,
    system_id: u64,
    /// After initdb, before anything else: where the timeline begins.
    start: Lsn,
    end: Lsn,
    /// A record end in between.
    middle: Lsn,
    bytes: Bytes,
}

impl Log {
    fn range(&self, from: Lsn, to: Lsn) -> Bytes {
        self.bytes.slice((from.0 - self.start.0) as usize..(to.0 - self.start.0) as usize)
    }
}

/// The ends of all records from `from` on, a record end.
fn record_ends(wal: &Path, from: Lsn) -> Vec<Lsn> {
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

fn wal_bytes(wal: &Path, from: Lsn, to: Lsn) -> Vec<u8> {
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
fn make_log(folder: &Path) -> Log {
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
    Log { wal, system_id, start, end, middle, bytes }
}

/// A running safekeeper.
struct Safekeeper {
    at: Listening,
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Safekeeper {
    async fn start(data_dir: &Path) -> Safekeeper {
        let any = "127.0.0.1:0".parse().unwrap();
        let options = SafekeeperOptions {
            data_dir: data_dir.to_path_buf(),
            node_id: MEMBER,
            listen_wal: any,
            listen_pg: any,
            listen_http: any,
        };
        let stop = CancellationToken::new();
        let (ready, listening) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(run(options, stop.clone(), |at| ready.send(at).unwrap()));
        Safekeeper { at: listening.await.unwrap(), stop, task }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }

    /// A GET or DELETE; the status and the body.
    async fn http(&self, method: &str, path: &str) -> (u16, Vec<u8>) {
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

const TENANT: TenantId = TenantId([0xaa; 16]);
const TIMELINE: TimelineId = TimelineId([0xbb; 16]);

fn timeline_path() -> String {
    format!("/v1/tenant/{TENANT}/timeline/{TIMELINE}")
}

/// A proposer with its one connection.
struct Writer {
    proposer: Proposer,
    stream: TcpStream,
    input: BytesMut,
}

impl Writer {
    async fn elect(safekeeper: &Safekeeper, log: &Log, id: u8) -> Writer {
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
            window_bytes_max: 1 << 20,
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

    async fn carry_out(&mut self, actions: Vec<Action>) {
        let mut out = BytesMut::new();
        for action in actions {
            match action {
                Action::Send { message, .. } => message.encode(&mut out),
                other => panic!("{other:?}"),
            }
        }
        self.stream.write_all_buf(&mut out).await.unwrap();
    }

    async fn receive(&mut self) {
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
    async fn append(&mut self, log: &Log, to: Lsn) {
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

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let begin = Instant::now();
    while !holds().await {
        assert!(begin.elapsed() < DEADLINE, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn receivewal(safekeeper: &Safekeeper, into: &Path, args: &[&str], name: &str) -> Child {
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

async fn finish(mut child: Child) {
    eventually("pg_receivewal ends", async || child.try_wait().unwrap().is_some()).await;
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "pg_receivewal: {}", String::from_utf8_lossy(&out.stderr));
}

/// `pg_receivewal` stops once it is *beyond* its end position.
fn last_byte(log: &Log) -> String {
    Lsn(log.end.0 - 1).to_string()
}

fn has_partial(folder: &Path) -> bool {
    fs::read_dir(folder)
        .unwrap()
        .any(|entry| entry.unwrap().file_name().to_string_lossy().ends_with(".partial"))
}

/// What the receiver wrote, from `from` on, whether a segment is complete or not.
fn received_bytes(folder: &Path, from: Lsn, to: Lsn) -> Vec<u8> {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "partial") {
            fs::rename(&path, path.with_extension("")).unwrap();
        }
    }
    wal_bytes(folder, from, to)
}

fn waldump(wal: &Path, from: Lsn, to: Lsn) -> String {
    // As ourselves: the safekeeper's files are nobody else's to read.
    let mut command = Command::new(format!("{BIN}/pg_waldump"));
    let (from, to) = (from.to_string(), to.to_string());
    command.args(["-p", wal.to_str().unwrap(), "-s", &from, "-e", &to]);
    run_tool(command)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_of_a_real_cluster_through_the_service() {
    let folder = folder();
    let log = make_log(folder.path());
    assert!(log.end.segment_number() > log.start.segment_number());
    let data_dir = folder.path().join("safekeeper");
    let safekeeper = Safekeeper::start(&data_dir).await;

    let mut first = Writer::elect(&safekeeper, &log, 1).await;
    assert_eq!(first.proposer.elected().unwrap().start_lsn, log.start);
    // The receiver is there before the log, and follows it live.
    let received = folder.path().join("received");
    let end_text = last_byte(&log);
    let until_end = ["--endpos", &end_text[..]];
    let receiver = receivewal(&safekeeper, &received, &until_end, "standby");
    eventually("the receiver streams", async || has_partial(&received)).await;
    first.append(&log, log.middle).await;

    // A crash of the writer in the middle of a record: the next one takes over at the last record end.
    let half = Lsn(log.middle.0 + 11);
    let actions = first.proposer.append(log.middle, log.range(log.middle, half)).unwrap();
    first.carry_out(actions).await;
    let mut second = Writer::elect(&safekeeper, &log, 2).await;
    let election = second.proposer.elected().unwrap();
    assert_eq!(election.start_lsn, log.middle);
    assert_eq!((election.term, election.donor_last_log_term), (Term(2), Term(1)));
    second.append(&log, log.end).await;
    let actions = first.proposer.heartbeat();
    first.carry_out(actions).await;
    while first.proposer.fenced_by().is_none() {
        first.receive().await;
    }

    finish(receiver).await;
    assert!(received_bytes(&received, log.start, log.end) == log.bytes, "received bytes differ");
    let own = data_dir.join(TENANT.to_string()).join(TIMELINE.to_string());
    assert!(wal_bytes(&own, log.start, log.end) == log.bytes, "stored bytes differ");
    assert_eq!(waldump(&own, log.start, log.end), waldump(&log.wal, log.start, log.end));

    let mut whole_file = Command::new(format!("{BIN}/pg_waldump"));
    whole_file.arg("--quiet").arg(own.join(log.start.segment_file_name(1)));
    run_tool(whole_file);

    // A restart remembers everything; a third writer finds the log at its end.
    drop(second);
    safekeeper.stop().await;
    let safekeeper = Safekeeper::start(&data_dir).await;
    let third = Writer::elect(&safekeeper, &log, 3).await;
    let election = third.proposer.elected().unwrap();
    assert_eq!((election.start_lsn, election.donor_last_log_term), (log.end, Term(2)));

    check_http(&safekeeper, &log).await;
    check_trim(&safekeeper, &log, folder.path()).await;

    let (status, _) = safekeeper.http("DELETE", &timeline_path()).await;
    assert_eq!(status, 204);
    let (status, _) = safekeeper.http("GET", &timeline_path()).await;
    assert_eq!(status, 410);
    assert_eq!(fs::read_dir(&own).unwrap().count(), 1, "only the mark is left");
    safekeeper.stop().await;
}

async fn check_http(safekeeper: &Safekeeper, log: &Log) {
    let (status, body) = safekeeper.http("GET", "/v1/timelines").await;
    let list: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, list.as_array().unwrap().len()), (200, 1));
    assert_eq!(list[0]["commit_lsn"], log.end.to_string());
    assert_eq!(list[0]["flush_lsn"], log.end.to_string());
    assert_eq!(list[0]["start_lsn"], log.start.to_string());
    assert_eq!((&list[0]["term"], &list[0]["last_log_term"]), (&3.into(), &3.into()));
    let wal = |from: Lsn, to: Lsn, more: &str| {
        format!("{}/wal?from={from}&to={to}{more}", timeline_path())
    };
    let (from, to) = (log.middle, Lsn(log.middle.0 + 5000));
    let (status, bytes) = safekeeper.http("GET", &wal(from, to, "&term=3")).await;
    assert_eq!((status, bytes), (200, log.range(from, to).to_vec()));
    let refusals = [
        (wal(from, to, "&term=2"), 409),
        (wal(from, Lsn(log.end.0 + 1), ""), 409),
        (wal(to, from, ""), 400),
        (wal(from, to, "&colour=red"), 400),
        ("/v1/tenant/x/timeline/y".to_owned(), 400),
        (format!("/v1/tenant/{TENANT}/timeline/{}", TimelineId([1; 16])), 404),
    ];
    for (path, expected) in refusals {
        let (status, body) = safekeeper.http("GET", &path).await;
        let problem: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(status, expected, "{path}: {problem}");
        assert!(problem["code"].is_string() && problem["message"].is_string());
    }
    let (_, metrics) = safekeeper.http("GET", "/metrics").await;
    let metrics = String::from_utf8(metrics).unwrap();
    let line = format!("treering_safekeeper_commit_lsn{{tenant_id=\"{TENANT}\"");
    assert!(metrics.contains(&line), "{metrics}");
    assert_eq!(safekeeper.http("GET", "/readyz").await.0, 200);
}

/// The pageserver's name moves the horizon, once it has made the WAL durable; nobody else's does.
async fn check_trim(safekeeper: &Safekeeper, log: &Log, folder: &Path) {
    let trim_lsn = async || {
        let (_, body) = safekeeper.http("GET", &timeline_path()).await;
        let info: serde_json::Value = serde_json::from_slice(&body).unwrap();
        info["trim_lsn"].as_str().unwrap().parse::<Lsn>().unwrap()
    };
    assert_eq!(trim_lsn().await, log.start);
    let end_text = last_byte(log);
    let args = ["--synchronous", "-S", "slot", "--endpos", &end_text];
    let into = folder.join("trimming");
    finish(receivewal(safekeeper, &into, &args, "treering_pageserver")).await;
    eventually("trimmed", async || trim_lsn().await == log.end.segment_start()).await;
    let path = format!("{}/wal?from={}&to={}", timeline_path(), log.start, Lsn(log.start.0 + 64));
    assert_eq!(safekeeper.http("GET", &path).await.0, 410);
}
