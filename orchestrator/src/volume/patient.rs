//! Nodes that are asked again while they change hands.
//!
//! When the process that serves a shared directory ends, the sessions with it end, and a moment
//! later another process has taken the directory ([`super::shared`]). What was asked in between is
//! asked again for a while, so that a volume's users see a pause and no error. All requests may be
//! repeated: one that was carried out already says so, or changes nothing.

use std::collections::{HashMap, VecDeque};
use std::os::fd::BorrowedFd;

use storage_vdev::node::{NodeCompletion, NodeError, NodeIndex, Nodes, Request, Response, Tag};

/// How long a node that was there may be away.
const PATIENCE_NS: u64 = 5_000_000_000;
/// The pause before a request is repeated.
const PAUSE_NS: u64 = 20_000_000;

/// Nodes of which some change hands.
pub struct Patient<N> {
    nodes: N,
    /// Which of them do.
    patient: Vec<NodeIndex>,
    kept: HashMap<Tag, Kept>,
    /// What is to be asked again, and when: in the order of the times.
    again: VecDeque<(u64, Tag)>,
}

struct Kept {
    node: NodeIndex,
    request: Request,
    /// When it failed first.
    since_ns: Option<u64>,
}

impl<N> Patient<N> {
    /// Asks those of `nodes` again whose numbers are in `patient`.
    pub fn new(nodes: N, patient: Vec<NodeIndex>) -> Self {
        Self { nodes, patient, kept: HashMap::new(), again: VecDeque::new() }
    }

    /// The nodes.
    pub fn inner(&self) -> &N {
        &self.nodes
    }
}

impl Kept {
    /// What a repeated request's answer means. Only this opening of the volume may append under its
    /// epoch: a journal that ends behind the piece has taken it the first time.
    fn judge(&self, result: Result<Response, NodeError>) -> Result<Response, NodeError> {
        let Request::JournalAppend { position, parts, .. } = &self.request else { return result };
        let len: u64 = parts.iter().map(|part| part.len() as u64).sum();
        match result {
            Err(NodeError::Conflict { end }) if end >= position.saturating_add(len) => {
                Ok(Response::Done)
            }
            other => other,
        }
    }
}

impl<N: Nodes> Nodes for Patient<N> {
    fn count(&self) -> usize {
        self.nodes.count()
    }

    fn name(&self, node: NodeIndex) -> String {
        self.nodes.name(node)
    }

    fn submit(&mut self, node: NodeIndex, tag: Tag, request: Request) {
        if self.patient.contains(&node) {
            let kept = Kept { node, request: request.clone(), since_ns: None };
            self.kept.insert(tag, kept);
        }
        self.nodes.submit(node, tag, request);
    }

    fn poll(&mut self, now_ns: u64) -> Option<NodeCompletion> {
        while let Some((at_ns, tag)) = self.again.front().copied()
            && at_ns <= now_ns
        {
            self.again.pop_front();
            if let Some(kept) = self.kept.get(&tag) {
                self.nodes.submit(kept.node, tag, kept.request.clone());
            }
        }
        loop {
            let NodeCompletion { tag, result } = self.nodes.poll(now_ns)?;
            let Some(kept) = self.kept.get_mut(&tag) else {
                return Some(NodeCompletion { tag, result });
            };
            if result == Err(NodeError::Unavailable) {
                let since_ns = *kept.since_ns.get_or_insert(now_ns);
                if now_ns.saturating_sub(since_ns) < PATIENCE_NS {
                    self.again.push_back((now_ns.saturating_add(PAUSE_NS), tag));
                    continue;
                }
            }
            let is_repeated = kept.since_ns.is_some();
            let result = if is_repeated { kept.judge(result) } else { result };
            self.kept.remove(&tag);
            return Some(NodeCompletion { tag, result });
        }
    }

