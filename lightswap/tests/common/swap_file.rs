//! A swap file that the test can damage and mend behind the back of the instance.

use super::pages::Pages;
use super::{Mode, PAGE, builder, new_path, stat};
use lightswap::{Contract, Lightswap, Region};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

pub struct SwapFile {
    file: File,
    path: PathBuf,
    len: u64,
}

impl SwapFile {
    pub fn new(num_pages: usize) -> Self {
        let path = new_path("damaged");
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path).unwrap();
        let len = (num_pages * PAGE) as u64;
        file.set_len(len).unwrap();
        Self { file, path, len }
    }

    /// Its page `slot` is page `slot` of the first region of an instance.
    pub fn url(&self) -> String {
        format!("file:{}", self.path.display())
    }

    /// Flips a bit of a page; the same again mends it.
    pub fn flip(&self, slot: usize) {
        let mut byte = [0];
        let offset = (slot * PAGE + slot * 37 % PAGE) as u64;
        self.file.read_exact_at(&mut byte, offset).unwrap();
        self.file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
    }

    /// Cuts the file off in the midst of a page; what was behind that is returned for [`Self::mend`].
    pub fn cut(&self, slot: usize) -> Vec<u8> {
        let start = (slot * PAGE) as u64;
        let mut rest = vec![0; (self.len - start) as usize];
        self.file.read_exact_at(&mut rest, start).unwrap();
        self.file.set_len(start + 512).unwrap();
        rest
    }

    pub fn mend(&self, rest: &[u8]) {
        self.file.write_all_at(rest, self.len - rest.len() as u64).unwrap();
    }
}

impl Drop for SwapFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

pub const NUM_PAGES: usize = 200;
pub const LOCAL_PAGES: u64 = 40;

/// An instance over such a file, whose first region is swapped out.
pub struct SwappedOut {
    pub swap: Lightswap,
    /// The second one is for evicting the first.
    pub regions: [Region; 2],
    pub pages: Pages,
    pub file: SwapFile,
}

impl SwappedOut {
    pub fn new(mode: Mode) -> Self {
        let file = SwapFile::new(2 * NUM_PAGES);
        let swap = mode.set(builder(LOCAL_PAGES, file.url())).open().unwrap();
        let regions = [0, 1].map(|_| swap.create_region(NUM_PAGES * PAGE, Contract::Transparent).unwrap());
        let pages = Pages::of(&regions[0]);
        (0..NUM_PAGES).for_each(|page| pages.fill(page, 1));
        Pages::flush_through(&Pages::of(&regions[1]));
        Pages::of(&regions[1]).discard(0, NUM_PAGES);
        assert!((0..NUM_PAGES).all(|page| !pages.is_resident(page)));
        Self { swap, regions, pages, file }
    }

    pub fn stat(&self, name: &str) -> u64 {
        stat(&self.swap, name)
    }
}
