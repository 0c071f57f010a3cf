//! As much of an NBD client as it takes to try servers out: blocking, one request at a time unless the caller does otherwise.

use super::protocol::*;
use super::stream::{Place, Stream};
use std::io::{self, Read, Write};

#[derive(Debug)]
pub struct Client {
    pub stream: Stream,
    pub num_bytes: u64,
    pub flags: u16,
    pub next_cookie: u64,
}

impl Client {
    pub fn connect(place: &Place, export: &str) -> io::Result<Self> {
        let mut stream = place.connect()?;
        expect(read_u64(&mut stream)? == GREETING_MAGIC && read_u64(&mut stream)? == OPTION_MAGIC, "greeting")?;
        let mut flags = [0; 2];
        stream.read_exact(&mut flags)?;
        stream.write_all(&u32::from(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes())?;
        let name = [&(export.len() as u32).to_be_bytes()[..], export.as_bytes(), &[0, 0]].concat();
        stream.write_all(&[&OPTION_MAGIC.to_be_bytes()[..], &OPT_GO.to_be_bytes(), &(name.len() as u32).to_be_bytes(), &name].concat())?;
        let mut client = Self { stream, num_bytes: 0, flags: 0, next_cookie: 1 };
        loop {
            let (kind, data) = client.option_reply()?;
            let mut rest = &data[..];
            match kind {
                REP_ACK => return Ok(client),
                REP_INFO if data.len() == 12 && take_u16(&mut rest) == INFO_EXPORT => {
                    (client.num_bytes, client.flags) = (take_u64(&mut rest), take_u16(&mut rest));
                }
                REP_INFO => {}
                _ => return Err(io::Error::other(format!("reply {kind:#x}: {}", String::from_utf8_lossy(&data)))),
            }
        }
    }

    fn option_reply(&mut self) -> io::Result<(u32, Vec<u8>)> {
        expect(read_u64(&mut self.stream)? == OPTION_REPLY_MAGIC, "magic number of a reply")?;
        expect(read_u32(&mut self.stream)? == OPT_GO, "option of a reply")?;
        let (kind, len) = (read_u32(&mut self.stream)?, read_u32(&mut self.stream)?);
        expect(len <= 4096, "length of a reply")?;
        let mut data = vec![0; len as usize];
        self.stream.read_exact(&mut data)?;
        Ok((kind, data))
    }

    /// Sends a request; its cookie.
    pub fn send(&mut self, command: u16, offset: u64, length: u32, payload: &[u8]) -> io::Result<u64> {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let numbers = [&REQUEST_MAGIC.to_be_bytes()[..], &[0; 2], &command.to_be_bytes(), &cookie.to_be_bytes()].concat();
        self.stream.write_all(&[&numbers, &offset.to_be_bytes()[..], &length.to_be_bytes(), payload].concat())?;
        Ok(cookie)
    }

    /// The next reply's error and cookie.
    pub fn reply(&mut self) -> io::Result<(u32, u64)> {
        expect(read_u32(&mut self.stream)? == REPLY_MAGIC, "magic number of a reply")?;
        Ok((read_u32(&mut self.stream)?, read_u64(&mut self.stream)?))
    }

    pub fn payload(&mut self, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// A whole request; any error of the reply is one.
    pub fn request(&mut self, command: u16, offset: u64, length: u32, payload: &[u8]) -> io::Result<Vec<u8>> {
        let cookie = self.send(command, offset, length, payload)?;
        let (error, answered) = self.reply()?;
        expect(answered == cookie, "cookie")?;
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error as i32));
        }
        self.payload(if command == 0 { length as usize } else { 0 })
    }

    pub fn read(&mut self, offset: u64, length: u32) -> io::Result<Vec<u8>> {
        self.request(0, offset, length, &[])
    }

    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.request(1, offset, bytes.len() as u32, bytes).map(drop)
    }
}

fn expect(is_right: bool, what: &str) -> io::Result<()> {
    if is_right { Ok(()) } else { Err(io::Error::new(io::ErrorKind::InvalidData, format!("wrong {what}"))) }
}
