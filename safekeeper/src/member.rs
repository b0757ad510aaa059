//! One timeline's member of the quorum on disk: the pure acceptor, its control file and its WAL.
//!
//! One owner at a time. The order of things:
//! - appends of one batch are written, then synced once, then acknowledged all together (group commit);
//! - a sync may be under way on another thread while more is written ([`Member::begin_sync`]); at its end just what was written
//!   before it began is acknowledged;
//! - no other message is looked at while written bytes are unsynced, or a sync is under way, so that no vote speaks of less
//!   than the disk holds, and nothing is cut or closed under a sync;
//! - effects are carried out in order: the cut is synced before the history is persisted, the history before
//!   the answer leaves.
//!
//! What a failure leaves: appends for which there is no room are refused before anything is done. Where the disk fills
//! up in the middle of a step, or bytes are no WAL, the state in memory is ahead of the disk; it is thrown away, and
//! made again of what the disk holds, as soon as that can be done (`Adrift` until then). Any other failure latches the
//! timeline: after a failed sync nobody knows what the disk holds, and only opening anew may find out.
//!
//! At open, the log is followed record by record from the persisted `commit_lsn`; whatever lies behind the last
//! whole record is zeroed. What was found is synced first: the process that wrote it may have been killed before
//! its own sync.

mod log_end;
mod sync;
mod trouble;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use treering_consensus::{
    Acceptor, AcceptorMessage, AdminRequest, AdminResponse, Configuration, Effect, Input, Promises,
    ProposerId, ProposerMessage, RefusalReason,
};
use treering_fs::{FileSystem, create_dir_durably};
use treering_pgfmt::wal::reader::WalDecoder;
use treering_types::{Lsn, NodeId, Term, WAL_PAGE_SIZE, WAL_SEGMENT_SIZE};

use self::{
    log_end::{check_committed_log_is_there, decoder_at, end_of_log, is_zero_behind},
    sync::Begun,
    trouble::refusal,
};
use crate::{
    control_file::{Control, Identity},
    error::StoreError,
    room::{Room, Share},
    segment_head::SegmentHead,
    spares::{Filler, KEPT_MAX},
    wal_store::{WalFiles, WalStore},
};

/// The commit position is persisted, for no promise's sake, when it has moved this far: it bounds the log that
/// the next open has to follow.
const COMMIT_PERSIST_BYTES: u64 = WAL_SEGMENT_SIZE;
/// An answer on its way to a proposer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outgoing {
    pub to: ProposerId,
    pub message: AcceptorMessage,
}

/// A member's watermarks. All are record ends but `trim_lsn`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Status {
    pub term: Term,
    pub last_log_term: Term,
    pub start_lsn: Lsn,
    pub flush_lsn: Lsn,
    pub commit_lsn: Lsn,
    /// The oldest position held here.
    pub trim_lsn: Lsn,
    /// Before this, what was made of the log is durable at the pageserver, as far as is known here.
    pub horizon_lsn: Lsn,
    /// How far the pageserver has read the log, as far as is known here.
    pub ingested_lsn: Lsn,
    /// Before this the log is in the archive, as far as is known here; `None` without an archive.
    pub archived_lsn: Option<Lsn>,
    /// Who decides, as far as this member knows.
    pub configuration: Configuration,
    /// Why the timeline refuses everything, when it does.
    pub latched: Option<String>,
    /// Why the last append was refused for lack of room, until one is taken again.
    pub refusing: Option<String>,
}

/// Whether the state in memory may be used.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Health {
    Sound,
    /// It is ahead of the disk, and has to be made again from there first.
    Adrift,
    /// Nobody knows what the disk holds, and why.
    Latched(String),
}

/// What need not be held here any more, because it is durable elsewhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Elsewhere {
    /// Before this, in one form or another.
    pub lsn: Lsn,
    /// The log itself, so that it can be read from there: all of it may go while nobody writes.
    pub has_log: bool,
}

/// See the module's head.
pub struct Member {
    fs: Arc<dyn FileSystem>,
    directory: PathBuf,
    node: NodeId,
    identity: Identity,
    acceptor: Acceptor,
    store: WalStore,
    /// Follows the bytes written; its position is the last record end among them.
    decoder: WalDecoder,
    /// Bytes written since a sync was last begun.
    unsynced_bytes: u64,
    /// A sync that is under way on another thread.
    begun: Option<Begun>,
    /// What the control file holds.
    persisted: Promises,
    trim_lsn: Lsn,
    health: Health,
    refusing: Option<String>,
    share: Share,
    /// How much may still be appended before the disk is asked for its room again.
    seen_room: u64,
}

