//! Records of TLS 1.3 (RFC 8446, section 5): a header of five bytes; the content, its type and perhaps zeroes, encrypted; and a tag. The nonce of each is its number
//! among those under the same key.

use super::TlsError;
use ring::aead::{AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use rustls::{ConnectionTrafficSecrets, ContentType};

pub(in super::super) const HEADER_BYTES: usize = 5;
const TYPE_BYTES: usize = 1;
const TAG_BYTES: usize = 16;
/// Content of one record.
pub(super) const MAX_CONTENT_BYTES: usize = 1 << 14;
/// What a record has beside its content; others may have more, up to a limit.
pub(super) const OVERHEAD_BYTES: usize = HEADER_BYTES + TYPE_BYTES + TAG_BYTES;
const MAX_ENCRYPTED_BYTES: usize = MAX_CONTENT_BYTES + 256;
pub(in super::super) const MAX_RECORD_BYTES: usize = HEADER_BYTES + MAX_ENCRYPTED_BYTES;

/// All of it, if the header's length is allowed.
pub(in super::super) fn record_bytes(header: [u8; HEADER_BYTES]) -> Result<usize, TlsError> {
    let num_bytes = usize::from(u16::from_be_bytes([header[3], header[4]]));
    match ContentType::from(header[0]) {
        ContentType::ApplicationData if num_bytes > MAX_ENCRYPTED_BYTES => Err(TlsError::Violation("a record is longer than allowed")),
        ContentType::ApplicationData if num_bytes < TYPE_BYTES + TAG_BYTES => Err(TlsError::Violation("a record is shorter than any can be")),
        ContentType::ApplicationData => Ok(HEADER_BYTES + num_bytes),
        ContentType::Alert | ContentType::Handshake | ContentType::ChangeCipherSpec => Err(TlsError::Violation("a record is not encrypted")),
        _ => Err(TlsError::Violation("what came is no record")),
    }
}

/// A key for one direction.
pub(super) struct Key {
    key: LessSafeKey,
    iv: [u8; NONCE_LEN],
    /// Records under it so far.
    num_records: u64,
}

impl Key {
    pub(super) fn new((num_records, secrets): (u64, ConnectionTrafficSecrets)) -> Result<Self, TlsError> {
        let (algorithm, key, iv) = match &secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return Err(TlsError::NoKeys),
        };
        let key = UnboundKey::new(algorithm, key.as_ref()).map_err(|_| TlsError::NoKeys)?;
        let iv = iv.as_ref().try_into().map_err(|_| TlsError::NoKeys)?;
        Ok(Self { key: LessSafeKey::new(key), iv, num_records })
    }

    pub(super) fn num_records(&self) -> u64 {
        self.num_records
    }

    /// Never the same twice: keys are changed long before their numbers end.
    fn next_nonce(&mut self) -> Nonce {
        let mut nonce = self.iv;
        let number = self.num_records.to_be_bytes();
        nonce[NONCE_LEN - number.len()..].iter_mut().zip(number).for_each(|(byte, number)| *byte ^= number);
        self.num_records += 1;
        Nonce::assume_unique_for_key(nonce)
    }

    /// Decrypts the record at `start`, which ends with `in_out`, to the beginning of `in_out`: what type it is of, and how many bytes lie there now.
    pub(super) fn open(&mut self, in_out: &mut [u8], start: usize) -> Result<(ContentType, usize), TlsError> {
        let header: [u8; HEADER_BYTES] = in_out[start..start + HEADER_BYTES].try_into().expect("a header");
        let nonce = self.next_nonce();
        let opened = self.key.open_within(nonce, Aad::from(header), in_out, start + HEADER_BYTES..).map_err(|_| TlsError::Tampered)?;
        let end = opened.iter().rposition(|byte| *byte != 0).ok_or(TlsError::Violation("a record has no type"))?;
        if end > MAX_CONTENT_BYTES {
            return Err(TlsError::Violation("a record is longer than allowed"));
        }
        Ok((ContentType::from(opened[end]), end))
    }

    /// Makes a record, with content that lies behind the place of its header: its length.
    pub(super) fn seal(&mut self, record: &mut [u8], content: ContentType, num_bytes: usize) -> usize {
        let (header, rest) = record.split_at_mut(HEADER_BYTES);
        let (inner, rest) = rest.split_at_mut(num_bytes + TYPE_BYTES);
        let encrypted_bytes = (inner.len() + TAG_BYTES) as u16;
        inner[num_bytes] = content.into();
        header[..3].copy_from_slice(&[ContentType::ApplicationData.into(), 3, 3]);
        header[3..].copy_from_slice(&encrypted_bytes.to_be_bytes());
        let nonce = self.next_nonce();
        let tag = self.key.seal_in_place_separate_tag(nonce, Aad::from(header), inner).expect("a record is not too long");
        rest[..TAG_BYTES].copy_from_slice(tag.as_ref());
        OVERHEAD_BYTES + num_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::crypto::cipher::{AeadKey, Iv};

    /// The server's records of the handshake that RFC 8448, section 3, prints: its application data, and its alert at the end.
    #[test]
    fn known_records() {
        let bytes = |text: &str| -> Vec<u8> { text.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect() };
        let key: [u8; 16] = bytes("9f 02 28 3b 6c 9c 07 ef c2 6b b9 f2 ac 92 e3 56").try_into().unwrap();
        let iv: [u8; 12] = bytes("cf 78 2b 88 dd 83 54 9a ad f1 e9 84").try_into().unwrap();
        let key = UnboundKey::new(&AES_128_GCM, &key).unwrap();
        // The first record under this key is a ticket.
        let mut key = Key { key: LessSafeKey::new(key), iv, num_records: 1 };
        let data = "17 03 03 00 43 2e 93 7e 11 ef 4a c7 40 e5 38 ad 36 00 5f c4 a4 69 32 fc 32 25 d0 5f 82 aa 1b 36 e3 0e fa f9 7d 90 e6 df
            fc 60 2d cb 50 1a 59 a8 fc c4 9c 4b f2 e5 f0 a2 1c 00 47 c2 ab f3 32 54 0d d0 32 e1 67 c2 95 5d";
        let alert = "17 03 03 00 13 b5 8f d6 71 66 eb f5 99 d2 47 20 cf be 7e fa 7a 88 64 a9";
        let data = bytes(data);
        let mut stream = [vec![0; 9], data.clone()].concat();
        assert_eq!(record_bytes(data[..5].try_into().unwrap()), Ok(data.len()));
        assert_eq!(key.open(&mut stream, 9), Ok((ContentType::ApplicationData, 50)));
        assert!(stream[..50].iter().copied().eq(0..50));
        assert_eq!(key.open(&mut bytes(alert), 0), Ok((ContentType::Alert, 2)));
        // The other way round, it is the same again.
        key.num_records = 1;
        let mut record = vec![0; data.len()];
        (0..50).for_each(|byte| record[5 + byte] = byte as u8);
        assert_eq!(key.seal(&mut record, ContentType::ApplicationData, 50), data.len());
        assert_eq!(record, data);
    }

    fn key() -> Key {
        let secrets = ConnectionTrafficSecrets::Aes256Gcm { key: AeadKey::from([7; 32]), iv: Iv::from([9; 12]) };
        Key::new((0, secrets)).unwrap()
    }

    #[test]
    fn a_changed_bit_anywhere_is_found() {
        let mut record = [1; OVERHEAD_BYTES + 10];
        key().seal(&mut record, ContentType::ApplicationData, 10);
        for bit in 0..record.len() * 8 {
            let mut changed = record;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(key().open(&mut changed, 0), Err(TlsError::Tampered), "bit {bit}");
        }
        // Nor does any come twice.
        let mut key = key();
        assert_eq!(key.open(&mut record.clone(), 0), Ok((ContentType::ApplicationData, 10)));
        assert_eq!(key.open(&mut record, 0), Err(TlsError::Tampered));
    }

    #[test]
    fn padding_is_taken_off_and_nothing_but_padding_refused() {
        let mut record = [0; OVERHEAD_BYTES + 300];
        record[HEADER_BYTES..][..3].copy_from_slice(&[1, 2, ContentType::ApplicationData.into()]);
        // A type of zero makes it padding.
        key().seal(&mut record, ContentType::Unknown(0), 300);
        assert_eq!(key().open(&mut record.clone(), 0), Ok((ContentType::ApplicationData, 2)));
        let mut empty = [0; OVERHEAD_BYTES];
        key().seal(&mut empty, ContentType::Unknown(0), 0);
        assert!(matches!(key().open(&mut empty, 0), Err(TlsError::Violation(_))));
        assert_eq!(record_bytes([23, 3, 3, 0x41, 0]), Ok(MAX_RECORD_BYTES));
        for header in [[23, 3, 3, 0x41, 1], [23, 3, 3, 0, 16], [21, 3, 3, 0, 2], *b"HTTP/"] {
            assert!(matches!(record_bytes(header), Err(TlsError::Violation(_))), "{header:?}");
        }
    }
}
