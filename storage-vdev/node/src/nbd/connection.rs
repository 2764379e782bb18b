//! One client: its bytes, its phase and its limits.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustls::ServerConfig;

use super::carrier::{Carrier, Filled};
use super::export::Export;
use super::negotiation::{Negotiation, Next, TlsPolicy, Violation};
use super::output::Output;
use super::transmission::{Parsed, Ticket, Transmission};
use crate::served::{Answer, Failure, Operation};

/// The usual size of the buffer that requests are read into.
const INPUT_BYTES: usize = 256 << 10;

/// The most requests of one client that are with the volume; more wait in its socket.
const OUTSTANDING_MAX: usize = 256;

/// The most bytes of one client's data that are with the volume or wait to be sent: two of the
/// longest requests.
const WEIGHT_MAX: usize = 64 << 20;

/// How many bytes of requests are handed on at once: their replies are on their way, and their
/// buffers free again, before the next ones are begun.
const BATCH_BYTES: usize = 256 << 10;

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Ending {
    #[error(transparent)]
    Violation(#[from] Violation),
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    #[error("the client sent something between its STARTTLS and the answer")]
    BehindStartTls,
}

#[derive(Debug)]
enum Phase {
    Negotiating(Negotiation),
    Serving,
    /// Nothing more is read; what is outstanding is still answered.
    Ending,
}

/// A client.
#[derive(Debug)]
pub(crate) struct Connection {
    carrier: Carrier,
    tls: Option<Arc<ServerConfig>>,
    phase: Phase,
    /// Once the negotiation is over: how requests are read and replies written.
    transmission: Option<Transmission>,
    input: Vec<u8>,
    /// Where what is not used yet begins and ends in `input`.
    start: usize,
    end: usize,
    /// How many bytes the next message needs at least.
    needed: usize,
    pub(crate) output: Output,
    outstanding: usize,
    weight: usize,
    /// There may be input that poll(2) doesn't know of.
    unread: bool,
}

impl Connection {
    /// A new client. TLS is a must if there is a configuration for it.
    pub(crate) fn new(socket: OwnedFd, tls: Option<Arc<ServerConfig>>) -> Self {
        let mut output = Output::default();
        let policy = if tls.is_some() { TlsPolicy::Required } else { TlsPolicy::Off };
        let negotiation = Negotiation::new(policy, &mut output);
        Self {
            carrier: Carrier::new(socket),
            tls,
            phase: Phase::Negotiating(negotiation),
            transmission: None,
            input: Vec::new(),
            start: 0,
            end: 0,
            needed: 1,
            output,
            outstanding: 0,
            weight: 0,
            unread: false,
        }
    }

    /// Whether more can be read and handed on.
    fn has_room(&self) -> bool {
        self.outstanding < OUTSTANDING_MAX && self.weight + self.output.len() < WEIGHT_MAX
    }

    pub(crate) fn wants_read(&self) -> bool {
        !self.is_ending() && self.has_room() && self.available() < self.needed
    }

    pub(crate) fn wants_write(&self) -> bool {
        !self.output.is_empty() || self.carrier.wants_write()
    }

    /// Whether [`Connection::fill`] or [`Connection::process`] have something to do at once.
    pub(crate) fn is_due(&self) -> bool {
        self.has_request() || (self.unread && !self.is_ending() && self.has_room())
    }

    /// Whether [`Connection::process`] has something to do.
    pub(crate) fn has_request(&self) -> bool {
        !self.is_ending() && self.has_room() && self.available() >= self.needed
    }

    /// Whether nothing more is read.
    pub(crate) fn is_ending(&self) -> bool {
        matches!(self.phase, Phase::Ending)
    }

    /// Whether it can be dropped: nothing more is read, answered or sent.
    pub(crate) fn is_over(&self) -> bool {
        self.is_ending() && self.outstanding == 0 && !self.wants_write()
    }

    pub(crate) fn is_negotiating(&self) -> bool {
        matches!(self.phase, Phase::Negotiating(_))
    }

    /// Reads nothing more.
    pub(crate) fn end(&mut self) {
        self.phase = Phase::Ending;
    }

    fn available(&self) -> usize {
        self.end - self.start
    }

    /// Reads what has come, up to a buffer full. False if the client has closed.
    pub(crate) fn fill(&mut self) -> Result<bool, Ending> {
        self.make_room();
        let Some(room) = self.input.get_mut(self.end..) else { return Ok(true) };
        let filled = self.carrier.fill(room)?;
        self.unread = false;
        match filled {
            Filled::Bytes(count) => {
                self.end += count;
                // Inside TLS there may be more, of which poll(2) knows nothing.
                self.unread = !self.is_plain();
                Ok(true)
            }
            Filled::Blocked => Ok(true),
            Filled::Closed => Ok(false),
        }
    }

    fn is_plain(&self) -> bool {
        self.tls.is_none()
    }

    /// Makes the buffer as large as the next message needs, with some room behind it.
    fn make_room(&mut self) {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if self.needed <= INPUT_BYTES && self.input.len() != INPUT_BYTES {
                self.input = vec![0; INPUT_BYTES];
            }
        }
        let fits = self.start + self.needed <= self.input.len() && self.end < self.input.len();
        if !fits {
            self.input.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.available());
        }
        if self.needed > self.input.len() {
            self.input.resize(self.needed + INPUT_BYTES, 0);
        }
    }

    /// Handles a batch of the messages that are there: answers them, or hands them to `submit` with
    /// the place of their export.
    pub(crate) fn process(
        &mut self,
        exports: &[Export],
        submit: &mut dyn FnMut(usize, Ticket, Operation<'_>),
    ) -> Result<(), Ending> {
        let mut batch = 0;
        while self.available() >= self.needed && self.has_room() && batch < BATCH_BYTES {
            let input = self.input.get(self.start..self.end).unwrap_or_default();
            match &mut self.phase {
                Phase::Negotiating(negotiation) => {
                    let next = negotiation.advance(input, exports, &mut self.output)?;
                    self.negotiated(next, exports)?;
                }
                Phase::Serving => {
                    let Some(transmission) = &self.transmission else { return Ok(()) };
                    match transmission.parse(input, &mut self.output)? {
                        Parsed::More(total) => self.needed = total,
                        Parsed::Refused(used) => self.start += used,
                        Parsed::Request(used, ticket, operation) => {
                            submit(transmission.export(), ticket, operation);
                            self.start += used;
                            self.outstanding += 1;
                            self.weight += ticket.weight;
                            batch += ticket.weight;
                            self.needed = 1;
                        }
                        Parsed::Ended => self.phase = Phase::Ending,
                    }
                }
                Phase::Ending => return Ok(()),
            }
        }
        Ok(())
    }

    fn negotiated(&mut self, next: Next, exports: &[Export]) -> Result<(), Ending> {
        self.needed = 1;
        match next {
            Next::More => self.needed = self.available() + 1,
            Next::Used(used) => self.start += used,
            Next::StartTls(used) => {
                self.start += used;
                // Whatever came in the clear must not pass for something that came under TLS.
                let Some(config) = self.tls.clone().filter(|_| self.available() == 0) else {
                    return Err(Ending::BehindStartTls);
                };
                // The answer goes out in the clear. It is short and the socket's buffer is empty.
                self.carrier.send(&mut self.output, &mut Vec::new())?;
                if !self.output.is_empty() {
                    return Err(Ending::BehindStartTls);
                }
                self.carrier.start_tls(config)?;
                if let Phase::Negotiating(negotiation) = &mut self.phase {
                    negotiation.secured();
                }
            }
            Next::Enter(used, agreed) => {
                self.start += used;
                if let Some(export) = exports.get(agreed.export) {
                    self.transmission = Some(Transmission::new(agreed, export));
                    self.phase = Phase::Serving;
                }
            }
            Next::Ended => self.phase = Phase::Ending,
        }
        Ok(())
    }

    /// Takes the volume's answer to a request. A buffer that isn't needed comes back.
    pub(crate) fn answer(
        &mut self,
        ticket: Ticket,
        result: Result<Answer, Failure>,
    ) -> Option<Vec<u8>> {
        self.outstanding = self.outstanding.saturating_sub(1);
        self.weight = self.weight.saturating_sub(ticket.weight);
        self.transmission.as_ref()?.reply(ticket, result, &mut self.output)
    }

    /// Sends what can be sent. Buffers that are done with go to `spent`.
    pub(crate) fn send(&mut self, spent: &mut Vec<Vec<u8>>) -> Result<(), Ending> {
        Ok(self.carrier.send(&mut self.output, spent)?)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.carrier.as_fd()
    }
}
