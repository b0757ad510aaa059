use std::{cell::Cell, path::Path};

use treering_fs::CrashFs;

use super::*;
use crate::sim::{Call, Fault, SimStore};

const TENANT: TenantId = TenantId([7; 16]);

/// A pageserver's directory.
struct Home {
    fs: CrashFs,
    seed: Cell<u8>,
}

impl Home {
    fn new(seed: u8) -> Home {
        Home { fs: CrashFs::new(), seed: Cell::new(seed) }
    }

    fn begin(&self) -> Identity {
        let fresh = || {
            self.seed.set(self.seed.get() + 1);
            [self.seed.get(); 16]
        };
        Identity::begin(&self.fs, Path::new("/"), fresh).unwrap()
    }
}

fn generations(store: &SimStore, identity: &Identity) -> Claimed {
    claim(store, TENANT, identity).unwrap()
}

#[test]
fn generations_count_up_and_say_who_was_there() {
    let (store, a, b) = (SimStore::new(), Home::new(0), Home::new(100));
    let first = a.begin();
    let others = |ourselves_once| Before::Others { ourselves_once };
    let expect = |generation, before| Claimed { generation: Generation(generation), before };
    assert_eq!(generations(&store, &first), expect(1, Before::Nobody));
    assert!(is_newest(&store, TENANT, Generation(1)).unwrap());
    let second = a.begin();
    assert_eq!(generations(&store, &second), expect(2, Before::Ourselves));
    assert!(!is_newest(&store, TENANT, Generation(1)).unwrap());
    assert_eq!(generations(&store, &b.begin()), expect(3, others(false)));
    assert_eq!(generations(&store, &a.begin()), expect(4, others(true)));
    assert!(!is_newest(&store, TENANT, Generation(2)).unwrap());
    assert!(is_newest(&store, TENANT, Generation(4)).unwrap());
}

#[test]
fn a_copy_of_a_directory_is_somebody_else() {
    let (store, original) = (SimStore::new(), Home::new(0));
    generations(&store, &original.begin());
    let copy = Home { fs: original.fs.crash(u64::MAX), seed: Cell::new(50) };
    let copied = copy.begin();
    assert_eq!(generations(&store, &copied).before, Before::Ourselves, "nobody was there since");
    let back = generations(&store, &original.begin());
    assert_eq!(back.before, Before::Others { ourselves_once: true });
}

#[test]
fn a_claim_without_an_answer_is_found_again() {
    for fault in [Fault::AnswerLost, Fault::Refused, Fault::Late] {
        let (store, home) = (SimStore::new(), Home::new(0));
        generations(&store, &home.begin());
        let identity = home.begin();
        let mut left = 1;
        store.set_rule(move |call, _| {
            let hit = call == Call::Put && left > 0;
            left -= i32::from(hit);
            hit.then_some(fault)
        });
        assert!(claim(&store, TENANT, &identity).is_err());
        store.deliver_late();
        let claimed = generations(&store, &identity);
        assert_eq!((claimed.generation, claimed.before), (Generation(2), Before::Ourselves));
        assert_eq!(store.names().len(), 2, "{fault:?}");
    }
}

#[test]
fn of_those_that_claim_at_once_each_has_its_own() {
    let store = SimStore::new();
    let homes: Vec<Identity> = (0..8).map(|n| Home::new(n * 10).begin()).collect();
    let mut claimed: Vec<u64> = std::thread::scope(|scope| {
        let claims: Vec<_> = homes
            .iter()
            .map(|home| scope.spawn(|| generations(&store, home).generation.0))
            .collect();
        claims.into_iter().map(|claim| claim.join().unwrap()).collect()
    });
    claimed.sort_unstable();
    assert_eq!(claimed, [1, 2, 3, 4, 5, 6, 7, 8]);
}
