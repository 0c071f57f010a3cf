//! The schedule of a `faulty(...)` backend: which I/O goes wrong, and how.
//!
//! ```text
//! schedule := [ item { ";" item } [ ";" ] ]
//! item     := "seed=" NUMBER | rule
//! rule     := ( "read" | "write" ) trigger "=" action
//! trigger  := "@" N | "@" N "+" | "@" N ".." M | "%" P
//! action   := ERRNO | "short" [ ":" BYTES ] | "flip" [ ":" BITS ] | "misdirect" | "torn" | "stall:" MS | "delay:" MS | "dead" [ ":" MS ]
//! ```
//! Reads and writes are counted apart, from 1. What happens to an I/O follows from the seed, its kind and its number, and from nothing else.

use crate::size::PAGE_SIZE;
use std::ops::RangeInclusive;

/// Longest delay of a completion.
pub(super) const MAX_DELAY_MS: u32 = 200_000;
/// Most bits of a page that one fault flips.
pub(super) const MAX_FLIPPED_BITS: u32 = 255;
/// Every I/O is held against all rules.
const MAX_RULES: usize = 100;
/// Most bytes of a write that comes out short.
const MAX_SHORT_WRITE_BYTES: u32 = 1 << 20;
/// A probability is a number of so many parts.
const CHANCE_PARTS: u64 = 1 << 53;

/// What an I/O does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Read,
    Write,
}

