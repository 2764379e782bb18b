//! How far long work is.

use std::io::{self, IsTerminal, Write};

use serde_json::json;

use super::show::VolumeStatus;

/// A line of progress on a terminal, JSON lines for scripts, silence otherwise.
pub(super) struct Meter {
    json: bool,
    terminal: bool,
    shown: bool,
}

impl Meter {
    pub(super) fn new(json: bool) -> Self {
        Self { json, terminal: io::stderr().is_terminal(), shown: false }
    }

    pub(super) fn show(&mut self, status: &VolumeStatus) {
        let Some(work) = status.repair.or(status.scrub) else { return };
        // Whoever stopped listening doesn't stop the work.
        if self.json {
            _ = writeln!(io::stdout(), "{}", json!({"event": "progress", "work": work}));
        } else if self.terminal {
            _ = write!(io::stderr(), "\r{}\x1b[K", work.to_text());
            self.shown = true;
        }
    }

    pub(super) fn end(&mut self) {
        if self.shown {
            _ = writeln!(io::stderr());
        }
    }
}
