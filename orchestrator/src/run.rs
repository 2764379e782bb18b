//! `hypha run`: the processes of one deployment, their output, and what the [`supervisor`] decides.
//!
//! One loop on one thread waits for signals, pidfds and pipes. It must be this thread that starts
//! every VMM: the kernel ends them with the thread that started them (`die_with_parent`).
//!
//! [`supervisor`]: crate::supervisor

mod process;

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::Path;

use mesh_node::uplinks::Handover;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use spec::deployment::{Deployment, Restart, RestartPolicy};
use spec::secret::Public32;

use crate::clock::Clock;
use crate::exit_code;
use crate::launch::{self, Installation, LaunchError};
use crate::output::{Event, Output};
use crate::ports::{PortError, Ports};
use crate::state::{DeploymentState, StateError};
use crate::supervisor::{Action, Exit, Supervisor};
use process::{Process, Stream, Vmm};

/// What happens to a machine that ended, if the spec does not say: `hypha run` is for trying.
const RESTART_DEFAULT: Restart = Restart::new(RestartPolicy::Never);

/// How many reads surely empty a pipe (1 MiB at most, 16 KiB each).
const PIPE_READS_MAX: usize = 64;

/// Why a deployment did not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It could not be prepared.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// A port could not be published.
    #[error(transparent)]
    Port(#[from] PortError),
    /// The VMM is not there.
    #[error("there is no vmm at {0}: put it beside hypha, or set HYPHA_VMM to its path")]
    NoVmm(std::path::PathBuf),
    /// The host refused something that always works.
    #[error("{what}: {source}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl RunError {
    /// The exit code of `hypha run`.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Launch(LaunchError::State(StateError::Busy { .. })) => exit_code::CONFLICT,
            Self::Launch(LaunchError::Image { .. } | LaunchError::TooManyPeers { .. }) => {
                exit_code::BAD_SPEC
            }
            Self::Launch(LaunchError::Socket { source, .. })
            | Self::Port(PortError::Listen { source, .. })
                if source.kind() == io::ErrorKind::AddrInUse =>
            {
                exit_code::CONFLICT
            }
            _ => exit_code::HOST_CANNOT,
        }
    }
}

fn host(what: &'static str) -> impl FnOnce(io::Error) -> RunError {
    move |source| RunError::Host { what, source }
}

/// Runs a deployment until all its machines have ended or a signal says so; returns the exit code.
///
/// # Errors
/// It could not be started; nothing runs.
pub fn run(
    deployment: &Deployment,
    spec_folder: &Path,
    state_directory: &Path,
    output: &Output,
) -> Result<i32, RunError> {
    let installation = Installation::find().map_err(host("our own path"))?;
    if !installation.vmm.is_file() {
        return Err(RunError::NoVmm(installation.vmm));
    }
    let state = DeploymentState::open(state_directory, &deployment.name)
        .map_err(|error| RunError::Launch(error.into()))?;
    let plan = launch::plan(deployment, &state, &installation, spec_folder)?;
    let signals = watch_signals().map_err(host("signal handlers"))?;
    let published: Vec<_> =
        plan.gateways.iter().flat_map(|gateway| gateway.ports.clone()).collect();
    let ports = plan.gateways.into_iter().map(Ports::open).collect::<Result<Vec<_>, _>>()?;
    let rules =
        deployment.machines.iter().map(|machine| machine.restart.unwrap_or(RESTART_DEFAULT));
    let addresses: Vec<_> = plan
        .machines
        .iter()
        .filter_map(|machine| Some((machine.config.name.clone(), machine.identity.clone()?)))
        .collect();
    let mut runner = Runner {
        supervisor: Supervisor::new(rules),
        processes: plan.machines.into_iter().map(Process::new).collect(),
        vmm: Vmm { path: installation.vmm, state: state_directory.to_owned() },
        output,
        clock: Clock::start(),
        output_lost: false,
        node: Handover::new(state_directory.join("mesh/uplink")),
    };
    runner.show(Event::State { directory: state.root() });
    for (workload, identity) in &addresses {
        let (key, address) = (Public32(identity.key.0), identity.key.address());
        runner.show(Event::Address { workload, key, address, endpoint: identity.endpoint });
    }
    for port in &published {
        let (listen, target) = (port.listen, port.target);
        runner.show(Event::Published { workload: &port.workload, listen, target });
    }
    let code = runner.run(&signals);
    drop(ports);
    code
}

/// A stream that has a byte for every SIGINT, SIGTERM and SIGHUP.
fn watch_signals() -> io::Result<UnixStream> {
    let (reader, writer) = UnixStream::pair()?;
    reader.set_nonblocking(true)?;
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::low_level::pipe::register(signal, writer.try_clone()?)?;
    }
    Ok(reader)
}

struct Runner<'a> {
    supervisor: Supervisor,
    processes: Vec<Process>,
    vmm: Vmm,
    output: &'a Output,
    clock: Clock,
    /// Nobody reads standard output any more.
    output_lost: bool,
    /// The mesh node of this host, if one runs: it takes the cards' uplinks.
    node: Handover,
}

