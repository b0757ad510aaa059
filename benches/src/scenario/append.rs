//! `append`: WAL into one safekeeper as it comes from a bulk load, in messages of 128 KiB over a socket, against a loop of
//! `write` and `fdatasync` of the same sizes into a file that is long enough already, on the same disk.
//!
//! With eight messages under way, as a compute that loads has them, one sync may cover several, and the log goes on beside it:
//! that is a safekeeper's throughput, and has the bar (which was set by a benchmark of messages that do not wait for each other's
//! answers). With one under way nothing is gathered and the disk waits while the message travels and is checked: the time that
//! this takes beside a write and its sync, and reported.

use std::{
    fs::File,
    io::{Read, Seek, Write},
    net::TcpStream,
    path::Path,
    sync::mpsc,
    thread,
    time::Instant,
};

use anyhow::{Context, bail};
use bytes::{Bytes, BytesMut};
use tokio_util::sync::CancellationToken;
use treering_bench::memory::Ballast;
use treering_consensus::{
    Action, Configuration, Proposer, ProposerConfig, ProposerId, TimelineIdentity, codec::Message,
};
use treering_safekeeper::{Listening, SafekeeperOptions};
use treering_types::{Lsn, NodeId, TenantId, TimelineId};

use super::Size;
use crate::report::{Bar, Report, Spread};

const MESSAGE_BYTES: usize = 128 * 1024;
/// A record of the load and then some: so much of a message stays unacknowledged until the next one brings the rest.
const RECORD_BYTES: usize = 1000;
const NODE: NodeId = NodeId(1);
/// Messages under way in a load.
const LOADING: usize = 8;
const BAR: f64 = 0.8;

pub fn run(size: Size) -> anyhow::Result<Vec<Report>> {
    let (megabytes, rounds) = if size == Size::Full { (256, 7) } else { (2, 1) };
    let (start, wal) =
        treering_bench::wal(megabytes * (1 << 20) / RECORD_BYTES, RECORD_BYTES - 100);
    let wal = Bytes::from(wal);
    let (dir, ballast) = (tempfile::tempdir()?, Ballast::new()?);
    let safekeeper = Safekeeper::start(&dir.path().join("safekeeper"))?;
    let mut turns = [(1, Turns::default()), (LOADING, Turns::default())];
    for round in 0..rounds {
        for (under_way, turns) in &mut turns {
            let ours = || {
                settle(&ballast)?;
                append(safekeeper.at, start, &wal, *under_way)
            };
            let theirs = || {
                settle(&ballast)?;
                plain_loop(dir.path(), &wal)
            };
            let (ours, theirs) = if round % 2 == 0 {
                let ours = ours()?;
                (ours, theirs()?)
            } else {
                let theirs = theirs()?;
                (ours()?, theirs)
            };
            eprintln!("  {under_way} under way: {ours:.1} MB/s, loop {theirs:.1} MB/s");
            turns.note(ours, theirs);
        }
    }
    Ok(turns.map(|(under_way, turns)| turns.report(under_way)).into())
}

#[derive(Default)]
struct Turns {
    ours: Spread,
    theirs: Spread,
    ratios: Spread,
}

impl Turns {
    fn note(&mut self, ours: f64, theirs: f64) {
        self.ours.push(ours);
        self.theirs.push(theirs);
        self.ratios.push(ours / theirs);
    }

    fn report(self, under_way: usize) -> Report {
        Report {
            ratio: Some(self.ratios.median()),
            vanilla: Some(self.theirs.median()),
            bar: (under_way == LOADING).then_some(Bar::Ratio(BAR)),
            ..Report::figure(
                "append",
                format!("128 KiB, {under_way} under way"),
                "MB/s",
                &self.ours,
            )
        }
    }
}

/// Nothing is left to be written, and no memory is free but what has just been in use.
fn settle(ballast: &Ballast) -> anyhow::Result<()> {
    rustix::fs::sync();
    Ok(ballast.fill()?)
}

/// MB/s of the loop. The file's blocks are on disk before it begins.
fn plain_loop(dir: &Path, wal: &[u8]) -> anyhow::Result<f64> {
    let mut file = tempfile::tempfile_in(dir)?;
    for chunk in wal.chunks(1 << 20) {
        file.write_all(&vec![0; chunk.len()])?;
    }
    file.sync_all()?;
    file.rewind()?;
    let began = Instant::now();
    for message in wal.chunks(MESSAGE_BYTES) {
        file.write_all(message)?;
        File::sync_data(&file)?;
    }
    Ok(wal.len() as f64 / 1e6 / began.elapsed().as_secs_f64())
}

