use bytes::Bytes;
use proptest::prelude::*;
use treering_wire::{
    backend::{Report, Severity, Writer, field, sqlstate},
    startup::CancelKey,
};

use super::*;

const PID: i32 = 4711;

fn warning(routine: &str) -> Report {
    Report::new(Severity::Warning, sqlstate::WARNING, "waiting was given up")
        .detail("The transaction has already committed locally.")
        .with(b'F', "syncrep.c")
        .with(field::ROUTINE, routine)
}

/// A session's messages, each with what it is to the test.
fn session(hide_notice: bool) -> Vec<Vec<u8>> {
    let one = |build: &dyn Fn(&mut Writer)| {
        let mut out = Writer::new();
        build(&mut out);
        out.take().to_vec()
    };
    let key = CancelKey { pid: PID, secret: Bytes::from_static(b"abcd") };
    let mut messages = vec![
        one(&|out| out.authentication_ok()),
        one(&|out| out.parameter_status("server_version", "15.18")),
        one(&|out| out.backend_key_data(&key)),
        one(&|out| out.ready_for_query()),
        one(&|out| out.notice(&warning("exec_stmt_raise"))),
        one(&|out| out.data_row(&[Some("SyncRepWaitForLSN")])),
        one(&|out| out.command_complete("SELECT 1")),
        one(&|out| out.ready_for_query()),
    ];
    if !hide_notice {
        messages.push(one(&|out| out.notice(&warning("SyncRepWaitForLSN"))));
    }
    messages.push(one(&|out| out.command_complete("COMMIT")));
    messages.push(one(&|out| out.ready_for_query()));
    messages
}

/// Feeds the session in pieces and answers how many bytes had gone out at each hold, and in all.
fn run(stream: &[u8], cuts: &[usize], logged_from: Option<usize>) -> (Vec<usize>, usize) {
    let (mut filter, mut sent, mut holds) = (Filter::default(), 0, Vec::new());
    let mut logged = logged_from.is_some();
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (stream.len() + 1)).collect();
    ends.push(stream.len());
    ends.sort_unstable();
    for end in ends {
        loop {
            // The log shows the warning once the backend has sent what comes after it.
            let seen = logged && logged_from.is_some_and(|from| sent.max(end) > from);
            let mut asked = false;
            let from = logged_from.unwrap_or_default();
            let step = filter
                .scan(&stream[sent..end], |pid| {
                    assert_eq!(pid, PID);
                    asked = seen && end > from;
                    asked
                })
                .unwrap();
            sent += step.forward;
            if !step.hold {
                break;
            }
            logged &= !asked;
            holds.push(sent);
            let again = filter.scan(&stream[sent..end], |_| false).unwrap();
            assert_eq!(again, Step { forward: 0, hold: true }, "held until released");
            filter.release();
        }
    }
    (holds, sent)
}

#[test]
fn holds_right_after_the_notice_wherever_the_stream_is_cut() {
    let messages = session(false);
    let stream = messages.concat();
    let after_notice: usize = messages[..9].iter().map(Vec::len).sum();
    for cut in 0..=stream.len() {
        for second in [0, 1, 5, 6] {
            let (holds, sent) = run(&stream, &[cut, cut + second], None);
            assert_eq!((holds, sent), (vec![after_notice], stream.len()), "cut at {cut}");
        }
    }
    let every: Vec<usize> = (0..stream.len()).collect();
    assert_eq!(run(&stream, &every, None), (vec![after_notice], stream.len()));
}

