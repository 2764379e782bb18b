//! What takes the vCPU out of a guest that computes: one timer for the guest's upcall and for devices
//! that must be attended to.

use crate::kvm::AlarmTimer;

/// The times that wait for the timer; all are those of [`crate::vm::now_ns`].
#[derive(Debug, Default)]
pub struct Alarm {
    upcall_ns: Option<u64>,
    attend_ns: Option<u64>,
    /// What the timer is set to.
    armed_ns: Option<u64>,
}

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// The guest's upcall.
    pub upcall: bool,
    /// The devices' attention.
    pub attend: bool,
}

impl Alarm {
    /// The upcall is due at `at_ns`, or never.
    pub fn set_upcall(&mut self, at_ns: Option<u64>, now_ns: u64) {
        self.upcall_ns = at_ns;
        self.arm(now_ns);
    }

    /// The devices want to be attended to at `at_ns`, or never.
    pub fn set_attend(&mut self, at_ns: Option<u64>, now_ns: u64) {
        self.attend_ns = at_ns;
        self.arm(now_ns);
    }

    /// The timer has fired: what is due by now, and no more after this.
    pub fn fired(&mut self, now_ns: u64) -> Due {
        self.armed_ns = None;
        let take = |at_ns: &mut Option<u64>| at_ns.take_if(|at_ns| *at_ns <= now_ns).is_some();
        let due = Due { upcall: take(&mut self.upcall_ns), attend: take(&mut self.attend_ns) };
        self.arm(now_ns);
        due
    }

    fn arm(&mut self, now_ns: u64) {
        let next_ns = [self.upcall_ns, self.attend_ns].into_iter().flatten().min();
        if next_ns != self.armed_ns {
            self.armed_ns = next_ns;
            AlarmTimer::arm(next_ns.map_or(0, |at_ns| at_ns.saturating_sub(now_ns).max(1)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_purpose_has_its_own_time() {
        // Hours away: the real timer doesn't fire in a test.
        const HOUR_NS: u64 = 3_600_000_000_000;
        let mut alarm = Alarm::default();
        alarm.set_upcall(Some(3 * HOUR_NS), 0);
        alarm.set_attend(Some(HOUR_NS), 0);
        assert_eq!(alarm.armed_ns, Some(HOUR_NS));
        assert_eq!(alarm.fired(HOUR_NS), Due { upcall: false, attend: true });
        assert_eq!(alarm.armed_ns, Some(3 * HOUR_NS));
        assert_eq!(alarm.fired(2 * HOUR_NS), Due { upcall: false, attend: false });
        assert_eq!(alarm.armed_ns, Some(3 * HOUR_NS), "fired too early: armed again");
        assert_eq!(alarm.fired(4 * HOUR_NS), Due { upcall: true, attend: false });
        alarm.set_upcall(Some(5 * HOUR_NS), 0);
        alarm.set_upcall(None, 0);
        assert_eq!(alarm.armed_ns, None);
    }
}
