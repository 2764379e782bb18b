//! A registered node that sends all that it can: it is not listened to and then cut off, and who asks
//! next to it is answered as before.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use hypha_chain::contracts::Registry;
use hypha_chain::key::Signature;
use hypha_chain::{B256, keccak256};
use hypha_proofs::binding::Binding;
use hypha_proofs::network::message::{MESSAGE_BYTES_MAX, Message, Receipt};
use hypha_proofs::network::pool::{Range, Sum, Term};
use hypha_proofs::network::statement::{Content, Statement, TableRecord};
use proof_node::peers::link::{HELLO_BYTES, Identity, write};
use proof_node::peers::{Contact, Incoming, Peers};

use crate::daemon::{Daemon, NODE};
use crate::{CHAIN_ID, World, key};

pub(crate) const HONEST: u32 = 2;
const FLOODING: u32 = 3;
const LONG: u32 = 4;

pub(crate) fn signer(node: u32) -> u8 {
    NODE + node as u8 - 1
}

/// A connection by hand, greeted as a node.
fn greeted(world: &World, node: u32, at: SocketAddr) -> std::io::Result<TcpStream> {
    let registry = world.suite.registry;
    let identity = Identity { chain_id: CHAIN_ID, registry, node };
    let mut stream = TcpStream::connect(at)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mine = [node as u8; 32];
    stream.write_all(&identity.hello(&mine))?;
    let mut hello = [0; HELLO_BYTES];
    stream.read_exact(&mut hello)?;
    let (other, theirs) = identity.read(&hello).unwrap();
    let numbers = [CHAIN_ID.to_be_bytes().as_slice(), registry.as_slice()].concat();
    let nodes = [node.to_be_bytes(), other.to_be_bytes()].concat();
    let signed = [b"hypha peer 1".as_slice(), &numbers, &nodes, &mine, &theirs].concat();
    stream.write_all(&key(signer(node)).sign(&keccak256(signed)).to_bytes())?;
    stream.read_exact(&mut [0; 65])?;
    Ok(stream)
}

/// All kinds of messages in no order that makes sense, with signatures that are none, and what is no
/// message at all.
fn rubbish(world: &World) -> Vec<Vec<u8>> {
    let word = B256::repeat_byte(7);
    let signature = Signature { r: word, s: word, y_is_odd: true };
    let (node, pulse, witness) = (1, 5, FLOODING);
    let binding = Binding {
        chain_id: CHAIN_ID,
        registry: world.suite.registry,
        capacity: world.suite.capacity,
        disputes: world.suite.disputes,
        node: FLOODING,
    };
    let day = (world.now / 86_400) as u32;
    let statement = |number: u64| {
        let table = TableRecord { node: FLOODING, day, root: word, bytesLen: number };
        let said = Statement::new(FLOODING, Content::Table(table), &binding, &key(1));
        Statement { signature, ..said }
    };
    let opening = vec![9; 4096];
    let messages = [
        Message::Piece { hash: word, offset: 7, total: 9, bytes: vec![1; 2] },
        Message::Receipt(Receipt { node, pulse, entries: vec![(witness, word)], signature }),
        Message::Opening { node, pulse, witness, opening, signature },
        Message::Draw { node, pulse, witness, draw: word, signature },
        Message::Commitment(vec![3; 200]),
        Message::Statements((0..256).map(statement).collect()),
        Message::Want(Term::Day(day), (0..4096).collect()),
        Message::List(Term::Epoch(0), Range::ALL, (0..4096).rev().collect()),
        Message::Summary(Term::Day(day), Range::ALL, Box::new([Sum { count: 9, hash: 9 }; 16])),
        Message::Chunk { pulse, challenger: witness, index: 127, bytes: vec![2; 1000] },
        Message::Head { node, pulse, challenger: witness, chunks: vec![word; 128], signature },
        Message::Ready { node: FLOODING, pulse, signature },
        Message::WantPiece { hash: word, offset: u32::MAX },
    ];
    let whole = messages.iter().map(Message::encode);
    let cut = messages.iter().map(|message| {
        let bytes = message.encode();
        bytes[..bytes.len() - 1].to_vec()
    });
    let others = [Vec::new(), vec![255; 64], vec![0; 1 << 16]];
    whole.chain(cut).chain(others).collect()
}

