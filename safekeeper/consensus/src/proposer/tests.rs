use super::*;

const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);
const C: NodeId = NodeId(3);

fn proposer(members: &[NodeId]) -> Proposer {
    Proposer::new(ProposerConfig {
        proposer: ProposerId([7; 16]),
        configuration: Configuration::unnumbered(members.to_vec()).unwrap(),
        timeline: TimelineIdentity {
            tenant: TenantId([1; 16]),
            timeline: TimelineId([2; 16]),
            system_id: 3,
            pg_major: 15,
            pg_tli: 1,
            start_lsn: Lsn(100),
        },
        window_bytes_max: 64,
    })
}

fn greet(p: &mut Proposer, node: NodeId, term: u64) -> Vec<Action> {
    p.on_connected(node);
    let response = GreetingResponse {
        node,
        term: Term(term),
        flush_lsn: Lsn(100),
        commit_lsn: Lsn(100),
        configuration: p.configuration().clone(),
    };
    p.on_message(node, AcceptorMessage::GreetingResponse(response))
}

fn history(entries: &[(u64, u64)]) -> TermHistory {
    let entries = entries.iter().map(|(term, lsn)| TermStart { term: Term(*term), lsn: Lsn(*lsn) });
    TermHistory::from_entries(entries.collect()).unwrap()
}

fn vote(p: &mut Proposer, node: NodeId, term: u64, flush: u64, log: &[(u64, u64)]) -> Vec<Action> {
    let response = VoteResponse {
        term: Term(term),
        granted: true,
        flush_lsn: Lsn(flush),
        commit_lsn: Lsn(100),
        history: history(log),
    };
    p.on_message(node, AcceptorMessage::VoteResponse(response))
}

fn flush(p: &mut Proposer, node: NodeId, term: u64, flush: u64) -> Vec<Action> {
    let response = AppendResponse {
        generation: p.configuration().generation(),
        term: Term(term),
        flush_lsn: Lsn(flush),
        commit_lsn: Lsn(100),
    };
    p.on_message(node, AcceptorMessage::AppendResponse(response))
}

fn appends(actions: &[Action]) -> Vec<(NodeId, u64, usize)> {
    let append = |action: &Action| match action {
        Action::Send { to, message: ProposerMessage::Append(append) } => {
            Some((*to, append.lsn.0, append.bytes.len()))
        }
        _ => None,
    };
    actions.iter().filter_map(append).collect()
}

#[test]
fn a_quorum_of_one_takes_the_same_path() {
    let mut p = proposer(&[A]);
    let actions = greet(&mut p, A, 4);
    assert_eq!(actions, [send(A, VoteRequest { generation: Generation(0), term: Term(5) })]);
    let actions = vote(&mut p, A, 5, 148, &[(1, 100), (4, 120)]);
    let log = history(&[(1, 100), (4, 120), (5, 148)]);
    assert_eq!(
        actions,
        [send(A, Elected { generation: Generation(0), term: Term(5), history: log.clone() })]
    );
    let election = p.elected().unwrap().clone();
    assert_eq!((election.start_lsn, election.donor_last_log_term), (Lsn(148), Term(4)));
    assert_eq!(p.append(Lsn(148), Bytes::from_static(b"x")), Err(ProposerError::NotCommitted));
    flush(&mut p, A, 5, 148);
    assert!(p.term_is_committed());
    assert_eq!(p.commit_lsn(), Lsn(148));
    let actions = p.append(Lsn(148), Bytes::from_static(b"12345678")).unwrap();
    assert_eq!(appends(&actions), [(A, 148, 8)]);
    let actions = flush(&mut p, A, 5, 156);
    assert_eq!(
        actions,
        [send(A, Commit { generation: Generation(0), term: Term(5), commit_lsn: Lsn(156) })]
    );
    assert_eq!(p.commit_lsn(), Lsn(156));
}

#[test]
fn the_higher_term_wins_over_the_longer_log() {
    let mut p = proposer(&[A, B, C]);
    greet(&mut p, A, 3);
    greet(&mut p, B, 3);
    vote(&mut p, A, 4, 900, &[(1, 100)]);
    vote(&mut p, B, 4, 120, &[(1, 100), (3, 110)]);
    let election = p.elected().unwrap();
    assert_eq!((election.donor, election.start_lsn), (B, Lsn(120)));
    assert_eq!(election.term_history, history(&[(1, 100), (3, 110), (4, 120)]));
}

