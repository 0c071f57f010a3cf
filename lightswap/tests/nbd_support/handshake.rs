//! The server's side of the fixed newstyle handshake, and what may go wrong with it.

use super::protocol::*;
use super::stream::Stream;
use crate::common::Random;
use std::io::{self, Read, Write};
use std::time::Duration;

/// What a server offers. Tests may change it between connections.
#[derive(Clone, Debug)]
pub struct Export {
    pub name: String,
    pub num_bytes: u64,
    pub multi_conn: bool,
    pub read_only: bool,
    pub can_flush: bool,
    pub can_trim: bool,
    /// Least, preferred and largest size of a request.
    pub block_sizes: Option<[u32; 3]>,
    /// Knows that nobody wants the zeroes after the reply to NBD_OPT_EXPORT_NAME.
    pub no_zeroes: bool,
    /// Knows NBD_OPT_GO and NBD_OPT_INFO, or only NBD_OPT_EXPORT_NAME.
    pub knows_go: bool,
}

impl Export {
    pub fn flags(&self) -> u16 {
        let flag = |flag, is_set: bool| if is_set { flag } else { 0 };
        HAS_FLAGS
            | flag(CAN_MULTI_CONN, self.multi_conn)
            | flag(READ_ONLY, self.read_only)
            | flag(CAN_FLUSH, self.can_flush)
            | flag(CAN_TRIM, self.can_trim)
    }

    /// The largest request: what is not negotiated is 32 MiB, by the protocol's advice.
    pub fn largest_request(&self) -> u32 {
        self.block_sizes.map_or(32 << 20, |[_, _, largest]| largest)
    }
}

/// The server's messages, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Greeting,
    /// The reply to an option with what the export is like.
    Info,
    /// The last reply; to NBD_OPT_EXPORT_NAME, the only one.
    Ack,
}

pub const STEPS: [Step; 3] = [Step::Greeting, Step::Info, Step::Ack];

/// What goes wrong with a handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandshakeFault {
    CloseBefore(Step),
    CloseWithin(Step),
    SilentBefore(Step),
    SilentWithin(Step),
    /// Random bytes instead of the message, and then the connection is closed.
    GarbageFor(Step),
    /// Some bits of the messages are wrong; and a client that says nothing for a while is left alone.
    Mutated,
    /// A byte now and then of a message that never ends: each single wait is short.
    Drip,
    /// Messages without end, one after the other without delay.
    EndlessInfo,
    OldStyle,
    NotFixed,
    WrongGreeting,
    WrongReplyMagic,
    /// The reply is to another option than the one asked for.
    WrongOption,
    /// A reply that announces 4 GiB of data.
    HugeReply,
    /// A reply of an unknown kind; the highest bit says whether it is an error.
    UnknownReply(u32),
    /// Information of a kind that nobody knows, which clients have to ignore.
    UnknownInfo,
    /// An info of an export that is too short to hold one.
    ShortInfo,
    /// Agrees without having said what to.
    NoInfo,
    /// This kind of error instead of information, with a sentence.
    Refuse(u32, &'static str),
}

/// How a connection's handshake ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Requests follow.
    Ready,
    Closed,
    /// The connection is to be left as it is.
    Silent,
}

/// The client broke the protocol: how.
pub type Violation = String;

pub struct Handshake<'a> {
    pub stream: &'a mut Stream,
    pub export: &'a Export,
    pub fault: Option<HandshakeFault>,
    pub random: Random,
    /// Gives up what takes for ever.
    pub must_stop: &'a dyn Fn() -> bool,
    pub violation: Option<Violation>,
}

/// The largest option that a client may send: a name of 4 KiB, and some more.
const LARGEST_OPTION: u32 = 8192;

