//! Pages with known contents, and an instance whose region is full of them.

use anyhow::{Context, Result};
use lightswap::{Contract, Lightswap, PAGE_SIZE, Region};

use super::resource_usage;
use crate::random::Random;

const WORDS_PER_PAGE: usize = PAGE_SIZE / size_of::<u64>();

/// What the pages of a measurement hold, beside their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Content {
    /// Half of it noise, the rest zero: compresses to half.
    HalfNoise,
    /// Records of 32 bytes of which the same 25 are in all, and 7 are noise: compresses 2 to 3 times, as data of servers does, in many short pieces.
    Records,
}

/// What all records of a page have in common, such as type names, flags, and the upper halves of pointers.
const RECORD: [u64; 4] = [0x6e61_6d65_3d00_0000, 0x7f3a_5c41_0000_1e20, 0x0000_0001_0000_0004, 0x7479_7065_3a75_7365];
/// The bits of them that are noise.
const NOISE: [u64; 4] = [0x0000_0000_00ff_ffff, 0, 0x0000_0000_ffff_ffff, 0];

/// Where some equally spaced pages are; for LWTs, which outlive no region here.
#[derive(Debug, Clone, Copy)]
pub struct Pages {
    base: usize,
    pub num_pages: usize,
    stride_bytes: usize,
}

impl Pages {
    /// All pages from `base` on.
    pub fn new(base: *mut u8, num_bytes: usize) -> Self {
        Self { base: base as usize, num_pages: num_bytes / PAGE_SIZE, stride_bytes: PAGE_SIZE }
    }

    pub fn of(region: &Region) -> Self {
        Self::new(region.as_ptr(), region.len())
    }

    /// So many pages, spread evenly.
    pub fn spread(region: &Region, num_pages: usize) -> Self {
        Self { base: region.as_ptr() as usize, num_pages, stride_bytes: region.len() / num_pages / PAGE_SIZE * PAGE_SIZE }
    }

    pub fn address(self, page: usize) -> *mut u64 {
        (self.base + page * self.stride_bytes) as *mut u64
    }

    /// Gives the page its number and its content.
    ///
    /// # Safety
    /// The page is mapped for writing, nobody else accesses it.
    pub unsafe fn write(self, page: usize, content: Content) {
        let mut random = Random::new(page as u64);
        let address = self.address(page);
        // SAFETY: inside the page.
        unsafe {
            match content {
                Content::HalfNoise => (1..WORDS_PER_PAGE / 2).for_each(|word| address.add(word).write(random.next_u64())),
                Content::Records => (1..WORDS_PER_PAGE).for_each(|word| {
                    let kind = word % RECORD.len();
                    address.add(word).write(RECORD[kind] & !NOISE[kind] | random.next_u64() & NOISE[kind]);
                }),
            }
            address.write_volatile(page as u64);
        }
    }

    /// Changes a word of the page, so that it is dirty; its number stays.
    pub fn change(self, page: usize, value: u64) {
        // SAFETY: inside the mapped range.
        unsafe { self.address(page).add(WORDS_PER_PAGE / 4).write_volatile(value) };
    }

    /// Reads a page, by fault if it is not there, and checks that it is the right one.
    pub fn read(self, page: usize) {
        // SAFETY: inside the mapped range.
        let value = unsafe { self.address(page).read_volatile() };
        assert_eq!(value, page as u64, "a page came back with another content");
    }

    pub fn draw(self, random: &mut Random) -> usize {
        random.below(self.num_pages as u64) as usize
    }

    pub fn is_resident(self, page: usize) -> bool {
        lightswap::is_resident(self.address(page).cast(), PAGE_SIZE)
    }
}

/// An instance and its region whose pages have contents.
#[derive(Debug)]
pub struct Filled {
    pub swap: Lightswap,
    pub region: Region,
}

impl Filled {
    pub fn new(swap: Lightswap, num_bytes: usize, contract: Contract, content: Content) -> Result<Self> {
        let region = swap.create_region(num_bytes, contract)?;
        let pages = Pages::of(&region);
        fill(&swap, pages, content)?;
        Ok(Self { swap, region })
    }

    pub fn statistic(&self, name: &str) -> Result<u64> {
        let stats = self.swap.stats();
        stats.iter().find(|(known, _)| *known == name).map(|(_, value)| *value).with_context(|| format!("the library counts no {name:?}"))
    }
}

/// Gives pages of a region their contents.
pub fn fill(swap: &Lightswap, pages: Pages, content: Content) -> Result<()> {
    let worker = swap.enter_worker()?;
    let write = move |page: usize| {
        let address = pages.address(page).cast();
        lightswap::pin(address, PAGE_SIZE).expect("one page can be pinned");
        // SAFETY: inside the region; pinned, as the cooperative contract wants.
        unsafe { pages.write(page, content) };
        lightswap::unpin(address, PAGE_SIZE).expect("just pinned");
    };
    worker.start(move || (0..pages.num_pages).for_each(write))?;
    worker.run();
    Ok(())
}

/// Faults of the kernel that needed a read from its swap space: of one thread, or of all threads of the process.
pub fn major_faults(who: libc::c_int) -> u64 {
    u64::try_from(resource_usage(who).ru_majflt).unwrap_or(0)
}
