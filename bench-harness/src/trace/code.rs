//! Which code faults: sampled instructions, each with the file it is mapped from.

use std::collections::HashMap;
use std::fs;

use lightswap::tracer::Sample;

/// Different instructions that are kept; those that come later are counted together.
const MAX_PLACES: usize = 4096;

/// A mapping of code.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mapping {
    start: u64,
    end: u64,
    offset: u64,
    file: String,
}

#[derive(Debug)]
pub struct Code {
    pid: u32,
    num_samples: u64,
    places: HashMap<u64, u64>,
    mappings: Vec<Mapping>,
}

impl Code {
    pub fn new(pid: u32) -> Self {
        let mut code = Self { pid, num_samples: 0, places: HashMap::new(), mappings: Vec::new() };
        code.learn();
        code
    }

    pub fn add(&mut self, sample: &Sample) {
        self.num_samples += 1;
        if self.places.len() < MAX_PLACES || self.places.contains_key(&sample.instruction) {
            *self.places.entry(sample.instruction).or_default() += 1;
        }
    }

    /// Looks what is mapped where now.
    pub fn learn(&mut self) {
        if let Ok(maps) = fs::read_to_string(format!("/proc/{}/maps", self.pid)) {
            self.mappings = maps.lines().filter_map(parse).collect();
        }
    }

    /// The places that fault most, with their share of the samples.
    pub fn top(&self, num: usize) -> Vec<(String, f64)> {
        let mut places: Vec<(u64, u64)> = self.places.iter().map(|(instruction, count)| (*instruction, *count)).collect();
        places.sort_by_key(|(instruction, count)| (std::cmp::Reverse(*count), *instruction));
        let named = |(instruction, count): (u64, u64)| (self.name(instruction), count as f64 / self.num_samples as f64);
        places.into_iter().take(num).map(named).collect()
    }

    /// `memcached+0x1a2b0`, as `addr2line` and `objdump` take it.
    fn name(&self, instruction: u64) -> String {
        match self.mappings.iter().find(|mapping| (mapping.start..mapping.end).contains(&instruction)) {
            Some(mapping) => format!("{}+{:#x}", mapping.file, instruction - mapping.start + mapping.offset),
            None => format!("{instruction:#x}"),
        }
    }
}

/// A line of /proc/PID/maps, if it is of code from a file.
fn parse(line: &str) -> Option<Mapping> {
    let mut fields = line.split_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let is_code = fields.next()?.contains('x');
    let hexadecimal = |text: &str| u64::from_str_radix(text, 16).ok();
    let offset = hexadecimal(fields.next()?)?;
    let path = fields.nth(2)?;
    let file = path.rsplit('/').next().unwrap_or(path).to_owned();
    is_code.then_some(Mapping { start: hexadecimal(start)?, end: hexadecimal(end)?, offset, file })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_named_by_file_and_offset_and_counted() {
        let mut code = Code::new(std::process::id());
        let lines = ["1000-3000 r-xp 00000400 fe:01 12 /usr/bin/memcached", "5000-6000 rw-p 0 0:0 0 [heap]", "7000-8000 r-xp 0 0:0 0"];
        code.mappings = lines.iter().filter_map(|line| parse(line)).collect();
        assert_eq!(code.mappings.len(), 1);
        for instruction in [0x1010, 0x1010, 0x1010, 0x9999] {
            code.add(&Sample { fault_ns: 0, address: 0, instruction, error: 0, tid: 1 });
        }
        assert_eq!(code.top(5), [("memcached+0x410".to_owned(), 0.75), ("0x9999".to_owned(), 0.25)]);
        assert_eq!(code.top(1).len(), 1);
    }
}
