//! Asking the agent, over a connection of this process's own.
//!
//! The connection is made when it is first needed and kept until it breaks. It is taken out of its place while it is
//! used, so that a signal handler or a thread that asks meanwhile makes another one instead of mixing in.

mod line;

use core::ffi::c_int;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use treering_presence::VERSION as PRESENCE_VERSION;

use crate::attach::{self, Shared};
use crate::calls;
use crate::complain::complain;
use crate::ready::Patience;
use crate::stay::Stay;
use line::Connection;
pub use line::{copy_out_of_the_way, forget, out_of_the_way};

/// `docs/formats/pages-door.md`.
const DOOR_VERSION: u32 = treering_presence::DIRECTORY_VERSION;
const REQUEST_BYTES: usize = 32;
const ANSWER_BYTES: usize = 16;
const TEXT_BYTES: usize = 480;

/// How long a mere advice may take to reach an agent, and how long none is tried after one that did not.
const ADVICE_LIMIT_MS: u32 = 20;
const ADVICE_PAUSE_NS: u64 = 1_000_000_000;

/// Why there is no answer.
#[derive(Clone, Copy, Debug)]
pub enum Broken {
    /// No socket, or none that could be connected: errno.
    Unreachable(c_int),
    /// The agent ended the connection, or the kernel did: errno, 0 at an end.
    Lost(c_int),
    /// Nothing came.
    Silent,
    /// What came is no answer.
    Garbled,
    /// It says that it does not serve this program: errno for the call. The reason was written already.
    Refused(c_int),
}

impl Broken {
    /// Whether another try is useless.
    pub const fn is_final(self) -> bool {
        matches!(self, Broken::Refused(_))
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Broken::Unreachable(code) => write!(f, "cannot be reached (errno {code})"),
            Broken::Lost(0) => write!(f, "ended the connection"),
            Broken::Lost(code) => write!(f, "broke the connection (errno {code})"),
            Broken::Silent => write!(f, "does not answer"),
            Broken::Garbled => write!(f, "gives an answer that is none"),
            Broken::Refused(code) => write!(f, "refuses (errno {code})"),
        }
    }
}

#[derive(Clone, Copy)]
#[repr(u32)]
enum Kind {
    Hello = 1,
    Fetch = 2,
    Advise = 3,
}

struct Request {
    kind: Kind,
    number: u64,
    first: u32,
    second: u32,
    /// Where the process stays until it is answered.
    core: Option<u32>,
}

impl Request {
    fn bytes(&self) -> [u8; REQUEST_BYTES] {
        let pid = std::process::id();
        let fields = [
            u64::from(self.kind as u32) | u64::from(pid) << 32,
            self.number,
            u64::from(self.first) | u64::from(self.second) << 32,
            u64::from(self.core.map_or(0, |core| core.saturating_add(1))),
        ];
        let mut bytes = [0; REQUEST_BYTES];
        for (to, field) in bytes.chunks_exact_mut(8).zip(fields) {
            to.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }
}

/// Connects and says hello.
pub fn connect(shared: &Shared, patience: &mut Patience) -> Result<Connection, Broken> {
    let connection = Connection::open(shared, patience)?;
    let hello = Request {
        kind: Kind::Hello,
        number: shared.start(),
        first: DOOR_VERSION,
        second: PRESENCE_VERSION,
        core: None,
    };
    ask(&connection, &hello, patience)?;
    Ok(connection)
}

/// Has blocks fetched. `Ok` means: look again. An error is the call's errno, and was explained.
pub fn fetch(file: u64, first: u32, count: u32, patience: &mut Patience) -> Result<(), c_int> {
    let shared = attach::shared().ok_or(libc::EIO)?;
    let stay = Stay::during(file, first, count);
    let core = stay.as_ref().map(Stay::core);
    let request = Request { kind: Kind::Fetch, number: file, first, second: count, core };
    loop {
        let broken = match try_asking(shared, &request, patience) {
            Ok(()) => return Ok(()),
            Err(Broken::Refused(code)) => return Err(code),
            Err(broken) => broken,
        };
        if !patience.before_next_try() {
            let limit = patience.limit_ms();
            complain(format_args!(
                "block {first} of file {file} did not come within {limit} ms: the agent {broken}"
            ));
            return Err(libc::EIO);
        }
    }
}

fn try_asking(shared: &Shared, request: &Request, patience: &mut Patience) -> Result<(), Broken> {
    let connection = match Connection::take() {
        Some(connection) => connection,
        None => connect(shared, patience)?,
    };
    match ask(&connection, request, patience) {
        // A refusal is a whole answer: the connection is good for the next one.
        answered @ (Ok(()) | Err(Broken::Refused(_))) => {
            connection.put_back();
            answered
        }
        broken => broken,
    }
}

/// Tells the agent that blocks will be wanted, if that takes no time.
pub fn advise(file: u64, first: u32, count: u32) {
    static NOT_BEFORE_NS: AtomicU64 = AtomicU64::new(0);
    let Some(shared) = attach::shared() else { return };
    let connection = Connection::take().or_else(|| {
        if calls::now_ns() < NOT_BEFORE_NS.load(Ordering::Relaxed) {
            return None;
        }
        let connection = connect(shared, &mut Patience::new(ADVICE_LIMIT_MS)).ok();
        if connection.is_none() {
            let later = calls::now_ns().saturating_add(ADVICE_PAUSE_NS);
            NOT_BEFORE_NS.store(later, Ordering::Relaxed);
        }
        connection
    });
    let Some(connection) = connection else { return };
    let request = Request { kind: Kind::Advise, number: file, first, second: count, core: None };
    if connection.offer(&request.bytes()) {
        connection.put_back();
    }
}

fn ask(connection: &Connection, request: &Request, patience: &mut Patience) -> Result<(), Broken> {
    connection.send(&request.bytes(), patience)?;
    let mut head = [0; ANSWER_BYTES];
    connection.receive(&mut head, patience)?;
    let [s0, s1, s2, s3, e0, e1, e2, e3, l0, l1, l2, l3, ..] = head;
    let status = u32::from_le_bytes([s0, s1, s2, s3]);
    let code = i32::from_le_bytes([e0, e1, e2, e3]);
    let length = u32::from_le_bytes([l0, l1, l2, l3]);
    let mut text = [0; TEXT_BYTES];
    let text = usize::try_from(length).ok().and_then(|length| text.get_mut(..length));
    let text = text.ok_or(Broken::Garbled)?;
    connection.receive(text, patience)?;
    match status {
        0 => Ok(()),
        1 => {
            let why = core::str::from_utf8(text).unwrap_or("the agent failed, and did not say why");
            complain(format_args!("{why}"));
            // Only these mean to Postgres what happened here.
            Err(Broken::Refused(if code == libc::ENOSPC { code } else { libc::EIO }))
        }
        _ => Err(Broken::Garbled),
    }
}
