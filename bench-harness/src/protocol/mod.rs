//! What records are on the wire: how they are asked for and written in a server's protocol, and whether an answer is right. The load generator knows
//! nothing else of the servers' protocols.

mod memcached;
mod redis;
pub mod resp;

use clap::ValueEnum;

use crate::value_sizes::ValueSizes;
use crate::values::{VALUE_SIZE_MIN, ValueKind, verify_value};
use crate::ycsb::append_key;
use resp::Items;

/// YCSB's records have so many fields.
pub const NUM_FIELDS: u8 = 10;

/// How Redis keeps a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum DataType {
    /// One string with all fields, as in memcached (SET, GET)
    #[default]
    Strings,
    /// A hash of ten fields, of which all are read (HSET, HGETALL), as YCSB's Redis binding does
    Hashes,
    /// The same hashes, of which one field is read (HGET): YCSB's readallfields=false
    Fields,
}

impl DataType {
    /// As results name it: empty for the usual one.
    pub fn name(self) -> &'static str {
        match self {
            Self::Strings => "",
            Self::Hashes => "hashes",
            Self::Fields => "hash fields",
        }
    }
}

/// A protocol, and what a record is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protocol {
    #[default]
    Memcached,
    Redis {
        data_type: DataType,
        /// Keys are also in a sorted set, by which ranges of them are scanned.
        is_indexed: bool,
    },
}

impl Protocol {
    /// As results name the server.
    pub fn server(self) -> &'static str {
        match self {
            Self::Memcached => "memcached",
            Self::Redis { .. } => "redis",
        }
    }

    pub fn data_type(self) -> DataType {
        match self {
            Self::Memcached => DataType::Strings,
            Self::Redis { data_type, .. } => data_type,
        }
    }

    pub fn without_index(self) -> Self {
        match self {
            Self::Memcached => self,
            Self::Redis { data_type, .. } => Self::Redis { data_type, is_indexed: false },
        }
    }

    pub fn is_indexed(self) -> bool {
        matches!(self, Self::Redis { is_indexed: true, .. })
    }

    /// The smallest value of a record: each field has to be told from others.
    pub fn value_size_min(self) -> usize {
        match self.data_type() {
            DataType::Strings => VALUE_SIZE_MIN,
            DataType::Hashes | DataType::Fields => VALUE_SIZE_MIN * usize::from(NUM_FIELDS),
        }
    }
}

/// Why a record is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// It is not there yet, or was refused before.
    Load,
    Update,
    /// It was never there.
    Insert,
}

