use super::*;

/// A page that has been brought in.
fn resident() -> PageEntry {
    let entry = PageEntry::new();
    assert!(entry.begin_swap_in(entry.load()) && !entry.finish_swap_in(0, Tick::after(0)));
    entry
}

#[test]
fn a_page_goes_round() {
    let entry = resident();
    assert!(entry.select_victim().is_some() && entry.begin_removal());
    assert!(entry.set_waiters() && entry.finish_removal(Some(7)), "waiters must be reported");
    let word = entry.load();
    assert!(word.state() == PageState::SwappedOut && word.is_stored() && entry.hash() == 7);
    assert!(entry.begin_swap_in(word) && !entry.begin_swap_in(word), "one owner only");
    assert!(!entry.finish_swap_in(1, Tick::after(0)));
    assert_eq!(entry.load().num_pins(), 1);
    assert!(entry.select_victim().is_none(), "a pinned page is no victim");
    assert_eq!(entry.unpin(), Some(true));
}

#[test]
fn references_delay_and_accesses_cancel_eviction() {
    let entry = resident();
    (0..99).for_each(|count| assert!(entry.reference(Tick::after(count / 10))));
    // Nine ticks saw it after the one it came in.
    assert_eq!((0..9).take_while(|_| entry.select_victim().is_none()).count(), 3, "references saturate at 3");
    assert_eq!(entry.load().state(), PageState::Evicting);
    assert!(entry.reference(Tick::after(50)) && !entry.begin_removal(), "a touch cancels");
    entry.forget_references();
    assert!(entry.select_victim().is_some());
    assert_eq!(entry.pin(Tick::after(51)), Ok(Pinned::Cancelled));
    assert!(!entry.begin_removal(), "a pin cancels");
}

#[test]
fn failures_carry_their_cause() {
    let entry = PageEntry::new();
    assert!(entry.begin_swap_in(entry.load()) && entry.set_waiters() && entry.fail_swap_in(5));
    assert_eq!((entry.load().state(), entry.cause()), (PageState::Failed, 5));
    assert!(entry.pin(Tick::after(0)).is_err() && !entry.reference(Tick::after(50)) && !entry.set_waiters());
}

#[test]
fn what_failed_is_read_again_and_what_is_damaged_is_not() {
    let entry = resident();
    assert!(entry.select_victim().is_some() && entry.begin_removal() && !entry.finish_removal(Some(7)));
    assert!(entry.begin_swap_in(entry.load()) && !entry.fail_swap_in(5));
    let word = entry.load();
    assert!(word.is_stored() && !word.has_frame(), "there is something to read again");
    assert!(entry.begin_swap_in(word) && !entry.finish_swap_in(1, Tick::after(0)));
    assert_eq!((entry.load().state(), entry.hash()), (PageState::Resident, 7));
    assert!(entry.lose() && !entry.lose());
    let word = entry.load();
    assert_eq!((word.state(), word.num_pins(), word.has_frame()), (PageState::Failed, 1, true));
    assert!(!word.is_stored() && word.has_frame() && !word.is_mapped(), "the slot has an older content, if any");
    assert_eq!(entry.unpin(), Some(true));
    assert!(entry.begin_discard(entry.load()) && entry.set_waiters() && entry.finish_removal(None));
    assert_eq!(entry.load(), PageEntry::new().load());
}

/// What a page may be asked for, in any order.
#[derive(Clone, Copy, Debug)]
enum Step {
    Reference(u8),
    Pin(u8),
    Unpin,
    BringIn { pins: u32, outcome: Outcome },
    Select,
    Write,
    BeginRemoval,
    Cancel,
    FinishRemoval { is_zero: bool },
    Wait,
    Forget,
    Lose,
    Discard,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    Failed,
    Aborted,
}

/// The page as its users understand it.
#[derive(Debug)]
struct Model {
    state: PageState,
    pins: u32,
    is_stored: bool,
    has_waiters: bool,
    most_references: u32,
}

impl Model {
    fn is_mapped(&self) -> bool {
        matches!(self.state, PageState::Resident | PageState::Evicting)
    }
}

