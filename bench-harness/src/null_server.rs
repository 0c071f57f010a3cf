//! A server that answers without work, to see what a load generator itself can do.
//!
//! It speaks as much of memcached's text protocol as load generators use, and stores nothing. A `get` of a record's key is answered with the value
//! that loading the records would have stored, made on the spot, so that a client that verifies what it reads does all of its work; other keys get some
//! value of the same size. A `set` is answered with `STORED`. Only reads can be verified against it: it does not know of updates.
//!
//! It runs as a process of its own (the hidden subcommand `null-server`), so that its CPU time is not the generator's.

use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;

use crate::client::Connection;
use crate::endpoint::{Endpoint, Listener};
use crate::interrupt;
use crate::poller::{NO_EVENT, Poller};
use crate::value_sizes::{ValueSizes, parse_value_size};
use crate::values::{ValueKind, append_value};
use crate::ycsb::{append_decimal, fnv_hash};

#[derive(Debug, Args)]
pub struct Options {
    pub endpoint: Endpoint,
    /// How many records it pretends to have
    #[arg(long)]
    pub records: u64,
    #[arg(long, value_parser = parse_value_size)]
    pub value_size: usize,
}

const INPUT_CAPACITY: usize = 64 * 1024;

/// The version that loading gives every record.
const LOADED_VERSION: u32 = 1;

#[derive(Debug)]
struct Records {
    /// Key numbers by the hash that is in the key's name.
    keys: HashMap<u64, u64>,
    value_sizes: ValueSizes,
}

impl Records {
    fn new(records: u64, value_sizes: ValueSizes) -> Self {
        Self { keys: (0..records).map(|key| (fnv_hash(key), key)).collect(), value_sizes }
    }

    fn append_reply(&self, name: &[u8], to: &mut Vec<u8>) {
        let hash = name.strip_prefix(b"user").and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
        let key = hash.and_then(|hash: u64| self.keys.get(&hash)).copied().unwrap_or(0);
        let size = self.value_sizes.of(key);
        to.extend_from_slice(b"VALUE ");
        to.extend_from_slice(name);
        to.extend_from_slice(b" 0 ");
        append_decimal(size as u64, to);
        to.extend_from_slice(b"\r\n");
        append_value(ValueKind::Random, key, LOADED_VERSION, size, to);
        to.extend_from_slice(b"\r\nEND\r\n");
    }

    /// Appends the answer to the first request of the input and tells the request's length; nothing when it is not complete.
    fn answer(&self, input: &[u8], to: &mut Vec<u8>) -> Option<usize> {
        let line_length = input.iter().position(|&byte| byte == b'\n')? + 1;
        let mut words = input[..line_length].split(u8::is_ascii_whitespace);
        match (words.next(), words.next()) {
            (Some(b"get"), Some(name)) => self.append_reply(name, to),
            (Some(b"set" | b"add"), Some(_)) => {
                let value_size = words.nth(2).and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<usize>().ok());
                let Some(length) = value_size.and_then(|size| size.checked_add(line_length + 2)) else {
                    to.extend_from_slice(b"CLIENT_ERROR bad data chunk\r\n");
                    return Some(line_length);
                };
                if input.len() < length {
                    return None;
                }
                to.extend_from_slice(b"STORED\r\n");
                return Some(length);
            }
            _ => to.extend_from_slice(b"ERROR\r\n"),
        }
        Some(line_length)
    }
}

/// Answers what has come in. An error means that the connection is over.
fn serve(connection: &mut Connection, records: &Records, poller: &Poller, token: usize) -> std::io::Result<()> {
    connection.flush(poller, token)?;
    if !connection.output.is_empty() {
        return Ok(());
    }
    connection.receive()?;
    let mut used = 0;
    let mut output = std::mem::take(&mut connection.output);
    while let Some(length) = records.answer(&connection.input()[used..], &mut output) {
        used += length;
    }
    connection.output = output;
    connection.consume(used);
    connection.flush(poller, token)
}

