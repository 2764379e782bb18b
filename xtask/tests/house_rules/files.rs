//! The files of the repository, as they lie in the working tree.

use std::path::{Path, PathBuf};

/// The repository's root.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this package lies in the root")
}

/// A text file.
pub(crate) struct File {
    /// Its path from the root, with slashes.
    pub path: String,
    /// What is in it.
    pub text: String,
}

/// Folders that hold what was built or found, not what was written.
const BUILT: [&str; 6] = [".git", "target", "dist", "fuzz/artifacts", "fuzz/corpus", "fuzz/target"];

/// All text files whose name ends so, in the order of their paths.
pub(crate) fn all(endings: &[&str]) -> Vec<File> {
    let mut files = Vec::new();
    collect(root(), endings, &mut files);
    files.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(!files.is_empty(), "no file ends in {endings:?}: is this the right folder?");
    files
}

/// All Rust sources.
pub(crate) fn rust_sources() -> Vec<File> {
    all(&[".rs"])
}

fn collect(folder: &Path, endings: &[&str], files: &mut Vec<File>) {
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        let relative = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
        let file_type = entry.file_type().unwrap();
        if file_type.is_dir() && !BUILT.contains(&relative.as_str()) {
            collect(&path, endings, files);
        } else if file_type.is_file() && endings.iter().any(|ending| relative.ends_with(ending)) {
            files.extend(read(&path, relative));
        }
    }
}

/// `None` if it is not text, or was just removed.
fn read(path: &PathBuf, relative: String) -> Option<File> {
    let bytes = std::fs::read(path).ok()?;
    String::from_utf8(bytes).ok().map(|text| File { path: relative, text })
}
