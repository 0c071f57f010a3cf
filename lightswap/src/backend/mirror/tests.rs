//! A mirror against a model: members die, come back with or without their content, and answer in any order, at every point of reads, writes and copies.

use super::*;
use crate::backend::{Queues, Read, Write, WriteRequest};
use crate::io_queue::{Completion, IoQueue, Purpose, Source, Token};
use crate::size::{PAGE_SIZE, bytes_of};
use crate::sys::mapping::Mapping;
use crate::worker::WorkerShared;
use std::os::fd::AsRawFd;
use std::sync::Mutex;

const NUM_SLOTS: usize = 8;
const NUM_WORKERS: usize = 2;
/// Requests of a worker at a time.
const DEPTH: usize = 3;
const MAX_RUN: usize = 3;
/// The mirror's is 0.
const COPIER_NODE: usize = 1;

/// A member whose requests end when the test says so.
#[derive(Debug)]
struct Puppet(Mutex<PuppetState>);

#[derive(Debug, Default)]
struct PuppetState {
    content: [u64; NUM_SLOTS],
    is_dead: bool,
    generation: u64,
    in_flight: Vec<InFlight>,
}

#[derive(Clone, Copy, Debug)]
struct InFlight {
    worker: usize,
    token: Token,
    slot: usize,
    kind: Kind,
    /// Its connection is gone.
    is_doomed: bool,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Read { target: usize },
    Write { content: [u64; MAX_RUN], num_pages: usize },
}

impl Puppet {
    fn state(&self) -> std::sync::MutexGuard<'_, PuppetState> {
        self.0.lock().unwrap()
    }

    /// What it has there, if it lives.
    fn copy(&self, slot: usize) -> Option<u64> {
        let state = self.state();
        (!state.is_dead).then_some(state.content[slot])
    }
}

impl Backend for Puppet {
    fn num_slots(&self) -> usize {
        NUM_SLOTS
    }

    fn queue(self: Arc<Self>, builder: &mut QueueBuilder) -> Result<Rc<dyn BackendQueue>> {
        let number = builder.reserve();
        let worker = if builder.is_pager_thread { 0 } else { 1 };
        Ok(builder.add(number, Rc::new(PuppetQueue { puppet: self, worker })))
    }

    fn reserve(&self, _: usize, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn health(&self) -> Health {
        let state = self.state();
        Health { is_away: state.is_dead, generation: state.generation }
    }
}

struct PuppetQueue {
    puppet: Arc<Puppet>,
    worker: usize,
}

impl BackendQueue for PuppetQueue {
    fn read(&self, _: &IoQueue, read: Read) {
        let kind = Kind::Read { target: read.target as usize };
        self.puppet.state().in_flight.push(InFlight { worker: self.worker, token: read.token, slot: read.slot, kind, is_doomed: false });
    }

    fn write(&self, _: &IoQueue, write: WriteRequest) -> Write {
        let num_pages = write.num_bytes / PAGE_SIZE;
        let mut content = [0; MAX_RUN];
        for (page, content) in content.iter_mut().enumerate().take(num_pages) {
            // SAFETY: the pages of a write are the test's or the copier's buffers, aligned to a page.
            *content = unsafe { *write.source.add(bytes_of(page)).cast::<u64>() };
        }
        let kind = Kind::Write { content, num_pages };
        self.puppet.state().in_flight.push(InFlight { worker: self.worker, token: write.token, slot: write.slot, kind, is_doomed: false });
        Write::Pending
    }
}

/// What the owner of a slot's page is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    Nothing,
    /// And so many faults there had been when that began.
    Reading {
        attempt: u32,
        num_faults: Option<usize>,
    },
    Writing,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    /// What was written there last with success.
    content: Option<u64>,
    doing: Doing,
}

struct Worker {
    io: IoQueue,
    queues: Queues,
    /// Slots, and what is being written to them; by the number of the request.
    requests: Vec<Option<(usize, usize, [u64; MAX_RUN])>>,
    buffers: Mapping,
}

impl Worker {
    fn page(&self, request: usize, page: usize) -> *mut u8 {
        self.buffers.base().wrapping_add(bytes_of(request * MAX_RUN + page))
    }
}

