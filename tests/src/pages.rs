//! A client of the page service.

use std::{
    io::{Read, Write},
    net::TcpStream,
};

use bytes::{Bytes, BytesMut};
use postgres_protocol::message::frontend;
use treering_types::{Lsn, RelTag};
use treering_wire::{
    backend::{self, Message},
    client::{Handshake, Outcome, Reply},
    frame::{BODY_BYTES_MAX, next_frame},
    pagestream::{Answer, Header, Question, Request, Response},
    startup::StartupMessage,
};

/// A `pagestream_v3` connection on one timeline.
pub struct Pages {
    stream: TcpStream,
    input: BytesMut,
    next_id: u64,
}

impl Pages {
    /// Connects to `address` (`host:port`) for one timeline.
    pub fn connect(address: &str, tenant: &str, timeline: &str) -> Pages {
        let stream = TcpStream::connect(address).expect("connect to the page service");
        stream.set_nodelay(true).expect("nodelay");
        let mut pages = Pages { stream, input: BytesMut::new(), next_id: 1 };
        let startup = StartupMessage::new([("user", "test"), ("database", "postgres")]);
        let mut out = BytesMut::new();
        let mut handshake = Handshake::start(&startup, None, &mut out).expect("start-up");
        loop {
            pages.send(&mut out);
            if handshake.receive(&mut pages.input, &mut out).expect("handshake").is_some() {
                break;
            }
            pages.receive();
        }
        let query = format!("pagestream_v3 {tenant} {timeline}");
        let mut reply = Reply::to_query(&query, &mut out).expect("query");
        pages.send(&mut out);
        loop {
            match reply.receive(&mut pages.input).expect("pagestream") {
                Some(Outcome::Copy { .. }) => return pages,
                Some(Outcome::Done(_)) => panic!("no copy began"),
                None => pages.receive(),
            }
        }
    }

    fn send(&mut self, out: &mut BytesMut) {
        self.stream.write_all(out).expect("send");
        out.clear();
    }

    fn receive(&mut self) {
        let mut buffer = [0; 64 * 1024];
        let read = self.stream.read(&mut buffer).expect("receive");
        assert!(read > 0, "the page service closed the connection");
        self.input.extend_from_slice(&buffer[..read]);
    }

    /// Asks one question and waits for its answer.
    pub fn ask(&mut self, lsn: Lsn, question: Question) -> Answer {
        self.ask_all(lsn, [question]).pop().expect("one answer")
    }

    /// Asks many questions at once; answers in order.
    pub fn ask_all(
        &mut self,
        lsn: Lsn,
        questions: impl IntoIterator<Item = Question>,
    ) -> Vec<Answer> {
        let mut out = BytesMut::new();
        let mut asked = 0;
        for question in questions {
            let header = Header { request_id: self.next_id, lsn, not_modified_since: lsn };
            self.next_id += 1;
            asked += 1;
            let mut payload = BytesMut::new();
            Request { header, question }.encode(&mut payload);
            frontend::CopyData::new(&payload[..]).expect("a short request").write(&mut out);
        }
        self.send(&mut out);
        let mut answers = Vec::new();
        while answers.len() < asked {
            match next_frame(&mut self.input, BODY_BYTES_MAX).expect("frame") {
                None => self.receive(),
                Some(frame) => match backend::parse(frame).expect("message") {
                    Message::CopyData(payload) => {
                        answers.push(Response::parse(payload).expect("response").answer);
                    }
                    Message::ErrorResponse(report) => panic!("page service: {report}"),
                    _ => {}
                },
            }
        }
        answers
    }

    /// One page.
    pub fn page(&mut self, rel: RelTag, block: u32, lsn: Lsn) -> Result<Bytes, String> {
        match self.ask(lsn, Question::Page { rel, block }) {
            Answer::Page { page, .. } => Ok(page),
            Answer::Error { message } => Err(message),
            other => panic!("{other:?}"),
        }
    }

    /// Blocks of a relation fork; zero when it does not exist.
    pub fn blocks(&mut self, rel: RelTag, lsn: Lsn) -> u32 {
        match self.ask(lsn, Question::Blocks(rel)) {
            Answer::Blocks { blocks, .. } => blocks,
            Answer::Error { .. } => 0,
            other => panic!("{other:?}"),
        }
    }
}
