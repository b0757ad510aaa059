//! Fetching: from blocks that Postgres misses to blocks that are in its files.
//!
//! A block is asked for once at a time ([`InFlight`]); what comes is written by [`super::land`], through a descriptor
//! that was proven to be the file's.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use parking_lot::{Condvar, Mutex, MutexGuard};
use treering_presence::{FetchPlan, State};
use treering_types::PAGE_SIZE;
use treering_wire::pagestream::{Answer, Header, Question, Request, Response};

use super::{
    land::Run,
    layout::{LazyFile, Source, identity},
    lsn::Horizon,
    room::Room,
    shared::Shared,
};
use crate::{compute::beneath::Beneath, pageserver};

/// Pages asked for at once on one connection.
pub const BATCH_BLOCKS: usize = 128;
/// Connections to the pageserver that are kept when nobody uses them.
const IDLE_CONNECTIONS_MAX: usize = 8;
/// Fetches under way at once; more wait their turn.
const FETCHES_MAX: usize = 32;
/// Open files kept; when there are more, all are closed and opened again as they are needed.
const OPEN_FILES_MAX: usize = 4096;
/// Pause before a pageserver that cannot be reached is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// How long to wait before a block that somebody holds is looked at again, if nobody says so earlier.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// The same for a block that is in nobody's fetch.
const LOOK_SOON: Duration = Duration::from_micros(100);

/// A block of a lazily fetched file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct BlockId {
    pub file: u32,
    pub block: u32,
}

/// Why a page is not there.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("the pageserver cannot be reached: {0}")]
    Unreachable(String),
    #[error("{path} block {block}: the pageserver says: {message}")]
    Refused { path: String, block: u32, message: String },
    #[error("{path} cannot be written: {error}")]
    File { path: String, error: io::Error },
    #[error("the presence map of {path} is damaged")]
    Damaged { path: String },
    #[error("{path} block {block} did not come within {waited:?}")]
    TimedOut { path: String, block: u32, waited: Duration },
    #[error("there is no such page: file {0:?}")]
    NoSuch(BlockId),
    #[error("the compute is being stopped")]
    Stopping,
}

impl FetchError {
    /// For Postgres.
    pub fn errno(&self) -> i32 {
        match self {
            FetchError::File { error, .. } => error.raw_os_error().unwrap_or(libc::EIO),
            _ => libc::EIO,
        }
    }
}

/// Where to ask: `pagestream_v3` on one timeline.
#[derive(Debug, Clone)]
pub struct PageSource {
    /// `host:port`.
    pub address: String,
    /// The query that begins a page stream.
    pub query: String,
    /// How long the pageserver may be silent.
    pub silence_max: Duration,
}

/// Fetches blocks of one start. Shared by all who miss some.
pub struct Fetcher {
    pub shared: Shared,
    pub files: Vec<LazyFile>,
    data_dir: Beneath,
    open_files: Mutex<HashMap<u32, Arc<File>>>,
    source: PageSource,
    idle: Mutex<Vec<pageserver::Copy>>,
    in_flight: InFlight,
    pub horizon: Arc<Horizon>,
    pub room: Room,
}

/// What is asked for and not there yet.
#[derive(Default)]
struct InFlight {
    state: Mutex<Flights>,
    landed: Condvar,
}

#[derive(Default)]
struct Flights {
    blocks: HashSet<BlockId>,
    /// Of those, the ones that somebody waits for.
    waited_for: Vec<BlockId>,
    fetches: usize,
    is_over: bool,
}

/// What must be asked for, and by whom.
enum Missing {
    Nothing,
    /// Ours to ask for; entered as in flight.
    Ours(Vec<(BlockId, FetchPlan)>),
    /// Others hold them.
    Others(BlockId),
}

impl Fetcher {
    pub fn new(
        shared: Shared,
        files: Vec<LazyFile>,
        data_dir: &Path,
        source: PageSource,
        horizon: Arc<Horizon>,
        room: Room,
    ) -> io::Result<Fetcher> {
        Ok(Fetcher {
            shared,
            files,
            data_dir: Beneath::open(data_dir)?,
            open_files: Mutex::default(),
            source,
            idle: Mutex::default(),
            in_flight: InFlight::default(),
            horizon,
            room,
        })
    }

