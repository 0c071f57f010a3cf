//! One client: random requests on keys of its own, every answer checked against the model.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail};
use serde::Serialize;

use super::model::{Miss, Model};
use crate::endpoint::Endpoint;
use crate::random::Random;
use crate::stall::PatientSocket;

pub const KEYS_PER_CLIENT: usize = 400;
/// The first of them hold numbers.
const NUMBERS: usize = 40;
const LONGEST_APPENDED: usize = 100_000;
/// Kinds of errors that are told apart.
const MAX_ANSWERS: usize = 32;

/// What a client did and saw.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Counts {
    pub requests: u64,
    pub values_checked: u64,
    pub misses: u64,
    /// Misses of keys that were there, each told once: what the server has evicted or lost.
    pub gone: u64,
    /// Misses after a change of the key that failed, or was not answered.
    pub doubtful_misses: u64,
    pub stores: u64,
    /// SERVER_ERROR and the like.
    pub errors: u64,
    /// The same by what the server has said; of more kinds than a server has, only the first are told apart.
    pub errors_by_answer: BTreeMap<String, u64>,
    pub connections_closed: u64,
    pub wrong_values: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_wrong: Option<String>,
}

impl Counts {
    pub fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.values_checked += other.values_checked;
        self.misses += other.misses;
        self.gone += other.gone;
        self.doubtful_misses += other.doubtful_misses;
        self.stores += other.stores;
        self.errors += other.errors;
        for (answer, count) in other.errors_by_answer {
            *self.errors_by_answer.entry(answer).or_default() += count;
        }
        self.connections_closed += other.connections_closed;
        self.wrong_values += other.wrong_values;
        self.first_wrong = self.first_wrong.take().or(other.first_wrong);
    }
}

#[derive(Debug)]
struct Connection {
    to: PatientSocket,
    from: BufReader<PatientSocket>,
}

/// A value of an answer to a get.
struct Value {
    key: String,
    content: Vec<u8>,
    cas: Option<String>,
}

fn garbled(line: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("the server's answer is no memcached protocol: {line:?}"))
}

impl Connection {
    fn open(endpoint: &Endpoint) -> Result<Self> {
        let to = PatientSocket::connect(endpoint)?;
        let from = BufReader::new(to.try_clone()?);
        Ok(Self { to, from })
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        self.from.read_until(b'\n', &mut line)?;
        if !line.ends_with(b"\r\n") {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        line.truncate(line.len() - 2);
        Ok(String::from_utf8_lossy(&line).into_owned())
    }

    /// A request that is answered by one line.
    fn ask(&mut self, head: &str, body: Option<&[u8]>) -> io::Result<String> {
        let mut request = format!("{head}\r\n").into_bytes();
        if let Some(body) = body {
            request.extend_from_slice(body);
            request.extend_from_slice(b"\r\n");
        }
        self.to.write_all(&request)?;
        self.line()
    }

    /// A request that is answered by values, or by an error line.
    fn values(&mut self, head: &str) -> io::Result<(Vec<Value>, Option<String>)> {
        self.to.write_all(format!("{head}\r\n").as_bytes())?;
        let mut values = Vec::new();
        loop {
            let line = self.line()?;
            if line == "END" {
                return Ok((values, None));
            }
            let Some(rest) = line.strip_prefix("VALUE ") else {
                return Ok((values, Some(line)));
            };
            let words: Vec<&str> = rest.split(' ').collect();
            let (Some(key), Some(len)) = (words.first(), words.get(2).and_then(|len| len.parse::<usize>().ok())) else {
                return Err(garbled(&line));
            };
            let mut content = vec![0; len + 2];
            self.from.read_exact(&mut content)?;
            if !content.ends_with(b"\r\n") {
                return Err(garbled(&line));
            }
            content.truncate(len);
            values.push(Value { key: (*key).to_owned(), content, cas: words.get(3).map(|cas| (*cas).to_owned()) });
        }
    }
}

#[derive(Debug)]
pub struct Client<'a> {
    endpoint: &'a Endpoint,
    number: usize,
    connection: Connection,
    model: Model,
    random: Random,
    num_versions: u64,
    counts: Counts,
}

impl<'a> Client<'a> {
    pub fn new(endpoint: &'a Endpoint, number: usize, seed: u64) -> Result<Self> {
        let random = Random::new(seed.wrapping_mul(1_000_003).wrapping_add(number as u64));
        let (connection, model) = (Connection::open(endpoint)?, Model::new(KEYS_PER_CLIENT));
        Ok(Self { endpoint, number, connection, model, random, num_versions: 0, counts: Counts::default() })
    }

