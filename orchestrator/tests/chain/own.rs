//! The chain in the state itself, keys through the command line, and a signer elsewhere.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use hypha_chain::key::Key;
use serde_json::Value;

use crate::world::{CHAIN_ID, World, stderr, tokens, units};

/// `hypha` with a state in this folder.
fn hypha(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hypha"));
    command.env("HYPHA_STATE", folder.join("state")).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(folder: &Path, arguments: &[&str]) -> Output {
    hypha(folder, arguments).output().unwrap()
}

fn json(folder: &Path, arguments: &[&str]) -> Value {
    let output = hypha(folder, arguments).arg("--json").output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_chain_of_ones_own_is_used_served_or_not() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let none = run(folder, &["farm", "create"]);
    assert_eq!(none.status.code(), Some(3), "{}", stderr(&none));
    assert!(stderr(&none).contains("hypha chain init"), "{}", stderr(&none));
    let init = ["chain", "init", "--cadence", "1", "--tokens", "500"];
    assert!(run(folder, &init).status.success());
    assert_eq!(json(folder, &["farm", "create"])["farm"], 1);
    assert_eq!(json(folder, &["chain", "status"])["chain_id"], 7411);

    let serve = ["chain", "serve", "--listen", "127.0.0.1:0", "--json"];
    let mut server = hypha(folder, &serve).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(json(folder, &["farm", "create"])["farm"], 1);
    assert_eq!(units(&json(folder, &["balance"])["tokens"]), tokens("500"));
    // Asked without its address, the chain is found where it is served, and is not made again.
    for arguments in [["chain", "status"].as_slice(), &["chain", "init", "--cadence", "1"]] {
        assert_eq!(json(folder, arguments)["chain_id"], 7411);
    }
    let second = run(folder, &serve);
    assert_eq!(second.status.code(), Some(4), "{}", stderr(&second));
    assert!(stderr(&second).contains("another hypha has"), "{}", stderr(&second));
    server.kill().unwrap();
    server.wait().unwrap();
    // Whoever is killed leaves its address behind, and the file is free again.
    assert_eq!(json(folder, &["farm", "status"])["farm"], 1);
}

#[test]
fn what_is_damaged_in_the_state_is_named_and_everything_else_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    assert!(run(folder, &["chain", "init", "--cadence", "1"]).status.success());
    assert!(run(folder, &["key", "create", "good"]).status.success());
    let state = folder.join("state");
    fs::write(state.join("keys/bad"), b"HYPHAKEY and no more").unwrap();
    fs::set_permissions(state.join("keys/bad"), fs::Permissions::from_mode(0o600)).unwrap();
    let show = run(folder, &["key", "show"]);
    assert_eq!(show.status.code(), Some(2), "{}", stderr(&show));
    let shown = String::from_utf8(show.stdout.clone()).unwrap();
    assert!(shown.contains("keys/good") && !shown.contains("keys/bad"), "{shown}");
    assert!(stderr(&show).contains("keys/bad"), "{}", stderr(&show));
    let refused = |code: i32, words: &str| {
        let output = run(folder, &["balance"]);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert!(text.lines().count() == 1 && text.contains(words), "{text}");
    };
    let seed = state.join("chain/producer/key");
    fs::set_permissions(&seed, fs::Permissions::from_mode(0o644)).unwrap();
    refused(2, "chmod 600");
    fs::set_permissions(&seed, fs::Permissions::from_mode(0o600)).unwrap();
    let kept = fs::read(&seed).unwrap();
    fs::write(&seed, [7; 32]).unwrap();
    refused(1, "blocks.redb can't be used: this seed is not the one");
    fs::write(&seed, kept).unwrap();
    fs::write(state.join("chain/blocks.redb"), b"no database").unwrap();
    refused(1, "blocks.redb can't be used");
    fs::write(state.join("chain/chain.json"), b"{").unwrap();
    refused(2, "chain.json: EOF");
}

#[test]
fn the_directory_says_where_the_contracts_are() {
    let world = World::new();
    world.account("farmer", "10");
    let contracts = world.path("directory.json");
    let text = serde_json::json!({"version": 1, "chain_id": CHAIN_ID,
        "directory": world.suite.directory});
    fs::write(&contracts, text.to_string()).unwrap();
    let create = ["farm", "create", "--key", "farmer", "--at", &world.url, "--confirmations", "3"];
    let mut command = world.command(&create);
    let output = command.arg("--contracts").arg(&contracts).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(world.json(&["farm", "status", "--key", "farmer"])["farm"], 1);
}

#[test]
fn two_runs_never_send_for_one_account_at_once() {
    let world = World::new();
    world.account("farmer", "10");
    world.make_blocks(false);
    let create = ["farm", "create", "--key", "farmer"];
    let mut first = world.command(&create).args(world.at()).spawn().unwrap();
    let mut lines = BufReader::new(first.stderr.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("transaction 0x"));
    let second = world.hypha(&create);
    assert_eq!(second.status.code(), Some(4), "{}", stderr(&second));
    assert!(stderr(&second).contains("another hypha sends"), "{}", stderr(&second));
    world.make_blocks(true);
    assert!(first.wait().unwrap().success());
}

