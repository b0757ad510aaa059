//! The protocol under a model checker: every interleaving (in the larger models: up to a number of preemptions)
//! and every weak ordering that loom knows, of a file of one or two blocks.
//!
//! A block's bytes are two relaxed atomics, so that a half-done `pwrite`, punch or `ftruncate` is a state like
//! any other, and so that only the map's words order them. 0 is what a hole reads as.
//!
//! **Mutations tried by hand**, each one change in `src/`, with models that caught it (most are caught by more):
//!
//! | mutation | caught by |
//! |---|---|
//! | `validate` accepts always | `reader_and_dropper`, `dying_agent_and_reader` |
//! | `validate` without its acquire fence | the same |
//! | `claim_drop` without its release fence | the same |
//! | a drop does not raise the version, or only at its end | the same, `reader_of_two_blocks_and_dropper` |
//! | `validate` sums the first block only | `reader_of_two_blocks_and_dropper` |
//! | `begin_read` loads relaxed | `reader_and_dropper`, `failed_writer_and_fetcher_and_reader` |
//! | compare-and-swap acquires only | `two_writers`, `reader_and_dropper` and most others |
//! | compare-and-swap releases only | `two_writers`, `writer_and_fetcher` and most others |
//! | *writing* without *backed* is readable | `reader_and_writer` |
//! | *fetching* is readable; *dropping* is | `reader_and_fetcher`; `reader_and_dropper` |
//! | a fetch lands on any absent word, not the planned one | `old_plan_and_write_and_drop`, the property test |
//! | a whole write takes *fetching*; *dropping* | `writer_and_fetcher`; `writer_and_dropper` |
//! | a second writer shares *writing* | `two_writers`, `truncater_and_writer` |
//! | a failed write into a hole ends present | `failed_writer_and_fetcher_and_reader` |
//! | a claim on a hole given back ends present | `failed_writer_and_fetcher_and_reader` |
//! | a write ends clean | `writer_and_dropper`, `truncater_and_agent` |
//! | a write over a noted block leaves it noted | `writer_and_dropper_of_written_blocks` |
//! | dirty blocks may be dropped | `writer_and_dropper_of_written_blocks` |
//! | a noted block forgets that when it is dropped | `old_plan_and_write_and_drop` |
//! | a cut block is not *zero*; or clean besides | `truncater_and_agent`; `everyone` |
//! | a cut absent block stays absent | `truncater_and_agent` (by abort) |
//! | *zero* blocks may be dropped | `truncater_and_agent` |
//! | takeover makes *dropping* present; *fetching* present | all `dying_agent_*`, `everyone` |
//! | takeover keeps *noted*, also under a writer's claim | `takeover_and_released_claim` |
//!
//! Caught by the property test only, as models write whole blocks: a partial write clears *zero*; a short write
//! is reported as is; a part of an absent block may be written. Caught by unit tests only, as it does no harm (a
//! write ends dirty anyway): a note of a block that is being written.

#![forbid(unsafe_code)]

mod file;

use loom::sync::Arc;
use loom::thread;
use treering_presence::{Agent, DropRule, History, State};

use file::{Actor, CUT, Dead, File, HOLE, Life, ORIGIN, WRITTEN, WRITTEN_AGAIN};

/// Explores all executions of `model`; with a number of preemptions, those with no more of them.
fn explore(preemptions: impl Into<Option<usize>>, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions.into();
    builder.check(model);
}

fn spawn(file: &Arc<File>, run: impl FnOnce(&Actor) + 'static) -> thread::JoinHandle<()> {
    let actor = Actor::new(file.clone());
    thread::spawn(move || run(&actor))
}

/// The agent's life: fetch, drop, fetch again. It may end at every step.
fn fetch_drop_fetch(agent: &Agent<'_, file::Word>, actor: &Actor, life: &Life) -> Result<(), Dead> {
    actor.fetch(agent, 0, life)?;
    actor.drop_block(agent, 0, DropRule::OnlyClean, life)?;
    actor.fetch(agent, 0, life)
}

// ---------------------------------------------------------------------------------------------------------
// Two actors
// ---------------------------------------------------------------------------------------------------------

/// A reader that was stopped between its check and its `pread` while the block was dropped, and came back, or
/// while it was dropped and fetched again.
#[test]
fn reader_and_dropper() {
    explore(None, || {
        let file = File::new(&[State::Present]);
        let dropper = spawn(&file, |actor| {
            let agent = actor.agent();
            actor.drop_block(&agent, 0, DropRule::OnlyClean, &Life::long()).unwrap();
            actor.fetch(&agent, 0, &Life::long()).unwrap();
        });
        let reader = Actor::new(file.clone());
        if let Some(page) = reader.read(0, 2) {
            assert_eq!(page, [ORIGIN; 2]);
        }
        dropper.join().unwrap();
        reader.settle(ORIGIN);
    });
}

