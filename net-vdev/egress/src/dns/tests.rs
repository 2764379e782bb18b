use super::*;

#[test]
fn servers_are_read_from_resolv_conf() {
    let text = "# a\nnameserver 192.0.2.1\nsearch org\n nameserver\t2001:db8::1 \nnameserver x\n\
                nameserver fe80::1%eth0\nnameserver 1.1.1.1\nnameserver 8.8.8.8\n";
    let expected: Vec<SocketAddr> = ["192.0.2.1:53", "[2001:db8::1]:53", "1.1.1.1:53"]
        .iter()
        .map(|text| text.parse().unwrap())
        .collect();
    assert_eq!(upstreams_of(text), expected);
}