#[test]
fn holds_before_the_command_complete_of_a_hidden_notice() {
    let messages = session(true);
    let stream = messages.concat();
    let before_complete: usize = messages[..8].iter().map(Vec::len).sum();
    for cut in 0..=stream.len() {
        let (mut filter, mut sent) = (Filter::default(), 0);
        // Up to the commit nothing is logged.
        let quiet = filter.scan(&stream[..cut.min(before_complete)], |_| false).unwrap();
        sent += quiet.forward;
        let quiet = filter.scan(&stream[sent..before_complete], |_| false).unwrap();
        sent += quiet.forward;
        assert_eq!((sent, quiet.hold), (before_complete, false));
        // Of a header in pieces nothing goes out before the question is answered.
        let short = filter.scan(&stream[sent..sent + 4], |_| true).unwrap();
        assert_eq!(short, Step { forward: 0, hold: false });
        let held = filter.scan(&stream[sent..], |_| true).unwrap();
        assert_eq!(held, Step { forward: 0, hold: true });
        filter.release();
        let rest = filter.scan(&stream[sent..], |_| false).unwrap();
        assert_eq!(rest, Step { forward: stream.len() - sent, hold: false });
    }
}

#[test]
fn a_warning_that_comes_while_held_holds_again() {
    let stream = session(true).concat();
    let mut filter = Filter::default();
    // Asked at the first ReadyForQuery already: a log line of an earlier backend with this pid costs one wait.
    let first = filter.scan(&stream, |_| true).unwrap();
    assert!(first.hold);
    filter.release();
    let again = filter.scan(&stream[first.forward..], |_| true).unwrap();
    assert_eq!(again, Step { forward: 0, hold: true });
}

#[test]
fn the_process_is_known_once_it_was_told() {
    let messages = session(false);
    let stream = messages.concat();
    let until_pid = messages[..2].iter().map(Vec::len).sum::<usize>() + HEADER_SIZE + PID_BYTES;
    let mut filter = Filter::default();
    let step = filter.scan(&stream[..until_pid - 1], |_| false).unwrap();
    assert_eq!((step.forward, filter.backend_pid()), (until_pid - 1, None));
    filter.scan(&stream[until_pid - 1..until_pid], |_| false).unwrap();
    assert_eq!(filter.backend_pid(), Some(PID));
}

#[test]
fn near_misses_do_not_hold() {
    for routine in ["SyncRepWaitForLS", "SyncRepWaitForLSNs", "xSyncRepWaitForLSN", "", "S"] {
        let mut out = Writer::new();
        let report =
            warning(routine).with(b'M', "SyncRepWaitForLSN").with(b'D', "RSyncRepWaitForLSN");
        out.notice(&report);
        let stream = out.take();
        let step = Filter::default().scan(&stream, |_| false).unwrap();
        assert_eq!(step, Step { forward: stream.len(), hold: false }, "{routine}");
    }
    let mut out = Writer::new();
    out.message(b'N', |body| body.extend_from_slice(b"\0RSyncRepWaitForLSN\0\0"));
    assert!(!Filter::default().scan(&out.take(), |_| false).unwrap().hold, "after the list's end");
}

proptest! {
    #[test]
    fn any_cuts_any_log_moment(
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        hide: bool,
    ) {
        let messages = session(hide);
        let stream = messages.concat();
        let cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
        let until: usize = messages[..messages.len() - 2].iter().map(Vec::len).sum();
        let (holds, sent) = run(&stream, &cuts, hide.then_some(until));
        prop_assert_eq!(sent, stream.len());
        if hide {
            // The log may be seen early, never late.
            prop_assert_eq!(holds.len(), 1);
            prop_assert!(holds[0] <= until);
        } else {
            prop_assert_eq!(holds, vec![until]);
        }
    }

    #[test]
    fn hostile_bytes_never_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        tags in prop::collection::vec(prop::sample::select(b"NKCZD".to_vec()), 1..5),
    ) {
        let _ = Filter::default().scan(&bytes, |_| false);
        let mut out = Writer::new();
        for (tag, body) in tags.iter().zip(bytes.chunks(60)) {
            out.message(*tag, |out| out.extend_from_slice(body));
        }
        let stream = out.take();
        let mut filter = Filter::default();
        let mut sent = 0;
        while let Ok(step) = filter.scan(&stream[sent..], |_| false) {
            sent += step.forward;
            if !step.hold {
                break;
            }
            filter.release();
        }
        prop_assert_eq!(sent, stream.len());
    }
}
