//! The client's side of a connection, sans-IO: [`Handshake`] from the start-up packet to ReadyForQuery, then one
//! [`Reply`] for each simple query.
//!
//! Both are fed whatever arrived and say when they are done; bytes beyond their end stay in the buffer. Password
//! authentication is SCRAM-SHA-256 or nothing: a clear-text or MD5 request is refused, so a password never
//! leaves in a form that a listener could use.

use bytes::{Bytes, BytesMut};
use postgres_protocol::{
    authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256},
    message::frontend,
};
use treering_types::ErrorKind;

use crate::{
    WireError,
    backend::{self, Authentication, Column, Message, Report},
    frame::{BODY_BYTES_MAX, next_frame},
    startup::{CancelKey, StartupMessage},
};

/// The most rows and bytes a [`Reply`] keeps: it is for the small result sets of replication commands.
pub const REPLY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Why a connection or a command failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The server's own report.
    #[error("server says {0}")]
    Server(Box<Report>),
    #[error("server asks for {0}, only SCRAM-SHA-256 is spoken")]
    AuthenticationUnsupported(String),
    #[error("server asks for a password and none was given")]
    PasswordMissing,
    #[error("SCRAM failed: {0}")]
    Scram(std::io::Error),
    #[error("unexpected {what} during {during}")]
    Unexpected { what: String, during: &'static str },
    #[error("a reply grew past {REPLY_BYTES_MAX} bytes")]
    ReplyTooLong,
}

impl ClientError {
    /// What the caller may do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            ClientError::Wire(error) => error.kind(),
            ClientError::Server(report) => kind_of_sqlstate(report.sqlstate()),
            ClientError::AuthenticationUnsupported(_)
            | ClientError::PasswordMissing
            | ClientError::Scram(_)
            | ClientError::Unexpected { .. }
            | ClientError::ReplyTooLong => ErrorKind::Invalid,
        }
    }
}

/// Classes of SQLSTATE that a replication client can act on.
fn kind_of_sqlstate(sqlstate: &str) -> ErrorKind {
    match sqlstate {
        "57P01" | "57P02" => ErrorKind::Shutdown,
        "57P03" | "08006" | "08001" => ErrorKind::Unavailable,
        "3D000" | "42704" => ErrorKind::NotFound,
        // A removed WAL segment, as stock walsenders report it (`undefined_file`).
        "58P01" => ErrorKind::Gone,
        state if state.starts_with("53") => ErrorKind::Busy,
        state if state.starts_with("XX001") => ErrorKind::Corrupt,
        _ => ErrorKind::Invalid,
    }
}

/// A session that has reached its first ReadyForQuery.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Session {
    /// What the server reported, in order.
    pub parameters: Vec<(String, String)>,
    /// Names this session to a cancel request. `None`: a server that sends none, as walsenders may.
    pub cancel_key: Option<CancelKey>,
}

impl Session {
    /// A reported parameter; the last report counts.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().rev().find(|(found, _)| found == name).map(|(_, v)| v.as_str())
    }
}

enum State {
    /// Nothing about authentication heard yet.
    Started,
    /// Our first message is out.
    ScramBegun(Box<ScramSha256>),
    /// Our proof is out.
    ScramProven(Box<ScramSha256>),
    /// The server proved itself; AuthenticationOk must follow.
    ScramDone,
    Authenticated,
}

/// Start-up and authentication.
///
/// ```
/// use bytes::BytesMut;
/// use treering_wire::{backend, client::Handshake, startup::{CancelKey, StartupMessage}};
///
/// let startup = StartupMessage::new([("user", "agent"), ("replication", "true")]);
/// let mut out = BytesMut::new();
/// let mut handshake = Handshake::start(&startup, Some("secret"), &mut out)?;
/// // ... send `out`; then, whenever bytes arrive:
/// let mut server = backend::Writer::new();
/// server.session_start("15.18", &CancelKey { pid: 1, secret: "0000".into() });
/// let mut input = BytesMut::from(&server.take()[..]);
/// let session = handshake.receive(&mut input, &mut out)?.expect("ready");
/// assert_eq!(session.parameter("server_version"), Some("15.18"));
/// # Ok::<(), treering_wire::client::ClientError>(())
/// ```
pub struct Handshake {
    state: State,
    password: Option<Vec<u8>>,
    session: Session,
}

