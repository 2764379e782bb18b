//! A guest that breaks a rule ends its own VM, with one line that names the rule, and nothing else.

use crate::support::{have_kvm, run};

/// The attack must crash the guest (126) with these words in the report.
fn crashes(args: &[&str], words: &str) {
    let ended = run("hostile", args);
    let first = ended.messages.lines().next().unwrap_or_default().to_owned();
    assert_eq!(ended.code, 126, "{args:?}: {}", ended.messages);
    assert!(first.starts_with("vmm: guest crashed: "), "{args:?}: {first}");
    assert!(first.contains(words), "{args:?}: expected {words:?} in {first:?}");
}

#[test]
fn what_is_not_the_guests_faults() {
    if !have_kvm() {
        return;
    }
    // The system slot's supervisor pages, its page tables, the gaps, null, behind RAM, non-canonical.
    for address in [
        "0x0",
        "0xff8",
        "0x110000",
        "0x112ff8",
        "0x114000",
        "0x115000",
        "0x116004",
        "0x120000",
        "0x121ff8",
        "0x1ff000",
        "0x10c000",
        "0x8000000000",
        "0xffff800000000000",
        "0xa00000",
    ] {
        for attack in ["read", "write", "execute"] {
            crashes(&[attack, address], "#PF page fault");
        }
    }
    crashes(&["read", "0x0000900000000000"], "#GP general protection");
}

#[test]
fn what_is_read_only_cannot_be_written() {
    if !have_kvm() {
        return;
    }
    crashes(&["write", "0x100000"], "#PF page fault, error code 0x7, address 0x100000");
    crashes(&["write", "0x101000"], "#PF page fault, error code 0x7");
    crashes(&["write", "0x200000"], "#PF page fault, error code 0x7, address 0x200000");
    crashes(&["write-text"], "#PF page fault, error code 0x7");
    crashes(&["write", "0x118000"], "#PF page fault");
}

#[test]
fn what_is_data_cannot_be_executed() {
    if !have_kvm() {
        return;
    }
    crashes(&["execute-data"], "#PF page fault, error code 0x15");
    for page in ["0x100000", "0x108000", "0x109000", "0x10a000", "0x200000"] {
        crashes(&["execute", page], "#PF page fault, error code 0x15");
    }
}

#[test]
fn privileged_instructions_fault() {
    if !have_kvm() {
        return;
    }
    for instruction in ["hlt", "cli", "in", "out", "rdmsr", "mov-cr3", "lgdt"] {
        crashes(&[instruction], "#GP general protection");
    }
    for instruction in ["segment", "kernel-segment"] {
        crashes(&[instruction], "#GP general protection");
    }
    crashes(&["ring0"], "#GP general protection");
    crashes(&["ud2"], "#UD invalid opcode");
    crashes(&["divide"], "#DE divide error");
    crashes(&["syscall"], "system call: this guest kernel serves none");
    for interrupt in ["int3", "int80", "int14"] {
        crashes(&[interrupt], "#");
    }
}

#[test]
fn a_stack_that_overflows_or_is_nowhere_is_a_plain_fault() {
    if !have_kvm() {
        return;
    }
    crashes(&["overflow-stack"], "#PF page fault, error code 0x6");
    crashes(&["bad-stack"], "#UD invalid opcode");
}

#[test]
fn a_panic_shows_message_registers_and_a_symbolised_backtrace() {
    if !have_kvm() {
        return;
    }
    let ended = run("hostile", &["panic"]);
    assert_eq!(ended.code, 126);
    assert!(ended.log.contains("on purpose"), "{}", ended.log);
    assert!(ended.log.contains("hostile.rs"), "{}", ended.log);
    for words in ["guest crashed: panic", "rip 000000000020", "hostile::attack+0x", "_start+0x"] {
        assert!(ended.messages.contains(words), "{words}: {}", ended.messages);
    }
}

#[test]
fn a_broken_call_ends_the_vm_as_a_broken_contract() {
    if !have_kvm() {
        return;
    }
    for (args, words) in [
        (["call", "0"], "doorbell: unknown call 0"),
        (["call", "7"], "doorbell: unknown call 7"),
        (["call", "ffffffff"], "doorbell: unknown call 4294967295"),
        (["log", "2001"], "doorbell: a log of 8193 bytes, of at most 8192"),
        (["log", "ffffffff"], "doorbell: a log of 4294967295 bytes"),
    ] {
        let ended = run("hostile", &args);
        assert_eq!(ended.code, 127, "{args:?}: {}", ended.messages);
        assert_eq!(ended.messages.lines().count(), 1);
        assert!(ended.messages.contains(words), "{args:?}: {}", ended.messages);
    }
}