/// A node that asks what node 1 has of an epoch, and is answered each time.
pub(crate) struct Honest {
    pub(crate) peers: Peers,
    pub(crate) answers: Receiver<Incoming>,
}

impl Honest {
    pub(crate) fn start(world: &World, at: SocketAddr) -> Self {
        let (inbox, answers) = sync_channel(64);
        let identity =
            Identity { chain_id: CHAIN_ID, registry: world.suite.registry, node: HONEST };
        let deliver = Box::new(move |message| inbox.send(message).is_ok());
        let key = Arc::new(key(signer(HONEST)));
        let peers = Peers::start("127.0.0.1:0".parse().unwrap(), identity, key, deliver).unwrap();
        let contact = Contact { signer: crate::key(NODE).address(), address: Some(at) };
        peers.know(BTreeMap::from([(1, contact)]));
        Self { peers, answers }
    }

    /// Asks once. An answer comes within a minute, or it is none.
    fn asks(&self, epoch: u32) {
        let sums = Box::new([Sum { count: 1, hash: 1 }; 16]);
        self.peers.send(1, Message::Summary(Term::Epoch(epoch), Range::ALL, sums).encode());
        loop {
            let answer = self.answers.recv_timeout(Duration::from_secs(60)).unwrap();
            let Message::List(Term::Epoch(it), part, _) = Message::decode(&answer.bytes).unwrap()
            else {
                // What it asks by itself.
                continue;
            };
            // One for each part that differs; the last says that all were sent.
            if it == epoch && Some(part) == Range::ALL.part(15) {
                return;
            }
        }
    }
}

#[test]
fn a_flood_of_one_node_changes_nothing_for_another() {
    let mut world = World::with_a_node(36);
    let payout = key(1).address();
    for node in [HONEST, FLOODING, LONG] {
        let call = Registry::addFarmCall { payout, meta: B256::ZERO };
        world.send(1, world.suite.registry, &call);
        world.add_node(node, signer(node), 100);
    }
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&world, folder.path());
    let listens = daemon.wait_for(&mut world, |it| it.kind == "proving");
    let at: SocketAddr = listens.fields["at"].as_str().unwrap().parse().unwrap();
    world.end(0);
    daemon.settle(&world);
    let honest = Honest::start(&world, at);
    honest.asks(1);
    let rubbish = rubbish(&world);
    let mut flooding = greeted(&world, FLOODING, at).unwrap();
    let flood = std::thread::spawn(move || {
        // Large ones are read slowly; many small ones are what costs its core most.
        let small = rubbish.iter().filter(|bytes| bytes.len() < 300);
        let mut all = rubbish.iter().chain(rubbish.iter()).chain(small.cycle());
        all.position(|bytes| write(&mut flooding, bytes).is_err()).unwrap()
    });
    let mut asked = 0;
    while !flood.is_finished() || asked < 10 {
        honest.asks(1);
        asked += 1;
        // Each has sixteen answers, and this node limits what it is sent too.
        std::thread::sleep(Duration::from_millis(100));
    }
    let sent = flood.join().unwrap();
    assert!(sent >= 1024, "{sent}");
    // It is not let in again, and others are.
    let again = greeted(&world, FLOODING, at).and_then(|mut line| line.read(&mut [0]));
    assert!(matches!(again, Ok(0) | Err(_)), "{again:?}");
    let mut long = greeted(&world, LONG, at).unwrap();
    long.write_all(&(MESSAGE_BYTES_MAX as u32 + 1).to_be_bytes()).unwrap();
    long.write_all(&[0; 4096]).unwrap();
    while long.read(&mut [0; 4096]).is_ok_and(|count| count > 0) {}
    honest.asks(1);
    daemon.settle(&world);
    let text = daemon.metrics.render();
    assert!(text.contains("hypha_proof_peers_cut_off_total 2\n"), "{text}");
    assert!(!text.contains("hypha_proof_messages_ignored_total 0\n"), "{text}");
    daemon.stop();
}