impl Handshake {
    /// Appends the start-up packet to `out`.
    ///
    /// # Errors
    /// A packet above the protocol's limit.
    pub fn start(
        startup: &StartupMessage,
        password: Option<&str>,
        out: &mut BytesMut,
    ) -> Result<Handshake, ClientError> {
        startup.encode(out)?;
        let password = password.map(|text| text.as_bytes().to_vec());
        Ok(Handshake { state: State::Started, password, session: Session::default() })
    }

    /// Takes what arrived in `input`, appends what must be sent to `out`; `Some` once the server is ready. Send `out`
    /// whenever it is not empty, on an error too.
    ///
    /// # Errors
    /// The server's refusal, or a step out of turn. The connection is of no use then.
    pub fn receive(
        &mut self,
        input: &mut BytesMut,
        out: &mut BytesMut,
    ) -> Result<Option<Session>, ClientError> {
        while let Some(frame) = next_frame(input, BODY_BYTES_MAX)? {
            match backend::parse(frame)? {
                Message::Authentication(request) => self.authenticate(request, out)?,
                Message::ErrorResponse(report) => return Err(ClientError::Server(report.into())),
                Message::NoticeResponse(_) | Message::NegotiateProtocolVersion { .. } => {}
                other => {
                    if !matches!(self.state, State::Authenticated) {
                        return Err(unexpected(&other, "authentication"));
                    }
                    match other {
                        Message::ParameterStatus { name, value } => {
                            self.session.parameters.push((name, value));
                        }
                        Message::BackendKeyData(key) => self.session.cancel_key = Some(key),
                        Message::ReadyForQuery(_) => {
                            return Ok(Some(std::mem::take(&mut self.session)));
                        }
                        other => return Err(unexpected(&other, "start-up")),
                    }
                }
            }
        }
        Ok(None)
    }

    fn authenticate(
        &mut self,
        request: Authentication,
        out: &mut BytesMut,
    ) -> Result<(), ClientError> {
        let state = std::mem::replace(&mut self.state, State::Started);
        self.state = match (state, request) {
            (State::Started | State::ScramDone, Authentication::Ok) => State::Authenticated,
            (State::Started, Authentication::Sasl(mechanisms)) => {
                State::ScramBegun(self.scram_begin(&mechanisms, out)?)
            }
            (State::ScramBegun(mut scram), Authentication::SaslContinue(data)) => {
                scram.update(&data).map_err(ClientError::Scram)?;
                frontend::sasl_response(scram.message(), out).map_err(ClientError::Scram)?;
                State::ScramProven(scram)
            }
            (State::ScramProven(mut scram), Authentication::SaslFinal(data)) => {
                scram.finish(&data).map_err(ClientError::Scram)?;
                State::ScramDone
            }
            (_, Authentication::CleartextPassword) => return unsupported("a clear-text password"),
            (_, Authentication::Md5Password { .. }) => return unsupported("an MD5 password"),
            (_, Authentication::Other(number)) => {
                return unsupported(&format!("authentication method {number}"));
            }
            (_, request) => {
                let what = format!("{request:?}");
                return Err(ClientError::Unexpected { what, during: "authentication" });
            }
        };
        Ok(())
    }

    fn scram_begin(
        &self,
        mechanisms: &[String],
        out: &mut BytesMut,
    ) -> Result<Box<ScramSha256>, ClientError> {
        if !mechanisms.iter().any(|name| name == SCRAM_SHA_256) {
            return Err(ClientError::AuthenticationUnsupported(mechanisms.join(", ")));
        }
        let password = self.password.as_deref().ok_or(ClientError::PasswordMissing)?;
        let scram = Box::new(ScramSha256::new(password, ChannelBinding::unsupported()));
        frontend::sasl_initial_response(SCRAM_SHA_256, scram.message(), out)
            .map_err(ClientError::Scram)?;
        Ok(scram)
    }
}

fn unsupported(what: &str) -> Result<(), ClientError> {
    Err(ClientError::AuthenticationUnsupported(what.to_owned()))
}

fn unexpected(message: &Message, during: &'static str) -> ClientError {
    // The variant's name is enough, and the contents may be anything.
    let debug = format!("{message:?}");
    let name = debug.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
    ClientError::Unexpected { what: name.to_owned(), during }
}

