//! What a VMM writes: the guest's log to standard output, its own messages to standard error.

use std::os::fd::BorrowedFd;

use rustix::io::{Errno, write};
use rustix::stdio::{stderr, stdout};

/// Writes the guest's log. If nobody reads it any more, it is dropped: the guest goes on.
pub fn guest_log(bytes: &[u8]) {
    write_all(stdout(), bytes);
}

/// Writes one message of the VMM.
pub fn message(text: &str) {
    write_all(stderr(), format!("vmm: {text}\n").as_bytes());
}

fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match write(to, bytes) {
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(Errno::INTR | Errno::AGAIN) => {}
            // The reader is gone, and with it the only place to say so.
            Err(_) => return,
        }
    }
}
