//! The compaction thread: one per engine. It moves cut-offs and merges, one merge of each timeline in turn.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Weak},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use treering_types::{TenantId, TimelineId};

use crate::{
    context::Context,
    engine::Engine,
    error::{EngineError, Result},
    tenant::microseconds_since_2000,
    timeline::Timeline,
};

/// After a failure a timeline is left alone for this long.
const REST: Duration = Duration::from_secs(30);

/// Starts the thread; it ends when the engine is dropped, a merge under way included.
pub(crate) fn spawn(context: Arc<Context>, engine: Weak<Engine>) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("treering-compaction".to_owned()).spawn(move || {
        // Where too many runs wait to be merged, writers do it themselves (`runs_hard_max`).
        treering_threads::unhurried();
        let mut worker = Worker { engine, resting: HashMap::new(), collected_at: None };
        while context.compaction_bell.wait() {
            if worker.turn(&context).is_none() {
                break;
            }
        }
    })
}

struct Worker {
    /// Not held during a merge: the engine may be dropped meanwhile.
    engine: Weak<Engine>,
    resting: HashMap<(TenantId, TimelineId), Instant>,
    collected_at: Option<Instant>,
}

impl Worker {
    /// `None` when the engine is gone.
    fn turn(&mut self, context: &Context) -> Option<()> {
        let interval = context.options.gc_interval;
        if self.collected_at.is_none_or(|at| at.elapsed() >= interval) {
            self.collected_at = Some(Instant::now());
            self.each(context, |timeline| {
                timeline.move_cut_off(microseconds_since_2000()).map(|()| false)
            })?;
        }
        loop {
            let timelines = self.engine.upgrade()?.timelines();
            let runs = timelines.iter().map(|timeline| timeline.layers().files.runs.len());
            context.haste.set_runs(runs.max().unwrap_or(0));
            drop(timelines);
            if !self.each(context, |timeline| Ok(timeline.compact_behind()?.merges > 0))? {
                return Some(());
            }
        }
    }

    /// Does it for each timeline that is not resting; true when there may be more to do.
    fn each(
        &mut self,
        context: &Context,
        work: impl Fn(&Timeline) -> Result<bool>,
    ) -> Option<bool> {
        let timelines = self.engine.upgrade()?.timelines();
        self.resting.retain(|_, until| *until > Instant::now());
        let mut more = false;
        for timeline in timelines {
            if context.is_stopping() {
                return None;
            }
            let id = (timeline.identity().tenant, timeline.id());
            if self.resting.contains_key(&id) {
                continue;
            }
            match work(&timeline) {
                Ok(worked) => more |= worked,
                Err(error) => self.rest(id, &error),
            }
        }
        Some(more)
    }

    fn rest(&mut self, id: (TenantId, TimelineId), error: &EngineError) {
        self.resting.insert(id, Instant::now() + REST);
        match error {
            EngineError::Shutdown
            | EngineError::NoTimeline(_)
            | EngineError::Archived(_)
            | EngineError::NotYet { .. } => {}
            _ => tracing::warn!(%error, timeline = %id.1, "compaction failed"),
        }
    }
}