/// A reader of two blocks, one of which goes and comes back: the sum of versions notices.
#[test]
fn reader_of_two_blocks_and_dropper() {
    explore(None, || {
        let file = File::new(&[State::Present, State::Present]);
        let dropper = spawn(&file, |actor| {
            let agent = actor.agent();
            actor.drop_block(&agent, 1, DropRule::OnlyClean, &Life::long()).unwrap();
            actor.fetch(&agent, 1, &Life::long()).unwrap();
        });
        let reader = Actor::new(file.clone());
        if let Some(pages) = reader.read_two(1) {
            assert_eq!(pages, [[ORIGIN; 2]; 2]);
        }
        dropper.join().unwrap();
    });
}

/// A reader that waits for a fetch sees the whole page or nothing.
#[test]
fn reader_and_fetcher() {
    explore(None, || {
        let file = File::new(&[State::Absent]);
        let fetcher = spawn(&file, |actor| {
            actor.fetch(&actor.agent(), 0, &Life::long()).unwrap();
        });
        let reader = Actor::new(file.clone());
        if let Some(page) = reader.read(0, 2) {
            assert_eq!(page, [ORIGIN; 2]);
        }
        fetcher.join().unwrap();
    });
}

/// A reader beside a write into a hole: the whole page or nothing; beside a write over a page: any mix of old
/// and new, as without us, but no hole.
#[test]
fn reader_and_writer() {
    for start in [State::Absent, State::Present] {
        explore(None, move || {
            let file = File::new(&[start]);
            let writer = spawn(&file, |actor| {
                assert!(actor.write(0, WRITTEN));
            });
            let reader = Actor::new(file.clone());
            if let Some(page) = reader.read(0, 2) {
                match start {
                    State::Absent => assert_eq!(page, [WRITTEN; 2]),
                    _ => assert!(!page.contains(&HOLE)),
                }
            }
            writer.join().unwrap();
            assert_eq!(reader.read(0, 1), Some([WRITTEN; 2]));
        });
    }
}

/// A prefetched page that lands when a backend has written the block, is writing it, or will.
#[test]
fn writer_and_fetcher() {
    explore(None, || {
        let file = File::new(&[State::Absent]);
        let fetcher = spawn(&file, |actor| {
            actor.fetch(&actor.agent(), 0, &Life::long()).unwrap();
        });
        let writer = Actor::new(file.clone());
        writer.write(0, WRITTEN);
        fetcher.join().unwrap();
        writer.settle(ORIGIN);
    });
}

/// A fetch planned before the block was written *and* dropped again: the word is absent once more, but not the
/// one that was planned on.
#[test]
fn old_plan_and_write_and_drop() {
    explore(None, || {
        let file = File::new(&[State::Absent]);
        let agents = spawn(&file, |actor| {
            let agent = actor.agent();
            let plan = agent.plan_fetch(0);
            if agent.note(0) {
                actor.drop_block(&agent, 0, DropRule::NotedToo, &Life::long()).unwrap();
            }
            if let Some(plan) = plan {
                actor.land(&agent, plan, ORIGIN, &Life::long()).unwrap();
            }
        });
        let writer = Actor::new(file.clone());
        let wrote = writer.write(0, WRITTEN);
        agents.join().unwrap();
        // A drop waited for ingest: a fetch from now on brings what was written.
        writer.settle(if wrote { WRITTEN } else { ORIGIN });
    });
}

/// A drop of a clean block beside a write: whoever is second sees the first's work.
#[test]
fn writer_and_dropper() {
    explore(None, || {
        let file = File::new(&[State::Present]);
        let dropper = spawn(&file, |actor| {
            actor.drop_block(&actor.agent(), 0, DropRule::OnlyClean, &Life::long()).unwrap();
        });
        let writer = Actor::new(file.clone());
        if writer.write(0, WRITTEN) {
            assert_eq!(writer.read(0, 1), Some([WRITTEN; 2]));
        }
        dropper.join().unwrap();
        writer.settle(ORIGIN);
    });
}

/// The dirty rule. The writer logs, then writes; the agent notes, asks for the insert position and waits for
/// ingest, then drops. A write that slipped in between makes the block dirty again and keeps it.
#[test]
fn writer_and_dropper_of_written_blocks() {
    explore(4, || {
        let file = File::new(&[State::Present]);
        let writer = Actor::new(file.clone());
        writer.log(WRITTEN);
        assert!(writer.write(0, WRITTEN));
        let dropper = spawn(&file, |actor| {
            actor.note_drop_fetch(&actor.agent(), 0, &Life::long()).unwrap();
        });
        writer.log(WRITTEN_AGAIN);
        let wrote = writer.write(0, WRITTEN_AGAIN);
        if wrote && let Some(page) = writer.read(0, 1) {
            assert_eq!(page, [WRITTEN_AGAIN; 2]);
        }
        dropper.join().unwrap();
        let last = if wrote { WRITTEN_AGAIN } else { WRITTEN };
        writer.settle_any(last, &[last, WRITTEN_AGAIN]);
    });
}