struct World {
    random: u64,
    puppets: Vec<Arc<Puppet>>,
    mirror: Arc<MirrorBackend>,
    workers: Vec<Worker>,
    slots: [Slot; NUM_SLOTS],
    next_content: u64,
    num_failed_reads: usize,
    num_reads: usize,
    /// Deaths, and requests that failed.
    num_faults: usize,
}

impl World {
    fn new(num_members: usize, seed: u64) -> Option<Self> {
        let puppets: Vec<_> = (0..num_members).map(|_| Arc::new(Puppet(Mutex::default()))).collect();
        let members = puppets.iter().map(|puppet| puppet.clone() as Arc<dyn Backend>).collect();
        let mirror = Arc::new(MirrorBackend::new(members, "puppets").unwrap());
        let mut shared = Vec::new();
        let mut workers = Vec::new();
        for number in 0..NUM_WORKERS {
            let of_worker = WorkerShared::take(&mut shared).unwrap();
            let mut builder = QueueBuilder::new(DEPTH, DEPTH, number == 0, of_worker);
            let backend = mirror.clone() as Arc<dyn Backend>;
            let queues = Queues::new(&backend, &mut builder).unwrap();
            let io = IoQueue::new(of_worker.wake_fd.as_raw_fd(), None, &[], 0, false, builder.num_finished()).ok()?;
            let buffers = Mapping::new(bytes_of(DEPTH * MAX_RUN), PAGE_SIZE).unwrap();
            workers.push(Worker { io, queues, requests: vec![None; DEPTH], buffers });
        }
        let slots = [Slot { content: None, doing: Doing::Nothing }; NUM_SLOTS];
        Some(Self { random: seed, puppets, mirror, workers, slots, next_content: 0, num_failed_reads: 0, num_reads: 0, num_faults: 0 })
    }

