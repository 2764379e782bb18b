//! Tools that nobody here wrote.

use std::fs;
use std::path::Path;

use storage_vdev::files::sim::Rng;

use crate::server::{SIZE_BYTES, Server, folder, has, output, run};

/// A file of random and of empty parts, as large as the volumes here.
fn sample(path: &Path, seed: u64) {
    println!("sample of seed {seed}");
    let mut rng = Rng::new(seed);
    let mut bytes = vec![0; SIZE_BYTES as usize / 8];
    for chunk in bytes.chunks_mut(1 << 20) {
        if rng.below(3) > 0 {
            rng.fill(chunk);
        }
    }
    fs::write(path, &bytes).unwrap();
    fs::File::options().write(true).open(path).unwrap().set_len(SIZE_BYTES).unwrap();
}

#[test]
fn nbdinfo_finds_every_feature() {
    if !has("nbdinfo") {
        return;
    }
    let folder = folder();
    let server = Server::nbd(folder.path(), &[]);
    let info = run("nbdinfo", &["--json", &server.uri()]);
    let wanted = [
        r#""protocol": "newstyle-fixed""#,
        r#""structured": true"#,
        r#""export-size": 268435456"#,
        r#""base:allocation""#,
        r#""can_multi_conn": true"#,
        r#""can_flush": true"#,
        r#""can_fua": true"#,
        r#""can_trim": true"#,
        r#""can_zero": true"#,
        r#""can_fast_zero": true"#,
        r#""can_df": true"#,
        r#""can_cache": true"#,
        r#""is_read_only": false"#,
        r#""block_minimum": 512"#,
        r#""block_preferred": 4096"#,
        r#""block_maximum": 33554432"#,
    ];
    for line in wanted {
        // The names of the block sizes changed between releases.
        let other = line.replace("block_", "block_size_");
        assert!(info.contains(line) || info.contains(&other), "{line} is not in {info}");
    }
    let list = run("nbdinfo", &["--list", "--json", &server.uri()]);
    assert!(list.contains(r#""export-name": "frozen""#), "{list}");
    let frozen = run("nbdinfo", &["--json", &server.uri_of("frozen")]);
    assert!(frozen.contains(r#""is_read_only": true"#), "{frozen}");
    assert!(!output("nbdinfo", &[&server.uri_of("no-such")]).status.success());
}

#[test]
fn nbdcopy_brings_back_what_it_took_in() {
    if !has("nbdcopy") {
        return;
    }
    let folder = folder();
    let server = Server::nbd(folder.path(), &[]);
    let (source, back) = (folder.path().join("source"), folder.path().join("back"));
    sample(&source, 1);
    run("nbdcopy", &["--flush", &source.to_string_lossy(), &server.uri()]);
    run("nbdcopy", &[&server.uri_of("frozen"), &back.to_string_lossy()]);
    assert!(fs::read(&source).unwrap() == fs::read(&back).unwrap(), "the copies differ");
    // And after another opening.
    server.end();
    let server = Server::nbd(folder.path(), &[]);
    run("nbdcopy", &[&server.uri(), &back.to_string_lossy()]);
    assert!(fs::read(&source).unwrap() == fs::read(&back).unwrap(), "the volume lost something");
}

#[test]
fn qemu_img_converts_and_compares() {
    if !has("qemu-img") {
        return;
    }
    let folder = folder();
    let server = Server::nbd(folder.path(), &[]);
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let (source, image) = (path("source"), path("image.qcow2"));
    sample(Path::new(&source), 2);
    run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &source, &server.uri()]);
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &source, &server.uri()]);
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &server.uri_of("frozen"), &image]);
    run("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &source, &image]);
    let map = run("qemu-img", &["map", "--output=json", "-f", "raw", &server.uri()]);
    assert!(map.contains("\"start\": 0"), "{map}");
}

#[test]
fn qemu_io_finds_its_patterns_again() {
    if !has("qemu-io") {
        return;
    }
    let folder = folder();
    let server = Server::nbd(folder.path(), &[]);
    let io = |commands: &[&str]| {
        let uri = server.uri();
        let mut arguments = vec!["-f", "raw", "-t", "none"];
        commands.iter().for_each(|command| arguments.extend(["-c", command]));
        arguments.push(&uri);
        let said = run("qemu-io", &arguments);
        let wrong = ["verification failed", "failed:", "invalid", "not found"];
        assert!(!wrong.iter().any(|word| said.contains(word)), "{said}");
    };
    io(&[
        "write -P 0x11 0 1M",
        "write -f -P 0x22 64k 64k",
        "flush",
        "read -P 0x11 0 64k",
        "read -P 0x22 64k 64k",
        "read -P 0x11 128k 896k",
        // Sectors, and misaligned bytes that qemu makes whole by reading first.
        "write -P 0x33 512 512",
        "read -P 0x11 0 512",
        "read -P 0x33 512 512",
        "read -P 0x11 1024 3072",
        "write -P 0x44 4097 3",
        "read -P 0x11 4096 1",
        "read -P 0x44 4097 3",
        "read -P 0x11 4100 92",
    ]);
    io(&[
        "discard 64k 64k",
        "read -P 0 64k 64k",
        "write -z 128k 64k",
        "read -P 0 128k 64k",
        "write -z -u 192k 64k",
        "read -P 0 192k 64k",
        "write -z -f 4608 512",
        "read -P 0 4608 512",
        "read -P 0x11 5120 512",
        "write -P 0x55 255M 1M",
        "aio_write -P 0x66 2M 1M",
        "aio_write -P 0x77 3M 1M",
        "aio_flush",
        "read -P 0x66 2M 1M",
        "read -P 0x77 3M 1M",
        "write -P 0x88 8M 24M",
        "read -P 0x88 8M 24M",
    ]);
    server.end();
    let server = Server::nbd(folder.path(), &[]);
    let uri = server.uri();
    let again = run("qemu-io", &["-f", "raw", "-c", "read -P 0x88 8M 24M", &uri]);
    assert!(!again.contains("verification failed"), "{again}");
    let frozen = server.uri_of("frozen");
    assert!(!output("qemu-io", &["-f", "raw", "-c", "write 0 512", &frozen]).status.success());
}

#[test]
fn fio_verifies_what_it_wrote_and_trimmed() {
    if !has("fio") {
        return;
    }
    if !run("fio", &["--enghelp"]).contains("nbd") {
        println!("SKIPPED: this fio has no nbd engine");
        return;
    }
    let folder = folder();
    let server = Server::nbd(folder.path(), &[]);
    let uri = format!("--uri={}", server.uri());
    let common =
        ["--name=verify", "--ioengine=nbd", "--size=64M", "--randseed=7", "--group_reporting"];
    let random = [
        "--rw=randwrite",
        "--bsrange=512-64k",
        "--blockalign=512",
        "--iodepth=32",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--do_verify=1",
        "--verify_state_save=0",
        "--fsync=64",
    ];
    run("fio", &[&common[..], &random, &[&uri]].concat());
    let trims = [
        "--rw=randtrimwrite",
        "--bs=4k",
        "--iodepth=16",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--do_verify=1",
        "--verify_state_save=0",
        "--io_size=16M",
    ];
    run("fio", &[&common[..], &trims, &[&uri]].concat());
}
