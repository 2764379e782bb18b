//! The `vmm` process of one machine.

use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};

use mesh_node::uplinks::CardEnds;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::{FdFlags, fcntl_setfd, ioctl_fionbio};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use zeroize::Zeroizing;

use crate::clock::Clock;
use crate::disk::{Courier, DiskLines};
use crate::launch::Prepared;
use crate::lines::Lines;
use crate::state;
use crate::supervisor::Exit;

/// How much of a stream is read at once, so that no machine keeps the others waiting.
const READ_BYTES: usize = 16 << 10;

/// Room for a configuration: it holds keys, and a buffer that grows leaves copies behind.
const CONFIG_BYTES: usize = 256 << 10;

/// One of the two streams of a VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    /// Standard output: the guest's log.
    Guest,
    /// Standard error: the VMM's own messages.
    Vmm,
}

/// How a VMM is started.
pub(super) struct Vmm {
    /// The executable.
    pub(super) path: PathBuf,
    /// The state directory, where it keeps what it learned about the host.
    pub(super) state: PathBuf,
}

/// The process of one machine, or the place for it.
pub(super) struct Process {
    prepared: Prepared,
    running: Option<Running>,
}

struct Running {
    child: Child,
    pidfd: OwnedFd,
    guest: Pipe,
    vmm: Pipe,
    clock: Clock,
    guest_wrote: bool,
    /// The VMM sends the descriptors of its VM here, and here they stay, unread, as long as it
    /// runs: so the process ends at once, and the VM is torn down when this is dropped.
    _keeper: UnixStream,
    /// Who fetches new sockets for its disks.
    couriers: Vec<Courier>,
    /// How long the guest's first byte took; taken by whoever tells the user.
    cold_start_ms: Option<f64>,
}

impl Process {
    pub(super) fn new(prepared: Prepared) -> Self {
        Self { prepared, running: None }
    }

    pub(super) fn name(&self) -> &str {
        &self.prepared.config.name
    }

    /// The uplink of its card.
    pub(super) fn uplink(&self) -> Option<&CardEnds> {
        self.prepared.uplink.as_ref()
    }

    /// It will not be started again: the mesh node sees that its card is gone.
    pub(super) fn let_go(&mut self) {
        self.prepared.uplink = None;
    }

    /// Starts the VMM and returns its process ID.
    pub(super) fn start(&mut self, vmm: &Vmm) -> io::Result<u32> {
        let (keeper, theirs) = UnixStream::pair()?;
        self.prepared.config.keeper_fd = Some(theirs.as_raw_fd());
        let mut disks = Vec::new();
        for (disk, block) in self.prepared.disks.iter().zip(&mut self.prepared.config.block) {
            disks.push(disk.connect(block)?);
        }
        let config = self.config_file()?;
        let mut command = Command::new(&vmm.path);
        command
            .arg("--config-fd")
            .arg(config.as_raw_fd().to_string())
            // What is in our environment is none of its business.
            .env_clear()
            .env("HYPHA_STATE", &vmm.state)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A Ctrl-C is for us: we ask the VMMs to end in good order.
            .process_group(0);
        let clock = Clock::start();
        let mut child = {
            let sockets = self.prepared.sockets.iter().map(AsFd::as_fd);
            let lines = disks.iter().flat_map(DiskLines::inherited);
            let uplink = self.prepared.uplink.iter().map(|ends| ends.card.as_fd());
            let own = [config.as_fd(), theirs.as_fd()].into_iter().chain(uplink);
            let _inherited = Inherited::new(sockets.chain(lines).chain(own))?;
            command.spawn()?
        };
        let pid = child.id();
        match watch(&mut child) {
            Ok((pidfd, stdout, stderr)) => {
                self.running = Some(Running {
                    child,
                    pidfd,
                    guest: Pipe::new(OwnedFd::from(stdout)),
                    vmm: Pipe::new(OwnedFd::from(stderr)),
                    clock,
                    guest_wrote: false,
                    _keeper: keeper,
                    couriers: disks.into_iter().filter_map(DiskLines::into_courier).collect(),
                    cold_start_ms: None,
                });
                Ok(pid)
            }
            Err(error) => {
                // Nobody would ever hear of its end.
                child.kill()?;
                child.wait()?;
                Err(error)
            }
        }
    }

    /// The configuration in a sealed file that has no name.
    fn config_file(&self) -> io::Result<OwnedFd> {
        let mut json = Zeroizing::new(Vec::with_capacity(CONFIG_BYTES));
        serde_json::to_writer(&mut *json, &self.prepared.config)?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let mut file = std::fs::File::from(memfd_create("vm-config", flags)?);
        file.write_all(&json)?;
        file.rewind()?;
        let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
        fcntl_add_seals(&file, seals)?;
        Ok(file.into())
    }

