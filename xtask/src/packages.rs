//! What a command needs besides Rust: Debian packages and cargo's own additions.

use crate::failure::Failure;
use crate::repository::Repository;
use crate::task::{Task, in_path};

/// A Debian package and how to see that it is there.
pub(crate) struct Package {
    name: &'static str,
    present: fn(&Repository) -> bool,
}

/// The C compiler, which links everything and builds ring's assembly.
pub(crate) const GCC: Package = Package { name: "gcc", present: |_| in_path("gcc") };
/// The C library with its static archive, which the binaries of `dist` are linked with.
pub(crate) const LIBC: Package = Package {
    name: "libc6-dev",
    present: |repository| {
        let found = Task::new(repository, "gcc", ["-print-file-name=libc.a"]).output();
        found.is_ok_and(|path| path.starts_with('/'))
    },
};
/// The C++ compiler, which builds libFuzzer.
pub(crate) const GPP: Package = Package { name: "g++", present: |_| in_path("g++") };
/// `strip`, for the test programs that go into the emulated machine.
pub(crate) const BINUTILS: Package = Package { name: "binutils", present: |_| in_path("strip") };
/// The tracer of system calls, with which tests see that the sandbox allows what is used.
pub(crate) const STRACE: Package = Package { name: "strace", present: |_| in_path("strace") };
/// What ISA-L is built with, a peer of the storage code: its assembler and its configuration.
pub(crate) const ISAL: [Package; 5] = [
    Package { name: "autoconf", present: |_| in_path("autoreconf") },
    Package { name: "automake", present: |_| in_path("automake") },
    Package { name: "libtool", present: |_| in_path("libtoolize") },
    Package { name: "make", present: |_| in_path("make") },
    Package { name: "nasm", present: |_| in_path("nasm") },
];
/// Servers that volumes can lie on, started by the tests of `storage-node`.
pub(crate) const STORES: [Package; 2] = [
    Package { name: "redis-server", present: |_| in_path("redis-server") },
    Package { name: "etcd-server", present: |_| in_path("etcd") },
];
/// Clients of the faces of a volume, run by the tests of `storage-node`.
pub(crate) const FACES: [Package; 5] = [
    Package { name: "qemu-utils", present: |_| in_path("qemu-img") && in_path("qemu-io") },
    Package { name: "libnbd-bin", present: |_| in_path("nbdinfo") && in_path("nbdcopy") },
    Package { name: "fio", present: |_| in_path("fio") },
    Package { name: "e2fsprogs", present: |_| in_path("mke2fs") && in_path("e2fsck") },
    Package { name: "openssl", present: |_| in_path("openssl") },
];
/// What the tests of the mesh run in namespaces of their own: `ip` and `tc`, a firewall, a load, a
/// ping, `sysctl`.
pub(crate) const NETWORK: [Package; 5] = [
    Package { name: "iproute2", present: |_| in_path("ip") && in_path("tc") },
    Package { name: "nftables", present: |_| in_path("nft") },
    Package { name: "iperf3", present: |_| in_path("iperf3") },
    Package { name: "iputils-ping", present: |_| in_path("ping") },
    Package { name: "procps", present: |_| in_path("sysctl") },
];
/// Peers of the mesh that Debian has.
pub(crate) const MESH_PEERS: [Package; 3] = [
    Package { name: "wireguard-go", present: |_| in_path("wireguard-go") },
    Package { name: "wireguard-tools", present: |_| in_path("wg") },
    Package { name: "yggdrasil", present: |_| in_path("yggdrasil") },
];
/// What the Solidity compiler runs on, and what installs it.
pub(crate) const NODE: [Package; 2] = [
    Package { name: "nodejs", present: |_| in_path("node") },
    Package { name: "npm", present: |_| in_path("npm") },
];
/// The machine emulator.
pub(crate) const QEMU: Package =
    Package { name: "qemu-system-x86", present: |_| in_path("qemu-system-x86_64") };

