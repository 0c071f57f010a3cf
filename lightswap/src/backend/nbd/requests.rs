//! Requests of one connection: sent in the order of their making, answered in any, and sent again, in the same order, over the next connection.

use crate::backend::WriteRequest;
use crate::backend::slab::Slab;
use crate::sys;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

/// What a request is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Task {
    /// A run of reads.
    Read {
        run: u32,
    },
    Write(WriteRequest),
    Trim {
        first: usize,
        end: usize,
    },
}

#[derive(Clone, Copy, Debug)]
struct Request {
    task: Task,
    /// Rising; the upper half of its cookie, so that a late answer to an earlier request of the same number is not taken for its own.
    serial: u32,
    /// When it was made, or made ready to be sent again.
    since_ns: u64,
    /// Over this connection.
    is_sent: bool,
}

/// For one thread.
pub(super) struct Requests {
    records: Slab<Request>,
    /// Numbers of those to send; never grows past its capacity.
    unsent: RefCell<VecDeque<u32>>,
    next_serial: Cell<u32>,
}

impl Requests {
    /// For so many at a time.
    pub(super) fn new(capacity: usize) -> Self {
        Self { records: Slab::new(capacity), unsent: RefCell::new(VecDeque::with_capacity(capacity)), next_serial: Cell::new(0) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    pub(super) fn add(&self, task: Task) {
        let serial = self.next_serial.get();
        self.next_serial.set(serial.wrapping_add(1));
        let index = self.records.insert(Request { task, serial, since_ns: sys::now_ns(), is_sent: false });
        self.unsent.borrow_mut().push_back(index);
    }

    /// Has the next ones sent, each by its cookie, as long as `send` takes them; how many it took.
    pub(super) fn send_each(&self, mut send: impl FnMut(u64, Task) -> bool) -> usize {
        let mut unsent = self.unsent.borrow_mut();
        let mut num_sent = 0;
        while let Some(&index) = unsent.front() {
            let request = self.records.get(index).expect("it waits to be sent");
            if !send(u64::from(request.serial) << 32 | u64::from(index), request.task) {
                break;
            }
            unsent.pop_front();
            self.records.set(index, Request { is_sent: true, ..request });
            num_sent += 1;
        }
        num_sent
    }

    /// What a reply with this cookie answers; `None` if nothing of that kind was sent over this connection.
    pub(super) fn answered(&self, cookie: u64) -> Option<Task> {
        let request = self.records.get(cookie as u32)?;
        (request.is_sent && request.serial == (cookie >> 32) as u32).then_some(request.task)
    }

    /// The request with this cookie, which was answered, is over.
    pub(super) fn end(&self, cookie: u64) -> Task {
        self.records.remove(cookie as u32).task
    }

    /// Those are over that `is_over` tells.
    pub(super) fn end_those(&self, is_over: impl Fn(Task) -> bool) -> impl Iterator<Item = Task> {
        let is_over = move |index: &u32| self.records.get(*index).is_some_and(|request| is_over(request.task));
        self.records.indices().filter(is_over).map(|index| {
            self.unsent.borrow_mut().retain(|other| *other != index);
            self.records.remove(index).task
        })
    }

    /// All are over.
    pub(super) fn end_all(&self) -> impl Iterator<Item = Task> {
        self.unsent.borrow_mut().clear();
        self.records.indices().map(|index| self.records.remove(index).task)
    }

    /// All are sent again, in their order, with the next connection; how many had been sent.
    pub(super) fn send_all_again(&self) -> usize {
        let mut unsent = self.unsent.borrow_mut();
        let num_unsent = unsent.len();
        unsent.clear();
        unsent.extend(self.records.indices());
        // Serial numbers wrap around; those in use are near each other.
        let serial = |index: &u32| self.records.get(*index).expect("in use").serial.wrapping_sub(self.next_serial.get());
        unsent.make_contiguous().sort_unstable_by_key(serial);
        let since_ns = sys::now_ns();
        for index in unsent.iter() {
            let request = self.records.get(*index).expect("in use");
            self.records.set(*index, Request { since_ns, is_sent: false, ..request });
        }
        unsent.len() - num_unsent
    }

    /// Since when the one that waits longest does.
    pub(super) fn oldest_ns(&self) -> Option<u64> {
        self.records.indices().filter_map(|index| Some(self.records.get(index)?.since_ns)).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send(requests: &Requests, most: usize) -> Vec<(u64, usize)> {
        let mut sent = Vec::new();
        requests.send_each(|cookie, task| {
            let Task::Trim { first, .. } = task else { panic!("{task:?}") };
            let has_room = sent.len() < most;
            sent.extend(has_room.then_some((cookie, first)));
            has_room
        });
        sent
    }

    /// Numbers are used again, and serial numbers wrap around, but the order stays, and late answers are nobody's.
    #[test]
    fn requests_keep_their_order_when_they_are_sent_again() {
        let requests = Requests::new(4);
        requests.next_serial.set(u32::MAX - 1);
        let add = |first: usize| requests.add(Task::Trim { first, end: first + 1 });
        (0..3).for_each(add);
        let sent = send(&requests, 2);
        assert_eq!(sent.iter().map(|(_, first)| *first).collect::<Vec<_>>(), [0, 1]);
        let (gone, kept) = (sent[0].0, sent[1].0);
        assert!(requests.answered(gone).is_some() && matches!(requests.end(gone), Task::Trim { first: 0, .. }));
        (3..5).for_each(add);
        // The number of the first belongs to another one now.
        assert!(requests.answered(gone).is_none());
        assert_eq!(requests.send_all_again(), 1);
        assert!(requests.answered(kept).is_none());
        let again = send(&requests, 4);
        assert_eq!(again.iter().map(|(_, first)| *first).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert!(again[0].0 == kept && requests.answered(kept).is_some());
        // Some are over that are to be sent again.
        requests.send_all_again();
        let is_over = |task| matches!(task, Task::Trim { first: 2 | 5, .. });
        assert!(requests.end_those(is_over).all(|task| matches!(task, Task::Trim { first: 2, .. })) && requests.end_those(is_over).next().is_none());
        assert_eq!(send(&requests, 4).iter().map(|(_, first)| *first).collect::<Vec<_>>(), [1, 3, 4]);
        assert_eq!(requests.end_all().count(), 3);
        assert!(requests.is_empty() && requests.oldest_ns().is_none() && send(&requests, 4).is_empty());
    }
}
