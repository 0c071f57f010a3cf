//! The state machine under loom, which runs every interleaving of a few threads:
//!
//!     RUSTFLAGS="--cfg loom" cargo test -p lightswap --release --lib model
//!
//! A page here is an entry, a frame, and a slot. The threads do to the entry what evict.rs, swap_in.rs and the fault handler do, in the same
//! order. Frame and page-table bits are one word, as an access checks the bits and takes effect in one step for the processor. Accesses of
//! the frame are relaxed: what orders them must be the entry. Waiting is a loop of yields: the parking lot is a matter of its own, so what is checked
//! is that the owner learns of the waiter.

use super::*;
use loom::sync::Arc;
use loom::thread;

/// What the kernel and the backend know of the page.
struct Page {
    inner: PageEntry,
    /// Content and the bits of its page-table entry.
    frame: AtomicU64,
    slot: AtomicU64,
    /// Wake-ups that the owner knew were owed, and owners at work in one of the exclusive states.
    num_wakeups: AtomicU32,
    num_owners: AtomicU32,
}

/// One tick for all: references do not count then, and a page can leave again at once.
const NOW: Tick = Tick::after(0);

const MAPPED: u64 = 1;
const PROTECTED: u64 = 2;
const CONTENT_ONE: u64 = 4;

/// The hash of a content; 0 stands for the page of zeroes.
fn hash(content: u64) -> u64 {
    content
}

impl Page {
    /// A resident page with this content, which the backend does not have.
    fn resident(content: u64) -> Arc<Self> {
        let entry = PageEntry::new();
        assert!(entry.begin_swap_in(entry.load()) && !entry.finish_swap_in(0, NOW));
        Self::with(entry, content * CONTENT_ONE | MAPPED, 0)
    }

    /// A page that is in its slot.
    fn swapped_out(content: u64) -> Arc<Self> {
        let entry = PageEntry::new();
        assert!(entry.begin_swap_in(entry.load()) && !entry.finish_swap_in(0, NOW));
        assert!(entry.select_victim().is_some() && entry.begin_removal() && !entry.finish_removal(Some(hash(content))));
        Self::with(entry, 0, content)
    }

    fn with(entry: PageEntry, frame: u64, slot: u64) -> Arc<Self> {
        let (frame, slot) = (AtomicU64::new(frame), AtomicU64::new(slot));
        Arc::new(Self { inner: entry, frame, slot, num_wakeups: AtomicU32::new(0), num_owners: AtomicU32::new(0) })
    }

    /// The entry, for one step. The read-modify-write in front is for loom: of each atomic it remembers one access, so that a load followed by
    /// others is forgotten, and with it the interleavings in which it comes later.
    fn entry(&self) -> &PageEntry {
        self.inner.word.fetch_or(0, Relaxed);
        &self.inner
    }

    fn own(&self) {
        assert_eq!(self.num_owners.fetch_add(1, AcqRel), 0, "two owners");
    }

    fn disown(&self) {
        assert_eq!(self.num_owners.fetch_sub(1, AcqRel), 1);
    }

    /// An access by code that knows the page to be mapped: under a pin, or by its evictor.
    fn read(&self) -> u64 {
        let frame = self.frame.load(Relaxed);
        assert!(frame & MAPPED != 0, "the page is not mapped");
        frame / CONTENT_ONE
    }

    /// One store of code that knows nothing: `false` if it faults, with whether the fault is one of protection.
    fn try_store(&self, content: u64) -> Result<(), bool> {
        let mut frame = self.frame.load(Relaxed);
        loop {
            if frame & (MAPPED | PROTECTED) != MAPPED {
                return Err(frame & MAPPED != 0);
            }
            match self.frame.compare_exchange(frame, content * CONTENT_ONE | MAPPED, Relaxed, Relaxed) {
                Ok(_) => return Ok(()),
                Err(now) => frame = now,
            }
        }
    }

    fn unprotect(&self) {
        self.frame.fetch_and(!PROTECTED, Relaxed);
    }

    fn wake(&self, has_waiters: bool) {
        self.num_wakeups.fetch_add(u32::from(has_waiters), AcqRel);
    }

    /// As evict.rs: one attempt, with the protection of the transparent contract if `protects`. `None`: no victim; otherwise whether the page left.
    fn evict(&self, protects: bool) -> Option<bool> {
        self.entry().select_victim()?;
        if protects {
            self.frame.fetch_or(PROTECTED, Relaxed);
        }
        let content = self.read();
        let is_clean = self.entry().load().is_stored() && self.entry().hash() == hash(content);
        if !is_clean && content != 0 {
            if self.entry().load().state() != PageState::Evicting {
                self.unprotect();
                return Some(false);
            }
            self.entry().forget_stored();
            self.slot.store(content, Relaxed);
        }
        if !self.entry().begin_removal() {
            self.unprotect();
            return Some(false);
        }
        self.own();
        assert_eq!(self.read(), content, "the page changed between its hash and its removal");
        self.frame.store(0, Relaxed);
        self.disown();
        self.wake(self.entry().finish_removal((content != 0).then(|| hash(content))));
        Some(true)
    }

