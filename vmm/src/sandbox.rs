//! The VMM confines itself before the first guest instruction: no new privileges, no file system
//! (landlock), and only the system calls that it will make (seccomp), `ioctl` by request number.
//!
//! Everything is open by then; nothing can be opened afterwards. A forbidden call kills the
//! process. `docs/threat-model.md` says what this stops.

use std::collections::BTreeMap;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetStatus,
    Scope,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

const KVM_RUN: u64 = 0xae80;
const KVM_GET_REGS: u64 = 0x8090_ae81;
const KVM_SET_REGS: u64 = 0x4090_ae82;
const KVM_GET_SREGS: u64 = 0x8138_ae83;
const KVM_GET_VCPU_EVENTS: u64 = 0x8040_ae9f;

/// The one call that a test may see or not, as the host's clock has it.
pub const CLOCK_FALLBACK: &str = "clock_gettime";

/// What the VM has, and so what its thread will call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Needs {
    /// It has block devices on files.
    pub block: bool,
    /// It has block devices on shard servers, behind sockets.
    pub servers: bool,
    /// It has network cards on UDP sockets.
    pub net: bool,
    /// One of them has a socket to the router of the host's node.
    pub uplink: bool,
}

/// Why the sandbox was refused; the VM doesn't start without it.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// No core dumps, so that no key lands in a file.
    #[error("the sandbox was refused: RLIMIT_CORE: {0}")]
    CoreLimit(rustix::io::Errno),
    /// Landlock is absent or off.
    #[error(
        "the sandbox was refused: landlock is not available (Linux 5.13 or later, with \
         \"landlock\" among the kernel's LSMs)"
    )]
    LandlockAbsent,
    /// Landlock refuses the rules.
    #[error("the sandbox was refused: landlock: {0}")]
    Landlock(#[from] landlock::RulesetError),
    /// Seccomp refuses the filter.
    #[error("the sandbox was refused: seccomp: {0}")]
    Seccomp(#[from] seccompiler::Error),
    /// The filter is malformed (a bug).
    #[error("the sandbox was refused: seccomp filter: {0}")]
    Filter(#[from] seccompiler::BackendError),
}

/// Confines this thread (there is no other yet) for good.
///
/// # Errors
/// Any part is refused.
pub fn enter(needs: Needs) -> Result<(), SandboxError> {
    let none = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(rustix::process::Resource::Core, none)
        .map_err(SandboxError::CoreLimit)?;
    restrict_files()?;
    seccompiler::apply_filter(&filter(needs)?)?;
    Ok(())
}

/// The landlock part alone. Sets `no_new_privs`, then takes away every file system right (ABI 1 is
/// required), and TCP and abstract sockets where the kernel knows how to.
///
/// # Errors
/// Landlock is refused or absent.
pub fn restrict_files() -> Result<(), SandboxError> {
    let newest = ABI::V6;
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(newest))?
        .handle_access(AccessNet::from_all(newest))?
        .scope(Scope::from_all(newest))?
        .create()?
        .restrict_self()?;
    match status.ruleset {
        RulesetStatus::NotEnforced => Err(SandboxError::LandlockAbsent),
        RulesetStatus::PartiallyEnforced | RulesetStatus::FullyEnforced => Ok(()),
    }
}

/// The system calls that the thread of a VM with these devices may make: name and number. A test
/// traces real guests and finds that no other is made and each of these is ([`CLOCK_FALLBACK`]
/// depends on the host).
#[must_use]
pub fn allowed_calls(needs: Needs) -> Vec<(&'static str, i64)> {
    let mut calls = vec![
        ("ioctl", libc::SYS_ioctl),               // five requests of KVM
        ("write", libc::SYS_write),               // the guest's log, our messages
        ("ppoll", libc::SYS_ppoll),               // waiting
        ("pread64", libc::SYS_pread64),           // symbols after a crash; block devices
        ("setitimer", libc::SYS_setitimer),       // upcalls
        ("rt_sigreturn", libc::SYS_rt_sigreturn), // from SIGALRM, SIGTERM and SIGINT
        ("exit_group", libc::SYS_exit_group),
        // The vDSO asks the kernel when the host's clock source can't be read from user space, and a
        // host may change to such a one at any time (a TSC found unstable).
        (CLOCK_FALLBACK, libc::SYS_clock_gettime),
    ];
    if needs.block || needs.servers || needs.net {
        calls.push(("brk", libc::SYS_brk)); // memory for what is in flight
    }
    if needs.block {
        calls.extend([
            ("pwrite64", libc::SYS_pwrite64),
            ("fdatasync", libc::SYS_fdatasync),
            ("fallocate", libc::SYS_fallocate), // discarded ranges
        ]);
    }
    if needs.servers {
        calls.extend([
            ("epoll_pwait", libc::SYS_epoll_pwait), // which servers have answered
            ("epoll_ctl", libc::SYS_epoll_ctl),     // a new connection, for one that ended
            ("recvmsg", libc::SYS_recvmsg),         // which comes from the parent
            ("close", libc::SYS_close),
        ]);
        if cfg!(debug_assertions) {
            // The standard library's own check, in such builds, that what it closes is open.
            calls.push(("fcntl", libc::SYS_fcntl));
        }
    }
    if needs.servers {
        calls.push(("sendto", libc::SYS_sendto));
    }
    if needs.servers || needs.uplink {
        calls.push(("recvfrom", libc::SYS_recvfrom));
    }
    if needs.net {
        // A batch of datagrams at a time.
        calls.extend([("sendmsg", libc::SYS_sendmsg), ("recvmmsg", libc::SYS_recvmmsg)]);
    }
    calls
}

fn filter(needs: Needs) -> Result<BpfProgram, SandboxError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        allowed_calls(needs).into_iter().map(|(_, number)| (number, Vec::new())).collect();
    let argument =
        |index, op, value| SeccompCondition::new(index, SeccompCmpArgLen::Dword, op, value);
    let ioctls = [KVM_RUN, KVM_GET_REGS, KVM_SET_REGS, KVM_GET_SREGS, KVM_GET_VCPU_EVENTS]
        .into_iter()
        .map(|request| SeccompRule::new(vec![argument(1, SeccompCmpOp::Eq, request)?]))
        .collect::<Result<_, _>>()?;
    rules.insert(libc::SYS_ioctl, ioctls);
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        seccompiler::TargetArch::x86_64,
    )?;
    Ok(filter.try_into()?)
}
