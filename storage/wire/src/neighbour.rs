//! The door for neighbours: who listens on a loopback address is to be had over a Unix socket as well.
//!
//! Between processes of one host TCP costs about twice a Unix socket. Abstract names (unix(7)) belong to a network
//! namespace, like its loopback addresses, and end with who bound them.

use std::net::SocketAddr;

/// The abstract name, with the zero byte that it begins with; `None` for an address that others may reach.
pub fn abstract_name(address: SocketAddr) -> Option<String> {
    address.ip().is_loopback().then(|| format!("\0treering-pageserver-{address}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_has_a_name() {
        let name = |address: &str| abstract_name(address.parse().unwrap());
        assert_eq!(
            name("127.0.0.1:64000"),
            Some("\0treering-pageserver-127.0.0.1:64000".to_owned())
        );
        assert_eq!(name("[::1]:64000"), Some("\0treering-pageserver-[::1]:64000".to_owned()));
        assert_eq!(name("0.0.0.0:64000"), None);
        assert_eq!(name("192.0.2.1:64000"), None);
    }
}
