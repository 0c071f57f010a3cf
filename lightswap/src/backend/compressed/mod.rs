//! Compressed memory: pages that stay in DRAM, in less of it.
//!
//! Layout, from a slot to its bytes:
//!
//! - **Slot table** ([`entry`]): one word a slot, which says where the page's object lies and how long it is. A page that repeats one word needs
//!   no object: the word is in the table, if 62 bits hold it.
//! - **Objects**: a page as lz4 has it, or as it is if that saves less than a ninth. An object is as long as its *size class* ([`classes`]) says: steps of
//!   16 bytes, and above 1.4 KiB as many objects as fit into a group exactly, about 140 classes.
//! - **Groups** ([`group`], [`heap`]): 128 KiB of address space with objects of one class, packed without regard to page boundaries. A group fills from its
//!   start, and pages that no object has reached cost nothing, so that a class with a single object takes a page, not a group. 64 bytes beside it tell
//!   which objects live and which pages are backed by memory.
//! - **Giving back** ([`trim`]): a page that no living object overlaps is *idle*, whatever else its group holds. Beyond a small reserve idle pages are
//!   returned to the system, many with one call. A group without objects can become one of any other class.
//!
//! Objects never move. A load therefore takes no lock: it reads the slot's word, then the object. Stores and frees lock their size class for the time of a
//! search in a bitmap. Nothing here calls malloc after [`pool::Pool::new`]: address space is mapped then, and filled as it is used.

pub(in crate::backend) mod backend;
mod classes;
mod entry;
mod group;
mod heap;
mod pool;
#[cfg(test)]
mod tests;
mod trim;
