//! The faces of a volume, used by programs that nobody here wrote: `nbdinfo`, `nbdcopy`, `qemu-img`,
//! `qemu-io`, `fio`, and Linux in a virtual machine; by clients that mean harm; and by one that
//! checks what it was promised after the server was killed.
//!
//! A tool that is not installed skips its test, loudly. `cargo xtask check` installs them all and
//! fetches the guest's kernel.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a failed unwrap fails the test")]

mod client;
mod guest;
mod hostile;
mod kill;
mod server;
mod tls;
mod tools;
