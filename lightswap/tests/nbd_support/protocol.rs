//! The numbers of the NBD protocol, and its messages of fixed size. Big-endian all of it.

use std::io::{self, Read};

pub const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// In the place of [`OPTION_MAGIC`]: a server that does not negotiate.
pub const OLD_STYLE_MAGIC: u64 = 0x0000_4202_8186_1253;
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
pub const REPLY_MAGIC: u32 = 0x6744_6698;
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// Flags of the greeting; the client's are the same ones.
pub const FIXED_NEWSTYLE: u16 = 1;
pub const NO_ZEROES: u16 = 2;

pub const OPT_EXPORT_NAME: u32 = 1;
pub const OPT_ABORT: u32 = 2;
pub const OPT_STARTTLS: u32 = 5;
pub const OPT_INFO: u32 = 6;
pub const OPT_GO: u32 = 7;

pub const REP_ACK: u32 = 1;
pub const REP_INFO: u32 = 3;
pub const REP_ERR_UNSUP: u32 = 1 << 31 | 1;
pub const REP_ERR_POLICY: u32 = 1 << 31 | 2;
pub const REP_ERR_INVALID: u32 = 1 << 31 | 3;
pub const REP_ERR_TLS_REQD: u32 = 1 << 31 | 5;
pub const REP_ERR_UNKNOWN: u32 = 1 << 31 | 6;
pub const REP_ERR_SHUTDOWN: u32 = 1 << 31 | 7;
pub const REP_ERR_BLOCK_SIZE_REQD: u32 = 1 << 31 | 8;

pub const INFO_EXPORT: u16 = 0;
pub const INFO_DESCRIPTION: u16 = 2;
pub const INFO_BLOCK_SIZE: u16 = 3;

/// Flags of an export.
pub const HAS_FLAGS: u16 = 1;
pub const READ_ONLY: u16 = 1 << 1;
pub const CAN_FLUSH: u16 = 1 << 2;
pub const CAN_FUA: u16 = 1 << 3;
pub const CAN_TRIM: u16 = 1 << 5;
pub const CAN_MULTI_CONN: u16 = 1 << 8;

/// Flags of a request.
pub const FUA: u16 = 1;

/// Errors of replies.
pub const EPERM: u32 = 1;
pub const EIO: u32 = 5;
pub const ENOMEM: u32 = 12;
pub const EINVAL: u32 = 22;
pub const ENOSPC: u32 = 28;
pub const ESHUTDOWN: u32 = 108;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Command {
    Read,
    Write,
    Disconnect,
    Flush,
    Trim,
}

impl Command {
    fn of(number: u16) -> Option<Self> {
        Some(match number {
            0 => Self::Read,
            1 => Self::Write,
            2 => Self::Disconnect,
            3 => Self::Flush,
            4 => Self::Trim,
            _ => return None,
        })
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Request {
    pub command: Command,
    pub flags: u16,
    pub cookie: u64,
    pub offset: u64,
    pub length: u32,
}

pub const REQUEST_LEN: usize = 28;

impl Request {
    /// What is wrong with it otherwise, in a few words.
    pub fn parse(bytes: &[u8; REQUEST_LEN]) -> Result<Self, String> {
        let mut rest = &bytes[..];
        let (magic, flags, number) = (take_u32(&mut rest), take_u16(&mut rest), take_u16(&mut rest));
        let (cookie, offset, length) = (take_u64(&mut rest), take_u64(&mut rest), take_u32(&mut rest));
        if magic != REQUEST_MAGIC {
            return Err(format!("a request begins with {magic:#x}"));
        }
        let command = Command::of(number).ok_or_else(|| format!("a request has type {number}, which was not offered"))?;
        Ok(Self { command, flags, cookie, offset, length })
    }

    pub fn end(&self) -> u64 {
        self.offset.saturating_add(u64::from(self.length))
    }
}

/// A simple reply's header.
pub fn reply_header(magic: u32, error: u32, cookie: u64) -> Vec<u8> {
    [&magic.to_be_bytes()[..], &error.to_be_bytes(), &cookie.to_be_bytes()].concat()
}

pub fn option_reply(option: u32, reply: u32, data: &[u8]) -> Vec<u8> {
    let len = (data.len() as u32).to_be_bytes();
    [&OPTION_REPLY_MAGIC.to_be_bytes()[..], &option.to_be_bytes(), &reply.to_be_bytes(), &len, data].concat()
}

pub fn read_u32(stream: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes)?;
    Ok(u32::from_be_bytes(bytes))
}

pub fn read_u64(stream: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes)?;
    Ok(u64::from_be_bytes(bytes))
}

fn take<const N: usize>(bytes: &mut &[u8]) -> [u8; N] {
    let (first, rest) = bytes.split_first_chunk().expect("the caller has counted them");
    *bytes = rest;
    *first
}

pub fn take_u16(bytes: &mut &[u8]) -> u16 {
    u16::from_be_bytes(take(bytes))
}

pub fn take_u32(bytes: &mut &[u8]) -> u32 {
    u32::from_be_bytes(take(bytes))
}

pub fn take_u64(bytes: &mut &[u8]) -> u64 {
    u64::from_be_bytes(take(bytes))
}
