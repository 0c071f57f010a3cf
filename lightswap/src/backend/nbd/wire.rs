//! What requests and replies look like on the wire, after the handshake: the NBD protocol's transmission phase with simple replies.

const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;

pub(super) const REQUEST_BYTES: usize = 28;
pub(super) const REPLY_BYTES: usize = 16;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Command {
    Read = 0,
    Write = 1,
    Disconnect = 2,
    Flush = 3,
    Trim = 4,
}

/// The header of a request; `cookie` comes back with its reply.
pub(super) fn request(command: Command, cookie: u64, offset: u64, num_bytes: u32) -> [u8; REQUEST_BYTES] {
    let mut header = [0; REQUEST_BYTES];
    header[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
    header[6..8].copy_from_slice(&(command as u16).to_be_bytes());
    header[8..16].copy_from_slice(&cookie.to_be_bytes());
    header[16..24].copy_from_slice(&offset.to_be_bytes());
    header[24..].copy_from_slice(&num_bytes.to_be_bytes());
    header
}

/// The header of a reply: its error (0 for none) and cookie; `None` if it is no simple reply.
pub(super) fn parse_reply(header: &[u8; REPLY_BYTES]) -> Option<(u32, u64)> {
    let number = |range: std::ops::Range<usize>| u32::from_be_bytes(header[range].try_into().expect("four bytes"));
    let cookie = u64::from_be_bytes(header[8..].try_into().expect("eight bytes"));
    (number(0..4) == SIMPLE_REPLY_MAGIC).then(|| (number(4..8), cookie))
}

/// The errno for an error of the protocol, whose numbers are those of Linux; unknown ones are to be taken as EINVAL, which says less than EIO here.
pub(super) fn errno_of(error: u32) -> i32 {
    match i32::try_from(error) {
        Ok(known @ (libc::EPERM | libc::EIO | libc::ENOMEM | libc::EINVAL | libc::ENOSPC | libc::EOVERFLOW | libc::EOPNOTSUPP | libc::ESHUTDOWN)) => {
            known
        }
        _ => libc::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_big_endian() {
        let header = request(Command::Trim, 0x0102_0304_0506_0708, 0x1112_1314_1516_1718, 0x2122_2324);
        let expected =
            [0x25, 0x60, 0x95, 0x13, 0, 0, 0, 4, 1, 2, 3, 4, 5, 6, 7, 8, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x21, 0x22, 0x23, 0x24];
        assert_eq!(header, expected);
    }

    #[test]
    fn replies_parse() {
        let mut header = [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28, 1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!(parse_reply(&header), Some((28, 0x0102_0304_0506_0708)));
        assert_eq!((errno_of(28), errno_of(9999), errno_of(u32::MAX)), (libc::ENOSPC, libc::EIO, libc::EIO));
        // A structured reply, which nobody negotiated.
        header[..4].copy_from_slice(&[0x66, 0x8e, 0x33, 0xef]);
        assert_eq!(parse_reply(&header), None);
    }
}
