//! `hypha volume serve`: a volume for other programs, with a control socket and metrics beside it.

use std::fs;
use std::io::{self, BufReader};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use storage_node::Stop;
use storage_node::nbd::{Listener, Server, tls_config};
use storage_node::orders::{Gone, Orders};
use storage_node::vhost_user::Device;
use storage_vdev::engine::Limits;

use super::arguments::Serve;
use super::control::{self, Event, Order, Outcome};
use super::error::VolumeError;
use super::open::{New, folder, in_use, open};
use super::show::VolumeStatus;
use super::show::tell;
use crate::scrape;

/// How long a client of the control socket may be silent.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often a client hears how far its order is.
const TICK: Duration = Duration::from_millis(500);
/// The most clients of the control socket and the metrics at a time.
const CLIENTS_MAX: usize = 16;

/// Serves a volume until SIGINT or SIGTERM.
///
/// # Errors
/// It can't be opened, or can't be served there.
pub(super) fn serve(serve: &Serve) -> Result<i32, VolumeError> {
    let folder = folder(&serve.which.form, &serve.which.name)?;
    let manifest = folder.read()?;
    let Some(_lock) = folder.lock()? else { return Err(in_use(&folder)) };
    let failed = |error: &dyn std::fmt::Display| VolumeError::Serve(error.to_string());
    let listener = serve.nbd.as_deref().map(|address| listen(address, serve)).transpose()?;
    let cache_bytes = usize::try_from(serve.cache.0).unwrap_or(usize::MAX);
    let limits = Limits { cache_bytes, ..Limits::LARGE };
    let session = open(&folder, &manifest, (serve.which.opening, limits), New::No)?;
    let (orders, inbox) = Orders::new(session.volume().nodes().inner().local().waker());
    let reporter =
        Arc::new(Reporter { name: folder.name().to_owned(), orders, clients: AtomicUsize::new(0) });
    listen_control(&folder.control(), &reporter)?;
    if let Some(address) = serve.metrics {
        listen_metrics(address, &reporter)?;
    }
    let stop = stop_on_signals()?;
    let volume = session.into_volume();
    let form = &serve.which.form;
    let ready = |place: String| {
        let object = json!({"event": "serving", "volume": folder.name(), "at": place});
        tell(form, &object, || format!("volume {} is served at {place}\n", folder.name()))
    };
    match (listener, &serve.vhost_user) {
        (Some((listener, place)), _) => {
            let mut server = Server::new(vec![volume], vec![listener]);
            server.take_orders(0, inbox);
            let name = folder.name();
            server.offer(name, "a Hypha volume", 0, serve.read_only).map_err(|e| failed(&e))?;
            server.offer("", "the same", 0, serve.read_only).map_err(|e| failed(&e))?;
            ready(place)?;
            server.run(&stop).map_err(|error| failed(&error))?;
        }
        (None, Some(path)) => {
            let device = Device::new(volume, path, folder.name(), serve.read_only);
            let mut device = device.map_err(|error| failed(&error))?;
            device.take_orders(inbox);
            ready(path.display().to_string())?;
            device.run(&stop).map_err(|error| failed(&error))?;
        }
        (None, None) => {}
    }
    match fs::remove_file(folder.control()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(0),
    }
}

/// The NBD listener, and how to name its place.
fn listen(address: &str, serve: &Serve) -> Result<(Listener, String), VolumeError> {
    let wrong = |reason: String| VolumeError::Argument { field: "--nbd", reason };
    let listener = match (address.split_once(':'), &serve.tls) {
        (Some(("unix", path)), None) if !path.is_empty() => Listener::unix(Path::new(path)),
        (Some(("unix", _)), Some(_)) => {
            return Err(wrong("a unix socket has no TLS: leave out --tls".to_owned()));
        }
        (Some(("tcp", text)), tls) => {
            let address = text.parse().map_err(|_| {
                wrong(format!("{text:?}: expected an address with a port, like 127.0.0.1:10809"))
            })?;
            match tls {
                None => Listener::plain_loopback(address),
                Some(folder) => {
                    let config = tls_config(folder).map_err(|error| VolumeError::Argument {
                        field: "--tls",
                        reason: error.to_string(),
                    })?;
                    Listener::tls(address, config)
                }
            }
        }
        _ => return Err(wrong(format!("{address:?}: expected unix:PATH or tcp:ADDRESS:PORT"))),
    };
    let listener = listener.map_err(|error| wrong(error.to_string()))?;
    let place = match listener.port()? {
        Some(port) => format!("{}:{port}", address.rsplit_once(':').map_or(address, |at| at.0)),
        None => address.to_owned(),
    };
    Ok((listener, place))
}