#[test]
fn commit_is_the_quorum_th_highest_flush_from_f_on() {
    let mut p = proposer(&[A, B, C]);
    greet(&mut p, A, 0);
    greet(&mut p, B, 0);
    vote(&mut p, A, 1, 148, &[]);
    vote(&mut p, B, 1, 100, &[]);
    flush(&mut p, A, 1, 148);
    let actions = flush(&mut p, B, 1, 100);
    assert!(!p.term_is_committed());
    assert_eq!(p.commit_lsn(), Lsn(100));
    let source = WalSource::Member(WalHolder { node: A, term: Term(1), end: Lsn(148) });
    let read = Action::ReadWal { to_member: B, from: Lsn(100), to: Lsn(148), source };
    assert!(actions.contains(&read));
    assert_eq!(appends(&p.on_wal(B, Lsn(100), vec![0; 48].into())), [(B, 100, 48)]);
    flush(&mut p, B, 1, 148);
    assert!(p.term_is_committed());
    let actions = p.append(Lsn(148), vec![0; 32].into()).unwrap();
    assert_eq!(appends(&actions), [(A, 148, 32), (B, 148, 32)]);
    flush(&mut p, A, 1, 180);
    assert_eq!(p.commit_lsn(), Lsn(148));
    flush(&mut p, B, 1, 164);
    assert_eq!(p.commit_lsn(), Lsn(164));
}

#[test]
fn a_late_member_is_introduced_and_caught_up() {
    let mut p = proposer(&[A, B, C]);
    greet(&mut p, A, 0);
    greet(&mut p, B, 0);
    vote(&mut p, A, 1, 100, &[]);
    vote(&mut p, B, 1, 100, &[]);
    flush(&mut p, A, 1, 100);
    flush(&mut p, B, 1, 100);
    for piece in 0..4 {
        p.append(Lsn(100 + piece * 32), vec![0; 32].into()).unwrap();
    }
    let actions = greet(&mut p, C, 0);
    assert!(matches!(&actions[..], [Action::Send { to: C, message: ProposerMessage::Elected(_) }]));
    let actions = flush(&mut p, C, 1, 100);
    // A and B have acknowledged no more than where the term begins.
    let source = WalSource::Compute { or: None };
    let read = Action::ReadWal { to_member: C, from: Lsn(100), to: Lsn(164), source };
    assert!(actions.contains(&read));
    let actions = p.on_wal(C, Lsn(100), vec![0; 64].into());
    assert_eq!(appends(&actions), [(C, 100, 64)]);
    assert_eq!(appends(&flush(&mut p, C, 1, 164)), [(C, 164, 64)]);
}

/// The compute removes WAL that is committed, however far a third member is behind.
#[test]
fn a_late_member_is_given_what_others_hold() {
    let mut p = proposer(&[A, B, C]);
    for node in [A, B] {
        greet(&mut p, node, 0);
    }
    for node in [A, B] {
        vote(&mut p, node, 1, 100, &[]);
    }
    for node in [A, B] {
        flush(&mut p, node, 1, 100);
    }
    for piece in 0..4 {
        p.append(Lsn(100 + piece * 32), vec![0; 32].into()).unwrap();
    }
    let donor = p.elected().unwrap().donor;
    let other = if donor == A { B } else { A };
    flush(&mut p, other, 1, 196);
    greet(&mut p, C, 0);
    let actions = flush(&mut p, C, 1, 100);
    let or = Some(WalHolder { node: other, term: Term(1), end: Lsn(196) });
    let source = WalSource::Compute { or };
    assert!(
        actions.iter().any(|action| matches!(action, Action::ReadWal { to_member: C, source: s, .. } if *s == source)),
        "{actions:?}"
    );
    p.on_wal_failed(C);
    assert!(p.heartbeat().iter().any(|a| matches!(a, Action::ReadWal { to_member: C, .. })));
    let actions = p.on_wal(C, Lsn(100), vec![0; 32].into());
    assert_eq!(appends(&actions)[0], (C, 100, 32));
}