    /// As swap_in.rs: makes the page resident and pins it.
    fn make_resident(&self) -> Pinned {
        loop {
            let word = match self.entry().pin(NOW) {
                Ok(pinned) => return pinned,
                Err(word) => word,
            };
            match word.state() {
                PageState::Untouched | PageState::SwappedOut | PageState::Failed if self.entry().begin_swap_in(word) => {
                    self.own();
                    let content = if word.is_stored() { self.slot.load(Relaxed) } else { 0 };
                    assert!(!word.is_stored() || hash(content) == self.entry().hash(), "the slot does not hold what the hash says");
                    assert_eq!(self.frame.load(Relaxed) & MAPPED, 0, "mapped twice");
                    self.frame.store(content * CONTENT_ONE | MAPPED, Relaxed);
                    self.disown();
                    self.wake(self.entry().finish_swap_in(1, NOW));
                    return Pinned::Resident;
                }
                _ => thread::yield_now(),
            }
        }
    }

    /// As discard.rs, whose claim keeps evictors away: gives the content up, if nobody has it pinned just now.
    fn discard(&self) -> bool {
        let word = self.entry().load();
        if word.num_pins() > 0 || matches!(word.state(), PageState::SwappingIn | PageState::Removing) || !self.entry().begin_discard(word) {
            return false;
        }
        self.own();
        self.frame.store(0, Relaxed);
        self.disown();
        self.wake(self.entry().finish_removal(None));
        true
    }

    /// A cooperative writer: adds to the content under a pin.
    fn add_pinned(&self, amount: u64) {
        self.change_pinned(|content| content + amount);
    }

    fn change_pinned(&self, change: impl Fn(u64) -> u64) {
        self.make_resident();
        let content = change(self.read());
        // In a transparent region the protection of an eviction that the pin has cancelled may still be there: the store faults, once.
        while self.try_store(content).is_err() {
            self.unprotect();
        }
        assert!(self.entry().unpin() == Some(false) || self.entry().load().num_pins() < 2);
    }

    /// Any code, in a transparent region: stores, and the fault handler sees to it that it can.
    fn store(&self, content: u64) {
        while let Err(is_protected) = self.try_store(content) {
            self.make_resident();
            if is_protected {
                self.unprotect();
            }
            let _ = self.entry().unpin();
        }
    }
}

fn model(check: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    // More preemptions find nothing new in the literature, and take hours.
    builder.preemption_bound = Some(3);
    builder.check(check);
}

/// After everything: nobody owns it, and its content is `expected`, wherever it is.
fn settle(page: &Page, expected: u64) {
    page.make_resident();
    assert_eq!(page.read(), expected, "a write was lost");
    assert_eq!(page.entry().unpin(), Some(true));
    assert_eq!(page.entry().load().num_pins(), 0);
    assert!(!page.entry().load().has_waiters(), "waiters that nobody will wake");
}

#[test]
fn a_pinned_write_is_not_lost_in_an_eviction() {
    model(|| {
        let page = Page::resident(1);
        let evictor = thread::spawn({
            let page = page.clone();
            move || page.evict(false)
        });
        page.add_pinned(4);
        evictor.join().unwrap();
        settle(&page, 5);
    });
}

#[test]
fn a_write_between_two_evictions_is_not_lost() {
    model(|| {
        let page = Page::resident(1);
        let evictor = thread::spawn({
            let page = page.clone();
            move || {
                page.evict(false);
                page.entry().forget_references();
                page.evict(false);
            }
        });
        page.add_pinned(4);
        evictor.join().unwrap();
        settle(&page, 5);
        // The clean copy, if there is one, is the current content: an eviction now must find it so.
        page.entry().forget_references();
        assert_eq!(page.evict(false), Some(true));
        settle(&page, 5);
    });
}

/// An eviction that is cancelled after its write leaves a slot that does not have the recorded hash: if the content becomes what it was,
/// the page must not count as clean.
#[test]
fn a_cancelled_eviction_leaves_no_clean_page() {
    model(|| {
        let page = Page::swapped_out(6);
        page.add_pinned(1);
        let evictor = thread::spawn({
            let page = page.clone();
            move || page.evict(false)
        });
        page.change_pinned(|_| 6);
        evictor.join().unwrap();
        page.entry().forget_references();
        page.evict(false);
        settle(&page, 6);
    });
}

