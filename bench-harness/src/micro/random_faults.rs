//! LWTs that access uniformly random pages of a region whose local memory is a fraction of it: faults a second and CPU a fault, everything included.

use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use anyhow::Result;
use lightswap::{Contract, FaultReturn, Lightswap, PAGE_SIZE};

use super::cpu_seconds;
use super::pages::{Content, Filled, Pages};
use crate::random::Random;

/// What an LWT does with a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Read,
    /// Asks for it first, then reads.
    Touch,
    /// Reads and writes, so that the page has to be written to the backend when it goes. Without a pin, which takes the transparent contract.
    Write,
}

#[derive(Debug, Clone)]
pub struct RandomFaults {
    /// A URL.
    pub backend: String,
    pub region_bytes: u64,
    /// Local memory as a fraction of the region.
    pub ratio: f64,
    pub content: Content,
    pub contract: Contract,
    pub access: Access,
    pub fault_return: FaultReturn,
    pub workers: u32,
    /// Of one worker.
    pub lwts: u32,
    pub duration: Duration,
    pub seed: u64,
}

#[derive(Debug, Clone)]
pub struct Measured {
    pub faults_per_second: f64,
    pub cpu_us_per_fault: f64,
    /// Pages that were written to the backend, over pages that were read from it.
    pub writes_per_fault: f64,
    /// All of the instance's statistics at the end.
    pub statistics: Vec<(&'static str, u64)>,
}

impl Measured {
    pub fn statistic(&self, name: &str) -> Option<u64> {
        self.statistics.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
    }
}

impl RandomFaults {
    pub fn measure(&self) -> Result<Measured> {
        let page = PAGE_SIZE as u64;
        let local_bytes = (self.region_bytes as f64 * self.ratio) as u64 / page * page;
        let builder = Lightswap::builder().local_memory(local_bytes).backend(&self.backend).max_workers(self.workers as usize);
        let swap = builder.fault_return(self.fault_return).open()?;
        let filled = Filled::new(swap, usize::try_from(self.region_bytes)?, self.contract, self.content)?;
        let pages = Pages::of(&filled.region);
        let start = Arc::new(Barrier::new(self.workers as usize + 1));
        let (reads_before, writes_before) = (filled.statistic("swap_ins")?, filled.statistic("dirty_evictions")?);
        let (mut elapsed, mut cpu) = (Duration::ZERO, 0.0);
        std::thread::scope(|scope| -> Result<()> {
            let threads: Vec<_> = (0..self.workers)
                .map(|number| {
                    let (swap, start) = (filled.swap.clone(), Arc::clone(&start));
                    scope.spawn(move || -> Result<()> {
                        let worker = swap.enter_worker()?;
                        start.wait();
                        let end = Instant::now() + self.duration;
                        for lwt in 0..self.lwts {
                            let random = Random::new(self.seed << 32 | u64::from(number * self.lwts + lwt));
                            let access = self.access;
                            worker.start(move || access_until(end, pages, access, random))?;
                        }
                        worker.run();
                        Ok(())
                    })
                })
                .collect();
            start.wait();
            let (cpu_before, began) = (cpu_seconds(), Instant::now());
            for thread in threads {
                thread.join().expect("a measuring thread does not panic")?;
            }
            (elapsed, cpu) = (began.elapsed(), cpu_seconds() - cpu_before);
            Ok(())
        })?;
        let faults = (filled.statistic("swap_ins")? - reads_before).max(1) as f64;
        Ok(Measured {
            faults_per_second: faults / elapsed.as_secs_f64(),
            cpu_us_per_fault: cpu * 1e6 / faults,
            writes_per_fault: (filled.statistic("dirty_evictions")? - writes_before) as f64 / faults,
            statistics: filled.swap.stats(),
        })
    }
}

/// One LWT: accesses random pages until the end.
fn access_until(end: Instant, pages: Pages, access: Access, mut random: Random) {
    loop {
        for _ in 0..32 {
            let page = pages.draw(&mut random);
            if access == Access::Touch {
                lightswap::touch(pages.address(page).cast(), 8).expect("inside the region");
            }
            pages.read(page);
            if access == Access::Write {
                pages.change(page, random.next_u64());
            }
        }
        if Instant::now() >= end {
            return;
        }
    }
}
