//! DNS messages (RFC 1035 §4), as much of them as a resolver passes on.

use super::name::Name;

pub(crate) const A: u16 = 1;
const NS: u16 = 2;
const CNAME: u16 = 5;
pub(crate) const SOA: u16 = 6;
const PTR: u16 = 12;
const MX: u16 = 15;
pub(crate) const AAAA: u16 = 28;
const SRV: u16 = 33;
const DNAME: u16 = 39;
const OPT: u16 = 41;
/// A certificate of a workload's name, whole: for private use (RFC 6895 §3.1).
pub(crate) const NAME_RECORD: u16 = 65_312;
pub(crate) const IN: u16 = 1;

/// RCODEs (RFC 1035 §4.1.1).
pub(crate) const NO_ERROR: u8 = 0;
pub(crate) const FORMAT_ERROR: u8 = 1;
pub(crate) const SERVER_FAILURE: u8 = 2;
pub(crate) const NAME_ERROR: u8 = 3;
pub(crate) const NOT_IMPLEMENTED: u8 = 4;
pub(crate) const REFUSED: u8 = 5;

/// Without EDNS a datagram has at most this (RFC 1035 §4.2.1); with it, this is asked for and given
/// (RFC 9715), which every path carries whole.
const PLAIN_BYTES_MAX: usize = 512;
pub(crate) const EDNS_BYTES_MAX: u16 = 1232;
/// How many records of an answer are read.
const RECORDS_MAX: usize = 128;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Question {
    pub(crate) name: Name,
    pub(crate) kind: u16,
    pub(crate) class: u16,
}

/// What a member asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Query {
    pub(crate) id: u16,
    pub(crate) wants_recursion: bool,
    pub(crate) question: Question,
    /// The longest answer that it takes.
    pub(crate) bytes_max: usize,
    pub(crate) has_edns: bool,
}

/// A resource record. Names in its data are written out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) name: Name,
    pub(crate) kind: u16,
    pub(crate) class: u16,
    pub(crate) ttl_s: u32,
    pub(crate) data: Vec<u8>,
}

/// An answer: its records, and the SOA that says how long there is nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) id: u16,
    pub(crate) code: u8,
    pub(crate) is_truncated: bool,
    pub(crate) question: Question,
    pub(crate) answers: Vec<Record>,
    pub(crate) authorities: Vec<Record>,
}

/// Why a query is not answered as it wishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) id: u16,
    pub(crate) code: u8,
}

struct Header {
    id: u16,
    flags: u16,
    counts: [u16; 4],
}

impl Header {
    fn parse(message: &[u8]) -> Option<Self> {
        let (words, _) = message.first_chunk::<12>()?.as_chunks::<2>();
        let mut words = words.iter().map(|word| u16::from_be_bytes(*word));
        let (id, flags) = (words.next()?, words.next()?);
        let counts = [words.next()?, words.next()?, words.next()?, words.next()?];
        Some(Self { id, flags, counts })
    }
}

impl Question {
    fn parse(message: &[u8], at: &mut usize) -> Option<Self> {
        let name = Name::parse(message, at)?;
        Some(Self { name, kind: word(message, at)?, class: word(message, at)? })
    }

    fn write(&self, message: &mut Vec<u8>) {
        message.extend_from_slice(self.name.bytes());
        message.extend_from_slice(&self.kind.to_be_bytes());
        message.extend_from_slice(&self.class.to_be_bytes());
    }
}

impl Query {
    /// Reads a query. `Err(None)` is for what is not worth an answer.
    pub(crate) fn parse(message: &[u8]) -> Result<Self, Option<Refusal>> {
        let header = Header::parse(message).ok_or(None)?;
        let refused = |code| Some(Refusal { id: header.id, code });
        if header.flags & 0x8000 != 0 {
            return Err(None);
        }
        if header.flags & 0x7800 != 0 {
            return Err(refused(NOT_IMPLEMENTED));
        }
        let [questions, answers, authorities, additional] = header.counts;
        if (questions, answers, authorities) != (1, 0, 0) {
            return Err(refused(FORMAT_ERROR));
        }
        let mut at = 12;
        let question = Question::parse(message, &mut at).ok_or(refused(FORMAT_ERROR))?;
        let mut edns = None;
        for _ in 0..additional {
            let record = Record::parse(message, &mut at).ok_or(refused(FORMAT_ERROR))?;
            if record.kind == OPT {
                edns = Some(record.class);
            }
        }
        // Transfers, and "any": no resolver owes them (RFC 8482).
        if (251..=255).contains(&question.kind) {
            return Err(refused(NOT_IMPLEMENTED));
        }
        if question.class != IN {
            return Err(refused(REFUSED));
        }
        let bytes_max = edns.map_or(PLAIN_BYTES_MAX, |offered| {
            usize::from(offered.min(EDNS_BYTES_MAX)).max(PLAIN_BYTES_MAX)
        });
        Ok(Self {
            id: header.id,
            wants_recursion: header.flags & 0x0100 != 0,
            question,
            bytes_max,
            has_edns: edns.is_some(),
        })
    }
}