/// Installs those of `packages` that are missing.
///
/// # Errors
/// [`Failure::Install`] with the line to run, where we may not install.
pub(crate) fn install(repository: &Repository, packages: &[Package]) -> Result<(), Failure> {
    let missing: Vec<&str> = packages
        .iter()
        .filter(|package| !(package.present)(repository))
        .map(|package| package.name)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let by_hand = || Failure::Install {
        missing: missing.join(", "),
        line: format!("sudo apt-get install -y --no-install-recommends {}", missing.join(" ")),
    };
    let Some(prefix) = root_prefix(repository).filter(|_| in_path("apt-get")) else {
        return Err(by_hand());
    };
    println!("installing Debian packages: {}", missing.join(", "));
    let apt_get = |arguments: &[&str]| {
        let line: Vec<&str> = prefix.iter().copied().chain(arguments.iter().copied()).collect();
        let (program, rest) = line.split_first().unwrap_or((&"apt-get", &[]));
        Task::new(repository, program, rest).env("DEBIAN_FRONTEND", "noninteractive")
    };
    let mut arguments = vec!["apt-get", "install", "-qq", "-y", "--no-install-recommends"];
    arguments.extend(&missing);
    if apt_get(&arguments).run().is_ok() {
        return Ok(());
    }
    // The package lists may be missing or old.
    apt_get(&["apt-get", "update", "-qq"]).run().map_err(|_| by_hand())?;
    apt_get(&arguments).run().map_err(|_| by_hand())
}

/// What to put before a command that only root may run; `None` if there is no way.
fn root_prefix(repository: &Repository) -> Option<&'static [&'static str]> {
    if rustix::process::geteuid().is_root() {
        return Some(&["env"]);
    }
    let sudo = in_path("sudo") && Task::new(repository, "sudo", ["-n", "true"]).succeeds();
    sudo.then_some(&["sudo", "-n", "env"])
}

/// Downloads a Debian package and unpacks it under `folder`, without installing it.
pub(crate) fn unpack(
    repository: &Repository,
    package: &str,
    folder: &std::path::Path,
) -> Result<(), Failure> {
    let script = r#"
        mkdir -p "$2" && cd "$2" && rm -f ./*.deb
        apt-get download -qq "$1" || { apt-get update -qq; apt-get download -qq "$1"; } || exit 1
        dpkg -x ./*.deb . && rm -f ./*.deb"#;
    let folder = folder.to_string_lossy();
    Task::new(repository, "sh", ["-c", script, "unpack", package, &folder]).lines(|line| {
        // Written by root into a folder that apt's own user can't enter: harmless.
        if !line.contains("unsandboxed") {
            eprintln!("    {line}");
        }
    })
}

/// Installs one of cargo's additions from source, once, if it is missing.
pub(crate) fn cargo_tool(repository: &Repository, name: &str) -> Result<(), Failure> {
    cargo_program(repository, &format!("cargo-{name}"))
}

/// Installs a program of crates.io from source, once, if it is missing.
pub(crate) fn cargo_program(repository: &Repository, binary: &str) -> Result<(), Failure> {
    if in_path(binary) {
        return Ok(());
    }
    println!("installing {binary} (once, some minutes)");
    let target = repository.work_folder("tools")?;
    let target = target.to_string_lossy();
    // Its sources are compiled with the pinned toolchain, whatever a caller's flags are.
    Task::cargo(repository, ["install", binary, "--locked", "--target-dir", &target])
        .without_env("RUSTFLAGS")
        .run()?;
    std::fs::remove_dir_all(&*target).map_err(Failure::file(&*target))
}

/// Installs a package of npm in a folder, without running anything that comes with it.
pub(crate) fn npm(
    repository: &Repository,
    folder: &std::path::Path,
    package: &str,
) -> Result<(), Failure> {
    let prefix = folder.to_string_lossy();
    let quiet = ["install", "--no-audit", "--no-fund", "--ignore-scripts", "--no-save"];
    let arguments = quiet.into_iter().chain(["--prefix", &*prefix, package]);
    Task::new(repository, "npm", arguments).run()
}
