//! The quorum's rules as pure state machines: who may write the log, what is committed, where two logs part.
//!
//! Raft-flavoured Paxos over Postgres WAL. The log of a timeline is a byte sequence; each elected proposer
//! owns one [`Term`](treering_types::Term) and begins it with an entry (term, F) in the [`TermHistory`], F
//! being the end of the log that it adopted. That entry plays the part of Raft's first entry of a term:
//! persisted on a majority whose `flush_lsn` is at least F, it commits F.
//!
//! Invariants, checked by the simulator in `tests/`:
//! - at most one proposer is ever elected in a term;
//! - two acceptors whose histories agree on the entry that covers a position hold the same bytes there;
//! - what a proposer reported as committed is in the log of every later elected proposer;
//! - every watermark in a message is a record end. This crate never looks into the bytes: the driver, which
//!   decodes them, says where records end.
//!
//! No I/O, no clock, no randomness. The [`Acceptor`] answers with [`Effect`]s to be carried out in order; the
//! [`Proposer`] with [`Action`]s. Framing for the network is in [`codec`].

#![forbid(unsafe_code)]

mod acceptor;
mod change;
pub mod codec;
mod configuration;
mod history;
mod message;
mod proposer;
mod settled;

pub use acceptor::{Acceptor, Effect, Input, Promises};
pub use change::{Change, ChangeAction, ChangePhase};
pub use configuration::{Configuration, ConfigurationError, Generation, is_majority};
pub use history::{HistoryError, TermHistory, TermStart};
pub use message::{
    AcceptorMessage, AdminRequest, AdminResponse, Append, AppendResponse, Commit, Elected,
    Greeting, GreetingResponse, PgAncestor, ProposerId, ProposerMessage, Refusal, RefusalReason,
    VoteRequest, VoteResponse,
};
pub use proposer::{
    Action, Election, Proposer, ProposerConfig, ProposerError, TimelineIdentity, WalHolder,
    WalSource,
};
pub use settled::{MemberEnd, settled_end};
