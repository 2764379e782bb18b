//! One TCP connection of a member, terminated here; its other end is a socket of the host.
//!
//! ```text
//!  the member opens                          this side opens (gateway)
//!  SYN ──► Opening ── host connected ──► SynReceived      SynSent
//!             │                              │ ACK           │ SYN, ACK
//!             │ host refused: RST            ▼               │
//!             ▼                             Open ◄───────────┘
//!           Closed ◄── RST, gave up ───────  │ both ends' FIN acknowledged
//!                                            ▼
//!                                         TimeWait ──► Closed
//! ```
//!
//! A member sees SYN-ACK only when the host's connection stands, and RST when it was refused. Bytes
//! go straight from a segment to the host's socket; what the socket does not take is kept within the
//! window, so that the host's pace is the member's. There is no socket and no clock in here.

mod held;
mod receiver;
mod recovery;
mod ring;
mod segment;
mod sender;

pub(crate) use receiver::WINDOW_BYTES_MIN;
use receiver::{Receiver, WINDOW_SHIFT};
use segment::{ACK, FIN, PSH, RST, SYN, is_after};
pub(crate) use segment::{Options, Outgoing, Segment};
pub(crate) use sender::BUFFER_BYTES_MIN;
use sender::Sender;

/// The host's socket is broken: the member is reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Broken;

/// Where a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// The host's connection is being made; the member waits.
    Opening,
    /// The member's SYN is answered.
    SynReceived,
    /// This side's SYN is not answered yet.
    SynSent,
    /// Bytes flow.
    Open,
    /// All is said; the last acknowledgement may have to be repeated.
    TimeWait,
    /// It is over.
    Closed,
}

const SYN_TIMEOUT_NS: u64 = 1_000_000_000;
const SYN_TRIES_MAX: u8 = 5;
const TIME_WAIT_NS: u64 = 10_000_000_000;
/// RFC 6146 §4: 4 minutes for what is opening or closing, 2 hours 4 minutes for what is open.
const TRANSITORY_NS: u64 = 240_000_000_000;
const ESTABLISHED_NS: u64 = 7_440_000_000_000;

/// A connection.
#[derive(Debug)]
pub(crate) struct Stream {
    state: State,
    sender: Sender,
    receiver: Receiver,
    /// The number of this side's SYN.
    initial: u32,
    /// Whether the member's SYN offered to scale windows and to acknowledge selectively.
    scales: bool,
    mss_max: u16,
    syn_due: bool,
    syn_timer_ns: Option<u64>,
    syn_tries: u8,
    ack_due: bool,
    reset_due: bool,
    /// Whether the host's socket was told that the member has no more.
    is_host_ended: bool,
    touched_ns: u64,
}

impl Stream {
    /// A connection that the member opens with `syn`. `initial` is not to be guessed; `mss_max` is
    /// what the way to the member carries.
    pub(crate) fn accept(now_ns: u64, syn: &Segment<'_>, initial: u32, mss_max: u16) -> Self {
        let mut sender = Sender::new(initial);
        let scales = sender.open(syn, mss_max);
        Self {
            receiver: Receiver::new(syn.sequence, scales),
            scales,
            ..Self::new(now_ns, State::Opening, sender, mss_max, initial)
        }
    }

    /// A connection to the member, which this side opens.
    #[expect(dead_code, reason = "the gateway, which opens connections to members, is not in yet")]
    pub(crate) fn connect(now_ns: u64, initial: u32, mss_max: u16) -> Self {
        let sender = Sender::new(initial);
        Self { syn_due: true, ..Self::new(now_ns, State::SynSent, sender, mss_max, initial) }
    }

    fn new(now_ns: u64, state: State, sender: Sender, mss_max: u16, initial: u32) -> Self {
        Self {
            state,
            sender,
            receiver: Receiver::new(0, true),
            initial,
            scales: false,
            mss_max,
            syn_due: false,
            syn_timer_ns: None,
            syn_tries: 0,
            ack_due: false,
            reset_due: false,
            is_host_ended: false,
            touched_ns: now_ns,
        }
    }

