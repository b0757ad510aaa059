//! A stream of page requests: what has arrived is answered in batches.
//!
//! Answers come in the order of the requests. A request that fails is answered with an error that says why; the others
//! go on.
//!
//! Each stream has a thread of its own, which blocks: somebody waits for each answer, and what a runtime does before and
//! after blocking work wakes more threads than the answer itself.

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    net::Shutdown,
    os::fd::OwnedFd,
    sync::Arc,
    thread,
    time::Instant,
};

use bytes::BytesMut;
use socket2::Socket;
use tokio::{runtime::Handle, sync::oneshot};
use tokio_util::either::Either;
use treering_threads::{Place, wait_to_read};
use treering_types::Lsn;
use treering_wire::{
    backend::Writer,
    frame::{BODY_BYTES_MAX, next_frame},
    frontend::Message,
    pagestream::{self, Answer, Header, Request, Response},
};

use super::{Connection, READ_BYTES, answers};
use crate::{error::ServiceError, live::LiveTimeline, service::Service};

/// Requests answered at once: 256 KiB of pages, which travel while the next are read.
const BATCH_MAX: usize = 32;
/// Of a thread: reads do not go deep.
const STACK_BYTES: usize = 1 << 20;

/// What has been read of the stream.
#[derive(Default)]
struct Arrived {
    requests: VecDeque<Request>,
    /// Where the asker runs, by its word.
    core: Option<u32>,
    is_done: bool,
}

/// Serves until the client ends the stream, or the timeline ends. Dropped, it closes the connection.
pub(super) async fn serve(
    service: &Arc<Service>,
    live: Arc<LiveTimeline>,
    connection: Connection,
) -> Result<(), ServiceError> {
    let Connection { stream, input, out } = connection;
    let is_near = matches!(stream, Either::Right(_));
    let stream = match stream {
        Either::Left(tcp) => OwnedFd::from(tcp.into_std()?),
        Either::Right(unix) => OwnedFd::from(unix.into_std()?),
    };
    let stream = Socket::from(stream);
    stream.set_nonblocking(false)?;
    let open = Open(stream.try_clone()?);
    let stop = live.stop.clone();
    let (service, runtime) = (Arc::clone(service), Handle::current());
    let received = vec![0; READ_BYTES].into_boxed_slice();
    let mut talk = Talk { service, live, runtime, stream, is_near, received, input, out };
    let (over, mut ended) = oneshot::channel();
    let thread = thread::Builder::new().name("pagestream".to_owned()).stack_size(STACK_BYTES);
    thread.spawn(move || {
        let _ = over.send(talk.run());
    })?;
    tokio::select! {
        ended = &mut ended => return ended.unwrap_or(Err(ServiceError::Shutdown)),
        () = stop.cancelled() => open.0.shutdown(Shutdown::Read)?,
    }
    ended.await.unwrap_or(Err(ServiceError::Shutdown))
}

/// A connection that is closed when nobody waits for its end any more.
struct Open(Socket);