impl Handshake<'_> {
    /// An error is one of the connection: most often the client has gone.
    pub fn run(&mut self) -> io::Result<Ended> {
        match self.negotiate()? {
            Some(ended) => Ok(ended),
            None => Ok(Ended::Closed),
        }
    }

    fn negotiate(&mut self) -> io::Result<Option<Ended>> {
        let (first, second) = match self.fault {
            Some(HandshakeFault::WrongGreeting) => (GREETING_MAGIC ^ 1, OPTION_MAGIC),
            Some(HandshakeFault::OldStyle) => (GREETING_MAGIC, OLD_STYLE_MAGIC),
            _ => (GREETING_MAGIC, OPTION_MAGIC),
        };
        let flags = if self.fault == Some(HandshakeFault::NotFixed) { 0 } else { FIXED_NEWSTYLE };
        let flags = flags | if self.export.no_zeroes { NO_ZEROES } else { 0 };
        let mut greeting = [first.to_be_bytes(), second.to_be_bytes()].concat();
        if second == OLD_STYLE_MAGIC {
            greeting.extend(self.export.num_bytes.to_be_bytes());
            greeting.extend([0; 4 + 124]);
        } else {
            greeting.extend(flags.to_be_bytes());
        }
        if let Some(ended) = self.send(Step::Greeting, &greeting)? {
            return Ok(Some(ended));
        }
        let client_flags = read_u32(self.stream)?;
        if client_flags & !u32::from(flags) != 0 {
            return Ok(self.violated(format!("client flags {client_flags:#x}")));
        }
        // Bounded: a client has few options to try.
        for _ in 0..32 {
            if let Some(ended) = self.answer_option(client_flags)? {
                return Ok(Some(ended));
            }
        }
        Ok(self.violated("more than 32 options".into()))
    }

    /// `None`: another option may follow.
    fn answer_option(&mut self, client_flags: u32) -> io::Result<Option<Ended>> {
        let magic = read_u64(self.stream)?;
        if magic != OPTION_MAGIC {
            return Ok(self.violated(format!("an option begins with {magic:#x}")));
        }
        let (option, len) = (read_u32(self.stream)?, read_u32(self.stream)?);
        if len > LARGEST_OPTION {
            return Ok(self.violated(format!("option {option} with {len} bytes")));
        }
        let mut data = vec![0; len as usize];
        self.stream.read_exact(&mut data)?;
        match option {
            OPT_EXPORT_NAME => self.export_by_name(&data, client_flags),
            OPT_GO | OPT_INFO if self.export.knows_go => self.go(option, &data),
            OPT_ABORT => {
                self.stream.write_all(&option_reply(option, REP_ACK, &[]))?;
                Ok(Some(Ended::Closed))
            }
            _ => {
                self.stream.write_all(&option_reply(option, REP_ERR_UNSUP, b"this server does not know that option"))?;
                Ok(None)
            }
        }
    }

    fn export_by_name(&mut self, name: &[u8], client_flags: u32) -> io::Result<Option<Ended>> {
        if name != self.export.name.as_bytes() {
            return Ok(Some(Ended::Closed));
        }
        let mut reply = self.export.num_bytes.to_be_bytes().to_vec();
        reply.extend(self.export.flags().to_be_bytes());
        if client_flags & u32::from(NO_ZEROES) == 0 {
            reply.extend([0; 124]);
        }
        Ok(Some(self.send(Step::Ack, &reply)?.unwrap_or(Ended::Ready)))
    }

    fn go(&mut self, option: u32, data: &[u8]) -> io::Result<Option<Ended>> {
        let name = match name_of(data) {
            Ok(name) => name,
            Err(what) => return Ok(self.violated(what)),
        };
        if name != self.export.name.as_bytes() {
            self.stream.write_all(&option_reply(option, REP_ERR_UNKNOWN, b"there is no such export"))?;
            return Ok(None);
        }
        if let Some(HandshakeFault::Refuse(error, sentence)) = self.fault {
            self.stream.write_all(&option_reply(option, error, sentence.as_bytes()))?;
            return Ok(None);
        }
        let mut info = self.info(option);
        match &self.fault {
            Some(HandshakeFault::WrongReplyMagic) => info[0] ^= 1,
            Some(HandshakeFault::WrongOption) => info[11] ^= 1,
            Some(HandshakeFault::HugeReply) => info[16..20].fill(0xFF),
            Some(HandshakeFault::UnknownReply(kind)) => info = option_reply(option, *kind, b"?"),
            Some(HandshakeFault::UnknownInfo) => info.splice(0..0, option_reply(option, REP_INFO, &[0x7F, 0xFF, 1, 2, 3])).for_each(drop),
            Some(HandshakeFault::ShortInfo) => info = option_reply(option, REP_INFO, &[0, 0, 1, 2]),
            Some(HandshakeFault::NoInfo) => info.clear(),
            Some(HandshakeFault::Drip) => return self.drip(option).map(Some),
            Some(HandshakeFault::EndlessInfo) => return self.endless_info(option).map(Some),
            _ => {}
        }
        if let Some(ended) = self.send(Step::Info, &info)? {
            return Ok(Some(ended));
        }
        let ended = self.send(Step::Ack, &option_reply(option, REP_ACK, &[]))?;
        Ok(ended.or((option == OPT_GO).then_some(Ended::Ready)))
    }

    fn info(&self, option: u32) -> Vec<u8> {
        let mut export = INFO_EXPORT.to_be_bytes().to_vec();
        export.extend(self.export.num_bytes.to_be_bytes());
        export.extend(self.export.flags().to_be_bytes());
        let mut replies = option_reply(option, REP_INFO, &export);
        if let Some(sizes) = self.export.block_sizes {
            let sizes = sizes.iter().flat_map(|size| size.to_be_bytes());
            let data: Vec<u8> = INFO_BLOCK_SIZE.to_be_bytes().into_iter().chain(sizes).collect();
            replies.extend(option_reply(option, REP_INFO, &data));
        }
        replies
    }

    fn drip(&mut self, option: u32) -> io::Result<Ended> {
        let mut message = option_reply(option, REP_INFO, &[0; 4096]);
        message[20..22].copy_from_slice(&INFO_DESCRIPTION.to_be_bytes());
        for byte in message {
            self.stream.write_all(&[byte])?;
            std::thread::sleep(Duration::from_millis(50));
            if (self.must_stop)() {
                break;
            }
        }
        Ok(Ended::Closed)
    }

    fn endless_info(&mut self, option: u32) -> io::Result<Ended> {
        while !(self.must_stop)() {
            self.stream.write_all(&self.info(option))?;
        }
        Ok(Ended::Closed)
    }

    /// Sends a message as the fault demands.
    fn send(&mut self, step: Step, message: &[u8]) -> io::Result<Option<Ended>> {
        if self.fault == Some(HandshakeFault::Mutated) {
            return self.send_mutated(message).map(|()| None);
        }
        let half = message.len() / 2;
        let ended = match &self.fault {
            Some(HandshakeFault::CloseBefore(at)) if *at == step => Ended::Closed,
            Some(HandshakeFault::SilentBefore(at)) if *at == step => Ended::Silent,
            Some(HandshakeFault::CloseWithin(at)) if *at == step => {
                self.stream.write_all(&message[..half])?;
                Ended::Closed
            }
            Some(HandshakeFault::SilentWithin(at)) if *at == step => {
                self.stream.write_all(&message[..half])?;
                Ended::Silent
            }
            Some(HandshakeFault::GarbageFor(at)) if *at == step => {
                let garbage: Vec<u8> = (0..message.len() + 64).map(|_| self.random.next() as u8).collect();
                self.stream.write_all(&garbage)?;
                Ended::Closed
            }
            _ => {
                self.stream.write_all(message)?;
                return Ok(None);
            }
        };
        Ok(Some(ended))
    }

    fn send_mutated(&mut self, message: &[u8]) -> io::Result<()> {
        let mut message = message.to_vec();
        for _ in 0..self.random.below(3) {
            let bit = self.random.below(message.len() * 8);
            message[bit / 8] ^= 1 << (bit % 8);
        }
        // It may wait for more than there is.
        self.stream.set_timeout(Some(Duration::from_millis(100)));
        self.stream.write_all(&message)
    }

    fn violated(&mut self, what: String) -> Option<Ended> {
        self.violation = Some(format!("in the handshake: {what}"));
        Some(Ended::Closed)
    }
}

/// The name in the data of NBD_OPT_GO: its length, itself, and a list of 16-bit numbers with its length.
fn name_of(data: &[u8]) -> Result<&[u8], String> {
    let wrong = || format!("NBD_OPT_GO with data that does not add up: {data:02x?}");
    let mut rest = data;
    if rest.len() < 6 {
        return Err(wrong());
    }
    let len = take_u32(&mut rest) as usize;
    if len > rest.len() - 2 {
        return Err(wrong());
    }
    let (name, mut rest) = rest.split_at(len);
    let num_infos = usize::from(take_u16(&mut rest));
    if rest.len() == 2 * num_infos { Ok(name) } else { Err(wrong()) }
}