    pub(crate) fn state(&self) -> State {
        self.state
    }

    /// The host's connection stands.
    pub(crate) fn host_connected(&mut self) {
        if self.state == State::Opening {
            self.state = State::SynReceived;
            self.syn_due = true;
        }
    }

    /// The host's connection was refused, or broke: the member is reset.
    pub(crate) fn host_broke(&mut self) {
        if !matches!(self.state, State::Closed | State::TimeWait) {
            self.reset_due = true;
            self.close();
        }
    }

    /// Nothing more is said to the member, not even that it is over.
    pub(crate) fn forget(&mut self) {
        self.close();
    }

    fn close(&mut self) {
        self.state = State::Closed;
        self.sender.release();
        self.receiver.release();
        self.syn_timer_ns = None;
        self.syn_due = false;
        self.ack_due = false;
    }

    /// Takes a segment of the member's. `sink` is the host's socket.
    pub(crate) fn take(
        &mut self,
        now_ns: u64,
        segment: &Segment<'_>,
        sink: &mut dyn FnMut(&[u8]) -> Result<usize, Broken>,
    ) {
        match self.state {
            State::Closed => {}
            State::Opening => {
                if segment.has(RST) {
                    self.close();
                }
            }
            State::SynSent => self.take_answer(now_ns, segment, sink),
            State::TimeWait => {
                // The member did not see the last acknowledgement.
                self.ack_due |= segment.len() > 0 && !segment.has(RST);
            }
            State::SynReceived | State::Open => {
                if self.take_in_order(now_ns, segment, sink).is_err() {
                    self.host_broke();
                }
            }
        }
    }

    /// What answers this side's SYN (RFC 9293 §3.10.7.3).
    fn take_answer(
        &mut self,
        now_ns: u64,
        segment: &Segment<'_>,
        sink: &mut dyn FnMut(&[u8]) -> Result<usize, Broken>,
    ) {
        let is_answer = segment.has(ACK) && segment.acknowledgement == self.sender.next();
        if !is_answer {
            return;
        }
        if segment.has(RST) {
            self.close();
            return;
        }
        if !segment.has(SYN) {
            return;
        }
        self.touched_ns = now_ns;
        self.scales = self.sender.open(segment, self.mss_max);
        self.receiver = Receiver::new(segment.sequence, self.scales);
        self.state = State::Open;
        self.syn_due = false;
        self.syn_timer_ns = None;
        self.ack_due = true;
        let rest = Segment {
            sequence: segment.sequence.wrapping_add(1),
            flags: segment.flags & !SYN,
            ..*segment
        };
        if rest.len() > 0 && self.receiver.take(&rest, sink).is_err() {
            self.host_broke();
        }
    }

    /// RFC 9293 §3.10.7.4, with the checks of RFC 5961.
    fn take_in_order(
        &mut self,
        now_ns: u64,
        segment: &Segment<'_>,
        sink: &mut dyn FnMut(&[u8]) -> Result<usize, Broken>,
    ) -> Result<(), Broken> {
        if !self.receiver.is_acceptable(segment) {
            // An old SYN means that the answer to it was lost.
            let is_syn = segment.has(SYN) && self.state == State::SynReceived;
            self.syn_due |= is_syn;
            self.ack_due |= !is_syn && !segment.has(RST);
            // What a keepalive acknowledges is news all the same.
            if segment.has(ACK) && self.state == State::Open && !segment.has(RST | SYN) {
                self.sender.acknowledged(now_ns, segment);
            }
            return Ok(());
        }
        if segment.has(RST) {
            if segment.sequence == self.receiver.next() {
                self.close();
            } else {
                self.ack_due = true;
            }
            return Ok(());
        }
        if segment.has(SYN) || !segment.has(ACK) {
            self.ack_due |= segment.has(SYN);
            return Ok(());
        }
        if !self.sender.is_credible(segment.acknowledgement) {
            self.ack_due = true;
            return Ok(());
        }
        self.touched_ns = now_ns;
        if self.state == State::SynReceived {
            if is_after(self.initial.wrapping_add(1), segment.acknowledgement) {
                return Ok(());
            }
            self.state = State::Open;
            self.syn_due = false;
            self.syn_timer_ns = None;
        }
        self.sender.acknowledged(now_ns, segment);
        if segment.len() > 0 {
            self.ack_due = true;
            self.receiver.take(segment, sink)?;
        }
        self.settle(now_ns);
        Ok(())
    }

