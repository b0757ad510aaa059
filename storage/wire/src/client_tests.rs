use proptest::prelude::*;

use super::*;
use crate::backend::{Severity, Writer, oid, sqlstate};

fn handshake(password: Option<&str>) -> (Handshake, BytesMut) {
    let mut out = BytesMut::new();
    let startup = StartupMessage::new([("user", "u")]);
    let handshake = Handshake::start(&startup, password, &mut out).unwrap();
    out.clear();
    (handshake, out)
}

fn sasl_request(kind: u32, data: &[u8]) -> BytesMut {
    use bytes::BufMut;
    let mut writer = Writer::new();
    writer.message(b'R', |body| {
        body.put_u32(kind);
        body.put_slice(data);
    });
    writer.take().into()
}

#[test]
fn trusted_session_byte_by_byte() {
    let key = CancelKey { pid: 5, secret: Bytes::from_static(b"1234") };
    let mut server = Writer::new();
    server.session_start("15.18", &key);
    let stream = server.take();
    let (mut handshake, mut out) = handshake(None);
    let mut input = BytesMut::new();
    for (at, byte) in stream.iter().enumerate() {
        input.extend_from_slice(&[*byte]);
        let ready = handshake.receive(&mut input, &mut out).unwrap();
        assert_eq!(ready.is_some(), at + 1 == stream.len());
        if let Some(session) = ready {
            assert_eq!(session.parameter("integer_datetimes"), Some("on"));
            assert_eq!(session.cancel_key, Some(key.clone()));
        }
    }
}

#[test]
fn scram_speaks_first_and_checks_the_server() {
    let (mut handshake, mut out) = handshake(Some("secret"));
    let mut offer = sasl_request(10, b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0");
    assert!(handshake.receive(&mut offer, &mut out).unwrap().is_none());
    assert!(out.starts_with(b"p"));
    let text = String::from_utf8_lossy(&out).into_owned();
    let nonce = text.split("r=").nth(1).unwrap();
    let first = format!("r={nonce}server,s=QSXCR+Q6sek8bf92,i=4096");
    out.clear();
    let mut challenge = sasl_request(11, first.as_bytes());
    assert!(handshake.receive(&mut challenge, &mut out).unwrap().is_none());
    assert!(String::from_utf8_lossy(&out).contains(",p="));
    let mut forged = sasl_request(12, b"v=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
    let refused = handshake.receive(&mut forged, &mut out);
    assert!(matches!(refused, Err(ClientError::Scram(_))));
}

#[test]
fn no_password_leaves_in_the_clear() {
    for kind in [3, 5, 7] {
        let (mut handshake, mut out) = handshake(Some("secret"));
        let refused = handshake.receive(&mut sasl_request(kind, b"salt"), &mut out);
        assert!(matches!(refused, Err(ClientError::AuthenticationUnsupported(_))));
        assert!(out.is_empty());
    }
    let (mut handshake, mut out) = handshake(None);
    let refused = handshake.receive(&mut sasl_request(10, b"SCRAM-SHA-256\0\0"), &mut out);
    assert!(matches!(refused, Err(ClientError::PasswordMissing)));
}

#[test]
fn a_server_cannot_skip_its_proof() {
    let (mut handshake, mut out) = handshake(Some("secret"));
    handshake.receive(&mut sasl_request(10, b"SCRAM-SHA-256\0\0"), &mut out).unwrap();
    let skipped = handshake.receive(&mut sasl_request(0, b""), &mut out);
    assert!(matches!(skipped, Err(ClientError::Unexpected { .. })));
}

#[test]
fn replies() {
    let mut server = Writer::new();
    server.row_description(&[Column::text("systemid"), Column::new("timeline", oid::INT4)]);
    server.data_row(&[Some("77"), Some("1")]);
    server.command_complete("IDENTIFY_SYSTEM");
    server.ready_for_query();
    server.copy_both_response();
    server.wal_data(treering_types::Lsn(8), treering_types::Lsn(8), 0, b"");
    let mut input = BytesMut::from(&server.take()[..]);
    let mut out = BytesMut::new();
    let mut reply = Reply::to_query("IDENTIFY_SYSTEM", &mut out).unwrap();
    let Some(Outcome::Done(results)) = reply.receive(&mut input).unwrap() else { panic!() };
    assert_eq!(results[0].text(0, "systemid"), Some("77"));
    assert_eq!((results[0].text(0, "nothing"), results[0].tag.as_str()), (None, "IDENTIFY_SYSTEM"));
    let copy = Reply::default().receive(&mut input).unwrap();
    assert!(matches!(copy, Some(Outcome::Copy { direction: CopyDirection::Both, .. })));
    assert_eq!(input[0], b'd', "the copy's bytes stay in the buffer");
}

#[test]
fn an_error_waits_for_ready() {
    let mut server = Writer::new();
    server.error(&Report::error(sqlstate::UNDEFINED_FILE, "requested WAL segment removed"));
    let mut input = BytesMut::from(&server.take()[..]);
    let mut reply = Reply::default();
    assert!(reply.receive(&mut input).unwrap().is_none());
    server.ready_for_query();
    input.extend_from_slice(&server.take());
    let error = reply.receive(&mut input).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Gone);
    server.error(&Report::new(Severity::Fatal, sqlstate::ADMIN_SHUTDOWN, "bye"));
    let mut input = BytesMut::from(&server.take()[..]);
    assert_eq!(Reply::default().receive(&mut input).unwrap_err().kind(), ErrorKind::Shutdown);
}

proptest! {
    #[test]
    fn hostile_bytes_never_panic(
        messages in prop::collection::vec(
            (prop::sample::select(b"RSKZETDCNHWdcI".to_vec()),
             prop::collection::vec(any::<u8>(), 0..30), 0u32..14),
            1..6,
        ),
    ) {
        let mut server = Writer::new();
        for (tag, body, kind) in messages {
            server.message(tag, |out| {
                if tag == b'R' {
                    out.extend_from_slice(&kind.to_be_bytes());
                }
                out.extend_from_slice(&body);
            });
        }
        let stream = server.take();
        let (mut handshake, mut out) = handshake(Some("x"));
        let _ = handshake.receive(&mut BytesMut::from(&stream[..]), &mut out);
        let _ = Reply::default().receive(&mut BytesMut::from(&stream[..]));
    }
}
