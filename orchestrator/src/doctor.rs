//! `hypha doctor`: what this host can run, and what is missing.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use landlock::{ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr};
use serde_json::{Value, json};

use crate::exit_code;
use crate::launch::Installation;

/// The memory of a machine whose spec names none, in KiB.
const MACHINE_KIB: u64 = spec::deployment::MEMORY_BYTES_DEFAULT >> 10;

/// What was found out about one thing.
#[derive(Debug)]
struct Finding {
    /// What, as a JSON field.
    name: &'static str,
    /// How it is, as JSON.
    value: Value,
    /// How it is, for people.
    text: String,
    verdict: Verdict,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Good,
    /// Machines run, with less.
    Weaker,
    /// No machine runs.
    Bad,
}

/// What was found out about this host.
#[derive(Debug)]
pub struct Report {
    findings: Vec<Finding>,
}

impl Report {
    /// One JSON object with a field per finding, and `ok`: whether machines run here.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let fields =
            self.findings.iter().map(|finding| (finding.name.into(), finding.value.clone()));
        let mut object: serde_json::Map<String, Value> = fields.collect();
        object.insert("ok".into(), json!(self.is_ok()));
        Value::Object(object)
    }

    /// One line per finding, and a last one with the conclusion.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for finding in &self.findings {
            let mark = match finding.verdict {
                Verdict::Good => "ok  ",
                Verdict::Weaker => "less",
                Verdict::Bad => "NO  ",
            };
            text.push_str(&format!("{mark} {:9} {}\n", finding.name, finding.text));
        }
        text.push_str(if self.is_ok() {
            "Machines run here: hypha run examples/hello.json\n"
        } else {
            "No machine runs here until the lines marked NO are mended.\n"
        });
        text
    }

    /// 0 if machines run here, 125 if not.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        if self.is_ok() { 0 } else { exit_code::HOST_CANNOT }
    }

    fn is_ok(&self) -> bool {
        self.findings.iter().all(|finding| finding.verdict != Verdict::Bad)
    }
}

/// Looks at everything; starts the VMM once to ask it about KVM.
#[must_use]
pub fn examine() -> Report {
    let findings =
        vec![kernel(), kvm_device(), vmm(), landlock_abi(), seccomp(), io_uring(), memory()];
    Report { findings }
}

fn kernel() -> Finding {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let machine = uname.machine().to_string_lossy().into_owned();
    let verdict = if machine == "x86_64" { Verdict::Good } else { Verdict::Bad };
    let text = format!("Linux {release} on {machine}");
    Finding {
        name: "kernel",
        value: json!({"release": release, "machine": machine}),
        text,
        verdict,
    }
}

fn kvm_device() -> Finding {
    let path = Path::new("/dev/kvm");
    let opened = fs::OpenOptions::new().read(true).write(true).open(path);
    let (state, text) = match opened.map_err(|error| error.kind()) {
        Ok(_) => ("usable", "/dev/kvm can be opened".to_owned()),
        Err(io::ErrorKind::NotFound) => (
            "missing",
            "/dev/kvm is not there: load the module kvm_intel or kvm_amd and enable \
             virtualisation in the firmware"
                .to_owned(),
        ),
        Err(io::ErrorKind::PermissionDenied) => (
            "denied",
            "/dev/kvm is not permitted: sudo usermod -aG kvm $USER, then log in again".to_owned(),
        ),
        Err(kind) => ("broken", format!("/dev/kvm can't be opened: {kind}")),
    };
    let verdict = if state == "usable" { Verdict::Good } else { Verdict::Bad };
    Finding { name: "kvm", value: json!(state), text, verdict }
}

