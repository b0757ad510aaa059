//! One timeline's member of the quorum on disk: the pure acceptor, its control file and its WAL.
//!
//! Synchronous, one owner at a time. The order of things, as [`Member::process`] keeps it:
//! - appends of one batch are written, then synced once, then acknowledged all together (group commit);
//! - no other message is looked at while written bytes are unsynced, so that no vote speaks of less than the disk holds;
//! - effects are carried out in order: the cut is synced before the history is persisted, the history before
//!   the answer leaves.
//!
//! What a failure leaves: a full disk refuses with a reason, throws the state in memory away and starts again from
//! what the disk holds; bytes that are no WAL likewise. Any other failure latches the timeline: after a failed
//! sync nobody knows what the disk holds, and only opening anew may find out.
//!
//! At open, the log is followed record by record from the persisted `commit_lsn`; whatever lies behind the last
//! whole record is zeroed. What was found is synced first: the process that wrote it may have been killed before
//! its own sync.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use treering_consensus::{
    Acceptor, AcceptorMessage, AdminRequest, AdminResponse, Configuration, Effect, Input, Promises,
    ProposerId, ProposerMessage, Refusal, RefusalReason,
};
use treering_fs::{FileSystem, create_dir_durably};
use treering_pgfmt::wal::reader::WalDecoder;
use treering_types::{Lsn, NodeId, Term, WAL_SEGMENT_SIZE};

use crate::{
    control_file::{Control, Identity},
    error::StoreError,
    wal_store::{WalFiles, WalStore, pg_major, segment_start},
};

/// The commit position is persisted, for no promise's sake, when it has moved this far: it bounds the log that
/// the next open has to follow.
const COMMIT_PERSIST_BYTES: u64 = WAL_SEGMENT_SIZE;
/// Appends are refused when the file system has less room than this: votes, cuts and the control file still need some.
pub const DISK_RESERVE_BYTES: u64 = 64 * 1024 * 1024;
/// Bytes read at once while the log is followed.
const SCAN_BYTES: u64 = 1024 * 1024;

/// An answer on its way to a proposer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outgoing {
    pub to: ProposerId,
    pub message: AcceptorMessage,
}