/// What a server has for a record, borrowed from the input buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value<'a> {
    /// With the name under which the server has it.
    Named {
        key: &'a [u8],
        data: &'a [u8],
    },
    Plain(&'a [u8]),
    /// Names and contents of all fields, in turn.
    Fields(Items<'a>),
}

impl Value<'_> {
    /// What a reader of an error needs to know.
    pub fn describe(&self) -> String {
        let bytes = |data: &[u8]| format!("{} bytes, starting with {:?}", data.len(), String::from_utf8_lossy(&data[..data.len().min(32)]));
        match self {
            Self::Named { key, data } => format!("{} with {}", String::from_utf8_lossy(key), bytes(data)),
            Self::Plain(data) => bytes(data),
            Self::Fields(items) => format!("{} names and values of fields", items.len()),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply<'a> {
    Value(Value<'a>),
    Miss,
    Stored,
    /// Names of keys.
    Names(Items<'a>),
    /// A refused request, such as `SERVER_ERROR out of memory storing object` or `-OOM command not allowed`.
    Refused(&'a [u8]),
}

#[derive(Debug, PartialEq, Eq)]
pub enum Parsed<T> {
    Incomplete,
    /// The reply and how many bytes it took.
    Complete(T, usize),
    /// Bytes that are no reply: the connection cannot be used any further.
    Garbled,
}

impl<T> Parsed<T> {
    fn map<U>(self, convert: impl FnOnce(T) -> Option<U>) -> Parsed<U> {
        match self {
            Self::Incomplete => Parsed::Incomplete,
            Self::Complete(found, length) => convert(found).map_or(Parsed::Garbled, |converted| Parsed::Complete(converted, length)),
            Self::Garbled => Parsed::Garbled,
        }
    }
}

/// The records of a run: how they travel, and what they must hold.
#[derive(Debug, Clone, Copy)]
pub struct Records {
    pub protocol: Protocol,
    pub value_sizes: ValueSizes,
    pub value_kind: ValueKind,
}

impl Records {
    /// Asks for a record; for one of its fields where only one is read.
    #[inline]
    pub fn append_read(&self, key: u64, field: u8, to: &mut Vec<u8>) {
        match self.protocol {
            Protocol::Memcached => memcached::append_get(key, to),
            Protocol::Redis { data_type, .. } => redis::append_read(data_type, field, |to| resp::append_key(key, to), to),
        }
    }

    /// The same by the name that the server gave.
    pub fn append_read_named(&self, name: &[u8], to: &mut Vec<u8>) {
        match self.protocol {
            Protocol::Memcached => memcached::append_get_named(name, to),
            Protocol::Redis { data_type, .. } => redis::append_read(data_type, 0, |to| resp::append_bulk(name, to), to),
        }
    }

    /// Asks for the names of so many keys from this one on. Only where keys are indexed.
    pub fn append_scan(&self, key: u64, count: u64, to: &mut Vec<u8>) {
        redis::append_scan(key, count, to);
    }

    #[inline]
    pub fn append_write(&self, store: Store, key: u64, version: u32, to: &mut Vec<u8>) {
        let (kind, size) = (self.value_kind, self.value_sizes.of(key));
        match self.protocol {
            Protocol::Memcached => memcached::append_store(store, key, version, kind, size, to),
            Protocol::Redis { data_type, is_indexed } => {
                redis::append_write(data_type, key, version, kind, size, to);
                if is_indexed && store != Store::Update {
                    redis::append_index(key, to);
                }
            }
        }
    }

    #[inline]
    pub fn parse_read<'a>(&self, input: &'a [u8]) -> Parsed<Reply<'a>> {
        match self.protocol {
            Protocol::Memcached => memcached::parse_get_reply(input),
            Protocol::Redis { .. } => redis::parse_read(input),
        }
    }

    pub fn parse_scan<'a>(&self, input: &'a [u8]) -> Parsed<Reply<'a>> {
        redis::parse_names(input)
    }

    /// The answer to `append_write`, which is one even where it took two commands.
    #[inline]
    pub fn parse_write<'a>(&self, store: Store, input: &'a [u8]) -> Parsed<Reply<'a>> {
        match self.protocol {
            Protocol::Memcached => memcached::parse_store_reply(input),
            Protocol::Redis { is_indexed, .. } => redis::parse_write(is_indexed && store != Store::Update, input),
        }
    }

    /// The version of the record of which the server has this value, if it is one in every byte. `scratch` is for a key's name.
    #[inline]
    pub fn version(&self, key: u64, field: u8, value: &Value<'_>, scratch: &mut Vec<u8>) -> Option<u32> {
        let (kind, size) = (self.value_kind, self.value_sizes.of(key));
        match value {
            Value::Named { key: name, data } => {
                scratch.clear();
                append_key(key, scratch);
                if *name == scratch.as_slice() { verify_value(kind, key, size, data) } else { None }
            }
            Value::Plain(data) if self.protocol.data_type() == DataType::Fields => redis::field_version(kind, key, field, size, data),
            Value::Plain(data) => verify_value(kind, key, size, data),
            Value::Fields(items) => redis::hash_version(kind, key, size, items.clone()),
        }
    }

    /// The key and version of a value that came under this name, if it is one in every byte.
    pub fn key_and_version(&self, name: &[u8], value: &Value<'_>, scratch: &mut Vec<u8>) -> Option<(u64, u32)> {
        let key = redis::key_of(self.protocol.data_type(), value)?;
        scratch.clear();
        append_key(key, scratch);
        if name != scratch.as_slice() {
            return None;
        }
        Some((key, self.version(key, 0, value, scratch)?))
    }
}
