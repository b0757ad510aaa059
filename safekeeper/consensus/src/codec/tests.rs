use proptest::prelude::*;

use super::*;

fn lsns() -> impl Strategy<Value = Lsn> {
    any::<u64>().prop_map(Lsn)
}

fn terms() -> impl Strategy<Value = Term> {
    any::<u64>().prop_map(Term)
}

fn generations() -> impl Strategy<Value = Generation> {
    any::<u64>().prop_map(Generation)
}

/// A configuration of either kind, some with no members at all.
fn joint(seed: u64) -> Configuration {
    let old = (0..seed % 5 + 1).map(|n| NodeId(seed / 8 + n)).collect();
    let new = (0..seed % 3 + 1).map(|n| NodeId(seed / 7 + n)).collect();
    match seed % 4 {
        0 => Configuration::none(),
        1 => Configuration::unnumbered(old).unwrap(),
        2 => Configuration::new(Generation(seed | 1), old, None).unwrap(),
        _ => Configuration::new(Generation((seed | 2) & !1), old, Some(new)).unwrap(),
    }
}

fn histories() -> impl Strategy<Value = TermHistory> {
    proptest::collection::btree_map(any::<u64>(), any::<u64>(), 0..20).prop_map(|entries| {
        let mut lsns: Vec<u64> = entries.values().copied().collect();
        lsns.sort();
        let entries = entries.keys().zip(lsns);
        let entries = entries.map(|(term, lsn)| TermStart { term: Term(*term), lsn: Lsn(lsn) });
        TermHistory::from_entries(entries.collect()).unwrap()
    })
}

fn greetings() -> impl Strategy<Value = Greeting> {
    (any::<[u8; 16]>(), any::<[u8; 16]>(), any::<[u8; 16]>(), any::<u64>(), any::<u32>(), lsns())
        .prop_map(|(proposer, tenant, timeline, system_id, pg_tli, start_lsn)| Greeting {
            proposer: ProposerId(proposer),
            tenant: TenantId(tenant),
            timeline: TimelineId(timeline),
            system_id,
            pg_major: 15,
            pg_tli,
            start_lsn,
            pg_ancestors: vec![PgAncestor { pg_tli, switch_lsn: start_lsn }],
            configuration: joint(system_id),
        })
}

fn proposer_messages() -> impl Strategy<Value = ProposerMessage> {
    let bytes = proptest::collection::vec(any::<u8>(), 0..2000);
    prop_oneof![
        greetings().prop_map(Into::into),
        (generations(), terms())
            .prop_map(|(generation, term)| VoteRequest { generation, term }.into()),
        (generations(), terms(), histories()).prop_map(|(generation, term, history)| Elected {
            generation,
            term,
            history
        }
        .into()),
        (terms(), 0..u64::MAX / 2, lsns(), bytes).prop_map(|(term, lsn, commit_lsn, bytes)| {
            let (generation, lsn) = (Generation(lsn ^ 5), Lsn(lsn));
            Append { generation, term, lsn, commit_lsn, bytes: bytes.into() }.into()
        }),
        (generations(), terms(), lsns()).prop_map(|(generation, term, commit_lsn)| {
            Commit { generation, term, commit_lsn }.into()
        }),
    ]
}

fn acceptor_messages() -> impl Strategy<Value = AcceptorMessage> {
    let marks = || (terms(), lsns(), lsns());
    prop_oneof![
        (any::<u64>(), marks()).prop_map(|(node, (term, flush_lsn, commit_lsn))| {
            let node = NodeId(node);
            AcceptorMessage::GreetingResponse(GreetingResponse {
                node,
                term,
                flush_lsn,
                commit_lsn,
                configuration: joint(term.0),
            })
        }),
        any::<u64>().prop_map(|seed| AcceptorMessage::NewerConfiguration(joint(seed))),
        (any::<bool>(), marks(), histories()).prop_map(
            |(granted, (term, flush_lsn, commit_lsn), history)| {
                AcceptorMessage::VoteResponse(VoteResponse {
                    term,
                    granted,
                    flush_lsn,
                    commit_lsn,
                    history,
                })
            }
        ),
        (generations(), marks()).prop_map(|(generation, (term, flush_lsn, commit_lsn))| {
            let response = AppendResponse { generation, term, flush_lsn, commit_lsn };
            AcceptorMessage::AppendResponse(response)
        }),
        ".*".prop_map(|text| {
            AcceptorMessage::Refusal(Refusal { reason: RefusalReason::DiskFull, text })
        }),
    ]
}

