//! Acceptors that keep nothing but bytes, and a way to run an edit against them.

use storage_vdev::node::{AcceptorId, NodeError, NodeIndex, RegisterRequest, RegisterResponse};
use storage_vdev::register::{
    AcceptorKey, AcceptorState, ChangeError, Committed, Edit, Holder, Proposer, Step,
    SuperblockRef, Timing,
};
use storage_vdev::{Uuid, VolumeKey};

pub(crate) const REGISTER: Uuid = [7; 16];
pub(crate) const LEASE_NS: u64 = 1_000_000;

pub(crate) fn volume_key() -> VolumeKey {
    VolumeKey::new(&[3; 32])
}

pub(crate) fn holder(number: u8) -> Holder {
    Holder { id: [number; 16], name: format!("host {number}") }
}

pub(crate) fn proposer(number: u8, nodes: &[NodeIndex]) -> Proposer {
    let timing = Timing { answer_ns: 1_000, backoff_ns: 100, attempts: 4 };
    Proposer::new(REGISTER, &volume_key(), nodes.to_vec(), [number; 24], timing)
}

pub(crate) fn create(acceptors: &[NodeIndex]) -> Edit {
    let (lease_ns, superblock) = (LEASE_NS, SuperblockRef::default());
    Edit::Create { holder: holder(1), lease_ns, superblock, acceptors: acceptors.to_vec() }
}

pub(crate) fn take_over(number: u8, expected_version: u64) -> Edit {
    Edit::TakeOver { expected_version, holder: holder(number), lease_ns: LEASE_NS }
}

/// A node's acceptor. Between two messages only the encoded state exists.
pub(crate) struct Node {
    pub(crate) key: AcceptorKey,
    pub(crate) stored: Vec<u8>,
    pub(crate) alive: bool,
}

impl Node {
    pub(crate) fn new(seed: [u8; 32]) -> Self {
        let key = AcceptorKey::signing(&seed).unwrap();
        Self { key, stored: AcceptorState::default().encode(), alive: true }
    }

    pub(crate) fn id(&self) -> AcceptorId {
        self.key.id()
    }

    pub(crate) fn state(&self) -> AcceptorState {
        AcceptorState::decode(&self.stored).unwrap()
    }

    pub(crate) fn handle(
        &mut self,
        request: &RegisterRequest,
    ) -> Result<RegisterResponse, NodeError> {
        if !self.alive {
            return Err(NodeError::Unavailable);
        }
        let transition = self.state().step(&self.key, &REGISTER, request)?;
        if let Some(next) = transition.next {
            self.stored = next.encode();
        }
        Ok(transition.response)
    }
}

pub(crate) fn nodes(count: u8) -> Vec<Node> {
    (0..count).map(|index| Node::new([index + 1; 32])).collect()
}

/// Runs an edit to its end; every message arrives in order.
pub(crate) fn run(
    nodes: &mut [Node],
    proposer: &mut Proposer,
    edit: Edit,
) -> Result<Committed, ChangeError> {
    let mut now_ns = 0;
    proposer.start(edit, now_ns).unwrap();
    loop {
        match proposer.poll(now_ns) {
            Step::Send { message, node, request } => {
                let result = nodes[usize::from(node)].handle(&request);
                proposer.answer(message, result, now_ns);
            }
            Step::Wait { until_ns } => now_ns = until_ns,
            Step::Done(result) => return *result,
            Step::Idle => panic!("an edit went missing"),
        }
    }
}
