//! Serves a 2+1 volume in `DIRECTORY/0` to `DIRECTORY/2` over a unix socket, until it is killed or
//! its standard input ends: `nbd_volume DIRECTORY SOCKET SIZE_BYTES [--tls FOLDER ADDRESS]`.
//!
//! The tests of the faces run it, and it shows how little a server needs. Real volumes are served
//! by `hypha volume serve`.

use std::io::Read;
use std::path::{Path, PathBuf};

use storage_node::Stop;
use storage_node::nbd::{Listener, Server, tls_config};
use storage_vdev::{Geometry, Options, Randomness, VolumeKey, open_directories};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [directory, socket, size_bytes, tls @ ..] = args.as_slice() else {
        return Err("usage: nbd_volume DIRECTORY SOCKET SIZE_BYTES [--tls FOLDER ADDRESS]".into());
    };
    let mut random = Randomness { salt: [0; 32], uuid: [0; 16] };
    let mut source = std::fs::File::open("/dev/urandom")?;
    source.read_exact(&mut random.salt)?;
    source.read_exact(&mut random.uuid)?;
    let geometry = Geometry::new(2, 1, size_bytes.parse()?)?;
    let options = Options { geometry, key: VolumeKey::new(&[7; 32]), create: true };
    let directories: Vec<PathBuf> =
        (0..3).map(|shard| PathBuf::from(directory).join(shard.to_string())).collect();
    let volume = open_directories(&directories, &options, &random)?;

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
    let stopper = stop.clone();
    std::thread::spawn(move || {
        // Whatever ends the input ends the server.
        std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).ok();
        stopper.stop()
    });
    println!("serving");
    server.run(&stop)?;
    Ok(())
}