    /// The host's socket takes bytes again.
    pub(crate) fn writable(
        &mut self,
        now_ns: u64,
        sink: &mut dyn FnMut(&[u8]) -> Result<usize, Broken>,
    ) {
        if self.state != State::Open {
            return;
        }
        if self.receiver.drain(sink).is_err() {
            return self.host_broke();
        }
        self.ack_due |= self.receiver.has_news();
        self.settle(now_ns);
    }

    /// Whether the host's socket is to be told that the member has no more; says so once.
    pub(crate) fn take_host_end(&mut self) -> bool {
        let is_due = matches!(self.state, State::Open | State::TimeWait)
            && self.receiver.is_finished()
            && self.receiver.is_drained()
            && !self.is_host_ended;
        self.is_host_ended |= is_due;
        is_due
    }

    /// Room for what the host's socket received; none before the member can be sent anything.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        if self.state == State::Open { self.sender.room() } else { &mut [] }
    }

    pub(crate) fn filled(&mut self, now_ns: u64, len: usize) {
        self.touched_ns = now_ns;
        self.sender.filled(len);
    }

    /// The host's socket has no more.
    pub(crate) fn host_ended(&mut self) {
        self.sender.end();
    }

    pub(crate) fn has_host_ended(&self) -> bool {
        self.sender.ends()
    }

    /// Both ends are done: what is left is to answer a repeated last segment.
    fn settle(&mut self, now_ns: u64) {
        let is_done = self.state == State::Open
            && self.sender.is_finished()
            && self.receiver.is_finished()
            && self.receiver.is_drained();
        if is_done {
            self.state = State::TimeWait;
            self.touched_ns = now_ns;
            self.sender.release();
        }
    }

    /// The bytes of the budget that a larger buffer or window would take, if one would help.
    pub(crate) fn growth_bytes(&self) -> usize {
        self.sender.growth_bytes() + self.receiver.growth_bytes() as usize
    }

    /// Takes what [`Stream::growth_bytes`] asked for.
    pub(crate) fn grow(&mut self) {
        if self.sender.growth_bytes() > 0 {
            self.sender.grow();
        }
        if self.receiver.growth_bytes() > 0 {
            self.receiver.grow();
            self.ack_due |= self.receiver.has_news();
        }
    }

    /// The bytes of the budget that it may fill.
    pub(crate) fn budget_bytes(&self) -> usize {
        self.sender.capacity() + self.receiver.window_bytes() as usize
    }

    /// When [`Stream::due`] has something to do.
    pub(crate) fn deadline_ns(&self) -> u64 {
        let patience_ns = match self.state {
            State::Closed => 0,
            State::TimeWait => TIME_WAIT_NS,
            State::Open if !self.sender.ends() && !self.receiver.is_finished() => ESTABLISHED_NS,
            _ => TRANSITORY_NS,
        };
        let idle_ns = self.touched_ns.saturating_add(patience_ns);
        let timers = [self.sender.timer_ns(), self.syn_timer_ns];
        timers.into_iter().flatten().fold(idle_ns, u64::min)
    }

    /// Does what is due.
    pub(crate) fn due(&mut self, now_ns: u64) {
        if self.state == State::TimeWait && self.deadline_ns() <= now_ns {
            return self.close();
        }
        if self.syn_timer_ns.is_some_and(|due_ns| due_ns <= now_ns) {
            if self.syn_tries >= SYN_TRIES_MAX {
                return self.host_broke();
            }
            self.syn_due = true;
        }
        if self.sender.timer_ns().is_some_and(|due_ns| due_ns <= now_ns)
            && self.sender.timed_out(now_ns).is_err()
        {
            return self.host_broke();
        }
        if self.deadline_ns() <= now_ns && self.syn_timer_ns.is_none_or(|due_ns| due_ns > now_ns) {
            self.host_broke();
        }
    }

    /// Hands over all segments that are to be sent now.
    pub(crate) fn emit(&mut self, now_ns: u64, out: &mut dyn FnMut(&Outgoing<'_>)) {
        if std::mem::take(&mut self.reset_due) {
            return self.emit_reset(out);
        }
        if std::mem::take(&mut self.syn_due) {
            return self.emit_syn(now_ns, out);
        }
        if !matches!(self.state, State::Open | State::TimeWait) {
            return;
        }
        while let Some(piece) = self.sender.piece(now_ns) {
            self.touched_ns = now_ns.max(self.touched_ns);
            let flags = ACK
                | if piece.fin { FIN } else { 0 }
                | if piece.push && piece.len > 0 { PSH } else { 0 };
            let window = self.receiver.announce();
            out(&Outgoing {
                sequence: piece.sequence,
                acknowledgement: self.receiver.next(),
                flags,
                window,
                options: Options::default(),
                payload: self.sender.buffer().slices(piece.offset, piece.len),
                mss: self.sender.mss(),
            });
            self.ack_due = self.receiver.has_gap();
        }
        if std::mem::take(&mut self.ack_due) {
            let mut options = Options::default();
            if self.sender.may_sack() {
                options.sacks = self.receiver.ranges();
            }
            let window = self.receiver.announce();
            out(&Outgoing { window, options, ..self.bare(ACK) });
        }
    }

    fn emit_syn(&mut self, now_ns: u64, out: &mut dyn FnMut(&Outgoing<'_>)) {
        self.syn_tries += 1;
        self.syn_timer_ns = Some(now_ns + (SYN_TIMEOUT_NS << (self.syn_tries - 1).min(5)));
        let is_first = self.state == State::SynSent;
        let options = Options {
            mss: Some(self.mss_max),
            window_shift: (is_first || self.scales).then_some(WINDOW_SHIFT),
            may_sack: is_first || self.sender.may_sack(),
            ..Options::default()
        };
        let flags = if is_first { SYN } else { SYN | ACK };
        let window = self.receiver.announce_unscaled();
        let acknowledgement = if is_first { 0 } else { self.receiver.next() };
        let sequence = self.initial;
        out(&Outgoing { sequence, acknowledgement, window, options, ..self.bare(flags) });
    }

    fn emit_reset(&mut self, out: &mut dyn FnMut(&Outgoing<'_>)) {
        out(&Outgoing { window: 0, ..self.bare(RST | ACK) });
    }

    fn bare(&self, flags: u8) -> Outgoing<'static> {
        Outgoing {
            sequence: self.sender.next(),
            acknowledgement: self.receiver.next(),
            flags,
            window: 0,
            options: Options::default(),
            payload: (&[], &[]),
            mss: self.sender.mss(),
        }
    }
}

/// The segment that refuses one of nobody's (RFC 9293 §3.10.7.1); `None` for a reset.
pub(crate) fn refusal(segment: &Segment<'_>) -> Option<Outgoing<'static>> {
    if segment.has(RST) {
        return None;
    }
    let (sequence, acknowledgement, flags) = if segment.has(ACK) {
        (segment.acknowledgement, 0, RST)
    } else {
        (0, segment.sequence.wrapping_add(segment.len()), RST | ACK)
    };
    Some(Outgoing {
        sequence,
        acknowledgement,
        flags,
        window: 0,
        options: Options::default(),
        payload: (&[], &[]),
        mss: u16::MAX,
    })
}

/// Whether a segment opens a connection.
pub(crate) fn opens(segment: &Segment<'_>) -> bool {
    segment.has(SYN) && !segment.has(ACK | RST | FIN)
}

#[cfg(test)]
mod tests;
