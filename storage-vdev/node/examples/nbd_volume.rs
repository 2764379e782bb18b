//! Serves a 2+1 volume in `DIRECTORY/0` to `DIRECTORY/2` over a unix socket, until it is killed or
//! its standard input ends: `nbd_volume DIRECTORY SOCKET SIZE_BYTES [--tls FOLDER ADDRESS]`.
//!
//! The tests of the faces run it, and it shows how little a server needs. Real volumes are served
//! by `hypha volume serve`.

mod volume;

use std::path::Path;

use storage_node::Stop;
use storage_node::nbd::{Listener, Server, tls_config};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [directory, socket, size_bytes, tls @ ..] = args.as_slice() else {
        return Err("usage: nbd_volume DIRECTORY SOCKET SIZE_BYTES [--tls FOLDER ADDRESS]".into());
    };
    let volume = volume::open(Path::new(directory), size_bytes.parse()?)?;
    let mut listeners = vec![Listener::unix(Path::new(socket))?];
    if let [flag, folder, address] = tls
        && flag == "--tls"
    {
        listeners.push(Listener::tls(address.parse()?, tls_config(Path::new(folder))?)?);
    }
    let mut server = Server::new(vec![volume], listeners);
    server.offer("", "a volume of 2+1 shards", 0, false)?;
    server.offer("frozen", "the same, read-only", 0, true)?;

    let stop = Stop::new()?;
    volume::stop_with_input(&stop);
    println!("serving");
    server.run(&stop)?;
    Ok(())
}
