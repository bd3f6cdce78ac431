//! The one rule of nf_tables in the pod's namespace: `oif lo meta l4proto tcp redirect to :PORT`, in a table
//! that its socket owns, so that it is gone with that.
//!
//! Written here, since `nft` need not be on a node, and the crates for it bind a library of the system.
//! Formats: `linux/netfilter/nf_tables.h`; numbers are big-endian but for what is compared with packets.
//!
//! ```text
//!   batch begin │ new table (owned) │ new chain (nat, output) │ new rule │ batch end
//! ```

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

/// The table's name, in a namespace that is the pod's.
const TABLE: &str = "cloister-forward";
const CHAIN: &str = "output";
/// `struct nlmsghdr`, in bytes.
const HEADER: usize = 16;
/// Messages that are answered: table, chain, rule.
const ANSWERS: usize = 3;
/// The index of the loopback, in every namespace.
const LOOPBACK: u32 = 1;
const TCP: u8 = 6;

/// Flags of a message (netlink(7)).
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
/// Kinds of messages.
const ERROR: u16 = 2;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const NEW_CHAIN: u16 = (SUBSYSTEM << 8) | 3;
const NEW_RULE: u16 = (SUBSYSTEM << 8) | 6;
/// Both versions of IP.
const INET: u8 = 1;
const NESTED: u16 = 0x8000;

/// The rule, for as long as it is held.
#[derive(Debug)]
pub(super) struct Rule {
    _owner: Socket,
}

impl Rule {
    /// Makes it in the thread's namespace: connections to the loopback go to `port` of it.
    ///
    /// # Errors
    /// What the kernel answers; without nf_tables or its nat it does not know the message.
    pub(super) fn add(port: u16) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.send(&batch(port), 0)?;
        let mut answers = 0;
        while answers < ANSWERS {
            let (bytes, sender) = socket.recv_from_full()?;
            if sender.port_number() == 0 {
                answers += outcome(&bytes)?;
            }
        }
        Ok(Self { _owner: socket })
    }
}