/// MB/s of a new timeline's log, from the first message to the last record's commit.
fn append(safekeeper: Listening, start: Lsn, wal: &Bytes, under_way: usize) -> anyhow::Result<f64> {
    let mut writer = Writer::elect(safekeeper, start)?;
    let began = Instant::now();
    let mut at = 0;
    while at < wal.len() {
        let message = wal.slice(at..wal.len().min(at + MESSAGE_BYTES));
        at += message.len();
        writer.append(message)?;
        writer.receive_until((under_way - 1) * MESSAGE_BYTES + RECORD_BYTES)?;
    }
    writer.receive_until(0)?;
    Ok(wal.len() as f64 / 1e6 / began.elapsed().as_secs_f64())
}

/// A proposer with one member, in one thread.
struct Writer {
    proposer: Proposer,
    stream: TcpStream,
    input: BytesMut,
    frame: BytesMut,
}

impl Writer {
    fn elect(safekeeper: Listening, start_lsn: Lsn) -> anyhow::Result<Writer> {
        let stream = TcpStream::connect(safekeeper.wal)?;
        stream.set_nodelay(true)?;
        let timeline = TimelineIdentity {
            tenant: TenantId(rand::random()),
            timeline: TimelineId(rand::random()),
            system_id: 7,
            pg_major: 15,
            pg_tli: 1,
            start_lsn,
        };
        let proposer = Proposer::new(ProposerConfig {
            proposer: ProposerId(rand::random()),
            configuration: Configuration::unnumbered(vec![NODE])?,
            timeline,
            window_bytes_max: 64 << 20,
        });
        let mut writer =
            Writer { proposer, stream, input: BytesMut::new(), frame: BytesMut::new() };
        let greeting = writer.proposer.on_connected(NODE);
        writer.carry_out(greeting)?;
        while !writer.proposer.term_is_committed() {
            writer.receive()?;
        }
        Ok(writer)
    }

    fn append(&mut self, bytes: Bytes) -> anyhow::Result<()> {
        let actions = self.proposer.append(self.proposer.end_lsn(), bytes)?;
        self.carry_out(actions)
    }

    /// Until no more than `bytes` are not committed.
    fn receive_until(&mut self, bytes: usize) -> anyhow::Result<()> {
        let open = |proposer: &Proposer| proposer.end_lsn().0 - proposer.commit_lsn().0;
        while open(&self.proposer) > bytes as u64 {
            self.receive()?;
        }
        Ok(())
    }

    /// Waits for answers.
    fn receive(&mut self) -> anyhow::Result<()> {
        let mut read = [0; 4096];
        let count = self.stream.read(&mut read)?;
        self.input.extend_from_slice(
            read.get(..count).filter(|read| !read.is_empty()).context("closed")?,
        );
        while let Some(answer) = Message::decode(&mut self.input)? {
            let actions = self.proposer.on_message(NODE, answer);
            self.carry_out(actions)?;
        }
        Ok(())
    }

    fn carry_out(&mut self, actions: Vec<Action>) -> anyhow::Result<()> {
        for action in actions {
            let Action::Send { message, .. } = action else { bail!("asked to {action:?}") };
            self.frame.clear();
            message.encode(&mut self.frame);
            self.stream.write_all(&self.frame)?;
        }
        Ok(())
    }
}

/// The real one, on threads of ours.
struct Safekeeper {
    at: Listening,
    stop: CancellationToken,
    thread: Option<thread::JoinHandle<anyhow::Result<()>>>,
}

impl Safekeeper {
    fn start(data_dir: &Path) -> anyhow::Result<Safekeeper> {
        let any = "127.0.0.1:0".parse()?;
        let options = SafekeeperOptions {
            data_dir: data_dir.to_owned(),
            node_id: NODE,
            listen_wal: any,
            listen_pg: any,
            listen_http: any,
            disk_limit: None,
            lag_limit: 0,
            archive: None,
        };
        let (stop, (ready, at)) = (CancellationToken::new(), mpsc::channel());
        let until = stop.clone();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new()?;
            runtime.block_on(treering_safekeeper::run(options, until, move |at| {
                let _ = ready.send(at);
            }))
        });
        let at = at.recv().context("the safekeeper did not start")?;
        Ok(Safekeeper { at, stop, thread: Some(thread) })
    }
}

impl Drop for Safekeeper {
    fn drop(&mut self) {
        self.stop.cancel();
        let _ = self.thread.take().map(thread::JoinHandle::join);
    }
}
