//! The process itself: descriptors that its parent left open, by number, and its end.
#![expect(unsafe_code, reason = "inherited descriptors are bare numbers; `_exit` is C's")]

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Hands out each inherited descriptor at most once. One per process, made before the process
/// opens anything itself.
#[derive(Debug, Default)]
pub struct Inherited {
    taken: BTreeSet<RawFd>,
}

impl Inherited {
    /// Takes ownership of descriptor `number` and marks it close-on-exec.
    ///
    /// # Errors
    /// It isn't open, is one of the three standard ones, or was taken before.
    pub fn take(&mut self, number: RawFd) -> io::Result<OwnedFd> {
        let refuse = |why: &str| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("descriptor {number} {why}"))
        };
        if number <= 2 {
            return Err(refuse("is not one that can be inherited"));
        }
        if !self.taken.insert(number) {
            return Err(refuse("is named twice"));
        }
        // SAFETY: the number isn't negative; a closed one makes `fcntl` fail with EBADF, and the
        // borrow ends here.
        let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
        rustix::io::fcntl_setfd(borrowed, rustix::io::FdFlags::CLOEXEC)
            .map_err(|_| refuse("is not open"))?;
        // SAFETY: it is open, and nobody else in this process owns it: all descriptors are taken
        // here before the process opens its own, each at most once.
        Ok(unsafe { OwnedFd::from_raw_fd(number) })
    }
}

impl Inherited {
    /// Closes every descriptor but the standard three and those that were taken: what the parent
    /// left open by mistake is no business of a VM's. Before the process opens anything itself.
    ///
    /// # Errors
    /// The kernel has no `close_range` (Linux 5.9).
    pub fn close_others(&self) -> io::Result<()> {
        let mut first = 3;
        for taken in self.taken.iter().copied().chain([RawFd::MAX]) {
            let last = taken.saturating_sub(1);
            if first <= last {
                // SAFETY: nothing in this process owns a descriptor but those in `taken`, which
                // lie outside the range.
                let closed = unsafe { libc::close_range(first as u32, last as u32, 0) };
                if closed != 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            first = taken.saturating_add(1);
        }
        Ok(())
    }
}

/// Makes `malloc` take memory by `brk` alone, so that the sandbox needs no `mmap`, `munmap` or
/// `mremap`. Before the sandbox; for a process of one thread.
///
/// # Errors
/// The C library doesn't know how.
pub fn allocate_by_brk_only() -> io::Result<()> {
    // SAFETY: sets two parameters of the allocator, which is allowed at any time.
    let set = unsafe {
        libc::mallopt(libc::M_MMAP_MAX, 0) == 1
            && libc::mallopt(libc::M_TRIM_THRESHOLD, TRIM_BYTES) == 1
    };
    if set { Ok(()) } else { Err(io::ErrorKind::Unsupported.into()) }
}

/// How much freed memory at the heap's end is kept: requests of that size come and go.
const TRIM_BYTES: i32 = 1 << 20;

/// Ends the process at once: no clean-up runs, which the sandbox would kill.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` has no preconditions and doesn't return.
    unsafe { libc::_exit(code) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::IntoRawFd;

    #[test]
    fn a_descriptor_is_handed_out_once() {
        let number = std::fs::File::open("/dev/null").unwrap().into_raw_fd();
        let mut inherited = Inherited::default();
        assert!(inherited.take(number).is_ok());
        assert!(inherited.take(number).is_err());
        assert!(inherited.take(1).is_err());
        assert!(inherited.take(-1).is_err());
        assert!(inherited.take(987_654).is_err());
    }
}
