//! Devices of real guests: what a hostile driver may aim at, and what ends the VM.

use crate::support::{
    Ended, Folder, MEMORY_BYTES, config, directories, have_kvm, run_with, volume,
};

/// Runs `hostile` with a disk whose volume is in `folder`.
fn attack(folder: &Folder, args: &[&str]) -> Ended {
    let mut config = config("hostile", args);
    config.block = vec![volume(folder)];
    run_with(&config, folder)
}

#[test]
fn a_disk_reads_into_ram_and_nowhere_else() {
    if !have_kvm() {
        return;
    }
    let folder = Folder::new();
    let ram_end = 0x20_0000 + MEMORY_BYTES;
    // In RAM, behind the image, stack and queues: the read is done, and nothing stops the guest.
    let ended = attack(&folder, &["descriptor", "0x900000"]);
    assert_eq!(ended.code, 99, "{}", ended.messages);
    for (what, address) in [
        ("null", 0),
        ("boot page", 0x10_0000),
        ("doorbell page", 0x10_8000),
        ("gates", 0x11_0000),
        ("gate stack", 0x11_2000),
        ("GDT", 0x11_4000),
        ("IDT", 0x11_5000),
        ("TSS", 0x11_6000),
        ("syscall stub", 0x11_8000),
        ("page tables", 0x12_0000),
        ("the end of the page tables", 0x1f_fe00),
        ("across the system slot's end", 0x1f_ff00),
        ("constants", 0x20_0000),
        ("text", 0x20_1000),
        ("across the end of RAM", ram_end - 256),
        ("behind RAM", ram_end),
        ("the end of the address space", u64::MAX - 100),
    ] {
        let ended = attack(&folder, &["descriptor", &format!("{address:#x}")]);
        assert_eq!(ended.code, 127, "{what}: {}", ended.messages);
        let words = format!(
            "the guest broke the device contract: disk \"data\": queue 0: buffer {address:#x}+0x200 \
             is not in guest RAM that a device may reach"
        );
        assert!(ended.messages.contains(&words), "{what}: {}", ended.messages);
    }
}

#[test]
fn a_broken_ring_ends_the_vm_and_names_device_and_rule() {
    if !have_kvm() {
        return;
    }
    let folder = Folder::new();
    for (args, words) in [
        (["loop", ""], "disk \"data\": queue 0: the chain at descriptor 0 loops"),
        (
            ["indirect", ""],
            "disk \"data\": queue 0: the chain at descriptor 0 uses an indirect table",
        ),
        (["bad-head", ""], "disk \"data\": queue 0: descriptor index 65535 in a queue of"),
        (["avail-index", "0x7fff"], "disk \"data\": queue 0: the available index is more than"),
    ] {
        let ended = attack(&folder, &args);
        assert_eq!(ended.code, 127, "{args:?}: {}", ended.messages);
        assert_eq!(ended.messages.lines().count(), 1, "{args:?}: {}", ended.messages);
        assert!(ended.messages.contains(words), "{args:?}: {}", ended.messages);
    }
}

#[test]
fn a_volume_that_cannot_be_opened_is_one_line_and_code_2() {
    if !have_kvm() {
        return;
    }
    let folder = Folder::new();
    let mut config = config("hello", &[]);
    config.block = vec![volume(&folder)];
    assert_eq!(run_with(&config, &folder).code, 0, "it is made");
    let shape = |change: &dyn Fn(&mut spec::vm::BlockConfig)| {
        let mut config = config.clone();
        change(&mut config.block[0]);
        let ended = run_with(&config, &folder);
        assert_eq!((ended.code, ended.log.as_str()), (2, ""), "{}", ended.messages);
        assert_eq!(ended.messages.lines().count(), 1, "{}", ended.messages);
        assert!(ended.messages.starts_with("vmm: volume \"data\""), "{}", ended.messages);
    };
    shape(&|disk| disk.key = spec::secret::Secret32::new([8; 32]));
    shape(&|disk| disk.size_bytes = 4095);
    shape(&|disk| disk.data_shards = 0);
    shape(&|disk| disk.nodes[1] = disk.nodes[0].clone());
    shape(&|disk| disk.nodes.truncate(5));
    // All of it lost: no empty disk in its place.
    for directory in directories(&folder) {
        std::fs::remove_dir_all(directory).expect("a directory can be removed");
    }
    shape(&|disk| disk.create = false);
    assert_eq!(run_with(&config, &folder).code, 0, "and made again only if that is asked for");
}
