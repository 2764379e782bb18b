//! `cargo xtask svm`: the KVM integration tests inside QEMU's emulated AMD-V.
//!
//! The test programs are the very files that `cargo test` runs on this machine. They go, with the
//! libraries that they need and the `dist` folder, into the first file system of a Debian cloud
//! kernel; its first program (`svm/init.sh`) loads KVM and runs them one after the other. What
//! they print comes out of the machine's second serial port.
//!
//! Inside, `HYPHA_DIST`, `HYPHA_VMM` and `HYPHA_IMAGES` lead to the `dist` folder and its parts,
//! and `HYPHA_REQUIRE_KVM` is 1, so that a test that finds no KVM fails there. A package's own
//! programs (`CARGO_BIN_EXE_*`) and `examples/` lie at the same paths as outside.

mod cpio;
mod kernel;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use cpio::Archive;
use kernel::Kernel;

use crate::dist::{self, Dist, Executable, MESSAGES};
use crate::failure::Failure;
use crate::packages;
use crate::repository::Repository;
use crate::tally::{self, Tally};
use crate::task::{self, Task};

/// Fetches Debian's kernel and busybox where they are not there yet.
///
/// # Errors
/// They can't be downloaded.
pub(crate) fn fetch_kernel(repository: &Repository) -> Result<(), Failure> {
    Kernel::fetch(repository).map(|_| ())
}

/// The tests of the command that start VMs and need nothing but KVM. Its others (the mesh wants
/// iproute2's namespaces; the chain and the proofs have no VM and take minutes of plain work, ten
/// times as long in an emulator) would be skipped there or prove nothing new.
const WITH_MACHINES: [&str; 3] = ["hypha", "machines", "volumes"];

/// All of the VMM, which is what differs there, and of the command what it needs to start VMs.
fn is_wanted(program: &Executable) -> bool {
    match program.package.as_str() {
        "vmm" => true,
        "orchestrator" if program.is_test => {
            program.kind == "test" && WITH_MACHINES.contains(&program.name.as_str())
        }
        "orchestrator" => true,
        _ => false,
    }
}

/// How long the whole machine may run.
const LIMIT: Duration = Duration::from_mins(10);

/// What ran inside the machine.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// The counts of all test programs.
    pub tally: Tally,
    /// What went wrong, a line each.
    pub troubles: Vec<String>,
}

impl Report {
    /// Prints the counts; an error if a test failed or something went wrong.
    pub(crate) fn into_result(self) -> Result<(), Failure> {
        println!("\n{}", self.tally);
        if self.tally.failed == 0 && self.troubles.is_empty() {
            return Ok(());
        }
        Err(Failure::Checks { summary: format!("svm: {}", self.failure_summary()) })
    }

    /// What went wrong, in a line.
    pub(crate) fn failure_summary(&self) -> String {
        let failed = self.tally.failed;
        let tests = (failed > 0).then(|| format!("{failed} tests failed"));
        let parts: Vec<String> = tests.into_iter().chain(self.troubles.iter().cloned()).collect();
        parts.join("; ")
    }
}

/// Runs the tests inside the machine, those whose name contains `filter` if there is one.
pub(crate) fn run(repository: &Repository, filter: Option<&str>) -> Result<Report, Failure> {
    run_with(repository, &dist::build_for_tests(repository)?, filter)
}

/// The same, with a `dist` folder that is already built.
pub(crate) fn run_with(
    repository: &Repository,
    dist: &Dist,
    filter: Option<&str>,
) -> Result<Report, Failure> {
    packages::install(repository, &[packages::QEMU, packages::BINUTILS, packages::STRACE])?;
    let kernel = Kernel::fetch(repository)?;
    // The whole workspace, although two packages are wanted: so they are the same files, with the
    // same features, as the ones that the tests outside ran.
    let arguments = ["test", "--workspace", "--no-run", MESSAGES];
    let built = dist::executables(Task::cargo(repository, arguments))?;
    let mut built: Vec<Executable> = built.into_iter().filter(is_wanted).collect();
    built.sort_by(|a, b| (&a.package, &a.kind, &a.name).cmp(&(&b.package, &b.kind, &b.name)));
    let folder = repository.work_folder("svm")?;
    let archive = pack(repository, dist, &kernel, &built, filter)?;
    let initramfs = folder.join("initramfs.cpio");
    std::fs::write(&initramfs, &archive).map_err(Failure::file(&initramfs))?;
    println!("starting the emulated machine ({} MiB of programs)", archive.len() >> 20);
    let console = folder.join("console.log");
    let machine = Machine::start(&kernel, &initramfs, &console)?;
    let log = folder.join("tests.log");
    let mut report = machine.watch(&log)?;
    if report.tally == Tally::default() && report.troubles.is_empty() {
        report.troubles.push("not one test ran".to_owned());
    }
    if !report.troubles.is_empty() {
        println!("--- the machine's console, {}", console.display());
        let text = std::fs::read(&console).map_err(Failure::file(&console))?;
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        println!("{}", lines.get(lines.len().saturating_sub(40)..).unwrap_or(&lines).join("\n"));
    }
    Ok(report)
}