/// Answers whoever asks about the volume while it is served.
struct Reporter {
    name: String,
    orders: Orders,
    clients: AtomicUsize,
}

/// Why a client's order ends early: it is gone, or the volume is.
enum Ended {
    Client,
    Volume,
}

impl From<Gone> for Ended {
    fn from(_: Gone) -> Self {
        Self::Volume
    }
}

impl Reporter {
    fn status(&self) -> Result<(VolumeStatus, String), Gone> {
        let (status, latencies) = self.orders.status()?;
        Ok((VolumeStatus::new(&self.name, &status), latencies))
    }

    fn obey(&self, stream: &mut UnixStream, order: &Order) -> Result<Event, Ended> {
        let Some(command) = order.command() else {
            let status = Some(Box::new(self.status()?.0));
            return Ok(Event::Done { outcome: Outcome { status, ..Outcome::default() } });
        };
        let result = self.orders.command(command, TICK, || {
            let status = Box::new(self.status()?.0);
            control::write_line(stream, &Event::Progress { status }).map_err(|_| Ended::Client)
        })?;
        Ok(match result {
            Ok(output) => Event::Done { outcome: output.into() },
            Err(error) => Event::Failed { message: error.to_string() },
        })
    }

    fn converse(&self, mut stream: UnixStream) -> io::Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut lines = BufReader::new(stream.try_clone()?);
        let Some(order) = control::read_line::<Order>(&mut lines)? else { return Ok(()) };
        let event = match self.obey(&mut stream, &order) {
            Ok(event) => event,
            Err(Ended::Client) => return Ok(()),
            Err(Ended::Volume) => Event::Failed { message: Gone.to_string() },
        };
        control::write_line(&mut stream, &event)
    }

    /// Answers a scraper.
    fn scrape(&self, stream: TcpStream) -> io::Result<()> {
        scrape::answer(stream, || {
            let (status, latencies) = self.status()?;
            Ok::<_, Gone>(status.to_metrics() + &latencies)
        })
    }

    /// Lets a thread of its own serve a client, if there aren't too many.
    fn attend(
        self: &Arc<Self>,
        serve: impl FnOnce(&Self) -> io::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        if self.clients.fetch_add(1, Ordering::AcqRel) >= CLIENTS_MAX {
            self.clients.fetch_sub(1, Ordering::AcqRel);
            return Ok(());
        }
        let this = Arc::clone(self);
        let attended = std::thread::Builder::new().name("client".to_owned()).spawn(move || {
            if let Err(error) = serve(&this) {
                tracing::debug!(%error, "a client of the volume's status is gone");
            }
            this.clients.fetch_sub(1, Ordering::AcqRel);
        });
        if attended.is_err() {
            self.clients.fetch_sub(1, Ordering::AcqRel);
        }
        attended.map(|_| ())
    }
}

fn listen_control(path: &Path, reporter: &Arc<Reporter>) -> Result<(), VolumeError> {
    // We hold the volume's lock: whoever listened here is gone.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    let reporter = Arc::clone(reporter);
    let serve = move || {
        for stream in listener.incoming() {
            let attended = stream.and_then(|stream| reporter.attend(|this| this.converse(stream)));
            if let Err(error) = attended {
                tracing::warn!(%error, "the control socket");
                std::thread::sleep(TICK);
            }
        }
    };
    std::thread::Builder::new().name("control".to_owned()).spawn(serve)?;
    Ok(())
}

fn listen_metrics(
    address: std::net::SocketAddr,
    reporter: &Arc<Reporter>,
) -> Result<(), VolumeError> {
    let listener = TcpListener::bind(address).map_err(|error| VolumeError::Argument {
        field: "--metrics",
        reason: format!("can't listen at {address}: {error}"),
    })?;
    let reporter = Arc::clone(reporter);
    let serve = move || {
        for stream in listener.incoming() {
            let attended = stream.and_then(|stream| reporter.attend(|this| this.scrape(stream)));
            if let Err(error) = attended {
                tracing::warn!(%error, "the metrics' socket");
                std::thread::sleep(TICK);
            }
        }
    };
    std::thread::Builder::new().name("metrics".to_owned()).spawn(serve)?;
    Ok(())
}

/// Stops the face at SIGINT or SIGTERM; a second signal ends the process at once.
pub(crate) fn stop_on_signals() -> Result<Stop, VolumeError> {
    let stop = Stop::new()?;
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let told = stop.clone();
    let wait = move || {
        for (nth, signal) in signals.forever().enumerate() {
            if nth > 0 {
                std::process::exit(128 + signal);
            }
            if let Err(error) = told.stop() {
                tracing::error!(%error, "can't stop in good order");
                std::process::exit(128 + signal);
            }
        }
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(wait)?;
    Ok(stop)
}
