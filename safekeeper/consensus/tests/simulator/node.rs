//! A member: its disk, and the process on it, which does with effects what the safekeeper's driver does.

use std::ops::Range;

use treering_consensus::*;
use treering_types::{Lsn, NodeId};

use crate::{
    Bug,
    dice::Dice,
    record::{START, whole_records},
};

/// A log file and a control file. The control file is replaced atomically and durably; log written is lost in a
/// crash, or torn, until it was synced.
pub struct Disk {
    /// What a running process reads, from `START` on; zeros behind.
    log: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<Range<usize>>,
    pub control: Promises,
    pub is_full: bool,
}

impl Disk {
    fn write(&mut self, at: usize, bytes: &[u8]) {
        let end = at + bytes.len();
        if self.log.len() < end {
            self.log.resize(end, 0);
        }
        self.log[at..end].copy_from_slice(bytes);
        self.unsynced.push(at..end);
    }

    fn sync(&mut self) {
        self.durable.clone_from(&self.log);
        self.unsynced.clear();
    }

    /// Of what was written, just the first so many bytes of the log.
    fn sync_to(&mut self, end: usize) {
        if self.durable.len() < end {
            self.durable.resize(end, 0);
        }
        self.durable[..end].copy_from_slice(&self.log[..end]);
        self.unsynced.retain_mut(|range| {
            range.start = range.start.max(end);
            range.start < range.end
        });
    }

    /// Zeroes everything from `at` on, and syncs.
    fn cut(&mut self, at: usize) {
        self.log.truncate(at);
        self.sync();
    }

    /// Power is gone: of each unsynced write all survives, or a first part, or nothing.
    fn lose_power(&mut self, dice: &mut Dice) {
        let mut survived = self.durable.clone();
        for range in self.unsynced.drain(..) {
            let len = range.len();
            let kept = [0, len, dice.below(len + 1)][dice.below(3)];
            let end = range.start + kept;
            if kept > 0 {
                survived.resize(survived.len().max(end), 0);
                survived[range.start..end].copy_from_slice(&self.log[range.start..end]);
            }
        }
        // Not durable for having survived: it may still be in some cache, or not.
        let behind = self.durable.len().min(survived.len())..survived.len();
        self.unsynced = Vec::from([behind]);
        self.log = survived;
    }

    pub fn log(&self) -> &[u8] {
        &self.log
    }

    /// What survives whatever happens now.
    pub fn durable(&self) -> &[u8] {
        &self.durable
    }
}

/// What a step let out.
#[derive(Default)]
pub struct Sent {
    pub messages: Vec<(ProposerId, AcceptorMessage)>,
    pub answer: Option<AdminResponse>,
}

pub struct Node {
    pub id: NodeId,
    pub disk: Disk,
    /// The process, while it runs.
    pub acceptor: Option<Acceptor>,
    has_unsynced: bool,
    /// A sync is under way: what it covers.
    syncing: Option<Syncing>,
    bug: Option<Bug>,
}

#[derive(Clone, Copy)]
struct Syncing {
    written: usize,
    record_end: usize,
}

impl Node {
    pub fn new(id: NodeId, bug: Option<Bug>) -> Node {
        let disk = Disk {
            log: Vec::new(),
            durable: Vec::new(),
            unsynced: Vec::new(),
            control: Promises::at(Lsn(START)),
            is_full: false,
        };
        let mut node = Node { id, disk, acceptor: None, has_unsynced: false, syncing: None, bug };
        node.start();
        node
    }

    pub fn stop(&mut self) {
        self.acceptor = None;
        self.has_unsynced = false;
        self.syncing = None;
    }

    pub fn lose_power(&mut self, dice: &mut Dice) {
        self.stop();
        self.disk.lose_power(dice);
    }

    /// Follows the log from the commit position that was persisted, and cuts it behind the last whole record.
    pub fn start(&mut self) {
        let from = (self.disk.control.commit_lsn.0 - START) as usize;
        let end = from + whole_records(self.disk.log.get(from..).unwrap_or_default());
        self.cut(end);
        let flush_lsn = Lsn(START + end as u64);
        self.acceptor = Some(Acceptor::open(self.id, self.disk.control.clone(), flush_lsn));
    }

    fn cut(&mut self, at: usize) {
        match self.bug {
            Some(Bug::StaleTail) => self.disk.sync(),
            _ => self.disk.cut(at),
        }
    }