#[test]
fn a_member_that_does_not_answer_is_not_sent_more_and_more() {
    const PIECE: usize = APPEND_BYTES_MAX;
    let config = ProposerConfig { window_bytes_max: usize::MAX, ..proposer(&[A, B, C]).config };
    let mut p = Proposer::new(config);
    for node in [A, B, C] {
        greet(&mut p, node, 0);
    }
    for node in [A, B] {
        vote(&mut p, node, 1, 100, &[]);
    }
    for node in [A, B, C] {
        greet(&mut p, node, 1);
        flush(&mut p, node, 1, 100);
    }
    let pieces = IN_FLIGHT_BYTES_MAX as usize / PIECE;
    let mut to_c = 0;
    for nth in 0..2 * pieces as u64 {
        let at = 100 + nth * PIECE as u64;
        let mut actions = p.append(Lsn(at), vec![0; PIECE].into()).unwrap();
        for node in [A, B] {
            actions.extend(flush(&mut p, node, 1, at + PIECE as u64));
        }
        to_c += appends(&actions).iter().filter(|(to, ..)| *to == C).count();
    }
    assert_eq!(p.commit_lsn(), Lsn(100 + 2 * (pieces * PIECE) as u64), "the others went on");
    assert_eq!(to_c, pieces);
    // It answers that nothing is whole yet: one more each time, or a long record would never be.
    for nth in 0..2 {
        let at = 100 + ((pieces + nth) * PIECE) as u64;
        assert_eq!(appends(&flush(&mut p, C, 1, 100)), [(C, at, PIECE)]);
    }
    let acknowledged = 100 + (pieces * PIECE) as u64;
    assert_eq!(appends(&flush(&mut p, C, 1, acknowledged)).len(), pieces - 2);
}

#[test]
fn members_that_know_the_generation_otherwise_are_not_counted() {
    let first = |ids: &[NodeId]| Configuration::first(ids.to_vec()).unwrap();
    let config = ProposerConfig { configuration: first(&[A, B]), ..proposer(&[A]).config };
    let mut p = Proposer::new(config);
    p.on_connected(A);
    let response = GreetingResponse {
        node: A,
        term: Term(0),
        flush_lsn: Lsn(100),
        commit_lsn: Lsn(100),
        configuration: first(&[A, B, C]),
    };
    let actions = p.on_message(A, AcceptorMessage::GreetingResponse(response));
    assert!(matches!(
        &actions[..],
        [Action::Disconnect { member: A, reason: RefusalReason::Invalid, .. }]
    ));
}

#[test]
fn what_comes_while_a_member_syncs_is_one_message_with_the_commit() {
    let mut p = proposer(&[A]);
    greet(&mut p, A, 0);
    vote(&mut p, A, 1, 100, &[]);
    flush(&mut p, A, 1, 100);
    assert_eq!(appends(&p.append(Lsn(100), vec![1; 16].into()).unwrap()), [(A, 100, 16)]);
    assert_eq!(p.append(Lsn(116), vec![2; 8].into()).unwrap(), []);
    assert_eq!(p.append(Lsn(124), vec![3; 8].into()).unwrap(), []);
    let bytes = [[2; 8], [3; 8]].concat().into();
    let generation = p.configuration().generation();
    let append = Append { generation, term: Term(1), lsn: Lsn(116), commit_lsn: Lsn(116), bytes };
    assert_eq!(flush(&mut p, A, 1, 116), [send(A, append)]);
    let much = GATHERED_BYTES_MAX as usize;
    assert_eq!(
        appends(&p.append(Lsn(132), vec![4; much].into()).unwrap()),
        [(A, 132, much)],
        "much does not wait"
    );
}

/// Under load each member has something under way and something waiting; a message that tells of a commit alone would be one more
/// for each of them and each commit.
#[test]
fn a_commit_is_told_with_the_log_that_waits() {
    let mut p = proposer(&[A, B, C]);
    for node in [A, B, C] {
        greet(&mut p, node, 0);
    }
    vote(&mut p, A, 1, 100, &[]);
    vote(&mut p, B, 1, 100, &[]);
    for node in [A, B, C] {
        flush(&mut p, node, 1, 100);
    }
    let log = |lsn, commit_lsn, bytes: &[u8]| {
        let bytes = Bytes::copy_from_slice(bytes);
        Append {
            generation: Generation(0),
            term: Term(1),
            lsn: Lsn(lsn),
            commit_lsn: Lsn(commit_lsn),
            bytes,
        }
    };
    p.append(Lsn(100), vec![1; 16].into()).unwrap();
    assert_eq!(p.append(Lsn(116), vec![2; 8].into()).unwrap(), []);
    assert_eq!(flush(&mut p, A, 1, 116), [send(A, log(116, 100, &[2; 8]))]);
    // A has all there is, and is told; C hears it with what waits.
    let commit = Commit { generation: Generation(0), term: Term(1), commit_lsn: Lsn(116) };
    let told = [send(A, commit), send(B, log(116, 116, &[2; 8]))];
    assert_eq!(flush(&mut p, B, 1, 116), told);
    assert_eq!(flush(&mut p, C, 1, 116), [send(C, log(116, 116, &[2; 8]))]);
}

