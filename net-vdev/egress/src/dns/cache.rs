//! Answers of other servers, for as long as they say.

use std::collections::BTreeMap;

use super::message::{NAME_ERROR, NO_ERROR, Question, Record, Response, SOA};

/// How many answers, and how many bytes of them, are kept.
const ENTRIES_MAX: usize = 4096;
const BYTES_MAX: usize = 4 << 20;
/// No answer is believed for longer, and that there is none for no longer than this (RFC 2308 §5).
const TTL_MAX_S: u32 = 3600;
const NOTHING_TTL_MAX_S: u32 = 300;
const SECOND_NS: u64 = 1_000_000_000;

/// What is known.
#[derive(Debug, Default)]
pub(super) struct Cache {
    entries: BTreeMap<Question, Entry>,
    /// When entries end, to drop the one that ends first when there is no room.
    ends: std::collections::BTreeSet<(u64, Question)>,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    response: Response,
    bytes: usize,
    stored_ns: u64,
    ends_ns: u64,
}

impl Cache {
    /// The answer that is known, its records with what is left of their time.
    pub(super) fn get(&self, now_ns: u64, question: &Question) -> Option<Response> {
        let entry = self.entries.get(question).filter(|entry| now_ns < entry.ends_ns)?;
        let age_s = u32::try_from((now_ns - entry.stored_ns) / SECOND_NS).unwrap_or(u32::MAX);
        let mut response = entry.response.clone();
        for record in response.answers.iter_mut().chain(&mut response.authorities) {
            record.ttl_s = record.ttl_s.saturating_sub(age_s);
        }
        Some(response)
    }

    /// Keeps an answer, if it says for how long.
    pub(super) fn put(&mut self, now_ns: u64, response: &Response) {
        let Some(ttl_s) = lifetime_s(response).filter(|ttl_s| *ttl_s > 0) else { return };
        let question = response.question.clone();
        self.remove(&question);
        let record_bytes = |it: &Record| it.name.bytes().len() + it.data.len() + 64;
        let records = response.answers.iter().chain(&response.authorities);
        let bytes = 256 + records.map(record_bytes).sum::<usize>();
        while self.entries.len() >= ENTRIES_MAX || self.bytes + bytes > BYTES_MAX {
            let Some((_, first)) = self.ends.first().cloned() else { return };
            self.remove(&first);
        }
        let ends_ns = now_ns.saturating_add(u64::from(ttl_s) * SECOND_NS);
        self.bytes += bytes;
        self.ends.insert((ends_ns, question.clone()));
        let response = response.clone();
        self.entries.insert(question, Entry { response, bytes, stored_ns: now_ns, ends_ns });
    }

    fn remove(&mut self, question: &Question) {
        if let Some(entry) = self.entries.remove(question) {
            self.bytes = self.bytes.saturating_sub(entry.bytes);
            self.ends.remove(&(entry.ends_ns, question.clone()));
        }
    }
}

/// How long an answer holds; `None` for one that is not kept.
fn lifetime_s(response: &Response) -> Option<u32> {
    match (response.code, response.answers.is_empty()) {
        (NO_ERROR, false) => {
            let shortest = response.answers.iter().map(|record| record.ttl_s).min();
            shortest.map(|ttl_s| ttl_s.min(TTL_MAX_S))
        }
        (NO_ERROR | NAME_ERROR, _) => {
            let soa = response.authorities.iter().find(|record| record.kind == SOA)?;
            let minimum = soa.data.last_chunk::<4>().map(|bytes| u32::from_be_bytes(*bytes))?;
            Some(minimum.min(soa.ttl_s).min(NOTHING_TTL_MAX_S))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::{A, IN};
    use super::super::name::Name;
    use super::*;

    fn answer(name: &str, ttl_s: u32) -> Response {
        let name = Name::from_text(name).unwrap();
        let record =
            Record { name: name.clone(), kind: A, class: IN, ttl_s, data: vec![1, 2, 3, 4] };
        let question = Question { name, kind: A, class: IN };
        Response {
            id: 1,
            code: NO_ERROR,
            is_truncated: false,
            question,
            answers: vec![record],
            authorities: Vec::new(),
        }
    }

    #[test]
    fn an_answer_holds_for_its_time_and_counts_down() {
        let mut cache = Cache::default();
        let response = answer("a.org", 10);
        cache.put(0, &response);
        let later = cache.get(4 * SECOND_NS, &response.question).unwrap();
        assert_eq!(later.answers[0].ttl_s, 6);
        assert_eq!(cache.get(10 * SECOND_NS, &response.question), None);
        cache.put(0, &answer("never.org", 0));
        assert_eq!(cache.entries.len(), 1);
    }

    #[test]
    fn memory_is_bounded_whatever_is_asked() {
        let mut cache = Cache::default();
        for at in 0..10_000_u32 {
            cache.put(u64::from(at), &answer(&format!("n{at}.org"), 60));
            assert!(cache.entries.len() <= ENTRIES_MAX && cache.bytes <= BYTES_MAX);
        }
        assert_eq!(cache.entries.len(), cache.ends.len());
        assert!(cache.get(10_000, &answer("n9999.org", 1).question).is_some());
        assert!(cache.get(10_000, &answer("n0.org", 1).question).is_none());
    }
}