impl Runner<'_> {
    fn run(&mut self, mut signals: &UnixStream) -> Result<i32, RunError> {
        let actions = self.supervisor.start(self.clock.now_ns());
        self.act(actions);
        loop {
            if let Some(code) = self.supervisor.outcome() {
                return Ok(code);
            }
            self.attach();
            self.wait(signals).map_err(host("poll"))?;
            let mut bytes = [0; 16];
            let asked = signals.read(&mut bytes).is_ok_and(|count| count > 0);
            // Without a reader there is no use in going on; but it isn't a second interrupt.
            if asked || (self.output_lost && !self.supervisor.is_stopping()) {
                let actions = self.supervisor.stop(self.clock.now_ns());
                self.act(actions);
            }
            for machine in 0..self.processes.len() {
                self.serve(machine);
            }
            let actions = self.supervisor.tick(self.clock.now_ns());
            self.act(actions);
        }
    }

    /// Hands the cards to the mesh node of this host as soon as one runs.
    fn attach(&mut self) {
        let cards = self.processes.iter().filter_map(Process::uplink);
        if self.node.serve(self.clock.now_ns(), cards) {
            tracing::info!("the machines' cards were handed to the mesh node of this host");
        }
    }

    fn show(&mut self, event: Event<'_>) {
        if self.output_lost {
            return;
        }
        if let Err(error) = self.output.show(event) {
            tracing::warn!(%error, "nobody reads standard output any more; stopping");
            self.output_lost = true;
        }
    }

    /// Waits until something can be read or a deadline has passed.
    fn wait(&self, signals: &UnixStream) -> io::Result<()> {
        let mut fds = vec![PollFd::new(signals, PollFlags::IN)];
        for process in &self.processes {
            fds.extend(process.fds().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        }
        fds.extend(self.node.fd().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        let couriers = self.processes.iter().filter_map(Process::deadline_ns);
        let others = [self.supervisor.deadline_ns(), self.node.deadline_ns()];
        let timeout = couriers.chain(others.into_iter().flatten()).min().map(|at| {
            let left = std::time::Duration::from_nanos(at.saturating_sub(self.clock.now_ns()));
            Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 })
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads what a machine wrote, and takes note of its end.
    fn serve(&mut self, machine: usize) {
        self.relay(machine);
        let now_ns = self.clock.now_ns();
        let Some(process) = self.processes.get_mut(machine) else { return };
        process.serve_couriers(now_ns);
        let Some(exit) = process.try_wait() else { return };
        if !matches!(exit, Exit::Code(exit_code::BAD_SPEC | exit_code::HOST_CANNOT)) {
            process.note_volumes_made();
        }
        // What it wrote last lies in the pipes, and is not more than they hold.
        let _drained = (0..PIPE_READS_MAX).all(|_| self.relay(machine));
        self.finish(machine);
        let now_ns = self.clock.now_ns();
        self.shown(machine, |name| Event::exited(name, exit));
        let actions = self.supervisor.exited(machine, exit, now_ns);
        if actions.is_empty()
            && let Some(process) = self.processes.get_mut(machine)
        {
            process.let_go();
        }
        self.act(actions);
    }

    /// Passes one piece of each stream on; whether there may be more.
    fn relay(&mut self, machine: usize) -> bool {
        let Some(process) = self.processes.get_mut(machine) else { return false };
        let name = process.name().to_owned();
        let mut lines = Vec::new();
        let mut more = false;
        for stream in [Stream::Guest, Stream::Vmm] {
            more |= process.read(stream, |line| lines.push((stream, line.to_owned())));
        }
        if let Some(cold_start_ms) = process.take_cold_start_ms() {
            process.note_volumes_made();
            self.show(Event::FirstOutput { workload: &name, cold_start_ms });
        }
        self.show_lines(&name, &lines);
        more
    }

    fn finish(&mut self, machine: usize) {
        let Some(process) = self.processes.get_mut(machine) else { return };
        let name = process.name().to_owned();
        let mut lines = Vec::new();
        process.finish(|stream, line| lines.push((stream, line.to_owned())));
        self.show_lines(&name, &lines);
    }

    fn show_lines(&mut self, workload: &str, lines: &[(Stream, String)]) {
        for (stream, line) in lines {
            self.show(match stream {
                Stream::Guest => Event::Log { workload, line },
                Stream::Vmm => Event::Message { workload, line },
            });
        }
    }

    /// Shows an event of a machine, given its name.
    fn shown(&mut self, machine: usize, event: impl for<'a> FnOnce(&'a str) -> Event<'a>) {
        let Some(process) = self.processes.get(machine) else { return };
        let name = process.name().to_owned();
        self.show(event(&name));
    }

    fn act(&mut self, actions: Vec<Action>) {
        let mut pending = actions;
        while !pending.is_empty() {
            for action in std::mem::take(&mut pending) {
                pending.extend(self.act_once(action));
            }
        }
    }

    fn act_once(&mut self, action: Action) -> Vec<Action> {
        match action {
            Action::Start { machine, attempt } => return self.start(machine, attempt),
            Action::Announce { machine, in_ms } => {
                self.shown(machine, |workload| Event::Restarting { workload, in_ms });
            }
            Action::Terminate { machine } => {
                self.signal(machine, rustix::process::Signal::TERM);
            }
            Action::Kill { machine } => self.signal(machine, rustix::process::Signal::KILL),
        }
        Vec::new()
    }

    fn start(&mut self, machine: usize, attempt: u32) -> Vec<Action> {
        let Some(process) = self.processes.get_mut(machine) else { return Vec::new() };
        match process.start(&self.vmm) {
            Ok(pid) => {
                self.shown(machine, |workload| Event::Started { workload, pid, attempt });
                Vec::new()
            }
            Err(error) => {
                let vmm = self.vmm.path.display();
                tracing::error!(workload = process.name(), "{vmm} can't be started: {error}");
                let exit = Exit::NotStarted;
                self.shown(machine, |name| Event::exited(name, exit));
                self.supervisor.exited(machine, exit, self.clock.now_ns())
            }
        }
    }

    fn signal(&mut self, machine: usize, signal: rustix::process::Signal) {
        if let Some(process) = self.processes.get(machine) {
            process.signal(signal);
        }
    }
}