    /// Returns once none of these blocks is absent, or when that cannot be.
    pub fn ensure(&self, wanted: &[BlockId], deadline: Instant) -> Result<(), FetchError> {
        let began = Instant::now();
        let late = |id: BlockId| match Instant::now() >= deadline {
            true => Err(FetchError::TimedOut {
                path: self.path(id),
                block: id.block,
                waited: began.elapsed(),
            }),
            false => Ok(()),
        };
        loop {
            match self.missing(wanted)? {
                Missing::Nothing => return Ok(()),
                Missing::Ours(plans) => {
                    self.fetch_ours(&plans, deadline)?;
                    // They may have been dropped again.
                    plans.first().map_or(Ok(()), |(id, _)| late(*id))?;
                }
                Missing::Others(id) => {
                    late(id)?;
                    self.in_flight.wait_for(id)?;
                }
            }
        }
    }

    /// Fetches what of these is absent and nobody else's, for nobody in particular: what fails is asked for again by
    /// whoever needs it.
    pub fn fetch_ahead(&self, wanted: &[BlockId], deadline: Instant) {
        if !self.room.is_tight()
            && let Ok(Missing::Ours(plans)) = self.missing(wanted)
            && let Err(error) = self.fetch_ours(&plans, deadline)
        {
            tracing::debug!(%error, "read-ahead");
        }
    }

    /// No fetch begins any more, and nobody waits.
    pub fn stop(&self) {
        self.in_flight.state.lock().is_over = true;
        self.in_flight.landed.notify_all();
        self.idle.lock().clear();
    }

    pub(super) fn path(&self, id: BlockId) -> String {
        self.files.get(id.file as usize).map_or_else(String::new, |file| file.path.clone())
    }

    fn missing(&self, wanted: &[BlockId]) -> Result<Missing, FetchError> {
        let mut ours = Vec::new();
        let mut others = None;
        let mut flights = None;
        for &id in wanted {
            let Some(agent) = self.shared.agent(id.file as usize) else {
                self.in_flight.forget(&ours, flights);
                return Err(FetchError::NoSuch(id));
            };
            if id.block >= agent.map().block_count() {
                continue;
            }
            let Some(block) = agent.map().block(id.block) else {
                self.in_flight.forget(&ours, flights);
                return Err(FetchError::Damaged { path: self.path(id) });
            };
            match block.state {
                State::Present | State::Writing => continue,
                State::Dropping | State::Fetching => others = Some(id),
                State::Absent => {
                    let flights = flights.get_or_insert_with(|| self.in_flight.state.lock());
                    if flights.blocks.insert(id) {
                        // Planned after it was entered: what changes from here on is seen.
                        match agent.plan_fetch(id.block) {
                            Some(plan) => ours.push((id, plan)),
                            None => {
                                flights.blocks.remove(&id);
                            }
                        }
                    } else {
                        others = Some(id);
                    }
                }
            }
        }
        drop(flights);
        Ok(match (ours.is_empty(), others) {
            (false, _) => Missing::Ours(ours),
            (true, Some(id)) => Missing::Others(id),
            (true, None) => Missing::Nothing,
        })
    }

    fn fetch_ours(
        &self,
        plans: &[(BlockId, FetchPlan)],
        deadline: Instant,
    ) -> Result<(), FetchError> {
        self.room.wait();
        let _landing = Landing { flights: &self.in_flight, plans };
        {
            let mut state = self.in_flight.state.lock();
            while state.fetches >= FETCHES_MAX && !state.is_over {
                if self.in_flight.landed.wait_until(&mut state, deadline).timed_out() {
                    return Err(FetchError::Unreachable("too many fetches wait".to_owned()));
                }
            }
            if state.is_over {
                return Err(FetchError::Stopping);
            }
            state.fetches += 1;
        }
        let _slot = Slot { flights: &self.in_flight };
        loop {
            // As of now: the lease moves on, and what is behind it may be refused.
            let requests = self.requests(plans);
            let tried = self.try_fetch(plans, &requests);
            match tried {
                Err(FetchError::Unreachable(_))
                    if Instant::now() + RETRY_PAUSE < deadline
                        && !self.in_flight.state.lock().is_over =>
                {
                    // Other connections are as broken as this one.
                    self.idle.lock().clear();
                    std::thread::sleep(RETRY_PAUSE);
                }
                other => return other,
            }
        }
    }

