use super::*;
use crate::TermStart;

const NODE: NodeId = NodeId(1);
const P1: ProposerId = ProposerId([1; 16]);
const P2: ProposerId = ProposerId([2; 16]);

fn acceptor() -> Acceptor {
    Acceptor::open(NODE, Promises::at(Lsn(100)), Lsn(100))
}

fn receive(
    acceptor: &mut Acceptor,
    from: ProposerId,
    message: impl Into<ProposerMessage>,
) -> Vec<Effect> {
    acceptor.step(Input::Received { from, message: message.into() })
}

fn elected(entries: &[(u64, u64)]) -> Elected {
    let entries = entries.iter().map(|(term, lsn)| TermStart { term: Term(*term), lsn: Lsn(*lsn) });
    let history = TermHistory::from_entries(entries.collect()).unwrap();
    Elected { generation: Generation(0), term: history.last().unwrap().term, history }
}

fn append(term: u64, lsn: u64, bytes: &'static [u8], commit: u64) -> Append {
    Append {
        generation: Generation(0),
        term: Term(term),
        lsn: Lsn(lsn),
        commit_lsn: Lsn(commit),
        bytes: bytes.into(),
    }
}

fn granted(effects: &[Effect]) -> Option<bool> {
    effects.iter().find_map(|effect| match effect {
        Effect::Send { message: AcceptorMessage::VoteResponse(vote), .. } => Some(vote.granted),
        _ => None,
    })
}

fn response(effects: &[Effect]) -> Option<&AppendResponse> {
    effects.iter().find_map(|effect| match effect {
        Effect::Send { message: AcceptorMessage::AppendResponse(response), .. } => Some(response),
        _ => None,
    })
}

fn refusal(effects: &[Effect]) -> Option<RefusalReason> {
    effects.iter().find_map(|effect| match effect {
        Effect::Send { message: AcceptorMessage::Refusal(refusal), .. } => Some(refusal.reason),
        _ => None,
    })
}

#[test]
fn one_vote_per_term_and_it_is_persisted_first() {
    let mut a = acceptor();
    let effects = receive(&mut a, P1, VoteRequest { generation: Generation(0), term: Term(1) });
    let [Effect::Persist(promises), Effect::Send { .. }] = &effects[..] else {
        panic!("{effects:?}")
    };
    assert_eq!((promises.term, promises.vote), (Term(1), Some(P1)));
    assert_eq!(granted(&effects), Some(true));
    assert_eq!(
        granted(&receive(&mut a, P2, VoteRequest { generation: Generation(0), term: Term(1) })),
        Some(false)
    );
    assert_eq!(
        granted(&receive(&mut a, P1, VoteRequest { generation: Generation(0), term: Term(1) })),
        Some(true)
    );
    let reopened = &mut Acceptor::open(NODE, a.promises().clone(), Lsn(100));
    assert_eq!(
        granted(&receive(reopened, P2, VoteRequest { generation: Generation(0), term: Term(1) })),
        Some(false)
    );
    assert_eq!(
        granted(&receive(reopened, P2, VoteRequest { generation: Generation(0), term: Term(2) })),
        Some(true)
    );
    assert_eq!(
        granted(&receive(reopened, P1, VoteRequest { generation: Generation(0), term: Term(1) })),
        Some(false)
    );
}

#[test]
fn appends_are_acknowledged_up_to_the_record_end_once_synced() {
    let mut a = acceptor();
    receive(&mut a, P1, elected(&[(1, 100)]));
    let effects = receive(&mut a, P1, append(1, 100, b"0123456789", 0));
    assert!(matches!(&effects[..], [Effect::Write { lsn: Lsn(100), .. }]));
    assert_eq!(a.flush_lsn(), Lsn(100));
    let effects = a.step(Input::Flushed { record_end: Lsn(108) });
    assert_eq!(response(&effects).unwrap().flush_lsn, Lsn(108));
    assert_eq!((a.flush_lsn(), a.write_lsn()), (Lsn(108), Lsn(110)));
    let effects = receive(&mut a, P1, append(1, 108, b"89", 0));
    assert_eq!(refusal(&effects), Some(RefusalReason::Invalid), "not contiguous");
}

