//! The replication commands, parsed.
//!
//! Keywords are compared without regard to case (stock senders before 15 insist on upper case; all clients send it);
//! identifiers are folded to lower case unless quoted, as everywhere in Postgres.

use treering_types::{ErrorKind, Lsn};

/// A command longer than this is refused unread: the longest stock one, BASE_BACKUP with all options, is a fraction of it.
const COMMAND_BYTES_MAX: usize = 8192;

/// One replication command.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    IdentifySystem,
    /// A setting's name, in lower case unless quoted.
    Show(String),
    TimelineHistory(u32),
    CreateSlot {
        slot: String,
        temporary: bool,
        kind: SlotKind,
        /// `RESERVE_WAL`, in the parenthesised form or the old one.
        reserve_wal: bool,
    },
    DropSlot {
        slot: String,
        wait: bool,
    },
    ReadSlot {
        slot: String,
    },
    StartReplication {
        slot: Option<String>,
        start: Lsn,
        /// `None`: the server's current one.
        timeline: Option<u32>,
    },
    /// START_REPLICATION ... LOGICAL, which our services refuse.
    StartLogical {
        slot: String,
    },
    /// Options in order, names in lower case; a value is `None` where only the name was given. The form without
    /// parentheses of servers before 15 gives the same list.
    BaseBackup {
        options: Vec<(String, Option<String>)>,
    },
}

/// What kind of slot CREATE_REPLICATION_SLOT asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SlotKind {
    Physical,
    Logical { plugin: String },
}

/// Why a text is no replication command.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CommandError {
    #[error("not a replication command: \"{first_word}\"")]
    Unknown { first_word: String },
    #[error("syntax error at or near \"{near}\", expected {expected}")]
    Syntax { near: String, expected: &'static str },
    #[error("unterminated quoted text")]
    Unterminated,
    #[error("command of {bytes} bytes, at most {COMMAND_BYTES_MAX} are read")]
    TooLong { bytes: usize },
}

impl CommandError {
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Invalid
    }
}

impl Command {
    /// Parses one command, with or without a semicolon at its end.
    ///
    /// # Errors
    /// [`CommandError::Unknown`] when the first word names no replication command (the text may be SQL, or a command
    /// of the service's own); [`CommandError::Syntax`] when it does and the rest does not fit.
    pub fn parse(text: &str) -> Result<Command, CommandError> {
        if text.len() > COMMAND_BYTES_MAX {
            return Err(CommandError::TooLong { bytes: text.len() });
        }
        let first_word = first_word(text);
        let command = match first_word.to_ascii_uppercase().as_str() {
            "IDENTIFY_SYSTEM" => |_: &mut Parser| Ok(Command::IdentifySystem),
            "SHOW" => Parser::show,
            "TIMELINE_HISTORY" => Parser::timeline_history,
            "CREATE_REPLICATION_SLOT" => Parser::create_slot,
            "DROP_REPLICATION_SLOT" => Parser::drop_slot,
            "READ_REPLICATION_SLOT" => Parser::read_slot,
            "START_REPLICATION" => Parser::start_replication,
            "BASE_BACKUP" => Parser::base_backup,
            _ => return Err(CommandError::Unknown { first_word: first_word.to_owned() }),
        };
        let mut parser = Parser { tokens: tokens(text)?.into_iter().skip(1).collect::<Vec<_>>() };
        parser.tokens.reverse();
        let parsed = command(&mut parser)?;
        parser.symbol(';');
        match parser.tokens.pop() {
            None => Ok(parsed),
            Some(token) => Err(token.unexpected("the end of the command")),
        }
    }
}

fn first_word(text: &str) -> &str {
    let text = text.trim_start();
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(text.len());
    text.get(..end).unwrap_or_default()
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Token {
    /// Letters, digits, `_`, `$`, `.`, `-` and, for positions, `/`; as written.
    Word(String),
    /// In double quotes.
    Quoted(String),
    /// In single quotes.
    Text(String),
    Symbol(char),
}

impl Token {
    fn unexpected(&self, expected: &'static str) -> CommandError {
        let near = match self {
            Token::Word(text) | Token::Quoted(text) | Token::Text(text) => text.clone(),
            Token::Symbol(symbol) => symbol.to_string(),
        };
        CommandError::Syntax { near, expected }
    }
}

fn tokens(text: &str) -> Result<Vec<Token>, CommandError> {
    let mut chars = text.chars().peekable();
    let mut found = Vec::new();
    while let Some(first) = chars.next() {
        match first {
            blank if blank.is_whitespace() => {}
            quote @ ('"' | '\'') => {
                let mut inner = String::new();
                loop {
                    match chars.next().ok_or(CommandError::Unterminated)? {
                        end if end == quote => {
                            if chars.next_if_eq(&quote).is_none() {
                                break;
                            }
                            inner.push(quote);
                        }
                        other => inner.push(other),
                    }
                }
                found.push(if quote == '"' { Token::Quoted(inner) } else { Token::Text(inner) });
            }
            start if is_word(start) => {
                let mut word = String::from(start);
                while let Some(next) = chars.next_if(|c| is_word(*c)) {
                    word.push(next);
                }
                found.push(Token::Word(word));
            }
            symbol => found.push(Token::Symbol(symbol)),
        }
    }
    Ok(found)
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '$' | '.' | '-' | '/')
}