#[test]
fn keys_go_in_and_out_and_are_never_printed() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let (digits, back) = (folder.join("digits"), folder.join("back"));
    let secret = "46".repeat(32);
    fs::write(&digits, format!("0x{secret}\n")).unwrap();
    let file = |path: &PathBuf| path.display().to_string();
    let import = run(folder, &["key", "import", "farm", &file(&digits), "--json"]);
    let export = run(folder, &["key", "export", "farm", &file(&back), "--json"]);
    let show = run(folder, &["key", "show", "--json"]);
    for output in [&import, &export, &show] {
        assert!(output.status.success(), "{}", stderr(output));
        let said = [output.stdout.as_slice(), &output.stderr].concat();
        let said = String::from_utf8(said).unwrap();
        assert!(!said.contains(&secret), "{said}");
        assert!(said.contains("0x9d8a62f656a8d1615c1294fd71e9cfb3e4855a4f"), "{said}");
    }
    assert_eq!(fs::read_to_string(&back).unwrap(), format!("{secret}\n"));
    assert_eq!(fs::metadata(&back).unwrap().permissions().mode() & 0o777, 0o600);
    for (arguments, code) in [
        (["key", "export", "farm", &file(&back)].as_slice(), 4),
        (&["key", "import", "farm", &file(&digits)], 4),
        (&["key", "create", "farm"], 4),
        (&["key", "create", "Farm"], 2),
        (&["key", "create", "new", "--passphrase-file", "/nonexistent"], 2),
        (&["key", "show", "nobody"], 3),
        (&["key", "import", "new", "/dev/null"], 2),
    ] {
        let output = run(folder, arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", stderr(&output));
        assert_eq!(stderr(&output).lines().count(), 1, "{arguments:?}");
    }
}

/// A signer that asks the test: a program between two pipes with names.
fn signer(world: &World) -> (PathBuf, Key) {
    let (questions, answers) = (world.path("questions"), world.path("answers"));
    for pipe in [&questions, &answers] {
        assert!(Command::new("mkfifo").arg(pipe).status().unwrap().success());
    }
    let program = world.path("signer");
    let text = format!(
        "#!/bin/sh\nexec 3>{} 4<{}\nwhile read -r line; do echo \"$line\" >&3; read -r answer <&4; \
         echo \"$answer\"; done\n",
        questions.display(),
        answers.display()
    );
    fs::write(&program, text).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let key = || Key::from_bytes(&[0x77; 32]).unwrap();
    std::thread::spawn(move || {
        // One run after the other; the thread ends with the test.
        loop {
            let asked = BufReader::new(File::open(&questions).unwrap());
            let mut answers = File::options().write(true).open(&answers).unwrap();
            for line in asked.lines() {
                let line = line.unwrap();
                let reply = match line.strip_prefix("sign ") {
                    Some(digest) => {
                        let signature = key().sign(&digest.parse().unwrap()).to_bytes();
                        format!("signature {}", hypha_chain::Bytes::from(signature.to_vec()))
                    }
                    None => format!("address {:#x}", key().address()),
                };
                writeln!(answers, "{reply}").unwrap();
            }
        }
    });
    (program, key())
}

#[test]
fn a_signer_elsewhere_makes_farms_and_reservations_too() {
    let world = World::new();
    world.account("farmer", "10000");
    world.json(&["farm", "create", "--key", "farmer"]);
    let claims = ["--cores", "1", "--memory", "1GiB", "--key", "farmer"];
    world.json(&[["node", "register"].as_slice(), &claims].concat());
    world.json(&[["node", "offer", "1", "--price", "0.36"].as_slice(), &claims].concat());
    let (program, key) = signer(&world);
    let to = key.address().to_string();
    world.json(&["transfer", &to, "10", "--key", "farmer"]);
    let program = program.display().to_string();
    let reserve = ["reserve", "1", "--hours", "1", "--yes", "--signer", &program];
    assert_eq!(units(&world.json(&reserve)["deposit"]), tokens("0.36"));
    assert_eq!(world.balance(key.address()), tokens("9.64"));
    assert_eq!(world.json(&["reservations", "--signer", &program])["reservation"], 1);
}

/// Reads from a terminal until it has said this.
fn until(terminal: &mut impl Read, words: &str, said: &mut String) {
    let from = said.len();
    let mut byte = [0];
    while !said[from..].contains(words) {
        assert_eq!(terminal.read(&mut byte).unwrap(), 1, "the terminal ends after {said:?}");
        said.push(char::from(byte[0]));
    }
}

#[test]
fn a_passphrase_is_typed_at_a_terminal_that_does_not_show_it() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let line = format!("{} key create farm --passphrase", env!("CARGO_BIN_EXE_hypha"));
    // Of bsdutils, which every Debian has: runs a command on a terminal of its own.
    let mut script = Command::new("script");
    script.args(["-qec", &line, "/dev/null"]).env("HYPHA_STATE", &state);
    let mut child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut keyboard, mut screen) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut said = String::new();
    for prompt in ["new passphrase: ", "once more: "] {
        until(&mut screen, prompt, &mut said);
        // A slip, a backspace.
        keyboard.write_all(b"correct horsf\x7fe\n").unwrap();
    }
    screen.read_to_string(&mut said).unwrap();
    assert!(child.wait().unwrap().success(), "{said}");
    assert!(said.contains("(passphrase)") && !said.contains("correct"), "{said:?}");

    // The same words open it, inherited under a number.
    let back = folder.path().join("back");
    let line = format!(
        "{} key export farm {} --passphrase-fd 3 3<<end\ncorrect horse\nend\n",
        env!("CARGO_BIN_EXE_hypha"),
        back.display()
    );
    let output = Command::new("sh").args(["-c", &line]).env("HYPHA_STATE", &state).output();
    assert!(output.unwrap().status.success());
    assert_eq!(fs::read_to_string(&back).unwrap().trim().len(), 64);
}