    /// One request for each block; of an SLRU segment, one for all.
    fn requests(&self, plans: &[(BlockId, FetchPlan)]) -> Vec<Request> {
        let not_modified_since = self.horizon.not_modified_since();
        // Taken second, so that it is never the lower one.
        let lsn = self.horizon.newest();
        let mut segments = HashSet::new();
        let mut requests = Vec::with_capacity(plans.len());
        for (index, (id, _)) in plans.iter().enumerate() {
            let Some(file) = self.files.get(id.file as usize) else { continue };
            let header = Header { request_id: index as u64, lsn, not_modified_since };
            let question = match (file.relation(), file.source) {
                (Some((rel, first_block)), _) => {
                    Question::Page { rel, block: first_block + id.block }
                }
                (None, Source::Slru { kind, segment }) => {
                    if !segments.insert(id.file) {
                        continue;
                    }
                    Question::SlruSegment { kind, segment }
                }
                (None, Source::Relation { .. }) => continue,
            };
            requests.push(Request { header, question });
        }
        requests
    }

    /// Asks and stores. On an error some of the blocks may be there.
    fn try_fetch(
        &self,
        plans: &[(BlockId, FetchPlan)],
        requests: &[Request],
    ) -> Result<(), FetchError> {
        let broken = |error: &dyn std::fmt::Display| FetchError::Unreachable(error.to_string());
        let mut copy = self.connection()?;
        let mut out = BytesMut::with_capacity(requests.len() * 64);
        let mut payload = BytesMut::with_capacity(64);
        if requests.len() == 1 {
            copy.put_core(&mut out);
        }
        for request in requests {
            payload.clear();
            request.encode(&mut payload);
            pageserver::put_copy_data(&mut out, &payload);
        }
        copy.send(&mut out).map_err(|error| broken(&error))?;
        let (mut failed, mut run) = (None, Run::default());
        for request in requests {
            if !copy.has_message() {
                // What is here does not wait for what is not.
                failed = failed.or(self.land(&mut run).err());
            }
            let payload = copy.payload().map_err(|error| broken(&error))?;
            let payload = payload.ok_or_else(|| broken(&"the page stream ended"))?;
            let response = Response::parse(payload).map_err(|error| broken(&error))?;
            if response.header.request_id != request.header.request_id {
                return Err(broken(&"an answer to another question"));
            }
            failed = failed.or(self.take(plans, request, response, &mut run).err());
        }
        failed = failed.or(self.land(&mut run).err());
        let mut idle = self.idle.lock();
        if idle.len() < IDLE_CONNECTIONS_MAX {
            idle.push(copy);
        }
        drop(idle);
        failed.map_or(Ok(()), Err)
    }

    /// Takes what one answer brought.
    fn take(
        &self,
        plans: &[(BlockId, FetchPlan)],
        request: &Request,
        response: Response,
        run: &mut Run,
    ) -> Result<(), FetchError> {
        let Some((id, plan)) = plans.get(request.header.request_id as usize) else { return Ok(()) };
        let refused = |message: &str| FetchError::Refused {
            path: self.path(*id),
            block: id.block,
            message: message.to_owned(),
        };
        match (response.answer, request.question) {
            (Answer::Page { rel, block, page }, Question::Page { rel: asked, block: wanted })
                if rel == asked && block == wanted && page.len() == PAGE_SIZE =>
            {
                self.add(run, *id, *plan, page)
            }
            (
                Answer::SlruSegment { kind, segment, pages },
                Question::SlruSegment { kind: asked, segment: wanted },
            ) if kind == asked && segment == wanted => {
                let of_file = plans.iter().filter(|(other, _)| other.file == id.file);
                for (id, plan) in of_file {
                    let start = id.block as usize * PAGE_SIZE;
                    if pages.len() < start + PAGE_SIZE {
                        return Err(refused("the page is missing"));
                    }
                    self.add(run, *id, *plan, pages.slice(start..start + PAGE_SIZE))?;
                }
                Ok(())
            }
            (Answer::Error { message }, _) => Err(refused(&message)),
            _ => Err(refused("an answer to another question")),
        }
    }

