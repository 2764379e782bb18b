//! Where things lie.

use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// The checkout that this program was built from, and its target folder.
#[derive(Debug, Clone)]
pub(crate) struct Repository {
    root: PathBuf,
    target: PathBuf,
}

impl Repository {
    /// Finds the root above the working directory: the folder with both `xtask` and `Cargo.lock`.
    pub(crate) fn find() -> Result<Self, Failure> {
        let here = std::env::current_dir().map_err(Failure::file("."))?;
        let is_root =
            |folder: &&Path| folder.join("xtask").is_dir() && folder.join("Cargo.lock").is_file();
        let root = here.ancestors().find(is_root).ok_or_else(|| Failure::Output {
            from: "xtask",
            reason: format!("{} is not inside a checkout of Hypha", here.display()),
        })?;
        let target = match std::env::var_os("CARGO_TARGET_DIR") {
            Some(folder) => root.join(folder),
            None => root.join("target"),
        };
        Ok(Self { root: root.to_owned(), target })
    }

    /// The repository's root.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Cargo's target folder.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// A folder of this program's own inside the target folder; made if it is not there.
    pub(crate) fn work_folder(&self, name: &str) -> Result<PathBuf, Failure> {
        let folder = self.target.join("xtask").join(name);
        std::fs::create_dir_all(&folder).map_err(Failure::file(&folder))?;
        Ok(folder)
    }
}