/// Packs the machine's first file system.
fn pack(
    repository: &Repository,
    dist: &Dist,
    kernel: &Kernel,
    built: &[Executable],
    filter: Option<&str>,
) -> Result<Vec<u8>, Failure> {
    let mut archive = Archive::default();
    for folder in ["/proc", "/sys", "/tmp", "/run", "/root", "/sbin", "/usr/bin", "/usr/sbin"] {
        archive.folder(folder);
    }
    archive.device("/dev/console", (5, 1));
    archive.file("/init", include_bytes!("svm/init.sh"));
    archive.file("/etc/hostname", b"emulated\n");
    archive.file("/etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n");
    archive.copy("/bin/busybox", &kernel.busybox)?;
    for (name, module) in &kernel.modules {
        archive.copy(&format!("/modules/{name}.ko"), module)?;
    }
    copy_folder(&mut archive, "/dist", dist.folder())?;
    let examples = repository.root().join("examples");
    if examples.is_dir() {
        copy_folder(&mut archive, &examples.to_string_lossy(), &examples)?;
    }
    let mut list = String::new();
    let mut libraries = BTreeSet::new();
    if let Some(tool) = &task::find_in_path("strace") {
        libraries.extend(needed_libraries(repository, tool)?);
        archive.copy("/usr/bin/strace", tool)?;
    }
    for program in built {
        libraries.extend(needed_libraries(repository, &program.path)?);
        let stripped = strip(repository, &program.path)?;
        if !program.is_test {
            archive.copy(&program.path.to_string_lossy(), &stripped)?;
            continue;
        }
        let Executable { package, name, kind, .. } = program;
        let name = format!("{package}/{kind}/{name}");
        archive.copy(&format!("/tests/{name}"), &stripped)?;
        let folder = repository.root().join(package);
        archive.folder(&folder.to_string_lossy());
        list.push_str(&format!("{name} {} /tests/{name}\n", folder.display()));
    }
    for library in libraries {
        archive.copy(&library.to_string_lossy(), &library)?;
    }
    archive.file("/tests/list", list.as_bytes());
    archive.file("/tests/environment", environment(filter).as_bytes());
    Ok(archive.finish())
}

/// The shell variables of the test programs.
fn environment(filter: Option<&str>) -> String {
    let safe = |c: &char| c.is_ascii_alphanumeric() || "_:".contains(*c);
    let filter: String = filter.unwrap_or_default().chars().filter(safe).collect();
    format!(
        "export HOME=/root PATH=/bin:/usr/bin RUST_BACKTRACE=1 HYPHA_REQUIRE_KVM=1\n\
         export HYPHA_DIST=/dist HYPHA_VMM=/dist/vmm HYPHA_IMAGES=/dist/images\n\
         FILTER={filter}\n"
    )
}

fn copy_folder(archive: &mut Archive, to: &str, from: &Path) -> Result<(), Failure> {
    archive.folder(to);
    for entry in std::fs::read_dir(from).map_err(Failure::file(from))?.flatten() {
        let path = entry.path();
        let to = format!("{to}/{}", entry.file_name().to_string_lossy());
        if path.is_dir() {
            copy_folder(archive, &to, &path)?;
        } else {
            archive.copy(&to, &path)?;
        }
    }
    Ok(())
}

/// A copy without debug information: a tenth of the size, names in backtraces stay.
fn strip(repository: &Repository, program: &Path) -> Result<PathBuf, Failure> {
    let name = program.file_name().unwrap_or_default();
    let stripped = repository.work_folder("svm/programs")?.join(name);
    let paths = [program.to_string_lossy(), stripped.to_string_lossy()];
    Task::new(repository, "strip", ["--strip-debug", "-o", &paths[1], &paths[0]]).output()?;
    Ok(stripped)
}

/// The files that the dynamic linker loads for `program`, and the linker itself.
fn needed_libraries(repository: &Repository, program: &Path) -> Result<Vec<PathBuf>, Failure> {
    let output = Task::new(repository, "ldd", [program]).output()?;
    let paths = output.lines().filter_map(|line| {
        line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from)
    });
    Ok(paths.collect())
}

