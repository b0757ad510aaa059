use super::*;

fn nodes(ids: &[u64]) -> Vec<NodeId> {
    ids.iter().copied().map(NodeId).collect()
}

fn first() -> Configuration {
    Configuration::first(nodes(&[1, 2, 3])).unwrap()
}

fn joint(generation: u64, new: &[u64]) -> Configuration {
    Configuration::new(Generation(generation), nodes(&[1, 2, 3]), Some(nodes(new))).unwrap()
}

fn last(generation: u64, members: &[u64]) -> Configuration {
    Configuration::new(Generation(generation), nodes(members), None).unwrap()
}

fn change(wanted: &[u64]) -> Change {
    Change::new(first(), nodes(wanted)).unwrap()
}

/// An answer of a member in term 2 whose log ends at 100, in term 1.
fn answer(granted: bool, promised: u64, configuration: Configuration) -> AdminResponse {
    AdminResponse {
        granted,
        promised: Generation(promised),
        configuration,
        term: Term(2),
        last_log_term: Term(1),
        flush_lsn: Lsn(100),
        commit_lsn: Lsn(90),
    }
}

fn promised(change: &mut Change, node: u64, generation: u64) {
    change.on_response(NodeId(node), answer(true, generation, first()));
}

fn receivers(actions: &[ChangeAction]) -> Vec<u64> {
    actions.iter().map(|ChangeAction::Send { to, .. }| to.0).collect()
}

#[test]
fn all_steps_in_order() {
    let mut c = change(&[3, 4, 5]);
    assert_eq!(receivers(&c.tick()), [1, 2, 3]);
    promised(&mut c, 1, 2);
    assert_eq!(receivers(&c.tick()), [2, 3]);
    promised(&mut c, 2, 2);
    let joint = joint(2, &[3, 4, 5]);
    assert_eq!(*c.phase(), ChangePhase::Joining(joint.clone()));
    assert_eq!(receivers(&c.tick()), [1, 2, 3, 4, 5]);
    // New members alone decide nothing.
    let empty = AdminResponse {
        term: Term(0),
        last_log_term: Term(0),
        flush_lsn: Lsn(50),
        ..answer(true, 0, joint.clone())
    };
    c.on_response(NodeId(4), empty.clone());
    c.on_response(NodeId(5), empty.clone());
    c.on_response(NodeId(1), answer(true, 2, joint.clone()));
    assert_eq!(*c.phase(), ChangePhase::Joining(joint.clone()));
    c.on_response(NodeId(2), answer(true, 2, joint.clone()));
    assert_eq!(*c.phase(), ChangePhase::Filling(joint.clone()));
    // Enough log, but an older term; then the term, but too little log.
    c.on_response(NodeId(4), AdminResponse { term: Term(1), ..answer(true, 0, joint.clone()) });
    c.on_response(
        NodeId(5),
        AdminResponse { flush_lsn: Lsn(99), ..answer(true, 0, joint.clone()) },
    );
    c.on_response(NodeId(3), answer(true, 2, joint.clone()));
    assert_eq!(*c.phase(), ChangePhase::Filling(joint.clone()));
    let later = AdminResponse {
        term: Term(3),
        last_log_term: Term(3),
        flush_lsn: Lsn(80),
        ..answer(true, 0, joint)
    };
    let actions = c.on_response(NodeId(5), later);
    let last = last(3, &[3, 4, 5]);
    assert_eq!(*c.phase(), ChangePhase::Finishing(last.clone()));
    assert_eq!(receivers(&actions), [1, 2, 3, 4, 5], "those who leave are told");
    c.on_response(NodeId(1), answer(true, 2, last.clone()));
    c.on_response(NodeId(3), answer(true, 2, last.clone()));
    assert_eq!(*c.phase(), ChangePhase::Finishing(last.clone()));
    c.on_response(NodeId(4), answer(true, 0, last.clone()));
    assert_eq!(*c.phase(), ChangePhase::Done(last));
    assert!(c.tick().is_empty());
}

#[test]
fn what_was_decided_is_carried_on_whatever_is_wanted() {
    let mut c = change(&[1]);
    promised(&mut c, 1, 2);
    // Another admin was there: the promise of generation 2 came too late.
    c.on_response(NodeId(2), answer(false, 2, joint(2, &[4])));
    assert_eq!(*c.phase(), ChangePhase::Promising(Generation(4)));
    assert_eq!(receivers(&c.tick()), [1, 2, 3, 4], "the new member must promise too");
    for node in [1, 2] {
        c.on_response(NodeId(node), answer(true, 4, joint(2, &[4])));
    }
    assert_eq!(*c.phase(), ChangePhase::Promising(Generation(4)));
    c.on_response(NodeId(4), answer(true, 4, joint(2, &[4])));
    assert_eq!(*c.phase(), ChangePhase::Joining(joint(4, &[4])));
}

#[test]
fn late_promises_of_a_lower_generation_do_not_count() {
    let mut c = change(&[1]);
    c.on_response(NodeId(3), answer(false, 6, first()));
    assert_eq!(*c.phase(), ChangePhase::Promising(Generation(8)));
    promised(&mut c, 1, 2);
    promised(&mut c, 2, 2);
    assert_eq!(*c.phase(), ChangePhase::Promising(Generation(8)));
}

#[test]
fn a_higher_generation_supersedes() {
    let mut c = change(&[4]);
    promised(&mut c, 1, 2);
    promised(&mut c, 2, 2);
    c.on_response(NodeId(3), answer(false, 4, first()));
    assert_eq!(*c.phase(), ChangePhase::Superseded(Generation(4)));
    assert!(c.tick().is_empty());
}

#[test]
fn nothing_to_change_is_confirmed() {
    let mut c = change(&[1, 2, 3]);
    promised(&mut c, 1, 2);
    promised(&mut c, 3, 2);
    assert_eq!(*c.phase(), ChangePhase::Finishing(last(3, &[1, 2, 3])));
    for node in [1, 2] {
        c.on_response(NodeId(node), answer(true, 2, last(3, &[1, 2, 3])));
    }
    assert_eq!(*c.phase(), ChangePhase::Done(last(3, &[1, 2, 3])));
}

#[test]
fn taken_generations_are_not_tried_for_ever() {
    let mut c = change(&[1]);
    for _ in 0..TRIES {
        let ChangePhase::Promising(generation) = *c.phase() else { break };
        c.on_response(NodeId(1), answer(false, generation.0, first()));
    }
    assert!(matches!(c.phase(), ChangePhase::Superseded(_)));
}