/// What goes wrong with an I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It fails with this errno.
    Errno(i32),
    /// Only so many bytes are transferred; `None`: half of them.
    Short(Option<u32>),
    /// So many bits of what is read are flipped.
    Flip(u32),
    /// The content of another slot is read.
    Misdirect,
    /// Only the beginning is written, and success is reported.
    Torn,
    /// This and all others fail with ENODEV, for so long or for ever.
    Dead { duration_ms: Option<u32> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Fault(Fault),
    /// It completes so much later.
    Stall(u32),
    /// It completes later, by up to so much.
    Delay(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trigger {
    Numbers {
        first: u64,
        last: u64,
    },
    /// So many of [`CHANCE_PARTS`].
    Chance(u64),
}

impl Trigger {
    fn hits(self, number: u64, random: u64) -> bool {
        match self {
            Self::Numbers { first, last } => (first..=last).contains(&number),
            Self::Chance(parts) => random % CHANCE_PARTS < parts,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule {
    operation: Operation,
    trigger: Trigger,
    action: Action,
}

/// A schedule that was parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Schedule {
    seed: u64,
    rules: Box<[Rule]>,
}

/// What becomes of one I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) fault: Option<Fault>,
    pub(super) delay_ms: u32,
    /// For what the fault leaves to chance.
    pub(super) random: u64,
}

impl Schedule {
    /// What becomes of an I/O: the first rule with a fault that hits it decides, and the delays of all that do add up. Async-signal-safe.
    pub(super) fn verdict(&self, operation: Operation, number: u64) -> Verdict {
        let mut verdict = Verdict { fault: None, delay_ms: 0, random: self.draw(operation, number, 0) };
        for (index, rule) in self.rules.iter().enumerate() {
            let random = self.draw(operation, number, index as u64 + 1);
            if rule.operation != operation || !rule.trigger.hits(number, random) {
                continue;
            }
            match rule.action {
                Action::Fault(fault) => verdict.fault = verdict.fault.or(Some(fault)),
                Action::Stall(delay_ms) => verdict.delay_ms += delay_ms,
                Action::Delay(most_ms) => verdict.delay_ms += (mix(random) % (u64::from(most_ms) + 1)) as u32,
            }
        }
        verdict.delay_ms = verdict.delay_ms.min(MAX_DELAY_MS);
        verdict
    }

    fn draw(&self, operation: Operation, number: u64, of: u64) -> u64 {
        mix(mix(self.seed.wrapping_add(of << 1 | operation as u64)) ^ number)
    }

    pub(super) fn parse(text: &str) -> Result<Self, Misfit> {
        let mut reader = Reader { text, at: 0 };
        let mut seed = None;
        let mut rules = Vec::new();
        reader.skip_spaces();
        while !reader.is_at_end() {
            let start = reader.at;
            if reader.eat("seed") {
                reader.expect("=")?;
                if seed.replace(reader.number("the seed, a whole number,")?).is_some() {
                    return Err(Misfit::new(start, "the seed is given twice"));
                }
            } else {
                if rules.len() == MAX_RULES {
                    return Err(Misfit::new(start, format!("more than {MAX_RULES} rules")));
                }
                rules.push(reader.rule()?);
            }
            reader.skip_spaces();
            if !reader.is_at_end() {
                reader.expect(";")?;
                reader.skip_spaces();
            }
        }
        Ok(Self { seed: seed.unwrap_or(1), rules: rules.into() })
    }
}

/// Scrambles a number (the finaliser of SplitMix64).
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let value = (value ^ value >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ value >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ value >> 31
}

/// Where a schedule does not parse, and why.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Misfit {
    /// Byte of the schedule.
    pub(super) at: usize,
    pub(super) what: String,
}

impl Misfit {
    fn new(at: usize, what: impl Into<String>) -> Self {
        Self { at, what: what.into() }
    }
}

struct Reader<'a> {
    text: &'a str,
    /// Always between two characters.
    at: usize,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn is_at_end(&self) -> bool {
        self.at == self.text.len()
    }

    fn skip_spaces(&mut self) {
        self.take_while(|c| c == ' ');
    }

    fn eat(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        self.at += if found { token.len() } else { 0 };
        found
    }

    fn expect(&mut self, token: &str) -> Result<(), Misfit> {
        if self.eat(token) { Ok(()) } else { Err(self.misfit(format!("\"{token}\" is expected"))) }
    }

    fn misfit(&self, what: impl Into<String>) -> Misfit {
        Misfit::new(self.at, what)
    }

    fn take_while(&mut self, accepts: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let len = rest.find(|c| !accepts(c)).unwrap_or(rest.len());
        self.at += len;
        &rest[..len]
    }

    fn number(&mut self, what: &str) -> Result<u64, Misfit> {
        let start = self.at;
        let digits = self.take_while(|c| c.is_ascii_digit());
        if digits.is_empty() {
            return Err(Misfit::new(start, format!("{what} is expected")));
        }
        digits.parse().map_err(|_| Misfit::new(start, "the number is too large"))
    }

    fn rule(&mut self) -> Result<Rule, Misfit> {
        let operation = if self.eat("read") {
            Operation::Read
        } else if self.eat("write") {
            Operation::Write
        } else {
            return Err(self.misfit("a rule is expected, which begins with read or write, or seed=NUMBER"));
        };
        let trigger = self.trigger()?;
        self.expect("=")?;
        Ok(Rule { operation, trigger, action: self.action(operation)? })
    }

    fn trigger(&mut self) -> Result<Trigger, Misfit> {
        if self.eat("%") {
            let start = self.at;
            let text = self.take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+'));
            let probability = text.parse().ok().filter(|probability| (0.0..=1.0f64).contains(probability));
            let probability = probability.ok_or_else(|| Misfit::new(start, "a probability from 0 to 1 is expected, such as 0.01"))?;
            return Ok(Trigger::Chance((probability * CHANCE_PARTS as f64) as u64));
        }
        if !self.eat("@") {
            return Err(self.misfit("which ones is expected: @N, @N+ (from then on), @N..M, or %P (with this probability)"));
        }
        let (start, what) = (self.at, "the number of an I/O, from 1 on,");
        let first = self.number(what)?;
        if first == 0 {
            return Err(Misfit::new(start, "I/Os are counted from 1"));
        }
        if self.eat("+") {
            return Ok(Trigger::Numbers { first, last: u64::MAX });
        }
        if !self.eat("..") {
            return Ok(Trigger::Numbers { first, last: first });
        }
        let start = self.at;
        let last = self.number(what)?;
        if last < first {
            return Err(Misfit::new(start, format!("the range ends before {first}, where it begins")));
        }
        Ok(Trigger::Numbers { first, last })
    }

    fn action(&mut self, operation: Operation) -> Result<Action, Misfit> {
        let start = self.at;
        let name = self.take_while(|c| c.is_alphanumeric());
        let only_of = |wanted: Operation, of: &str| {
            if operation == wanted { Ok(()) } else { Err(Misfit::new(start, format!("{name} is for {of} only"))) }
        };
        let action = match name {
            "short" => {
                let most = if operation == Operation::Read { PAGE_SIZE as u32 - 1 } else { MAX_SHORT_WRITE_BYTES };
                Action::Fault(Fault::Short(self.argument("bytes", 0..=most)?))
            }
            "flip" => {
                only_of(Operation::Read, "reads")?;
                Action::Fault(Fault::Flip(self.argument("bits", 1..=MAX_FLIPPED_BITS)?.unwrap_or(1)))
            }
            "misdirect" => {
                only_of(Operation::Read, "reads")?;
                Action::Fault(Fault::Misdirect)
            }
            "torn" => {
                only_of(Operation::Write, "writes")?;
                Action::Fault(Fault::Torn)
            }
            "stall" => Action::Stall(self.duration()?),
            "delay" => Action::Delay(self.duration()?),
            "dead" => Action::Fault(Fault::Dead { duration_ms: self.argument("milliseconds", 1..=u32::MAX)? }),
            _ => {
                let known = ERRNOS.iter().find(|(known, _)| *known == name);
                let (_, errno) = known.ok_or_else(|| {
                    Misfit::new(
                        start,
                        format!("{name:?} is no action: there are errors such as EIO, short, flip, misdirect, torn, stall, delay, and dead"),
                    )
                })?;
                Action::Fault(Fault::Errno(*errno))
            }
        };
        Ok(action)
    }

    /// The number after an action's colon, if there is one.
    fn argument(&mut self, what: &str, range: RangeInclusive<u32>) -> Result<Option<u32>, Misfit> {
        if !self.eat(":") {
            return Ok(None);
        }
        let start = self.at;
        let number = self.number(&format!("a number of {what}"))?;
        match u32::try_from(number).ok().filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(Misfit::new(start, format!("{} to {} {what} are possible", range.start(), range.end()))),
        }
    }

    fn duration(&mut self) -> Result<u32, Misfit> {
        let milliseconds = self.argument("milliseconds", 1..=MAX_DELAY_MS)?;
        milliseconds.ok_or_else(|| self.misfit("\":\" and a number of milliseconds are expected"))
    }
}

