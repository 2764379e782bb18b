//! Rules about documents and about what may not be written down anywhere.

use crate::assert_none;
use crate::files::{all, root};

/// The targets of a Markdown file's links, with the numbers of their lines.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut links = Vec::new();
    let mut in_code = false;
    for (index, line) in text.lines().enumerate() {
        in_code ^= line.trim_start().starts_with("```");
        if in_code {
            continue;
        }
        for (at, _) in line.match_indices("](") {
            let target = line.get(at + 2..).and_then(|rest| rest.split(')').next());
            links.extend(target.map(|target| (index + 1, target.to_owned())));
        }
    }
    links
}

#[test]
fn every_link_of_a_document_leads_somewhere() {
    let mut broken = Vec::new();
    for file in all(&[".md"]) {
        let folder = root().join(&file.path);
        let folder = folder.parent().unwrap();
        for (number, link) in links(&file.text) {
            let path = link.split('#').next().unwrap_or_default();
            if link.contains("://") || link.starts_with("mailto:") || path.is_empty() {
                continue;
            }
            if !folder.join(path).exists() {
                broken.push(format!("{}:{number}: {link}", file.path));
            }
        }
    }
    assert_none(&broken, "link to a file that exists, from the folder of the document");
}

#[test]
fn no_file_names_a_place_of_one_machine() {
    // In pieces, so that this file does not break its own rule.
    let places = [
        concat!("/wo", "rk/"),
        concat!("/ro", "ot/"),
        concat!("/ho", "me/"),
        concat!("/tmp/", "target-"),
        concat!("/Us", "ers/"),
    ];
    let mut broken = Vec::new();
    for file in all(&[".rs", ".toml", ".md", ".json", ".sh", ".lock", ".ci/run", ".yml"]) {
        for (index, line) in file.text.lines().enumerate() {
            if places.iter().any(|place| line.contains(place)) {
                broken.push(format!("{}:{}: {}", file.path, index + 1, line.trim()));
            }
        }
    }
    assert_none(&broken, "a path from the repository's root, $HOME, or a temporary folder");
}

#[test]
fn links_in_code_are_no_links() {
    let text = "[a](b.md) and [c](d.md#e)\n```\n[f](g)\n```\n";
    assert_eq!(links(text), [(1, "b.md".to_owned()), (1, "d.md#e".to_owned())]);
}