/// The query for another server.
pub(crate) fn write_query(id: u16, question: &Question) -> Vec<u8> {
    let mut message = Vec::with_capacity(64);
    // Recursion desired; one question and the OPT record.
    for word in [id, 0x0100, 1, 0, 0, 1] {
        message.extend_from_slice(&word.to_be_bytes());
    }
    question.write(&mut message);
    write_opt(&mut message);
    message
}

fn write_opt(message: &mut Vec<u8>) {
    message.push(0);
    for word in [OPT, EDNS_BYTES_MAX, 0, 0, 0] {
        message.extend_from_slice(&word.to_be_bytes());
    }
}

impl Record {
    fn parse(message: &[u8], at: &mut usize) -> Option<Self> {
        let name = Name::parse(message, at)?;
        let (kind, class) = (word(message, at)?, word(message, at)?);
        let (high, low) = (word(message, at)?, word(message, at)?);
        let len = usize::from(word(message, at)?);
        let start = *at;
        let end = start.checked_add(len).filter(|end| *end <= message.len())?;
        *at = end;
        let data = read_data(message, kind, start, end)?;
        // RFC 2181 §8: with the first bit set it counts as zero.
        let ttl_s = u32::from(high) << 16 | u32::from(low);
        let ttl_s = if ttl_s >> 31 == 0 { ttl_s } else { 0 };
        Some(Self { name, kind, class, ttl_s, data })
    }

    fn write(&self, message: &mut Vec<u8>, question: &Name) {
        if self.name == *question {
            // The question's name, right behind the header.
            message.extend_from_slice(&[0xc0, 12]);
        } else {
            message.extend_from_slice(self.name.bytes());
        }
        message.extend_from_slice(&self.kind.to_be_bytes());
        message.extend_from_slice(&self.class.to_be_bytes());
        message.extend_from_slice(&self.ttl_s.to_be_bytes());
        let len = u16::try_from(self.data.len()).unwrap_or(0);
        message.extend_from_slice(&len.to_be_bytes());
        message.extend_from_slice(self.data.get(..usize::from(len)).unwrap_or_default());
    }
}

/// The data of a record; the names of the types that may be compressed are written out.
fn read_data(message: &[u8], kind: u16, start: usize, end: usize) -> Option<Vec<u8>> {
    let (fixed, names, rest) = match kind {
        NS | CNAME | PTR | DNAME => (0, 1, 0),
        MX => (2, 1, 0),
        SRV => (6, 1, 0),
        SOA => (0, 2, 20),
        A if end - start != 4 => return None,
        AAAA if end - start != 16 => return None,
        _ => return message.get(start..end).map(<[u8]>::to_vec),
    };
    let mut at = start + fixed;
    let mut data = message.get(start..at.min(end))?.to_vec();
    for _ in 0..names {
        data.extend_from_slice(Name::parse(message, &mut at)?.bytes());
    }
    if at.checked_add(rest)? != end {
        return None;
    }
    data.extend_from_slice(message.get(at..end)?);
    Some(data)
}

impl Response {
    /// Reads another server's answer. A truncated one has no records.
    pub(crate) fn parse(message: &[u8]) -> Option<Self> {
        let header = Header::parse(message)?;
        let [questions, answers, authorities, _] = header.counts;
        if header.flags & 0x8000 == 0 || header.flags & 0x7800 != 0 || questions != 1 {
            return None;
        }
        let mut at = 12;
        let mut response = Self {
            id: header.id,
            code: (header.flags & 0x0f) as u8,
            is_truncated: header.flags & 0x0200 != 0,
            question: Question::parse(message, &mut at)?,
            answers: Vec::new(),
            authorities: Vec::new(),
        };
        if response.is_truncated {
            return Some(response);
        }
        if usize::from(answers) + usize::from(authorities) > RECORDS_MAX {
            return None;
        }
        for _ in 0..answers {
            let record = Record::parse(message, &mut at)?;
            if record.class == IN {
                response.answers.push(record);
            }
        }
        for _ in 0..authorities {
            let record = Record::parse(message, &mut at)?;
            if record.kind == SOA && record.class == IN {
                response.authorities.push(record);
            }
        }
        Some(response)
    }

    /// The answer to `query` with these records.
    pub(crate) fn to(query: &Query, code: u8, answers: Vec<Record>) -> Self {
        Self {
            id: query.id,
            code,
            is_truncated: false,
            question: query.question.clone(),
            answers,
            authorities: Vec::new(),
        }
    }

    /// The bytes for whoever asked `query`; without records if they are more than it takes.
    pub(crate) fn write(&self, query: &Query) -> Vec<u8> {
        let message = self.write_records(query, false);
        if message.len() <= query.bytes_max { message } else { self.write_records(query, true) }
    }