fn serve_all(listener: &Listener, records: &Records) -> Result<()> {
    const LISTENING: usize = usize::MAX;
    let poller = Poller::new().context("cannot create an epoll instance")?;
    poller.add(listener.as_raw_fd(), LISTENING).context("cannot watch the listening socket")?;
    let mut connections: Vec<Option<Connection>> = Vec::new();
    let mut events = vec![NO_EVENT; 256];
    loop {
        interrupt::check()?;
        for event in poller.wait(&mut events, Duration::from_secs(1))? {
            let token = event.u64 as usize;
            if token == LISTENING {
                let socket = listener.accept().context("cannot accept a connection")?;
                let connection = Connection::new(socket, INPUT_CAPACITY)?;
                let free = connections.iter().position(Option::is_none).unwrap_or(connections.len());
                poller.add(connection.as_raw_fd(), free).context("cannot watch a connection with epoll")?;
                if free == connections.len() {
                    connections.push(None);
                }
                connections[free] = Some(connection);
            } else if let Some(connection) = &mut connections[token]
                && serve(connection, records, &poller, token).is_err()
            {
                // Closing it takes it out of the epoll instance.
                connections[token] = None;
            }
        }
    }
}

/// Serves until a signal ends it.
pub fn run(options: &Options) -> Result<()> {
    let listener = options.endpoint.listen().with_context(|| format!("cannot listen at {}", options.endpoint))?;
    serve_all(&listener, &Records::new(options.records, ValueSizes::fixed(options.value_size)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generator::{Generator, Shape, TimedRun, WarmUp};
    use crate::outcome::Sample;
    use crate::protocol::Protocol;
    use crate::ycsb::Workload;

    fn answers(input: &[u8]) -> (usize, String) {
        let records = Records::new(10, ValueSizes::fixed(40));
        let (mut used, mut output) = (0, Vec::new());
        while let Some(length) = records.answer(&input[used..], &mut output) {
            used += length;
        }
        (used, String::from_utf8(output).unwrap())
    }

    #[test]
    fn requests_are_answered_when_they_are_complete() {
        let sets = b"set a 0 0 4\r\nx\r\ny\r\nadd b 0 0 0\r\n\r\nset c 0 0 9\r\n12345";
        assert_eq!(answers(sets), (sets.len() - 18, "STORED\r\nSTORED\r\n".into()));
        let (used, text) = answers(b"get memtier-7\r\nget x");
        assert_eq!(used, 15);
        assert!(text.starts_with("VALUE memtier-7 0 40\r\n") && text.ends_with("\r\nEND\r\n"), "{text}");
        assert_eq!(answers(b"flush_all\r\n\r\n").1, "ERROR\r\nERROR\r\n");
        assert_eq!(answers(b"set a 0 0 -1\r\n").1, "CLIENT_ERROR bad data chunk\r\n");
        assert_eq!(answers(b"set a 0 0 18446744073709551615\r\n").1, "CLIENT_ERROR bad data chunk\r\n");
    }

    #[test]
    fn what_it_answers_passes_verification_and_nothing_else_would() {
        let endpoint = Endpoint::Tcp(([127, 0, 0, 1], crate::server::free_port().unwrap()).into());
        let listener = endpoint.listen().unwrap();
        std::thread::spawn(move || serve_all(&listener, &Records::new(500, ValueSizes::fixed(1_000))));
        let shape = Shape {
            records: 500,
            value_sizes: ValueSizes::fixed(1_000),
            value_kind: ValueKind::Random,
            connections: 8,
            client_threads: 2,
            protocol: Protocol::Memcached,
        };
        let mut generator = Generator::connect(&endpoint, shape).unwrap();
        generator.load("loading").unwrap();
        let mut run = |workload| {
            let warm_up = WarmUp::of_time(Duration::ZERO);
            let run = TimedRun {
                workload,
                distribution: None,
                warm_up,
                duration: Duration::from_millis(200),
                due_per_second: None,
                probe_per_second: None,
                seed: 1,
            };
            generator.run("null", run, |_| Ok(Sample::default())).unwrap().tally
        };
        let reads = run(Workload::Uniform);
        assert!(reads.hits > 0 && reads.hits == reads.reads && reads.wrong_values == 0, "{:?}", reads.first_wrong_value);
        // It knows of no update, so reads after updates are stale, and that is noticed.
        assert!(run(Workload::A).wrong_values > 0);
    }
}
