//! A Unix socket that wakes its owner for what has come, and for room only while it waits for room.
//!
//! Tokio's own asks the kernel for both at once and for good. On a Unix socket there is news of room whenever the peer has
//! read something (Linux: `unix_write_space`), so that every message sent would be followed by a wake for nothing: on
//! the way of each commit a switch of threads.

#![allow(unsafe_code)]

use std::{
    io::{self, ErrorKind, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd};

/// See the module's head.
pub struct QuietStream {
    socket: AsyncFd<UnixStream>,
    /// The same socket once more, while a message waits for room.
    room: Option<AsyncFd<UnixStream>>,
}

impl QuietStream {
    /// Takes over a connection, on the runtime that calls.
    pub fn new(stream: tokio::net::UnixStream) -> io::Result<QuietStream> {
        // Without blocking, as tokio left it.
        let stream = stream.into_std()?;
        Ok(QuietStream { socket: watch(stream, Interest::READABLE)?, room: None })
    }
}

fn watch(stream: UnixStream, interest: Interest) -> io::Result<AsyncFd<UnixStream>> {
    // SAFETY: a stream owns one descriptor, always the same one, until it is dropped.
    let watched = unsafe { AsyncFd::register_with_interest(stream, interest) };
    Ok(watched?)
}

impl AsyncRead for QuietStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.socket.poll_read_ready(cx))?;
            let asked = buf.remaining();
            // SAFETY: bytes are put there and none taken away. (Filled with zeros first, a large buffer would cost more than
            // what comes.)
            let unfilled = unsafe { buf.unfilled_mut() };
            let read = |socket: &AsyncFd<UnixStream>| {
                let (filled, _) = rustix::io::read(socket.get_ref(), unfilled)?;
                Ok(filled.len())
            };
            match ready.try_io(read) {
                Ok(Err(error)) if error.kind() == ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Ok(Ok(read)) => {
                    // All that there was, so the next look would find nothing. (The end is told again.)
                    if 0 < read && read < asked {
                        ready.clear_ready();
                    }
                    // SAFETY: the kernel has just filled so many.
                    unsafe { buf.assume_init(read) };
                    buf.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Err(_nothing_there) => {}
            }
        }
    }
}

impl AsyncWrite for QuietStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            match self.socket.get_ref().write(bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                written => {
                    self.room = None;
                    return Poll::Ready(written);
                }
            }
            if let Some(room) = &self.room {
                // Room that was told of, and is gone.
                ready!(room.poll_write_ready(cx))?.clear_ready();
            } else {
                let again = self.socket.get_ref().try_clone()?;
                self.room = Some(watch(again, Interest::WRITABLE)?);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.socket.get_ref().shutdown(Shutdown::Write))
    }
}

#[cfg(test)]
mod tests {
    use std::{os::fd::AsRawFd, time::Duration};

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::UnixStream,
        time::timeout,
    };

    use super::*;

    fn pair() -> (QuietStream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (QuietStream::new(ours).unwrap(), theirs)
    }

    /// Far more than the kernel holds of what is not read, with a reader that is late, and again.
    #[tokio::test]
    async fn what_finds_no_room_waits_for_it() {
        let (mut ours, mut theirs) = pair();
        let bytes: Vec<u8> = (0..4_000_000u32).map(|n| (n / 7) as u8).collect();
        for _ in 0..3 {
            let write = async {
                ours.write_all(&bytes).await.unwrap();
                assert!(ours.room.is_none(), "nobody waits any more");
            };
            let read = async {
                tokio::time::sleep(Duration::from_millis(30)).await;
                let mut read = vec![0; bytes.len()];
                theirs.read_exact(&mut read).await.unwrap();
                assert!(read == bytes);
            };
            tokio::join!(write, read);
        }
    }

    #[tokio::test]
    async fn reads_what_comes_and_the_end() {
        let (mut ours, mut theirs) = pair();
        let mut buf = [0; 64];
        assert!(timeout(Duration::from_millis(20), ours.read(&mut buf)).await.is_err());
        for text in ["a", "some more", "and yet more"] {
            theirs.write_all(text.as_bytes()).await.unwrap();
            let read = ours.read(&mut buf).await.unwrap();
            assert_eq!(buf.get(..read), Some(text.as_bytes()));
        }
        // The last words and the end may come as one event.
        theirs.write_all(b"bye").await.unwrap();
        drop(theirs);
        assert_eq!(ours.read(&mut buf).await.unwrap(), 3);
        assert_eq!(
            timeout(Duration::from_secs(10), ours.read(&mut buf)).await.unwrap().unwrap(),
            0
        );
    }

    #[tokio::test]
    async fn a_peer_that_is_gone_is_an_error_for_who_waits_for_room() {
        let (mut ours, theirs) = pair();
        let write = async { ours.write_all(&vec![0; 4_000_000]).await };
        let leave = async {
            tokio::time::sleep(Duration::from_millis(30)).await;
            drop(theirs);
        };
        let (written, ()) =
            timeout(Duration::from_secs(10), async { tokio::join!(write, leave) }).await.unwrap();
        assert!(written.is_err());
    }

    /// What the stream is for. The kernel tells what it was asked to watch for (proc(5), `fdinfo` of an epoll file).
    #[tokio::test]
    async fn the_kernel_is_asked_for_room_only_by_who_waits() {
        let asked = |fd: i32| -> Vec<u32> {
            let files = std::fs::read_dir("/proc/self/fdinfo").unwrap().flatten();
            let texts = files.filter_map(|file| std::fs::read_to_string(file.path()).ok());
            let lines = texts.collect::<String>();
            let watches = lines.lines().filter_map(|line| {
                let mut words = line.strip_prefix("tfd:")?.split_whitespace();
                let is_ours = words.next()?.parse() == Ok(fd);
                let mut words = words.skip_while(|word| *word != "events:").skip(1);
                u32::from_str_radix(words.next().filter(|_| is_ours)?, 16).ok()
            });
            let watches: Vec<_> = watches.collect();
            assert!(!watches.is_empty());
            watches
        };
        // EPOLLIN and EPOLLOUT (epoll_ctl(2)).
        let (readable, writable) = (1, 4);
        let (mut ours, _theirs) = pair();
        let own = asked(ours.socket.as_raw_fd());
        let is_quiet = |events: &u32| events & readable != 0 && events & writable == 0;
        assert!(own.iter().all(is_quiet), "{own:x?}");
        let bytes = vec![0; 4_000_000];
        let full = timeout(Duration::from_millis(50), ours.write_all(&bytes)).await;
        assert!(full.is_err());
        let room = asked(ours.room.as_ref().unwrap().as_raw_fd());
        assert!(room.iter().all(|events| events & writable != 0), "{room:x?}");
    }
}
