//! A stream of page requests: everything that has arrived is answered as one batch.
//!
//! Answers come in the order of the requests. A request that fails is answered with an error that says why; the others
//! go on.

use std::{collections::VecDeque, sync::Arc, time::Instant};

use treering_types::Lsn;
use treering_wire::{
    backend::Writer,
    frame::{BODY_BYTES_MAX, next_frame},
    frontend::Message,
    pagestream::{Answer, Header, Request, Response},
};

use super::{Connection, answers};
use crate::{error::ServiceError, live::LiveTimeline, service::Service};

/// Requests answered at once: 2 MiB of pages.
const BATCH_MAX: usize = 256;

/// What has been read of the stream.
#[derive(Default)]
struct Arrived {
    requests: VecDeque<Request>,
    is_done: bool,
}

/// Serves until the client ends the stream.
pub(super) async fn serve(
    service: &Service,
    live: &Arc<LiveTimeline>,
    connection: &mut Connection,
) -> Result<(), ServiceError> {
    connection.out.copy_both_response();
    connection.send().await?;
    let mut arrived = Arrived::default();
    loop {
        take_arrived(connection, &mut arrived)?;
        if !arrived.requests.is_empty() {
            answer_batch(service, live, connection, &mut arrived.requests).await?;
            connection.send().await?;
            continue;
        }
        let is_open = !arrived.is_done && !live.stop.is_cancelled();
        if !is_open {
            connection.out.copy_done();
            return Ok(connection.send().await?);
        }
        tokio::select! {
            read = connection.read() => {
                if !read? {
                    return Ok(());
                }
            }
            () = live.stop.cancelled() => {}
        }
    }
}

/// Every complete message of the input, up to a batch.
fn take_arrived(connection: &mut Connection, arrived: &mut Arrived) -> Result<(), ServiceError> {
    while arrived.requests.len() < BATCH_MAX && !arrived.is_done {
        let Some(frame) = next_frame(&mut connection.input, BODY_BYTES_MAX)? else { break };
        match Message::parse(frame)? {
            Message::CopyData(payload) => arrived.requests.push_back(Request::parse(payload)?),
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

/// Answers the longest prefix of `requests` that is read at one LSN.
async fn answer_batch(
    service: &Service,
    live: &Arc<LiveTimeline>,
    connection: &mut Connection,
    requests: &mut VecDeque<Request>,
) -> Result<(), ServiceError> {
    let Some(first) = requests.front().map(|request| request.header) else { return Ok(()) };
    let timer = Instant::now();
    let lsn = match read_lsn(service, live, first).await {
        Ok(lsn) => lsn,
        Err(error) => {
            requests.pop_front();
            fail(service, &mut connection.out, first, &error);
            return Ok(());
        }
    };
    let same = requests.iter().take_while(|request| can_read_at(&request.header, lsn)).count();
    let batch: Vec<Request> = requests.drain(..same.max(1)).collect();
    let reading = Arc::clone(live);
    let mut out = std::mem::take(&mut connection.out);
    let read = move || {
        let failed = answers::answer(&reading, &batch, lsn, &mut out);
        Ok::<_, ServiceError>((out, failed, batch.len()))
    };
    let (out, failed, count) = service.blocking(read).await?;
    connection.out = out;
    service.metrics.pages_served.inc_by((count - failed) as u64);
    service.metrics.page_errors.inc_by(failed as u64);
    service.metrics.page_batch_seconds.observe(timer.elapsed().as_secs_f64());
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
