//! Dropping blocks, so that a compute's files stay within its page-cache limit.
//!
//! Clean blocks go first. A block that Postgres wrote may go when WAL says everything that is in it:
//! - its file is a logged fork of a permanent relation;
//! - the pageserver has ingested L_w, Postgres's insert position asked after the last write (a page's own LSN does not
//!   always move with its visibility bits);
//! - every transaction that ran at that moment has ended: `cmin` and combo ids of their rows are in no record, and a
//!   VACUUM that runs tells by marks in the pages (`btpo_cycleid`) which splits it must follow;
//! - it is not the page of a sequence, which holds the last value given out, where WAL holds a later one;
//! - it is neither all zeros nor without an LSN: extended, or initialised, without a record.
//!
//! A record may follow its change: a bit of the visibility map is cleared before the record that says so has its place. So when
//! all who ran at the first L_w have ended, the insert position is asked once more, and that one counts.
//!
//! One task does all of this for a compute, so that notes and drops of a block never overlap.

use std::{collections::HashSet, fs::File, os::unix::fs::FileExt, sync::Arc, time::Duration};

use anyhow::Context;
use rustix::fs::FallocateFlags;
use treering_presence::{BLOCK_SIZE, DropClaim, DropRule, History, State};
use treering_types::{Lsn, PAGE_SIZE};

use super::fetch::{BlockId, Fetcher};
use crate::endpoint::{Compute, sql_error};

/// How often the maps are counted.
const COUNT_EVERY: Duration = Duration::from_millis(500);
/// How often a group of written blocks is looked at again.
const POLL: Duration = Duration::from_millis(50);
/// Between two rounds.
const ROUND_PAUSE: Duration = Duration::from_millis(5);
/// The longest pause, when somebody runs for long.
const PATIENCE_MAX: Duration = Duration::from_secs(2);
/// The longest wait for Postgres's answer.
const ASK_LIMIT: Duration = Duration::from_secs(10);
/// Below the limit by this part, so that not every fetch finds it reached.
const SLACK_PART: u64 = 10;
/// Written blocks that are noted together.
const GROUP_BLOCKS_MAX: usize = 16_384;
/// Blocks that are punched at once: while they are, nobody reads them.
const RUN_BLOCKS_MAX: usize = 128;
/// Where `pd_special` of a sequence's page points: its magic (`SEQ_MAGIC`, commands/sequence.c).
const SEQUENCE_MAGIC: u32 = 0x1717;

/// What the dropper asks of the rest of the agent.
pub trait Ingested: Send + Sync {
    /// How far the pageserver has ingested the compute's log.
    fn ingested(&self) -> impl Future<Output = anyhow::Result<Lsn>> + Send;
}

/// Written blocks on their way out.
struct Group {
    blocks: Vec<BlockId>,
    insert_lsn: Lsn,
    /// Virtual transaction ids of those that may still need what WAL does not have, or have yet to write what it will.
    running: HashSet<String>,
    /// They have ended, and L_w was asked again.
    is_settled: bool,
}

/// Drops blocks of one compute when there are more than the limit.
pub struct Dropper {
    fetcher: Arc<Fetcher>,
    /// Where the next round begins: file and block.
    hand: BlockId,
    /// Blocks that Postgres wrote and that must stay, whatever is noted of them.
    kept: HashSet<BlockId>,
    /// Noted, and waiting until they may go. One group at a time.
    leaving: Option<Group>,
    /// Until it is looked at again.
    patience: Duration,
}

/// What is in the files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub present: u64,
    pub written: u64,
}

impl Dropper {
    pub fn new(fetcher: Arc<Fetcher>) -> Dropper {
        Dropper {
            fetcher,
            hand: BlockId { file: 0, block: 0 },
            kept: HashSet::new(),
            leaving: None,
            patience: POLL,
        }
    }