/// A write that fails half way beside a fetch and a reader: an absent block is fetched over what was written.
#[test]
fn failed_writer_and_fetcher_and_reader() {
    explore(4, || {
        let file = File::new(&[State::Absent]);
        let writer = spawn(&file, |actor| actor.write_half(0, WRITTEN));
        let reader = spawn(&file, |actor| {
            if let Some(page) = actor.read(0, 1) {
                // Torn over a fetched page is what a failed write leaves without us, too.
                assert!(!page.contains(&HOLE));
            }
        });
        let agent = Actor::new(file.clone());
        agent.fetch(&agent.agent(), 0, &Life::long()).unwrap();
        writer.join().unwrap();
        reader.join().unwrap();
        let page = agent.settled(ORIGIN);
        assert!(page == [ORIGIN; 2] || page == [WRITTEN, ORIGIN], "{page:?}");
    });
}

/// A cut block reads as zeros when the file grew again, whatever was planned, landing or dropping meanwhile; and
/// the agent never writes past the end.
#[test]
fn truncater_and_agent() {
    for start in [State::Absent, State::Present] {
        explore(None, move || {
            let file = File::new(&[start]);
            let agent = spawn(&file, |actor| {
                let agent = actor.agent();
                actor.drop_block(&agent, 0, DropRule::NotedToo, &Life::long()).unwrap();
                actor.fetch(&agent, 0, &Life::long()).unwrap();
                agent.note(0);
                actor.drop_block(&agent, 0, DropRule::NotedToo, &Life::long()).unwrap();
            });
            let truncater = Actor::new(file.clone());
            let cut = truncater.truncate_and_grow();
            if cut {
                assert_eq!(truncater.read(0, 1), Some([CUT; 2]));
            }
            agent.join().unwrap();
            truncater.settle(ORIGIN);
            let block = file.map().block(0).unwrap();
            assert!(!cut || block.zero && block.history != History::Clean);
        });
    }
}

/// A truncation waits for a write and a write for a truncation.
#[test]
fn truncater_and_writer() {
    explore(None, || {
        let file = File::new(&[State::Absent]);
        let truncater = spawn(&file, |actor| {
            actor.truncate_and_grow();
        });
        let writer = Actor::new(file.clone());
        writer.write(0, WRITTEN);
        truncater.join().unwrap();
        writer.settle(ORIGIN);
    });
}

/// Two writers of one block do not mix, and one of them is last.
#[test]
fn two_writers() {
    explore(None, || {
        let file = File::new(&[State::Absent]);
        let other = spawn(&file, |actor| {
            actor.write(0, WRITTEN);
        });
        let writer = Actor::new(file.clone());
        writer.write(0, WRITTEN_AGAIN);
        other.join().unwrap();
        writer.settle(ORIGIN);
    });
}

/// Two writers over the same two blocks, one of which gives up and gives its claim back.
#[test]
fn writers_of_two_blocks_that_give_up() {
    explore(None, || {
        let file = File::new(&[State::Absent, State::Present]);
        let other = spawn(&file, |actor| {
            actor.write_two(WRITTEN);
        });
        let writer = Actor::new(file.clone());
        writer.write_two(WRITTEN_AGAIN);
        other.join().unwrap();
        writer.settle(ORIGIN);
        assert!((0..2).all(|block| file.map().block(block).unwrap().state == State::Present));
    });
}

// ---------------------------------------------------------------------------------------------------------
// The dying agent
// ---------------------------------------------------------------------------------------------------------

/// Steps after which `fetch_drop_fetch` may die, and one more: it does not.
const STEPS: u32 = 12;

/// The agent dies after every step it has; the next one takes over beside a reader that never stopped.
#[test]
fn dying_agent_and_reader() {
    for steps in 0..=STEPS {
        explore(3, move || {
            let file = File::new(&[State::Absent]);
            let agents = spawn(&file, move |actor| {
                let _ = fetch_drop_fetch(&actor.agent(), actor, &Life::of(steps));
                actor.fetch(&actor.agent(), 0, &Life::long()).unwrap();
            });
            let reader = Actor::new(file.clone());
            if let Some(page) = reader.read(0, 2) {
                assert_eq!(page, [ORIGIN; 2]);
            }
            agents.join().unwrap();
            assert_eq!(reader.read(0, 1), Some([ORIGIN; 2]));
        });
    }
}

