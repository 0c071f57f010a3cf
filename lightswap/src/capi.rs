//! The C ABI. `include/lightswap.h` is generated from the files of its modules, in the order that tests/header.rs names them.
//!
//! Functions return LSW_OK (0) or a negative status, and leave a sentence about a failure for `lsw_last_error`.
#![allow(non_camel_case_types, reason = "the names are those of the C header")]
#![allow(clippy::missing_safety_doc, reason = "every pointer must be valid for its use, as in C; the header says what for")]

pub mod constants;
pub mod error;
pub mod failure;
pub mod heap;
pub mod instance;
pub mod lwt;
pub mod region;
pub mod stats;
pub mod sync;
pub mod syscalls;
