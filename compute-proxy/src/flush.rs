//! The log of a compute with the page library: Postgres writes it to `pg_wal` and asks for it to be durable, which it is when the
//! quorum has it. No walsender, and no wait of Postgres that could be cancelled.
//!
//! A request (`docs/formats/pages-door.md`) says that everything which is written by now is wanted. What that is the log says itself ([`tail`]).

mod tail;

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use tokio::{
    io::AsyncReadExt,
    time::{sleep, timeout},
};
use treering_consensus::TimelineIdentity;
use treering_pgfmt::version::PgMajor;
use treering_types::Lsn;

use self::tail::{Tail, TailError};
use crate::{endpoint::Compute, pages::Pages};

/// Requests are looked for at least so often: their word may have been lost.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The log is handed on in parts of so many bytes.
const PART_BYTES: usize = 1024 * 1024;
/// After a read that failed: out of descriptors or memory, mostly.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// A log that seems to be damaged is looked at again before that is believed: somebody may have asked who does not hold Postgres's lock, an extension
/// with a file of its own, and a page been written meanwhile.
const LOOKS: u32 = 3;
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// Answers requests until the compute ends, and ends it if that is not possible any more: whoever waits would wait for ever. `next`: where the quorum's
/// log ends, a record's end.
pub async fn run(compute: Arc<Compute>, pages: Arc<Pages>, log: TimelineIdentity, next: Lsn) {
    let ending = Ending(&compute);
    let failed = tokio::select! {
        failed = answer(&compute, &pages, &log, next) => failed,
        () = compute.wait_ended() => return std::mem::forget(ending),
    };
    if compute.session.is_closed() {
        // Which ends the compute, and says why.
        return std::mem::forget(ending);
    }
    if let Err(error) = failed {
        compute.fail(format!("its log cannot be given to the safekeepers: {error:#}"));
    }
}

/// However the task ends, the compute does.
struct Ending<'c>(&'c Compute);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.fail("nobody reads its log any more".to_owned());
    }
}

async fn answer(
    compute: &Compute,
    pages: &Pages,
    log: &TimelineIdentity,
    next: Lsn,
) -> anyhow::Result<()> {
    let mut pipe = pages.flush_pipe().context("the pipe for flushes")?;
    let major = PgMajor::from_number(log.pg_major)?;
    let mut tail = Tail::new(pages.wal_dir(), major, log.pg_tli, next);
    let mut words = [0; 1024];
    loop {
        // Before the log is read. What is asked later wakes us again.
        if let Some(request) = pages.flush_request() {
            hand_on(compute, &mut tail).await?;
            compute.session.wait_for(tail.whole()).await?;
            pages.set_flushed(request);
        }
        if let Ok(woken) = timeout(LOOK_EVERY, pipe.read(&mut words)).await {
            woken?;
        }
    }
}

/// Gives the proposer all that is written.
async fn hand_on(compute: &Compute, tail: &mut Tail) -> anyhow::Result<()> {
    let mut looks = 0;
    loop {
        match tail.read() {
            Ok(written) => {
                looks = 0;
                let (mut at, mut bytes) = (written.from, written.bytes);
                while !bytes.is_empty() {
                    let part = bytes.split_to(bytes.len().min(PART_BYTES));
                    let length = part.len() as u64;
                    compute.session.append(at, part).await?;
                    at = at + length;
                    if written.is_all && bytes.is_empty() {
                        return Ok(());
                    }
                    // Who sends it is on this thread, too.
                    tokio::task::yield_now().await;
                }
                if written.is_all {
                    return Ok(());
                }
            }
            Err(TailError::Io(error)) => {
                tracing::warn!(%error, "a compute's log cannot be read; trying again");
                sleep(RETRY_PAUSE).await;
            }
            Err(error @ TailError::Damaged { .. }) => {
                looks += 1;
                if looks == LOOKS {
                    return Err(error.into());
                }
                sleep(LOOK_PAUSE).await;
            }
        }
    }
}