/// One result set, values in text format.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ResultSet {
    pub columns: Vec<Column>,
    pub rows: Vec<Vec<Option<Bytes>>>,
    /// Command tag; empty when the server sent none.
    pub tag: String,
}

impl ResultSet {
    /// A value as text; `None` for null, for what is not there, and for what is not UTF-8.
    pub fn text(&self, row: usize, column: &str) -> Option<&str> {
        let at = self.columns.iter().position(|found| found.name == column)?;
        let value = self.rows.get(row)?.get(at)?.as_ref()?;
        std::str::from_utf8(value).ok()
    }
}

/// How a query ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// ReadyForQuery: the connection takes the next query.
    Done(Vec<ResultSet>),
    /// A copy has begun: from here on the stream belongs to the copy. Result sets that came before it are included.
    Copy { direction: CopyDirection, before: Vec<ResultSet> },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CopyDirection {
    In,
    Out,
    Both,
}

/// Collects the answer to one simple query.
#[derive(Debug, Default)]
pub struct Reply {
    finished: Vec<ResultSet>,
    current: Option<ResultSet>,
    error: Option<Box<Report>>,
    bytes: usize,
}

impl Reply {
    /// Appends a simple query to `out` and expects its answer.
    ///
    /// # Errors
    /// Text with a NUL in it.
    pub fn to_query(text: &str, out: &mut BytesMut) -> Result<Reply, ClientError> {
        frontend::query(text, out).map_err(|_| WireError::NotText { what: "query" })?;
        Ok(Reply::default())
    }

    /// Takes what arrived; `Some` at the end of the answer. After [`Outcome::Copy`] has ended with CopyDone, a new
    /// `Reply::default()` reads what follows up to ReadyForQuery.
    ///
    /// # Errors
    /// The server's report, given once ReadyForQuery has come (or the report was fatal): the connection is
    /// usable after a plain error. Anything else makes it unusable.
    pub fn receive(&mut self, input: &mut BytesMut) -> Result<Option<Outcome>, ClientError> {
        while let Some(frame) = next_frame(input, BODY_BYTES_MAX)? {
            self.bytes = self.bytes.saturating_add(frame.body.len());
            if self.bytes > REPLY_BYTES_MAX {
                return Err(ClientError::ReplyTooLong);
            }
            if let Some(outcome) = self.take(backend::parse(frame)?)? {
                return Ok(Some(outcome));
            }
        }
        Ok(None)
    }

    fn take(&mut self, message: Message) -> Result<Option<Outcome>, ClientError> {
        match message {
            Message::RowDescription(columns) => {
                self.current = Some(ResultSet { columns, ..ResultSet::default() });
            }
            Message::DataRow(row) => match &mut self.current {
                Some(result) => result.rows.push(row),
                None => return Err(unexpected(&Message::DataRow(row), "a query")),
            },
            Message::CommandComplete(tag) => {
                let result = self.current.take().unwrap_or_default();
                self.finished.push(ResultSet { tag, ..result });
            }
            Message::ErrorResponse(report) if report.get(backend::field::SEVERITY_CODE) == Some("FATAL") => {
                return Err(ClientError::Server(report.into()));
            }
            Message::ErrorResponse(report) => self.error = Some(report.into()),
            Message::ReadyForQuery(_) => {
                return match self.error.take() {
                    Some(report) => Err(ClientError::Server(report)),
                    None => Ok(Some(Outcome::Done(std::mem::take(&mut self.finished)))),
                };
            }
            Message::CopyInResponse => return Ok(Some(self.copy(CopyDirection::In))),
            Message::CopyOutResponse => return Ok(Some(self.copy(CopyDirection::Out))),
            Message::CopyBothResponse => return Ok(Some(self.copy(CopyDirection::Both))),
            Message::NoticeResponse(_)
            | Message::ParameterStatus { .. }
            | Message::EmptyQueryResponse
            | Message::Other(b'A')
            // A sender may still be sending when we end a copy.
            | Message::CopyData(_)
            | Message::CopyDone => {}
            other => return Err(unexpected(&other, "a query")),
        }
        Ok(None)
    }

    fn copy(&mut self, direction: CopyDirection) -> Outcome {
        Outcome::Copy { direction, before: std::mem::take(&mut self.finished) }
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
