//! What a member does when it cannot do what it is asked: too little room, bytes that are no WAL, a disk that fails.

use treering_consensus::{Acceptor, AcceptorMessage, Promises, ProposerId, Refusal, RefusalReason};

use super::{Begun, Health, Member, Outgoing};
use crate::{
    error::StoreError,
    room::{DISK_AMPLE_BYTES, DISK_RESERVE_BYTES},
};

/// The disk is asked for its free room when a timeline has taken so much since it was asked last.
const LOOK_EVERY_BYTES: u64 = DISK_RESERVE_BYTES / 256;

impl Member {
    /// Looks whether so many bytes may be appended. Not for each at the disk: the log cannot take much of the reserve by the next look.
    pub(super) fn take_room(&mut self, bytes: u64) -> Result<(), StoreError> {
        self.look_for_room(bytes).or_else(|error| {
            if self.store.ahead_bytes(self.acceptor.write_lsn()) == 0 {
                return Err(error);
            }
            self.store.remove_spares()?;
            // And the rest of the segment is there for this.
            self.share.set(self.log_bytes());
            self.look_for_room(bytes)
        })
    }

    fn look_for_room(&mut self, bytes: u64) -> Result<(), StoreError> {
        if self.seen_room < bytes {
            self.check_free(DISK_RESERVE_BYTES)?;
            self.seen_room = LOOK_EVERY_BYTES.max(bytes);
        }
        self.share.grow(bytes)?;
        self.seen_room -= bytes;
        Ok(())
    }

    /// Whether so much may be taken that is not needed yet.
    pub(super) fn has_ample_room(&self, bytes: u64) -> bool {
        self.share.room().is_ample(bytes) && self.check_free(DISK_AMPLE_BYTES + bytes).is_ok()
    }

    fn check_free(&self, least: u64) -> Result<(), StoreError> {
        match self.fs.free_bytes(&self.directory) {
            Ok(free) if free < least => {
                let path = self.directory.display().to_string();
                Err(StoreError::DiskFull { what: "append to", path })
            }
            Ok(_) => Ok(()),
            Err(error) => Err(StoreError::io("ask for the room at", &self.directory)(error)),
        }
    }

    /// An append that nothing was done about. Proposers come back again and again: one word in the log is enough.
    pub(super) fn refuse_for_room(
        &mut self,
        from: ProposerId,
        error: &StoreError,
        out: &mut Vec<Outgoing>,
    ) {
        if self.refusing.is_none() {
            tracing::warn!(%error, timeline = %self.identity.timeline, "no room for the log");
        }
        self.refusing = Some(error.to_string());
        out.push(refusal(from, error));
    }

    /// Refuses what is latched, and gives what is adrift its ground back.
    pub(super) fn make_usable(&mut self) -> Result<(), StoreError> {
        match &self.health {
            Health::Sound => Ok(()),
            Health::Adrift => self.open_again(),
            Health::Latched(reason) => Err(StoreError::Latched(reason.clone())),
        }
    }

    pub(super) fn fail(&mut self, from: ProposerId, error: &StoreError, out: &mut Vec<Outgoing>) {
        let is_full = error.refusal_reason() == RefusalReason::DiskFull;
        if self.health == Health::Sound {
            if !is_full || self.refusing.is_none() {
                tracing::error!(%error, timeline = %self.identity.timeline, "refused");
            }
            self.recover(error);
        }
        if is_full {
            self.refusing = Some(error.to_string());
        }
        out.push(refusal(from, error));
    }

    /// A failure beside bytes that are not acknowledged yet: it may be that of a name which one of their files got, and the kernel
    /// tells of it once, not again to the sync that needs it.
    pub(super) fn heed(&mut self, done: Result<(), StoreError>) -> Result<(), StoreError> {
        if let Err(error) = &done
            && !self.is_synced()
            && self.health == Health::Sound
            && error.refusal_reason() != RefusalReason::DiskFull
        {
            self.recover(error);
        }
        done
    }

    /// The acceptor's state is ahead of the disk: goes back to what the disk holds, or latches.
    pub(super) fn recover(&mut self, error: &StoreError) {
        self.unsynced_bytes = 0;
        // No file is touched under a sync.
        let ended = self.begun.take().map_or(Ok(()), Begun::wait);
        self.health = match (ended, error.refusal_reason()) {
            (Err(failed), _) => Health::Latched(failed.to_string()),
            (Ok(()), RefusalReason::DiskFull | RefusalReason::Invalid) => Health::Adrift,
            (Ok(()), _) => Health::Latched(error.to_string()),
        };
        if self.health == Health::Adrift {
            // On a full disk it may have to wait: the next message tries again.
            let _ = self.open_again();
        }
    }

    /// Makes the state in memory of what the disk holds. Without room for that it stays adrift.
    fn open_again(&mut self) -> Result<(), StoreError> {
        let commit_lsn = self.acceptor.commit_lsn();
        // Whoever is filling one stops.
        let _ = self.store.remove_spares();
        let mut reopened = match Member::open(self.fs.clone(), &self.directory, self.node) {
            Ok(reopened) => reopened,
            Err(error) => {
                if error.refusal_reason() != RefusalReason::DiskFull {
                    self.health = Health::Latched(error.to_string());
                }
                return Err(error);
            }
        };
        // The control file may hold an older commit position; what readers were told stays.
        let promises = Promises { commit_lsn, ..reopened.persisted.clone() };
        let flush_lsn = reopened.acceptor.flush_lsn();
        reopened.acceptor = Acceptor::open(self.node, promises, flush_lsn);
        reopened.refusing = self.refusing.take();
        *self = reopened.charged_to(&self.share.room().clone());
        Ok(())
    }
}

pub(super) fn refusal(to: ProposerId, error: &StoreError) -> Outgoing {
    let refusal = Refusal { reason: error.refusal_reason(), text: error.to_string() };
    Outgoing { to, message: AcceptorMessage::Refusal(refusal) }
}
