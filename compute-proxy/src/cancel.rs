//! Cancel requests: they come on a connection of their own and name a backend by its process id and a secret.
//!
//! Nothing is remembered about sessions: whose backend a process is, the operating system knows. The compute checks the
//! secret. As in Postgres there is no answer, right key or wrong.

use std::{io, path::Path, time::Duration};

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};
use treering_wire::startup::CancelKey;

/// How long a compute may take to act on a request.
const FORWARD_LIMIT: Duration = Duration::from_secs(10);

/// Passes a request to the compute behind `socket` and returns once it has acted on it.
///
/// # Errors
/// The compute cannot be reached or does not act in time.
pub async fn forward(key: &CancelKey, socket: &Path) -> io::Result<()> {
    timeout(FORWARD_LIMIT, send(socket, key)).await?
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use treering_wire::startup::{self, StartupPacket};

    use super::*;

    #[tokio::test]
    async fn a_request_arrives_whole() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let compute = tokio::net::UnixListener::bind(&socket).unwrap();
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
        let key = CancelKey { pid: 7, secret: Bytes::from_static(b"1234") };
        forward(&key, &socket).await.unwrap();
        assert_eq!(received.await.unwrap(), StartupPacket::Cancel(key));
    }
}
