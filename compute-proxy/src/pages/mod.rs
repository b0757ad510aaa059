//! Lazy pages, the agent's side: a compute starts with sparse files and fetches a page when it first touches it.
//!
//! [`layout`] makes the files and the maps of a start; [`serve`] answers the library under Postgres; [`fetch`] brings
//! pages and `land` writes them, [`readahead`] says which ones early, [`lsn`] at which LSN; [`lease`] tells the pageserver of it;
//! [`drop`] keeps the files within a limit; [`keep`] saves over a clean stop what only the files hold; [`imports`] and [`library`] decide whether the library
//! can be put under a binary at all. The protocol between both sides is `docs/formats/presence.md`, what else they
//! share `docs/formats/pages-door.md`.
//!
//! What is promised: no process of the compute ever reads a block that was not fetched as if it were empty; a block
//! that Postgres wrote is never replaced by an older one; an agent that dies is replaced under the running Postgres.

pub mod drop;
pub mod fetch;
pub mod imports;
pub mod keep;
mod land;
pub mod layout;
pub mod lease;
pub mod library;
pub mod lsn;
pub mod readahead;
pub mod room;
pub mod serve;
pub mod shared;

use std::{
    fs, io,
    os::unix::{
        fs::{DirBuilderExt, lchown},
        net::UnixListener,
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use rustix::{
    fs::{CWD, FileType, Mode, mknodat},
    io::Errno,
};
use tokio::net::unix::pipe;
use treering_presence::BLOCK_SIZE;
use treering_types::{Lsn, TenantId, TimelineId};
use treering_wire::lease::Holder;

use self::{
    drop::{Dropper, Ingested},
    fetch::{Fetcher, PageSource},
    layout::Record,
    lease::{Lease, LeaseSource},
    lsn::Horizon,
    room::Room,
    serve::Door,
    shared::{Memory, Shared},
};
use crate::{
    compute::{owner::Owner, reap::RUN_PREFIX},
    endpoint::Compute,
    peers::Peers,
};

/// The socket's name in the run directory, which is ours: nothing that the compute's user could put in its place is
/// ever handed over to that user.
const SOCKET_NAME: &str = "pages.sock";
/// What the path of the pipe for flushes has behind the socket's.
const FLUSH_PIPE_SUFFIX: &str = ".flush";
/// Longest socket path the kernel takes (`sun_path`).
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// The agent gives up this much before the library does, so that its sentence reaches Postgres's log.
const ANSWER_MARGIN: Duration = Duration::from_millis(500);
/// What the names of directories begin with that hold nothing but a socket.
const SOCKET_DIR_PREFIX: &str = "treering-pages-";
/// How often files are looked at that Postgres may have removed.
const SWEEP_EVERY: Duration = Duration::from_secs(2);

/// How computes fetch their pages.
#[derive(Debug, Clone)]
pub struct PageOptions {
    pub mode: PageMode,
    /// Bytes of fetched pages that a compute's files may hold; no limit when absent.
    pub cache_limit_bytes: Option<u64>,
    /// The longest that one read of Postgres waits for a page.
    pub wait_limit: Duration,
}

/// Before the start, or on first touch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PageMode {
    /// On first touch where that is possible, else before the start.
    #[default]
    Lazy,
    /// All before the start.
    Eager,
}

impl Default for PageOptions {
    fn default() -> Self {
        PageOptions {
            mode: PageMode::Lazy,
            cache_limit_bytes: None,
            wait_limit: Duration::from_secs(30),
        }
    }
}

impl PageOptions {
    pub fn wait_limit_ms(&self) -> u32 {
        u32::try_from(self.wait_limit.as_millis()).unwrap_or(u32::MAX)
    }
}

/// The lazy pages of one running compute.
pub struct Pages {
    fetcher: Arc<Fetcher>,
    door: Arc<Door>,
    lease: Lease,
    shared_file: PathBuf,
    socket: PathBuf,
    data_dir: PathBuf,
}

/// Which timeline's pages, and who has them.
pub struct Origin {
    /// `host:port` of the pageserver's Postgres-protocol face.
    pub pageserver: String,
    pub tenant: TenantId,
    pub timeline: TimelineId,
}

impl Origin {
    /// Begins to take the LSN lease of the start in `run_dir`, and keeps it at the newest LSN of `horizon`.
    pub fn lease(&self, run_dir: &Path, horizon: Arc<Horizon>) -> anyhow::Result<Lease> {
        let name = run_dir.file_name().context("a run directory has a name")?;
        let source = LeaseSource {
            address: self.pageserver.clone(),
            query: format!("lsn_lease_v1 {} {}", self.tenant, self.timeline),
            holder: Holder::new(name.to_string_lossy())?,
        };
        Ok(Lease::keep(source, move || horizon.newest()))
    }
}

impl Pages {
    /// Begins to serve a start that was laid out, by this agent or by one before. Blocking.
    ///
    /// Another agent of the same start must be dead: blocks that it held are taken back.
    pub fn open(
        record: Record,
        origin: &Origin,
        (horizon, lease): (Arc<Horizon>, Lease),
        options: &PageOptions,
        owner: Option<Owner>,
    ) -> anyhow::Result<Pages> {
        let file = fs::OpenOptions::new().read(true).write(true).open(&record.shared_file);
        let file = file.with_context(|| record.shared_file.display().to_string())?;
        let shared = Shared::take_over(Memory::map(&file)?, record.files.len())?;
        let wait = options.wait_limit.saturating_sub(ANSWER_MARGIN);
        let source = PageSource {
            address: origin.pageserver.clone(),
            query: format!("pagestream_v3 {} {}", origin.tenant, origin.timeline),
            silence_max: wait,
        };
        let fetcher = Fetcher::new(
            shared,
            record.files,
            &record.data_dir,
            source,
            horizon,
            Room::new(options.cache_limit_bytes, BLOCK_SIZE),
        )?;
        let fetcher = Arc::new(fetcher);
        let listener = listen(&record.socket, owner).context("listen for the page library")?;
        make_pipe(&flush_pipe(&record.socket), owner).context("make the pipe for flushes")?;
        let door = Door::open(Arc::clone(&fetcher), record.start, wait, listener, &record.socket)?;
        Ok(Pages {
            fetcher,
            door,
            lease,
            shared_file: record.shared_file,
            socket: record.socket,
            data_dir: record.data_dir,
        })
    }

    /// The newest request for a flush, unless it is done. Read before the log that it is about.
    pub fn flush_request(&self) -> Option<u32> {
        self.fetcher.shared.directory().flush_request()
    }

    /// The quorum has all that was written before this request.
    pub fn set_flushed(&self, request: u32) {
        self.fetcher.shared.set_flushed(request);
    }

    /// The pipe that wakes us for requests.
    pub fn flush_pipe(&self) -> io::Result<pipe::Receiver> {
        // Both ends: it never ends, and what nobody has read yet is not lost.
        pipe::OpenOptions::new().read_write(true).open_receiver(flush_pipe(&self.socket))
    }

    /// Where the compute keeps its log.
    pub fn wal_dir(&self) -> PathBuf {
        self.data_dir.join("pg_wal")
    }

    /// Whether this process said that it has the library.
    pub fn has_reported(&self, pid: i32) -> bool {
        self.door.has_reported(pid)
    }

    /// Keeps the files within the limit, until the compute ends.
    pub async fn keep_within_limit(&self, compute: Arc<Compute>, ingest: IngestView) {
        Dropper::new(Arc::clone(&self.fetcher)).run(compute, ingest).await;
    }

    /// Lets go of what Postgres removed, now and then, until the compute ends.
    pub async fn forget_unlinked(self: Arc<Self>, compute: Arc<Compute>) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(SWEEP_EVERY) => self.fetcher.forget_unlinked(),
                () = compute.wait_ended() => return,
            }
        }
    }

    /// Ends the service: the compute is dead.
    pub fn close(&self) {
        self.door.close();
        let _ = fs::remove_file(&self.shared_file);
        forget_socket(&self.socket);
    }

    /// Nothing is read any more: the compute is dead. Returns once the pageserver has heard it or cannot be told.
    pub async fn release_lease(&self) {
        self.lease.release().await;
    }
}