impl Member {
    /// Makes a new timeline whose log begins at `start_lsn`, a record end. Durable on return; a crash before
    /// leaves a directory without a control file, which can be created again.
    pub fn create(
        fs: Arc<dyn FileSystem>,
        directory: &Path,
        node: NodeId,
        identity: Identity,
        start_lsn: Lsn,
    ) -> Result<Member, StoreError> {
        let mut decoder = decoder_at(&identity, start_lsn)?;
        decoder.next_record().map_err(StoreError::NotWal)?;
        create_dir_durably(&*fs, directory).map_err(StoreError::io("create", directory))?;
        let head = SegmentHead::new(&identity, start_lsn)?;
        let mut store = WalStore::new(WalFiles::new(fs.clone(), directory.to_path_buf(), head));
        // What a creation left that did not come to its end.
        store.truncate(start_lsn.segment_start())?;
        let promises = Promises::at(start_lsn);
        Control { identity, promises, trim_lsn: start_lsn }.write(&*fs, directory)?;
        Member::open(fs, directory, node)
    }

    /// Opens what is on disk.
    pub fn open(
        fs: Arc<dyn FileSystem>,
        directory: &Path,
        node: NodeId,
    ) -> Result<Member, StoreError> {
        let Control { identity, promises, trim_lsn } = Control::read(&*fs, directory)?;
        let head = SegmentHead::new(&identity, promises.start_lsn)?;
        let files = WalFiles::new(fs.clone(), directory.to_path_buf(), head);
        // First of all: what follows may need room.
        WalStore::new(files.clone()).remove_spares()?;
        check_committed_log_is_there(&files, &promises, trim_lsn)?;
        let flush_lsn = end_of_log(&files, &identity, promises.commit_lsn)?;
        let mut store = WalStore::new(files);
        store.sync_range(promises.commit_lsn, flush_lsn)?;
        if !is_zero_behind(store.files(), flush_lsn)? {
            store.truncate(flush_lsn)?;
        }
        match flush_lsn == trim_lsn {
            true => store.remove_all()?,
            false => store.remove_before(trim_lsn)?,
        }
        let decoder = decoder_at(&identity, flush_lsn)?;
        Ok(Member {
            fs,
            directory: directory.to_path_buf(),
            node,
            identity,
            persisted: promises.clone(),
            acceptor: Acceptor::open(node, promises, flush_lsn),
            store,
            decoder,
            unsynced_bytes: 0,
            begun: None,
            trim_lsn,
            health: Health::Sound,
            refusing: None,
            share: Room::of(u64::MAX).share(),
            seen_room: 0,
        })
    }

    /// Charges what the log takes to `room`, and keeps to its limit.
    pub fn charged_to(mut self, room: &Arc<Room>) -> Member {
        self.share = room.share();
        self.charge();
        self
    }

    fn charge(&mut self) {
        let ahead = self.store.ahead_bytes(self.acceptor.write_lsn());
        self.share.set(self.log_bytes() + ahead);
    }

    fn log_bytes(&self) -> u64 {
        self.acceptor.write_lsn().0.saturating_sub(self.trim_lsn.0)
    }

    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    pub(crate) fn flush_lsn(&self) -> Lsn {
        self.acceptor.flush_lsn()
    }

    /// For readers of the log.
    pub fn files(&self) -> &WalFiles {
        self.store.files()
    }

    pub fn status(&self) -> Status {
        let promises = match self.health {
            // What is not on disk was promised to nobody.
            Health::Adrift => &self.persisted,
            Health::Sound | Health::Latched(_) => self.acceptor.promises(),
        };
        let flush_lsn = self.acceptor.flush_lsn();
        Status {
            term: promises.term,
            last_log_term: promises.history.last_term_at(flush_lsn),
            start_lsn: promises.start_lsn,
            flush_lsn,
            commit_lsn: self.acceptor.commit_lsn(),
            trim_lsn: self.trim_lsn,
            horizon_lsn: Lsn::INVALID,
            ingested_lsn: Lsn::INVALID,
            archived_lsn: None,
            configuration: promises.configuration.clone(),
            latched: match &self.health {
                Health::Latched(reason) => Some(reason.clone()),
                Health::Sound | Health::Adrift => None,
            },
            refusing: self.refusing.clone(),
        }
    }

