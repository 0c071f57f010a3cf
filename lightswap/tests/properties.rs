//! Properties of what takes any input: sizes, backend URLs, and sequences of calls on a region.

mod common;

use common::pages::Pages;
use common::{Backend, LEAST_PAGES, PAGE, builder, kernel_is_able};
use lightswap::{Contract, ErrorKind, format_size, parse_size};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    #[test]
    fn any_text_is_a_size_or_an_error(text in any::<String>()) {
        if let Err(error) = parse_size(&text) {
            prop_assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        }
    }

    #[test]
    fn sizes_with_units_mean_what_they_say(number in 0u64..1 << 20, unit in 0usize..5, style in 0usize..5) {
        let letter = ["", "k", "m", "g", "t"][unit];
        let text = match style {
            0 => format!("{number}{letter}"),
            1 => format!("{number}{}b", letter.to_uppercase()),
            2 => format!("{number} {letter}"),
            3 if unit > 0 => format!(" {number}{letter}iB "),
            _ => format!("{number}{letter}"),
        };
        prop_assert_eq!(parse_size(&text).unwrap(), number << (10 * unit));
    }

    /// What is printed can be read back, as exactly as it was printed.
    #[test]
    fn printed_sizes_parse(bytes in 0u64..1 << 62) {
        let parsed = parse_size(&format_size(bytes)).unwrap_or(u64::MAX);
        prop_assert!(parsed.abs_diff(bytes) <= bytes / 10, "{} -> {} -> {}", bytes, format_size(bytes), parsed);
    }

    /// Text that looks like a URL, from parts that are right and parts that are not.
    #[test]
    fn any_url_opens_or_is_refused(
        scheme in prop_oneof![Just("memory".to_owned()), Just("file".to_owned()), any::<String>()],
        path in prop_oneof![Just(String::new()), Just("/nonexistent/swap".to_owned()), "[a-z/?&=%\\x00]{0,20}"],
        options in "(size=[0-9]{0,6}[kmGT]?(iB)?)?(&[a-z]{0,7}=?[a-z0-9]{0,5}){0,3}",
    ) {
        // Relative paths would make files in the working directory.
        let path = if path.is_empty() { path } else { format!("/nonexistent/{path}") };
        let url = format!("{scheme}:{path}?{options}");
        if let Err(error) = builder(64, &url).open() {
            let known = [ErrorKind::BackendUrl, ErrorKind::Backend, ErrorKind::NoMemory, ErrorKind::NoUserfaultfd, ErrorKind::NoIoUring];
            prop_assert!(known.contains(&error.kind()), "{}: {:?}", url, error);
            prop_assert!(!error.to_string().is_empty());
        }
    }
}

/// What a program may do with a page.
#[derive(Clone, Copy, Debug)]
enum Step {
    Write(usize, u64),
    Clear(usize),
    Read(usize),
    Touch(usize, usize),
    Pin(usize),
    Unpin,
    Prefetch(usize, usize),
    AdviseCold(usize, usize),
}

const NUM_PAGES: usize = 48;

fn steps() -> impl Strategy<Value = Step> {
    let page = 0..NUM_PAGES;
    let range = (0..NUM_PAGES - 8, 1..8usize);
    prop_oneof![
        4 => (page.clone(), 1..u64::MAX).prop_map(|(page, value)| Step::Write(page, value)),
        1 => page.clone().prop_map(Step::Clear),
        4 => page.clone().prop_map(Step::Read),
        1 => range.clone().prop_map(|(page, len)| Step::Touch(page, len)),
        1 => page.prop_map(Step::Pin),
        1 => Just(Step::Unpin),
        1 => range.clone().prop_map(|(page, len)| Step::Prefetch(page, len)),
        1 => range.prop_map(|(page, len)| Step::AdviseCold(page, len)),
    ]
}

/// A region is an array: whatever is called in whatever order, a page holds what was last written to it.
fn region_is_an_array(steps: &[Step], contract: Contract, backend: Backend, on_lwt: bool) {
    let swap = builder(LEAST_PAGES, backend.url(NUM_PAGES)).open().unwrap();
    let region = swap.create_region(NUM_PAGES * PAGE, contract).unwrap();
    let pages = Pages::of(&region);
    let steps = steps.to_vec();
    let work = move || {
        let mut array = [0u64; NUM_PAGES];
        let mut pinned = Vec::new();
        for step in steps {
            match step {
                Step::Write(page, value) => {
                    pages.writing(page, 1, || [0, 511].into_iter().for_each(|word| pages.set_word(page, word, value)));
                    array[page] = value;
                }
                Step::Clear(page) => {
                    pages.writing(page, 1, || [0, 511].into_iter().for_each(|word| pages.set_word(page, word, 0)));
                    array[page] = 0;
                }
                Step::Read(page) => assert_eq!([pages.word(page, 0), pages.word(page, 511)], [array[page]; 2], "page {page}"),
                Step::Touch(page, len) => pages.touch(page, len),
                // Fewer than the limit, so that writing finds one.
                Step::Pin(page) if pinned.len() < 6 => {
                    pages.pin(page, 1).unwrap();
                    pinned.push(page);
                }
                Step::Pin(_) => {}
                Step::Unpin => pinned.pop().into_iter().for_each(|page| pages.unpin(page, 1)),
                Step::Prefetch(page, len) => pages.prefetch(page, len),
                Step::AdviseCold(page, len) => pages.advise_cold(page, len),
            }
            assert!(pinned.iter().all(|page| pages.is_resident(*page)));
        }
        (0..NUM_PAGES).for_each(|page| assert_eq!(pages.word(page, 0), array[page], "page {page}"));
        pinned.into_iter().for_each(|page| pages.unpin(page, 1));
    };
    if on_lwt {
        let worker = swap.enter_worker().unwrap();
        worker.start(work).unwrap();
        worker.run();
    } else {
        work();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(60) })]

    #[test]
    fn a_region_is_an_array(steps in prop::collection::vec(steps(), 1..400), variant in 0..8usize) {
        if kernel_is_able() {
            let contract = [Contract::Transparent, Contract::Cooperative][variant % 2];
            let backend = [Backend::Memory, Backend::File][variant / 2 % 2];
            region_is_an_array(&steps, contract, backend, variant / 4 == 1);
        }
    }
}
