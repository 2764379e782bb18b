//! Metrics over HTTP: one answer to whatever a scraper asks.

use std::fmt::Display;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

/// How long a scraper may be silent.
const PATIENCE: Duration = Duration::from_secs(5);
/// The most bytes of a request.
const REQUEST_BYTES_MAX: u64 = 8 << 10;
/// How long nothing is taken after the kernel had no descriptor for a scraper.
const PAUSE: Duration = Duration::from_millis(500);

/// Answers scrapes until the process ends, one after the other, on a thread that sleeps between them.
///
/// # Errors
/// No thread can be made.
pub(crate) fn serve<E: Display>(
    listener: TcpListener,
    metrics: impl Fn() -> Result<String, E> + Send + 'static,
) -> io::Result<()> {
    let attend = move || {
        for stream in listener.incoming() {
            if stream.is_err() {
                thread::sleep(PAUSE);
            }
            if let Err(error) = stream.and_then(|stream| answer(stream, &metrics)) {
                tracing::debug!(%error, "a scraper went away");
            }
        }
    };
    thread::Builder::new().name("metrics".to_owned()).spawn(attend)?;
    Ok(())
}

/// Answers one request with HTTP/1.0: `GET /metrics` with the text that `metrics` gives, or with
/// its error as 503; anything else with 404.
///
/// # Errors
/// The scraper is gone.
pub(crate) fn answer<E: Display>(
    mut stream: TcpStream,
    metrics: impl FnOnce() -> Result<String, E>,
) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut request = String::new();
    let mut lines = BufReader::new(stream.try_clone()?.take(REQUEST_BYTES_MAX));
    while lines.read_line(&mut request)? > 2 {}
    let (code, body) = if request.starts_with("GET /metrics ") {
        match metrics() {
            Ok(text) => ("200 OK", text),
            Err(error) => ("503 Service Unavailable", error.to_string()),
        }
    } else {
        ("404 Not Found", String::new())
    };
    write!(
        stream,
        "HTTP/1.0 {code}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    )
}
