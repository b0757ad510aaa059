//! The thread that carries one tenant to the store: at once when something is durable here, and again after growing pauses when the
//! store does not take it.

use std::{io, sync::Arc, time::Duration};

use treering_remote::RemoteError;

use super::tenant::{TenantRemote, is_final};

/// It looks around at least this often: for rubbish whose last reader has gone.
const TICK: Duration = Duration::from_secs(10);
/// The longest pause after failures.
const REST_MAX: Duration = Duration::from_secs(30);

pub(super) fn spawn(remote: Arc<TenantRemote>) -> io::Result<()> {
    std::thread::Builder::new()
        .name("treering-upload".to_owned())
        .spawn(move || run(&remote))
        .map(drop)
}

fn run(remote: &TenantRemote) {
    let mut failures = 0u32;
    while remote.wait_for_work(TICK) {
        match remote.turn() {
            Ok(()) if failures > 0 => {
                tracing::info!(tenant = %remote.id, "the object store takes what is published again");
                failures = 0;
            }
            Ok(()) => {}
            Err(RemoteError::Stopping) => return,
            Err(error) if is_final(&error) => {
                tracing::error!(%error, tenant = %remote.id, "nothing is published any more");
                return;
            }
            Err(error) => {
                failures += 1;
                tracing::warn!(%error, tenant = %remote.id, failures, "not published; it is tried again");
                let pause = Duration::from_secs(1).saturating_mul(1 << failures.min(5));
                if remote.rest(pause.min(REST_MAX)) {
                    return;
                }
                remote.ring();
            }
        }
    }
}