impl Drop for Open {
    fn drop(&mut self) {
        // It may be closed already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// A stream on its thread.
struct Talk {
    service: Arc<Service>,
    live: Arc<LiveTimeline>,
    runtime: Handle,
    stream: Socket,
    /// A Unix socket.
    is_near: bool,
    /// Where the socket is read into.
    received: Box<[u8]>,
    input: BytesMut,
    out: Writer,
}

impl Talk {
    fn run(&mut self) -> Result<(), ServiceError> {
        self.out.copy_both_response();
        self.send()?;
        let mut arrived = Arrived::default();
        let mut place = Place::of_this_thread();
        loop {
            take_arrived(&mut self.input, &mut arrived)?;
            if !arrived.requests.is_empty() {
                match arrived.core {
                    Some(core) if arrived.requests.len() == 1 => place.beside(core),
                    _ => place.anywhere(),
                }
                self.answer_batch(&mut arrived.requests)?;
                self.send()?;
                continue;
            }
            if arrived.is_done || self.live.stop.is_cancelled() {
                self.out.copy_done();
                return Ok(self.send()?);
            }
            if self.is_near {
                wait_to_read(&self.stream, None)?;
            }
            let count = self.stream.read(&mut self.received)?;
            if count == 0 && !self.live.stop.is_cancelled() {
                return Ok(());
            }
            self.input.extend_from_slice(self.received.get(..count).unwrap_or_default());
        }
    }

    fn send(&mut self) -> io::Result<()> {
        self.stream.write_all(self.out.buffer_mut())?;
        self.out.buffer_mut().clear();
        Ok(())
    }

    /// Answers the longest prefix of `requests` that is read at one LSN.
    fn answer_batch(&mut self, requests: &mut VecDeque<Request>) -> Result<(), ServiceError> {
        let Some(first) = requests.front().map(|request| request.header) else { return Ok(()) };
        let (service, live) = (&self.service, &self.live);
        let timer = Instant::now();
        let lsn = match self.runtime.block_on(read_lsn(service, live, first)) {
            Ok(lsn) => lsn,
            Err(error) => {
                requests.pop_front();
                fail(service, &mut self.out, first, &error);
                return Ok(());
            }
        };
        let same = requests.iter().take_while(|request| can_read_at(&request.header, lsn)).count();
        let batch: Vec<Request> = requests.drain(..same.max(1)).collect();
        let failed = {
            let _slot = self.runtime.block_on(service.slot())?;
            answers::answer(live, &batch, lsn, &mut self.out)
        };
        service.metrics.pages_served.inc_by((batch.len() - failed) as u64);
        service.metrics.page_errors.inc_by(failed as u64);
        service.metrics.page_batch_seconds.observe(timer.elapsed().as_secs_f64());
        Ok(())
    }
}

/// Every complete message of the input, up to a batch.
fn take_arrived(input: &mut BytesMut, arrived: &mut Arrived) -> Result<(), ServiceError> {
    while arrived.requests.len() < BATCH_MAX && !arrived.is_done {
        let Some(frame) = next_frame(input, BODY_BYTES_MAX)? else { break };
        match Message::parse(frame)? {
            Message::CopyData(payload) => match pagestream::core(&payload) {
                core @ Some(_) => arrived.core = core,
                None => arrived.requests.push_back(Request::parse(payload)?),
            },
            Message::CopyDone | Message::CopyFail(_) | Message::Terminate => arrived.is_done = true,
            Message::Flush | Message::Sync => {}
            Message::Query(_) | Message::Password(_) | Message::Other(_) => {
                let message = "only page requests are understood in a page stream".to_owned();
                return Err(ServiceError::Invalid { field: None, message, hint: None });
            }
        }
    }
    Ok(())
}

/// The LSN to read at: the newest that is allowed. The page did not change after `not_modified_since` and up to `lsn`,
/// so any LSN between the two gives the same; what lies nearest to the tip is the cheapest. Waits, within bounds,
/// until `not_modified_since` is ingested.
async fn read_lsn(
    service: &Service,
    live: &LiveTimeline,
    header: Header,
) -> Result<Lsn, ServiceError> {
    let Header { lsn, not_modified_since, request_id: _ } = header;
    if not_modified_since > lsn {
        let message =
            format!("not_modified_since {not_modified_since} lies after the LSN asked for, {lsn}");
        return Err(ServiceError::invalid("not_modified_since", message));
    }
    service.wait_for(live, not_modified_since, service.options.wait_lsn_max).await?;
    let newest = live.timeline.last_record_lsn().min(lsn);
    // After a restart an ancestor may still be on its way to the fork.
    service.wait_for(live, newest, service.options.wait_lsn_max).await?;
    Ok(newest)
}

/// True when a request allows `lsn` as well as its own newest.
fn can_read_at(header: &Header, lsn: Lsn) -> bool {
    header.not_modified_since <= lsn && lsn <= header.lsn
}

fn fail(service: &Service, out: &mut Writer, header: Header, error: &ServiceError) {
    service.metrics.page_errors.inc();
    let answer = Answer::Error { message: error.to_string() };
    out.copy_data_with(|body| Response { header, answer }.encode(body));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_share_an_lsn_within_everyones_bounds() {
        let header =
            |since, lsn| Header { request_id: 0, lsn: Lsn(lsn), not_modified_since: Lsn(since) };
        assert!(can_read_at(&header(10, 20), Lsn(20)));
        assert!(can_read_at(&header(10, u64::MAX), Lsn(10)));
        assert!(!can_read_at(&header(10, 20), Lsn(21)));
        assert!(!can_read_at(&header(10, 20), Lsn(9)));
    }
}
