//! Messages as frames: sans-I/O, for a stream of bytes in either direction.
//!
//! ```text
//!  0        4        8     9
//!  +--------+--------+-----+----------------+
//!  | length | crc32  | tag |  fields        |    little endian
//!  +--------+--------+-----+----------------+
//! ```
//!
//! `length` counts tag and fields, the crc covers them. The layout of each message is
//! `docs/formats/safekeeper-protocol.md`. Decoding never panics, and takes no memory that the frame does not pay for.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use treering_types::{ErrorKind, Lsn, NodeId, TenantId, Term, TimelineId};

use crate::{
    AcceptorMessage, Append, AppendResponse, Commit, Configuration, Elected, Generation, Greeting,
    GreetingResponse, PgAncestor, ProposerId, ProposerMessage, Refusal, RefusalReason, TermHistory,
    TermStart, VoteRequest, VoteResponse,
};

/// Version of the protocol, in every greeting.
pub const PROTOCOL_VERSION: u32 = 2;
/// The largest frame: a term history of a million entries, or a generous append.
pub const FRAME_BYTES_MAX: usize = 16 * 1024 * 1024;
const HEAD: usize = 8;

/// Bytes that are no message. The connection cannot go on.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CodecError {
    #[error("frame of {0} bytes is empty or above the limit")]
    Length(usize),
    #[error("frame crc is {found:08x}, expected {expected:08x}")]
    Crc { expected: u32, found: u32 },
    #[error("message tag {0} is unknown in this direction")]
    Tag(u8),
    #[error("message with tag {0} ends early or late, or holds an impossible value")]
    Fields(u8),
    #[error("peer speaks protocol version {0}, this is version {PROTOCOL_VERSION}")]
    Version(u32),
}

impl CodecError {
    pub fn kind(&self) -> ErrorKind {
        match self {
            CodecError::Crc { .. } => ErrorKind::Corrupt,
            CodecError::Length(_)
            | CodecError::Tag(_)
            | CodecError::Fields(_)
            | CodecError::Version(_) => ErrorKind::Invalid,
        }
    }
}

/// A message that has a frame.
pub trait Message: Sized {
    /// Appends the message's frame to `out`.
    fn encode(&self, out: &mut BytesMut);

    /// Takes one whole frame off the front of `input`; `None` when more bytes are needed. After an error the
    /// stream is of no more use.
    fn decode(input: &mut BytesMut) -> Result<Option<Self>, CodecError>;
}

const GREETING: u8 = b'G';
const VOTE_REQUEST: u8 = b'V';
const ELECTED: u8 = b'E';
const APPEND: u8 = b'A';
const COMMIT: u8 = b'C';
const GREETING_RESPONSE: u8 = b'g';
const VOTE_RESPONSE: u8 = b'v';
const APPEND_RESPONSE: u8 = b'a';
const NEWER_CONFIGURATION: u8 = b'n';
const REFUSAL: u8 = b'r';

impl Message for ProposerMessage {
    fn encode(&self, out: &mut BytesMut) {
        match self {
            ProposerMessage::Greeting(message) => frame(out, GREETING, |out| {
                out.put_u32_le(PROTOCOL_VERSION);
                out.put_slice(&message.proposer.0);
                out.put_slice(&message.tenant.0);
                out.put_slice(&message.timeline.0);
                out.put_u64_le(message.system_id);
                out.put_u32_le(message.pg_major);
                out.put_u32_le(message.pg_tli);
                out.put_u64_le(message.start_lsn.0);
                out.put_u32_le(message.pg_ancestors.len() as u32);
                for ancestor in &message.pg_ancestors {
                    out.put_u32_le(ancestor.pg_tli);
                    out.put_u64_le(ancestor.switch_lsn.0);
                }
                put_configuration(out, &message.configuration);
            }),
            ProposerMessage::VoteRequest(message) => {
                frame(out, VOTE_REQUEST, |out| {
                    out.put_u64_le(message.generation.0);
                    out.put_u64_le(message.term.0);
                });
            }
            ProposerMessage::Elected(message) => frame(out, ELECTED, |out| {
                out.put_u64_le(message.generation.0);
                out.put_u64_le(message.term.0);
                put_history(out, &message.history);
            }),
            ProposerMessage::Append(message) => {
                message.encode_head(out);
                out.put_slice(&message.bytes);
            }
            ProposerMessage::Commit(message) => frame(out, COMMIT, |out| {
                out.put_u64_le(message.generation.0);
                out.put_u64_le(message.term.0);
                out.put_u64_le(message.commit_lsn.0);
            }),
        }
    }

