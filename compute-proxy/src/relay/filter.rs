//! Which of a compute's bytes may go to its client now: pure, no I/O.
//!
//! Stock Postgres answers a commit whose wait for the synchronous standby was cancelled with success and a warning
//! (`SyncRepWaitForLSN`, `replication/syncrep.c`). Such a success must not reach the client before the quorum has the
//! commit. The filter follows the message stream and stops
//!
//! - after a NoticeResponse whose routine is `SyncRepWaitForLSN` (the one field that is never translated), and
//! - before a CommandComplete or ReadyForQuery when the compute's log shows such a warning that the client has hidden.
//!
//! Invariants: bytes are passed on in order, each once, none changed; no byte of a CommandComplete or ReadyForQuery is passed
//! before its check; a header is passed only as a whole; nothing is passed while held.

use treering_wire::{
    WireError,
    frame::{HEADER_SIZE, Scanner, Span},
};

/// The C function that gives up a wait for the standby.
const ROUTINE: &[u8] = b"SyncRepWaitForLSN";
/// What a BackendKeyData begins with: the process id, big endian.
const PID_BYTES: usize = 4;

/// What to do with the input of one [`Filter::scan`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// So many bytes from the front go to the client; the next scan begins behind them.
    pub forward: usize,
    /// After them nothing, until the quorum covers all the compute has flushed: then call [`Filter::release`].
    pub hold: bool,
}

/// The state between scans: a few dozen bytes, whatever the messages' sizes.
#[derive(Debug, Default)]
pub struct Filter {
    scanner: Scanner,
    body: Body,
    held: bool,
    backend_pid: Option<i32>,
}

/// What the body being passed is looked at for.
#[derive(Debug, Default)]
enum Body {
    #[default]
    Unseen,
    Notice(NoticeFields),
    Key {
        pid: [u8; PID_BYTES],
        seen: usize,
    },
}

impl Filter {
    /// Looks at `input`, which begins where the bytes forwarded so far end. `cancelled(pid)` is asked before each
    /// CommandComplete and ReadyForQuery: has this backend logged a cancelled wait?
    ///
    /// When not held, less than a header stays behind: keep it in front of what is read next.
    ///
    /// # Errors
    /// A header that cannot be: the stream is lost.
    pub fn scan(
        &mut self,
        input: &[u8],
        mut cancelled: impl FnMut(i32) -> bool,
    ) -> Result<Step, WireError> {
        let mut forward = 0;
        while !self.held {
            let rest = &input[forward..];
            let before = self.scanner;
            match self.scanner.next(rest)? {
                Span::Partial => break,
                Span::Header(header) => {
                    let acknowledges = matches!(header.tag, b'C' | b'Z');
                    if acknowledges && self.backend_pid.is_some_and(&mut cancelled) {
                        self.scanner = before;
                        self.held = true;
                        break;
                    }
                    self.body = Body::of(header.tag);
                    forward += HEADER_SIZE;
                }
                Span::Body { bytes, last } => {
                    if !matches!(self.body, Body::Unseen) {
                        self.look_at(&rest[..bytes], last);
                    }
                    forward += bytes;
                }
            }
        }
        Ok(Step { forward, hold: self.held })
    }

    /// The quorum has what was waited for. A boundary that was held is asked about again.
    pub fn release(&mut self) {
        self.held = false;
    }

    /// The backend's process id, once it has told it.
    pub fn backend_pid(&self) -> Option<i32> {
        self.backend_pid
    }

    fn look_at(&mut self, bytes: &[u8], last: bool) {
        match &mut self.body {
            Body::Unseen => {}
            Body::Notice(fields) => {
                fields.feed(bytes);
                self.held = last && fields.found;
            }
            Body::Key { pid, seen } => {
                for (to, from) in pid.iter_mut().skip(*seen).zip(bytes) {
                    *to = *from;
                    *seen += 1;
                }
                if *seen == PID_BYTES {
                    self.backend_pid = Some(i32::from_be_bytes(*pid));
                }
            }
        }
    }
}

impl Body {
    #[inline]
    fn of(tag: u8) -> Body {
        match tag {
            b'N' => Body::Notice(NoticeFields::default()),
            b'K' => Body::Key { pid: [0; PID_BYTES], seen: 0 },
            _ => Body::Unseen,
        }
    }
}

/// Reads the fields of a notice as they pass by: type byte, text, NUL, until a zero type.
#[derive(Debug, Default)]
struct NoticeFields {
    place: Place,
    found: bool,
}

#[derive(Debug, Default)]
enum Place {
    #[default]
    FieldType,
    Text,
    /// In the routine's text, so many bytes of which are [`ROUTINE`]'s.
    Routine(usize),
    End,
}

impl NoticeFields {
    fn feed(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.place = match (&self.place, byte) {
                (Place::FieldType, 0) | (Place::End, _) => Place::End,
                (Place::FieldType, b'R') => Place::Routine(0),
                (Place::FieldType, _) => Place::Text,
                (Place::Text, 0) => Place::FieldType,
                (Place::Text, _) => Place::Text,
                (Place::Routine(matched), 0) => {
                    self.found |= *matched == ROUTINE.len();
                    Place::FieldType
                }
                (Place::Routine(matched), byte) => match ROUTINE.get(*matched) == Some(&byte) {
                    true => Place::Routine(matched + 1),
                    false => Place::Text,
                },
            };
        }
    }
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;