    /// SplitMix64 (Steele, Lea, Flood 2014).
    fn random(&mut self, below: usize) -> usize {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % below as u64) as usize
    }

    /// Those that happened, those that were noticed, and what was copied meanwhile; `None` while a member may be taken for one that has its content.
    fn num_faults(&self) -> Option<usize> {
        let is_returning = |member: &members::Member| {
            let health = member.backend.health();
            member.has_lost_content(health) || (member.is_lost() && !health.is_away)
        };
        let of_member = |member: &members::Member| (!is_returning(member)).then(|| member.num_content_losses() as usize);
        let num_resynced = self.mirror.num_resynced.load(Relaxed) as usize;
        Some(self.num_faults + num_resynced + self.mirror.team.iter().map(of_member).sum::<Option<usize>>()?)
    }

    fn begin(&mut self, worker: usize) {
        let Some(request) = self.workers[worker].requests.iter().position(Option::is_none) else { return };
        let first = self.random(NUM_SLOTS);
        let is_write = self.random(2) == 0;
        let len = if is_write { 1 + self.random(MAX_RUN.min(NUM_SLOTS - first)) } else { 1 };
        if self.slots[first..first + len].iter().any(|slot| slot.doing != Doing::Nothing) {
            return;
        }
        if !is_write {
            return self.read(worker, request, first, (0, self.num_faults()), Source(None));
        }
        let mut content = [0; MAX_RUN];
        for (page, content) in content.iter_mut().enumerate().take(len) {
            self.next_content += 1;
            *content = self.next_content;
            // SAFETY: a page of ours.
            unsafe { *self.workers[worker].page(request, page).cast() = self.next_content };
            self.slots[first + page].doing = Doing::Writing;
        }
        let of = &mut self.workers[worker];
        of.requests[request] = Some((first, len, content));
        let write = WriteRequest { slot: first, source: of.page(request, 0), num_bytes: bytes_of(len), token: Token::write(request, 0) };
        match of.queues.write(&of.io, write) {
            Write::Pending => {}
            result => self.end_write(worker, request, result == Write::Done),
        }
    }

    fn read(&mut self, worker: usize, request: usize, slot: usize, (attempt, num_faults): (u32, Option<usize>), suspect: Source) {
        if self.slots[slot].content.is_none() {
            return;
        }
        self.slots[slot].doing = Doing::Reading { attempt, num_faults };
        let of = &mut self.workers[worker];
        of.requests[request] = Some((slot, 1, [0; MAX_RUN]));
        let read = Read { slot, target: of.page(request, 0), token: Token::read(request), is_retry: attempt > 0, suspect };
        of.queues.read(&of.io, read);
    }

    fn end_write(&mut self, worker: usize, request: usize, is_written: bool) {
        let (first, len, content) = self.workers[worker].requests[request].take().unwrap();
        for (page, content) in content.into_iter().enumerate().take(len) {
            // One that fails leaves the page where it was, in memory: nobody reads the slot.
            self.slots[first + page] = Slot { content: is_written.then_some(content), doing: Doing::Nothing };
        }
    }

    fn end_read(&mut self, worker: usize, request: usize, completion: Completion) {
        let (slot, ..) = self.workers[worker].requests[request].take().unwrap();
        let Doing::Reading { attempt, num_faults } = std::mem::replace(&mut self.slots[slot].doing, Doing::Nothing) else {
            panic!("it was being read")
        };
        // SAFETY: a page of ours.
        let content = unsafe { *self.workers[worker].page(request, 0).cast::<u64>() };
        let wanted = self.slots[slot].content;
        self.num_reads += 1;
        if completion.result == PAGE_SIZE as i32 && Some(content) == wanted {
            return;
        }
        // As the pager, which knows the hash of every page.
        if attempt < 2 {
            let suspect = if completion.result < 0 { Source(None) } else { completion.source };
            return self.read(worker, request, slot, (attempt + 1, num_faults), suspect);
        }
        self.num_failed_reads += 1;
        let copies: Vec<_> = self.puppets.iter().map(|puppet| puppet.copy(slot)).collect();
        let holders = copies.iter().filter(|copy| **copy == wanted).count();
        let word = self.mirror.slots.get(slot);
        // Where nobody is known to have it, any are asked, which finds one who has if there are only two.
        let is_unknown = word.stale() == self.mirror.slots.all() && self.puppets.len() > 2;
        let is_excused = num_faults.is_none() || self.num_faults() != num_faults || is_unknown;
        assert!(holders == 0 || is_excused, "slot {slot} is {wanted:?} on {copies:?}: {word:?}");
    }

    /// Something that is in flight ends, in some way.
    fn end_one(&mut self) -> bool {
        let member = self.random(self.puppets.len());
        let choice = self.random(1 << 20);
        let puppet = self.puppets[member].clone();
        let mut state = puppet.state();
        if state.in_flight.is_empty() {
            return false;
        }
        let index = choice % state.in_flight.len();
        let InFlight { worker, token, slot, kind, is_doomed } = state.in_flight.swap_remove(index);
        let is_doomed = is_doomed || state.is_dead;
        let fails = is_doomed || choice.is_multiple_of(64);
        let result = match kind {
            _ if fails && !matches!(kind, Kind::Write { .. }) => 0,
            Kind::Read { target } => {
                // SAFETY: the buffer of a read is its reader's until it has ended.
                unsafe { *(target as *mut u64) = state.content[slot] };
                PAGE_SIZE as i32
            }
            Kind::Write { content, num_pages } => {
                // Of one that fails some pages may have arrived, unless the member was gone.
                let num_arriving = if is_doomed {
                    0
                } else if fails {
                    choice / 64 % (num_pages + 1)
                } else {
                    num_pages
                };
                state.content[slot..slot + num_arriving].copy_from_slice(&content[..num_arriving]);
                bytes_of(num_pages) as i32
            }
        };
        let error = if is_doomed { -libc::ENODEV } else { -libc::EIO };
        drop(state);
        self.num_faults += usize::from(fails);
        let completion = Completion::of(if fails { error } else { result });
        self.workers[worker].io.finish(token, completion);
        true
    }

    /// Hands on what has ended.
    fn drain(&mut self) {
        for worker in 0..NUM_WORKERS {
            // Timers: of reads that nobody is there for.
            let mut timed_out = Vec::new();
            self.workers[worker].io.poll(false, |token, result| timed_out.push((token, Completion::of(result))));
            timed_out.into_iter().for_each(|(token, completion)| self.hand_on(worker, token, completion));
            while let Some((token, completion)) = self.workers[worker].io.take_finished() {
                self.hand_on(worker, token, completion);
            }
        }
        self.workers.iter().for_each(|worker| worker.queues.flush(&worker.io));
    }

    fn hand_on(&mut self, worker: usize, token: Token, completion: Completion) {
        match token.purpose() {
            Purpose::Node { node, index } => {
                let of = &self.workers[worker];
                of.queues.complete(&of.io, node, index, completion);
            }
            Purpose::Read { buffer } => self.end_read(worker, buffer, completion),
            Purpose::Write { batch, .. } => {
                let len = self.workers[worker].requests[batch].unwrap().1;
                assert!(completion.result < 0 || completion.result == bytes_of(len) as i32);
                self.end_write(worker, batch, completion.result >= 0);
            }
            purpose => panic!("{purpose:?}"),
        }
    }

    fn tick(&mut self) {
        let of = &self.workers[0];
        of.queues.complete(&of.io, COPIER_NODE, copier::TICK_NUMBER, Completion::of(-libc::ETIME));
    }

    fn step(&mut self) {
        match self.random(100) {
            0..40 => {
                let worker = self.random(NUM_WORKERS);
                self.begin(worker);
            }
            40..85 => {
                self.end_one();
            }
            85..93 => self.tick(),
            93..96 => {
                let (slot, member) = (self.random(NUM_SLOTS), self.random(self.puppets.len()));
                if self.slots[slot].doing == Doing::Nothing && member == 0 {
                    self.mirror.discard(slot, 1);
                    self.slots[slot].content = None;
                }
            }
            _ => {
                let (member, how) = (self.random(self.puppets.len()), self.random(4));
                let puppet = self.puppets[member].clone();
                let mut state = puppet.state();
                if state.is_dead {
                    state.is_dead = false;
                    if how == 0 {
                        state.content = [u64::MAX; NUM_SLOTS];
                        state.generation += 1;
                    }
                } else if how == 0 && self.slots[0].doing != Doing::Nothing {
                    state.is_dead = true;
                    self.num_faults += 1;
                    state.in_flight.iter_mut().for_each(|request| request.is_doomed = true);
                }
            }
        }
        self.drain();
    }

    /// Everybody comes back, and all are brought up to date.
    fn heal(&mut self) {
        self.puppets.iter().for_each(|puppet| puppet.state().is_dead = false);
        let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
        loop {
            let is_busy = self.workers.iter().any(|worker| worker.requests.iter().any(Option::is_some));
            let in_flight = self.puppets.iter().any(|puppet| !puppet.state().in_flight.is_empty());
            let is_behind = self.mirror.behind() != 0 || self.mirror.team.num_lost() > 0;
            if !is_busy && !in_flight && !is_behind {
                return;
            }
            assert!(std::time::Instant::now() < end, "not in sync: busy {is_busy}, behind {is_behind}, {:?}", self.mirror);
            self.end_one();
            if self.random(8) == 0 {
                self.tick();
            }
            self.drain();
        }
    }
}

#[test]
fn nothing_is_lost_that_a_member_has() {
    let (mut num_reads, mut num_failed_reads, mut num_resynced) = (0, 0, 0);
    for seed in 0..200 {
        let Some(mut world) = World::new(2 + seed as usize % 3, seed) else { return };
        for _ in 0..4000 {
            world.step();
        }
        world.heal();
        for (number, slot) in world.slots.iter().enumerate() {
            let stale = world.mirror.slots.get(number).stale();
            for (member, puppet) in world.puppets.iter().enumerate() {
                let has_it = slot.content.is_none_or(|content| puppet.state().content[number] == content);
                assert!(has_it || stale == world.mirror.slots.all(), "seed {seed}: slot {number} is wrong on member {member}: {slot:?}");
            }
        }
        num_reads += world.num_reads;
        num_failed_reads += world.num_failed_reads;
        num_resynced += world.mirror.num_resynced.load(Relaxed);
    }
    // It is no test if nothing happens.
    assert!(num_reads > 40_000 && num_resynced > 8000, "{num_reads} reads, {num_failed_reads} failed, {num_resynced} pages resynced");
    assert!(num_failed_reads * 20 < num_reads, "{num_failed_reads} of {num_reads} reads failed");
}
