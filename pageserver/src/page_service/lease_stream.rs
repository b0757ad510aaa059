//! A stream of lease requests, each answered before the next. A lease outlives its stream: an end releases nothing.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use treering_wire::{
    frame::{BODY_BYTES_MAX, next_frame},
    frontend::Message,
    lease::{Answer, Request},
};

use super::Connection;
use crate::{error::ServiceError, live::LiveTimeline};

/// Serves until the client ends the stream, or the timeline ends.
pub(super) async fn serve(
    live: &Arc<LiveTimeline>,
    connection: &mut Connection,
) -> Result<(), ServiceError> {
    connection.out.copy_both_response();
    connection.send().await?;
    loop {
        while let Some(frame) = next_frame(&mut connection.input, BODY_BYTES_MAX)? {
            match Message::parse(frame)? {
                Message::CopyData(payload) => {
                    let answer = answer(live, payload)?;
                    connection.out.copy_data_with(|body| answer.encode(body));
                    connection.send().await?;
                }
                Message::CopyDone | Message::CopyFail(_) | Message::Terminate => {
                    connection.out.copy_done();
                    return Ok(connection.send().await?);
                }
                Message::Flush | Message::Sync => {}
                Message::Query(_) | Message::Password(_) | Message::Other(_) => {
                    let message = "only lease requests are understood in a lease stream".to_owned();
                    return Err(ServiceError::Invalid { field: None, message, hint: None });
                }
            }
        }
        tokio::select! {
            read = connection.read() => {
                if !read? {
                    return Ok(());
                }
            }
            () = live.stop.cancelled() => {
                connection.out.copy_done();
                return Ok(connection.send().await?);
            }
        }
    }
}

fn answer(live: &LiveTimeline, request: Bytes) -> Result<Answer, ServiceError> {
    Ok(match Request::parse(request)? {
        Request::Take { holder, lsn } => {
            let keep = |lsns| live.timeline.set_leases(lsns);
            match live.leases.take(holder, lsn, Instant::now(), keep) {
                Ok(left) => Answer::Granted { lsn, left },
                Err(error) => Answer::Refused { message: error.to_string() },
            }
        }
        Request::Release { holder } => {
            let keep = |lsns| live.timeline.set_leases(lsns);
            live.leases.release(&holder, Instant::now(), keep);
            Answer::Released
        }
    })
}
