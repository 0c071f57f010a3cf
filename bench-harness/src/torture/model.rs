//! What a cache may answer: for each key the contents it can have. That it has none is always possible, as items may be evicted or lost.

use std::rc::Rc;

#[derive(Debug, Clone, Default)]
struct Expected {
    /// More than one after a request that was not answered, or with an error.
    contents: Vec<Rc<[u8]>>,
    /// The last request that changed it was not answered, or with an error. Not told by the number of contents: a key that has none has one after that.
    is_doubtful: bool,
    /// It was found missing since.
    is_gone: bool,
}

/// Why a key may be missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Miss {
    /// It was never stored, or removed.
    Absent,
    /// The last request that changed it failed, or was not answered.
    Doubtful,
    /// Found missing before, and not stored since.
    Known,
    /// It was there: the server has evicted or lost it.
    Gone,
}

/// The keys of one client; nobody else writes them.
#[derive(Debug)]
pub struct Model {
    keys: Vec<Expected>,
}

impl Model {
    pub fn new(num_keys: usize) -> Self {
        Self { keys: vec![Expected::default(); num_keys] }
    }

    pub fn stored(&mut self, key: usize, content: Rc<[u8]>) {
        self.keys[key] = Expected { contents: vec![content], ..Expected::default() };
    }

    /// The server did not say that it has stored it.
    pub fn may_be_stored(&mut self, key: usize, content: Rc<[u8]>) {
        self.may_be_removed(key);
        let contents = &mut self.keys[key].contents;
        if !contents.contains(&content) {
            contents.push(content);
        }
    }

    /// The server did not say that it has removed it.
    pub fn may_be_removed(&mut self, key: usize) {
        self.keys[key].is_doubtful = true;
    }

    pub fn removed(&mut self, key: usize) {
        self.keys[key] = Expected::default();
    }

    pub fn allows(&self, key: usize, content: &[u8]) -> bool {
        self.keys[key].contents.iter().any(|expected| **expected == *content)
    }

    /// The key was not found.
    pub fn missed(&mut self, key: usize) -> Miss {
        let expected = &mut self.keys[key];
        match expected {
            _ if expected.contents.is_empty() => Miss::Absent,
            Expected { is_doubtful: true, .. } => Miss::Doubtful,
            Expected { is_gone: true, .. } => Miss::Known,
            _ => {
                expected.is_gone = true;
                Miss::Gone
            }
        }
    }

    /// What the key has, if it has anything and only one thing is possible.
    pub fn only(&self, key: usize) -> Option<Rc<[u8]>> {
        match self.keys[key].contents.as_slice() {
            [content] => Some(Rc::clone(content)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_stored_last_is_allowed_or_what_may_have_been() {
        let [first, second]: [Rc<[u8]>; 2] = [Rc::from(*b"1"), Rc::from(*b"2")];
        let mut model = Model::new(2);
        assert!(!model.allows(0, b"1"));
        model.stored(0, first.clone());
        assert!(model.allows(0, b"1") && !model.allows(0, b"2") && !model.allows(1, b"1"));
        model.may_be_stored(0, second.clone());
        model.may_be_stored(0, second.clone());
        assert!(model.allows(0, b"1") && model.allows(0, b"2") && model.only(0).is_none());
        model.stored(0, second);
        assert!(!model.allows(0, b"1") && model.only(0).as_deref() == Some(&b"2"[..]));
        model.removed(0);
        assert!(!model.allows(0, b"2") && model.only(0).is_none());
    }
    #[test]
    fn a_miss_of_what_was_there_is_told_once() {
        let mut model = Model::new(1);
        assert_eq!(model.missed(0), Miss::Absent);
        model.stored(0, Rc::from(*b"1"));
        assert_eq!([model.missed(0), model.missed(0)], [Miss::Gone, Miss::Known]);
        model.may_be_stored(0, Rc::from(*b"2"));
        assert_eq!(model.missed(0), Miss::Doubtful);
        model.stored(0, Rc::from(*b"3"));
        assert_eq!(model.missed(0), Miss::Gone);
        model.removed(0);
        assert_eq!(model.missed(0), Miss::Absent);
    }

    #[test]
    fn what_was_only_said_to_fail_may_be_missing() {
        let mut model = Model::new(1);
        // Never there, and a store that failed: one content, and yet nothing that the server can have lost.
        model.may_be_stored(0, Rc::from(*b"1"));
        assert_eq!([model.missed(0), model.missed(0)], [Miss::Doubtful; 2]);
        assert!(model.allows(0, b"1"));
        model.stored(0, Rc::from(*b"2"));
        // The content it has already, and a removal that was not answered.
        model.may_be_stored(0, Rc::from(*b"2"));
        assert_eq!(model.missed(0), Miss::Doubtful);
        model.stored(0, Rc::from(*b"3"));
        model.may_be_removed(0);
        assert_eq!(model.missed(0), Miss::Doubtful);
        assert!(model.allows(0, b"3"));
        model.removed(0);
        assert_eq!(model.missed(0), Miss::Absent);
        model.stored(0, Rc::from(*b"4"));
        assert_eq!(model.missed(0), Miss::Gone);
    }
}
