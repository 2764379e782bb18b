//! Other people's tunnels between two namespaces.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use mesh_lab::Lab;

use crate::is_installed;
use crate::ping::Ping;
use crate::stream::Path;

/// A program that is measured beside ours.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Peer {
    /// Debian's wireguard-go.
    WireguardGo,
    /// boringtun-cli of crates.io.
    Boringtun,
    /// Debian's yggdrasil.
    Yggdrasil,
}

/// A tunnel that stands.
pub(crate) struct Tunnel {
    pub(crate) name: String,
    pub(crate) path: Path,
}

impl Peer {
    pub(crate) const ALL: [Self; 3] = [Self::WireguardGo, Self::Boringtun, Self::Yggdrasil];

    /// Sets it up between two namespaces.
    pub(crate) fn tunnel(self) -> Result<Tunnel, String> {
        match self {
            Self::WireguardGo => wireguard("wireguard-go", &["-f"]),
            Self::Boringtun => {
                wireguard("boringtun-cli", &["-f", "--disable-drop-privileges", "--threads", "1"])
            }
            Self::Yggdrasil => yggdrasil(),
        }
    }
}

fn text<E: std::fmt::Display>(error: E) -> String {
    error.to_string()
}

/// A userspace WireGuard, configured with `wg`.
fn wireguard(program: &str, options: &[&str]) -> Result<Tunnel, String> {
    if !is_installed(program) || !is_installed("wg") {
        return Err("not installed".to_owned());
    }
    let mut lab = Lab::new()?;
    lab.namespace("a").map_err(text)?;
    lab.namespace("b").map_err(text)?;
    let wire = lab.wire("a", "b").map_err(text)?;
    let mut keys = Vec::new();
    for end in ["a", "b"] {
        let private = lab.run(end, "wg", &["genkey"]).map_err(text)?;
        let file = lab.folder().join(format!("{end}.key"));
        std::fs::write(&file, &private).map_err(text)?;
        let mut child = lab.command(end, "wg");
        let child = child.arg("pubkey").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = child.spawn().map_err(text)?;
        child.stdin.take().ok_or("no input")?.write_all(private.as_bytes()).map_err(text)?;
        let public = child.wait_with_output().map_err(text)?.stdout;
        keys.push((file, String::from_utf8_lossy(&public).trim().to_owned()));
    }
    let mut ends = Vec::new();
    for (index, end) in ["a", "b"].into_iter().enumerate() {
        // The sockets that configure these programs lie in one folder for all namespaces, under the
        // device's name: two programs with devices of one name would configure each other.
        let initials: String = program.chars().take(4).collect();
        let device = format!("hy{initials}{end}");
        let mut command = lab.command(end, program);
        command.args(options).arg(&device).stdout(Stdio::null()).stderr(Stdio::null());
        command.env("WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD", "1");
        ends.push(lab.start(&mut command).map_err(text)?);
        std::thread::sleep(Duration::from_millis(700));
        let (file, _) = &keys[index];
        let (_, other) = &keys[1 - index];
        let endpoint = format!("{}:51820", wire.addresses[1 - index]);
        let file = file.to_string_lossy().into_owned();
        let set = [
            "set",
            device.as_str(),
            "listen-port",
            "51820",
            "private-key",
            &file,
            "peer",
            other,
            "endpoint",
            &endpoint,
            "allowed-ips",
            "10.99.0.0/24",
        ];
        lab.run(end, "wg", &set).map_err(text)?;
        let address = format!("10.99.0.{}/24", index + 1);
        lab.run(end, "ip", &["addr", "add", &address, "dev", &device]).map_err(text)?;
        lab.run(end, "ip", &["link", "set", &device, "mtu", "1420", "up"]).map_err(text)?;
    }
    let path = Path { lab, to: "10.99.0.2".to_owned(), ends, middle: Vec::new() };
    answers(&path, 20)?;
    Ok(Tunnel { name: format!("{program}, direct"), path })
}

/// Yggdrasil over TCP.
fn yggdrasil() -> Result<Tunnel, String> {
    if !is_installed("yggdrasil") {
        return Err("not installed".to_owned());
    }
    let mut lab = Lab::new()?;
    lab.namespace("a").map_err(text)?;
    lab.namespace("b").map_err(text)?;
    let wire = lab.wire("a", "b").map_err(text)?;
    let mut ends = Vec::new();
    let mut address = String::new();
    for (index, end) in ["b", "a"].into_iter().enumerate() {
        let config =
            Command::new("yggdrasil").args(["-genconf", "-json"]).output().map_err(text)?;
        let mut config: serde_json::Value = serde_json::from_slice(&config.stdout).map_err(text)?;
        config["IfName"] = format!("ygg{end}").into();
        config["AdminListen"] = "none".into();
        config["MulticastInterfaces"] = serde_json::json!([]);
        if index == 0 {
            config["Listen"] = serde_json::json!(["tls://0.0.0.0:9001"]);
        } else {
            config["Peers"] = serde_json::json!([format!("tls://{}:9001", wire.addresses[1])]);
        }
        let file = lab.folder().join(format!("ygg-{end}.json"));
        std::fs::write(&file, config.to_string()).map_err(text)?;
        let file = file.to_string_lossy().into_owned();
        let mut command = lab.command(end, "yggdrasil");
        command.args(["-useconffile", &file]).stdout(Stdio::null()).stderr(Stdio::null());
        ends.push(lab.start(&mut command).map_err(text)?);
        if index == 0 {
            let said = Command::new("yggdrasil").args(["-useconffile", &file, "-address"]).output();
            address = String::from_utf8_lossy(&said.map_err(text)?.stdout).trim().to_owned();
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    let path = Path { lab, to: address, ends, middle: Vec::new() };
    answers(&path, 100)?;
    Ok(Tunnel { name: "yggdrasil, direct".to_owned(), path })
}

/// Waits until the other end answers, for so many tenths of a second.
fn answers(path: &Path, tenths: u32) -> Result<(), String> {
    for _ in 0..tenths {
        let pinged = Ping::start(&path.lab, "a", &path.to, "0.1", 1).finish();
        if !pinged.at.is_empty() {
            return Ok(());
        }
    }
    Err(format!("{} does not answer through the tunnel", path.to))
}