#[test]
fn nobody_appends_before_elected() {
    let mut a = acceptor();
    receive(&mut a, P1, VoteRequest { generation: Generation(0), term: Term(1) });
    assert_eq!(
        refusal(&receive(&mut a, P1, append(1, 100, b"x", 0))),
        Some(RefusalReason::Invalid)
    );
    receive(&mut a, P1, elected(&[(1, 100)]));
    assert_eq!(
        refusal(&receive(&mut a, P2, append(1, 100, b"x", 0))),
        Some(RefusalReason::Invalid)
    );
}

#[test]
fn a_deposed_proposer_learns_the_higher_term() {
    let mut a = acceptor();
    receive(&mut a, P1, elected(&[(1, 100)]));
    receive(&mut a, P2, VoteRequest { generation: Generation(0), term: Term(2) });
    let effects = receive(&mut a, P1, append(1, 100, b"01234567", 0));
    assert_eq!(response(&effects).unwrap().term, Term(2));
    assert_eq!(a.write_lsn(), Lsn(100));
    assert_eq!(response(&receive(&mut a, P1, elected(&[(1, 100)]))).unwrap().term, Term(2));
    let stale = Commit { generation: Generation(0), term: Term(1), commit_lsn: Lsn(100) };
    assert_eq!(response(&receive(&mut a, P1, stale)).unwrap().term, Term(2));
}

#[test]
fn the_cut_comes_before_the_new_history() {
    let mut a = acceptor();
    receive(&mut a, P1, elected(&[(1, 100)]));
    receive(&mut a, P1, append(1, 100, &[0; 80], 0));
    a.step(Input::Flushed { record_end: Lsn(180) });
    let effects = receive(&mut a, P2, elected(&[(1, 100), (3, 148)]));
    assert!(matches!(
        &effects[..],
        [Effect::Truncate { to: Lsn(148) }, Effect::Persist(promises), Effect::Send { to: P2, .. }]
            if promises.term == Term(3)
    ));
    assert_eq!((a.flush_lsn(), a.last_log_term()), (Lsn(148), Term(3)));
}

#[test]
fn partial_bytes_behind_the_flush_are_cut_on_every_election() {
    let mut a = acceptor();
    receive(&mut a, P1, elected(&[(1, 100)]));
    receive(&mut a, P1, append(1, 100, b"0123456789", 0));
    a.step(Input::Flushed { record_end: Lsn(108) });
    let effects = receive(&mut a, P1, elected(&[(1, 100)]));
    assert!(matches!(&effects[..], [Effect::Truncate { to: Lsn(108) }, Effect::Send { .. }]));
    let effects = receive(&mut a, P1, elected(&[(1, 100)]));
    assert!(matches!(&effects[..], [Effect::Send { .. }]), "nothing left to cut or to persist");
}

#[test]
fn committed_wal_is_never_cut() {
    let mut a = acceptor();
    receive(&mut a, P1, elected(&[(1, 100)]));
    receive(&mut a, P1, append(1, 100, &[0; 48], 0));
    a.step(Input::Flushed { record_end: Lsn(148) });
    receive(&mut a, P1, Commit { generation: Generation(0), term: Term(1), commit_lsn: Lsn(140) });
    let effects = receive(&mut a, P2, elected(&[(2, 100)]));
    assert_eq!(refusal(&effects), Some(RefusalReason::Conflict));
    assert_eq!((a.term(), a.flush_lsn()), (Term(1), Lsn(148)));
}

#[test]
fn commit_waits_for_the_own_flush() {
    let mut a = acceptor();
    receive(&mut a, P1, elected(&[(1, 100)]));
    receive(&mut a, P1, append(1, 100, &[0; 16], 200));
    assert_eq!(a.commit_lsn(), Lsn(100));
    a.step(Input::Flushed { record_end: Lsn(116) });
    assert_eq!(a.commit_lsn(), Lsn(116));
}

#[test]
fn a_log_that_begins_late_follows_a_longer_history() {
    let mut a = Acceptor::open(NODE, Promises::at(Lsn(180)), Lsn(180));
    let effects = receive(&mut a, P1, elected(&[(1, 100), (2, 150), (4, 200)]));
    assert_eq!(response(&effects).unwrap().flush_lsn, Lsn(180));
    let mut a = Acceptor::open(NODE, Promises::at(Lsn(180)), Lsn(180));
    let effects = receive(&mut a, P1, elected(&[(1, 100), (4, 150)]));
    assert_eq!(refusal(&effects), Some(RefusalReason::Conflict), "it would end before our start");
}

