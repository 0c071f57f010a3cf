use super::*;

/// A page that has been brought in.
fn resident() -> PageEntry {
    let entry = PageEntry::new();
    assert!(entry.begin_swap_in(entry.load()) && !entry.finish_swap_in(0, Tick(0)));
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
    assert!(!entry.finish_swap_in(1, Tick(0)));
    assert_eq!(entry.load().num_pins(), 1);
    assert!(entry.select_victim().is_none(), "a pinned page is no victim");
    assert!(entry.unpin());
}

#[test]
fn references_delay_and_accesses_cancel_eviction() {
    let entry = resident();
    (0..99).for_each(|count| assert!(entry.reference(Tick(count / 10))));
    // Nine ticks saw it after the one it came in.
    assert_eq!((0..9).take_while(|_| entry.select_victim().is_none()).count(), 3, "references saturate at 3");
    assert_eq!(entry.load().state(), PageState::Evicting);
    assert!(entry.reference(Tick(50)) && !entry.begin_removal(), "a touch cancels");
    entry.forget_references();
    assert!(entry.select_victim().is_some());
    assert_eq!(entry.pin(Tick(51)), Ok(Pinned::Cancelled));
    assert!(!entry.begin_removal(), "a pin cancels");
}

#[test]
fn failures_carry_their_cause() {
    let entry = PageEntry::new();
    assert!(entry.begin_swap_in(entry.load()) && entry.set_waiters() && entry.fail_swap_in(5));
    assert_eq!((entry.load().state(), entry.cause()), (PageState::Failed, 5));
    assert!(entry.pin(Tick(0)).is_err() && !entry.reference(Tick(50)) && !entry.set_waiters());
}