/// A running emulator. It is killed when dropped: no test can leave it behind.
struct Machine {
    child: Child,
    lines: Receiver<String>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Both fail only if it has ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Machine {
    fn start(kernel: &Kernel, initramfs: &Path, console: &Path) -> Result<Self, Failure> {
        let mut command = Command::new("qemu-system-x86_64");
        command
            // Without SMAP: QEMU before 9.1 pops the frame of an `iretq` at CPL 3 with supervisor
            // rights, so under SMAP a guest's return from its upcall faults.
            .args(["-accel", "tcg", "-M", "q35", "-cpu", "max,-smap", "-m", "2048"])
            .args(["-display", "none", "-monitor", "none", "-nic", "none", "-no-reboot"])
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .args(["-serial", "stdio"])
            .arg("-kernel")
            .arg(&kernel.image)
            .arg("-initrd")
            .arg(initramfs)
            // Without no_timer_check a boot under load can panic.
            .args([
                "-append",
                "console=ttyS0 quiet panic=-1 no_timer_check tsc=nowatchdog rdinit=/init",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let started = command.spawn();
        let source = |source| Failure::Start { line: "qemu-system-x86_64 …".to_owned(), source };
        let mut child = started.map_err(source)?;
        let output = child.stdout.take();
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            let mut reader = BufReader::new(output.into_iter().next()?);
            let mut line = Vec::new();
            while reader.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                sender.send(text).ok()?;
                line.clear();
            }
            Some(())
        });
        Ok(Self { child, lines })
    }

    /// Reads what the machine says until it is done, ends, or has used its time up.
    fn watch(self, log: &Path) -> Result<Report, Failure> {
        let mut log_file = std::fs::File::create(log).map_err(Failure::file(log))?;
        let deadline = Instant::now() + LIMIT;
        let mut reading = Reading::default();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    writeln!(log_file, "{line}").map_err(Failure::file(log))?;
                    if let Some(shown) = reading.read(&line) {
                        println!("  {shown}");
                    }
                    if reading.done {
                        break;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    reading.trouble(format!("not done after {} s", LIMIT.as_secs()));
                    break;
                }
                Err(RecvTimeoutError::Disconnected) => {
                    reading.trouble("the machine ended before its tests".to_owned());
                    break;
                }
            }
        }
        println!("  all output: {}", log.display());
        Ok(reading.report)
    }
}

/// What was understood of the machine's lines so far.
#[derive(Debug, Default)]
struct Reading {
    report: Report,
    program: Option<String>,
    summary_seen: bool,
    hides: bool,
    done: bool,
}

impl Reading {
    /// Takes a line; returns what a person should see of it.
    fn read(&mut self, line: &str) -> Option<String> {
        if let Some(marker) = line.strip_prefix("@@ ") {
            return self.marker(marker);
        }
        if self.report.tally.read(line) {
            self.summary_seen = true;
            self.hides = false;
            return Some(line.to_owned());
        }
        if tally::skip_reason(line).is_some() {
            return Some(line.to_owned());
        }
        self.hides = match line {
            "successes:" => true,
            "failures:" => false,
            _ => self.hides,
        };
        let dull = line.is_empty() || line.ends_with("... ok") || line.starts_with("running ");
        (!self.hides && !dull && self.program.is_some()).then(|| line.to_owned())
    }

    fn marker(&mut self, marker: &str) -> Option<String> {
        let (word, rest) = marker.split_once(' ').unwrap_or((marker, ""));
        match word {
            "start" => {
                self.program = Some(rest.to_owned());
                self.summary_seen = false;
                return Some(rest.to_owned());
            }
            "end" => {
                let (name, status) = rest.rsplit_once(' ').unwrap_or((rest, "?"));
                // 101: libtest's own word for failed tests, which its summary has counted.
                if status != "0" && !(status == "101" && self.summary_seen) {
                    self.trouble(format!("{name} ended with status {status}"));
                }
                self.program = None;
            }
            "trouble" => self.trouble(rest.to_owned()),
            "done" => self.done = true,
            _ => {}
        }
        None
    }

    fn trouble(&mut self, what: String) {
        let during = self.program.as_ref().map(|name| format!(" (in {name})"));
        self.report.troubles.push(what + &during.unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(lines: &str) -> Reading {
        let mut reading = Reading::default();
        for line in lines.lines() {
            reading.read(line);
        }
        reading
    }

    const RESULT: &str =
        "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out";

    #[test]
    fn the_counts_of_all_programs_are_summed() {
        let reading = reading(&format!(
            "@@ start a\n{RESULT}\n@@ end a 101\n@@ start b\n{RESULT}\n@@ end b 101\n@@ done"
        ));
        assert!(reading.done && reading.report.troubles.is_empty(), "{reading:?}");
        assert_eq!(reading.report.tally.to_string(), "4 passed, 2 failed, 0 skipped");
    }

    #[test]
    fn a_program_that_dies_without_a_summary_is_a_trouble() {
        for status in ["101", "139", "143"] {
            let reading = reading(&format!("@@ start a\n@@ end a {status}\n@@ done"));
            assert_eq!(reading.report.troubles.len(), 1, "{reading:?}");
        }
    }

    #[test]
    fn the_tests_that_start_machines_are_there() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../orchestrator/tests");
        for name in WITH_MACHINES {
            let files = [format!("{name}.rs"), format!("{name}/main.rs")];
            assert!(files.iter().any(|file| folder.join(file).is_file()), "{name}");
        }
    }

    #[test]
    fn a_filter_can_not_break_out_of_the_shell_variable() {
        assert!(environment(Some("a; rm -rf /")).ends_with("FILTER=armrf\n"));
    }
}