#[test]
fn two_evictors_never_have_the_same_page() {
    model(|| {
        let page = Page::resident(1);
        let evictor = thread::spawn({
            let page = page.clone();
            move || page.evict(true)
        });
        let own = page.evict(true);
        let other = evictor.join().unwrap();
        assert!(own == Some(true) || other == Some(true), "somebody must have got it");
        assert!(own.is_none() || other.is_none() || own != other);
        settle(&page, 1);
    });
}

#[test]
fn a_touch_keeps_the_page_or_misses_it() {
    model(|| {
        let page = Page::resident(1);
        let evictor = thread::spawn({
            let page = page.clone();
            move || page.evict(true)
        });
        // What touch does on its fast path.
        let was_mapped = page.entry().reference(NOW);
        let has_left = evictor.join().unwrap() == Some(true);
        assert!(was_mapped || has_left, "a page that is resident was not found");
        settle(&page, 1);
    });
}

#[test]
fn a_discard_comes_before_or_after_a_pinned_write_not_amid_it() {
    for swapped_out in [false, true] {
        model(move || {
            let page = if swapped_out { Page::swapped_out(1) } else { Page::resident(1) };
            let writer = thread::spawn({
                let page = page.clone();
                move || page.add_pinned(4)
            });
            let is_discarded = page.discard();
            writer.join().unwrap();
            page.make_resident();
            let content = page.read();
            assert!(if is_discarded { content == 0 || content == 4 } else { content == 5 }, "{content} {is_discarded}");
        });
    }
}

/// Whoever waited for a read that failed learns of it; the next who asks reads again, and it is one of them that does.
#[test]
fn a_read_that_failed_is_done_again_by_one() {
    model(|| {
        let page = Page::swapped_out(6);
        let word = page.entry().load();
        assert!(page.entry().begin_swap_in(word) && !page.entry().fail_swap_in(5));
        let other = thread::spawn({
            let page = page.clone();
            move || page.add_pinned(16)
        });
        page.make_resident();
        page.read();
        let _ = page.entry().unpin();
        other.join().unwrap();
        settle(&page, 22);
    });
}

#[test]
fn one_of_two_faults_brings_the_page_in() {
    model(|| {
        let page = Page::swapped_out(6);
        let faulter = thread::spawn({
            let page = page.clone();
            move || page.add_pinned(16)
        });
        page.make_resident();
        page.read();
        let _ = page.entry().unpin();
        faulter.join().unwrap();
        settle(&page, 22);
    });
}

#[test]
fn a_fault_during_an_eviction_finds_the_last_content() {
    model(|| {
        let page = Page::swapped_out(6);
        page.add_pinned(1);
        page.entry().forget_references();
        let evictor = thread::spawn({
            let page = page.clone();
            move || page.evict(false)
        });
        page.make_resident();
        assert_eq!(page.read(), 7);
        let _ = page.entry().unpin();
        evictor.join().unwrap();
        settle(&page, 7);
    });
}

/// Whoever has set WAITERS is told of by the owner that leaves the state, exactly once.
#[test]
fn no_waiter_is_forgotten() {
    model(|| {
        let page = Page::resident(1);
        let evictor = thread::spawn({
            let page = page.clone();
            move || page.evict(false)
        });
        // What park does: having queued itself, the waiter asks to be woken, and waits only if there is something to wait for.
        let must_wait = page.entry().set_waiters();
        evictor.join().unwrap();
        assert_eq!(page.num_wakeups.load(Acquire), u32::from(must_wait), "a wake-up too few or too many");
        settle(&page, 1);
    });
}

#[test]
fn no_waiter_of_a_swap_in_is_forgotten() {
    model(|| {
        let page = Page::swapped_out(6);
        let faulter = thread::spawn({
            let page = page.clone();
            move || page.add_pinned(1)
        });
        let must_wait = page.entry().set_waiters();
        faulter.join().unwrap();
        assert_eq!(page.num_wakeups.load(Acquire), u32::from(must_wait), "a wake-up too few or too many");
        settle(&page, 7);
    });
}

/// The transparent contract.
#[test]
fn an_unannounced_write_is_not_lost() {
    model(|| {
        let page = Page::resident(1);
        let evictor = thread::spawn({
            let page = page.clone();
            move || page.evict(true)
        });
        page.store(2);
        evictor.join().unwrap();
        settle(&page, 2);
    });
}

#[test]
fn an_unannounced_write_amid_touches_is_not_lost() {
    model(|| {
        let page = Page::swapped_out(1);
        page.make_resident();
        let _ = page.entry().unpin();
        page.entry().forget_references();
        let threads = [
            thread::spawn({
                let page = page.clone();
                move || {
                    page.evict(true);
                }
            }),
            thread::spawn({
                let page = page.clone();
                move || {
                    page.entry().reference(NOW);
                }
            }),
        ];
        page.store(2);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        settle(&page, 2);
    });
}
