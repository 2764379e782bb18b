//! A register with an acceptor that answers whatever it likes.
//!
//! Two honest acceptors and a liar. First the liar is silent while the record is made and changed,
//! so both honest ones have the newest version. Then openers with the volume's key ask all three,
//! and the input decides what the liar says: refusals, promises under its own or a stolen name, old
//! records under old or new ballots, bytes changed. No opener may take for committed what the
//! honest two did not accept, nor anything older than what was committed before.

use bytes::Bytes;
use storage_vdev::VolumeKey;
use storage_vdev::node::{Ballot, NodeError, NodeIndex, RegisterRequest, RegisterResponse};
use storage_vdev::register::{
    AcceptorKey, AcceptorState, ChangeError, Committed, Edit, Holder, Members, Proposer, Receipt,
    Step, SuperblockRef, Timing, VolumeRecord, verify_evidence,
};

use crate::bytes::Input;

const REGISTER: [u8; 16] = [7; 16];
const LIAR: NodeIndex = 2;

struct Honest {
    key: AcceptorKey,
    state: AcceptorState,
}

impl Honest {
    fn handle(&mut self, request: &RegisterRequest) -> Result<RegisterResponse, NodeError> {
        let transition = self.state.step(&self.key, &REGISTER, request)?;
        if let Some(next) = transition.next {
            assert_eq!(AcceptorState::decode(&next.encode()).as_ref(), Ok(&next));
            self.state = next;
        }
        Ok(transition.response)
    }
}

struct World<'a> {
    honest: [Honest; 2],
    input: Input<'a>,
    /// The liar speaks.
    lies: bool,
    /// All values that went by, for the liar to show again.
    seen: Vec<Bytes>,
}

/// One run: see the module. Whether an opener got through in spite of the liar.
pub fn check(data: &[u8]) -> bool {
    parse(data);
    let honest =
        |id| Honest { key: AcceptorKey::silent([id; 32]), state: AcceptorState::default() };
    let mut world =
        World { honest: [honest(1), honest(2)], input: Input(data), lies: false, seen: Vec::new() };
    let holder = Holder { id: [1; 16], name: "host".to_owned() };
    let superblock = SuperblockRef::default();
    let acceptors = vec![0, 1, LIAR];
    let create = Edit::Create { holder: holder.clone(), lease_ns: 9, superblock, acceptors };
    let mut maker = proposer(1, &[0, 1, LIAR]);
    assert!(world.run(&mut maker, create).is_ok());
    assert!(world.run(&mut maker, Edit::Renew { epoch: 1 }).is_ok());
    world.lies = true;
    let mut version = 2;
    let mut got_through = false;
    for number in 2..5 {
        let edit =
            Edit::TakeOver { expected_version: version, holder: holder.clone(), lease_ns: 9 };
        let edit = if world.input.byte().is_multiple_of(2) { edit } else { Edit::Read };
        if let Ok(committed) = world.run(&mut proposer(number, &[LIAR, 0, 1]), edit) {
            assert!(committed.record.version >= version, "the register went back");
            version = committed.record.version;
            got_through = true;
            let has = |honest: &Honest| {
                let accepted =
                    honest.state.accepted().and_then(|(_, v)| VolumeRecord::parse(v).ok());
                accepted.is_some_and(|(record, _)| record == committed.record)
            };
            assert!(world.honest.iter().any(has), "no honest acceptor has it");
        }
    }
    got_through
}

/// What comes from a disk or a wire, as it is.
fn parse(data: &[u8]) {
    if let Ok(state) = AcceptorState::decode(data) {
        assert_eq!(state.encode(), data);
    }
    if let Ok((record, _)) = VolumeRecord::parse(data) {
        assert!(record.version > 0);
    }
    assert!(Receipt::verify(data).is_err(), "a forged signature");
    let known = Members { current: vec![[1; 32]], next: vec![] };
    let evidence = [Bytes::copy_from_slice(data), Bytes::copy_from_slice(data)];
    assert!(verify_evidence(&REGISTER, 1, &known, &evidence).is_err());
}

