//! Landing: pages that came from the pageserver go into their files, neighbours in one call.
//!
//! A page counts only if nothing happened to its block since it was planned (`FetchPlan`), and its block is present only
//! once all of it is in the file.

use std::{
    fs::File,
    io::{self, IoSlice},
    sync::atomic::AtomicU32,
};

use bytes::Bytes;
use rustix::io::{Errno, pwritev};
use treering_presence::{Agent, BLOCK_SIZE, FetchClaim, FetchPlan};
use treering_types::PAGE_SIZE;

use super::fetch::{BlockId, FetchError, Fetcher};

/// Pages written at once. A process that misses one of them waits for all.
const RUN_MAX: usize = 16;

/// Pages of one file, one behind the other, that have come and are not written yet.
#[derive(Default)]
pub struct Run {
    pages: Vec<(BlockId, FetchPlan, Bytes)>,
}

impl Run {
    /// Whether the page of this block may come next.
    fn goes_on_with(&self, id: BlockId) -> bool {
        self.pages.len() < RUN_MAX
            && self.pages.last().is_none_or(|(last, ..)| {
                last.file == id.file && last.block.checked_add(1) == Some(id.block)
            })
    }
}

impl Fetcher {
    /// Takes a page into the run, and writes what it does not go on with.
    pub(super) fn add(
        &self,
        run: &mut Run,
        id: BlockId,
        plan: FetchPlan,
        page: Bytes,
    ) -> Result<(), FetchError> {
        let written = if run.goes_on_with(id) { Ok(()) } else { self.land(run) };
        run.pages.push((id, plan, page));
        written
    }

    /// Puts the pages of a run into their file, but those whose blocks something happened to. It is empty afterwards.
    pub(super) fn land(&self, run: &mut Run) -> Result<(), FetchError> {
        let pages = std::mem::take(&mut run.pages);
        let Some((first, ..)) = pages.first() else { return Ok(()) };
        let Some(agent) = self.shared.agent(first.file as usize) else { return Ok(()) };
        let explained = |fault| match fault {
            Fault::File(error) => FetchError::File { path: self.path(*first), error },
            Fault::Lost => FetchError::Damaged { path: self.path(*first) },
        };
        let file = self.file(first.file).map_err(|error| explained(Fault::File(error)))?;
        let pages = pages.iter().map(|(_, plan, page)| (*plan, &page[..]));
        put(agent, &file, pages, |block| self.landed(BlockId { file: first.file, block }))
            .map_err(explained)
    }
}

/// Why pages are not in their file.
#[derive(Debug)]
enum Fault {
    File(io::Error),
    /// The map is not as this agent left it.
    Lost,
}

/// Puts pages that lie one behind the other into their file, but those whose blocks something happened to since they were planned;
/// `landed` hears of each block that nobody holds any more. The first fault, after all that can be put.
fn put<'p>(
    agent: &Agent<'_, AtomicU32>,
    file: &File,
    pages: impl Iterator<Item = (FetchPlan, &'p [u8])>,
    mut landed: impl FnMut(u32),
) -> Result<(), Fault> {
    let mut result = Ok(());
    let mut pages = pages.peekable();
    while pages.peek().is_some() {
        // Up to the next block that is not ours to fill.
        let mut claims: Vec<FetchClaim> = Vec::with_capacity(RUN_MAX);
        let mut slices = Vec::with_capacity(RUN_MAX);
        for (plan, page) in pages.by_ref() {
            let Some(claim) = agent.claim_fetch(plan) else { break };
            claims.push(claim);
            slices.push(IoSlice::new(page));
        }
        let Some(begin) = claims.first().map(FetchClaim::block) else { continue };
        let (whole, written) = write_pages(file, &mut slices, u64::from(begin) * BLOCK_SIZE);
        for (index, claim) in claims.into_iter().enumerate() {
            let block = claim.block();
            let ended = match index < whole {
                true => agent.publish_fetch(claim),
                false => agent.abort_fetch(claim),
            };
            landed(block);
            result = result.and(ended.map_err(|_| Fault::Lost));
        }
        result = result.and(written.map_err(Fault::File));
    }
    result
}