/// Three members that follow from 100 on, of which C may wait.
fn with_a_patient_member() -> Proposer {
    let mut p = proposer(&[A, B, C]);
    p.set_patient(vec![C]);
    for node in [A, B, C] {
        greet(&mut p, node, 0);
    }
    vote(&mut p, A, 1, 100, &[]);
    vote(&mut p, B, 1, 100, &[]);
    for node in [A, B, C] {
        flush(&mut p, node, 1, 100);
    }
    p.let_go();
    p
}

fn is_told_of(lsn: u64) -> impl Fn(&Action) -> bool {
    move |action| match action {
        Action::Send { message: ProposerMessage::Commit(commit), .. } => commit.commit_lsn.0 == lsn,
        Action::Send { message: ProposerMessage::Append(append), .. } => append.commit_lsn.0 == lsn,
        _ => false,
    }
}

#[test]
fn a_patient_member_hears_of_several_commits_at_once() {
    let mut p = with_a_patient_member();
    assert!(!p.holds_back());
    for (lsn, next) in [(100, 116), (116, 132)] {
        let sent = p.append(Lsn(lsn), vec![1; 16].into()).unwrap();
        assert_eq!(appends(&sent), [(A, lsn, 16), (B, lsn, 16)]);
        flush(&mut p, A, 1, next);
        let told = flush(&mut p, B, 1, next);
        assert_eq!(p.commit_lsn(), Lsn(next));
        assert!(told.iter().all(|action| !matches!(action, Action::Send { to: C, .. })));
    }
    assert!(p.holds_back());
    let sent = p.let_go();
    assert_eq!(appends(&sent), [(C, 100, 32)]);
    assert!(sent.iter().all(is_told_of(132)) && !p.holds_back());
    assert_eq!(flush(&mut p, C, 1, 132), []);
    assert!(!p.holds_back(), "it has all there is, and knows of it");
    let much = PATIENT_BYTES_MAX as usize;
    let sent = p.append(Lsn(132), vec![2; much].into()).unwrap();
    assert_eq!(appends(&sent).last(), Some(&(C, 132, much)), "much does not wait");
}

#[test]
fn neighbours_are_sent_the_log_in_step() {
    let mut p = with_a_patient_member();
    let sent = p.append(Lsn(100), vec![1; 16].into()).unwrap();
    assert_eq!(appends(&sent), [(A, 100, 16), (B, 100, 16)]);
    assert_eq!(p.append(Lsn(116), vec![2; 8].into()).unwrap(), []);
    assert_eq!(flush(&mut p, A, 1, 116), [], "B is not ready");
    assert_eq!(p.append(Lsn(124), vec![3; 8].into()).unwrap(), []);
    let sent = flush(&mut p, B, 1, 116);
    assert_eq!(appends(&sent), [(A, 116, 16), (B, 116, 16)]);
    assert!(sent.iter().all(is_told_of(116)));
    // B hangs: A is not held up for long.
    assert_eq!(appends(&p.append(Lsn(132), vec![4; 8].into()).unwrap()), []);
    assert_eq!(flush(&mut p, A, 1, 132), []);
    assert!(p.holds_back());
    assert_eq!(appends(&p.let_go()), [(C, 100, 40)]);
    assert!(p.holds_back(), "something was committed a moment ago");
    assert!(appends(&p.let_go()).contains(&(A, 132, 8)));
    let much = GATHERED_BYTES_MAX as usize;
    let sent = p.append(Lsn(140), vec![5; much].into()).unwrap();
    assert!(appends(&sent).contains(&(A, 140, much)), "much does not wait");
}

#[test]
fn nobody_keeps_step_with_one_that_is_gone() {
    let mut p = with_a_patient_member();
    p.append(Lsn(100), vec![1; 16].into()).unwrap();
    flush(&mut p, A, 1, 116);
    assert_eq!(p.append(Lsn(116), vec![2; 8].into()).unwrap(), [], "A waits for B");
    p.on_disconnected(B);
    assert_eq!(appends(&p.let_go()), [(A, 116, 8), (C, 100, 24)]);
    assert!(!p.holds_back());
}