    fn decode(input: &mut BytesMut) -> Result<Option<Self>, CodecError> {
        let Some((tag, mut fields)) = unframe(input)? else { return Ok(None) };
        let f = &mut fields;
        let message = match tag {
            GREETING => ProposerMessage::Greeting(greeting(f)?),
            VOTE_REQUEST => vote_request(f).map(Into::into).ok_or(bad(tag))?,
            ELECTED => elected(f).map(Into::into).ok_or(bad(tag))?,
            APPEND => append(f).map(Into::into).ok_or(bad(tag))?,
            COMMIT => commit(f).map(Into::into).ok_or(bad(tag))?,
            other => return Err(CodecError::Tag(other)),
        };
        finished(tag, f)?;
        Ok(Some(message))
    }
}

impl ProposerMessage {
    /// The message's frame in two pieces, to be sent one behind the other: what is long is not copied.
    pub fn encode_in_two(&self) -> (Bytes, Bytes) {
        let (mut head, mut rest) = (BytesMut::new(), Bytes::new());
        match self {
            ProposerMessage::Append(message) => {
                message.encode_head(&mut head);
                rest = message.bytes.clone();
            }
            other => other.encode(&mut head),
        }
        (head.freeze(), rest)
    }
}

impl Append {
    /// Its frame up to where the log's bytes come.
    fn encode_head(&self, out: &mut BytesMut) {
        let fields = |out: &mut BytesMut| {
            out.put_u64_le(self.generation.0);
            out.put_u64_le(self.term.0);
            out.put_u64_le(self.lsn.0);
            out.put_u64_le(self.commit_lsn.0);
        };
        frame_before(out, APPEND, fields, &self.bytes);
    }
}

impl Message for AcceptorMessage {
    fn encode(&self, out: &mut BytesMut) {
        match self {
            AcceptorMessage::GreetingResponse(message) => frame(out, GREETING_RESPONSE, |out| {
                out.put_u64_le(message.node.0);
                put_watermarks(out, message.term, message.flush_lsn, message.commit_lsn);
                put_configuration(out, &message.configuration);
            }),
            AcceptorMessage::NewerConfiguration(configuration) => {
                frame(out, NEWER_CONFIGURATION, |out| put_configuration(out, configuration));
            }
            AcceptorMessage::VoteResponse(message) => frame(out, VOTE_RESPONSE, |out| {
                put_watermarks(out, message.term, message.flush_lsn, message.commit_lsn);
                out.put_u8(u8::from(message.granted));
                put_history(out, &message.history);
            }),
            AcceptorMessage::AppendResponse(message) => frame(out, APPEND_RESPONSE, |out| {
                out.put_u64_le(message.generation.0);
                put_watermarks(out, message.term, message.flush_lsn, message.commit_lsn);
            }),
            AcceptorMessage::Refusal(message) => frame(out, REFUSAL, |out| {
                out.put_u8(message.reason as u8);
                out.put_slice(message.text.as_bytes());
            }),
        }
    }

    fn decode(input: &mut BytesMut) -> Result<Option<Self>, CodecError> {
        let Some((tag, mut fields)) = unframe(input)? else { return Ok(None) };
        let f = &mut fields;
        let message = match tag {
            GREETING_RESPONSE => greeting_response(f).map(AcceptorMessage::GreetingResponse),
            VOTE_RESPONSE => vote_response(f).map(AcceptorMessage::VoteResponse),
            APPEND_RESPONSE => append_response(f).map(AcceptorMessage::AppendResponse),
            NEWER_CONFIGURATION => configuration(f).map(AcceptorMessage::NewerConfiguration),
            REFUSAL => refusal(f).map(AcceptorMessage::Refusal),
            other => return Err(CodecError::Tag(other)),
        };
        finished(tag, f)?;
        message.map(Some).ok_or(bad(tag))
    }
}

macro_rules! into_proposer_message {
    ($($name:ident),*) => {$(
        impl From<$name> for ProposerMessage {
            fn from(message: $name) -> ProposerMessage {
                ProposerMessage::$name(message)
            }
        }
    )*};
}
into_proposer_message!(Greeting, VoteRequest, Elected, Append, Commit);

