//! docs/statistics.md has all statistics that there are.

mod common;

use common::kernel_is_able;
use lightswap::Lightswap;

#[test]
fn all_are_documented() {
    if !kernel_is_able() {
        return;
    }
    let document = include_str!("../../docs/statistics.md");
    for (backend, snapshots) in [("memory:?size=1MiB", true), ("memory:?size=1MiB&compress=lz4", false), ("encrypted(memory:?size=1MiB)", false)] {
        let swap = Lightswap::builder().local_memory(1 << 20).backend(backend).step_times(true).snapshots(snapshots).open().unwrap();
        for (name, _) in swap.stats() {
            assert!(document.contains(&format!("| `{name}` |")), "docs/statistics.md lacks {name}");
        }
    }
}
