//! The flush thread: one per engine. It flushes what writers froze, freezes what has grown old, and eases memory pressure.

use std::{
    io,
    sync::{Arc, Weak},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

use crate::{context::Context, engine::Engine};

/// It looks around at least this often.
const TICK: Duration = Duration::from_millis(500);

/// How writers and the engine talk to a thread.
#[derive(Default)]
pub(crate) struct Bell {
    signals: Mutex<Signals>,
    changed: Condvar,
}

#[derive(Default)]
struct Signals {
    work: bool,
    stop: bool,
}

impl Bell {
    /// There is work.
    pub fn ring(&self) {
        self.signals.lock().work = true;
        self.changed.notify_one();
    }

    /// The engine goes.
    pub fn stop(&self) {
        self.signals.lock().stop = true;
        self.changed.notify_one();
    }

    /// Waits for a signal or the next tick; false when it is time to stop.
    pub fn wait(&self) -> bool {
        let deadline = Instant::now() + TICK;
        let mut signals = self.signals.lock();
        while !signals.work && !signals.stop {
            if self.changed.wait_until(&mut signals, deadline).timed_out() {
                break;
            }
        }
        signals.work = false;
        !signals.stop
    }
}

/// Starts the thread; it ends when the engine is dropped.
pub(crate) fn spawn(context: Arc<Context>, engine: Weak<Engine>) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("treering-flush".to_owned()).spawn(move || {
        // Nobody waits for it but ingest, when memory is full, and that holds up writers only once it is far behind.
        treering_threads::unhurried();
        while context.flush_bell.wait() {
            let Some(engine) = engine.upgrade() else { break };
            turn(&engine);
        }
    })
}

fn turn(engine: &Engine) {
    let importing = engine.tenants().into_iter().flat_map(|tenant| tenant.importing());
    let timelines: Vec<_> = engine.timelines().into_iter().chain(importing).collect();
    if engine.context().is_over_budget() {
        let largest = timelines.iter().max_by_key(|timeline| timeline.layers().open.bytes());
        largest.into_iter().for_each(|timeline| timeline.freeze());
    }
    for timeline in timelines {
        if let Err(error) = timeline.maybe_flush() {
            tracing::warn!(%error, timeline = %timeline.id(), "flush failed");
        }
    }
}
