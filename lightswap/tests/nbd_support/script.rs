//! What a scripted server does wrong, and how it behaves while it does nothing wrong. Tests change it while the server runs.

use super::protocol::{Command, Request};
use crate::common::Random;
use std::time::Duration;

/// What is done with a request instead of doing and answering it. Where nothing else is said, the request is done all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Not done; the reply says so.
    Errno(u32),
    /// Done and answered later than those that follow.
    Delay(Duration),
    /// The connection is closed; the request is not done.
    CloseBefore,
    /// The connection is closed instead of a reply.
    CloseAfter,
    /// The connection is closed after so many bytes of the reply: within its header below 16, within the payload above.
    CloseWithin(usize),
    /// No reply to this one; it is not done.
    Ignore,
    /// From here on the connection's requests are read, and none of them done or answered.
    Mute,
    /// From here on nothing of the connection is read or written, and it stays open.
    Freeze,
    /// The reply has a cookie that no request had.
    UnknownCookie,
    /// The reply has the cookie of a request that was answered before.
    OldCookie,
    /// The reply comes twice.
    Twice,
    /// The reply begins with a wrong magic number.
    WrongMagic,
    /// The reply is a structured one, which nobody has asked for.
    Structured,
    /// So many bytes more than a reply has.
    Longer(usize),
    /// So many bytes less than the payload has; of a reply without any, of the header.
    Shorter(usize),
    /// An error, with the payload that only a success has.
    ErrorWithPayload,
    /// So many random bytes instead of a reply.
    Garbage(usize),
    /// A bit of the reply's magic number or error is wrong.
    Mutated,
    /// A byte of the payload is wrong.
    Flip,
    /// The payload is that of the pages behind.
    Misdirect,
}

/// One thing that goes wrong, and when.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    action: Action,
    /// `None`: any but [`Command::Disconnect`].
    command: Option<Command>,
    skip: u64,
    times: u64,
    /// How likely it is for each request, in parts of 10,000.
    chance: usize,
}

impl Rule {
    /// Once, with the next request of any kind.
    pub fn new(action: Action) -> Self {
        Self { action, command: None, skip: 0, times: 1, chance: 10_000 }
    }

    pub fn of(self, command: Command) -> Self {
        Self { command: Some(command), ..self }
    }

    /// Not with the first `count` of those that it is for.
    pub fn after(self, count: u64) -> Self {
        Self { skip: count, ..self }
    }

    pub fn times(self, times: u64) -> Self {
        Self { times, ..self }
    }

    pub fn always(self) -> Self {
        self.times(u64::MAX)
    }

    /// Not with each, but with so many of 10,000.
    pub fn chance(self, chance: usize) -> Self {
        Self { chance, ..self }
    }

    fn is_for(&self, request: &Request) -> bool {
        self.command.map_or(request.command != Command::Disconnect, |command| command == request.command)
    }
}

#[derive(Debug)]
pub struct Script {
    /// So many replies are held back, as far as there are, and sent in random order; requests are done in that order, too.
    pub hold: usize,
    /// Each reply comes so much later than it could.
    pub delay: Duration,
    /// Sockets are written and read in pieces of so many bytes; 0: as large as may be.
    pub piece: usize,
    /// Writes and trims that a lost connection leaves behind are still done some time later, as by a server whose disk is slow.
    pub stragglers: Option<Duration>,
    /// Rules are not for requests of the mark that clients leave behind the pages, which begins here.
    pub spared_from: Option<u64>,
    pub random: Random,
    rules: Vec<Rule>,
    /// Rules that were followed, one for each time.
    followed: Vec<Action>,
}

impl Script {
    pub fn new(seed: u64) -> Self {
        Self {
            hold: 0,
            delay: Duration::ZERO,
            piece: 0,
            stragglers: None,
            spared_from: None,
            random: Random::new(seed),
            rules: Vec::new(),
            followed: Vec::new(),
        }
    }

    pub fn add(&mut self, rule: Rule) {
        self.rules.push(rule);
    }

    /// Nothing goes wrong any more, and replies come at once and in order.
    pub fn behave(&mut self) {
        self.rules.clear();
        (self.hold, self.delay, self.piece, self.stragglers) = (0, Duration::ZERO, 0, None);
    }

    pub fn followed(&self) -> &[Action] {
        &self.followed
    }

    /// What goes wrong with the request: by the first rule whose turn it is.
    pub fn action_for(&mut self, request: &Request) -> Option<Action> {
        let Self { rules, random, followed, .. } = self;
        if self.spared_from.is_some_and(|start| request.offset >= start && request.command != Command::Flush) {
            return None;
        }
        for rule in rules.iter_mut().filter(|rule| rule.times > 0 && rule.is_for(request)) {
            if rule.skip > 0 {
                rule.skip -= 1;
            } else if random.below(10_000) < rule.chance {
                rule.times = rule.times.saturating_sub(u64::from(rule.times != u64::MAX));
                followed.push(rule.action);
                return Some(rule.action);
            }
        }
        None
    }
}