    /// Works until the compute ends.
    pub async fn run(mut self, compute: Arc<Compute>, ingested: impl Ingested) {
        loop {
            let pause = if self.leaving.is_some() { self.patience } else { COUNT_EVERY };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.fetcher.room.exceeded() => {}
                () = compute.wait_ended() => return,
            }
            let round = tokio::select! {
                round = self.round(&compute, &ingested) => round,
                () = compute.wait_ended() => return,
            };
            if let Err(error) = round {
                tracing::debug!("dropping pages: {error:#}");
            }
            // However fast pages come in, counting them leaves room for other work.
            tokio::time::sleep(ROUND_PAUSE).await;
        }
    }

    async fn round(&mut self, compute: &Compute, ingested: &impl Ingested) -> anyhow::Result<()> {
        let limit = self.fetcher.room.limit();
        let counts = self.on_thread(|dropper| dropper.count()).await?;
        self.fetcher.room.counted(counts.present);
        if counts.present <= limit {
            return Ok(());
        }
        let surplus = counts.present - (limit - limit / SLACK_PART);
        let dropped = self.on_thread(move |dropper| dropper.drop_clean(surplus)).await?;
        self.fetcher.room.round_ended(dropped > 0);
        match &mut self.leaving {
            Some(group) => {
                let asked = tokio::time::timeout(ASK_LIMIT, is_due(group, compute, ingested));
                match asked.await.context("Postgres does not answer")?? {
                    true => self.on_thread(Dropper::drop_written).await?,
                    false => self.patience = (self.patience * 2).min(PATIENCE_MAX),
                }
            }
            None if dropped < surplus && counts.written > 0 => {
                let wanted = usize::try_from(surplus - dropped).unwrap_or(usize::MAX);
                let wanted = wanted.min(GROUP_BLOCKS_MAX);
                let blocks = self.on_thread(move |dropper| dropper.note(wanted)).await?;
                if !blocks.is_empty() {
                    let asked = tokio::time::timeout(ASK_LIMIT, note_positions(compute, blocks));
                    self.leaving = Some(asked.await.context("Postgres does not answer")??);
                    self.patience = POLL;
                }
            }
            None => {}
        }
        Ok(())
    }

    /// Runs blocking work on a thread of its own.
    async fn on_thread<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Dropper) -> T + Send + 'static,
    ) -> anyhow::Result<T> {
        let mut dropper = Dropper {
            fetcher: Arc::clone(&self.fetcher),
            hand: self.hand,
            kept: std::mem::take(&mut self.kept),
            leaving: self.leaving.take(),
            patience: self.patience,
        };
        let (dropper, done) = tokio::task::spawn_blocking(move || {
            let done = work(&mut dropper);
            (dropper, done)
        })
        .await
        .context("the thread that drops pages ended")?;
        *self = dropper;
        Ok(done)
    }

    /// Blocks in the files, and how many of them Postgres wrote.
    pub fn count(&mut self) -> Counts {
        let mut counts = Counts::default();
        for file in 0..self.fetcher.files.len() {
            let Some(agent) = self.fetcher.shared.agent(file) else { continue };
            let map = agent.map();
            if map.is_unlinked() {
                continue;
            }
            for block in (0..map.block_count()).filter_map(|block| map.block(block)) {
                // What reads as zeros holds no space.
                let is_there = (block.state == State::Present || block.backed) && !block.zero;
                counts.present += u64::from(is_there);
                counts.written += u64::from(is_there && block.history != History::Clean);
            }
        }
        counts
    }

    /// Drops up to so many blocks that are as they were fetched, neighbours at once; says how many.
    fn drop_clean(&mut self, wanted: u64) -> u64 {
        let mut dropped = 0;
        let mut run = Run::default();
        self.walk(|dropper, id| {
            if !run.is_continued_by(id) {
                dropped += dropper.end_run(&mut run);
            }
            if let Some(claim) = dropper.claim(id, DropRule::OnlyClean) {
                run.add(id, claim);
            }
            dropped + (run.claims.len() as u64) < wanted
        });
        dropped + self.end_run(&mut run)
    }

    /// Punches the blocks of a run; says how many there were.
    fn end_run(&mut self, run: &mut Run) -> u64 {
        let claims = std::mem::take(&mut run.claims);
        let agent = self.fetcher.shared.agent(run.first.file as usize);
        let (Some(agent), false) = (agent, claims.is_empty()) else { return 0 };
        let (offset, length) =
            (u64::from(run.first.block) * BLOCK_SIZE, claims.len() as u64 * BLOCK_SIZE);
        // Where there is no file any more, the blocks are absent all the same.
        if let Ok(file) = self.fetcher.file(run.first.file) {
            punch(&file, offset, length);
        }
        let count = claims.len() as u64;
        for claim in claims {
            if let Err(lost) = agent.finish_drop(claim) {
                tracing::error!(file = run.first.file, "{lost}");
            }
        }
        self.fetcher.room.freed(count);
        count
    }

    /// Notes up to so many written blocks.
    fn note(&mut self, wanted: usize) -> Vec<BlockId> {
        let mut noted = Vec::new();
        self.walk(|dropper, id| {
            if dropper.may_go(id) {
                noted.push(id);
            }
            noted.len() < wanted
        });
        noted
    }

    /// A written block of a logged fork, noted now or earlier in this agent's life.
    fn may_go(&self, id: BlockId) -> bool {
        let is_logged = self.fetcher.files.get(id.file as usize).is_some_and(|file| file.is_logged);
        if !is_logged || self.kept.contains(&id) {
            return false;
        }
        let Some(agent) = self.fetcher.shared.agent(id.file as usize) else { return false };
        agent.note(id.block)
            || agent.map().block(id.block).is_some_and(|block| {
                block.state == State::Present && block.history == History::Noted && !block.zero
            })
    }

    /// Calls `visit` for each block from the hand on, once round, until it says no.
    fn walk(&mut self, mut visit: impl FnMut(&mut Dropper, BlockId) -> bool) {
        let files = u32::try_from(self.fetcher.files.len()).unwrap_or(u32::MAX);
        let first = self.hand;
        for step in 0..=files {
            let file = (first.file + step) % files.max(1);
            let count = self.fetcher.files.get(file as usize).map_or(0, |file| file.blocks);
            let blocks = match step {
                0 => first.block.min(count)..count,
                last if last == files => 0..first.block.min(count),
                _ => 0..count,
            };
            let is_gone = self
                .fetcher
                .shared
                .agent(file as usize)
                .is_none_or(|agent| agent.map().is_unlinked());
            for block in blocks.filter(|_| !is_gone) {
                let id = BlockId { file, block };
                self.hand = BlockId { file, block: block + 1 };
                if !visit(self, id) {
                    return;
                }
            }
        }
    }

    fn drop_written(&mut self) {
        let Some(group) = self.leaving.take() else { return };
        for &id in &group.blocks {
            self.drop_one(id, group.insert_lsn);
        }
    }

    /// Claims a block if the rule lets it go.
    fn claim(&self, id: BlockId, rule: DropRule) -> Option<DropClaim> {
        let agent = self.fetcher.shared.agent(id.file as usize)?;
        let block = agent.map().block(id.block)?;
        let by_history = match rule {
            DropRule::OnlyClean => block.history == History::Clean,
            DropRule::NotedToo => block.history != History::Dirty,
        };
        // Most of the time there is nothing to claim.
        let goes = block.state == State::Present && by_history && !block.zero;
        goes.then(|| agent.claim_drop(id.block, rule)).flatten()
    }

    /// Drops a block that Postgres wrote, if it may go.
    fn drop_one(&mut self, id: BlockId, insert_lsn: Lsn) {
        let Some(agent) = self.fetcher.shared.agent(id.file as usize) else { return };
        let Ok(file) = self.fetcher.file(id.file) else { return };
        // Before it is absent: whoever fetches it then asks for no less.
        self.fetcher.horizon.needs(insert_lsn);
        let Some(claim) = self.claim(id, DropRule::NotedToo) else { return };
        let offset = u64::from(id.block) * BLOCK_SIZE;
        let mut page = [0; PAGE_SIZE];
        let verdict = match file.read_exact_at(&mut page, offset) {
            Ok(()) => verdict(&page),
            Err(_) => Verdict::Stays,
        };
        let ended = match verdict {
            Verdict::Goes => {
                punch(&file, offset, BLOCK_SIZE);
                self.fetcher.room.freed(1);
                agent.finish_drop(claim)
            }
            Verdict::Zero => agent.finish_drop_zero(claim),
            Verdict::Stays => agent.abort_drop(claim),
        };
        if verdict == Verdict::Stays {
            self.kept.insert(id);
        }
        if let Err(lost) = ended {
            tracing::error!(file = id.file, "{lost}");
        }
    }
}