    fn ready_fd(&self) -> Option<BorrowedFd<'_>> {
        self.nodes.ready_fd()
    }

    fn deadline_ns(&self) -> Option<u64> {
        let again = self.again.front().map(|(at_ns, _)| *at_ns);
        [again, self.nodes.deadline_ns()].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nodes whose answers a test gives.
    #[derive(Default)]
    struct Scripted {
        asked: Vec<(Tag, Request)>,
        answers: VecDeque<NodeCompletion>,
    }

    impl Nodes for Scripted {
        fn count(&self) -> usize {
            2
        }

        fn name(&self, node: NodeIndex) -> String {
            node.to_string()
        }

        fn submit(&mut self, _node: NodeIndex, tag: Tag, request: Request) {
            self.asked.push((tag, request));
        }

        fn poll(&mut self, _now_ns: u64) -> Option<NodeCompletion> {
            self.answers.pop_front()
        }

        fn ready_fd(&self) -> Option<BorrowedFd<'_>> {
            None
        }

        fn deadline_ns(&self) -> Option<u64> {
            None
        }
    }

    fn append(position: u64) -> Request {
        let parts = vec!["eightbyt".into()];
        Request::JournalAppend { volume: [1; 16], epoch: 1, position, parts }
    }

    fn answer(nodes: &mut Patient<Scripted>, tag: Tag, result: Result<Response, NodeError>) {
        nodes.nodes.answers.push_back(NodeCompletion { tag, result });
    }

    #[test]
    fn a_node_that_is_away_for_a_moment_is_asked_again() {
        let mut nodes = Patient::new(Scripted::default(), vec![1]);
        nodes.submit(1, 7, Request::Capacity);
        answer(&mut nodes, 7, Err(NodeError::Unavailable));
        assert!(nodes.poll(10).is_none());
        assert_eq!(nodes.deadline_ns(), Some(10 + PAUSE_NS));
        assert!(nodes.poll(9 + PAUSE_NS).is_none());
        assert_eq!(nodes.nodes.asked.len(), 1, "not before the pause is over");
        assert!(nodes.poll(10 + PAUSE_NS).is_none());
        assert_eq!(nodes.nodes.asked.len(), 2);
        answer(&mut nodes, 7, Ok(Response::Done));
        let done = nodes.poll(11 + PAUSE_NS).expect("answered");
        assert_eq!((done.tag, done.result), (7, Ok(Response::Done)));
        assert!(nodes.kept.is_empty() && nodes.deadline_ns().is_none());
    }

    #[test]
    fn patience_ends_and_others_get_none() {
        let mut nodes = Patient::new(Scripted::default(), vec![1]);
        nodes.submit(0, 1, Request::Capacity);
        answer(&mut nodes, 1, Err(NodeError::Unavailable));
        assert!(nodes.poll(0).is_some_and(|done| done.result == Err(NodeError::Unavailable)));
        nodes.submit(1, 2, Request::Capacity);
        answer(&mut nodes, 2, Err(NodeError::Unavailable));
        assert!(nodes.poll(0).is_none());
        answer(&mut nodes, 2, Err(NodeError::Unavailable));
        let done = nodes.poll(PATIENCE_NS).expect("given up");
        assert_eq!((done.tag, done.result), (2, Err(NodeError::Unavailable)));
    }

    #[test]
    fn an_append_that_was_carried_out_before_its_answer_was_lost_counts_once() {
        for (end, wanted) in [
            (108, Ok(Response::Done)),
            (200, Ok(Response::Done)),
            (100, Err(NodeError::Conflict { end: 100 })),
        ] {
            let mut nodes = Patient::new(Scripted::default(), vec![1]);
            nodes.submit(1, 3, append(100));
            answer(&mut nodes, 3, Err(NodeError::Unavailable));
            assert!(nodes.poll(0).is_none());
            answer(&mut nodes, 3, Err(NodeError::Conflict { end }));
            assert_eq!(nodes.poll(PAUSE_NS).map(|done| done.result), Some(wanted));
        }
        // The first answer is taken at its word.
        let mut nodes = Patient::new(Scripted::default(), vec![1]);
        nodes.submit(1, 3, append(100));
        answer(&mut nodes, 3, Err(NodeError::Conflict { end: 108 }));
        let conflict = Some(Err(NodeError::Conflict { end: 108 }));
        assert_eq!(nodes.poll(0).map(|done| done.result), conflict);
    }
}