    /// A block of ours is no longer absent, or was given up.
    pub(super) fn landed(&self, id: BlockId) {
        self.in_flight.land(id);
        self.room.taken();
    }

    /// The file's descriptor, proven to be the one that was laid out, whatever its name stands for by now.
    pub fn file(&self, number: u32) -> io::Result<Arc<File>> {
        if let Some(file) = self.open_files.lock().get(&number) {
            return Ok(Arc::clone(file));
        }
        let laid_out = self.files.get(number as usize).ok_or(io::ErrorKind::NotFound)?;
        let file = self.data_dir.file_to_write(laid_out.path.as_ref())?;
        if identity(&file)? != laid_out.identity() {
            return Err(io::Error::other("another file has its name"));
        }
        let file = Arc::new(file);
        let mut open = self.open_files.lock();
        if open.len() >= OPEN_FILES_MAX {
            open.clear();
        }
        open.insert(number, Arc::clone(&file));
        Ok(file)
    }

    /// Lets go of files that Postgres removed, so that their space is free.
    pub fn forget_unlinked(&self) {
        let is_there = |number: &u32| {
            let agent = self.shared.agent(*number as usize);
            agent.is_some_and(|agent| !agent.map().is_unlinked())
        };
        self.open_files.lock().retain(|number, _| is_there(number));
    }

    fn connection(&self) -> Result<pageserver::Copy, FetchError> {
        if let Some(copy) = self.idle.lock().pop() {
            return Ok(copy);
        }
        let PageSource { address, query, silence_max } = &self.source;
        pageserver::open(address, query, *silence_max)
            .map_err(|error| FetchError::Unreachable(format!("{error:#}")))
    }
}

impl InFlight {
    /// Blocks that were entered and will not be asked for: whoever misses them asks.
    fn forget(&self, plans: &[(BlockId, FetchPlan)], state: Option<MutexGuard<'_, Flights>>) {
        let mut state = state.unwrap_or_else(|| self.state.lock());
        for (id, _) in plans {
            state.blocks.remove(id);
        }
        drop(state);
        self.landed.notify_all();
    }

    fn land(&self, id: BlockId) {
        let mut state = self.state.lock();
        state.blocks.remove(&id);
        // A scan waits for one of many blocks, and need not wake up for the others.
        if state.waited_for.contains(&id) {
            drop(state);
            self.landed.notify_all();
        }
    }

    /// Until a block that somebody else holds has landed, or is worth another look.
    fn wait_for(&self, id: BlockId) -> Result<(), FetchError> {
        let mut state = self.state.lock();
        if state.is_over {
            return Err(FetchError::Stopping);
        }
        let is_flying = state.blocks.contains(&id);
        state.waited_for.push(id);
        // One that is not on its way has just landed, or is being dropped.
        self.landed.wait_for(&mut state, if is_flying { LOOK_AGAIN } else { LOOK_SOON });
        if let Some(index) = state.waited_for.iter().position(|waited| *waited == id) {
            state.waited_for.swap_remove(index);
        }
        Ok(())
    }
}

/// Takes blocks out of the flight, however it ended.
struct Landing<'a> {
    flights: &'a InFlight,
    plans: &'a [(BlockId, FetchPlan)],
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        self.flights.forget(self.plans, None);
    }
}

/// One of the fetches under way.
struct Slot<'a> {
    flights: &'a InFlight,
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.flights.state.lock().fetches -= 1;
        self.flights.landed.notify_all();
    }
}
