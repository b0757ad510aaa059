//! The simple queries of the page service.

use std::str::FromStr;

use treering_types::{Lsn, TenantId, TimelineId};

use crate::{basebackup::Contents, error::ServiceError};

/// One query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Pagestream { tenant: TenantId, timeline: TimelineId },
    LsnLease { tenant: TenantId, timeline: TimelineId },
    Basebackup { tenant: TenantId, timeline: TimelineId, lsn: Lsn, contents: Contents },
}

impl FromStr for Command {
    type Err = ServiceError;

    fn from_str(text: &str) -> Result<Command, ServiceError> {
        let words: Vec<&str> = text.trim().trim_end_matches(';').split_ascii_whitespace().collect();
        match words.as_slice() {
            ["pagestream_v3", tenant, timeline] => Ok(Command::Pagestream {
                tenant: parsed("tenant", tenant)?,
                timeline: parsed("timeline", timeline)?,
            }),
            ["lsn_lease_v1", tenant, timeline] => Ok(Command::LsnLease {
                tenant: parsed("tenant", tenant)?,
                timeline: parsed("timeline", timeline)?,
            }),
            ["basebackup", tenant, timeline, lsn, rest @ ..] if matches!(rest, [] | ["lazy"]) => {
                Ok(Command::Basebackup {
                    tenant: parsed("tenant", tenant)?,
                    timeline: parsed("timeline", timeline)?,
                    lsn: parsed("lsn", lsn)?,
                    contents: if rest.is_empty() { Contents::Whole } else { Contents::Lazy },
                })
            }
            _ => Err(ServiceError::Invalid {
                field: None,
                message:
                    "expected `pagestream_v3 TENANT TIMELINE`, `lsn_lease_v1 TENANT TIMELINE` or \
                     `basebackup TENANT TIMELINE LSN [lazy]`"
                        .to_owned(),
                hint: None,
            }),
        }
    }
}

fn parsed<T: FromStr<Err: std::fmt::Display>>(field: &str, text: &str) -> Result<T, ServiceError> {
    text.parse().map_err(|error: T::Err| ServiceError::invalid(field, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands() {
        let id = "000102030405060708090a0b0c0d0eff";
        let found = format!("basebackup {id} {id} 0/16B3748;").parse::<Command>();
        assert!(matches!(
            found,
            Ok(Command::Basebackup { lsn: Lsn(0x16B3748), contents: Contents::Whole, .. })
        ));
        let found = format!("basebackup {id} {id} 0/16B3748 lazy").parse::<Command>();
        assert!(matches!(found, Ok(Command::Basebackup { contents: Contents::Lazy, .. })));
        assert!(format!("pagestream_v3 {id} {id}").parse::<Command>().is_ok());
        let found = format!("lsn_lease_v1 {id} {id}").parse::<Command>();
        assert!(matches!(found, Ok(Command::LsnLease { .. })));
        let eager = format!("basebackup {id} {id} 0/16B3748 eager");
        for bad in [
            "",
            "SELECT 1",
            "basebackup x y z",
            "lsn_lease_v1 x",
            &format!("basebackup {id} {id}"),
            &eager,
        ] {
            assert!(bad.parse::<Command>().is_err(), "{bad}");
        }
    }
}
