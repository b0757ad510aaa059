//! A network that can be cut: a relay on loopback that lets bytes through, holds them back, or ends every connection.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    select,
    sync::watch,
};

const BYTES: usize = 64 * 1024;

/// What becomes of bytes and connections.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    Open,
    /// Nothing passes, and nobody is told: packets that are lost.
    Silent,
    /// Connections end, and new ones end at once.
    Closed,
}

#[derive(Clone, Copy)]
struct State {
    way: Way,
    target: SocketAddr,
    /// Grows whenever all connections are ended.
    epoch: u64,
}

/// See the module's head. Ends with its tasks' runtime.
pub struct Cut {
    pub address: SocketAddr,
    state: watch::Sender<State>,
}

impl Cut {
    /// A way to `target`, open.
    pub async fn to(target: SocketAddr) -> Cut {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let state = watch::Sender::new(State { way: Way::Open, target, epoch: 0 });
        tokio::spawn(relay(listener, state.subscribe()));
        Cut { address, state }
    }

    pub fn set(&self, way: Way) {
        self.state.send_modify(|state| {
            state.way = way;
            state.epoch += u64::from(way == Way::Closed);
        });
    }

    /// Ends what there is, and leads somewhere else from now on.
    pub fn lead_to(&self, target: SocketAddr) {
        self.state.send_modify(|state| {
            state.target = target;
            state.epoch += 1;
        });
    }
}

async fn relay(listener: TcpListener, state: watch::Receiver<State>) {
    while let Ok((near, _)) = listener.accept().await {
        tokio::spawn(pass(near, state.clone()));
    }
}

async fn pass(near: TcpStream, state: watch::Receiver<State>) {
    let begin = *state.borrow();
    let mut way = Passage { state, epoch: begin.epoch };
    let Some(()) = way.open().await else { return };
    let Ok(far) = TcpStream::connect(begin.target).await else { return };
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    let back = Passage { state: way.state.clone(), epoch: way.epoch };
    // Either direction may end alone; a cut ends both.
    tokio::join!(carry(near_read, far_write, way), carry(far_read, near_write, back));
}

/// One connection's view of the way.
struct Passage {
    state: watch::Receiver<State>,
    epoch: u64,
}

impl Passage {
    /// Waits while nothing may pass; `None` when the connection ends.
    async fn open(&mut self) -> Option<()> {
        let epoch = self.epoch;
        let moves = |state: &State| state.way != Way::Silent || state.epoch != epoch;
        let now = *self.state.wait_for(moves).await.ok()?;
        (now.way == Way::Open && now.epoch == epoch).then_some(())
    }

    /// Returns when it does not stand open any more.
    async fn shut(&mut self) {
        let epoch = self.epoch;
        let is_shut = |state: &State| state.way != Way::Open || state.epoch != epoch;
        let _ = self.state.wait_for(is_shut).await;
    }

    async fn ended(&mut self) {
        let epoch = self.epoch;
        let _ = self.state.wait_for(|state| state.epoch != epoch).await;
    }
}

async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut way: Passage) {
    let mut bytes = vec![0; BYTES];
    loop {
        let Some(()) = way.open().await else { return };
        let read = select! {
            read = from.read(&mut bytes) => read,
            () = way.shut() => continue,
        };
        let count = match read {
            Ok(count) if count > 0 => count,
            Ok(_) | Err(_) => break,
        };
        // What was under way when the cut came is held back with the rest.
        let Some(()) = way.open().await else { return };
        let written = select! {
            written = to.write_all(&bytes[..count]) => written,
            () = way.ended() => return,
        };
        if written.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut byte = [0];
                    while stream.read_exact(&mut byte).await.is_ok() {
                        stream.write_all(&byte).await.unwrap();
                    }
                });
            }
        });
        address
    }

    /// For what must come, and for what must not.
    const SOON: Duration = Duration::from_secs(20);
    const SILENCE: Duration = Duration::from_millis(200);

    async fn says_back(stream: &mut TcpStream, within: Duration) -> Option<u8> {
        let mut byte = [0];
        let answer = timeout(within, stream.read_exact(&mut byte)).await;
        answer.ok()?.ok().map(|_| byte[0])
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_cut_does_not_pass() {
        let cut = Cut::to(echo().await).await;
        let mut stream = TcpStream::connect(cut.address).await.unwrap();
        stream.write_all(b"a").await.unwrap();
        assert_eq!(says_back(&mut stream, SOON).await, Some(b'a'));
        cut.set(Way::Silent);
        stream.write_all(b"b").await.unwrap();
        assert_eq!(says_back(&mut stream, SILENCE).await, None);
        cut.set(Way::Open);
        assert_eq!(says_back(&mut stream, SOON).await, Some(b'b'), "late, not lost");
        cut.lead_to(echo().await);
        let mut byte = [0];
        let ended = timeout(Duration::from_secs(5), stream.read(&mut byte)).await.expect("an end");
        assert!(matches!(ended, Ok(0) | Err(_)));
        let mut again = TcpStream::connect(cut.address).await.unwrap();
        again.write_all(b"c").await.unwrap();
        assert_eq!(says_back(&mut again, SOON).await, Some(b'c'));
    }
}
