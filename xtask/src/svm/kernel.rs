//! Debian's kernel and modules for the emulated machine: downloaded and unpacked, never installed.

use std::path::{Path, PathBuf};

use crate::failure::Failure;
use crate::packages;
use crate::repository::Repository;
use crate::task::Task;

/// The modules that make `/dev/kvm`, in the order of loading.
const MODULES: [&str; 3] = ["irqbypass", "kvm", "kvm-amd"];

/// A kernel image, its KVM modules, and a static busybox.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// The bootable image.
    pub image: PathBuf,
    /// Name and file of each module, uncompressed, in the order of loading.
    pub modules: Vec<(&'static str, PathBuf)>,
    /// The shell and tools of the first program.
    pub busybox: PathBuf,
}

impl Kernel {
    /// Fetches what is not there yet.
    pub(crate) fn fetch(repository: &Repository) -> Result<Self, Failure> {
        let folder = repository.work_folder("debian")?;
        let kernel = folder.join("kernel");
        if find(&kernel, "vmlinuz-").is_none() {
            println!("fetching Debian's cloud kernel");
            packages::unpack(repository, &package_name(repository)?, &kernel)?;
        }
        let busybox = folder.join("busybox");
        if find(&busybox, "busybox").is_none() {
            packages::unpack(repository, "busybox-static", &busybox)?;
        }
        let found = |folder: &Path, name: &str| {
            find(folder, name).ok_or_else(|| Failure::Output {
                from: "the unpacked packages",
                reason: format!("no {name} in {}", folder.display()),
            })
        };
        let mut modules = Vec::new();
        for name in MODULES {
            let module = found(&kernel, &format!("{name}.ko"))?;
            modules.push((name, uncompressed(repository, module)?));
        }
        let busybox = found(&busybox.join("bin"), "busybox")?;
        Ok(Self { image: found(&kernel.join("boot"), "vmlinuz-")?, modules, busybox })
    }
}

/// The package with the kernel itself: what `linux-image-cloud-amd64` depends on.
fn package_name(repository: &Repository) -> Result<String, Failure> {
    let query = || {
        let arguments = ["depends", "linux-image-cloud-amd64"];
        let output = Task::new(repository, "apt-cache", arguments).output()?;
        let name = output.lines().find_map(|line| line.trim().strip_prefix("Depends: linux-image"));
        Ok(name.map(|rest| format!("linux-image{rest}")))
    };
    if let Some(name) = query()? {
        return Ok(name);
    }
    let line = "sudo apt-get update".to_owned();
    let missing = || Failure::Install { missing: "package lists with a kernel".to_owned(), line };
    Task::new(repository, "apt-get", ["update", "-qq"]).run().ok();
    query()?.ok_or_else(missing)
}

/// The first file below `folder`, in the order of names, whose name starts with `prefix`.
fn find(folder: &Path, prefix: &str) -> Option<PathBuf> {
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).collect();
    entries.sort();
    let named = |path: &&PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))
            && path.is_file()
    };
    let here = entries.iter().find(named).cloned();
    here.or_else(|| {
        let folders = entries.iter().filter(|path| path.is_dir() && !path.is_symlink());
        folders.into_iter().find_map(|path| find(path, prefix))
    })
}

/// Debian 12 ships modules as they are, later releases compressed.
fn uncompressed(repository: &Repository, module: PathBuf) -> Result<PathBuf, Failure> {
    let unpacker = match module.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return Ok(module),
    };
    let plain = module.with_extension("");
    let script = format!("{unpacker} -dc \"$1\" > \"$2\"");
    let files = [module.to_string_lossy(), plain.to_string_lossy()];
    let arguments = ["-c", &script, unpacker, &files[0], &files[1]];
    Task::new(repository, "sh", arguments).run()?;
    Ok(plain)
}
