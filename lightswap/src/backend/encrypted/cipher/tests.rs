//! Known answers: of the GCM specification (test cases 13 to 16), and of a page by another implementation (OpenSSL's).

use super::*;

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

/// Key, nonce, additional data, plaintext, ciphertext, tag.
const SPECIFIED: [[&str; 6]; 4] = [
    ["0000000000000000000000000000000000000000000000000000000000000000", "000000000000000000000000", "", "", "", "530f8afbc74536b9a963b4f1c4cb738b"],
    [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "000000000000000000000000",
        "",
        "00000000000000000000000000000000",
        "cea7403d4d606b6e074ec5d3baf39d18",
        "d0d1c8a799996bf0265b98b5d48ab919",
    ],
    [
        "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308",
        "cafebabefacedbaddecaf888",
        "",
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255",
        "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662898015ad",
        "b094dac5d93471bdec1a502270e3cc6c",
    ],
    [
        "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308",
        "cafebabefacedbaddecaf888",
        "feedfacedeadbeeffeedfacedeadbeefabaddad2",
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39",
        "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662",
        "76fc6ece0f4e1768cddf8853bb2d551b",
    ],
];

#[test]
fn the_specification_s_answers() {
    for case in SPECIFIED {
        let [key, nonce, aad, plain, expected, tag] = case.map(bytes);
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key).unwrap());
        let (nonce, mut content) = (nonce.try_into().unwrap(), plain.clone());
        assert_eq!(seal(&key, nonce, &aad, &mut content).to_vec(), tag);
        assert_eq!(content, expected);
        assert_eq!(open(&key, nonce, &aad, &mut content, tag.try_into().unwrap()), Ok(()));
        assert_eq!(content, plain);
    }
}

fn page() -> Vec<u8> {
    (0..PAGE_SIZE).map(|at| (at * 31 + 7) as u8).collect()
}

fn key() -> [u8; KEY_BYTES] {
    std::array::from_fn(|byte| byte as u8)
}

#[test]
fn the_answer_for_a_page() {
    let cipher = Cipher::with(&key(), 0x0102_0304_0506_0708).unwrap();
    let mut content = page();
    let nonce = cipher.take(1).unwrap();
    let tag = cipher.seal(nonce, 7, &mut content);
    assert_eq!(content[..16], bytes("0377206a5e43c87efc81c0b365fd8028"));
    assert_eq!(content[PAGE_SIZE - 16..], bytes("80299e4fa94596e5696b6a9b088cb9a8"));
    assert_eq!(tag.to_vec(), bytes("51579e325ec36de1e012b6e2e026b657"));
    assert_eq!(cipher.open(nonce, 7, &mut content, tag), Ok(()));
    assert_eq!(content, page());
}

