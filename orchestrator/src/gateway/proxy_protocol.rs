//! Who the client is, told to the workload ahead of the client's bytes: PROXY protocol, version 2
//! (<https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt>, §2.2).

use std::net::{IpAddr, SocketAddr};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, a connection on behalf of somebody else.
const PROXY: u8 = 0x21;
const TCP_V4: u8 = 0x11;
const TCP_V6: u8 = 0x21;

/// The header of a connection of `client` to `server`, an address of the host.
pub(super) fn header(client: SocketAddr, server: SocketAddr) -> Vec<u8> {
    let mut header = SIGNATURE.to_vec();
    header.push(PROXY);
    match (client.ip().to_canonical(), server.ip().to_canonical()) {
        (IpAddr::V4(client), IpAddr::V4(server)) => {
            header.extend_from_slice(&[TCP_V4, 0, 12]);
            header.extend_from_slice(&client.octets());
            header.extend_from_slice(&server.octets());
        }
        (client, server) => {
            let octets = |ip: IpAddr| match ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                IpAddr::V6(ip) => ip.octets(),
            };
            header.extend_from_slice(&[TCP_V6, 0, 36]);
            header.extend_from_slice(&octets(client));
            header.extend_from_slice(&octets(server));
        }
    }
    header.extend_from_slice(&client.port().to_be_bytes());
    header.extend_from_slice(&server.port().to_be_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_names_both_ends_in_their_family() {
        let header_of =
            |client: &str, server: &str| header(client.parse().unwrap(), server.parse().unwrap());
        let v4 = header_of("192.0.2.1:5", "198.51.100.2:443");
        let expected =
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\xc6\x33\x64\x02\0\x05\x01\xbb";
        assert_eq!(v4, expected);
        assert_eq!(header_of("[::ffff:192.0.2.1]:5", "[::ffff:198.51.100.2]:443"), v4);
        let v6 = header_of("[2001:db8::1]:5", "[2001:db8::2]:443");
        assert_eq!((v6.len(), &v6[12..16]), (52, &[0x21, 0x21, 0, 36][..]));
    }
}
