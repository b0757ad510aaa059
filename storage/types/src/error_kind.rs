//! What a caller may do about an error.

/// The public classification of every operating error: facts live in each crate's own error enum, decisions
/// are made on this.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ErrorKind {
    /// The thing named does not exist.
    NotFound,
    /// It existed, and history before some point has been dropped.
    Gone,
    /// Not there yet: wait for a watermark and ask again.
    NotYet,
    /// It exists already, or its state forbids the call.
    Conflict,
    /// A newer writer has taken over; stop.
    Fenced,
    /// Too much at once; ask again later.
    Busy,
    /// A peer cannot be reached.
    Unavailable,
    /// We are stopping.
    Shutdown,
    /// Bytes that fail their check. Never served.
    Corrupt,
    /// The operating system refused.
    Io,
    /// The request itself is wrong.
    Invalid,
}
