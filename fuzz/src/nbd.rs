//! The NBD server's protocol against any client at all.
//!
//! Whatever comes, in pieces of whatever size: it must come to the same as in one piece; what the
//! volume is asked must be whole sectors inside the export, and no write to one that is read-only;
//! each request gets one reply, and all that is sent must be well formed.

use storage_node::nbd::{
    Agreed, Export, Negotiation, Next, Output, Parsed, TlsPolicy, Transmission, Violation,
};
use storage_node::served::{Answer, Extent, Failure, Operation, SECTOR_BYTES};

use crate::bytes::Input;

const SIZE_BYTES: u64 = 1 << 20;
/// The longest answer that is made up for a read.
const ANSWER_BYTES_MAX: u32 = 64 << 10;

/// What became of a client.
#[derive(Debug, Default, PartialEq, Eq)]
struct Story {
    sent: Vec<u8>,
    /// How much of it belongs to the negotiation.
    negotiated: usize,
    agreed: Option<Agreed>,
    /// How many replies are due.
    replies: usize,
    operations: Vec<String>,
    end: Option<Violation>,
}

fn exports() -> [Export; 2] {
    let export = |name: &str, read_only| Export {
        name: name.to_owned(),
        description: "a volume".to_owned(),
        volume: 0,
        size_bytes: SIZE_BYTES,
        read_only,
    };
    [export("", false), export("frozen", true)]
}

/// Serves a client. Byte 0: whether TLS is a must (what follows STARTTLS then stands for what is
/// inside). Byte 1: the size of the pieces. The rest: what the client sends. True for a client that
/// had an operation carried out.
///
/// # Panics
/// A promise is broken.
pub fn check(data: &[u8]) -> bool {
    let mut input = Input(data);
    let policy = if input.byte() & 1 == 1 { TlsPolicy::Required } else { TlsPolicy::Off };
    let piece = usize::from(input.byte()) + 1;
    let stream = input.0;
    let whole = serve(policy, stream, stream.len().max(1));
    let pieces = serve(policy, stream, piece);
    assert_eq!(whole, pieces, "pieces of {piece} bytes come to something else");
    check_replies(&whole);
    !whole.operations.is_empty()
}

/// Gives the server `stream` in pieces.
fn serve(policy: TlsPolicy, stream: &[u8], piece: usize) -> Story {
    let exports = exports();
    let mut output = Output::default();
    let mut negotiation = Negotiation::new(policy, &mut output);
    let mut transmission: Option<Transmission> = None;
    let mut story = Story::default();
    let (mut start, mut end) = (0, 0);
    while end < stream.len() {
        end = stream.len().min(end + piece);
        loop {
            let input = stream.get(start..end).unwrap_or_default();
            let used = match &transmission {
                None => negotiate(&mut negotiation, input, &exports, &mut output, &mut story),
                Some(transmission) => transmit(transmission, input, &mut output, &mut story),
            };
            match used {
                Ok(Some(used)) => {
                    assert!(used > 0 && used <= input.len(), "{used} of {}", input.len());
                    start += used;
                }
                Ok(None) => break,
                Err(violation) => {
                    story.end = violation;
                    story.sent.extend(output.take());
                    return story;
                }
            }
            if let (None, Some(agreed)) = (&transmission, story.agreed) {
                story.sent.extend(output.take());
                story.negotiated = story.sent.len();
                let Some(export) = exports.get(agreed.export) else {
                    panic!("an export that doesn't exist was agreed on");
                };
                transmission = Some(Transmission::new(agreed, export));
            }
        }
    }
    story.sent.extend(output.take());
    story
}

/// How many bytes were used up; an error ends the connection, `None` in it without a violation.
type Used = Result<Option<usize>, Option<Violation>>;

fn negotiate(
    negotiation: &mut Negotiation,
    input: &[u8],
    exports: &[Export],
    output: &mut Output,
    story: &mut Story,
) -> Used {
    match negotiation.advance(input, exports, output).map_err(Some)? {
        Next::More => Ok(None),
        Next::Used(used) => Ok(Some(used)),
        Next::StartTls(used) => {
            negotiation.secured();
            Ok(Some(used))
        }
        Next::Enter(used, agreed) => {
            assert!(agreed.structured || !agreed.allocation);
            story.agreed = Some(agreed);
            Ok(Some(used))
        }
        Next::Ended => Err(None),
    }
}

