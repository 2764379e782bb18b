//! What the tests that run real guests share: finding the VMM and the images, and running one.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::io::{FdFlags, fcntl_setfd};
use spec::secret::Secret32;
use spec::vm::{BlockConfig, NodeConfig, VmConfig, VolumePolicy};

/// Whether this machine can run guests. Says so loudly if not; with `HYPHA_REQUIRE_KVM=1` it fails.
pub(crate) fn have_kvm() -> bool {
    let refusal = std::fs::File::options().read(true).write(true).open("/dev/kvm").err();
    match refusal {
        None => true,
        Some(error) if std::env::var_os("HYPHA_REQUIRE_KVM").is_some_and(|v| v == "1") => {
            panic!("/dev/kvm: {error}")
        }
        Some(error) => {
            println!("SKIPPED: /dev/kvm: {error}");
            false
        }
    }
}

/// The `vmm` under test: `$HYPHA_VMM`, or the one that cargo built.
pub(crate) fn vmm_path() -> PathBuf {
    std::env::var_os("HYPHA_VMM")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_vmm")), PathBuf::from)
}

/// A guest image: from `$HYPHA_IMAGES`, or built now.
pub(crate) fn image(name: &str) -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let folder = std::env::var_os("HYPHA_IMAGES").map(PathBuf::from);
    folder.unwrap_or_else(|| BUILT.get_or_init(build_images).clone()).join(name)
}

fn build_images() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let target = root.join("target/guest");
    let status = Command::new(env!("CARGO"))
        .current_dir(root)
        .args(["build", "--quiet", "-p", "guest-kernel", "--features", "image", "--bins"])
        .args(["--profile", "guest", "--target-dir"])
        .arg(&target)
        .env("RUSTFLAGS", "-C force-frame-pointers=yes")
        .status()
        .expect("cargo runs");
    assert!(status.success(), "the guest images do not build");
    target.join("guest")
}

/// How a guest ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// The exit code of the VMM, -1 if a signal ended it.
    pub(crate) code: i32,
    /// The guest's log.
    pub(crate) log: String,
    /// The VMM's messages.
    pub(crate) messages: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            log: String::from_utf8_lossy(&output.stdout).into_owned(),
            messages: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// The command that runs `image` with 8 MiB of memory and these arguments.
pub(crate) fn vmm(image_name: &str, args: &[&str]) -> Command {
    let mut command = Command::new(vmm_path());
    command.args(["--memory", "8MiB"]).arg(image(image_name)).args(args);
    command.stdin(Stdio::null());
    command
}

/// Runs `image` to its end.
pub(crate) fn run(image_name: &str, args: &[&str]) -> Ended {
    vmm(image_name, args).output().expect("vmm starts").into()
}

/// Starts `image` with both streams piped.
pub(crate) fn spawn(image_name: &str, args: &[&str]) -> Child {
    vmm(image_name, args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("vmm starts")
}

/// Guest memory in the tests of devices.
pub(crate) const MEMORY_BYTES: u64 = 8 << 20;

/// A configuration without devices.
pub(crate) fn config(image_name: &str, args: &[&str]) -> VmConfig {
    VmConfig {
        version: spec::vm::VERSION,
        name: image_name.to_owned(),
        image: image(image_name),
        memory_bytes: MEMORY_BYTES,
        args: args.iter().map(|&arg| arg.to_owned()).collect(),
        env: Vec::new(),
        block: Vec::new(),
        net: Vec::new(),
        die_with_parent: true,
        keeper_fd: None,
    }
}

/// A folder of this test's own, removed with it.
#[derive(Debug)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("hypha-kvm-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder can be made");
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            println!("{}: {error}", self.0.display());
        }
    }
}

/// The directories of [`volume`].
pub(crate) fn directories(folder: &Folder) -> Vec<PathBuf> {
    (0..6).map(|n| folder.path().join(format!("shard-{n}"))).collect()
}

/// A 4+2 volume of 16 MiB in `folder`.
pub(crate) fn volume(folder: &Folder) -> BlockConfig {
    BlockConfig {
        name: "data".to_owned(),
        key: Secret32::new([7; 32]),
        nodes: directories(folder).into_iter().map(NodeConfig::directory).collect(),
        data_shards: 4,
        parity_shards: 2,
        size_bytes: 16 << 20,
        policy: VolumePolicy::Quorum,
        read_only: false,
        create: true,
        remote: None,
    }
}

/// The command that runs `config`. The file must live until the command has been spawned.
pub(crate) fn vmm_with(config: &VmConfig, folder: &Folder) -> (Command, File) {
    let path = folder.path().join(format!("{}.json", config.name));
    let text = serde_json::to_string(config).expect("a configuration is JSON");
    std::fs::write(&path, text).expect("a file can be written");
    let file = File::open(&path).expect("it can be read");
    fcntl_setfd(&file, FdFlags::empty()).expect("a descriptor can be inherited");
    let mut command = Command::new(vmm_path());
    command.args(["--config-fd", &file.as_raw_fd().to_string()]).stdin(Stdio::null());
    (command, file)
}

/// Runs `config` to its end.
pub(crate) fn run_with(config: &VmConfig, folder: &Folder) -> Ended {
    let (mut command, _file) = vmm_with(config, folder);
    command.output().expect("vmm starts").into()
}