/// Takes one step on both, and fails the test if the entry answers otherwise than the model.
fn take(step: Step, entry: &PageEntry, model: &mut Model) {
    use PageState::*;
    match step {
        Step::Reference(tick) => {
            assert_eq!(entry.reference(Tick::after(tick.into())), model.is_mapped());
            if model.is_mapped() {
                model.state = Resident;
                model.most_references = (model.most_references + 1).min(3);
            }
        }
        Step::Pin(tick) => {
            let expected = if model.state == Evicting { Pinned::Cancelled } else { Pinned::Resident };
            match entry.pin(Tick::after(tick.into())) {
                Ok(pinned) => {
                    assert!(model.is_mapped() && pinned == expected);
                    model.state = Resident;
                    model.pins += 1;
                    model.most_references = (model.most_references + 1).min(3);
                }
                Err(word) => assert!(!model.is_mapped() && word.state() == model.state),
            }
        }
        Step::Unpin if model.pins == 0 => assert_eq!(entry.unpin(), None),
        Step::Unpin => {
            model.pins -= 1;
            assert_eq!(entry.unpin(), Some(model.pins == 0));
        }
        Step::BringIn { pins, outcome } if matches!(model.state, Untouched | SwappedOut) || (model.state == Failed && model.is_stored) => {
            let word = entry.load();
            assert!(entry.begin_swap_in(word) && !entry.begin_swap_in(word), "one owner");
            assert!(entry.set_waiters() && !entry.reference(Tick::after(0)) && entry.pin(Tick::after(0)).is_err());
            match outcome {
                Outcome::Done => {
                    assert!(entry.finish_swap_in(pins, Tick::after(0)));
                    (model.state, model.pins, model.most_references) = (Resident, model.pins + pins, 0);
                }
                Outcome::Failed if model.is_stored => {
                    assert!(entry.fail_swap_in(5) && entry.cause() == 5);
                    model.state = Failed;
                }
                Outcome::Failed | Outcome::Aborted => {
                    assert!(entry.abort_swap_in());
                    model.state = if model.is_stored { SwappedOut } else { Untouched };
                }
            }
        }
        Step::Select => {
            let selected = entry.select_victim().is_some();
            assert!(!selected || (model.state == Resident && model.pins == 0));
            assert!(selected || model.state != Resident || model.pins > 0 || model.most_references > 0, "nothing speaks for the page");
            if selected {
                (model.state, model.most_references) = (Evicting, 0);
            } else if model.state == Resident && model.pins == 0 {
                model.most_references -= 1;
            }
        }
        Step::Write if model.state == Evicting => {
            entry.forget_stored();
            model.is_stored = false;
        }
        Step::BeginRemoval => {
            assert_eq!(entry.begin_removal(), model.state == Evicting);
            if model.state == Evicting {
                model.state = Removing;
            }
        }
        Step::Cancel => {
            entry.cancel_eviction();
            if model.state == Evicting {
                model.state = Resident;
            }
        }
        Step::FinishRemoval { is_zero } if model.state == Removing => {
            assert_eq!(entry.finish_removal((!is_zero).then_some(7)), model.has_waiters);
            (model.state, model.is_stored, model.has_waiters) = (if is_zero { Untouched } else { SwappedOut }, !is_zero, false);
            assert!(is_zero || entry.hash() == 7);
        }
        Step::Wait => {
            assert_eq!(entry.set_waiters(), model.state == Removing);
            model.has_waiters |= model.state == Removing;
        }
        Step::Lose => {
            assert_eq!(entry.lose(), model.is_mapped());
            if model.is_mapped() {
                (model.state, model.is_stored) = (Failed, false);
            }
        }
        Step::Discard if model.pins == 0 && !matches!(model.state, Evicting | Removing) => {
            assert!(entry.begin_discard(entry.load()) && !entry.load().is_stored());
            assert!(entry.pin(Tick::after(0)).is_err() && !entry.begin_removal() && !entry.finish_removal(None));
            (model.state, model.is_stored) = (Untouched, false);
        }
        Step::Forget => {
            entry.forget_references();
            if model.state == Resident {
                model.most_references = 0;
            }
        }
        _ => {}
    }
    let word = entry.load();
    assert_eq!((word.state(), word.num_pins(), word.is_stored(), word.is_mapped()), (model.state, model.pins, model.is_stored, model.is_mapped()));
}

proptest::proptest! {
    /// Whatever comes in whatever order, an entry is what its users think it is.
    #[test]
    fn entries_follow_the_model(steps in proptest::collection::vec(steps(), 1..80)) {
        let entry = PageEntry::new();
        let mut model = Model { state: PageState::Untouched, pins: 0, is_stored: false, has_waiters: false, most_references: 0 };
        steps.into_iter().for_each(|step| take(step, &entry, &mut model));
    }
}

fn steps() -> impl proptest::strategy::Strategy<Value = Step> {
    use proptest::prelude::*;
    prop_oneof![
        2 => any::<u8>().prop_map(Step::Reference),
        2 => any::<u8>().prop_map(Step::Pin),
        3 => Just(Step::Unpin),
        4 => (0..3u32).prop_map(|pins| Step::BringIn { pins, outcome: Outcome::Done }),
        1 => Just(Step::BringIn { pins: 1, outcome: Outcome::Aborted }),
        1 => Just(Step::BringIn { pins: 1, outcome: Outcome::Failed }),
        6 => Just(Step::Select),
        1 => Just(Step::Write),
        3 => Just(Step::BeginRemoval),
        1 => Just(Step::Cancel),
        3 => any::<bool>().prop_map(|is_zero| Step::FinishRemoval { is_zero }),
        1 => Just(Step::Wait),
        1 => Just(Step::Lose),
        1 => Just(Step::Discard),
        1 => Just(Step::Forget),
    ]
}