#[test]
fn nobody_waits_where_the_commit_needs_everyone() {
    let mut p = with_a_patient_member();
    // B hangs: nobody knows yet, and C is given it a little later.
    assert_eq!(appends(&p.append(Lsn(100), vec![1; 16].into()).unwrap()).len(), 2);
    flush(&mut p, A, 1, 116);
    assert_eq!(appends(&p.let_go()), [(C, 100, 16)]);
    assert_eq!(p.append(Lsn(116), vec![2; 16].into()).unwrap(), [], "A waits for B");
    let sent = flush(&mut p, C, 1, 116);
    assert_eq!(p.commit_lsn(), Lsn(116));
    // Now it is known, and what was held back goes out.
    assert_eq!(appends(&sent), [(A, 116, 16), (C, 116, 16)]);
    assert!(sent.iter().all(is_told_of(116)), "{sent:?}");
    flush(&mut p, A, 1, 132);
    flush(&mut p, C, 1, 132);
    // B is back, and has all that is committed.
    assert_eq!(appends(&flush(&mut p, B, 1, 116)), [(B, 116, 16)]);
    flush(&mut p, B, 1, 132);
    assert_eq!(
        appends(&p.append(Lsn(132), vec![3; 8].into()).unwrap()),
        [(A, 132, 8), (B, 132, 8)]
    );
    // B is gone, and that is known at once.
    p.on_disconnected(B);
    flush(&mut p, A, 1, 140);
    assert_eq!(
        appends(&p.append(Lsn(140), vec![4; 8].into()).unwrap()),
        [(A, 140, 8), (C, 132, 16)]
    );
}

#[test]
fn a_new_connection_owes_nothing() {
    let mut p = proposer(&[A]);
    greet(&mut p, A, 0);
    vote(&mut p, A, 1, 100, &[]);
    flush(&mut p, A, 1, 100);
    p.append(Lsn(100), vec![1; 16].into()).unwrap();
    p.on_disconnected(A);
    greet(&mut p, A, 1);
    assert_eq!(appends(&flush(&mut p, A, 1, 100)), [(A, 100, 16)]);
}

#[test]
fn a_higher_term_in_any_answer_fences() {
    let elected = || {
        let mut p = proposer(&[A]);
        greet(&mut p, A, 0);
        vote(&mut p, A, 1, 100, &[]);
        flush(&mut p, A, 1, 100);
        p
    };
    let (mut by_flush, mut by_greeting) = (elected(), elected());
    flush(&mut by_flush, A, 2, 500);
    by_greeting.on_disconnected(A);
    greet(&mut by_greeting, A, 2);
    for mut p in [by_flush, by_greeting] {
        assert_eq!(p.fenced_by(), Some(Term(2)));
        let error = p.append(Lsn(100), Bytes::from_static(b"x")).unwrap_err();
        assert_eq!(
            (error.clone(), error.kind()),
            (ProposerError::Fenced(Term(2)), ErrorKind::Fenced)
        );
        assert_eq!(p.commit_lsn(), Lsn(100), "what was committed stays so");
    }
}

#[test]
fn a_lost_election_is_final() {
    let mut p = proposer(&[A, B, C]);
    greet(&mut p, A, 0);
    greet(&mut p, B, 0);
    let refused = VoteResponse {
        term: Term(1),
        granted: false,
        flush_lsn: Lsn(100),
        commit_lsn: Lsn(100),
        history: TermHistory::default(),
    };
    p.on_message(A, AcceptorMessage::VoteResponse(refused.clone()));
    assert_eq!(p.fenced_by(), None, "B and C may still vote for us");
    p.on_message(B, AcceptorMessage::VoteResponse(refused));
    assert_eq!(p.fenced_by(), Some(Term(1)));
}

#[test]
fn a_candidate_that_meets_a_higher_term_asks_again() {
    let mut p = proposer(&[A, B, C]);
    greet(&mut p, A, 0);
    greet(&mut p, B, 0);
    let actions = greet(&mut p, C, 8);
    let request = |node| send(node, VoteRequest { generation: Generation(0), term: Term(9) });
    assert_eq!(actions, [request(A), request(B), request(C)]);
}

