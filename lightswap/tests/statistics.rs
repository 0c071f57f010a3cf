//! docs/statistics.md has all statistics that there are.

mod common;

use common::kernel_is_able;
use lightswap::Lightswap;

#[test]
fn all_are_documented() {
    if !kernel_is_able() {
        return;
    }
    let swap = Lightswap::builder().local_memory(1 << 20).backend("memory:?size=1MiB").step_times(true).open().unwrap();
    let document = include_str!("../../docs/statistics.md");
    for (name, _) in swap.stats() {
        assert!(document.contains(&format!("| `{name}` |")), "docs/statistics.md lacks {name}");
    }
}