fn bad(tag: u8) -> CodecError {
    CodecError::Fields(tag)
}

fn finished(tag: u8, fields: &Bytes) -> Result<(), CodecError> {
    if fields.is_empty() { Ok(()) } else { Err(bad(tag)) }
}

fn frame(out: &mut BytesMut, tag: u8, fields: impl FnOnce(&mut BytesMut)) {
    frame_before(out, tag, fields, &[]);
}

/// A frame less the last of its fields' bytes, which are to be sent behind it.
fn frame_before(out: &mut BytesMut, tag: u8, fields: impl FnOnce(&mut BytesMut), last: &[u8]) {
    let start = out.len();
    out.put_bytes(0, HEAD);
    out.put_u8(tag);
    fields(out);
    let body = &out[start + HEAD..];
    let len = body.len() + last.len();
    // A frame that the other side must refuse is a bug of ours, not an operating error.
    assert!(len <= FRAME_BYTES_MAX, "message of {len} bytes");
    let mut crc = crc32fast::Hasher::new();
    crc.update(body);
    crc.update(last);
    out[start..start + 4].copy_from_slice(&(len as u32).to_le_bytes());
    out[start + 4..start + HEAD].copy_from_slice(&crc.finalize().to_le_bytes());
}

fn unframe(input: &mut BytesMut) -> Result<Option<(u8, Bytes)>, CodecError> {
    let Some(mut head) = input.get(..HEAD) else { return Ok(None) };
    let (len, expected) = (head.get_u32_le() as usize, head.get_u32_le());
    if len == 0 || len > FRAME_BYTES_MAX {
        return Err(CodecError::Length(len));
    }
    if input.len() < HEAD + len {
        input.reserve(HEAD + len - input.len());
        return Ok(None);
    }
    input.advance(HEAD);
    let mut body = input.split_to(len).freeze();
    let found = crc32fast::hash(&body);
    if found != expected {
        return Err(CodecError::Crc { expected, found });
    }
    Ok(Some((body.get_u8(), body)))
}

fn put_watermarks(out: &mut BytesMut, term: Term, flush_lsn: Lsn, commit_lsn: Lsn) {
    out.put_u64_le(term.0);
    out.put_u64_le(flush_lsn.0);
    out.put_u64_le(commit_lsn.0);
}

fn put_history(out: &mut BytesMut, history: &TermHistory) {
    out.put_u32_le(history.entries().len() as u32);
    for entry in history.entries() {
        out.put_u64_le(entry.term.0);
        out.put_u64_le(entry.lsn.0);
    }
}

/// As in the control file: its bytes are the format document's.
pub fn put_configuration(out: &mut impl BufMut, configuration: &Configuration) {
    let new = configuration.new_members().unwrap_or_default();
    out.put_u64_le(configuration.generation().0);
    out.put_u32_le(configuration.members().len() as u32);
    out.put_u32_le(new.len() as u32);
    configuration.members().iter().chain(new).for_each(|node| out.put_u64_le(node.0));
}

/// `None` for bytes that end early or make no configuration.
pub fn configuration(fields: &mut Bytes) -> Option<Configuration> {
    let generation = Generation(u64_le(fields)?);
    let (members, new_members) = (u32_le(fields)? as usize, u32_le(fields)? as usize);
    if members.checked_add(new_members)?.checked_mul(8)? > fields.remaining() {
        return None;
    }
    let mut set =
        |count| (0..count).map(|_| u64_le(fields).map(NodeId)).collect::<Option<Vec<_>>>();
    let (members, new_members) = (set(members)?, set(new_members)?);
    let new_members = (!new_members.is_empty()).then_some(new_members);
    Configuration::new(generation, members, new_members).ok()
}

fn u64_le(fields: &mut Bytes) -> Option<u64> {
    fields.try_get_u64_le().ok()
}

fn u32_le(fields: &mut Bytes) -> Option<u32> {
    fields.try_get_u32_le().ok()
}

fn lsn(fields: &mut Bytes) -> Option<Lsn> {
    u64_le(fields).map(Lsn)
}

fn term(fields: &mut Bytes) -> Option<Term> {
    u64_le(fields).map(Term)
}

fn id(fields: &mut Bytes) -> Option<[u8; 16]> {
    let mut bytes = [0; 16];
    fields.try_copy_to_slice(&mut bytes).ok()?;
    Some(bytes)
}