/// Tokens still to read, the next one last.
struct Parser {
    tokens: Vec<Token>,
}

type Parsed<T> = Result<T, CommandError>;

impl Parser {
    fn take(&mut self, expected: &'static str) -> Parsed<Token> {
        let end = CommandError::Syntax { near: "end of input".to_owned(), expected };
        self.tokens.pop().ok_or(end)
    }

    fn symbol(&mut self, symbol: char) -> bool {
        self.tokens.pop_if(|next| *next == Token::Symbol(symbol)).is_some()
    }

    fn keyword(&mut self, keyword: &str) -> bool {
        let is_it = |next: &mut Token| matches!(next, Token::Word(word) if word.eq_ignore_ascii_case(keyword));
        self.tokens.pop_if(is_it).is_some()
    }

    fn name(&mut self, expected: &'static str) -> Parsed<String> {
        match self.take(expected)? {
            Token::Word(word) => Ok(word.to_ascii_lowercase()),
            Token::Quoted(name) => Ok(name),
            other => Err(other.unexpected(expected)),
        }
    }

    fn timeline(&mut self) -> Parsed<u32> {
        let token = self.take("a timeline number")?;
        match &token {
            Token::Word(word) => word.parse().ok().filter(|number| *number > 0),
            _ => None,
        }
        .ok_or_else(|| token.unexpected("a timeline number"))
    }

    fn lsn(&mut self) -> Parsed<Lsn> {
        let token = self.take("an LSN")?;
        match &token {
            Token::Word(word) => word.parse().ok(),
            _ => None,
        }
        .ok_or_else(|| token.unexpected("an LSN"))
    }

    fn show(&mut self) -> Parsed<Command> {
        self.name("a setting's name").map(Command::Show)
    }

    fn timeline_history(&mut self) -> Parsed<Command> {
        self.timeline().map(Command::TimelineHistory)
    }

    fn read_slot(&mut self) -> Parsed<Command> {
        Ok(Command::ReadSlot { slot: self.name("a slot name")? })
    }

    fn drop_slot(&mut self) -> Parsed<Command> {
        Ok(Command::DropSlot { slot: self.name("a slot name")?, wait: self.keyword("WAIT") })
    }

    fn create_slot(&mut self) -> Parsed<Command> {
        let slot = self.name("a slot name")?;
        let temporary = self.keyword("TEMPORARY");
        let kind = if self.keyword("PHYSICAL") {
            SlotKind::Physical
        } else if self.keyword("LOGICAL") {
            SlotKind::Logical { plugin: self.name("a plugin name")? }
        } else {
            return Err(self.take("PHYSICAL or LOGICAL")?.unexpected("PHYSICAL or LOGICAL"));
        };
        let options = self.options()?;
        let on = |value: &Option<String>| {
            !matches!(value.as_deref(), Some("false" | "off" | "0" | "no"))
        };
        let reserve_wal = options.iter().any(|(name, value)| name == "reserve_wal" && on(value));
        Ok(Command::CreateSlot { slot, temporary, kind, reserve_wal })
    }

    fn start_replication(&mut self) -> Parsed<Command> {
        let slot = match self.keyword("SLOT") {
            true => Some(self.name("a slot name")?),
            false => None,
        };
        if self.keyword("LOGICAL") {
            self.lsn()?;
            self.options()?;
            let slot =
                slot.ok_or(CommandError::Syntax { near: "LOGICAL".into(), expected: "SLOT" });
            return Ok(Command::StartLogical { slot: slot? });
        }
        self.keyword("PHYSICAL");
        let start = self.lsn()?;
        let timeline = match self.keyword("TIMELINE") {
            true => Some(self.timeline()?),
            false => None,
        };
        Ok(Command::StartReplication { slot, start, timeline })
    }

    fn base_backup(&mut self) -> Parsed<Command> {
        self.options().map(|options| Command::BaseBackup { options })
    }

    /// `( name [value], ... )`, or `name [value] ...` up to the end, or nothing.
    fn options(&mut self) -> Parsed<Vec<(String, Option<String>)>> {
        let mut options = Vec::new();
        if self.symbol('(') {
            loop {
                options.push(self.option(true)?);
                if !self.symbol(',') {
                    break;
                }
            }
            return match self.symbol(')') {
                true => Ok(options),
                false => Err(self.take("\")\"")?.unexpected("\")\"")),
            };
        }
        while let Some(Token::Word(_) | Token::Quoted(_)) = self.tokens.last() {
            options.push(self.option(false)?);
        }
        Ok(options)
    }

    fn option(&mut self, closed: bool) -> Parsed<(String, Option<String>)> {
        let name = self.name("an option")?.to_ascii_lowercase();
        Ok((name, self.option_value(closed)))
    }

    /// Outside parentheses a bare word is the next option, not a value; a number is always a value.
    fn option_value(&mut self, closed: bool) -> Option<String> {
        let is_value = |next: &mut Token| match next {
            Token::Text(_) => true,
            Token::Quoted(_) => closed,
            Token::Word(word) => closed || word.bytes().all(|byte| byte.is_ascii_digit()),
            Token::Symbol(_) => false,
        };
        match self.tokens.pop_if(is_value)? {
            Token::Text(value) | Token::Quoted(value) | Token::Word(value) => Some(value),
            Token::Symbol(_) => None,
        }
    }
}

#[cfg(test)]
#[path = "command_tests.rs"]
mod tests;
