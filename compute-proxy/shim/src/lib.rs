//! The interception library: lazily fetched pages under an unmodified `postgres`.
//!
//! Loaded by `LD_PRELOAD`, it stands between Postgres and libc's file calls. A file of the start set is a sparse
//! file with a presence map in memory that is shared with the agent; before a call may see a block, the block is
//! fetched (`docs/formats/presence.md`), by a request to the agent over a socket (`docs/formats/pages-door.md`).
//! Everything else goes to the kernel as it came.
//!
//! ```text
//!   doors     libc's names ── table: what is this descriptor?
//!               │                  │ plain: the system call
//!   opening     │ open, dup, close │ mapped:
//!   read, write, cut, copy, stream ┴─ ready: is the block there? ── agent: fetch it
//!
//!   session: the client's own socket        flush: what is durable when the quorum has it
//! ```
//!
//! What is promised:
//! - a hole of a file with a map is never returned as data: the call waits, and fails with EIO when waiting took too
//!   long or the map is damaged;
//! - a call on a present block makes the system call that it would make without the library, and no other; it takes
//!   no lock and allocates nothing;
//! - errno is what libc would leave; nothing is written to standard error but the reason of a failure;
//! - a child after a fork goes on by itself; a program that it executes knows nothing of the library.
//!
//! What it does not know: LSNs of pages, relations, Postgres. A file is told by its inode and birth.

#![allow(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::arithmetic_side_effects
    )
)]

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
compile_error!("the page library knows the system calls of 64-bit Linux only");

mod advice;
mod agent;
mod attach;
mod calls;
mod complain;
mod copy;
mod cut;
pub mod doors;
mod flush;
mod opening;
mod read;
mod ready;
mod session;
mod stay;
mod stream;
mod table;
mod write;

/// Runs before the program: joins the agent that started it, or does nothing if none did.
///
/// A program that should have the library and cannot have it ends here.
pub extern "C" fn start() {
    attach::start();
}

#[cfg(all(feature = "preload", not(test)))]
#[used]
// SAFETY: the section holds pointers to functions that the loader calls once, with arguments that may be ignored.
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = start;