#[test]
fn a_refusal_disconnects() {
    let mut p = proposer(&[A]);
    greet(&mut p, A, 0);
    let refusal = Refusal { reason: RefusalReason::DiskFull, text: "full".into() };
    let actions = p.on_message(A, AcceptorMessage::Refusal(refusal));
    let expected =
        Action::Disconnect { member: A, reason: RefusalReason::DiskFull, text: "full".into() };
    assert_eq!(actions, [expected]);
    assert!(vote(&mut p, A, 1, 100, &[]).is_empty(), "nothing is heard from a closed connection");
}

const D: NodeId = NodeId(4);

fn joint() -> Configuration {
    Configuration::new(Generation(2), vec![A], Some(vec![B, C, D])).unwrap()
}

#[test]
fn an_elected_proposer_follows_a_newer_configuration_and_needs_its_quorum() {
    let mut p = proposer(&[A]);
    greet(&mut p, A, 0);
    vote(&mut p, A, 1, 100, &[]);
    flush(&mut p, A, 1, 100);
    p.append(Lsn(100), vec![0; 32].into()).unwrap();
    let actions = p.on_message(A, AcceptorMessage::NewerConfiguration(joint()));
    assert!(matches!(&actions[..], [
        Action::Reconfigured(newer),
        Action::Send { to: A, message: ProposerMessage::Greeting(greeting) },
    ] if *newer == joint() && greeting.configuration == joint()));
    assert!(p.elected().is_some() && p.term_is_committed());
    // A's acknowledgement no longer does.
    let actions = greet(&mut p, A, 1);
    assert!(
        matches!(&actions[..], [Action::Send { to: A, message: ProposerMessage::Elected(elected) }]
        if elected.generation == Generation(2))
    );
    flush(&mut p, A, 1, 132);
    assert_eq!(p.commit_lsn(), Lsn(100));
    for node in [B, C] {
        greet(&mut p, node, 0);
        flush(&mut p, node, 1, 132);
    }
    assert_eq!(p.commit_lsn(), Lsn(132));
    let last = Configuration::new(Generation(3), vec![B, C, D], None).unwrap();
    p.on_configuration(last);
    assert_eq!(p.member_flush_lsns().len(), 3, "A is forgotten");
}

#[test]
fn votes_count_only_under_their_configuration() {
    let mut p = proposer(&[A, B, C]);
    greet(&mut p, A, 0);
    greet(&mut p, B, 0);
    vote(&mut p, A, 1, 100, &[]);
    p.on_message(B, AcceptorMessage::NewerConfiguration(joint()));
    vote(&mut p, B, 1, 100, &[]);
    assert!(p.elected().is_none());
    greet(&mut p, A, 1);
    greet(&mut p, B, 1);
    let actions = greet(&mut p, C, 0);
    let request = |node| send(node, VoteRequest { generation: Generation(2), term: Term(2) });
    assert_eq!(actions, [request(A), request(B), request(C)]);
}

#[test]
fn one_node_is_not_two_members() {
    let mut p = proposer(&[A, B]);
    p.on_connected(B);
    let response = GreetingResponse {
        node: A,
        term: Term(0),
        flush_lsn: Lsn(100),
        commit_lsn: Lsn(100),
        configuration: p.configuration().clone(),
    };
    let actions = p.on_message(B, AcceptorMessage::GreetingResponse(response));
    assert!(matches!(
        &actions[..],
        [Action::Disconnect { member: B, reason: RefusalReason::Conflict, .. }]
    ));
}

#[test]
fn a_late_message_of_a_closed_connection_still_fences() {
    let mut p = proposer(&[A]);
    greet(&mut p, A, 0);
    vote(&mut p, A, 1, 100, &[]);
    flush(&mut p, A, 1, 100);
    p.on_disconnected(A);
    flush(&mut p, A, 7, 100);
    assert_eq!(p.fenced_by(), Some(Term(7)));
}

#[test]
fn an_election_that_would_lose_commits_is_refused() {
    let mut p = proposer(&[A, B, C]);
    greet(&mut p, A, 5);
    greet(&mut p, B, 5);
    let response = VoteResponse {
        term: Term(6),
        granted: true,
        flush_lsn: Lsn(148),
        commit_lsn: Lsn(148),
        history: history(&[(1, 100)]),
    };
    p.on_message(A, AcceptorMessage::VoteResponse(response));
    let actions = vote(&mut p, B, 6, 120, &[(1, 100), (3, 110)]);
    assert!(matches!(&actions[..], [Action::Disconnect { reason: RefusalReason::Conflict, .. }]));
    assert!(p.elected().is_none() && p.fenced_by().is_some());
}
