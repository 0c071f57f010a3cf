//! AES-256-GCM for pages: the key, and a number for each encryption that never comes twice.
//!
//! With this cipher, two encryptions under one key and one nonce give both contents away. They are excluded by construction:
//! - Each backend draws a key of its own from the system's randomness when it is opened. It is in one page of memory and nowhere else: locked, left out of core
//!   dumps, overwritten when the backend is dropped. (What the library computes a key from on its stack cannot be overwritten from here.)
//! - The nonce is a counter that lies beside the key, and [`Cipher::take`] hands each value out once: to one thread, for one page, whether its write succeeds or
//!   not. 64 bits do not wrap: at a page every 100 ns that takes 58 000 years.
//! - A child of fork, which would go on from the same value, has neither: the kernel wipes that page there (MADV_WIPEONFORK), so the counter reads 0 and the
//!   child can neither encrypt nor decrypt.
//!
//! A page takes 257 blocks, so after 2^40 page writes (4 PiB) the odds against the cipher by the birthday bound are still 2^-32.
//!
//! The tag covers the content and the slot's number, and is kept with the nonce in the process: what comes back is the last content written to this very slot, or
//! is found not to be. Everything but opening and dropping is async-signal-safe: the library computes in registers and on the stack.

use crate::error::{Error, ErrorKind, Result};
use crate::size::PAGE_SIZE;
use crate::sys::mapping::Mapping;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

pub(super) const KEY_BYTES: usize = 32;
pub(super) const TAG_BYTES: usize = 16;
pub(super) type Tag = [u8; TAG_BYTES];

/// What [`Cipher::open`] finds: this is not what was encrypted there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tampered;

struct Secret {
    key: LessSafeKey,
    /// The next nonce; 0 in a child of fork.
    counter: AtomicU64,
}

const _: () = assert!(size_of::<Secret>() <= PAGE_SIZE && !std::mem::needs_drop::<Secret>());

/// A key and its nonces.
#[derive(Debug)]
pub(super) struct Cipher {
    /// A [`Secret`] at its start.
    memory: Mapping,
}

impl Cipher {
    const FIRST: u64 = 1;

    /// With a fresh key.
    pub(super) fn new() -> Result<Self> {
        let mut key = [0; KEY_BYTES];
        let filled = SystemRandom::new().fill(&mut key);
        filled.map_err(|_| Error::new(ErrorKind::Backend, "encrypted(): the system gave no random key"))?;
        let cipher = Self::with(&key, Self::FIRST);
        wipe(&mut key);
        cipher
    }

    /// With a given key, from a nonce on.
    pub(super) fn with(key: &[u8; KEY_BYTES], first: u64) -> Result<Self> {
        let memory = Mapping::new(PAGE_SIZE, PAGE_SIZE)?;
        // SAFETY: the range is the mapping's, which holds nothing yet.
        if unsafe { libc::madvise(memory.base().cast(), PAGE_SIZE, libc::MADV_WIPEONFORK) } != 0 {
            return Err(Error::os(ErrorKind::Backend, "encrypted(): the kernel cannot keep a key from children of fork (Linux 4.14 can)"));
        }
        memory.advise(libc::MADV_DONTDUMP);
        // SAFETY: the range is the mapping's.
        if unsafe { libc::mlock(memory.base().cast(), PAGE_SIZE) } != 0 {
            tracing::debug!("the key of encrypted() is not locked in memory (RLIMIT_MEMLOCK?): the kernel may swap it out");
        }
        let unbound = UnboundKey::new(&AES_256_GCM, key).expect("the key is as long as the cipher's");
        let secret = Secret { key: LessSafeKey::new(unbound), counter: AtomicU64::new(first) };
        // SAFETY: the mapping is writable, aligned to a page, and as large as the assertion above says.
        unsafe { memory.base().cast::<Secret>().write(secret) };
        Ok(Self { memory })
    }

    /// `None` in a child of fork.
    fn secret(&self) -> Option<&Secret> {
        let secret = self.memory.base().cast::<Secret>();
        // SAFETY: the counter is in memory that was initialised, and zeroes are a value of its type, too.
        let counter = unsafe { &(*secret).counter };
        // SAFETY: the counter is not 0, so the page was not wiped, and holds what `with` has written.
        if counter.load(Relaxed) == 0 { None } else { Some(unsafe { &*secret }) }
    }

    /// The first of `num_pages` nonces that nobody else gets; `None` in a child of fork.
    pub(super) fn take(&self, num_pages: usize) -> Option<u64> {
        Some(self.secret()?.counter.fetch_add(num_pages as u64, Relaxed))
    }

    /// Nonces that were taken.
    pub(super) fn num_taken(&self) -> u64 {
        self.secret().map_or(0, |secret| secret.counter.load(Relaxed).saturating_sub(Self::FIRST))
    }

    /// Encrypts the content of a slot in its place, with a nonce from [`Self::take`].
    pub(super) fn seal(&self, nonce: u64, slot: usize, content: &mut [u8]) -> Tag {
        let secret = self.secret().expect("a nonce was taken");
        seal(&secret.key, nonce_bytes(nonce), &aad_bytes(slot), content)
    }

    /// Decrypts it in its place. What was tampered with is overwritten.
    pub(super) fn open(&self, nonce: u64, slot: usize, content: &mut [u8], tag: Tag) -> std::result::Result<(), Tampered> {
        let secret = self.secret().ok_or(Tampered)?;
        open(&secret.key, nonce_bytes(nonce), &aad_bytes(slot), content, tag)
    }
}

impl Drop for Cipher {
    fn drop(&mut self) {
        // SAFETY: the page is the mapping's, and nobody uses what is in it any more.
        wipe(unsafe { std::slice::from_raw_parts_mut(self.memory.base(), PAGE_SIZE) });
    }
}

/// Overwrites it with zeroes, even if nobody will read them.
fn wipe(bytes: &mut [u8]) {
    for byte in bytes {
        // SAFETY: a byte of a mutable slice.
        unsafe { std::ptr::from_mut(byte).write_volatile(0) };
    }
    std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst);
}

fn nonce_bytes(nonce: u64) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&nonce.to_be_bytes());
    bytes
}

fn aad_bytes(slot: usize) -> [u8; 8] {
    (slot as u64).to_be_bytes()
}

fn seal(key: &LessSafeKey, nonce: [u8; 12], aad: &[u8], content: &mut [u8]) -> Tag {
    let tag = key.seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(aad), content);
    tag.expect("a page is not too long").as_ref().try_into().expect("the cipher's tags have 16 bytes")
}

fn open(key: &LessSafeKey, nonce: [u8; 12], aad: &[u8], content: &mut [u8], tag: Tag) -> std::result::Result<(), Tampered> {
    let nonce = Nonce::assume_unique_for_key(nonce);
    key.open_in_place_separate_tag(nonce, Aad::from(aad), tag.into(), content, 0..).map(drop).map_err(|_| Tampered)
}

#[cfg(test)]
mod tests;