    /// Until told to stop; then every key is looked at once more.
    pub fn run(mut self, stop: &AtomicBool) -> Result<Counts> {
        while !stop.load(Ordering::Relaxed) {
            self.step(Self::request)?;
        }
        for key in 0..KEYS_PER_CLIENT {
            self.step(move |client| client.get(&[key]))?;
        }
        Ok(self.counts)
    }

    /// One request. A connection that the server closes is opened again; a server that is silent is a failure.
    fn step(&mut self, request: impl FnOnce(&mut Self) -> io::Result<()>) -> Result<()> {
        self.counts.requests += 1;
        match request(self) {
            Ok(()) => Ok(()),
            Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {
                self.counts.connections_closed += 1;
                self.connection = Connection::open(self.endpoint)?;
                Ok(())
            }
            Err(error) => bail!("client {}: {error}", self.number),
        }
    }

    fn request(&mut self) -> io::Result<()> {
        let key = self.key();
        match self.random.below(100) {
            0..40 => self.get(&[key]),
            40..50 => {
                let keys: Vec<usize> = (0..2 + self.random.below(28)).map(|_| self.key()).collect();
                self.get(&keys)
            }
            50..75 => self.set(key),
            75..80 => self.delete(key),
            80..85 => self.extend(key),
            85..91 => self.increment(),
            91..95 => self.touch(key),
            _ => self.compare_and_set(key),
        }
    }

    /// Some are used more often than others.
    fn key(&mut self) -> usize {
        let share = self.random.next_f64();
        ((share * share * KEYS_PER_CLIENT as f64) as usize).min(KEYS_PER_CLIENT - 1)
    }

    fn name(&self, key: usize) -> String {
        format!("client-{}-key-{key}", self.number)
    }

    fn wrong(&mut self, what: String) {
        self.counts.wrong_values += 1;
        self.counts.first_wrong.get_or_insert(what);
    }

    /// Content that no other key and no earlier version has.
    fn content(&mut self, key: usize) -> Rc<[u8]> {
        self.num_versions += 1;
        if key < NUMBERS {
            return (self.num_versions % 1_000_000).to_string().into_bytes().into();
        }
        let len = match self.random.below(200) {
            0..60 => 1 + self.random.below(200),
            60..140 => 200 + self.random.below(2_800),
            140..199 => 3_000 + self.random.below(17_000),
            _ => 600_000 + self.random.below(100_000),
        } as usize;
        self.filler(key, len)
    }

    fn filler(&self, key: usize, len: usize) -> Rc<[u8]> {
        let tag = format!("{}/{}/{key}:", self.number, self.num_versions);
        tag.into_bytes().into_iter().cycle().take(len).collect()
    }

    fn check(&mut self, key: usize, content: &[u8]) {
        self.counts.values_checked += 1;
        if !self.model.allows(key, content) {
            let shown = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned();
            let expected = self.model.only(key).map_or_else(|| "nothing, or one of several".to_owned(), |expected| shown(&expected));
            self.wrong(format!("{} has {:?} ({} bytes) instead of {expected:?}", self.name(key), shown(content), content.len()));
        }
    }

    /// An answer that is neither what was asked for nor a refusal.
    fn refused(&mut self, answer: &str, asked: &str) {
        if answer.starts_with("SERVER_ERROR") || answer == "CLIENT_ERROR bad data chunk" {
            self.counts.errors += 1;
            let kinds = &mut self.counts.errors_by_answer;
            let kind = if kinds.contains_key(answer) || kinds.len() < MAX_ANSWERS { answer } else { "other" };
            *kinds.entry(kind.to_owned()).or_default() += 1;
        } else {
            self.wrong(format!("{asked} was answered by {answer:?}"));
        }
    }

    fn get(&mut self, keys: &[usize]) -> io::Result<()> {
        let names: Vec<String> = keys.iter().map(|&key| self.name(key)).collect();
        self.read(&format!("get {}", names.join(" ")), keys).map(drop)
    }