impl Drop for Pages {
    /// However a start ended.
    fn drop(&mut self) {
        self.close();
    }
}

/// A path for the socket of a start: in its run directory, or in a new directory of ours where that path is too long.
pub fn socket_path(run_dir: &Path) -> io::Result<PathBuf> {
    let own = run_dir.join(SOCKET_NAME);
    if own.as_os_str().len() <= SOCKET_PATH_BYTES_MAX {
        return Ok(own);
    }
    let dir =
        std::env::temp_dir().join(format!("{SOCKET_DIR_PREFIX}{:016x}", rand::random::<u64>()));
    fs::DirBuilder::new().mode(0o711).create(&dir)?;
    Ok(dir.join(SOCKET_NAME))
}

/// Removes the socket, and its directory if it has one of its own.
fn forget_socket(socket: &Path) {
    let _ = fs::remove_file(socket);
    let _ = fs::remove_file(flush_pipe(socket));
    let dir = socket.parent().filter(|dir| {
        dir.file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|n| n.starts_with(SOCKET_DIR_PREFIX))
    });
    if let Some(dir) = dir {
        let _ = fs::remove_dir(dir);
    }
}

/// Removes what the starts of a branch, all of them dead, left outside its directory. Blocking.
pub fn forget_starts(branch_dir: &Path) {
    let entries = fs::read_dir(branch_dir).into_iter().flatten().flatten();
    for entry in entries {
        let is_run = entry.file_name().to_string_lossy().starts_with(RUN_PREFIX);
        if is_run && let Ok(Some(record)) = Record::load(&entry.path()) {
            let _ = fs::remove_file(&record.shared_file);
            forget_socket(&record.socket);
        }
    }
}

fn flush_pipe(socket: &Path) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(FLUSH_PIPE_SUFFIX);
    path.into()
}

/// Makes the pipe of a start, unless an agent before us has: the compute's processes hold it open.
fn make_pipe(path: &Path, owner: Option<Owner>) -> io::Result<()> {
    match mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0) {
        Err(Errno::EXIST) => return Ok(()),
        made => made?,
    }
    match owner {
        Some(owner) => lchown(path, Some(owner.uid), Some(owner.gid)),
        None => Ok(()),
    }
}

fn listen(socket: &Path, owner: Option<Owner>) -> io::Result<UnixListener> {
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(socket)?;
    if let Some(owner) = owner {
        lchown(socket, Some(owner.uid), Some(owner.gid))?;
    }
    Ok(listener)
}

/// How far the pageserver is, asked of it.
pub struct IngestView {
    pub peers: Peers,
    pub tenant: TenantId,
    pub timeline: TimelineId,
}

impl Ingested for IngestView {
    async fn ingested(&self) -> anyhow::Result<Lsn> {
        let timeline = self.peers.timeline(self.tenant, self.timeline).await;
        timeline
            .map(|timeline| timeline.last_record_lsn)
            .map_err(|error| anyhow::anyhow!(error.message))
    }
}
