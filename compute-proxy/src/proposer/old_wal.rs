//! WAL that has left the proposer's memory, for members that fell behind: from the compute's `pg_wal`, or from a member
//! that has it.
//!
//! A member is asked over HTTP, with the term that its log must still be in after the read: bytes that a later proposer
//! has cut are never passed on. One piece of a mebibyte at most is read for a member at a time. What cannot be read is
//! reported after a pause, upon which the proposer asks again, perhaps for another source.

use std::{
    collections::BTreeMap,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{sync::mpsc, time::sleep};
use treering_consensus::{TimelineIdentity, WalHolder, WalSource};
use treering_types::{Lsn, NodeId, WAL_SEGMENT_SIZE};

use super::driver::Event;
use crate::{Safekeeper, compute::beneath::Beneath};

/// How long a member may take to give a piece of its log.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Before a read that failed is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// See the module's head.
pub(super) struct OldWal {
    /// Where the compute keeps its WAL, once there is one.
    dir: Arc<Mutex<Option<PathBuf>>>,
    /// Below it, each member answers for this timeline's log.
    urls: BTreeMap<NodeId, String>,
    /// Of the session's own thread: made there when it is first needed.
    http: OnceLock<reqwest::Client>,
    events: mpsc::Sender<Event>,
}

impl OldWal {
    pub(super) fn new(
        log: &TimelineIdentity,
        members: &[Safekeeper],
        dir: Arc<Mutex<Option<PathBuf>>>,
        events: mpsc::Sender<Event>,
    ) -> OldWal {
        let url = |member: &Safekeeper| {
            let path = format!("v1/tenant/{}/timeline/{}/wal", log.tenant, log.timeline);
            (member.node, format!("{}/{path}", member.http.trim_end_matches('/')))
        };
        let urls = members.iter().map(url).collect();
        OldWal { dir, urls, http: OnceLock::new(), events }
    }

    /// Gives what the compute's disk has at once: it is local, a thread would cost more than the read. Anything else,
    /// a failure as well, comes as an event later.
    pub(super) fn read(
        &self,
        to_member: NodeId,
        from: Lsn,
        to: Lsn,
        source: WalSource,
    ) -> Option<Bytes> {
        let holder = match source {
            WalSource::Member(holder) => Some(holder),
            WalSource::Compute { or } => {
                let dir = self.dir.lock().clone();
                let there = dir.and_then(|dir| read_segment(&dir, from, to).ok());
                if there.is_some() {
                    return there;
                }
                or
            }
        };
        let asked = holder.and_then(|holder| self.request(from, to, &holder));
        let events = self.events.clone();
        tokio::spawn(async move {
            let bytes = match asked {
                Some((request, length)) => fetch(request, length).await,
                None => None,
            };
            if bytes.is_none() {
                sleep(RETRY_PAUSE).await;
            }
            // Without a driver nobody wants it.
            let _ = events.send(Event::OldWal { to_member, from, bytes }).await;
        });
        None
    }

    /// What to ask a member for, and how much that is; `None` when nobody has said where it is.
    fn request(
        &self,
        from: Lsn,
        to: Lsn,
        holder: &WalHolder,
    ) -> Option<(reqwest::RequestBuilder, usize)> {
        let to = to.min(holder.end);
        let length = usize::try_from(to.bytes_since(from)?).ok()?;
        let url = self.urls.get(&holder.node)?;
        let http = self.http.get_or_init(reqwest::Client::new);
        let query =
            [("from", from.to_string()), ("to", to.to_string()), ("term", holder.term.to_string())];
        Some((http.get(url).query(&query).timeout(ANSWER_LIMIT), length))
    }
}

async fn fetch(request: reqwest::RequestBuilder, length: usize) -> Option<Bytes> {
    let answer = async { request.send().await?.error_for_status()?.bytes().await };
    match answer.await {
        Ok(bytes) if bytes.len() == length => Some(bytes),
        Ok(bytes) => {
            tracing::warn!(
                found = bytes.len(),
                length,
                "a safekeeper gave less of its log than it was asked for"
            );
            None
        }
        Err(error) => {
            tracing::debug!("a safekeeper's log cannot be read for another: {error}");
            None
        }
    }
}

/// Reads `from..to`, up to the end of `from`'s segment, from a `pg_wal` directory.
fn read_segment(dir: &Path, from: Lsn, to: Lsn) -> io::Result<Bytes> {
    let suffix = &from.segment_file_name(0)[8..];
    let dir = Beneath::open(dir)?;
    let mut named = rustix::fs::Dir::read_from(&dir.dir(Path::new("."))?)?
        .filter_map(|entry| entry.ok()?.file_name().to_str().ok().map(str::to_owned));
    let name = named
        .find(|name| name.len() == 24 && name.ends_with(suffix))
        .ok_or(io::ErrorKind::NotFound)?;
    let end = to.min(from.segment_start() + WAL_SEGMENT_SIZE);
    let mut bytes = vec![0; end.bytes_since(from).unwrap_or(0) as usize];
    dir.file(name.as_ref())?.read_exact_at(&mut bytes, from.segment_offset())?;
    // Postgres gives a segment that it no longer needs another name and writes into it again: while the name is there,
    // what was read is that segment's.
    dir.file(name.as_ref())?;
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };
    use treering_consensus::WalHolder;
    use treering_types::{TenantId, Term, TimelineId};

    use super::*;

    const DONOR: NodeId = NodeId(1);
    const LAGGARD: NodeId = NodeId(2);

    fn log() -> TimelineIdentity {
        TimelineIdentity {
            tenant: TenantId([1; 16]),
            timeline: TimelineId([2; 16]),
            system_id: 3,
            pg_major: 15,
            pg_tli: 1,
            start_lsn: Lsn(WAL_SEGMENT_SIZE),
        }
    }

    /// A member that answers each request with the next of `answers`; gives back what it was asked.
    async fn donor(answers: Vec<(u16, &'static str)>) -> (String, mpsc::Receiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (asked_in, asked) = mpsc::channel(16);
        tokio::spawn(async move {
            for (status, body) in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = vec![0; 4096];
                let length = stream.read(&mut request).await.unwrap();
                let line = String::from_utf8_lossy(&request[..length]).into_owned();
                asked_in.send(line.lines().next().unwrap().to_owned()).await.unwrap();
                let head = format!(
                    "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    body.len()
                );
                stream.write_all(head.as_bytes()).await.unwrap();
                stream.write_all(body.as_bytes()).await.unwrap();
            }
        });
        (address, asked)
    }

    fn old_wal(donor: &str, dir: Option<PathBuf>) -> (OldWal, mpsc::Receiver<Event>) {
        let (events_in, events) = mpsc::channel(4);
        let member = Safekeeper { node: DONOR, wal: String::new(), http: donor.to_owned() };
        (OldWal::new(&log(), &[member], Arc::new(Mutex::new(dir)), events_in), events)
    }

    async fn next(events: &mut mpsc::Receiver<Event>) -> Option<Bytes> {
        match events.recv().await.unwrap() {
            Event::OldWal { to_member: LAGGARD, from: Lsn(100), bytes } => bytes,
            _ => panic!("another event"),
        }
    }

    /// One answer refuses (another term has begun there), one is cut short, one is whole; then nobody is there.
    #[tokio::test]
    async fn a_member_is_asked_under_its_term_and_only_a_whole_answer_counts() {
        let (address, mut asked) = donor(vec![(409, "{}"), (200, "abc"), (200, "abcdefgh")]).await;
        let (old, mut events) = old_wal(&address, None);
        let holder = WalHolder { node: DONOR, term: Term(7), end: Lsn(108) };
        for expected in [None, None, Some(Bytes::from_static(b"abcdefgh")), None] {
            // Never past what the member has reported.
            let source = WalSource::Compute { or: Some(holder) };
            assert_eq!(old.read(LAGGARD, Lsn(100), Lsn(900), source), None);
            assert_eq!(next(&mut events).await, expected);
        }
        let line = asked.recv().await.unwrap();
        assert!(line.contains("from=0%2F64&to=0%2F6C&term=7"), "{line}");
        let unknown = WalSource::Member(WalHolder { node: NodeId(9), ..holder });
        assert_eq!(old.read(LAGGARD, Lsn(100), Lsn(108), unknown), None);
        assert_eq!(next(&mut events).await, None);
    }

    #[tokio::test]
    async fn the_computes_own_segments_are_read_up_to_their_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut segment = vec![1; WAL_SEGMENT_SIZE as usize];
        segment[WAL_SEGMENT_SIZE as usize - 4..].copy_from_slice(b"last");
        fs::write(dir.path().join("000000050000000000000001"), segment).unwrap();
        let (old, mut events) = old_wal("http://127.0.0.1:1", Some(dir.path().to_owned()));
        let end = Lsn(2 * WAL_SEGMENT_SIZE);
        let from = Lsn(end.0 - 4);
        let source = WalSource::Compute { or: None };
        let read = old.read(LAGGARD, from, end + 100, source);
        assert_eq!(read, Some(Bytes::from_static(b"last")));
        assert_eq!(old.read(LAGGARD, Lsn(100), Lsn(108), source), None);
        assert_eq!(next(&mut events).await, None, "removed there, and nobody else has it");
    }
}
