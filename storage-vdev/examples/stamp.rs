//! Writes stamped blocks to a volume and prints each acknowledged flush, until it is killed.
//!
//! `stamp DIRECTORY SEED`: a 2+1 volume in DIRECTORY/0 to DIRECTORY/2. Each block holds its own
//! number and the number of the write. A line `flushed N` on the standard output promises that all
//! writes up to N are durable. The kill test runs it and checks that promise.

use std::io::{Read, Write};
use std::path::PathBuf;

use storage_vdev::engine::{Limits, Policy};
use storage_vdev::files::sim::Rng;
use storage_vdev::{Geometry, Options, VolumeKey, open_directories};

const BLOCKS: u64 = 256;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(directory), Some(seed)) = (args.next(), args.next()) else {
        return Err("usage: stamp DIRECTORY SEED".into());
    };
    let mut rng = Rng::new(seed.parse()?);
    let mut random = [0; 32];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
    let geometry = Geometry::new(2, 1, BLOCKS * 4096)?.with_journal_bytes(256 << 10)?;
    let options = Options {
        geometry,
        key: VolumeKey::new(&[7; 32]),
        create: true,
        policy: Policy::Quorum,
        limits: Limits::SMALL,
    };
    let directories: Vec<PathBuf> =
        (0..3).map(|shard| PathBuf::from(&directory).join(shard.to_string())).collect();
    // Directories answer inside `poll`: the clock may stand still.
    let mut volume = open_directories(&directories, &options, &random, 0)?;

    // Go on from the highest stamp that is there.
    volume.submit_read(0, 0, vec![0; (BLOCKS * 4096) as usize]);
    let found = volume.poll(0).ok_or("no completion")?;
    found.result?;
    let stamp_of = |block: &[u8]| block.get(8..16)?.try_into().ok().map(u64::from_le_bytes);
    let mut stamp = found.buffer.chunks(4096).filter_map(stamp_of).max().unwrap_or(0);

    let mut out = std::io::stdout().lock();
    writeln!(out, "opened {stamp}")?;
    loop {
        for _ in 0..=rng.below(4) {
            stamp += 1;
            let block = stamp % BLOCKS;
            let content = [block.to_le_bytes(), stamp.to_le_bytes()].concat().repeat(256);
            volume.submit_write(stamp, block * 4096, &content);
        }
        volume.submit_flush(0);
        while let Some(done) = volume.poll(0) {
            done.result?;
        }
        writeln!(out, "flushed {stamp}")?;
        out.flush()?;
    }
}