    /// Checks what it reads; the unique numbers, if asked for.
    fn read(&mut self, head: &str, keys: &[usize]) -> io::Result<Option<String>> {
        let (values, refusal) = self.connection.values(head)?;
        let mut cas = None;
        let mut found = Vec::new();
        for value in values {
            match keys.iter().find(|&&key| self.name(key) == value.key) {
                Some(&key) => {
                    self.check(key, &value.content);
                    found.push(key);
                }
                None => self.wrong(format!("{head} was answered by a value of {}", value.key)),
            }
            cas = value.cas;
        }
        if refusal.is_none() {
            for &key in keys.iter().filter(|key| !found.contains(key)) {
                self.counts.misses += 1;
                match self.model.missed(key) {
                    Miss::Gone => self.counts.gone += 1,
                    Miss::Doubtful => self.counts.doubtful_misses += 1,
                    Miss::Absent | Miss::Known => {}
                }
            }
        }
        if let Some(line) = refusal {
            self.refused(&line, head);
        }
        Ok(cas)
    }

    fn store(&mut self, head: &str, key: usize, body: &[u8], content: Rc<[u8]>) -> io::Result<()> {
        self.counts.stores += 1;
        // Until it is answered.
        self.model.may_be_stored(key, Rc::clone(&content));
        let answer = self.connection.ask(head, Some(body))?;
        match answer.as_str() {
            "STORED" => self.model.stored(key, content),
            // A cache that has lost the item, or does not find it now.
            "NOT_STORED" | "NOT_FOUND" => {}
            _ => self.refused(&answer, head),
        }
        Ok(())
    }

    fn set(&mut self, key: usize) -> io::Result<()> {
        let content = self.content(key);
        let head = format!("set {} {} 0 {}", self.name(key), key % 3, content.len());
        self.store(&head, key, &Rc::clone(&content), content)
    }

    fn delete(&mut self, key: usize) -> io::Result<()> {
        let head = format!("delete {}", self.name(key));
        let answer = self.connection.ask(&head, None).inspect_err(|_| self.model.may_be_removed(key))?;
        match answer.as_str() {
            "DELETED" => self.model.removed(key),
            "NOT_FOUND" => {}
            _ => {
                self.model.may_be_removed(key);
                self.refused(&answer, &head);
            }
        }
        Ok(())
    }

    fn extend(&mut self, key: usize) -> io::Result<()> {
        let Some(before) = self.model.only(key).filter(|content| key >= NUMBERS && content.len() < LONGEST_APPENDED) else {
            return self.set(key);
        };
        self.num_versions += 1;
        let len = 1 + self.random.below(1_000) as usize;
        let part = self.filler(key, len);
        let appends = self.random.below(2) == 0;
        let (command, whole) = if appends { ("append", [&before[..], &part[..]].concat()) } else { ("prepend", [&part[..], &before[..]].concat()) };
        let head = format!("{command} {} 0 0 {}", self.name(key), part.len());
        self.store(&head, key, &part, whole.into())
    }

    fn increment(&mut self) -> io::Result<()> {
        let key = self.random.below(NUMBERS as u64) as usize;
        let number = self.model.only(key).and_then(|content| std::str::from_utf8(&content).ok()?.parse::<u64>().ok());
        let Some(number) = number else {
            return self.set(key);
        };
        let sum = number + 1 + self.random.below(1_000);
        let content: Rc<[u8]> = sum.to_string().into_bytes().into();
        let head = format!("incr {} {}", self.name(key), sum - number);
        self.model.may_be_stored(key, Rc::clone(&content));
        let answer = self.connection.ask(&head, None)?;
        if answer.as_bytes() == &*content {
            self.model.stored(key, content);
        } else if answer != "NOT_FOUND" {
            self.refused(&answer, &head);
        }
        Ok(())
    }

    fn touch(&mut self, key: usize) -> io::Result<()> {
        let name = self.name(key);
        if self.random.below(2) == 0 {
            return self.read(&format!("gat 0 {name}"), &[key]).map(drop);
        }
        let head = format!("touch {name} 0");
        let answer = self.connection.ask(&head, None)?;
        if !matches!(answer.as_str(), "TOUCHED" | "NOT_FOUND") {
            self.refused(&answer, &head);
        }
        Ok(())
    }

