//! The header of a vsock packet (virtio 1.3 §5.10.6, `struct virtio_vsock_hdr`): 44 bytes, little
//! endian, in front of the payload.
//!
//! ```text
//!   0        8        16       20       24     28     30   32      36          40        44
//!   │src_cid │dst_cid │src_port│dst_port│ len  │ type │ op │ flags │ buf_alloc │ fwd_cnt │
//! ```

/// Bytes of a header.
pub const HEADER_LEN: usize = 44;
/// The most payload of one packet: what Linux sends at once (`VIRTIO_VSOCK_MAX_PKT_BUF_SIZE`).
pub const MAX_PAYLOAD: u32 = 64 << 10;
/// The only socket type that is spoken: a stream.
pub const TYPE_STREAM: u16 = 1;
/// The sender of a SHUTDOWN will receive no more.
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// The sender of a SHUTDOWN will send no more.
pub const SHUTDOWN_SEND: u32 = 2;

/// What a packet is for (virtio 1.3 §5.10.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Op {
    /// Open a connection.
    Request = 1,
    /// The connection is open.
    Response = 2,
    /// The connection is gone, or was refused.
    Reset = 3,
    /// One or both directions end.
    Shutdown = 4,
    /// Payload.
    Data = 5,
    /// Only the credit fields matter.
    CreditUpdate = 6,
    /// Asks for a CREDIT_UPDATE.
    CreditRequest = 7,
}

/// A parsed header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The sender's CID.
    pub src_cid: u64,
    /// The receiver's CID.
    pub dst_cid: u64,
    /// The sender's port.
    pub src_port: u32,
    /// The receiver's port.
    pub dst_port: u32,
    /// Bytes of payload.
    pub len: u32,
    /// [`TYPE_STREAM`], or something that is answered by a reset.
    pub socket_type: u16,
    /// What the packet is for.
    pub op: Op,
    /// Meant for [`Op::Shutdown`].
    pub flags: u32,
    /// Bytes that the sender can hold for this connection.
    pub buf_alloc: u32,
    /// Bytes that the sender's user has taken, modulo 2^32.
    pub fwd_cnt: u32,
}

/// Why bytes are no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Fewer than [`HEADER_LEN`] bytes.
    #[error("a packet of {0} bytes has no room for its header")]
    Short(usize),
    /// An operation that no one knows.
    #[error("unknown operation {0}")]
    Op(u16),
    /// More payload than [`MAX_PAYLOAD`].
    #[error("a payload of {0} bytes is beyond the cap")]
    Len(u32),
}

impl Header {
    /// Parses the first [`HEADER_LEN`] bytes; what follows is not looked at.
    ///
    /// # Errors
    /// [`HeaderError`] for bytes that cannot be answered at all.
    pub fn parse(bytes: &[u8]) -> Result<Self, HeaderError> {
        let Some(bytes) = bytes.first_chunk::<HEADER_LEN>() else {
            return Err(HeaderError::Short(bytes.len()));
        };
        let len = u32_at(bytes, 24);
        if len > MAX_PAYLOAD {
            return Err(HeaderError::Len(len));
        }
        Ok(Self {
            src_cid: u64_at(bytes, 0),
            dst_cid: u64_at(bytes, 8),
            src_port: u32_at(bytes, 16),
            dst_port: u32_at(bytes, 20),
            len,
            socket_type: u16_at(bytes, 28),
            op: Op::try_from(u16_at(bytes, 30))?,
            flags: u32_at(bytes, 32),
            buf_alloc: u32_at(bytes, 36),
            fwd_cnt: u32_at(bytes, 40),
        })
    }

    /// The bytes of the header.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.socket_type.to_le_bytes());
        bytes[30..32].copy_from_slice(&(self.op as u16).to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// The reset that answers this packet where there is no connection.
    #[must_use]
    pub fn reset(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            len: 0,
            socket_type: self.socket_type,
            op: Op::Reset,
            flags: 0,
            buf_alloc: 0,
            fwd_cnt: 0,
        }
    }
}

impl TryFrom<u16> for Op {
    type Error = HeaderError;

    fn try_from(op: u16) -> Result<Self, HeaderError> {
        Ok(match op {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::Data,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => return Err(HeaderError::Op(op)),
        })
    }
}

fn array_at<const N: usize>(bytes: &[u8; HEADER_LEN], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

fn u16_at(bytes: &[u8; HEADER_LEN], at: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, at))
}

fn u32_at(bytes: &[u8; HEADER_LEN], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

fn u64_at(bytes: &[u8; HEADER_LEN], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            src_cid: 3,
            dst_cid: 2,
            src_port: 0x1122_3344,
            dst_port: 1030,
            len: 5,
            socket_type: TYPE_STREAM,
            op: Op::Data,
            flags: 0,
            buf_alloc: 1 << 18,
            fwd_cnt: u32::MAX,
        }
    }

    #[test]
    fn the_fields_are_where_the_specification_has_them() {
        let bytes = header().to_bytes();
        assert_eq!(bytes[0], 3);
        assert_eq!(bytes[8], 2);
        assert_eq!(bytes[16..20], [0x44, 0x33, 0x22, 0x11]);
        assert_eq!(bytes[24], 5);
        assert_eq!(bytes[28..32], [1, 0, 5, 0]);
        assert_eq!(bytes[36..40], [0, 0, 4, 0]);
        assert_eq!(bytes[40..44], [255; 4]);
    }

    #[test]
    fn what_is_written_is_parsed_again() {
        let mut bytes = header().to_bytes().to_vec();
        bytes.extend(b"hello");
        assert_eq!(Header::parse(&bytes), Ok(header()));
    }

    #[test]
    fn malformed_headers_are_named() {
        assert_eq!(Header::parse(&[0; 43]), Err(HeaderError::Short(43)));
        let mut bytes = header().to_bytes();
        bytes[30] = 8;
        assert_eq!(Header::parse(&bytes), Err(HeaderError::Op(8)));
        let mut bytes = header().to_bytes();
        bytes[26] = 2;
        assert_eq!(Header::parse(&bytes), Err(HeaderError::Len(0x2_0005)));
    }

    #[test]
    fn a_reset_goes_back_where_the_packet_came_from() {
        let reset = header().reset();
        assert_eq!((reset.src_cid, reset.dst_cid), (2, 3));
        assert_eq!((reset.src_port, reset.dst_port), (1030, 0x1122_3344));
        assert_eq!(reset.op, Op::Reset);
    }
}
