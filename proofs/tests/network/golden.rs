//! Messages and statements as they travel, recorded: whoever changes one changes the version.

use hypha_chain::{B256, keccak256};
use hypha_proofs::network::message::{Message, Receipt};
use hypha_proofs::network::pool::{Range, Sum, Term};
use hypha_proofs::network::statement::{
    BandwidthVerdict, Content, Inspection, Statement, TableRecord,
};
use hypha_proofs::verifier::PulseVerdict;

use crate::world::{binding, key};

fn statements() -> Vec<Statement> {
    let (node, pulse, root) = (7, 9, B256::repeat_byte(3));
    let verdict = PulseVerdict { node, pulse, threads: 1, memMiB: 2, diskMiB: 3, fillerDraws: 4 };
    let line = BandwidthVerdict { node, pulse, receipt: root, bytesLen: 5, micros: 6 };
    let table = TableRecord { node, day: 8, root, bytesLen: 10 };
    let inspected = Inspection { node, pulse, isTable: true, isTrue: false };
    let contents = [
        Content::Verdict(verdict),
        Content::Bandwidth(line),
        Content::Table(table),
        Content::Inspected(inspected),
    ];
    contents.into_iter().map(|it| Statement::new(2, it, &binding(2), &key(2))).collect()
}

fn messages() -> Vec<Message> {
    let statements = statements();
    let signature = statements[0].signature;
    let (node, pulse, hash) = (7, 9, B256::repeat_byte(4));
    let term = Term::Epoch(5);
    let part = Range::ALL.part(3).unwrap();
    let ids: Vec<u128> = statements.iter().map(Statement::id).collect();
    vec![
        Message::Commitment(vec![1, 2, 3]),
        Message::Draw { node, pulse, witness: 2, draw: hash, signature },
        Message::Opening { node, pulse, witness: 2, opening: vec![5; 9], signature },
        Message::Statements(statements),
        Message::Summary(term, part, Box::new([Sum { count: 2, hash: 3 }; 16])),
        Message::List(Term::Day(6), part, ids.clone()),
        Message::Want(term, ids),
        Message::Ready { node, pulse, signature },
        Message::Head { node, pulse, challenger: 2, chunks: vec![hash, hash], signature },
        Message::Chunk { pulse, challenger: 2, index: 1, bytes: vec![8; 11] },
        Message::Receipt(Receipt { node, pulse, entries: vec![(2, hash)], signature }),
        Message::WantPiece { hash, offset: 65_536 },
        Message::Piece { hash, offset: 65_536, total: 65_543, bytes: vec![9; 7] },
    ]
}

#[test]
fn messages_travel_as_they_were_recorded() {
    let all: Vec<u8> = messages().iter().flat_map(Message::encode).collect();
    for message in messages() {
        assert_eq!(Message::decode(&message.encode()), Ok(message));
    }
    let recorded = "0xaff6f0691f331ace7ada6037095c969f7b55c6293c4714c90b02935d0a320720";
    assert_eq!((all.len(), keccak256(all).to_string().as_str()), (1573, recorded));
}

#[test]
fn numbers_of_statements_are_the_recorded_ones() {
    let ids: Vec<String> = statements().iter().map(|it| format!("{:032x}", it.id())).collect();
    let recorded = [
        "cac8f81e43211aa7dfcc7e5107ed357b",
        "d91b5f2a969a2659d89e13a9ceb8f9a2",
        "92b0735fed1d49cc326d851174a29783",
        "831f0c70ba3fc3d9623c71f4fe25f9ef",
    ];
    assert_eq!(ids, recorded);
}

#[test]
fn a_message_that_is_cut_or_longer_is_none() {
    for message in messages() {
        let bytes = message.encode();
        let open_ended = matches!(
            message,
            Message::Commitment(_)
                | Message::Opening { .. }
                | Message::Chunk { .. }
                | Message::Piece { .. }
        );
        for len in 0..bytes.len() {
            let whole = Message::decode(&bytes[..len]).is_ok();
            assert!(!whole || open_ended, "{message:?} is whole after {len} bytes");
        }
        let longer = [bytes.as_slice(), &[0]].concat();
        assert!(open_ended || Message::decode(&longer).is_err(), "{message:?}");
    }
}
