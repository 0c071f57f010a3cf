//! `micro regions`: what grows with the size of a region, when the pages in use are as many in each and spread evenly over it. The regions are transparent,
//! as memcached's are.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use lightswap::{Contract, Lightswap, PAGE_SIZE, Region, format_size};

use super::pages::{Content, Pages, fill};
use super::{Findings, contract_name, cpu_seconds, median, now_ns, parse_seconds};
use crate::interrupt;
use crate::process;
use crate::progress::Progress;
use crate::random::Random;
use crate::results::Micro;
use crate::units::parse_size;

#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Sizes of regions
    #[arg(long, value_delimiter = ',', default_value = "1GiB,16GiB,128GiB,1TiB", value_parser = parse_size)]
    sizes: Vec<u64>,
    /// Pages in use, spread evenly over the region; local memory is a quarter of them
    #[arg(long, default_value_t = 65_536, value_parser = clap::value_parser!(u64).range(16_384..=1 << 28))]
    pages: u64,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 1.0, value_parser = parse_seconds)]
    seconds: f64,
    /// Times that all points are measured in turn
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repetitions: u32,
}

const CONTRACT: Contract = Contract::Transparent;

#[derive(Debug, Clone, Copy)]
struct Measured {
    create_us: f64,
    cpu_us_per_fault: f64,
    metadata_bytes: f64,
}

pub fn run(options: &Options) -> Result<Findings> {
    let page = PAGE_SIZE as u64;
    if let Some(&size) = options.sizes.iter().find(|&&size| size / page < options.pages) {
        bail!("a region of {} has no {} pages; give smaller --pages or larger --sizes", format_size(size), options.pages);
    }
    let mut points: Vec<(u64, Vec<Measured>)> = options.sizes.iter().map(|&size| (size, Vec::new())).collect();
    let total = points.len() as u64 * u64::from(options.repetitions);
    let mut progress = Progress::start("region sizes", total);
    let mut num_done = 0;
    for repetition in 0..options.repetitions {
        for (size, measured) in &mut points {
            interrupt::check()?;
            measured.push(measure(options, *size, u64::from(repetition))?);
            num_done += 1;
            progress.update(num_done, "");
        }
    }
    progress.finish(&format!("{total} measurements"));
    say!("{} B of metadata for a page of a region, resident or not, once the page or one near it was used", Region::METADATA_BYTES_PER_PAGE);
    let mut findings = Findings::default();
    for (region_bytes, measured) in points {
        let all = |number: fn(&Measured) -> f64| measured.iter().map(number).collect::<Vec<_>>();
        findings.add(all(|measured| measured.create_us), |create_us| Micro::RegionSize {
            region_bytes,
            contract: contract_name(CONTRACT).into(),
            create_us,
            cpu_us_per_fault: median(all(|measured| measured.cpu_us_per_fault)),
            metadata_bytes: median(all(|measured| measured.metadata_bytes)) as u64,
        });
    }
    Ok(findings)
}

fn resident_bytes() -> Result<u64> {
    Ok(process::resident(std::process::id())?.now_bytes)
}

fn measure(options: &Options, region_bytes: u64, seed: u64) -> Result<Measured> {
    let in_use_bytes = options.pages * PAGE_SIZE as u64;
    let resident_before = resident_bytes()?;
    let swap = Lightswap::builder().local_memory(in_use_bytes / 4).backend(format!("memory:?size={region_bytes}")).open()?;
    let start_ns = now_ns();
    let region = swap.create_region(usize::try_from(region_bytes)?, CONTRACT)?;
    let create_us = (now_ns() - start_ns) as f64 / 1e3;
    let pages = Pages::spread(&region, usize::try_from(options.pages)?);
    fill(&swap, pages, Content::HalfNoise)?;

    let swap_ins = || swap.stats().iter().find(|(name, _)| *name == "swap_ins").map_or(0, |(_, value)| *value);
    let worker = swap.enter_worker()?;
    // Once over all of them: then each has a copy in the backend.
    worker.start(move || (0..pages.num_pages).for_each(|page| pages.read(page)))?;
    worker.run();
    let end = Instant::now() + Duration::from_secs_f64(options.seconds);
    let (faults_before, cpu_before) = (swap_ins(), cpu_seconds());
    worker.start(move || {
        let mut random = Random::new(seed);
        while Instant::now() < end {
            (0..32).for_each(|_| pages.read(pages.draw(&mut random)));
        }
    })?;
    worker.run();
    let faults = (swap_ins() - faults_before).max(1);
    let cpu_us_per_fault = (cpu_seconds() - cpu_before) * 1e6 / faults as f64;
    let beside = resident_before + region.resident_bytes() as u64 + in_use_bytes;
    Ok(Measured { create_us, cpu_us_per_fault, metadata_bytes: resident_bytes()?.saturating_sub(beside) as f64 })
}