/// A member's watermarks. All are record ends but `trim_lsn`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Status {
    pub term: Term,
    pub last_log_term: Term,
    pub start_lsn: Lsn,
    pub flush_lsn: Lsn,
    pub commit_lsn: Lsn,
    /// The oldest position held.
    pub trim_lsn: Lsn,
    /// Who decides, as far as this member knows.
    pub configuration: Configuration,
    /// Why the timeline refuses everything, when it does.
    pub latched: Option<String>,
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
    has_unsynced: bool,
    /// What the control file holds.
    persisted: Promises,
    trim_lsn: Lsn,
    latched: Option<String>,
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
        let files = WalFiles::new(fs.clone(), directory.to_path_buf(), identity.pg_tli);
        let mut store = WalStore::new(files);
        store.truncate(start_lsn.segment_start())?;
        store.create(&identity, start_lsn)?;
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
        let files = WalFiles::new(fs.clone(), directory.to_path_buf(), identity.pg_tli);
        check_committed_log_is_there(&files, &promises, trim_lsn)?;
        let flush_lsn = end_of_log(&files, &identity, promises.commit_lsn)?;
        let mut store = WalStore::new(files);
        store.sync_range(promises.commit_lsn, flush_lsn)?;
        if !is_zero_behind(store.files(), flush_lsn)? {
            store.truncate(flush_lsn)?;
        }
        store.remove_before(trim_lsn)?;
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
            has_unsynced: false,
            trim_lsn,
            latched: None,
        })
    }

    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// For readers of the log.
    pub fn files(&self) -> &WalFiles {
        self.store.files()
    }

    pub fn status(&self) -> Status {
        Status {
            term: self.acceptor.term(),
            last_log_term: self.acceptor.last_log_term(),
            start_lsn: self.acceptor.promises().start_lsn,
            flush_lsn: self.acceptor.flush_lsn(),
            commit_lsn: self.acceptor.commit_lsn(),
            trim_lsn: self.trim_lsn,
            configuration: self.acceptor.promises().configuration.clone(),
            latched: self.latched.clone(),
        }
    }

    /// Handles messages in order, and answers them. Never fails: a failure becomes a refusal to the proposer
    /// whose message met it.
    pub fn process(&mut self, batch: Vec<(ProposerId, ProposerMessage)>) -> Vec<Outgoing> {
        let mut out = Vec::new();
        let mut last = None;
        for (from, message) in batch {
            last = Some(from);
            if let Err(error) = self.receive(from, message, &mut out) {
                self.fail(from, &error, &mut out);
            }
        }
        if let (Some(from), Err(error)) = (last, self.flush(&mut out)) {
            self.fail(from, &error, &mut out);
        }
        if let Err(error) = self.persist_commit_if_far() {
            tracing::warn!(%error, timeline = %self.identity.timeline, "commit position not persisted");
        }
        out
    }

    /// Does what who changes the configuration asks for; what the answer says is durable.
    pub fn administer(&mut self, request: AdminRequest) -> Result<AdminResponse, StoreError> {
        let mut out = Vec::new();
        let done = self.check_latch().and_then(|()| {
            // As with every message but appends: nothing is said over unsynced bytes.
            self.flush(&mut out)?;
            self.step(Input::Administered(request), &mut out)
        });
        match done {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => unreachable!("every request is answered"),
            Err(error) => {
                if self.latched.is_none() {
                    let timeline = self.identity.timeline;
                    tracing::error!(%error, %timeline, "configuration not taken over");
                    self.recover(&error);
                }
                Err(error)
            }
        }
    }

    /// Persists the commit position if the control file has an older one: at a quiet moment, and before a stop.
    pub fn persist_commit(&mut self) -> Result<(), StoreError> {
        self.check_latch()?;
        if self.acceptor.commit_lsn() == self.persisted.commit_lsn {
            return Ok(());
        }
        self.persist(self.acceptor.promises().clone(), self.trim_lsn)
    }

    /// Removes whole segments before min(`horizon`, commit), keeping the one that holds it.
    pub fn trim(&mut self, horizon: Lsn) -> Result<(), StoreError> {
        self.check_latch()?;
        let limit = horizon.min(self.acceptor.commit_lsn()).segment_start();
        if limit <= self.trim_lsn {
            return Ok(());
        }
        self.persist(self.acceptor.promises().clone(), limit)?;
        self.store.remove_before(limit)
    }

    fn receive(
        &mut self,
        from: ProposerId,
        message: ProposerMessage,
        out: &mut Vec<Outgoing>,
    ) -> Result<(), StoreError> {
        self.check_latch()?;
        match &message {
            // One look at the disk and one sync for all appends of a batch.
            ProposerMessage::Append(append) if !append.bytes.is_empty() => {
                if !self.has_unsynced {
                    self.check_room()?;
                }
            }
            // Commits what is synced, and the rest once it is.
            ProposerMessage::Commit(_) => {}
            _ => self.flush(out)?,
        }
        self.step(Input::Received { from, message }, out).map(drop)
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
                Effect::Write { lsn, bytes } => self.write(lsn, &bytes)?,
                Effect::Send { to, message } => out.push(Outgoing { to, message }),
                Effect::Answer(response) => answer = Some(response),
            }
        }
        Ok(answer)
    }

    fn check_room(&self) -> Result<(), StoreError> {
        match self.fs.free_bytes(&self.directory) {
            Ok(free) if free < DISK_RESERVE_BYTES => {
                let path = self.directory.display().to_string();
                Err(StoreError::DiskFull { what: "append to", path })
            }
            Ok(_) => Ok(()),
            Err(error) => Err(StoreError::io("ask for the room at", &self.directory)(error)),
        }
    }

    fn write(&mut self, lsn: Lsn, bytes: &Bytes) -> Result<(), StoreError> {
        self.decoder.feed(bytes);
        while self.decoder.next_record().map_err(StoreError::NotWal)?.is_some() {}
        self.has_unsynced = true;
        self.store.write(lsn, bytes)
    }

    fn flush(&mut self, out: &mut Vec<Outgoing>) -> Result<(), StoreError> {
        if !self.has_unsynced {
            return Ok(());
        }
        self.store.sync()?;
        self.has_unsynced = false;
        self.step(Input::Flushed { record_end: self.decoder.position() }, out).map(drop)
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

    fn persist_commit_if_far(&mut self) -> Result<(), StoreError> {
        let moved = self.acceptor.commit_lsn().bytes_since(self.persisted.commit_lsn);
        if self.latched.is_some() || moved.unwrap_or(0) < COMMIT_PERSIST_BYTES {
            return Ok(());
        }
        self.persist_commit()
    }

    fn check_latch(&self) -> Result<(), StoreError> {
        match &self.latched {
            Some(reason) => Err(StoreError::Latched(reason.clone())),
            None => Ok(()),
        }
    }

    fn fail(&mut self, from: ProposerId, error: &StoreError, out: &mut Vec<Outgoing>) {
        let reason = error.refusal_reason();
        if self.latched.is_none() {
            tracing::error!(%error, timeline = %self.identity.timeline, "append refused");
            self.recover(error);
        }
        let refusal = Refusal { reason, text: error.to_string() };
        out.push(Outgoing { to: from, message: AcceptorMessage::Refusal(refusal) });
    }

    /// The acceptor's state is ahead of the disk: goes back to what the disk holds, or latches.
    fn recover(&mut self, error: &StoreError) {
        let may_go_on =
            matches!(error.refusal_reason(), RefusalReason::DiskFull | RefusalReason::Invalid);
        if !may_go_on {
            self.latched = Some(error.to_string());
            self.has_unsynced = false;
            return;
        }
        let commit_lsn = self.acceptor.commit_lsn();
        match Member::open(self.fs.clone(), &self.directory, self.node) {
            Ok(mut reopened) => {
                // The control file may hold an older commit position; what readers were told stays.
                let promises = Promises { commit_lsn, ..reopened.persisted.clone() };
                let flush_lsn = reopened.acceptor.flush_lsn();
                reopened.acceptor = Acceptor::open(self.node, promises, flush_lsn);
                *self = reopened;
            }
            Err(error) => {
                self.latched = Some(error.to_string());
                self.has_unsynced = false;
            }
        }
    }
}

