//! Serves a 2+1 volume in `DIRECTORY/0` to `DIRECTORY/2` as a vhost-user-blk device, until it is
//! killed or its standard input ends: `vhost_user_volume DIRECTORY SOCKET SIZE_BYTES`.
//!
//! The tests of the faces run it. Real volumes are served by `hypha volume serve`.

mod volume;

use std::path::Path;

use storage_node::Stop;
use storage_node::vhost_user::Device;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [directory, socket, size_bytes] = args.as_slice() else {
        return Err("usage: vhost_user_volume DIRECTORY SOCKET SIZE_BYTES".into());
    };
    let volume = volume::open(Path::new(directory), size_bytes.parse()?)?;
    let device = Device::new(volume, Path::new(socket), "hypha-volume", false)?;

    let stop = Stop::new()?;
    volume::stop_with_input(&stop);
    println!("serving");
    device.run(&stop)?;
    Ok(())
}