/// Neighbouring blocks of one file, claimed.
struct Run {
    first: BlockId,
    claims: Vec<DropClaim>,
}

impl Default for Run {
    fn default() -> Run {
        Run { first: BlockId { file: 0, block: 0 }, claims: Vec::new() }
    }
}

impl Run {
    fn is_continued_by(&self, id: BlockId) -> bool {
        let next = u64::from(self.first.block) + self.claims.len() as u64;
        self.claims.len() < RUN_BLOCKS_MAX
            && self.first.file == id.file
            && next == u64::from(id.block)
    }

    fn add(&mut self, id: BlockId, claim: DropClaim) {
        if self.claims.is_empty() {
            self.first = id;
        }
        self.claims.push(claim);
    }
}

/// Gives the space back. If it cannot be, the block is absent all the same and will be fetched over it.
fn punch(file: &File, offset: u64, length: u64) {
    let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let _ = rustix::fs::fallocate(file, how, offset, length);
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    Goes,
    Zero,
    Stays,
}

fn verdict(page: &[u8; PAGE_SIZE]) -> Verdict {
    if page.iter().all(|byte| *byte == 0) {
        return Verdict::Zero;
    }
    // Never logged, like a page of a visibility map that was only initialised: the pageserver does not know it.
    if page[..8] == [0; 8] {
        return Verdict::Stays;
    }
    let special = u16::from_le_bytes([page[16], page[17]]) as usize;
    let magic = page.get(special..special + 4);
    match magic == Some(&SEQUENCE_MAGIC.to_le_bytes()) {
        true => Verdict::Stays,
        false => Verdict::Goes,
    }
}

