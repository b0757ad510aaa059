//! A client's own socket in its backend's hands: nobody stands between them any more.
//!
//! For computes with the page library, which takes the socket and does in the backend what [`super::run`] does for
//! others (`docs/formats/pages-door.md`). The connection to the compute stays open beside it, as word of when the
//! backend ends.

use std::{
    io::{self, IoSlice},
    os::fd::{AsFd, BorrowedFd},
};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    net::{TcpStream, UnixStream},
};

/// What the header begins with; a start-up packet begins with a zero.
const MAGIC: [u8; 4] = *b"TRHO";
const VERSION: u32 = 1;
/// What the backend answers, before its process id. No message of a backend begins with a control character.
const ACKNOWLEDGED: [u8; 4] = [6, b'T', b'R', b'H'];
const ANSWER_BYTES: usize = 8;

/// A client that its backend has.
pub struct Handed {
    pub backend_pid: i32,
    compute: UnixStream,
}

impl Handed {
    /// Returns when the backend has ended.
    pub async fn ended(mut self) {
        // It says nothing more; an error is an end too.
        while let Ok(1..) = self.compute.read(&mut [0; 64]).await {}
    }
}

/// Hands `client` over, with the bytes that were read of it (`first`, rewritten). `None`: the compute has refused the
/// connection before there was a backend, and the client has been told what it said.
///
/// # Errors
/// Either connection failed; the client is dropped.
pub async fn over(
    mut client: TcpStream,
    mut compute: UnixStream,
    first: &[u8],
) -> io::Result<Option<Handed>> {
    let mut header = Vec::with_capacity(16 + first.len());
    header.extend_from_slice(&MAGIC);
    for word in [VERSION, u32::try_from(first.len()).map_err(io::Error::other)?, 0] {
        header.extend_from_slice(&word.to_le_bytes());
    }
    header.extend_from_slice(first);
    let sent = compute
        .async_io(Interest::WRITABLE, || send_with(compute.as_fd(), &header, client.as_fd()))
        .await?;
    compute.write_all(&header[sent..]).await?;
    let mut answer = Vec::with_capacity(ANSWER_BYTES);
    while answer.len() < ANSWER_BYTES && compute.read_buf(&mut answer).await? > 0 {}
    match answer.split_first_chunk() {
        Some((&ACKNOWLEDGED, pid)) if pid.len() == 4 => {
            let backend_pid = i32::from_le_bytes([pid[0], pid[1], pid[2], pid[3]]);
            Ok(Some(Handed { backend_pid, compute }))
        }
        _ => {
            client.write_all(&answer).await?;
            tokio::io::copy(&mut compute, &mut client).await?;
            client.shutdown().await?;
            Ok(None)
        }
    }
}

/// Sends some of the bytes, at least one, with the descriptor.
fn send_with(to: BorrowedFd<'_>, bytes: &[u8], descriptor: BorrowedFd<'_>) -> io::Result<usize> {
    let descriptors = [descriptor];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    Ok(sendmsg(to, &[IoSlice::new(bytes)], &mut control, flags)?)
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncReadExt, net::TcpListener};

    use super::*;

    async fn client() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (listener.accept().await.unwrap().0, far)
    }

    #[tokio::test]
    async fn what_a_postmaster_says_without_a_backend_reaches_the_client() {
        let ((near, mut far), (ours, mut theirs)) = (client().await, UnixStream::pair().unwrap());
        let handed = tokio::spawn(over(near, ours, b"start-up"));
        theirs.read_exact(&mut [0; 24]).await.unwrap();
        theirs.write_all(b"Ecould not fork\0").await.unwrap();
        drop(theirs);
        assert!(handed.await.unwrap().unwrap().is_none());
        let mut told = Vec::new();
        far.read_to_end(&mut told).await.unwrap();
        assert_eq!(told, b"Ecould not fork\0");
    }

    #[tokio::test]
    async fn a_backend_tells_its_number_and_its_end() {
        let ((near, _far), (ours, mut theirs)) = (client().await, UnixStream::pair().unwrap());
        let handed = tokio::spawn(over(near, ours, b"start-up"));
        let mut header = [0; 24];
        theirs.read_exact(&mut header).await.unwrap();
        assert_eq!(&header, b"TRHO\x01\0\0\0\x08\0\0\0\0\0\0\0start-up");
        theirs.write_all(b"\x06TRH\x07\0\0\0").await.unwrap();
        let handed = handed.await.unwrap().unwrap().unwrap();
        assert_eq!(handed.backend_pid, 7);
        drop(theirs);
        handed.ended().await;
    }
}
