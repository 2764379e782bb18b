//! What a VMM writes: the guest's log to standard output, its own messages to standard error.

use std::os::fd::BorrowedFd;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, write};
use rustix::stdio::{stderr, stdout};

use crate::kvm::StopSignal;

/// Writes the guest's log. If nobody reads it any more, it is dropped: the guest goes on. A slow
/// reader slows the guest down, but can't keep it from being stopped.
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
            Err(Errno::INTR) if StopSignal::requested() => return,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                if StopSignal::requested() || !wait_writable(to) {
                    return;
                }
            }
            // The reader is gone, and with it the only place to say so.
            Err(_) => return,
        }
    }
}

/// Waits until `to` takes bytes or a signal comes; whether there is any use in trying again.
fn wait_writable(to: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(to, PollFlags::OUT)];
    matches!(poll(&mut fds, None), Ok(_) | Err(Errno::INTR))
}