/// How many messages a datagram says were done.
fn outcome(bytes: &[u8]) -> io::Result<usize> {
    let mut rest = bytes;
    let mut done = 0;
    while let Some((header, body)) = rest.split_at_checked(HEADER) {
        let length = usize::try_from(native(header, 0)).unwrap_or(usize::MAX);
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        if length < HEADER {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if kind == ERROR && body.len() >= 4 {
            match native(body, 0).cast_signed() {
                0 => done += 1,
                code => {
                    let cause = io::Error::from_raw_os_error(code.saturating_neg());
                    let text = format!(
                        "nf_tables: {cause}: load the kernel's modules nf_tables, nft_chain_nat and nft_redir"
                    );
                    return Err(io::Error::new(cause.kind(), text));
                }
            }
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(done)
}

fn native(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
    word.map(u32::from_ne_bytes).unwrap_or_default()
}

fn batch(port: u16) -> Vec<u8> {
    let (hook_number, hook_priority) = (3_u32, -100_i32);
    let table = [text(1, TABLE), number(2, 2)].concat();
    let hook = [
        number(1, hook_number),
        attribute(2, &hook_priority.to_be_bytes()),
    ]
    .concat();
    let chain = [
        text(1, TABLE),
        text(3, CHAIN),
        nested(4, &hook),
        text(7, "nat"),
    ]
    .concat();
    let rule = [
        text(1, TABLE),
        text(2, CHAIN),
        nested(4, &expressions(port)),
    ]
    .concat();
    [
        message(BATCH_BEGIN, REQUEST, 0, SUBSYSTEM, &[]),
        message(NEW_TABLE, REQUEST | ACK | CREATE, INET, 0, &table),
        message(NEW_CHAIN, REQUEST | ACK | CREATE, INET, 0, &chain),
        message(NEW_RULE, REQUEST | ACK | CREATE | APPEND, INET, 0, &rule),
        message(BATCH_END, REQUEST, 0, SUBSYSTEM, &[]),
    ]
    .concat()
}

/// What the rule does, step by step; all through the first register.
fn expressions(port: u16) -> Vec<u8> {
    const REGISTER: u32 = 1;
    let (out_interface, transport) = (5, 16);
    let load = |key| [number(1, REGISTER), number(2, key)].concat();
    let value = |bytes: &[u8]| attribute(1, bytes);
    let equals =
        |bytes: &[u8]| [number(1, REGISTER), number(2, 0), nested(3, &value(bytes))].concat();
    let immediate = [number(1, REGISTER), nested(2, &value(&port.to_be_bytes()))].concat();
    let redirect = [number(1, REGISTER), number(2, REGISTER), number(3, 2)].concat();
    [
        expression("meta", &load(out_interface)),
        expression("cmp", &equals(&LOOPBACK.to_ne_bytes())),
        expression("meta", &load(transport)),
        expression("cmp", &equals(&[TCP])),
        expression("immediate", &immediate),
        expression("redir", &redirect),
    ]
    .concat()
}

fn expression(name: &str, data: &[u8]) -> Vec<u8> {
    nested(1, &[text(1, name), nested(2, data)].concat())
}

fn message(kind: u16, flags: u16, family: u8, resource: u16, attributes: &[u8]) -> Vec<u8> {
    let length = HEADER + 4 + attributes.len();
    let mut bytes = Vec::with_capacity(length);
    bytes.extend(u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // Sequence and sender: answers come in order, to the socket that asked.
    bytes.extend([0; 8]);
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(attributes);
    bytes
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = 4 + value.len();
    let mut bytes = Vec::with_capacity(length.next_multiple_of(4));
    bytes.extend(u16::try_from(length).unwrap_or(u16::MAX).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(length.next_multiple_of(4), 0);
    bytes
}

fn nested(kind: u16, value: &[u8]) -> Vec<u8> {
    attribute(kind | NESTED, value)
}

fn number(kind: u16, value: u32) -> Vec<u8> {
    attribute(kind, &value.to_be_bytes())
}

fn text(kind: u16, value: &str) -> Vec<u8> {
    attribute(kind, &[value.as_bytes(), &[0]].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_say_their_own_length() {
        assert_eq!(text(1, "abc"), [8, 0, 1, 0, b'a', b'b', b'c', 0]);
        assert_eq!(attribute(2, &[7]), [5, 0, 2, 0, 7, 0, 0, 0]);
        assert_eq!(number(2, 258), [8, 0, 2, 0, 0, 0, 1, 2]);
        assert_eq!(nested(4, &[]), [4, 0, 4, 0x80]);
    }

    #[test]
    fn answers_are_counted_and_refusals_are_errors() {
        let answer = |code: i32| {
            let mut bytes = 36_u32.to_ne_bytes().to_vec();
            bytes.extend(ERROR.to_ne_bytes());
            bytes.resize(HEADER, 0);
            bytes.extend(code.to_ne_bytes());
            bytes.resize(36, 0);
            bytes
        };
        let done = [answer(0), answer(0)].concat();
        assert_eq!(outcome(&done).unwrap(), 2);
        let refused = outcome(&[answer(0), answer(-95)].concat()).unwrap_err();
        assert!(refused.to_string().contains("nft_redir"), "{refused}");
        assert!(outcome(&[0; HEADER]).is_err());
    }

    #[test]
    fn a_batch_is_whole_messages() {
        let batch = batch(4711);
        let (mut rest, mut kinds) = (batch.as_slice(), Vec::new());
        while !rest.is_empty() {
            kinds.push(u16::from_ne_bytes([rest[4], rest[5]]));
            rest = &rest[usize::try_from(native(rest, 0)).unwrap()..];
        }
        let wanted = [BATCH_BEGIN, NEW_TABLE, NEW_CHAIN, NEW_RULE, BATCH_END];
        assert_eq!(kinds, wanted);
    }
}