/// Asks Postgres, after the blocks were noted, where its log stands and who is running.
async fn note_positions(compute: &Compute, blocks: Vec<BlockId>) -> anyhow::Result<Group> {
    let client = compute.connect().await?;
    let insert_lsn = insert_lsn(&client).await?;
    let running = running(&client).await?;
    Ok(Group { blocks, insert_lsn, running, is_settled: false })
}

async fn insert_lsn(client: &tokio_postgres::Client) -> anyhow::Result<Lsn> {
    let row = client.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await;
    let text: String = row.map_err(|error| sql_error(&error))?.get(0);
    Ok(record_end(text.parse().context("pg_current_wal_insert_lsn")?))
}

/// An insert position behind a page header is where the record before it ended: at the page's start.
fn record_end(insert: Lsn) -> Lsn {
    const SHORT_HEADER: u64 = 24;
    const LONG_HEADER: u64 = 40;
    let in_page = insert.0 % PAGE_SIZE as u64;
    let header =
        if insert.segment_offset() < PAGE_SIZE as u64 { LONG_HEADER } else { SHORT_HEADER };
    Lsn(if in_page == header { insert.0 - header } else { insert.0 })
}

/// Virtual ids of everything that runs but this question.
async fn running(client: &tokio_postgres::Client) -> anyhow::Result<HashSet<String>> {
    let query =
        "SELECT virtualxid FROM pg_locks WHERE locktype = 'virtualxid' AND pid <> pg_backend_pid()";
    let rows = client.query(query, &[]).await.map_err(|error| sql_error(&error))?;
    Ok(rows.iter().filter_map(|row| row.get::<_, Option<String>>(0)).collect())
}

/// Whether a group may go: everything in its pages is ingested and seen by all.
async fn is_due(
    group: &mut Group,
    compute: &Compute,
    ingested: &impl Ingested,
) -> anyhow::Result<bool> {
    if !group.is_settled {
        let client = compute.connect().await?;
        let still = running(&client).await?;
        if !group.running.is_disjoint(&still) {
            return Ok(false);
        }
        group.insert_lsn = insert_lsn(&client).await?;
        group.is_settled = true;
    }
    Ok(compute.session.commit_lsn() >= group.insert_lsn
        && ingested.ingested().await? >= group.insert_lsn)
}
