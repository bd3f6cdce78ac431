//! What the guest puts into the vsock device's queues.

use hypervisor::vsock::packet::{HEADER_LEN, Header};

use crate::Target;

pub(crate) const TARGETS: &[Target] = &[Target {
    name: "vsock_header",
    run: header,
    seeds: headers,
}];

fn header(data: &[u8]) {
    if let Ok(header) = Header::parse(data) {
        assert_eq!(
            &header.to_bytes()[..],
            &data[..HEADER_LEN],
            "what was read is what was there"
        );
    }
}

fn headers() -> Vec<Vec<u8>> {
    // Operations are 1 to 7; each with ports, flags and credit that differ.
    (1..=7)
        .map(|op: u8| {
            let mut bytes = vec![0; HEADER_LEN];
            bytes[0] = 3;
            bytes[8] = 2;
            bytes[16..18].copy_from_slice(&[0, 4]);
            bytes[20..22].copy_from_slice(&[6, 4]);
            bytes[28] = 1;
            bytes[30] = op;
            bytes[38] = op;
            bytes
        })
        .collect()
}