/// Asks the VMM: it knows the kind of KVM.
fn vmm() -> Finding {
    let finding =
        |value: Value, text: String, verdict| Finding { name: "vmm", value, text, verdict };
    let path = match Installation::find() {
        Ok(installation) => installation.vmm,
        Err(error) => return finding(json!(null), error.to_string(), Verdict::Bad),
    };
    let shown = path.display();
    if !path.is_file() {
        let text = format!("{shown} is not there: put it beside hypha, or set HYPHA_VMM");
        return finding(json!(null), text, Verdict::Bad);
    }
    let answer = match Command::new(&path).arg("--probe").output() {
        Ok(output) if output.status.success() => output,
        Ok(output) => {
            let said = crate::lines::visible(output.stderr.trim_ascii());
            let text = format!("{shown} --probe failed: {said}");
            return finding(json!(null), text, Verdict::Bad);
        }
        Err(error) => {
            return finding(json!(null), format!("{shown}: {error}"), Verdict::Bad);
        }
    };
    let Ok(probe) = serde_json::from_slice::<Value>(&answer.stdout) else {
        let text = format!("{shown} --probe gave no JSON: is it a vmm of this version?");
        return finding(json!(null), text, Verdict::Bad);
    };
    let text = match probe.get("kvm").and_then(Value::as_str) {
        Some("hardware") => "KVM in hardware: everything runs at full speed".to_owned(),
        Some("software") => "KVM without hardware virtualisation: unikernels run at full speed, \
                             an exit costs about 30 µs"
            .to_owned(),
        _ => format!("answers {probe}"),
    };
    finding(probe, text, Verdict::Good)
}

fn landlock_abi() -> Finding {
    let abi = [1, 2, 3, 4].into_iter().take_while(|abi| has_landlock(*abi)).last();
    let (text, verdict) = match abi {
        Some(4) => ("landlock ABI 4 or newer: the VMM confines files and network", Verdict::Good),
        Some(_) => ("landlock without network rules: seccomp closes the network", Verdict::Good),
        None => ("no landlock: Linux 5.13 or newer with lsm=landlock has it", Verdict::Bad),
    };
    Finding { name: "landlock", value: json!(abi.unwrap_or(0)), text: text.to_owned(), verdict }
}

/// Whether the kernel knows what came with this version of landlock's interface; nothing is
/// confined by asking.
fn has_landlock(abi: u32) -> bool {
    let rules = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    let known = match abi {
        1 => rules.handle_access(AccessFs::from_all(ABI::V1)),
        2 => rules.handle_access(AccessFs::from_all(ABI::V2)),
        3 => rules.handle_access(AccessFs::from_all(ABI::V3)),
        _ => rules.handle_access(AccessNet::from_all(ABI::V4)),
    };
    known.is_ok()
}

fn seccomp() -> Finding {
    let actions = fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    let has_it = actions.split_whitespace().any(|action| action == "kill_process");
    let (text, verdict) = if has_it {
        ("seccomp filters: the VMM confines its system calls", Verdict::Good)
    } else {
        ("seccomp filters are missing", Verdict::Bad)
    };
    Finding { name: "seccomp", value: json!(has_it), text: text.to_owned(), verdict }
}

fn io_uring() -> Finding {
    let sysctl = fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
    let symbols = fs::read_to_string("/proc/kallsyms").unwrap_or_default();
    let built_in = symbols.lines().any(|line| line.ends_with("sys_io_uring_setup"));
    let (state, text) = match sysctl.as_deref().map(str::trim) {
        Ok("0") => ("enabled", "io_uring is enabled"),
        Ok(_) => ("disabled", "io_uring is disabled (kernel.io_uring_disabled): not needed"),
        // The switch came with Linux 6.6.
        Err(_) if built_in => ("enabled", "io_uring is there"),
        Err(_) => ("missing", "io_uring is missing: not needed"),
    };
    let verdict = if state == "enabled" { Verdict::Good } else { Verdict::Weaker };
    Finding { name: "io_uring", value: json!(state), text: text.to_owned(), verdict }
}

fn memory() -> Finding {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = meminfo.lines().find_map(|line| {
        line.strip_prefix("MemAvailable:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    });
    let available_kib = available.unwrap_or(0);
    let machines = available_kib / MACHINE_KIB;
    let text = format!(
        "{} MiB available: room for {machines} machines of {} MiB, or {} of 8 MiB",
        available_kib >> 10,
        MACHINE_KIB >> 10,
        available_kib / (8 << 10),
    );
    let verdict = if available_kib >= 16 << 10 { Verdict::Good } else { Verdict::Bad };
    Finding { name: "memory", value: json!({"available_kib": available_kib}), text, verdict }
}
