//! What proposers and acceptors say to each other. The bytes are `docs/formats/safekeeper-protocol.md`.

use std::fmt;

use bytes::Bytes;
use treering_types::{ErrorKind, Lsn, NodeId, TenantId, Term, TimelineId};

use crate::{Configuration, Generation, TermHistory};

/// One run of one proposer, chosen at random by its owner: a vote belongs to it, not to a machine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProposerId(pub [u8; 16]);

impl fmt::Display for ProposerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ProposerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// From a proposer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ProposerMessage {
    Greeting(Greeting),
    VoteRequest(VoteRequest),
    Elected(Elected),
    Append(Append),
    Commit(Commit),
}

/// From an acceptor.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AcceptorMessage {
    GreetingResponse(GreetingResponse),
    VoteResponse(VoteResponse),
    AppendResponse(AppendResponse),
    /// The message came under an older configuration than this one, and was not looked at.
    NewerConfiguration(Configuration),
    /// The connection is closed after it.
    Refusal(Refusal),
}

/// First on every connection. Names the timeline, and creates it when it does not exist.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Greeting {
    pub proposer: ProposerId,
    pub tenant: TenantId,
    pub timeline: TimelineId,
    /// Postgres's system identifier; must match an existing timeline's, as must the next two.
    pub system_id: u64,
    pub pg_major: u32,
    pub pg_tli: u32,
    /// Where the log of a timeline begins that does not exist yet: a record end. Ignored otherwise.
    pub start_lsn: Lsn,
    /// The Postgres timelines that this one descends from, oldest first. Ignored if the timeline exists.
    pub pg_ancestors: Vec<PgAncestor>,
    /// The proposer's; an acceptor that has an older one takes it over.
    pub configuration: Configuration,
}

/// One line of a Postgres timeline history file: a timeline, and where the next one (or our own) left it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PgAncestor {
    pub pg_tli: u32,
    pub switch_lsn: Lsn,
}

/// Where the acceptor stands; promises nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GreetingResponse {
    pub node: NodeId,
    pub term: Term,
    pub flush_lsn: Lsn,
    pub commit_lsn: Lsn,
    /// The proposer's or a newer one.
    pub configuration: Configuration,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VoteRequest {
    pub generation: Generation,
    pub term: Term,
}

/// `granted`: the acceptor will never again accept WAL of a lower term, nor vote for another in this one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VoteResponse {
    pub term: Term,
    pub granted: bool,
    pub flush_lsn: Lsn,
    pub commit_lsn: Lsn,
    /// The entries that `flush_lsn` has reached.
    pub history: TermHistory,
}

/// A majority has voted. The acceptor cuts its log where it parts from `history`, and takes the history over;
/// the [`AppendResponse`] that follows says from where to stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Elected {
    pub generation: Generation,
    pub term: Term,
    /// Ends with (term, F).
    pub history: TermHistory,
}

/// The next bytes of the log: `lsn` must be where the acceptor's bytes end. No bytes: a sign of life that
/// is answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Append {
    pub generation: Generation,
    pub term: Term,
    pub lsn: Lsn,
    pub commit_lsn: Lsn,
    pub bytes: Bytes,
}

/// News of the commit position, not answered (but by a higher term).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Commit {
    pub generation: Generation,
    pub term: Term,
    pub commit_lsn: Lsn,
}

/// From who changes the configuration ([`crate::Change`]), by way of the safekeeper's admin API.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AdminRequest {
    /// Where do you stand?
    Read,
    /// Accept no configuration below this generation any more ([`AdminRequest::Accept`] only; what a proposer
    /// carries is always followed).
    Promise(Generation),
    /// Take this configuration over, unless a higher generation is promised or followed.
    Accept(Configuration),
}

/// Where an acceptor stands, after it has done what was asked or refused to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AdminResponse {
    pub granted: bool,
    /// The highest generation promised.
    pub promised: Generation,
    pub configuration: Configuration,
    pub term: Term,
    pub last_log_term: Term,
    pub flush_lsn: Lsn,
    pub commit_lsn: Lsn,
}

/// Everything up to `flush_lsn` is on the acceptor's disk, in a log that is a prefix of the term's.
///
/// Also the answer to a message of a deposed proposer: then `term` is the higher one, and nothing else counts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AppendResponse {
    /// Of the configuration that the acceptor follows: counts under no other.
    pub generation: Generation,
    pub term: Term,
    pub flush_lsn: Lsn,
    pub commit_lsn: Lsn,
}

/// Why an acceptor closes a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    pub reason: RefusalReason,
    /// For people.
    pub text: String,
}

/// What a proposer may do about a refusal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum RefusalReason {
    /// The disk is full, or near it; try again later.
    DiskFull = 1,
    /// The disk failed; the timeline is latched until it was reopened.
    Io = 2,
    /// The greeting does not describe the timeline of that id.
    Conflict = 3,
    /// The timeline was deleted.
    Gone = 4,
    /// The acceptor is stopping.
    Shutdown = 5,
    /// The bytes are no WAL, or the message makes no sense here.
    Invalid = 6,
    /// The log on disk is damaged.
    Corrupt = 7,
}

impl RefusalReason {
    pub fn kind(self) -> ErrorKind {
        match self {
            RefusalReason::DiskFull => ErrorKind::Busy,
            RefusalReason::Io => ErrorKind::Io,
            RefusalReason::Conflict => ErrorKind::Conflict,
            RefusalReason::Gone => ErrorKind::Gone,
            RefusalReason::Shutdown => ErrorKind::Shutdown,
            RefusalReason::Invalid => ErrorKind::Invalid,
            RefusalReason::Corrupt => ErrorKind::Corrupt,
        }
    }
}
