//! The thread on which a timeline's larger syncs are done, while its own thread takes in what comes next.

use std::{
    io,
    sync::{Arc, mpsc},
    thread,
};

use tokio::sync::Notify;

use crate::unsynced::SyncJob;

/// Begun with the first job; ends when dropped and done.
#[derive(Default)]
pub(super) struct Syncer {
    jobs: Option<mpsc::Sender<SyncJob>>,
    ended: Arc<Notify>,
}

impl Syncer {
    /// Runs the job there. Where there is no thread to be had it is run here.
    pub(super) fn run(&mut self, job: SyncJob) {
        if self.jobs.is_none() {
            self.jobs = start(self.ended.clone()).ok();
        }
        let left = match &self.jobs {
            Some(jobs) => jobs.send(job).err().map(|refused| refused.0),
            None => Some(job),
        };
        if let Some(job) = left {
            run(job, &self.ended);
        }
    }

    /// Returns when a job has ended, perhaps one that was known to have.
    pub(super) async fn ended(&self) {
        self.ended.notified().await;
    }
}

fn start(ended: Arc<Notify>) -> io::Result<mpsc::Sender<SyncJob>> {
    let (jobs, queue) = mpsc::channel::<SyncJob>();
    let work = move || {
        for job in queue {
            run(job, &ended);
        }
    };
    thread::Builder::new().name("treering-sync".into()).spawn(work)?;
    Ok(jobs)
}

/// Whatever comes of the job, its end is told: one that panicked has failed.
fn run(job: SyncJob, ended: &Notify) {
    struct Telling<'a>(&'a Notify);
    impl Drop for Telling<'_> {
        fn drop(&mut self) {
            self.0.notify_one();
        }
    }
    let _telling = Telling(ended);
    job.run();
}
