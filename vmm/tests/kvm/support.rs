//! What the tests that run real guests share: finding the VMM and the images, and running one.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;

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