/// Encodes both messages, feeds the bytes in pieces, and wants the messages back, not a byte too early.
fn round_trip<M: Message + PartialEq + std::fmt::Debug>(first: &M, second: &M, piece: usize) {
    let mut wire = BytesMut::new();
    first.encode(&mut wire);
    let first_len = wire.len();
    second.encode(&mut wire);
    let (mut input, mut fed, mut found) = (BytesMut::new(), 0, Vec::new());
    for part in wire.chunks(piece) {
        input.extend_from_slice(part);
        fed += part.len();
        while let Some(message) = M::decode(&mut input).unwrap() {
            assert!(fed >= first_len);
            found.push(message);
        }
    }
    assert_eq!([&found[0], &found[1]], [first, second]);
    assert!(found.len() == 2 && input.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn proposer_messages_round_trip(
        a in proposer_messages(), b in proposer_messages(), piece in 1..600usize
    ) {
        round_trip(&a, &b, piece);
    }

    #[test]
    fn acceptor_messages_round_trip(
        a in acceptor_messages(), b in acceptor_messages(), piece in 1..600usize
    ) {
        round_trip(&a, &b, piece);
    }

    /// Any bytes behind a valid head give a message or an error, never a panic.
    #[test]
    fn hostile_bodies_do_not_panic(
        tag in prop::sample::select(&b"GVEACgvanrx"[..]),
        fields in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut wire = BytesMut::new();
        frame(&mut wire, tag, |out| out.put_slice(&fields));
        let _ = ProposerMessage::decode(&mut wire.clone());
        let _ = AcceptorMessage::decode(&mut wire);
    }

    #[test]
    fn a_flipped_bit_is_found(message in proposer_messages(), at in any::<usize>(), bit in 0..8) {
        let mut wire = BytesMut::new();
        message.encode(&mut wire);
        let at = 4 + at % (wire.len() - 4);
        wire[at] ^= 1u8 << bit;
        let found = matches!(ProposerMessage::decode(&mut wire), Err(CodecError::Crc { .. }));
        prop_assert!(found);
    }
}

#[test]
fn lengths_are_limited() {
    for len in [0, FRAME_BYTES_MAX as u32 + 1, u32::MAX] {
        let mut wire = BytesMut::new();
        wire.put_u32_le(len);
        wire.put_u32_le(0);
        let expected = Err(CodecError::Length(len as usize));
        assert_eq!(ProposerMessage::decode(&mut wire), expected);
    }
}

/// The bytes of one message of each direction, as in the format document: they may not change.
#[test]
fn golden_frames() {
    let mut wire = BytesMut::new();
    ProposerMessage::from(Append {
        generation: Generation(2),
        term: Term(3),
        lsn: Lsn(0x0100_0028),
        commit_lsn: Lsn(0x0100_0020),
        bytes: Bytes::from_static(b"WAL"),
    })
    .encode(&mut wire);
    assert_eq!(hex(&wire[..4]), "24000000");
    assert_eq!(
        hex(&wire[8..]),
        "41020000000000000003000000000000002800000100000000200000010000000057414c"
    );
    wire.clear();
    AcceptorMessage::AppendResponse(AppendResponse {
        generation: Generation(2),
        term: Term(3),
        flush_lsn: Lsn(8),
        commit_lsn: Lsn(0),
    })
    .encode(&mut wire);
    assert_eq!(
        hex(&wire[8..]),
        "610200000000000000030000000000000008000000000000000000000000000000"
    );
    wire.clear();
    let nodes = |ids: &[u64]| ids.iter().copied().map(NodeId).collect();
    let joint = Configuration::new(Generation(2), nodes(&[1]), Some(nodes(&[1, 3]))).unwrap();
    AcceptorMessage::NewerConfiguration(joint).encode(&mut wire);
    let expected = concat!(
        "6e",
        "0200000000000000",
        "01000000",
        "02000000",
        "0100000000000000",
        "0100000000000000",
        "0300000000000000",
    );
    assert_eq!(hex(&wire[8..]), expected);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