    fn compare_and_set(&mut self, key: usize) -> io::Result<()> {
        let name = self.name(key);
        let Some(cas) = self.read(&format!("gets {name}"), &[key])? else {
            return Ok(());
        };
        let content = self.content(key);
        let head = format!("cas {name} 0 0 {} {cas}", content.len());
        self.store(&head, key, &Rc::clone(&content), content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    /// What a client counts of requests that a server answers so.
    fn counts(answers: &'static [&'static str], requests: fn(&mut Client<'_>) -> io::Result<()>) -> Counts {
        let listener = Endpoint::Tcp(([127, 0, 0, 1], 0).into()).listen().unwrap();
        let crate::endpoint::Listener::Tcp(tcp) = &listener else { unreachable!() };
        let endpoint = Endpoint::Tcp(tcp.local_addr().unwrap());
        let server = thread::spawn(move || {
            let mut socket = listener.accept().unwrap();
            for answer in answers {
                // A request is one segment, or less than one: the client waits for its answer.
                let num_read = socket.read(&mut [0; 4096]).unwrap();
                assert!(num_read > 0);
                socket.write_all(answer.as_bytes()).unwrap();
            }
        });
        let mut client = Client::new(&endpoint, 0, 1).unwrap();
        requests(&mut client).unwrap();
        server.join().unwrap();
        client.counts
    }

    fn store(client: &mut Client<'_>, content: &[u8]) -> io::Result<()> {
        client.store(&format!("set client-0-key-50 0 0 {}", content.len()), 50, content, content.into())
    }

    #[test]
    fn a_wrong_value_is_noticed_and_a_right_one_is_not() {
        let value = "VALUE client-0-key-50 0 3\r\nnew\r\nEND\r\n";
        let stored = ["STORED\r\n", "STORED\r\n"];
        let both = |client: &mut Client<'_>| store(client, b"old").and_then(|()| store(client, b"new")).and_then(|()| client.get(&[50]));
        let answers = |answer| Box::leak(Box::new([stored[0], stored[1], answer])).as_slice();
        assert_eq!(counts(answers(value), both).wrong_values, 0);
        for wrong in [
            "VALUE client-0-key-50 0 3\r\nold\r\nEND\r\n",
            "VALUE client-0-key-50 0 3\r\nnfw\r\nEND\r\n",
            "VALUE client-0-key-50 0 2\r\nne\r\nEND\r\n",
            "VALUE client-0-key-51 0 3\r\nnew\r\nEND\r\n",
            "ERROR\r\n",
        ] {
            let counts = counts(answers(wrong), both);
            assert_eq!(counts.wrong_values, 1, "{wrong:?}");
            assert!(counts.first_wrong.is_some());
        }
        let counts = counts(answers("END\r\n"), both);
        assert_eq!((counts.wrong_values, counts.misses, counts.gone), (0, 1, 1));
    }

    #[test]
    fn a_deleted_value_is_wrong_and_one_of_a_failed_store_may_be_there() {
        let counts_of = |answers| {
            counts(answers, |client| {
                store(client, b"old")?;
                store(client, b"new")?;
                client.get(&[50])?;
                client.delete(50)?;
                client.get(&[50])
            })
        };
        let refused = "SERVER_ERROR out of memory storing object\r\n";
        let (old, new) = ("VALUE client-0-key-50 0 3\r\nold\r\nEND\r\n", "VALUE client-0-key-50 0 3\r\nnew\r\nEND\r\n");
        let answers = |first, last| Box::leak(Box::new(["STORED\r\n", refused, first, "DELETED\r\n", last])).as_slice();
        assert_eq!(counts_of(answers(old, "END\r\n")).wrong_values, 0);
        assert_eq!(counts_of(answers(new, "END\r\n")).wrong_values, 0);
        assert_eq!(counts_of(answers(new, new)).wrong_values, 1);
    }

    #[test]
    fn a_miss_after_a_change_that_failed_is_doubtful() {
        let refused = "SERVER_ERROR out of memory storing object\r\n";
        // The first store of a key fails: the server has nothing that it could lose.
        let counts_of_store = counts(Box::leak(Box::new([refused, "END\r\n"])), |client| {
            store(client, b"new")?;
            client.get(&[50])
        });
        assert_eq!((counts_of_store.misses, counts_of_store.gone, counts_of_store.doubtful_misses), (1, 0, 1));
        assert_eq!(counts_of_store.errors_by_answer.get(refused.trim_end()), Some(&1));
        // A removal fails, and may have taken place.
        let counts_of_delete = counts(Box::leak(Box::new(["STORED\r\n", refused, "END\r\n"])), |client| {
            store(client, b"new")?;
            client.delete(50)?;
            client.get(&[50])
        });
        assert_eq!((counts_of_delete.gone, counts_of_delete.doubtful_misses), (0, 1));
    }

    #[test]
    fn a_silent_server_is_a_failure() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = Endpoint::Tcp(listener.local_addr().unwrap());
        let error = Client::new(&endpoint, 0, 1).unwrap().run(&AtomicBool::new(true)).unwrap_err();
        assert!(error.to_string().contains("did not answer"), "{error}");
    }
}