fn transmit(
    transmission: &Transmission,
    input: &[u8],
    output: &mut Output,
    story: &mut Story,
) -> Used {
    match transmission.parse(input, output).map_err(Some)? {
        Parsed::More(total) => {
            assert!(total > input.len(), "more is wanted than is there");
            Ok(None)
        }
        Parsed::Refused(used) => {
            story.replies += 1;
            Ok(Some(used))
        }
        Parsed::Request(used, ticket, operation) => {
            story.replies += 1;
            story.operations.push(format!("{operation:?}"));
            let read_only = story.agreed.is_some_and(|agreed| agreed.export == 1);
            let answer = carry_out(&operation, read_only);
            let buffer = transmission.reply(ticket, answer, output);
            assert!(buffer.is_none_or(|buffer| buffer.len() <= ANSWER_BYTES_MAX as usize));
            Ok(Some(used))
        }
        Parsed::Ended => Err(None),
    }
}

/// Checks an operation, and makes up an answer.
fn carry_out(operation: &Operation<'_>, read_only: bool) -> Result<Answer, Failure> {
    let (offset, len, writes) = match *operation {
        Operation::Read { offset, len } | Operation::Prefetch { offset, len } => {
            assert!(len <= 32 << 20);
            (offset, u64::from(len), false)
        }
        Operation::Write { offset, data, .. } => (offset, data.len() as u64, true),
        Operation::Flush => return Ok(Answer::Done),
        Operation::Discard { offset, len, .. } | Operation::Zero { offset, len, .. } => {
            (offset, len, true)
        }
        Operation::Extents { offset, len } => (offset, len, false),
    };
    assert!(len > 0 && offset.checked_add(len).is_some_and(|end| end <= SIZE_BYTES));
    assert!(offset.is_multiple_of(SECTOR_BYTES) && len.is_multiple_of(SECTOR_BYTES));
    assert!(!(writes && read_only), "a write to a read-only export");
    match *operation {
        Operation::Read { len, .. } if len > ANSWER_BYTES_MAX => Err(Failure::Io),
        Operation::Read { len, .. } => Ok(Answer::Bytes(vec![0x5a; len as usize])),
        Operation::Extents { len, .. } => {
            let half = len / 2;
            let extent = |len, allocated| Extent { len, allocated };
            Ok(Answer::Extents(vec![extent(half, true), extent(len - half, false)]))
        }
        _ => Ok(Answer::Done),
    }
}

/// Walks over what was sent in the transmission phase.
fn check_replies(story: &Story) {
    let Some(agreed) = story.agreed else { return };
    let mut rest = story.sent.get(story.negotiated..).unwrap_or_default();
    let mut replies = 0;
    let mut reads = story.operations.iter().filter(|operation| operation.starts_with("Read"));
    while !rest.is_empty() {
        let word = |at: usize| {
            let bytes = rest.get(at..).and_then(|rest| rest.first_chunk());
            bytes.copied().map_or(0, u32::from_be_bytes)
        };
        let len = match word(0) {
            0x6744_6698 if agreed.structured => 16,
            // A simple reply to a read that succeeded has its data behind it, unframed: the length
            // is in the request.
            0x6744_6698 if word(4) == 0 && word(16) == 0x5a5a_5a5a => {
                let next = reads.find_map(|read| read_len(read).filter(|len| *len <= 64 << 10));
                16 + next.unwrap_or(0)
            }
            0x6744_6698 => 16,
            0x668e_33ef if agreed.structured => 20 + word(16) as usize,
            other => panic!("{other:#x} is no reply"),
        };
        assert!(len <= rest.len(), "a reply is cut off");
        rest = rest.get(len..).unwrap_or_default();
        replies += 1;
    }
    assert_eq!(replies, story.replies);
}

/// The length in the debug form of a read.
fn read_len(operation: &str) -> Option<usize> {
    let (_, tail) = operation.split_once("len: ")?;
    tail.trim_end_matches([' ', '}']).parse().ok()
}
