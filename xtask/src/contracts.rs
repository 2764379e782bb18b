//! `cargo xtask contracts`: the contracts' bytecode, compiled again and compared.
//!
//! `contracts/out` is checked in, so that building Hypha needs no Solidity compiler; `LOCK` beside it
//! holds the hashes of all that went in and came out, in the format of `sha256sum`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::failure::Failure;
use crate::packages;
use crate::repository::Repository;
use crate::task::Task;

/// The compiler, from npm, where it is one WebAssembly module without native parts.
const SOLC: &str = "0.8.37";

/// Compiles all contracts. `write` replaces what is checked in; otherwise a difference is an error.
pub(crate) fn run(repository: &Repository, write: bool) -> Result<(), Failure> {
    let folder = repository.root().join("contracts");
    let compiler = compiler(repository)?;
    let sources = sources(&folder)?;
    let output = compile(repository, &compiler, &standard_input(&folder, &sources)?)?;
    let files = artifacts(&output)?;
    let out = folder.join("out");
    if write {
        std::fs::create_dir_all(&out).map_err(Failure::file(&out))?;
        for (name, text) in &files {
            let path = out.join(name);
            std::fs::write(&path, text).map_err(Failure::file(&path))?;
        }
    }
    let mut locked: Vec<String> = vec!["settings.json".to_owned()];
    locked.extend(sources.keys().cloned());
    locked.extend(files.keys().map(|name| format!("out/{name}")));
    let different = different(&out, &files)?;
    if !different.is_empty() {
        return Err(Failure::Checks {
            summary: format!(
                "contracts/out is not what the sources compile to: {}; \
                 run `cargo xtask contracts --write` and look at the difference",
                different.join(", ")
            ),
        });
    }
    let lock = lock(repository, &locked)?;
    let path = folder.join("LOCK");
    if write {
        std::fs::write(&path, &lock).map_err(Failure::file(&path))?;
    }
    if std::fs::read_to_string(&path).map_err(Failure::file(&path))? != lock {
        return Err(Failure::Checks {
            summary: "contracts/LOCK is out of date: run `cargo xtask contracts --write`"
                .to_owned(),
        });
    }
    let count = files.len();
    println!("{count} contracts, compiled with solc {SOLC}: as checked in");
    Ok(())
}

/// The compiler's module, installed under the target folder if it is missing.
fn compiler(repository: &Repository) -> Result<PathBuf, Failure> {
    packages::install(repository, &packages::NODE)?;
    let folder = repository.work_folder(&format!("solc-{SOLC}"))?;
    let script = folder.join("node_modules/solc/index.js");
    if !script.is_file() {
        println!("installing solc {SOLC} from npm (once)");
        packages::npm(repository, &folder, &format!("solc@{SOLC}"))?;
    }
    Ok(script)
}

/// The Solidity files by their paths from `contracts`: those of the suite, and those of its tests.
fn sources(folder: &Path) -> Result<BTreeMap<String, String>, Failure> {
    let mut sources = BTreeMap::new();
    for part in ["src", "test"] {
        let from = folder.join(part);
        for entry in std::fs::read_dir(&from).map_err(Failure::file(&from))? {
            let path = entry.map_err(Failure::file(&from))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.ends_with(".sol") {
                let text = std::fs::read_to_string(&path).map_err(Failure::file(&path))?;
                sources.insert(format!("{part}/{name}"), text);
            }
        }
    }
    Ok(sources)
}

fn standard_input(folder: &Path, sources: &BTreeMap<String, String>) -> Result<Value, Failure> {
    let path = folder.join("settings.json");
    let text = std::fs::read_to_string(&path).map_err(Failure::file(&path))?;
    let mut settings: Value = serde_json::from_str(&text).map_err(|error| Failure::Output {
        from: "contracts/settings.json",
        reason: error.to_string(),
    })?;
    if let Some(settings) = settings.as_object_mut() {
        let selection = json!({ "*": { "*": ["abi", "evm.bytecode.object"] } });
        settings.insert("outputSelection".to_owned(), selection);
    }
    let sources: Map<String, Value> =
        sources.iter().map(|(name, text)| (name.clone(), json!({ "content": text }))).collect();
    Ok(json!({ "language": "Solidity", "sources": sources, "settings": settings }))
}

fn compile(repository: &Repository, compiler: &Path, input: &Value) -> Result<Value, Failure> {
    let folder = repository.work_folder("contracts")?;
    let path = folder.join("input.json");
    std::fs::write(&path, input.to_string()).map_err(Failure::file(&path))?;
    let script = "const solc = require(process.argv[1]); const fs = require('fs');\
        process.stdout.write(solc.compile(fs.readFileSync(process.argv[2], 'utf8')));";
    let (compiler, path) = (compiler.to_string_lossy(), path.to_string_lossy());
    let text = Task::new(repository, "node", ["-e", script, &compiler, &path]).output()?;
    let output: Value = serde_json::from_str(&text)
        .map_err(|error| Failure::Output { from: "solc", reason: error.to_string() })?;
    let messages: Vec<&str> = output["errors"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|error| error["formattedMessage"].as_str())
        .collect();
    if messages.is_empty() {
        return Ok(output);
    }
    // Warnings too: the sources are kept free of them.
    Err(Failure::Checks { summary: messages.join("\n") })
}

/// For each contract that can be deployed, its file: ABI and bytecode.
fn artifacts(output: &Value) -> Result<BTreeMap<String, String>, Failure> {
    let mut files = BTreeMap::new();
    let contracts = output["contracts"].as_object().into_iter().flatten();
    for (name, contract) in contracts.filter_map(|(_, file)| file.as_object()).flatten() {
        let bytecode = contract["evm"]["bytecode"]["object"].as_str().unwrap_or_default();
        let abi = &contract["abi"];
        let is_deployed = abi
            .as_array()
            .into_iter()
            .flatten()
            .any(|item| item["type"] == "function" || item["type"] == "constructor");
        if bytecode.is_empty() || !is_deployed {
            continue;
        }
        let artifact = json!({ "abi": abi, "bytecode": format!("0x{bytecode}") });
        let text = serde_json::to_string_pretty(&artifact)
            .map_err(|error| Failure::Output { from: "solc", reason: error.to_string() })?;
        files.insert(format!("{name}.json"), text + "\n");
    }
    if files.is_empty() {
        return Err(Failure::Output { from: "solc", reason: "no contracts came out".to_owned() });
    }
    Ok(files)
}

/// The artifacts that are not checked in as they should be, and files that should not be there.
fn different(out: &Path, files: &BTreeMap<String, String>) -> Result<Vec<String>, Failure> {
    let mut different: Vec<String> = files
        .iter()
        .filter(|(name, text)| std::fs::read_to_string(out.join(name)).ok().as_ref() != Some(text))
        .map(|(name, _)| name.clone())
        .collect();
    for entry in std::fs::read_dir(out).map_err(Failure::file(out))? {
        let name = entry.map_err(Failure::file(out))?.file_name().to_string_lossy().into_owned();
        if !files.contains_key(&name) {
            different.push(format!("{name} (of no contract)"));
        }
    }
    Ok(different)
}

fn lock(repository: &Repository, files: &[String]) -> Result<String, Failure> {
    let script = "cd contracts && sha256sum -- \"$@\"";
    let arguments = ["-c", script, "sha256sum"];
    let all = arguments.into_iter().chain(files.iter().map(String::as_str));
    let sums = Task::new(repository, "sh", all).output()?;
    Ok(format!("# solc {SOLC}; made by `cargo xtask contracts --write`\n{sums}"))
}
