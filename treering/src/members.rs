//! Safekeepers on a command line: `ID=ADDRESS`, once for each. An address alone is that of safekeeper 1.

use std::str::FromStr;

use anyhow::{Context, bail, ensure};
use treering_types::NodeId;

/// One address of one safekeeper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub node: NodeId,
    pub address: String,
}

impl FromStr for Member {
    type Err = String;

    fn from_str(text: &str) -> Result<Member, String> {
        let Some((id, address)) = text.split_once('=') else {
            return Ok(Member { node: NodeId(1), address: text.to_owned() });
        };
        let node = id.parse().map_err(|_| format!("\"{id}\" is no number: write ID=ADDRESS"))?;
        Ok(Member { node: NodeId(node), address: address.to_owned() })
    }
}

/// Two addresses of each safekeeper, put together.
///
/// # Errors
/// One that has only one of them, or the same one twice.
pub fn together(
    first: Vec<Member>,
    second: Vec<Member>,
) -> anyhow::Result<Vec<(NodeId, String, String)>> {
    check(&first)?;
    ensure!(first.len() == second.len(), "each safekeeper needs both its addresses");
    let find = |node| second.iter().find(|other| other.node == node);
    let pair = |Member { node, address }| {
        let other =
            find(node).with_context(|| format!("safekeeper {node} has one address only"))?;
        Ok((node, address, other.address.clone()))
    };
    first.into_iter().map(pair).collect()
}

/// # Errors
/// A safekeeper that is named twice.
pub fn check(members: &[Member]) -> anyhow::Result<()> {
    let mut nodes: Vec<_> = members.iter().map(|member| member.node).collect();
    nodes.sort();
    match nodes.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => bail!("safekeeper {} is named twice", pair[0]),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(texts: &[&str]) -> Vec<Member> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn addresses_find_their_safekeeper() {
        let found = together(members(&["2=a:1", "7=b:1"]), members(&["7=http://b", "2=http://a"]));
        let row = |node, first: &str, second: &str| (NodeId(node), first.into(), second.into());
        assert_eq!(found.unwrap(), [row(2, "a:1", "http://a"), row(7, "b:1", "http://b")]);
        assert_eq!(members(&["h:5"]), members(&["1=h:5"]));
        assert!("x=h:5".parse::<Member>().is_err());
        assert!(together(members(&["1=a", "2=b"]), members(&["1=c", "3=d"])).is_err());
        assert!(together(members(&["1=a", "2=b"]), members(&["1=c"])).is_err());
        assert!(together(members(&["1=a", "1=b"]), members(&["1=c", "1=d"])).is_err());
    }
}