fn history(fields: &mut Bytes) -> Option<TermHistory> {
    let count = u32_le(fields)? as usize;
    if count.checked_mul(16)? > fields.remaining() {
        return None;
    }
    let entry = |_| Some(TermStart { term: term(fields)?, lsn: lsn(fields)? });
    TermHistory::from_entries((0..count).map(entry).collect::<Option<_>>()?).ok()
}

fn greeting(fields: &mut Bytes) -> Result<Greeting, CodecError> {
    match u32_le(fields) {
        Some(PROTOCOL_VERSION) => greeting_fields(fields).ok_or(bad(GREETING)),
        Some(other) => Err(CodecError::Version(other)),
        None => Err(bad(GREETING)),
    }
}

fn greeting_fields(fields: &mut Bytes) -> Option<Greeting> {
    Some(Greeting {
        proposer: ProposerId(id(fields)?),
        tenant: TenantId(id(fields)?),
        timeline: TimelineId(id(fields)?),
        system_id: u64_le(fields)?,
        pg_major: u32_le(fields)?,
        pg_tli: u32_le(fields)?,
        start_lsn: lsn(fields)?,
        pg_ancestors: ancestors(fields)?,
        configuration: configuration(fields)?,
    })
}

fn ancestors(fields: &mut Bytes) -> Option<Vec<PgAncestor>> {
    let count = u32_le(fields)? as usize;
    if count.checked_mul(12)? > fields.remaining() {
        return None;
    }
    let ancestor = |_| Some(PgAncestor { pg_tli: u32_le(fields)?, switch_lsn: lsn(fields)? });
    (0..count).map(ancestor).collect()
}

fn generation(fields: &mut Bytes) -> Option<Generation> {
    u64_le(fields).map(Generation)
}

fn vote_request(fields: &mut Bytes) -> Option<VoteRequest> {
    Some(VoteRequest { generation: generation(fields)?, term: term(fields)? })
}

fn elected(fields: &mut Bytes) -> Option<Elected> {
    Some(Elected {
        generation: generation(fields)?,
        term: term(fields)?,
        history: history(fields)?,
    })
}

fn append(fields: &mut Bytes) -> Option<Append> {
    let generation = generation(fields)?;
    let (term, lsn, commit_lsn) = (term(fields)?, lsn(fields)?, lsn(fields)?);
    let bytes = fields.split_to(fields.len());
    lsn.0.checked_add(bytes.len() as u64)?;
    Some(Append { generation, term, lsn, commit_lsn, bytes })
}

fn commit(fields: &mut Bytes) -> Option<Commit> {
    Some(Commit { generation: generation(fields)?, term: term(fields)?, commit_lsn: lsn(fields)? })
}

fn greeting_response(fields: &mut Bytes) -> Option<GreetingResponse> {
    Some(GreetingResponse {
        node: NodeId(u64_le(fields)?),
        term: term(fields)?,
        flush_lsn: lsn(fields)?,
        commit_lsn: lsn(fields)?,
        configuration: configuration(fields)?,
    })
}

fn vote_response(fields: &mut Bytes) -> Option<VoteResponse> {
    Some(VoteResponse {
        term: term(fields)?,
        flush_lsn: lsn(fields)?,
        commit_lsn: lsn(fields)?,
        granted: match fields.try_get_u8().ok()? {
            0 => false,
            1 => true,
            _ => return None,
        },
        history: history(fields)?,
    })
}

fn append_response(fields: &mut Bytes) -> Option<AppendResponse> {
    Some(AppendResponse {
        generation: generation(fields)?,
        term: term(fields)?,
        flush_lsn: lsn(fields)?,
        commit_lsn: lsn(fields)?,
    })
}

fn refusal(fields: &mut Bytes) -> Option<Refusal> {
    let reason = match fields.try_get_u8().ok()? {
        1 => RefusalReason::DiskFull,
        2 => RefusalReason::Io,
        3 => RefusalReason::Conflict,
        4 => RefusalReason::Gone,
        5 => RefusalReason::Shutdown,
        6 => RefusalReason::Invalid,
        7 => RefusalReason::Corrupt,
        _ => return None,
    };
    let text = fields.split_to(fields.len());
    Some(Refusal { reason, text: String::from_utf8_lossy(&text).into_owned() })
}

#[cfg(test)]
mod tests;
