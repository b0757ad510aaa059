//! A client that knows what it sent and what was acknowledged.
//!
//! Writers insert (writer, n) with n counting up, each in a transaction of its own, and record n before sending and
//! after the answer. Whatever is killed meanwhile: acknowledged ⊆ present ⊆ sent.

use std::{
    collections::HashSet,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use tokio::task::JoinHandle;
use tokio_postgres::{Client, Config, NoTls};

/// Writers at work.
pub struct Ledger {
    stop: Arc<AtomicBool>,
    /// The number of the first writer; the others follow.
    first: i32,
    writers: Vec<(Arc<Written>, Option<JoinHandle<()>>)>,
}

#[derive(Default)]
struct Written {
    sent: AtomicI64,
    acknowledged: std::sync::Mutex<HashSet<i64>>,
}

impl Ledger {
    /// Creates the table and begins. A writer whose connection breaks connects again and goes on with the next number.
    pub async fn begin(config: &Config, writers: i32) -> Ledger {
        let client = connect(config).await.expect("connect");
        client
            .batch_execute(
                "CREATE TABLE IF NOT EXISTS ledger (writer int, n bigint, PRIMARY KEY (writer, n))",
            )
            .await
            .expect("create the ledger");
        Ledger::join(config, 0..writers)
    }

    /// More writers, under numbers of their own, into the table that is there.
    pub fn join(config: &Config, writers: Range<i32>) -> Ledger {
        let stop = Arc::new(AtomicBool::new(false));
        let first = writers.start;
        let writers = writers
            .map(|writer| {
                let written = Arc::<Written>::default();
                let task = write(config.clone(), writer, written.clone(), stop.clone());
                (written, Some(tokio::spawn(task)))
            })
            .collect();
        Ledger { stop, first, writers }
    }

    /// How many were acknowledged so far.
    pub fn acknowledged(&self) -> usize {
        self.writers.iter().map(|(w, _)| w.acknowledged.lock().expect("lock").len()).sum()
    }

    /// Has the writers end once they have heard of what they sent last.
    pub fn send_no_more(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Ends the writers.
    pub async fn end(&mut self) {
        self.send_no_more();
        for (_, task) in &mut self.writers {
            if let Some(task) = task.take() {
                let _ = tokio::time::timeout(Duration::from_secs(30), task).await;
            }
        }
    }

    /// Compares what was sent and acknowledged with what is there.
    pub async fn check(&self, client: &Client) {
        for (writer, (written, _)) in (self.first..).zip(&self.writers) {
            let rows = client
                .query("SELECT n FROM ledger WHERE writer = $1", &[&writer])
                .await
                .expect("read the ledger");
            let present: HashSet<i64> = rows.iter().map(|row| row.get(0)).collect();
            let acknowledged = written.acknowledged.lock().expect("lock");
            let sent = written.sent.load(Ordering::Relaxed);
            let lost: Vec<_> = acknowledged.difference(&present).collect();
            assert!(lost.is_empty(), "writer {writer}: acknowledged and lost: {lost:?}");
            let invented: Vec<_> = present.iter().filter(|n| **n > sent).collect();
            assert!(invented.is_empty(), "writer {writer}: present and never sent: {invented:?}");
        }
    }
}

async fn connect(config: &Config) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

async fn write(config: Config, writer: i32, written: Arc<Written>, stop: Arc<AtomicBool>) {
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        let Ok(client) = connect(&config).await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        while !stop.load(Ordering::Relaxed) {
            n += 1;
            written.sent.store(n, Ordering::Relaxed);
            match client.execute("INSERT INTO ledger VALUES ($1, $2)", &[&writer, &n]).await {
                Ok(_) => drop(written.acknowledged.lock().expect("lock").insert(n)),
                Err(_) => break,
            }
        }
    }
}
