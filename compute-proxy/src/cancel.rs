//! Cancel requests: they come on a connection of their own and name a backend by its process id and a secret.
//!
//! A session is registered by its backend's process id before its client can know it, and forgotten with the session, so
//! a request always finds the compute; the compute checks the secret. As in Postgres there is no answer, right key or
//! wrong.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::BytesMut;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};
use treering_wire::startup::CancelKey;

/// How long a compute may take to act on a request.
const FORWARD_LIMIT: Duration = Duration::from_secs(10);

/// Which compute's backend a process is. Clones share one registry.
#[derive(Clone, Default)]
pub struct CancelRegistry {
    sessions: Arc<Mutex<Sessions>>,
}

#[derive(Default)]
struct Sessions {
    by_pid: HashMap<i32, (u64, PathBuf)>,
    next_id: u64,
}

/// A registered session; dropping it forgets the session.
pub struct Registration {
    registry: CancelRegistry,
    pid: i32,
    id: u64,
}

impl CancelRegistry {
    /// Remembers that the process is a backend of the compute behind `socket`. A number that is used again is the later
    /// one's.
    pub fn register(&self, pid: i32, socket: &Path) -> Registration {
        let mut sessions = self.sessions.lock();
        sessions.next_id += 1;
        let id = sessions.next_id;
        sessions.by_pid.insert(pid, (id, socket.to_owned()));
        Registration { registry: self.clone(), pid, id }
    }

    /// Sessions known now.
    pub fn len(&self) -> usize {
        self.sessions.lock().by_pid.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Passes a request on and returns once the compute has acted on it; `false` when it names no session.
    ///
    /// # Errors
    /// The compute cannot be reached or does not act in time.
    pub async fn forward(&self, key: &CancelKey) -> io::Result<bool> {
        let found = self.sessions.lock().by_pid.get(&key.pid).map(|(_, socket)| socket.clone());
        let Some(socket) = found else { return Ok(false) };
        timeout(FORWARD_LIMIT, send(&socket, key)).await??;
        Ok(true)
    }
}

async fn send(socket: &Path, key: &CancelKey) -> io::Result<()> {
    let mut packet = BytesMut::new();
    key.encode(&mut packet);
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(&packet).await?;
    // The server closes once the signal is sent; only then may the client think so.
    match stream.read(&mut [0; 1]).await {
        Err(error) if error.kind() != io::ErrorKind::ConnectionReset => Err(error),
        _ => Ok(()),
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut sessions = self.registry.sessions.lock();
        if sessions.by_pid.get(&self.pid).is_some_and(|(id, _)| *id == self.id) {
            sessions.by_pid.remove(&self.pid);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use treering_wire::startup::{self, StartupPacket};

    use super::*;

    fn key(pid: i32) -> CancelKey {
        CancelKey { pid, secret: Bytes::from_static(b"1234") }
    }

    #[test]
    fn a_process_is_known_as_long_as_its_session() {
        let registry = CancelRegistry::default();
        let first = registry.register(1, Path::new("/a"));
        let second = registry.register(1, Path::new("/b"));
        drop(first);
        assert_eq!(registry.len(), 1, "the later session keeps the number");
        drop(second);
        assert!(registry.is_empty());
    }

    #[tokio::test]
    async fn requests_reach_the_right_compute() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let compute = tokio::net::UnixListener::bind(&socket).unwrap();
        let registry = CancelRegistry::default();
        let _session = registry.register(7, &socket);
        let received = tokio::spawn(async move {
            let (mut stream, _) = compute.accept().await.unwrap();
            let mut buffer = BytesMut::new();
            loop {
                if let Some(packet) = startup::parse(&mut buffer).unwrap() {
                    return packet;
                }
                stream.read_buf(&mut buffer).await.unwrap();
            }
        });
        assert!(!registry.forward(&key(8)).await.unwrap());
        assert!(registry.forward(&key(7)).await.unwrap());
        assert_eq!(received.await.unwrap(), StartupPacket::Cancel(key(7)));
    }
}