    fn write_records(&self, query: &Query, is_truncated: bool) -> Vec<u8> {
        let count = |records: &[Record]| {
            if is_truncated { 0 } else { u16::try_from(records.len()).unwrap_or(0) }
        };
        let flags = 0x8080
            | if is_truncated { 0x0200 } else { 0 }
            | if query.wants_recursion { 0x0100 } else { 0 }
            | u16::from(self.code & 0x0f);
        let (answers, authorities) = (count(&self.answers), count(&self.authorities));
        let mut message = Vec::with_capacity(PLAIN_BYTES_MAX);
        for word in [query.id, flags, 1, answers, authorities, u16::from(query.has_edns)] {
            message.extend_from_slice(&word.to_be_bytes());
        }
        query.question.write(&mut message);
        if !is_truncated {
            for record in self.answers.iter().chain(&self.authorities) {
                record.write(&mut message, &query.question.name);
            }
        }
        if query.has_edns {
            write_opt(&mut message);
        }
        message
    }
}

impl Refusal {
    /// The bytes of a refusal: a header alone.
    pub(crate) fn write(self) -> Vec<u8> {
        let words = [self.id, 0x8080 | u16::from(self.code), 0, 0, 0, 0];
        words.into_iter().flat_map(u16::to_be_bytes).collect()
    }
}

fn word(message: &[u8], at: &mut usize) -> Option<u16> {
    let bytes = message.get(*at..)?.first_chunk::<2>()?;
    *at += 2;
    Some(u16::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn query(name: &str, kind: u16) -> Query {
        let question = Question { name: Name::from_text(name).unwrap(), kind, class: IN };
        Query::parse(&write_query(7, &question)).unwrap()
    }

    #[test]
    fn an_answer_goes_through_with_its_names_written_out() {
        let asked = query("www.example.org", A);
        let name = asked.question.name.clone();
        let target = Name::from_text("host.example.org").unwrap();
        let record = |name: &Name, kind, data: &[u8]| Record {
            name: name.clone(),
            kind,
            class: IN,
            ttl_s: 300,
            data: data.to_vec(),
        };
        let answers = vec![
            record(&name, CNAME, target.bytes()),
            record(&target, A, &[192, 0, 2, 1]),
            record(&name, MX, &[&[0, 10], target.bytes()].concat()),
        ];
        let response = Response::to(&asked, NO_ERROR, answers);
        assert_eq!(Response::parse(&response.write(&asked)), Some(response));
    }

    #[test]
    fn an_answer_that_does_not_fit_is_truncated() {
        let asked = query("a.org", 16);
        let record = Record {
            name: asked.question.name.clone(),
            kind: 16,
            class: IN,
            ttl_s: 1,
            data: vec![0; 1200],
        };
        let bytes = Response::to(&asked, NO_ERROR, vec![record]).write(&asked);
        let response = Response::parse(&bytes).unwrap();
        assert!(response.is_truncated && response.answers.is_empty());
        assert!(bytes.len() <= 512);
    }

    #[test]
    fn what_no_resolver_owes_is_refused_by_name() {
        let header = |flags: u16, questions: u16| {
            [9, flags, questions, 0, 0, 0]
                .into_iter()
                .flat_map(u16::to_be_bytes)
                .collect::<Vec<_>>()
        };
        let code = |message: &[u8]| Query::parse(message).unwrap_err().map(|it| (it.id, it.code));
        assert_eq!(code(&[0; 11]), None);
        assert_eq!(code(&header(0x8000, 1)), None);
        assert_eq!(code(&header(0x2800, 1)), Some((9, NOT_IMPLEMENTED)));
        assert_eq!(code(&header(0, 2)), Some((9, FORMAT_ERROR)));
        assert_eq!(code(&header(0, 1)), Some((9, FORMAT_ERROR)));
        let any = Question { name: Name::from_text("a").unwrap(), kind: 255, class: IN };
        assert_eq!(code(&write_query(9, &any)), Some((9, NOT_IMPLEMENTED)));
        let chaos = Question { kind: A, class: 3, ..any };
        assert_eq!(code(&write_query(9, &chaos)), Some((9, REFUSED)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            drop(Query::parse(&bytes));
            drop(Response::parse(&bytes));
        }

        #[test]
        fn a_damaged_answer_is_read_as_one_that_can_be_written(
            at in 0_usize..80, to in any::<u8>(), data in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let asked = query("www.example.org", 16);
            let name = asked.question.name.clone();
            let records = vec![Record { name, kind: 16, class: IN, ttl_s: 9, data }];
            let mut bytes = Response::to(&asked, NO_ERROR, records).write(&asked);
            let at = at % bytes.len();
            bytes[at] = to;
            if let Some(response) = Response::parse(&bytes) {
                let again = Query { id: response.id, question: response.question.clone(), bytes_max: 65535, ..asked };
                let read = Response::parse(&response.write(&again)).unwrap();
                prop_assert_eq!(read.answers, response.answers);
            }
        }
    }
}