    /// Handles messages in order, syncs what was written, and answers. Never fails: a failure becomes a refusal to the
    /// proposer whose message met it.
    pub fn process(&mut self, batch: Vec<(ProposerId, ProposerMessage)>) -> Vec<Outgoing> {
        let mut out = self.take_in(batch);
        self.sync(&mut out);
        self.persist_commit_if_far();
        out
    }

    /// As [`Member::process`], but what was written last stays unsynced, and unanswered.
    pub(crate) fn take_in(&mut self, batch: Vec<(ProposerId, ProposerMessage)>) -> Vec<Outgoing> {
        let mut out = Vec::new();
        for (from, message) in batch {
            if let Err(error) = self.receive(from, message, &mut out) {
                self.fail(from, &error, &mut out);
            }
        }
        out
    }

    /// Does what who changes the configuration asks for; what the answer says is durable. What had to be synced before is
    /// acknowledged in `out`.
    pub fn administer(
        &mut self,
        request: AdminRequest,
        out: &mut Vec<Outgoing>,
    ) -> Result<AdminResponse, StoreError> {
        let leader = self.acceptor.leader().filter(|_| !self.is_synced());
        let done = self.make_usable().and_then(|()| {
            // As with every message but appends: nothing is said over unsynced bytes.
            self.flush(out)?;
            self.step(Input::Administered(request), out)
        });
        match done {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => unreachable!("every request is answered"),
            Err(error) => {
                if self.health == Health::Sound {
                    let timeline = self.identity.timeline;
                    tracing::error!(%error, %timeline, "configuration not taken over");
                    self.recover(&error);
                    // Who waits for what was not synced hears of it, too.
                    out.extend(leader.map(|leader| refusal(leader, &error)));
                }
                Err(error)
            }
        }
    }

    /// Persists the commit position if the control file has an older one: at a quiet moment, and before a stop.
    pub fn persist_commit(&mut self) -> Result<(), StoreError> {
        self.make_usable()?;
        if self.acceptor.commit_lsn() == self.persisted.commit_lsn {
            return Ok(());
        }
        let persisted = self.persist(self.acceptor.promises().clone(), self.trim_lsn);
        self.heed(persisted)
    }

    /// Removes what is committed and durable elsewhere: whole segments; if `is_asleep`, nobody writes or is about to,
    /// and all of the log can be read elsewhere, all of it. The next append then begins a segment's file in its middle.
    pub fn trim(&mut self, elsewhere: Elsewhere, is_asleep: bool) -> Result<(), StoreError> {
        self.make_usable()?;
        let trimmed = self.remove_behind(elsewhere, is_asleep);
        self.heed(trimmed)
    }

    fn remove_behind(&mut self, elsewhere: Elsewhere, is_asleep: bool) -> Result<(), StoreError> {
        let limit = elsewhere.lsn.min(self.acceptor.commit_lsn());
        let is_all = is_asleep && elsewhere.has_log && limit == self.acceptor.write_lsn();
        let limit = if is_all { limit } else { limit.segment_start() };
        if limit <= self.trim_lsn {
            return Ok(());
        }
        if let Err(error) = self.persist(self.acceptor.promises().clone(), limit) {
            if error.refusal_reason() == RefusalReason::DiskFull {
                // Not even a control file has room. What the last one needs not is removed to make some.
                let vouched = limit.min(self.persisted.commit_lsn);
                self.store.remove_spares()?;
                self.store.remove_before(vouched)?;
                self.charge();
            }
            return Err(error);
        }
        match is_all {
            true => {
                assert!(self.is_synced(), "what is committed is synced");
                self.store.remove_all()?;
                self.store.remove_spares()?;
            }
            false => {
                let may_keep = self.has_ample_room(KEPT_MAX as u64 * WAL_SEGMENT_SIZE);
                self.store.recycle_before(limit, may_keep)?;
            }
        }
        self.charge();
        Ok(())
    }

    /// What fills a segment's file for the log to come, where that is wanted and there is room. It may run beside everything else.
    pub(crate) fn filler(&mut self) -> Option<Filler> {
        let filler = self.store.filler()?;
        // Dropped, its file is no more.
        let filler = self.has_ample_room(WAL_SEGMENT_SIZE).then_some(filler);
        self.charge();
        filler
    }

