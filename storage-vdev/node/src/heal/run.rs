//! Carrying out a pass over real nodes.

use storage_vdev::node::Nodes;

use super::healer::Healer;
use super::report::Report;

/// Carries the pass out over `nodes`, which are those of its manifest, in order. `clock` is
/// CLOCK_BOOTTIME in nanoseconds; `wait` waits until the nodes may have something or the deadline
/// has come, and returns false to end the pass where it is.
pub fn run<N: Nodes>(
    healer: &mut Healer,
    nodes: &mut N,
    mut clock: impl FnMut() -> u64,
    mut wait: impl FnMut(&N, Option<u64>) -> bool,
) -> Option<Report> {
    loop {
        let now_ns = clock();
        let mut is_idle = true;
        while let Some(asked) = healer.next(now_ns) {
            nodes.submit(asked.node, asked.tag, asked.request);
            is_idle = false;
        }
        while let Some(done) = nodes.poll(now_ns) {
            healer.complete(done.tag, done.result);
            is_idle = false;
        }
        if let Some(report) = healer.report() {
            return Some(report.clone());
        }
        let deadlines = [healer.deadline_ns(), nodes.deadline_ns()];
        if is_idle && !wait(nodes, deadlines.into_iter().flatten().min()) {
            return None;
        }
    }
}