    /// As the driver does: nothing but appends, and news of a commit, is looked at over unsynced bytes.
    pub fn is_looked_at_unsynced(message: &ProposerMessage) -> bool {
        matches!(message, ProposerMessage::Append(_) | ProposerMessage::Commit(_))
    }

    /// Handles a message and carries out the effects, all or the first `limit`.
    pub fn receive(&mut self, from: ProposerId, message: ProposerMessage, limit: usize) -> Sent {
        let mut sent = Sent::default();
        if self.acceptor.is_none() {
            return sent;
        }
        if let ProposerMessage::Append(append) = &message
            && !append.bytes.is_empty()
            && self.disk.is_full
        {
            let refusal = Refusal { reason: RefusalReason::DiskFull, text: String::new() };
            self.stop();
            self.start();
            sent.messages.push((from, AcceptorMessage::Refusal(refusal)));
            return sent;
        }
        self.step(Input::Received { from, message }, limit, &mut sent);
        sent
    }

    pub fn administer(&mut self, request: AdminRequest, limit: usize) -> Sent {
        let mut sent = Sent::default();
        self.step(Input::Administered(request), limit, &mut sent);
        sent
    }

    /// Begins to sync what was written. False while that goes on, and where there is nothing to sync.
    pub fn begin_sync(&mut self) -> bool {
        if self.acceptor.is_none() || self.syncing.is_some() || !self.has_unsynced {
            return false;
        }
        self.syncing = Some(self.written());
        self.has_unsynced = false;
        true
    }

    /// What was written when the sync began is durable, and reported.
    pub fn end_sync(&mut self, sent: &mut Sent) {
        let Some(begun) = self.syncing.take() else { return };
        self.disk.sync_to(begun.written);
        let Syncing { record_end, .. } = match self.bug {
            Some(Bug::FlushBehindSync) => self.written(),
            _ => begun,
        };
        self.report_flushed(record_end, sent);
    }

    /// Syncs what was written, and says so. A sync under way ends before.
    pub fn flush(&mut self) -> Sent {
        let mut sent = Sent::default();
        self.end_sync(&mut sent);
        if self.acceptor.is_some() && self.has_unsynced {
            let Syncing { record_end, .. } = self.written();
            self.disk.sync();
            self.has_unsynced = false;
            self.report_flushed(record_end, &mut sent);
        }
        sent
    }

    /// All that was written, and the last whole record in it.
    fn written(&self) -> Syncing {
        let acceptor = self.acceptor.as_ref().expect("it runs");
        let written = (acceptor.write_lsn().0 - START) as usize;
        let flushed = (acceptor.flush_lsn().0 - START) as usize;
        let record_end = match self.bug {
            Some(Bug::FlushInsideRecord) => written,
            _ => flushed + whole_records(&self.disk.log[flushed..written]),
        };
        Syncing { written, record_end }
    }

    fn report_flushed(&mut self, record_end: usize, sent: &mut Sent) {
        let record_end = Lsn(START + record_end as u64);
        self.step(Input::Flushed { record_end }, usize::MAX, sent);
    }

    /// The commit position is persisted now and then, for no promise's sake, beside whatever sync is under way.
    pub fn persist(&mut self) {
        if let Some(acceptor) = &self.acceptor {
            self.disk.control = acceptor.promises().clone();
        }
    }

    fn step(&mut self, input: Input, limit: usize, sent: &mut Sent) {
        let Some(acceptor) = &mut self.acceptor else { return };
        let mut effects = acceptor.step(input);
        if self.bug == Some(Bug::VoteBeforePersist) {
            effects.sort_by_key(|effect| !matches!(effect, Effect::Send { .. }));
        }
        for effect in effects.into_iter().take(limit) {
            match effect {
                Effect::Truncate { to } => {
                    let too_far = if self.bug == Some(Bug::CutTooFar) { 16 } else { 0 };
                    self.cut((to.0 - START).saturating_sub(too_far) as usize);
                }
                Effect::Persist(promises) => self.disk.control = promises,
                Effect::Write { lsn, bytes } => {
                    self.disk.write((lsn.0 - START) as usize, &bytes);
                    self.has_unsynced = true;
                }
                Effect::Send { to, message } => sent.messages.push((to, message)),
                Effect::Answer(response) => sent.answer = Some(response),
            }
        }
    }
}