fn decoder_at(identity: &Identity, lsn: Lsn) -> Result<WalDecoder, StoreError> {
    let major = pg_major(identity.pg_major)?;
    Ok(WalDecoder::new(major, lsn).with_system_id(identity.system_id))
}

fn check_committed_log_is_there(
    files: &WalFiles,
    promises: &Promises,
    trim_lsn: Lsn,
) -> Result<(), StoreError> {
    let commit_lsn = promises.commit_lsn;
    if commit_lsn == promises.start_lsn || commit_lsn == trim_lsn {
        return Ok(());
    }
    let last = Lsn(commit_lsn.0 - 1).segment_number();
    if files.segments()?.contains(&last) {
        return Ok(());
    }
    Err(StoreError::LogTooShort { commit_lsn })
}

/// The end of the last whole record that follows `from`, a record end.
fn end_of_log(files: &WalFiles, identity: &Identity, from: Lsn) -> Result<Lsn, StoreError> {
    let mut decoder = decoder_at(identity, from)?;
    let segments = files.segments()?;
    let mut at = from;
    while segments.contains(&at.segment_number()) {
        let to = Lsn(at.0 + SCAN_BYTES).min(segment_start(at.segment_number() + 1));
        decoder.feed(&files.read(at, to)?);
        at = to;
        loop {
            match decoder.next_record() {
                Ok(Some(_)) => {}
                Ok(None) => break,
                // Zeros, a torn record, or what an older log left: the log ends before it.
                Err(_) => return Ok(decoder.position()),
            }
        }
    }
    Ok(decoder.position())
}

fn is_zero_behind(files: &WalFiles, end: Lsn) -> Result<bool, StoreError> {
    let segments = files.segments()?;
    if segments.iter().any(|segment| segment_start(*segment) >= end) {
        return Ok(false);
    }
    if !segments.contains(&end.segment_number()) {
        return Ok(true);
    }
    let zeros = vec![0; SCAN_BYTES as usize];
    let mut at = end;
    let segment_end = segment_start(end.segment_number() + 1);
    while at < segment_end {
        let to = Lsn(at.0 + SCAN_BYTES).min(segment_end);
        // As one comparison: byte by byte this would be most of the time that an open takes.
        if files.read(at, to)? != zeros[..(to.0 - at.0) as usize] {
            return Ok(false);
        }
        at = to;
    }
    Ok(true)
}

#[cfg(test)]
mod tests;
