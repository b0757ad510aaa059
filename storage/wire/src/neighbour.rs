//! The door for neighbours: who listens on a loopback address is to be had over a Unix socket as well.
//!
//! Between processes of one host TCP costs about twice a Unix socket. Abstract names (unix(7)) belong to a network
//! namespace, like its loopback addresses, and end with who bound them.

use std::{io, net::SocketAddr, os::fd::AsFd, time::Duration};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

/// The abstract name, with the zero byte that it begins with; `None` for an address that others may reach.
pub fn abstract_name(address: SocketAddr) -> Option<String> {
    address.ip().is_loopback().then(|| format!("\0treering-pageserver-{address}"))
}

/// Waits until there is something to read from a Unix socket, or an end; `false`: not within the limit.
///
/// Who waits in the read itself is woken whenever the other side reads, too, because there is room to write then. Between
/// two that ask and answer that is two wakes for nothing each time.
///
/// # Errors
/// As poll(2); signals are none.
pub fn wait_to_read(socket: impl AsFd, limit: Option<Duration>) -> io::Result<bool> {
    let limit = limit.map(Timespec::try_from).transpose().map_err(io::Error::other)?;
    loop {
        match poll(&mut [PollFd::new(&socket, PollFlags::IN)], limit.as_ref()) {
            Ok(count) => return Ok(count > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::net::UnixStream};

    use super::*;

    #[test]
    fn what_comes_or_ends_is_waited_for() {
        let (mut here, there) = UnixStream::pair().unwrap();
        let brief = Some(Duration::from_millis(10));
        assert!(!wait_to_read(&there, brief).unwrap());
        here.write_all(b"x").unwrap();
        assert!(wait_to_read(&there, None).unwrap());
        let (here, there) = UnixStream::pair().unwrap();
        drop(here);
        assert!(wait_to_read(&there, None).unwrap(), "the end");
    }

    #[test]
    fn only_loopback_has_a_name() {
        let name = |address: &str| abstract_name(address.parse().unwrap());
        assert_eq!(
            name("127.0.0.1:64000"),
            Some("\0treering-pageserver-127.0.0.1:64000".to_owned())
        );
        assert_eq!(name("[::1]:64000"), Some("\0treering-pageserver-[::1]:64000".to_owned()));
        assert_eq!(name("0.0.0.0:64000"), None);
        assert_eq!(name("192.0.2.1:64000"), None);
    }
}