/// Those that devices, file systems and connections return.
const ERRNOS: [(&str, i32); 29] = [
    ("EIO", libc::EIO),
    ("ENOSPC", libc::ENOSPC),
    ("ETIMEDOUT", libc::ETIMEDOUT),
    ("ENODEV", libc::ENODEV),
    ("ENXIO", libc::ENXIO),
    ("EBADF", libc::EBADF),
    ("ENOTCONN", libc::ENOTCONN),
    ("EAGAIN", libc::EAGAIN),
    ("EINTR", libc::EINTR),
    ("EINVAL", libc::EINVAL),
    ("ENOMEM", libc::ENOMEM),
    ("EBUSY", libc::EBUSY),
    ("EFBIG", libc::EFBIG),
    ("EROFS", libc::EROFS),
    ("EDQUOT", libc::EDQUOT),
    ("EPERM", libc::EPERM),
    ("EACCES", libc::EACCES),
    ("EFAULT", libc::EFAULT),
    ("EPIPE", libc::EPIPE),
    ("ECONNRESET", libc::ECONNRESET),
    ("ECONNABORTED", libc::ECONNABORTED),
    ("ESHUTDOWN", libc::ESHUTDOWN),
    ("EHOSTDOWN", libc::EHOSTDOWN),
    ("ENODATA", libc::ENODATA),
    ("EBADMSG", libc::EBADMSG),
    ("EILSEQ", libc::EILSEQ),
    ("EREMOTEIO", libc::EREMOTEIO),
    ("ENOLINK", libc::ENOLINK),
    ("ECANCELED", libc::ECANCELED),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Schedule {
        Schedule::parse(text).unwrap_or_else(|misfit| panic!("{text:?}: {misfit:?}"))
    }

    fn faults(text: &str, operation: Operation, numbers: std::ops::Range<u64>) -> Vec<Option<Fault>> {
        numbers.map(|number| of(text).verdict(operation, number).fault).collect()
    }

    #[test]
    fn every_form_parses() {
        for text in
            ["", " ", "seed=7", "seed=7;", "read@1=EIO", " read@1=EIO ; seed=3 ; ", "write@3..3=dead", "read%0=EIO", "read%1=EIO", "read%1e-4=flip"]
        {
            of(text);
        }
        let rule = |text: &str| of(text).rules[0];
        let expected = |operation, trigger, action| Rule { operation, trigger, action };
        let all = Trigger::Numbers { first: 1, last: u64::MAX };
        assert_eq!(rule("read@1+=short"), expected(Operation::Read, all, Action::Fault(Fault::Short(None))));
        assert_eq!(rule("read@1+=short:0").action, Action::Fault(Fault::Short(Some(0))));
        assert_eq!(rule("write@1+=short:8192"), expected(Operation::Write, all, Action::Fault(Fault::Short(Some(8192)))));
        assert_eq!(rule("read@1+=flip").action, Action::Fault(Fault::Flip(1)));
        assert_eq!(rule("read@1+=flip:255").action, Action::Fault(Fault::Flip(255)));
        assert_eq!(rule("read@2..9=misdirect").trigger, Trigger::Numbers { first: 2, last: 9 });
        assert_eq!(rule("write%0.5=torn"), expected(Operation::Write, Trigger::Chance(1 << 52), Action::Fault(Fault::Torn)));
        assert_eq!(rule("read@5=stall:1500"), expected(Operation::Read, Trigger::Numbers { first: 5, last: 5 }, Action::Stall(1500)));
        assert_eq!(rule("write@1+=delay:20").action, Action::Delay(20));
        assert_eq!(rule("read@1+=dead").action, Action::Fault(Fault::Dead { duration_ms: None }));
        assert_eq!(rule("read@1+=dead:100").action, Action::Fault(Fault::Dead { duration_ms: Some(100) }));
        for (name, errno) in ERRNOS {
            assert_eq!(rule(&format!("write@1={name}")).action, Action::Fault(Fault::Errno(errno)));
        }
        assert_eq!(of("read@1=EIO;seed=18446744073709551615").seed, u64::MAX);
        assert_eq!(of(&"read@1=EIO;".repeat(MAX_RULES)).rules.len(), MAX_RULES);
    }

    #[test]
    fn what_does_not_parse_is_refused_with_its_position() {
        for (text, at, part) in [
            ("reed@1=EIO", 0, "a rule is expected"),
            ("seed", 4, "\"=\" is expected"),
            ("seed=", 5, "the seed"),
            ("seed=x", 5, "the seed"),
            ("seed=-1", 5, "the seed"),
            ("seed=1;seed=2", 7, "twice"),
            ("seed=99999999999999999999", 5, "too large"),
            ("seed=1 read@1=EIO", 7, "\";\" is expected"),
            (";", 0, "a rule is expected"),
            ("read@1=EIO;;", 11, "a rule is expected"),
            ("read", 4, "which ones"),
            ("read=EIO", 4, "which ones"),
            ("read@", 5, "the number of an I/O"),
            ("read@=EIO", 5, "the number of an I/O"),
            ("read@x=EIO", 5, "the number of an I/O"),
            ("read@0=EIO", 5, "counted from 1"),
            ("read@7..6=EIO", 8, "ends before 7"),
            ("read@7..=EIO", 8, "the number of an I/O"),
            ("read@7-9=EIO", 6, "\"=\" is expected"),
            ("read%=EIO", 5, "a probability"),
            ("read%1.5=EIO", 5, "a probability"),
            ("read%-1=EIO", 5, "a probability"),
            ("read%nan=EIO", 5, "a probability"),
            ("read%inf=EIO", 5, "a probability"),
            ("read@1", 6, "\"=\" is expected"),
            ("read@1=", 7, "is no action"),
            ("read@1=EFOO", 7, "\"EFOO\" is no action"),
            ("read@1=eio", 7, "is no action"),
            ("read@1=EIO:5", 10, "\";\" is expected"),
            ("read@1=torn", 7, "torn is for writes only"),
            ("write@1=flip", 8, "flip is for reads only"),
            ("write@1=misdirect", 8, "misdirect is for reads only"),
            ("read@1=short:4096", 13, "0 to 4095 bytes"),
            ("read@1=flip:0", 12, "1 to 255 bits"),
            ("read@1=flip:256", 12, "1 to 255 bits"),
            ("read@1=flip:", 12, "a number of bits"),
            ("read@1=stall", 12, "milliseconds"),
            ("read@1=stall:0", 13, "1 to 200000 milliseconds"),
            ("read@1=delay:200001", 13, "1 to 200000 milliseconds"),
            ("read@1=dead:0", 12, "milliseconds"),
            ("read@1=EIO;write@2=dé", 19, "\"dé\" is no action"),
            ("read@1=E\0", 7, "is no action"),
        ] {
            let misfit = Schedule::parse(text).expect_err(text);
            assert_eq!(misfit.at, at, "{text:?}: {misfit:?}");
            assert!(misfit.what.contains(part), "{text:?}: {misfit:?} should contain {part:?}");
        }
        let many = "read@1=EIO;".repeat(MAX_RULES) + "write@1=EIO";
        assert_eq!(Schedule::parse(&many).unwrap_err().at, 11 * MAX_RULES);
    }

    #[test]
    fn the_right_ones_are_hit() {
        let eio = Some(Fault::Errno(libc::EIO));
        assert_eq!(faults("read@2=EIO", Operation::Read, 1..5), [None, eio, None, None]);
        assert_eq!(faults("read@2=EIO", Operation::Write, 1..5), [None; 4]);
        assert_eq!(faults("write@2+=EIO", Operation::Write, 1..5), [None, eio, eio, eio]);
        assert_eq!(faults("write@2..3=EIO", Operation::Write, 1..5), [None, eio, eio, None]);
        assert_eq!(faults("read%1=EIO", Operation::Read, 1..3), [eio, eio]);
        assert!(faults("read%0=EIO", Operation::Read, 1..1000).iter().all(Option::is_none));
        // The first rule decides, and delays add up beside it.
        let verdict = of("read@1=stall:5;read@1=EIO;read@1=flip;read@1=stall:7").verdict(Operation::Read, 1);
        assert_eq!((verdict.fault, verdict.delay_ms), (eio, 12));
        let both = of("read@1=stall:200000;read@1=stall:200000").verdict(Operation::Read, 1);
        assert_eq!(both.delay_ms, MAX_DELAY_MS);
    }

    #[test]
    fn chances_and_delays_follow_the_seed() {
        let schedule = "read%0.1=EIO;write%0.1=EIO;read@1+=delay:20";
        let verdicts = |seed: u64, operation| {
            let schedule = of(&format!("seed={seed};{schedule}"));
            (1..10_000).map(|number| schedule.verdict(operation, number)).collect::<Vec<_>>()
        };
        assert_eq!(verdicts(5, Operation::Read), verdicts(5, Operation::Read));
        let hits = |verdicts: &[Verdict]| verdicts.iter().map(|verdict| verdict.fault.is_some()).collect::<Vec<_>>();
        let of_seed_5 = hits(&verdicts(5, Operation::Read));
        assert_ne!(of_seed_5, hits(&verdicts(6, Operation::Read)));
        assert_ne!(of_seed_5, hits(&verdicts(5, Operation::Write)), "reads and writes draw apart");
        // Ten per cent of ten thousand, give or take six standard deviations.
        assert!((820..1180).contains(&of_seed_5.iter().filter(|hit| **hit).count()));
        let delays: std::collections::BTreeSet<u32> = verdicts(5, Operation::Read).iter().map(|verdict| verdict.delay_ms).collect();
        assert!(delays.into_iter().eq(0..=20), "every delay occurs, and none that is longer");
    }
}
