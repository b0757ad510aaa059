//! The simple queries of the page service.

use std::str::FromStr;

use treering_types::{Lsn, TenantId, TimelineId};

use crate::error::ServiceError;

/// One query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Pagestream { tenant: TenantId, timeline: TimelineId },
    Basebackup { tenant: TenantId, timeline: TimelineId, lsn: Lsn },
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
            ["basebackup", tenant, timeline, lsn] => Ok(Command::Basebackup {
                tenant: parsed("tenant", tenant)?,
                timeline: parsed("timeline", timeline)?,
                lsn: parsed("lsn", lsn)?,
            }),
            _ => Err(ServiceError::Invalid {
                field: None,
                message:
                    "expected `pagestream_v3 TENANT TIMELINE` or `basebackup TENANT TIMELINE LSN`"
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
        assert!(matches!(found, Ok(Command::Basebackup { lsn: Lsn(0x16B3748), .. })));
        assert!(format!("pagestream_v3 {id} {id}").parse::<Command>().is_ok());
        for bad in ["", "SELECT 1", "basebackup x y z", &format!("basebackup {id} {id}")] {
            assert!(bad.parse::<Command>().is_err(), "{bad}");
        }
    }
}
