//! Single commands to a Redis, and what it answers: for all that is no load.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use anyhow::{Context, Result, bail};

use crate::endpoint::Endpoint;
use crate::protocol::Parsed;
use crate::protocol::resp::{Frame, append_command, parse};
use crate::stall::PatientSocket;

/// A longer answer is none to what is asked here.
const ANSWER_MAX_BYTES: usize = 16 << 20;
/// What INFO puts before the names of Lightswap's counters, which `stats lightswap` of memcached has without it.
const PREFIX: &str = "lightswap_";

/// The answer as text: a status, a number or a string. Empty for nothing. An error of the server is one.
pub fn command(endpoint: &Endpoint, words: &[&str]) -> Result<String> {
    let what = || format!("the server does not answer {}", words.join(" "));
    let mut socket = PatientSocket::connect(endpoint)?;
    let mut request = Vec::new();
    append_command(&words.iter().map(|word| word.as_bytes()).collect::<Vec<_>>(), &mut request);
    socket.write_all(&request).with_context(what)?;
    let mut input = Vec::new();
    let mut piece = [0; 16 * 1024];
    loop {
        match parse(&input) {
            Parsed::Complete(frame, _) => return text_of(&frame, words),
            Parsed::Garbled => bail!("{}: it speaks another protocol than Redis", what()),
            Parsed::Incomplete if input.len() > ANSWER_MAX_BYTES => bail!("{}: its answer does not end", what()),
            Parsed::Incomplete => {}
        }
        match socket.read(&mut piece).with_context(what)? {
            0 => bail!("{}: it closed the connection", what()),
            count => input.extend_from_slice(&piece[..count]),
        }
    }
}

fn text_of(frame: &Frame<'_>, words: &[&str]) -> Result<String> {
    Ok(match frame {
        Frame::Status(text) | Frame::Bulk(text) => String::from_utf8_lossy(text).into_owned(),
        Frame::Integer(number) => number.to_string(),
        Frame::Null => String::new(),
        Frame::Error(text) => bail!("the server refuses {}: {}", words.join(" "), String::from_utf8_lossy(text)),
        Frame::Array(_) => bail!("the server answers {} with a list", words.join(" ")),
    })
}

/// What INFO says, of one section or of all.
pub fn info(endpoint: &Endpoint, section: &str) -> Result<BTreeMap<String, String>> {
    let words: &[&str] = if section.is_empty() { &["INFO"] } else { &["INFO", section] };
    Ok(parse_info(&command(endpoint, words).context("cannot ask the server for its statistics")?))
}

fn parse_info(text: &str) -> BTreeMap<String, String> {
    let of_line = |line: &str| {
        let (name, value) = line.trim_end().split_once(':').filter(|_| !line.starts_with('#'))?;
        Some((name.strip_prefix(PREFIX).unwrap_or(name).to_owned(), value.to_owned()))
    };
    text.lines().filter_map(of_line).collect()
}

/// The same under the names that memcached's statistics have: `lightswap` for those of paging, or nothing for the general ones.
pub fn statistics(endpoint: &Endpoint, name: &str) -> Result<BTreeMap<String, String>> {
    let mut statistics = info(endpoint, name)?;
    if let Some(evicted) = statistics.remove("evicted_keys") {
        statistics.insert("evictions".into(), evicted);
    }
    Ok(statistics)
}

/// Whether it has loaded what it starts with.
pub fn is_ready(endpoint: &Endpoint) -> bool {
    command(endpoint, &["PING"]).is_ok_and(|answer| answer == "PONG")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn info_is_names_and_numbers() {
        let text = "# Lightswap\r\nlightswap_swap_ins:12\r\nlightswap_backend:file:/a?size=1\r\n\r\n# Stats\r\nevicted_keys:3\r\n";
        let found = parse_info(text);
        assert_eq!((found["swap_ins"].as_str(), found["backend"].as_str(), found["evicted_keys"].as_str()), ("12", "file:/a?size=1", "3"));
        assert_eq!(found.len(), 3);
    }

    /// Answers one request with these bytes.
    fn answering(bytes: &'static [u8]) -> Endpoint {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = Endpoint::Tcp(listener.local_addr().unwrap());
        std::thread::spawn(move || {
            let (mut socket, _) = listener.accept()?;
            let _ = socket.read(&mut [0; 100])?;
            // In two pieces.
            socket.write_all(&bytes[..bytes.len() / 2])?;
            std::thread::sleep(std::time::Duration::from_millis(20));
            socket.write_all(&bytes[bytes.len() / 2..])
        });
        endpoint
    }

    #[test]
    fn every_answer_is_text_or_an_error() {
        let ask = |bytes| command(&answering(bytes), &["PING"]).map_err(|error| format!("{error:#}"));
        assert_eq!(ask(b"+PONG\r\n").unwrap(), "PONG");
        assert_eq!(ask(b":42\r\n").unwrap(), "42");
        assert_eq!(ask(b"$2\r\nab\r\n").unwrap(), "ab");
        assert!(ask(b"-LOADING dump\r\n").unwrap_err().contains("refuses PING: LOADING dump"));
        assert!(ask(b"VALUE x\r\n").unwrap_err().contains("another protocol"));
        assert!(ask(b"$5\r\nab").unwrap_err().contains("closed the connection"));
        assert!(is_ready(&answering(b"+PONG\r\n")) && !is_ready(&answering(b"-LOADING\r\n")));
    }
}