/// Asks the nodes in this order, so that the liar is heard before a majority is there.
fn proposer(number: u8, nodes: &[NodeIndex]) -> Proposer {
    let timing = Timing { answer_ns: 10, backoff_ns: 1, attempts: 4 };
    Proposer::new(REGISTER, &VolumeKey::new(&[3; 32]), nodes.to_vec(), [number; 24], timing)
}

impl World<'_> {
    fn run(&mut self, proposer: &mut Proposer, edit: Edit) -> Result<Committed, ChangeError> {
        let mut now_ns = 0;
        assert!(proposer.start(edit, now_ns).is_ok());
        // Bounded: four attempts of two phases with three nodes, and the pauses between.
        for _ in 0..200 {
            match proposer.poll(now_ns) {
                Step::Send { message, node, request } => {
                    if let RegisterRequest::Accept { value, .. } = &request {
                        self.seen.push(value.clone());
                    }
                    let result = match self.honest.get_mut(usize::from(node)) {
                        Some(honest) => honest.handle(&request),
                        None if self.lies => self.lie(&request),
                        None => truth(&request),
                    };
                    proposer.answer(message, result, now_ns);
                }
                Step::Wait { until_ns } => now_ns = until_ns,
                Step::Done(result) => return *result,
                Step::Idle => break,
            }
        }
        panic!("an edit never ended");
    }

    fn lie(&mut self, request: &RegisterRequest) -> Result<RegisterResponse, NodeError> {
        let (RegisterRequest::Prepare { ballot } | RegisterRequest::Accept { ballot, .. }) =
            request;
        let acceptor = [[3; 32], [1; 32], [9; 32]][usize::from(self.input.byte() % 8).min(2)];
        match self.input.byte() % 6 {
            0 => Err(NodeError::Unavailable),
            1 => {
                let counter = u64::from(self.input.byte()) << (self.input.byte() % 57);
                let promised = Ballot { counter, proposer: [self.input.byte(); 16] };
                Ok(RegisterResponse::Rejected { promised })
            }
            2 => Ok(RegisterResponse::Accepted { acceptor, receipt: Bytes::new() }),
            3 => Ok(RegisterResponse::Promised { acceptor, accepted: None }),
            _ => Ok(RegisterResponse::Promised { acceptor, accepted: self.old(*ballot) }),
        }
    }

    /// A value that went by, perhaps changed, under a ballot as it suits.
    fn old(&mut self, ballot: Ballot) -> Option<(Ballot, Bytes)> {
        let index = usize::from(self.input.byte()) % self.seen.len().max(1);
        let mut value = self.seen.get(index)?.to_vec();
        let signed = VolumeRecord::parse(&value).map_or(ballot, |(_, signed)| signed);
        let at = if self.input.byte().is_multiple_of(2) { ballot } else { signed };
        if self.input.byte().is_multiple_of(2) {
            let place = usize::from(self.input.byte()) % value.len();
            if let Some(byte) = value.get_mut(place) {
                *byte ^= 1 << (self.input.byte() % 8);
            }
            if let Some((checked, crc)) = value.split_last_chunk_mut::<4>() {
                *crc = crc32c::crc32c(checked).to_le_bytes();
            }
        }
        Some((at, Bytes::from(value)))
    }
}

/// The liar's answers while the register is made: as an acceptor that keeps nothing.
fn truth(request: &RegisterRequest) -> Result<RegisterResponse, NodeError> {
    let acceptor = [3; 32];
    Ok(match request {
        RegisterRequest::Prepare { .. } => RegisterResponse::Promised { acceptor, accepted: None },
        RegisterRequest::Accept { .. } => {
            RegisterResponse::Accepted { acceptor, receipt: Bytes::new() }
        }
    })
}
