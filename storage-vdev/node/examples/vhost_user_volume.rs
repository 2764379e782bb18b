//! Serves a 2+1 volume in `DIRECTORY/0` to `DIRECTORY/2` as a vhost-user-blk device, until it is
//! killed or its standard input ends: `vhost_user_volume DIRECTORY SOCKET SIZE_BYTES`.
//!
//! The tests of the faces run it. Real volumes are served by `hypha volume serve`.

use std::io::Read;
use std::path::{Path, PathBuf};

use storage_node::Stop;
use storage_node::vhost_user::Device;
use storage_vdev::{Geometry, Options, Randomness, VolumeKey, open_directories};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [directory, socket, size_bytes] = args.as_slice() else {
        return Err("usage: vhost_user_volume DIRECTORY SOCKET SIZE_BYTES".into());
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
    let device = Device::new(volume, Path::new(socket), "hypha-volume", false)?;

    let stop = Stop::new()?;
    let stopper = stop.clone();
    std::thread::spawn(move || {
        // Whatever ends the input ends the device.
        std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).ok();
        stopper.stop()
    });
    println!("serving");
    device.run(&stop)?;
    Ok(())
}