/// Every bit of content and tag, another slot, another nonce, another key.
#[test]
fn all_that_is_changed_is_found() {
    let cipher = Cipher::new().unwrap();
    let nonce = cipher.take(1).unwrap();
    let mut sealed = page();
    let tag = cipher.seal(nonce, 7, &mut sealed);
    let mut content = sealed.clone();
    for bit in 0..8 * PAGE_SIZE {
        content.copy_from_slice(&sealed);
        content[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(cipher.open(nonce, 7, &mut content, tag), Err(Tampered), "bit {bit}");
    }
    // What was tampered with does not come out, not even in part.
    assert!(content.iter().all(|byte| *byte == 0));
    for bit in 0..8 * TAG_BYTES {
        let mut wrong = tag;
        wrong[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(cipher.open(nonce, 7, &mut sealed.clone(), wrong), Err(Tampered), "bit {bit} of the tag");
    }
    assert_eq!(cipher.open(nonce, 8, &mut sealed.clone(), tag), Err(Tampered));
    assert_eq!(cipher.open(nonce + 1, 7, &mut sealed.clone(), tag), Err(Tampered));
    assert_eq!(Cipher::new().unwrap().open(nonce, 7, &mut sealed.clone(), tag), Err(Tampered));
    assert_eq!(cipher.open(nonce, 7, &mut sealed, tag), Ok(()));
    assert_eq!(sealed, page());
}

#[test]
fn nonces_never_come_twice() {
    let cipher = Cipher::new().unwrap();
    let mut all: Vec<u64> = std::thread::scope(|scope| {
        let take = |thread: usize| {
            let cipher = &cipher;
            scope.spawn(move || {
                (0..2000).flat_map(|round| (cipher.take((thread + round) % 33 + 1).unwrap()..).take((thread + round) % 33 + 1)).collect()
            })
        };
        let threads: Vec<_> = (0..4).map(take).collect();
        threads.into_iter().flat_map(|thread| -> Vec<u64> { thread.join().unwrap() }).collect()
    });
    let num_taken = all.len();
    assert_eq!(cipher.num_taken(), num_taken as u64);
    all.sort_unstable();
    all.dedup();
    assert!(all.len() == num_taken && all[0] == 1);
}

/// A child would encrypt with the nonces that its parent takes, too.
#[test]
fn a_child_of_fork_has_no_key() {
    let cipher = Cipher::new().unwrap();
    let nonce = cipher.take(1).unwrap();
    let mut content = page();
    let tag = cipher.seal(nonce, 1, &mut content);
    // SAFETY: the child only looks at memory, computes and ends.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        // SAFETY: the mapping is there, a page long.
        let is_wiped = unsafe { std::slice::from_raw_parts(cipher.memory.base(), PAGE_SIZE) }.iter().all(|byte| *byte == 0);
        let is_useless = cipher.take(1).is_none() && cipher.num_taken() == 0 && cipher.open(nonce, 1, &mut content, tag) == Err(Tampered);
        // SAFETY: ends the child at once, without what the harness would do.
        unsafe { libc::_exit(if is_wiped && is_useless { 7 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: waits for our child.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 7, "{status:#x}");
    // The parent still has it.
    assert_eq!(cipher.open(nonce, 1, &mut content, tag), Ok(()));
}

/// Throw-away measurements stay out of the tests; this one tells on request what a page costs.
#[test]
#[ignore = "a measurement: cargo test --release -p lightswap --lib cost_of_a_page -- --ignored --nocapture"]
fn cost_of_a_page() {
    const NUM_PAGES: usize = 4096;
    const ROUNDS: usize = 20;
    let cipher = Cipher::new().unwrap();
    let source = vec![7u8; NUM_PAGES * PAGE_SIZE];
    let mut target = vec![0u8; NUM_PAGES * PAGE_SIZE];
    let mut tags = vec![[0; TAG_BYTES]; NUM_PAGES];
    let mut sealing_ns = Vec::new();
    let mut opening_ns = Vec::new();
    for _ in 0..ROUNDS {
        let first = cipher.take(NUM_PAGES).unwrap();
        let start = std::time::Instant::now();
        for (page, content) in target.chunks_exact_mut(PAGE_SIZE).enumerate() {
            content.copy_from_slice(&source[page * PAGE_SIZE..][..PAGE_SIZE]);
            tags[page] = cipher.seal(first + page as u64, page, content);
        }
        sealing_ns.push(start.elapsed().as_nanos() as usize / NUM_PAGES);
        let start = std::time::Instant::now();
        for (page, content) in target.chunks_exact_mut(PAGE_SIZE).enumerate() {
            assert_eq!(cipher.open(first + page as u64, page, content, tags[page]), Ok(()));
        }
        opening_ns.push(start.elapsed().as_nanos() as usize / NUM_PAGES);
        assert!(target == source);
    }
    for (what, times) in [("copy and encrypt", &mut sealing_ns), ("decrypt", &mut opening_ns)] {
        times.sort_unstable();
        println!("{what}: {} ns a page (median of {ROUNDS}; {} to {})", times[ROUNDS / 2], times[0], times[ROUNDS - 1]);
    }
}