    /// Gives up all but one of the files that were made, or kept, for a log to come.
    pub(crate) fn shrink_spares(&mut self) -> Result<(), StoreError> {
        let shrunk = self.store.shrink_spares(1);
        self.charge();
        shrunk
    }

    /// Gives up all that was taken for a log to come.
    pub(crate) fn give_back(&mut self) -> Result<(), StoreError> {
        // Asked for again and again while nothing is written: the directory need not be looked at each time.
        let has_none = self.store.ahead_bytes(self.acceptor.write_lsn()) == 0;
        if has_none || self.health != Health::Sound || !self.is_synced() {
            self.charge();
            return Ok(());
        }
        let given_back = self.store.give_back_rest(self.acceptor.write_lsn());
        if let Err(error) = &given_back {
            // It may be cut off, and not made whole again.
            self.recover(error);
        }
        let removed = self.store.remove_spares();
        self.charge();
        given_back.and(removed)
    }

    fn receive(
        &mut self,
        from: ProposerId,
        message: ProposerMessage,
        out: &mut Vec<Outgoing>,
    ) -> Result<(), StoreError> {
        self.make_usable()?;
        let before = self.unsynced_bytes;
        match &message {
            ProposerMessage::Append(append) if !append.bytes.is_empty() => {
                if let Err(error) = self.take_room(append.bytes.len() as u64) {
                    self.refuse_for_room(from, &error, out);
                    return Ok(());
                }
            }
            // Commits what is synced, and the rest once it is.
            ProposerMessage::Commit(_) => {}
            _ => self.flush(out)?,
        }
        self.step(Input::Received { from, message }, out)?;
        // An append may not have been taken, and what a proposer cuts off is room again.
        self.charge();
        if self.unsynced_bytes > before && self.refusing.take().is_some() {
            tracing::info!(timeline = %self.identity.timeline, "there is room for the log again");
        }
        Ok(())
    }

    fn step(
        &mut self,
        input: Input,
        out: &mut Vec<Outgoing>,
    ) -> Result<Option<AdminResponse>, StoreError> {
        let mut answer = None;
        for effect in self.acceptor.step(input) {
            match effect {
                Effect::Truncate { to } => self.truncate(to)?,
                Effect::Persist(promises) => self.persist(promises, self.trim_lsn)?,
                Effect::Write { lsn, bytes } => self.write(lsn, bytes)?,
                Effect::Send { to, message } => out.push(Outgoing { to, message }),
                Effect::Answer(response) => answer = Some(response),
            }
        }
        Ok(answer)
    }

    fn write(&mut self, lsn: Lsn, bytes: Bytes) -> Result<(), StoreError> {
        self.unsynced_bytes += bytes.len() as u64;
        self.follow(lsn, &bytes)?;
        self.store.write(lsn, &bytes)
    }

    /// Checks that the bytes go on as a log does, and finds the last record's end. What the decoder has left of the page before
    /// is joined with the rest of that page alone: most of the bytes are looked at where they are.
    fn follow(&mut self, lsn: Lsn, bytes: &Bytes) -> Result<(), StoreError> {
        let in_page = (lsn.0.next_multiple_of(WAL_PAGE_SIZE) - lsn.0).min(bytes.len() as u64);
        for part in [bytes.slice(..in_page as usize), bytes.slice(in_page as usize..)] {
            if !part.is_empty() {
                self.decoder.feed_shared(part);
                while self.decoder.next_record().map_err(StoreError::NotWal)?.is_some() {}
            }
        }
        self.decoder.let_go();
        Ok(())
    }

    fn truncate(&mut self, to: Lsn) -> Result<(), StoreError> {
        self.store.truncate(to)?;
        self.decoder = decoder_at(&self.identity, to)?;
        Ok(())
    }

    fn persist(&mut self, promises: Promises, trim_lsn: Lsn) -> Result<(), StoreError> {
        let control = Control { identity: self.identity.clone(), promises, trim_lsn };
        control.write(&*self.fs, &self.directory)?;
        self.persisted = control.promises;
        self.trim_lsn = trim_lsn;
        Ok(())
    }
}

#[cfg(test)]
mod room_tests;
#[cfg(test)]
mod spare_tests;
#[cfg(test)]
mod sync_tests;
#[cfg(test)]
mod tests;