    /// What to wait for.
    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.running.iter().flat_map(|running| {
            let pipes = [&running.guest, &running.vmm];
            let readers = pipes.into_iter().filter_map(|pipe| pipe.reader.as_ref());
            let couriers = running.couriers.iter().filter_map(Courier::fd);
            readers.map(AsFd::as_fd).chain([running.pidfd.as_fd()]).chain(couriers)
        })
    }

    /// Fetches the sockets that its disks ask for.
    pub(super) fn serve_couriers(&mut self, now_ns: u64) {
        for courier in self.running.iter_mut().flat_map(|running| &mut running.couriers) {
            courier.serve(now_ns);
        }
    }

    /// When [`Process::serve_couriers`] has something to do.
    pub(super) fn deadline_ns(&self) -> Option<u64> {
        let couriers = self.running.iter().flat_map(|running| &running.couriers);
        couriers.filter_map(Courier::deadline_ns).min()
    }

    /// Reads one piece of a stream; whether there may be more.
    pub(super) fn read(&mut self, stream: Stream, line: impl FnMut(&str)) -> bool {
        let Some(running) = &mut self.running else { return false };
        let pipe = match stream {
            Stream::Guest => &mut running.guest,
            Stream::Vmm => &mut running.vmm,
        };
        let count = pipe.read(line);
        if count > 0 && stream == Stream::Guest && !running.guest_wrote {
            running.guest_wrote = true;
            running.cold_start_ms = Some(running.clock.now_ns() as f64 / 1e6);
        }
        count > 0
    }

    /// Takes note that the machine runs or ran, so its volumes exist: should all their directories
    /// be lost, the next start is an error and no empty disk.
    pub(super) fn note_volumes_made(&mut self) {
        let blocks = self.prepared.config.block.iter_mut().zip(&self.prepared.disks);
        for (block, disk) in blocks.filter(|(block, _)| block.create) {
            match state::note_volume_made(&disk.folder) {
                Ok(()) => block.create = false,
                Err(error) => tracing::warn!(volume = block.name, "noting that it exists: {error}"),
            }
        }
    }

    /// From the start of the process to the guest's first byte; told once per start.
    pub(super) fn take_cold_start_ms(&mut self) -> Option<f64> {
        self.running.as_mut()?.cold_start_ms.take()
    }

    /// How the process ended, once it has.
    pub(super) fn try_wait(&mut self) -> Option<Exit> {
        let status = self.running.as_mut()?.child.try_wait();
        let status = status.unwrap_or_else(|error| {
            // Only a second wait for the same process fails; the process is gone either way.
            tracing::error!(%error, "waiting for a process");
            Some(std::process::ExitStatus::default())
        })?;
        Some(match (status.code(), status.signal()) {
            (Some(code), _) => Exit::Code(code),
            (None, signal) => Exit::Signal(signal.unwrap_or(0)),
        })
    }

    /// Forgets a process that has ended; hands out the lines that it did not finish.
    pub(super) fn finish(&mut self, mut line: impl FnMut(Stream, &str)) {
        if let Some(mut running) = self.running.take() {
            running.guest.lines.finish(|text| line(Stream::Guest, text));
            running.vmm.lines.finish(|text| line(Stream::Vmm, text));
        }
    }

    /// Sends a signal to the process if there is one.
    pub(super) fn signal(&self, signal: Signal) {
        let Some(running) = &self.running else { return };
        if let Err(error) = pidfd_send_signal(&running.pidfd, signal) {
            tracing::debug!(%error, workload = self.name(), "the process is gone already");
        }
    }
}

type Watched = (OwnedFd, ChildStdout, ChildStderr);

/// What there is to wait for in a fresh child.
fn watch(child: &mut Child) -> io::Result<Watched> {
    let pid = Pid::from_child(child);
    // The child was not waited for, so its process ID can't have passed to another process.
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let missing = || io::Error::other("the child has no pipe");
    let stdout = child.stdout.take().ok_or_else(missing)?;
    let stderr = child.stderr.take().ok_or_else(missing)?;
    ioctl_fionbio(&stdout, true)?;
    ioctl_fionbio(&stderr, true)?;
    Ok((pidfd, stdout, stderr))
}

/// One of the two streams of a running VMM.
struct Pipe {
    /// Gone once the stream has ended.
    reader: Option<std::fs::File>,
    lines: Lines,
}

impl Pipe {
    fn new(end: OwnedFd) -> Self {
        Self { reader: Some(end.into()), lines: Lines::default() }
    }

    /// Reads one piece; returns how many bytes there were.
    fn read(&mut self, line: impl FnMut(&str)) -> usize {
        let Some(reader) = &mut self.reader else { return 0 };
        let mut bytes = [0; READ_BYTES];
        let count = match reader.read(&mut bytes) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return 0,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return 0,
            Err(_) => 0,
        };
        if count == 0 {
            self.reader = None;
        }
        self.lines.push(bytes.get(..count).unwrap_or_default(), line);
        count
    }
}

/// Descriptors that the next child inherits under their own numbers. Everything else here is
/// close-on-exec, and no other thread starts processes.
struct Inherited<'a>(Vec<BorrowedFd<'a>>);

impl<'a> Inherited<'a> {
    fn new(fds: impl Iterator<Item = BorrowedFd<'a>>) -> io::Result<Self> {
        let inherited = Self(fds.collect());
        for fd in &inherited.0 {
            fcntl_setfd(fd, FdFlags::empty())?;
        }
        Ok(inherited)
    }
}

impl Drop for Inherited<'_> {
    fn drop(&mut self) {
        for fd in &self.0 {
            // It can't fail for an open descriptor; if it did, a later child would hold one more.
            if let Err(error) = fcntl_setfd(fd, FdFlags::CLOEXEC) {
                tracing::error!(%error, "a descriptor stays inheritable");
            }
        }
    }
}