/// Writes pages from `offset` on. How many are in the file, and why not all.
fn write_pages(file: &File, mut pages: &mut [IoSlice<'_>], offset: u64) -> (usize, io::Result<()>) {
    let mut bytes = 0;
    let ended = loop {
        if pages.is_empty() {
            break Ok(());
        }
        match pwritev(file, pages, offset + bytes as u64) {
            Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
            Ok(more) => {
                bytes += more;
                IoSlice::advance_slices(&mut pages, more);
            }
            Err(Errno::INTR) => {}
            Err(error) => break Err(error.into()),
        }
    };
    (bytes / PAGE_SIZE, ended)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use treering_presence::{FileIdentity, Map, State};

    use super::*;

    static PAGES: [[u8; PAGE_SIZE]; 3] = [[1; PAGE_SIZE], [2; PAGE_SIZE], [3; PAGE_SIZE]];

    fn slices() -> Vec<IoSlice<'static>> {
        PAGES.iter().map(|page| IoSlice::new(page)).collect()
    }

    #[test]
    fn pages_lie_where_their_blocks_do() {
        let file = tempfile::tempfile().unwrap();
        let (whole, ended) = write_pages(&file, &mut slices(), 2 * BLOCK_SIZE);
        ended.unwrap();
        assert_eq!(whole, 3);
        let mut bytes = vec![9; 5 * PAGE_SIZE];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let firsts: Vec<u8> = bytes.chunks(PAGE_SIZE).map(|page| page[0]).collect();
        assert_eq!(firsts, [0, 0, 1, 2, 3]);
        assert!(bytes.chunks(PAGE_SIZE).all(|page| page.iter().all(|byte| *byte == page[0])));
    }

    /// `F_SEAL_GROW` ends a write at the file's end, as a full disk does: first a short one, then an error.
    #[test]
    fn a_page_that_went_in_half_does_not_count() {
        use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
        let file = memfd_create("pages", MemfdFlags::ALLOW_SEALING).unwrap();
        // Two pages and a half: the kernel's own are 4 KiB.
        ftruncate(&file, 2 * BLOCK_SIZE + 4096).unwrap();
        fcntl_add_seals(&file, SealFlags::GROW).unwrap();
        let (whole, ended) = write_pages(&File::from(file), &mut slices(), 0);
        ended.unwrap_err();
        assert_eq!(whole, 2);
    }

    /// Blocks that Postgres writes while pages are on their way stay as it left them.
    #[test]
    fn blocks_that_changed_meanwhile_are_left_alone() {
        const BLOCKS: u32 = 8;
        let words = (0..Map::<AtomicU32>::words_for(BLOCKS)).map(|_| AtomicU32::new(0));
        let words: Vec<AtomicU32> = words.collect();
        let identity = FileIdentity { device: 1, inode: 2, birth_ns: 3 };
        let (agent, _) = Agent::take_over(Map::create(&words, 0, identity, BLOCKS).unwrap());
        let file = tempfile::tempfile().unwrap();
        let plans: Vec<FetchPlan> = (1..7).map(|block| agent.plan_fetch(block).unwrap()).collect();
        for block in [1, 4] {
            let held = agent.map().write(block * BLOCK_SIZE, BLOCK_SIZE).advance().unwrap();
            file.write_all_at(&[77; PAGE_SIZE], block * BLOCK_SIZE).unwrap();
            held.finish(BLOCK_SIZE);
        }
        let page = [5; PAGE_SIZE];
        let mut landed = Vec::new();
        let pages = plans.into_iter().map(|plan| (plan, &page[..]));
        put(&agent, &file, pages, |block| landed.push(block)).unwrap();
        assert_eq!(landed, [2, 3, 5, 6]);
        for (block, byte) in [(1, 77), (2, 5), (3, 5), (4, 77), (5, 5), (6, 5)] {
            let mut bytes = [0; PAGE_SIZE];
            file.read_exact_at(&mut bytes, u64::from(block) * BLOCK_SIZE).unwrap();
            assert_eq!(bytes, [byte; PAGE_SIZE], "block {block}");
            assert_eq!(agent.map().block(block).unwrap().state, State::Present);
        }
        assert_eq!(agent.map().block(7).unwrap().state, State::Absent);
    }
}
