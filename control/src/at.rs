//! "At": the moment a branch is taken at, as people write it.

use jiff::{Span, Timestamp};
use treering_types::Lsn;

use crate::error::ApiError;

/// A point in a branch's history.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum At {
    Lsn(Lsn),
    Time(Timestamp),
}

/// Reads an LSN (`0/16B3748`), an RFC 3339 time, or a time back from now (`30m ago`, `2h ago`).
///
/// # Errors
/// Text of another form, an unknown unit, a time after `now`.
pub fn parse(text: &str, now: Timestamp) -> Result<At, ApiError> {
    let text = text.trim();
    if let Ok(lsn) = text.parse() {
        return Ok(At::Lsn(lsn));
    }
    let time = match text.strip_suffix("ago") {
        Some(back) => {
            let span: Span = back.trim().parse().map_err(|_| unreadable(text))?;
            now.checked_sub(span).map_err(|_| unreadable(text))?
        }
        None => text.parse().map_err(|_| unreadable(text))?,
    };
    if time > now {
        return Err(ApiError::invalid("at", format!("{time} is in the future; it is {now} now")));
    }
    Ok(At::Time(time))
}

fn unreadable(text: &str) -> ApiError {
    ApiError::invalid("at", format!("\"{text}\" is neither a time nor an LSN")).hint(
        "write an RFC 3339 time with its zone (2026-11-21T15:04:05Z), a time back (30m ago), or an LSN (0/16B3748)",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        assert_eq!(parse("0/16B3748", now), Ok(At::Lsn(Lsn(0x16B3748))));
        let past: Timestamp = "2026-11-21T11:30:00Z".parse().unwrap();
        for text in [
            "2026-11-21T11:30:00Z",
            "2026-11-21T12:30:00+01:00",
            "30m ago",
            "30 minutes ago",
            "1800s ago",
        ] {
            assert_eq!(parse(text, now), Ok(At::Time(past)), "{text}");
        }
        for bad in ["", "yesterday", "2026-11-21", "12:00", "2026-11-21T12:00:01Z", "5 parsecs ago"]
        {
            assert!(parse(bad, now).is_err(), "{bad}");
        }
    }
}