/// The same beside a writer: what it wrote stays, what it could not write is fetched.
#[test]
fn dying_agent_and_writer() {
    for steps in 0..=STEPS {
        explore(None, move || {
            let file = File::new(&[State::Absent]);
            let agents = spawn(&file, move |actor| {
                let _ = fetch_drop_fetch(&actor.agent(), actor, &Life::of(steps));
                actor.fetch(&actor.agent(), 0, &Life::long()).unwrap();
            });
            let writer = Actor::new(file.clone());
            if writer.write(0, WRITTEN) {
                assert_eq!(writer.read(0, 1), Some([WRITTEN; 2]));
            }
            agents.join().unwrap();
            writer.settle(ORIGIN);
        });
    }
}

/// The same beside a truncation: no page lands in what was cut, from neither agent.
#[test]
fn dying_agent_and_truncater() {
    for steps in 0..=STEPS {
        explore(None, move || {
            let file = File::new(&[State::Absent]);
            let agents = spawn(&file, move |actor| {
                let _ = fetch_drop_fetch(&actor.agent(), actor, &Life::of(steps));
                actor.fetch(&actor.agent(), 0, &Life::long()).unwrap();
            });
            let truncater = Actor::new(file.clone());
            if truncater.truncate_and_grow() {
                assert_eq!(truncater.read(0, 1), Some([CUT; 2]));
            }
            agents.join().unwrap();
            truncater.settle(ORIGIN);
        });
    }
}

/// The agent dies amid noting and dropping a block that Postgres wrote; the L_w is lost. The next agent fetches
/// written blocks at no less than its own `commit_lsn`, and a write that came meanwhile stays.
#[test]
fn dying_agent_and_written_block() {
    for steps in 0..=10 {
        explore(3, move || {
            let file = File::new(&[State::Present]);
            let writer = Actor::new(file.clone());
            writer.log(WRITTEN);
            assert!(writer.write(0, WRITTEN));
            let agents = spawn(&file, move |actor| {
                let _ = actor.note_drop_fetch(&actor.agent(), 0, &Life::of(steps));
                let agent = actor.agent();
                actor.fetch_as(&agent, 0, actor.ingest(), &Life::long()).unwrap();
            });
            writer.log(WRITTEN_AGAIN);
            let wrote = writer.write(0, WRITTEN_AGAIN);
            if wrote && let Some(page) = writer.read(0, 1) {
                assert_eq!(page, [WRITTEN_AGAIN; 2]);
            }
            agents.join().unwrap();
            // A fetch may bring what is only in the log yet; nothing older than the file's own.
            let oldest = if wrote { WRITTEN_AGAIN } else { WRITTEN };
            writer.settle_any(WRITTEN_AGAIN, &[oldest, WRITTEN_AGAIN]);
        });
    }
}

/// A writer that gives its claim back while a new agent takes over: the note of the old agent, whose L_w died
/// with it, does not come back.
#[test]
fn takeover_and_released_claim() {
    explore(None, || {
        let file = File::new(&[State::Present]);
        let writer = Actor::new(file.clone());
        assert!(writer.write(0, WRITTEN));
        assert!(writer.agent().note(0));
        let agents = spawn(&file, |actor| {
            let agent = actor.agent();
            // It knows no L_w, so all it may drop is clean blocks and those it noted itself; there is none.
            assert_eq!(agent.claim_drop(0, DropRule::NotedToo), None);
        });
        writer.claim_and_release(0);
        agents.join().unwrap();
        assert_eq!(file.map().block(0).unwrap().history, History::Dirty);
        writer.settle(ORIGIN);
    });
}

// ---------------------------------------------------------------------------------------------------------
// All of them
// ---------------------------------------------------------------------------------------------------------

/// Writer, truncater, reader and an agent that fetches, drops, dies anywhere and is replaced. Four threads are
/// many for the model checker: one preemption, but every ordering and every place to die.
#[test]
fn everyone() {
    for steps in 0..=STEPS {
        explore(1, move || {
            let file = File::new(&[State::Absent]);
            let agents = spawn(&file, move |actor| {
                let _ = fetch_drop_fetch(&actor.agent(), actor, &Life::of(steps));
                actor.fetch(&actor.agent(), 0, &Life::long()).unwrap();
            });
            let writer = spawn(&file, |actor| {
                Actor::hasty(actor.file()).write(0, WRITTEN);
            });
            let truncater = spawn(&file, |actor| {
                Actor::hasty(actor.file()).truncate_and_grow();
            });
            let reader = Actor::new(file.clone());
            if let Some(page) = reader.read(0, 1) {
                assert!(!page.contains(&HOLE) || file.cut_began(), "{page:?}");
            }
            for thread in [agents, writer, truncater] {
                thread.join().unwrap();
            }
            reader.settle(ORIGIN);
        });
    }
}