#[test]
fn a_term_begins_at_one_place() {
    let mut a = acceptor();
    receive(&mut a, P1, elected(&[(1, 100)]));
    receive(&mut a, P1, append(1, 100, &[0; 48], 0));
    a.step(Input::Flushed { record_end: Lsn(148) });
    receive(&mut a, P1, elected(&[(1, 100), (2, 148)]));
    let effects = receive(&mut a, P2, elected(&[(1, 100), (2, 120)]));
    assert_eq!(refusal(&effects), Some(RefusalReason::Conflict));
    assert_eq!(a.flush_lsn(), Lsn(148));
}

fn final_of(generation: u64) -> Configuration {
    Configuration::new(Generation(generation), vec![NODE], None).unwrap()
}

fn greeting(configuration: Configuration) -> Greeting {
    Greeting {
        proposer: P1,
        tenant: treering_types::TenantId([0; 16]),
        timeline: treering_types::TimelineId([0; 16]),
        system_id: 1,
        pg_major: 15,
        pg_tli: 1,
        start_lsn: Lsn(100),
        pg_ancestors: Vec::new(),
        configuration,
    }
}

#[test]
fn a_newer_configuration_is_persisted_before_it_is_answered() {
    let mut a = acceptor();
    let effects = receive(&mut a, P1, greeting(final_of(3)));
    assert!(matches!(&effects[..], [Effect::Persist(promises), Effect::Send { .. }]
        if promises.configuration == final_of(3)));
    let effects = receive(&mut a, P1, greeting(final_of(1)));
    let [Effect::Send { message: AcceptorMessage::GreetingResponse(response), .. }] = &effects[..]
    else {
        panic!("{effects:?}")
    };
    assert_eq!(response.configuration, final_of(3));
}

#[test]
fn messages_of_another_generation_are_not_looked_at() {
    let mut a = acceptor();
    receive(&mut a, P1, elected(&[(1, 100)]));
    receive(&mut a, P1, append(1, 100, &[0; 48], 0));
    receive(&mut a, P1, greeting(final_of(3)));
    // Written under the older configuration: nobody there is told that it was synced.
    assert!(a.step(Input::Flushed { record_end: Lsn(148) }).is_empty());
    let effects = receive(&mut a, P2, VoteRequest { generation: Generation(0), term: Term(9) });
    assert!(matches!(&effects[..],
        [Effect::Send { message: AcceptorMessage::NewerConfiguration(newer), .. }] if *newer == final_of(3)));
    assert_eq!(a.term(), Term(1));
    let effects = receive(&mut a, P2, VoteRequest { generation: Generation(5), term: Term(9) });
    assert_eq!(refusal(&effects), Some(RefusalReason::Invalid));
}

fn administer(acceptor: &mut Acceptor, request: AdminRequest) -> AdminResponse {
    match acceptor.step(Input::Administered(request)).pop() {
        Some(Effect::Answer(response)) => response,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_generation_is_promised_once_and_binds_the_admins_only() {
    let mut a = acceptor();
    assert!(administer(&mut a, AdminRequest::Promise(Generation(4))).granted);
    assert!(!administer(&mut a, AdminRequest::Promise(Generation(4))).granted);
    assert!(!administer(&mut a, AdminRequest::Promise(Generation(2))).granted);
    assert!(!administer(&mut a, AdminRequest::Accept(final_of(3))).granted);
    assert_eq!(a.promises().configuration, Configuration::none());
    receive(&mut a, P1, greeting(final_of(3)));
    assert_eq!(a.promises().configuration, final_of(3), "a proposer's is followed");
    assert!(!administer(&mut a, AdminRequest::Accept(final_of(3))).granted, "yet not accepted");
    assert!(administer(&mut a, AdminRequest::Accept(final_of(5))).granted);
    let again = administer(&mut a, AdminRequest::Accept(final_of(5)));
    assert!(again.granted && again.configuration == final_of(5));
}
