use super::*;

/// Every word with one of these versions.
fn words() -> impl Iterator<Item = u32> {
    let versions = [0, 1, 2, 0x1234, VERSION_MAX - 1, VERSION_MAX];
    versions.into_iter().flat_map(|version| (0..256).map(move |low| version << 8 | low))
}

/// Everything that may become of a word, by whoever.
fn changes(word: u32) -> [Option<u32>; 18] {
    let ends = [
        Ending::Written,
        Ending::WrittenInPart,
        Ending::Cut,
        Ending::Clipped,
        Ending::Failed,
        Ending::Released,
    ];
    let [written, in_part, cut, clipped, failed, released] =
        ends.map(|ending| end_write(word, ending));
    let drops = [DropEnding::Gone, DropEnding::Zero, DropEnding::Kept];
    let [gone, zero, kept] = drops.map(|ending| end_drop(word, ending));
    [
        claim_write(word, true).ok(),
        claim_write(word, false).ok(),
        written,
        in_part,
        cut,
        clipped,
        failed,
        released,
        claim_fetch(word),
        publish_fetch(word),
        abort_fetch(word),
        note(word),
        claim_drop(word, true),
        claim_drop(word, false),
        gone,
        zero,
        kept,
        take_over(word),
    ]
}

#[test]
fn words_decode_or_are_damaged() {
    let mut good = 0;
    for word in words() {
        if let Some(block) = Block::decode(word) {
            assert_eq!(block.encode(), word);
            good += 1;
        } else {
            assert!(changes(word).iter().all(Option::is_none), "{word:#x} is damage, and changes");
        }
    }
    // Absent, fetching, dropping, writing: clean or noted. Present, backed: 3 histories, zero or not.
    assert_eq!(good, 6 * (4 * 2 + 2 * 6));
    assert_eq!(Block::decode(0).unwrap().state, State::Absent);
}

#[test]
fn changes_lead_to_good_words_and_versions_only_grow() {
    for word in words() {
        for next in changes(word).into_iter().flatten() {
            assert!(Block::decode(next).is_some(), "{word:#x} to {next:#x}");
            let dropped = Block::decode(next).unwrap().state == State::Dropping;
            assert_eq!(version(next), version(word) + u32::from(dropped));
        }
    }
}

#[test]
fn readable_is_present_or_backed() {
    for word in words() {
        if let Some(block) = Block::decode(word) {
            assert_eq!(is_readable(word), block.state == State::Present || block.backed);
        }
    }
}

#[test]
fn only_these_changes_of_state() {
    use State::{Absent, Dropping, Fetching, Present, Writing};
    for word in words() {
        let Some(block) = Block::decode(word) else { continue };
        for next in changes(word).into_iter().flatten() {
            let next = Block::decode(next).unwrap();
            let known = matches!(
                (block.state, next.state),
                (Absent, Fetching | Writing)
                    | (Fetching | Writing | Dropping, Present | Absent)
                    | (Present, Writing | Dropping)
            );
            let same = block.state == next.state && next.history != block.history;
            assert!(known || same, "{block:?} to {next:?}");
            // Bytes that nobody stored are never called present.
            assert!(!(block.state == Absent && next.state == Present));
        }
    }
}

#[test]
fn a_claim_given_back_changes_nothing() {
    for word in words() {
        for whole in [true, false] {
            if let Ok(claimed) = claim_write(word, whole) {
                assert_eq!(end_write(claimed, Ending::Released), Some(word));
            }
        }
        if let Some(claimed) = claim_fetch(word) {
            assert_eq!(abort_fetch(claimed), Some(word));
        }
    }
}

#[test]
fn a_new_agent_changes_a_word_once() {
    for word in words() {
        if let Some(next) = take_over(word) {
            assert_eq!(take_over(next), None);
        }
    }
}

#[test]
fn nothing_is_dropped_that_must_stay() {
    for word in words() {
        let Some(block) = Block::decode(word) else { continue };
        if claim_drop(word, true).is_some() {
            assert!(block.history != History::Dirty && !block.zero);
            assert!(block.version < VERSION_MAX);
        }
        if claim_drop(word, false).is_some() {
            assert_eq!(block.history, History::Clean);
        }
    }
}
